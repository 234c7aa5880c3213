package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"hsmbridge/daemon/access"
	"hsmbridge/daemon/store"
)

func sorted(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }

// Client calls the API of a daemon on this machine.
type Client struct {
	socket string
	http   *http.Client
	after  time.Duration
	slow   func()
}

// NewClient makes a client for a socket. It calls nobody.
func NewClient(socket string) *Client {
	return &Client{socket: socket, http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "unix", socket)
		},
	}}}
}

// Within makes the client give up every answer that takes longer than d. It then follows no events.
func (c *Client) Within(d time.Duration) *Client {
	c.http.Timeout = d
	return c
}

// Slow has tell called when an answer takes longer than after. The client waits on.
func (c *Client) Slow(after time.Duration, tell func()) *Client {
	c.after, c.slow = after, tell
	return c
}

// do sends a request, and tells of a daemon that does not answer it.
func (c *Client) do(req *http.Request) (*http.Response, error) {
	if c.slow == nil {
		return c.http.Do(req)
	}
	told := make(chan struct{})
	t := time.AfterFunc(c.after, func() {
		defer close(told)
		c.slow()
	})
	defer func() {
		if !t.Stop() {
			<-told
		}
	}()
	return c.http.Do(req)
}

// NoDaemonError says that no daemon serves the socket, or that the caller may not open it.
type NoDaemonError struct {
	Socket string
	Err    error
}

func (e *NoDaemonError) Error() string {
	if errors.Is(e.Err, fs.ErrPermission) {
		return fmt.Sprintf("you may not open %s: %v%s", e.Socket, e.Err, access.Advice(e.Socket, access.Connect))
	}
	return fmt.Sprintf("no daemon answers on %s: %v; start it (systemctl start hsmbridge, or hsmbridge serve), or set control.socket to where it listens", e.Socket, e.Err)
}

// Unwrap gives the cause.
func (e *NoDaemonError) Unwrap() error { return e.Err }

// Error is a refusal or failure that the daemon answered.
type Error struct {
	Status int
	Problem
}

func (e *Error) Error() string { return e.Problem.Error }

// Class is the class that the daemon gave.
func (e *Error) Class() string { return e.Problem.Class }

// Serves says whether a daemon answers on the socket.
func (c *Client) Serves(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", c.socket)
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}

// call sends a request; out may be nil.
func (c *Client) call(ctx context.Context, method, path string, query url.Values, in, out any) error {
	resp, err := c.send(ctx, method, path, query, in)
	if err != nil {
		return err
	}
	defer resp.Body.Close() //nolint:errcheck // it was only read
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return fmt.Errorf("the daemon's answer cannot be read: %w", err)
	}
	return nil
}

func (c *Client) send(ctx context.Context, method, path string, query url.Values, in any) (*http.Response, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, fmt.Errorf("control: %w", err)
		}
		body = bytes.NewReader(b)
	}
	u := url.URL{Scheme: "http", Host: "hsmbridge", Path: path, RawQuery: query.Encode()}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return nil, fmt.Errorf("control: %w", err)
	}
	resp, err := c.do(req)
	if err != nil {
		var op *net.OpError
		if errors.As(err, &op) && op.Op == "dial" {
			return nil, &NoDaemonError{c.socket, op.Err}
		}
		return nil, fmt.Errorf("the daemon did not answer: %w", err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close() //nolint:errcheck // it was only read
	e := &Error{Status: resp.StatusCode}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxBody)).Decode(&e.Problem); err != nil || e.Problem.Error == "" {
		e.Problem.Error = "the daemon answered " + resp.Status
	}
	return nil, e
}

// Status asks for the daemon at a glance.
func (c *Client) Status(ctx context.Context) (s Status, err error) {
	err = c.call(ctx, http.MethodGet, "/v1/status", nil, nil, &s)
	return s, err
}

// Keys asks for one key; with an empty name for all, page by page.
func (c *Client) Keys(ctx context.Context, name string) (list []ManagedKey, err error) {
	if name != "" {
		var out KeyList
		err := c.call(ctx, http.MethodGet, "/v1/keys/"+name, nil, nil, &out)
		return out.Keys, err
	}
	q := url.Values{}
	for {
		var out KeyList
		if err := c.call(ctx, http.MethodGet, "/v1/keys", q, nil, &out); err != nil {
			return nil, err
		}
		list = append(list, out.Keys...)
		if !out.More || len(out.Keys) == 0 {
			return list, nil
		}
		q.Set("after", out.Keys[len(out.Keys)-1].Name)
	}
}

// Jobs lists jobs.
func (c *Client) Jobs(ctx context.Context, f store.JobFilter) ([]store.Job, error) {
	var out JobList
	if f.ID != 0 {
		err := c.call(ctx, http.MethodGet, "/v1/jobs/"+strconv.FormatInt(f.ID, 10), nil, nil, &out)
		return out.Jobs, err
	}
	q := url.Values{}
	if f.Key != "" {
		q.Set("key", f.Key)
	}
	if f.Open {
		q.Set("open", "true")
	}
	if f.State != "" {
		q.Set("state", string(f.State))
	}
	var all []store.Job
	for before, left := f.Before, f.Limit; ; { // an answer holds mostRows at most
		if before > 0 {
			q.Set("before", strconv.FormatInt(before, 10))
		}
		if f.Limit > 0 {
			q.Set("limit", strconv.Itoa(min(left, mostRows)))
		}
		out = JobList{}
		if err := c.call(ctx, http.MethodGet, "/v1/jobs", q, nil, &out); err != nil {
			return nil, err
		}
		all = append(all, out.Jobs...)
		left -= len(out.Jobs)
		if left <= 0 || len(out.Jobs) < mostRows {
			return all, nil
		}
		before = out.Jobs[len(out.Jobs)-1].ID
	}
}

// Imports lists what happened to destinations.
func (c *Client) Imports(ctx context.Context, key string, job int64, limit int) ([]store.Import, error) {
	q := url.Values{}
	if key != "" {
		q.Set("key", key)
	}
	if job != 0 {
		q.Set("job", strconv.FormatInt(job, 10))
	}
	if limit > 0 {
		q.Set("limit", strconv.Itoa(limit))
	}
	var out ImportList
	err := c.call(ctx, http.MethodGet, "/v1/imports", q, nil, &out)
	return out.Imports, err
}

// Events lists events, and with follow goes on until ctx ends; each is given to f.
func (c *Client) Events(ctx context.Context, filter store.EventFilter, follow bool, f func(store.Event) error) error {
	q := url.Values{}
	if filter.Key != "" {
		q.Set("key", filter.Key)
	}
	for name, n := range map[string]int64{"after": filter.After, "before": filter.Before, "job": filter.Job, "last": int64(filter.Last)} {
		if n > 0 {
			q.Set(name, strconv.FormatInt(n, 10))
		}
	}
	if !follow {
		var out EventList
		if err := c.call(ctx, http.MethodGet, "/v1/events", q, nil, &out); err != nil {
			return err
		}
		for _, e := range out.Events {
			if err := f(e); err != nil {
				return err
			}
		}
		return nil
	}
	q.Set("follow", "true")
	resp, err := c.send(ctx, http.MethodGet, "/v1/events", q, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close() //nolint:errcheck // it was only read
	d := json.NewDecoder(resp.Body)
	for {
		var e store.Event
		switch err := d.Decode(&e); {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, io.EOF):
			return errors.New("the daemon ended")
		case err != nil:
			return fmt.Errorf("the daemon's answer cannot be read: %w", err)
		}
		if err := f(e); err != nil {
			return err
		}
	}
}

// Start queues jobs.
func (c *Client) Start(ctx context.Context, r StartRequest) ([]store.Job, error) {
	var out JobList
	err := c.call(ctx, http.MethodPost, "/v1/start", nil, r, &out)
	return out.Jobs, err
}

// Retry begins anew with a key.
func (c *Client) Retry(ctx context.Context, key string) ([]store.Job, error) {
	var out JobList
	err := c.call(ctx, http.MethodPost, "/v1/keys/"+key+"/retry", nil, nil, &out)
	return out.Jobs, err
}

// Pause has nothing more begun for a key; with resume that is taken back. Changed is false where it was so already.
func (c *Client) Pause(ctx context.Context, key string, resume bool) (changed bool, err error) {
	what := "/pause"
	if resume {
		what = "/resume"
	}
	var out PauseAnswer
	err = c.call(ctx, http.MethodPost, "/v1/keys/"+key+what, nil, nil, &out)
	return err == nil && !out.Unchanged, err
}

// Restore lets a revoked key be imported again.
func (c *Client) Restore(ctx context.Context, key string) error {
	return c.call(ctx, http.MethodPost, "/v1/keys/"+key+"/restore", nil, nil, nil)
}

// Revoke deletes a key's material everywhere.
func (c *Client) Revoke(ctx context.Context, key string, r ReasonRequest) (store.Job, error) {
	var out JobList
	err := c.call(ctx, http.MethodPost, "/v1/keys/"+key+"/revoke", nil, r, &out)
	if err != nil || len(out.Jobs) == 0 {
		return store.Job{}, err
	}
	return out.Jobs[0], nil
}

// Waive lets a key be imported without a backup.
func (c *Client) Waive(ctx context.Context, key, reason string) error {
	return c.call(ctx, http.MethodPost, "/v1/keys/"+key+"/waive-backup", nil, ReasonRequest{Reason: reason}, nil)
}

// Job asks for retry or cancel of a job.
func (c *Client) Job(ctx context.Context, what string, id int64) error {
	return c.call(ctx, http.MethodPost, "/v1/jobs/"+strconv.FormatInt(id, 10)+"/"+what, nil, nil, nil)
}

// Cancel ends a job, and gives what is left of one that deletes key material.
func (c *Client) Cancel(ctx context.Context, id int64) (left string, err error) {
	var out CancelAnswer
	err = c.call(ctx, http.MethodPost, "/v1/jobs/"+strconv.FormatInt(id, 10)+"/cancel", nil, nil, &out)
	return out.Left, err
}

// ResumeToken lets a parked token be used again.
func (c *Client) ResumeToken(ctx context.Context, token string) error {
	return c.call(ctx, http.MethodPost, "/v1/tokens/"+token+"/resume", nil, nil, nil)
}

// Reload reads the configuration again.
func (c *Client) Reload(ctx context.Context) error {
	return c.call(ctx, http.MethodPost, "/v1/reload", nil, nil, nil)
}

// Backup writes a copy of the database.
func (c *Client) Backup(ctx context.Context, file string) error {
	return c.call(ctx, http.MethodPost, "/v1/backup", nil, BackupRequest{file}, nil)
}
