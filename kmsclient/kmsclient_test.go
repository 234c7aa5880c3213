package kmsclient

import (
	"encoding/pem"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestNewRefuses(t *testing.T) {
	for _, tc := range []struct {
		name   string
		config Config
		env    map[string]string
		code   string
		says   string
	}{
		{"no Region", Config{}, nil, "NoRegion", "kms.region"},
		{"Region that is a host", Config{Region: "eu-central-1.example.com/"}, nil, "InvalidRegion", "eu-central-1"},
		{"Region with a space", Config{Region: "eu-central-1 "}, nil, "InvalidRegion", `"eu-central-1 "`},
		{"no such profile", Config{Region: testRegion, Profile: "payments"}, nil, "ProfileNotFound", `profile "payments"`},
		{"no such profile in AWS_PROFILE", Config{Region: testRegion}, map[string]string{"AWS_PROFILE": "payments"}, "ProfileNotFound", `profile "payments"`},
		{"CA bundle missing", Config{Region: testRegion}, map[string]string{"AWS_CA_BUNDLE": "/nonexistent/ca.pem"}, "InvalidConfiguration", "/nonexistent/ca.pem"},
		{"http", Config{Region: testRegion, Endpoint: "http://kms.example.com"}, nil, "InsecureEndpoint", "over TLS"},
		{"http from the environment", Config{Region: testRegion}, map[string]string{"AWS_ENDPOINT_URL": "http://kms.example.com"}, "InsecureEndpoint", "AWS_ENDPOINT_URL"},
		{"http for KMS from the environment", Config{Region: testRegion}, map[string]string{"AWS_ENDPOINT_URL_KMS": "http://10.0.0.1"}, "InsecureEndpoint", "http://10.0.0.1"},
		{"password in the endpoint", Config{Region: testRegion, Endpoint: "https://" + url.UserPassword("user", "hunter2").String() + "@kms.example.com"}, nil, "InsecureEndpoint", "user name or a password"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			hermetic(t)
			for k, v := range tc.env {
				t.Setenv(k, v)
			}
			_, err := New(t.Context(), tc.config)
			e, ok := errors.AsType[*Error](err)
			if !ok || e.Code != tc.code || e.Class() != ClassCaller || !strings.Contains(err.Error(), tc.says) || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestCheckEndpoint(t *testing.T) {
	for endpoint, ok := range map[string]bool{
		"": true, "https://kms.eu-central-1.amazonaws.com": true, "https://10.0.0.1:8443/": true,
		"http://127.0.0.1:4599": true, "http://127.8.9.1": true, "http://[::1]:4599": true, "http://localhost:4599": true, "http://[::ffff:127.0.0.1]": true,
		"http://localhost.example.com": false, "http://127.0.0.1.example.com": false, "http://0.0.0.0:4599": false, "http://10.0.0.1": false,
		"http://[fe80::1]": false, "http://kms": false, "ftp://127.0.0.1": false, "127.0.0.1:4599": false, "kms.example.com": false,
		"https://": false, "http://": false, "https://:443": false, "http://user@127.0.0.1": false, "http://127.0.0.1:4599/\x00": false,
	} {
		if err := checkEndpoint(endpoint); (err == nil) != ok {
			t.Errorf("%q: %v", endpoint, err)
		}
	}
}

func TestEndpointOfTheEnvironmentIsShown(t *testing.T) {
	hermetic(t)
	t.Setenv("AWS_REGION", testRegion)
	t.Setenv("AWS_ENDPOINT_URL", "https://vpce.example.com")
	c, err := New(t.Context(), Config{})
	if err != nil {
		t.Fatal(err)
	}
	if c.Endpoint() != "https://vpce.example.com" || c.Region() != testRegion {
		t.Errorf("endpoint %q, Region %q", c.Endpoint(), c.Region())
	}
}

func TestNoCredentials(t *testing.T) {
	s := newServer(t, fails(t, 500, "KMSInternalException", ""))
	c := newTestClient(t, s.URL)
	for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"} {
		t.Setenv(name, "")
	}
	var calls int
	c, err := New(t.Context(), Config{Region: testRegion, Endpoint: c.Endpoint(), Log: func(Call) { calls++ }})
	if err != nil {
		t.Fatal(err)
	}
	err = operations(c)[opImportKeyMaterial](t)
	e, ok := errors.AsType[*Error](err)
	if !ok || e.Code != codeNoCredentials || e.Class() != ClassCaller || e.Retryable || e.OutcomeUnknown || !strings.Contains(err.Error(), "kms.profile") {
		t.Errorf("got %v", err)
	}
	if err := operations(c)[opDescribeKey](t); Code(err) != codeNoCredentials || calls != 2 || len(s.seen()) != 0 {
		t.Errorf("%d attempts, %d requests, %v", calls, len(s.seen()), err)
	}
}

// A profile's credentials and Region are used, and the request says who sent it.
func TestProfile(t *testing.T) {
	s := newServer(t, func(w http.ResponseWriter, _ *http.Request, _ int) { describe(t, w) })
	hermetic(t)
	file := filepath.Join(t.TempDir(), "config")
	text := "[profile payments]\nregion = eu-central-1\naws_access_key_id = AKIDPROFILE\naws_secret_access_key = not-a-secret\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("AWS_CONFIG_FILE", file)
	c, err := New(t.Context(), Config{Endpoint: s.URL, Profile: "payments"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.DescribeKey(t.Context(), testARN); err != nil {
		t.Fatal(err)
	}
	h := s.seen()[0].Header
	if auth := h.Get("Authorization"); !strings.Contains(auth, "Credential=AKIDPROFILE/") || !strings.Contains(auth, "/eu-central-1/kms/") {
		t.Errorf("signed with %s", auth)
	}
	if !strings.Contains(h.Get("User-Agent"), "app/hsmbridge") {
		t.Errorf("user agent %s", h.Get("User-Agent"))
	}
}

func TestTLS(t *testing.T) {
	handler := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { describe(t, w) })
	secure := httptest.NewTLSServer(handler)
	t.Cleanup(secure.Close)
	plain := httptest.NewServer(handler)
	t.Cleanup(plain.Close)

	t.Run("unknown authority", func(t *testing.T) {
		_, err := newTestClient(t, secure.URL).DescribeKey(t.Context(), testARN)
		e, ok := errors.AsType[*Error](err)
		if !ok || e.Code != codeTLS || e.Retryable || !strings.Contains(err.Error(), "AWS_CA_BUNDLE") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("no TLS behind https", func(t *testing.T) {
		_, err := newTestClient(t, strings.Replace(plain.URL, "http:", "https:", 1)).DescribeKey(t.Context(), testARN)
		if Code(err) != codeTLS {
			t.Errorf("got %v", err)
		}
	})
	t.Run("CA bundle", func(t *testing.T) {
		hermetic(t)
		bundle := filepath.Join(t.TempDir(), "ca.pem")
		cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw})
		if err := os.WriteFile(bundle, cert, 0o600); err != nil {
			t.Fatal(err)
		}
		t.Setenv("AWS_CA_BUNDLE", bundle)
		c, err := New(t.Context(), Config{Region: testRegion, Endpoint: secure.URL})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.DescribeKey(t.Context(), testARN); err != nil {
			t.Error(err)
		}
	})
	t.Run("HTTP client of the caller", func(t *testing.T) {
		c := newTestClient(t, secure.URL, func(c *Config) { c.HTTPClient = secure.Client() })
		if _, err := c.DescribeKey(t.Context(), testARN); err != nil {
			t.Error(err)
		}
	})
	t.Run("redirected from https to http", func(t *testing.T) {
		var reached bool
		other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { reached = true; describe(t, w) }))
		t.Cleanup(other.Close)
		from := httptest.NewTLSServer(http.RedirectHandler(other.URL, http.StatusPermanentRedirect))
		t.Cleanup(from.Close)
		c := newTestClient(t, from.URL, func(c *Config) { c.HTTPClient = from.Client() })
		if _, err := c.DescribeKey(t.Context(), testARN); Code(err) != codeNotKMS || reached {
			t.Errorf("reached %t, %v", reached, err)
		}
	})
}

func TestQuotasNameEveryOperation(t *testing.T) {
	for op := range operations(nil) {
		i := slices.IndexFunc(Quotas(), func(q Quota) bool { return q.Operation == string(op) })
		if i < 0 || Quotas()[i].PerSecond <= 0 || Quotas()[i].Source == "" {
			t.Errorf("%s has no quota", op)
		}
	}
	if !slices.IsSortedFunc(Quotas(), func(a, b Quota) int { return strings.Compare(a.Operation, b.Operation) }) {
		t.Error("not sorted by operation")
	}
}
