package kmsclient

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
)

// maxAnswer bounds an answer of KMS in bytes. The longest, a page of ListKeyRotations, is far below.
const maxAnswer = 4 << 20

// newHTTPClient makes the HTTP client for KMS from the SDK's transport, which has AWS_CA_BUNDLE applied,
// or from c.HTTPClient. TLS is 1.2 or later.
func newHTTPClient(c Config, sdk aws.HTTPClient) (*http.Client, error) {
	client := &http.Client{Timeout: c.Timeout}
	if client.Timeout == 0 {
		client.Timeout = DefaultTimeout
	}
	if c.HTTPClient != nil {
		client.Transport = c.HTTPClient.Transport
	} else {
		built, ok := sdk.(interface{ GetTransport() *http.Transport })
		if !ok {
			return nil, fmt.Errorf("the AWS configuration has an HTTP client of type %T", sdk)
		}
		t := built.GetTransport()
		t.DialContext = (&net.Dialer{Timeout: min(client.Timeout, 10*time.Second), KeepAlive: 30 * time.Second}).DialContext
		t.TLSHandshakeTimeout = min(client.Timeout, 10*time.Second)
		t.ResponseHeaderTimeout = client.Timeout
		client.Transport = t
	}
	if client.Transport == nil {
		client.Transport = http.DefaultTransport
	}
	client.Transport = boundedAnswers{client.Transport}
	// KMS never redirects. Whoever does is not KMS, and must not get a signed request or choose a wrapping key.
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return client, nil
}

// boundedAnswers ends an answer that is longer than any of KMS.
type boundedAnswers struct{ http.RoundTripper }

// RoundTrip sends the request.
func (b boundedAnswers) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body != nil {
		r = r.WithContext(r.Context()) // a copy: a RoundTripper leaves its request alone
		r.Body = onlyReader{r.Body}
	}
	resp, err := b.RoundTripper.RoundTrip(r)
	if err == nil {
		resp.Body = http.MaxBytesReader(nil, resp.Body, maxAnswer)
	}
	return resp, err
}

// onlyReader hides the WriteTo of a request body. smithy-go 1.28 closes the body when the headers of the answer
// are there, and WriteTo of a closed one returns io.EOF as an error; if net/http is still looking for the end
// of the body then, it takes that for a failed request and closes the connection under the answer.
type onlyReader struct{ io.ReadCloser }

// checkEndpoint refuses an endpoint over which somebody on the way could replace the wrapping public key.
// AWS signs nothing over that key: TLS is all there is.
func checkEndpoint(endpoint string) error {
	if endpoint == "" {
		return nil // AWS's own, which is https
	}
	u, err := url.Parse(endpoint)
	switch {
	case err != nil:
		return errors.New("it is not a URL") // the error would show a password in it
	case u.User != nil:
		return errors.New("it holds a user name or a password")
	case u.Host == "" || u.Hostname() == "":
		return fmt.Errorf("%q names no host", endpoint)
	case u.Scheme == "https":
		return nil
	case u.Scheme == "http" && isLoopback(u.Hostname()):
		return nil
	case u.Scheme == "http":
		return fmt.Errorf("%s is not over TLS and not a loopback address", endpoint)
	}
	return fmt.Errorf("%q is neither https nor http", endpoint)
}

// isLoopback says that the host is this machine. Names other than localhost are not resolved: what they
// mean now says nothing about the next request.
func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.Unmap().IsLoopback()
}
