package kmsclient

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"
)

// answer is a server that answers every request with the same.
type answer struct {
	status            int
	code, id, content string
	body              []byte
}

func (a *answer) RoundTrip(r *http.Request) (*http.Response, error) {
	h := http.Header{}
	for name, v := range map[string]string{"X-Amzn-Errortype": a.code, "X-Amzn-Requestid": a.id, "Content-Type": a.content, "Date": a.id} {
		if v != "" {
			h[name] = []string{v}
		}
	}
	return &http.Response{StatusCode: a.status, Header: h, Body: io.NopCloser(bytes.NewReader(a.body)), ContentLength: int64(len(a.body)), Request: r}, nil
}

// FuzzAnswer is a server that answers anything in the place of KMS. No call panics; what it takes for an answer is about the key that was asked for
// and not a failure; and every error is one line of bounded length that a terminal can show, with a code and without anything secret.
func FuzzAnswer(f *testing.F) {
	const jsonType = "application/x-amz-json-1.1"
	for _, body := range []any{
		map[string]any{"KeyId": testARN, "PublicKey": spki(f, rsa2048()), "ImportToken": []byte("token"), "ParametersValidTo": time.Now().Add(time.Hour).Unix()},
		map[string]any{"KeyId": testARN, "Mac": []byte("mac"), "Signature": []byte("signature"), "KeyMaterialId": strings.Repeat("0a", 32)},
		map[string]any{"KeyMetadata": map[string]any{"KeyId": "1", "Arn": testARN, "KeySpec": "HMAC_256", "Origin": "EXTERNAL", "KeyState": "Enabled", "CreationDate": 1.5e9, "ValidTo": 1.8e9}},
		map[string]any{"Rotations": []any{map[string]any{"KeyId": testARN, "KeyMaterialId": "a", "ImportState": "IMPORTED", "ValidTo": 1e300}}, "Truncated": true, "NextMarker": "1"},
		map[string]any{"Keys": []any{map[string]any{"KeyArn": testARN}}, "Aliases": []any{map[string]any{"AliasName": "alias/a", "TargetKeyId": "1"}}, "Tags": []any{map[string]any{"TagKey": "k", "TagValue": "v"}}},
	} {
		b, err := json.Marshal(body)
		if err != nil {
			f.Fatal(err)
		}
		for which := range uint8(16) {
			f.Add(which, uint16(0), "", "request-1", jsonType, b)
		}
	}
	f.Add(uint8(3), uint16(200), "", "request-1", jsonType, []byte(`{"__type":"com.amazonaws.kms#ThrottlingException","message":"slow\u001b[2J down"}`))
	f.Add(uint8(4), uint16(200), "NotFoundException:http://internal.amazon.com/", "r\n1", jsonType, []byte(`{`))
	f.Add(uint8(5), uint16(303), "", "", "text/html", []byte("<html>please log in"))
	f.Add(uint8(6), uint16(102), "", "", "", []byte(nil))
	a := new(answer)
	c := newTestClient(f, "", func(c *Config) {
		c.MaxAttempts = 1
		c.HTTPClient = &http.Client{Transport: a}
	})
	f.Fuzz(func(t *testing.T, which uint8, status uint16, code, id, content string, body []byte) {
		*a = answer{200 + int(status)%400, code, id, content, body}
		calls := map[string]func() error{
			"ListKeys":    func() error { _, err := c.ListKeys(t.Context()); return err },
			"ListAliases": func() error { _, err := c.ListAliases(t.Context()); return err },
			"ListTags":    func() error { _, err := c.ListTags(t.Context(), testARN); return err },
			"Parameters": func() error {
				p, err := c.GetParametersForImport(t.Context(), testARN, "RSAES_OAEP_SHA_256", "RSA_2048")
				if err == nil && (p.KeyARN != testARN || p.PublicKey.N.BitLen() != 2048 || len(p.ImportToken) == 0 || !p.ValidTo.After(time.Now()) || p.ValidTo.After(time.Now().Add(25*time.Hour))) {
					t.Errorf("parameters that KMS does not give: %+v", p)
				}
				if err != nil && p.PublicKey != nil {
					t.Error("a wrapping public key with an error")
				}
				return err
			},
			"DescribeKey": func() error {
				k, err := c.DescribeKey(t.Context(), testARN)
				if err == nil && k.ARN != testARN {
					t.Errorf("the answer is about %q", k.ARN)
				}
				return err
			},
		}
		for op, do := range operations(c) {
			calls[string(op)] = func() error { return do(t) }
		}
		names := slices.Sorted(maps.Keys(calls))
		name := names[int(which)%len(names)]
		err := calls[name]()
		if err == nil {
			if a.status >= 300 {
				t.Errorf("%s: the answer %d %q is a success", name, a.status, body)
			}
			return
		}
		var untrusted *UntrustedParametersError
		text := err.Error()
		switch {
		case Code(err) == "" && !errors.As(err, &untrusted):
			t.Errorf("%s: %v has no code", name, err)
		case strings.ContainsFunc(text, unicode.IsControl), len(text) > 4<<10:
			t.Errorf("%s: an error of %d bytes: %q", name, len(text), text)
		case strings.Contains(text, secretKey) || strings.Contains(text, sessionToken):
			t.Errorf("%s: %q", name, text)
		}
	})
}

// FuzzEndpoint holds that an endpoint is taken only if requests to it go over TLS, or stay on this machine, and nobody's password is in it.
func FuzzEndpoint(f *testing.F) {
	for _, s := range []string{
		"https://kms.eu-central-1.amazonaws.com", "http://127.0.0.1:8080", "http://[::1]:1/", "http://localhost", "http://localhost.example.com", "http://127.0.0.1.example.com", "http://user:x@127.0.0.1",
		"HTTPS://x", "http://2130706433", "http://[::ffff:127.0.0.1]", "https://", "//x", "ftp://127.0.0.1", "http://127.1", "http://[::1%25eth0]",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		err := checkEndpoint(s)
		if err != nil || s == "" {
			return
		}
		// net/http goes where net/url says.
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s, http.NoBody)
		if err != nil {
			t.Fatalf("%q is taken, and no request goes there: %v", s, err)
		}
		host := r.URL.Hostname()
		here := host == "localhost" || strings.HasPrefix(host, "127.") || host == "::1" || strings.HasPrefix(host, "::1%") || strings.HasPrefix(strings.ToLower(host), "::ffff:")
		if r.URL.Scheme != "https" && (r.URL.Scheme != "http" || !here) || r.URL.User != nil || host == "" {
			t.Errorf("%q is taken", s)
		}
		if _, err := url.Parse(s); err != nil {
			t.Errorf("%q is taken: %v", s, err)
		}
	})
}
