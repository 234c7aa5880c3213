package control

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strconv"
)

// Requests lists requests for approval, the latest first.
func (c *Client) Requests(ctx context.Context, key string, all bool, limit int) ([]Request, error) {
	q := url.Values{}
	if key != "" {
		q.Set("key", key)
	}
	if all {
		q.Set("all", "true")
	}
	if limit > 0 {
		q.Set("limit", strconv.Itoa(limit))
	}
	var out RequestList
	err := c.call(ctx, http.MethodGet, "/v1/requests", q, nil, &out)
	return out.Requests, err
}

// Request asks for one request, whole.
func (c *Client) Request(ctx context.Context, name string) (Request, error) {
	return c.requestCall(ctx, http.MethodGet, name, "", nil)
}

// Approve hands in an officer's signature.
func (c *Client) Approve(ctx context.Context, name string, signature []byte) (Request, error) {
	return c.requestCall(ctx, http.MethodPost, name, "/approve", SignatureRequest{Signature: string(signature)})
}

// Reject hands in an officer's signed no.
func (c *Client) Reject(ctx context.Context, name, reason string, signature []byte) (Request, error) {
	return c.requestCall(ctx, http.MethodPost, name, "/reject", SignatureRequest{Signature: string(signature), Reason: reason})
}

// Withdraw takes a request back that no job waits for.
func (c *Client) Withdraw(ctx context.Context, name, reason string) (Request, error) {
	return c.requestCall(ctx, http.MethodPost, name, "/withdraw", ReasonRequest{Reason: reason})
}

func (c *Client) requestCall(ctx context.Context, method, name, what string, in any) (Request, error) {
	var out RequestList
	if err := c.call(ctx, method, "/v1/requests/"+url.PathEscape(name)+what, nil, in, &out); err != nil {
		return Request{}, err
	}
	if len(out.Requests) == 0 {
		return Request{}, errors.New("the daemon's answer is empty")
	}
	return out.Requests[0], nil
}

// Standing asks officers to approve renewals in advance.
func (c *Client) Standing(ctx context.Context, key string, r StandingRequest) ([]Request, error) {
	var out RequestList
	err := c.call(ctx, http.MethodPost, "/v1/keys/"+url.PathEscape(key)+"/standing", nil, r, &out)
	return out.Requests, err
}
