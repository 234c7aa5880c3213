package kmsclient

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"hsmbridge/test/loopback"
)

func describe(t *testing.T, w http.ResponseWriter) {
	t.Helper()
	answerJSON(t, w, http.StatusOK, map[string]any{"KeyMetadata": map[string]any{"Arn": testARN, "KeyId": keyID(testARN), "KeyState": "Enabled"}})
}

func TestRetriesWhatChangesNothing(t *testing.T) {
	for _, tc := range []struct {
		name   string
		status int
		code   string
	}{
		{"throttled", 400, "ThrottlingException"},
		{"internal error", 500, "KMSInternalException"},
		{"dependency", 503, "DependencyTimeoutException"},
		{"unknown code", 500, "SomethingNewException"},
		{"gateway", 502, codeUnavailable},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newServer(t, func(w http.ResponseWriter, r *http.Request, n int) {
				if n < 3 && tc.code == codeUnavailable {
					w.WriteHeader(tc.status)
					_, _ = w.Write([]byte("<html>bad gateway</html>"))
					return
				}
				if n < 3 {
					fails(t, tc.status, tc.code, "later")(w, r, n)
					return
				}
				describe(t, w)
			})
			var calls []Call
			c := newTestClient(t, s.URL, func(c *Config) { c.Log = func(done Call) { calls = append(calls, done) } })
			if _, err := c.DescribeKey(t.Context(), testARN); err != nil {
				t.Fatal(err)
			}
			if len(calls) != 3 {
				t.Fatalf("%d attempts were logged", len(calls))
			}
			for i, got := range calls {
				want := Call{Operation: "DescribeKey", Key: testARN, Attempt: i + 1, RequestID: "request-1", Status: tc.status, Code: tc.code, Duration: got.Duration}
				if i == 2 {
					want.Status, want.Code = 200, ""
				}
				if got != want {
					t.Errorf("attempt %d: got %+v, want %+v", i+1, got, want)
				}
			}
		})
	}
}

func TestAttemptsEnd(t *testing.T) {
	s := newServer(t, fails(t, 500, "KMSInternalException", ""))
	c := newTestClient(t, s.URL, func(c *Config) { c.MaxAttempts = 2 })
	t.Setenv("AWS_MAX_ATTEMPTS", "7")
	_, err := c.DescribeKey(t.Context(), testARN)
	if Code(err) != "KMSInternalException" || len(s.seen()) != 2 {
		t.Errorf("%d requests, %v", len(s.seen()), err)
	}
}

// The environment cannot make a call that changes something go out more than once.
func TestEnvironmentDoesNotChangeRetries(t *testing.T) {
	s := newServer(t, fails(t, 400, "ThrottlingException", ""))
	hermetic(t)
	t.Setenv("AWS_MAX_ATTEMPTS", "7")
	t.Setenv("AWS_RETRY_MODE", "adaptive")
	c, err := New(t.Context(), Config{Region: testRegion, Endpoint: s.URL, MaxAttempts: 2})
	if err != nil {
		t.Fatal(err)
	}
	if err := operations(c)[opImportKeyMaterial](t); Code(err) != "ThrottlingException" || len(s.seen()) != 1 {
		t.Errorf("%d requests, %v", len(s.seen()), err)
	}
	if err := operations(c)[opDescribeKey](t); Code(err) != "ThrottlingException" || len(s.seen()) != 3 {
		t.Errorf("%d requests, %v", len(s.seen()), err)
	}
}

// Failures of every sort: how many requests arrive, what the code is, and whether the outcome is known.
func TestChangesAreSentOnce(t *testing.T) {
	hijack := func(write string) func(http.ResponseWriter, *http.Request, int) {
		return func(w http.ResponseWriter, _ *http.Request, _ int) {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Errorf("hijack: %v", err)
				return
			}
			_, _ = conn.Write([]byte(write))
			_ = conn.Close()
		}
	}
	for _, tc := range []struct {
		name    string
		answer  func(http.ResponseWriter, *http.Request, int)
		code    string
		unknown bool
	}{
		{"throttled", fails(t, 400, "ThrottlingException", ""), "ThrottlingException", false},
		{"throttled with 503", fails(t, 503, "ThrottlingException", ""), "ThrottlingException", false},
		{"internal error", fails(t, 500, "KMSInternalException", ""), "KMSInternalException", true},
		{"dependency", fails(t, 503, "DependencyTimeoutException", ""), "DependencyTimeoutException", true},
		{"refused", fails(t, 400, "ExpiredImportTokenException", ""), "ExpiredImportTokenException", false},
		{"signature", fails(t, 400, "InvalidSignatureException", ""), "InvalidSignatureException", false},
		{"cut at once", hijack(""), codeCut, true},
		{"cut in the headers", hijack("HTTP/1.1 200 OK\r\nContent-"), codeCut, true},
		{"cut in the body", hijack("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"KeyId\":"), codeCut, true},
		{"not HTTP", hijack("SSH-2.0-OpenSSH_9.2\r\n"), codeCut, true},
		{"hangs", func(_ http.ResponseWriter, r *http.Request, _ int) { <-r.Context().Done() }, codeTimeout, true},
		{"hangs in the body", func(w http.ResponseWriter, r *http.Request, _ int) {
			_, _ = w.Write([]byte(`{"KeyId":`))
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}, codeTimeout, true},
		{"page of a proxy", func(w http.ResponseWriter, _ *http.Request, _ int) {
			_, _ = w.Write([]byte("<html>please log in</html>"))
		}, codeNotKMS, true},
		{"page of a gateway", func(w http.ResponseWriter, _ *http.Request, _ int) {
			w.WriteHeader(http.StatusBadGateway)
			_, _ = w.Write([]byte("<html>bad gateway</html>"))
		}, codeUnavailable, true},
		{"empty 403", func(w http.ResponseWriter, _ *http.Request, _ int) { w.WriteHeader(http.StatusForbidden) }, codeNotKMS, true},
		{"redirect", func(w http.ResponseWriter, r *http.Request, _ int) {
			http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
		}, codeNotKMS, true},
		{"another key", func(w http.ResponseWriter, _ *http.Request, _ int) {
			answerJSON(t, w, 200, map[string]string{"KeyId": strings.Replace(testARN, "1234", "4321", 1)})
		}, codeNotKMS, true},
		{"endless", func(w http.ResponseWriter, _ *http.Request, _ int) {
			_, _ = w.Write([]byte(`{"KeyId":"`))
			for range 5 << 10 {
				if _, err := w.Write([]byte(strings.Repeat("a", 1<<10))); err != nil {
					return
				}
			}
		}, codeNotKMS, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newServer(t, tc.answer)
			c := newTestClient(t, s.URL, func(c *Config) { c.Timeout = 300 * time.Millisecond })
			if tc.name == "endless" {
				c = newTestClient(t, s.URL)
			}
			err := operations(c)[opImportKeyMaterial](t)
			if Code(err) != tc.code || OutcomeUnknown(err) != tc.unknown {
				t.Errorf("outcome unknown %t, error %v", OutcomeUnknown(err), err)
			}
			if n := len(s.seen()); n != 1 {
				t.Errorf("%d requests", n)
			}
			if tc.unknown != strings.Contains(err.Error(), "is not known: look at the key") {
				t.Errorf("text: %v", err)
			}
			for _, secret := range []string{secretKey, sessionToken, "AKIDTEST", "aW1wb3J0LXRva2Vu", "import-token", "encrypted-key-material", "ZW5jcnlwdGVk", "please log in"} {
				if strings.Contains(err.Error(), secret) {
					t.Errorf("%q is in: %v", secret, err)
				}
			}
		})
	}
}

func TestEveryChangeIsSentOnce(t *testing.T) {
	for _, op := range []operation{opCreateAlias, opCreateKey, opDeleteImported, opImportKeyMaterial} {
		s := newServer(t, fails(t, 500, "KMSInternalException", ""))
		c := newTestClient(t, s.URL)
		err := operations(c)[op](t)
		e, ok := errors.AsType[*Error](err)
		if !ok || !e.OutcomeUnknown || e.Retryable || len(s.seen()) != 1 {
			t.Errorf("%s: %d requests, %v", op, len(s.seen()), err)
		}
	}
}

// Before a connection exists nothing can have happened, so the outcome is known.
func TestNoConnection(t *testing.T) {
	for _, tc := range []struct{ name, endpoint, code string }{
		{"nobody listens", "http://" + loopback.Refused(t), codeRefused},
		{"no such name", "https://kms.invalid", codeDNS},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newTestClient(t, tc.endpoint, func(c *Config) { c.MaxAttempts = 1 })
			err := operations(c)[opImportKeyMaterial](t)
			e, ok := errors.AsType[*Error](err)
			if !ok || e.Code != tc.code || e.OutcomeUnknown || !e.Retryable || e.Class() != ClassKMS || e.Err == nil || e.Message == "" {
				t.Errorf("got %v", err)
			}
		})
	}
}

// STS refuses the role: KMS was not called, whatever was sent to others.
func TestNoRole(t *testing.T) {
	asked := 0
	sts := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked++
		w.Header().Set("Content-Type", "text/xml")
		w.WriteHeader(http.StatusForbidden)
		_, _ = io.WriteString(w, `<ErrorResponse><Error><Type>Sender</Type><Code>AccessDenied</Code><Message>no</Message></Error><RequestId>x</RequestId></ErrorResponse>`)
	}))
	defer sts.Close()
	s := newServer(t, fails(t, 500, "KMSInternalException", ""))
	t.Setenv("AWS_ENDPOINT_URL_STS", sts.URL)
	for _, op := range []operation{opCreateKey, opImportKeyMaterial} {
		asked = 0
		c := newTestClient(t, s.URL, func(c *Config) { c.RoleARN = "arn:aws:iam::111122223333:role/hsmbridge" })
		err := operations(c)[op](t)
		e, ok := errors.AsType[*Error](err)
		if !ok || e.Code != codeNoCredentials || e.OutcomeUnknown || len(s.seen()) != 0 || asked == 0 {
			t.Errorf("%s: %d requests to KMS, %d to STS: %v", op, len(s.seen()), asked, err)
		}
	}
}

func TestCanceled(t *testing.T) {
	arrived := make(chan struct{}, 1)
	s := newServer(t, func(_ http.ResponseWriter, r *http.Request, _ int) {
		arrived <- struct{}{}
		<-r.Context().Done()
	})
	c := newTestClient(t, s.URL)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-arrived; cancel() }()
	_, err := c.ImportKeyMaterial(ctx, ImportRequest{KeyARN: testARN, ImportToken: []byte("t"), EncryptedKeyMaterial: []byte("m")})
	if Code(err) != codeCanceled || !errors.Is(err, context.Canceled) || !OutcomeUnknown(err) {
		t.Errorf("while KMS works: %v", err)
	}
	_, err = c.ImportKeyMaterial(ctx, ImportRequest{KeyARN: testARN, ImportToken: []byte("t"), EncryptedKeyMaterial: []byte("m")})
	if Code(err) != codeCanceled || !errors.Is(err, context.Canceled) || OutcomeUnknown(err) || len(s.seen()) != 1 {
		t.Errorf("before it began: %v", err)
	}
	late, stop := context.WithDeadline(t.Context(), time.Now())
	defer stop()
	if _, err := c.DescribeKey(late, testARN); Code(err) != codeCanceled || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("too late: %v", err)
	}
}

// A deadline of the caller that passes between two attempts ends the call with the caller's reason.
func TestCanceledBetweenAttempts(t *testing.T) {
	var n atomic.Int32
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s := newServer(t, fails(t, 400, "ThrottlingException", ""))
	c := newTestClient(t, s.URL, func(c *Config) {
		c.Log = func(Call) {
			if n.Add(1) == 1 {
				cancel()
			}
		}
	})
	if _, err := c.DescribeKey(ctx, testARN); Code(err) != codeCanceled || n.Load() != 1 || OutcomeUnknown(err) {
		t.Errorf("%d attempts, %v", n.Load(), err)
	}
}

func TestRefusedBeforeItIsSent(t *testing.T) {
	s := newServer(t, fails(t, 500, "KMSInternalException", ""))
	c := newTestClient(t, s.URL)
	elsewhere := strings.Replace(testARN, testRegion, "us-east-1", 1)
	for _, tc := range []struct {
		name string
		call func() error
		want string
	}{
		{"alias", func() error {
			_, err := c.GetParametersForImport(t.Context(), "alias/payments", "RSAES_OAEP_SHA_256", "RSA_2048")
			return err
		}, "InvalidArnException"},
		{"key ID", func() error {
			_, err := c.ImportKeyMaterial(t.Context(), ImportRequest{KeyARN: keyID(testARN)})
			return err
		}, "InvalidArnException"},
		{"another Region", func() error { _, err := c.DescribeKey(t.Context(), elsewhere); return err }, "WrongRegion"},
		{"another Region, import", func() error {
			_, err := c.ImportKeyMaterial(t.Context(), ImportRequest{KeyARN: elsewhere})
			return err
		}, "WrongRegion"},
		{"wrapping key spec", func() error {
			_, err := c.GetParametersForImport(t.Context(), testARN, "SM2PKE", "SM2")
			return err
		}, "ValidationException"},
	} {
		err := tc.call()
		e, ok := errors.AsType[*Error](err)
		if !ok || e.Code != tc.want || e.Class() != ClassCaller || e.Retryable || e.OutcomeUnknown {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
	if n := len(s.seen()); n != 0 {
		t.Errorf("%d requests were sent", n)
	}
}
