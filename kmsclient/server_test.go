package kmsclient

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	testRegion = "eu-central-1"
	testARN    = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
)

// request is one request as the server saw it.
type request struct {
	Operation string
	Body      map[string]any
	Header    http.Header
}

// server speaks AWS JSON 1.1 over a real socket and remembers what it was asked.
type server struct {
	*httptest.Server
	mu       sync.Mutex
	requests []request
}

// newServer starts a server whose answers come from answer; n counts the requests from 1.
func newServer(t *testing.T, answer func(w http.ResponseWriter, r *http.Request, n int)) *server {
	t.Helper()
	s := &server{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Errorf("read request: %v", err)
		}
		in := request{Operation: strings.TrimPrefix(r.Header.Get("X-Amz-Target"), "TrentService."), Header: r.Header}
		if err := json.Unmarshal(body, &in.Body); err != nil {
			t.Errorf("request is not JSON: %v", err)
		}
		s.mu.Lock()
		s.requests = append(s.requests, in)
		n := len(s.requests)
		s.mu.Unlock()
		w.Header().Set("X-Amzn-Requestid", "request-1")
		w.Header().Set("Content-Type", "application/x-amz-json-1.1")
		answer(w, r, n)
	}))
	t.Cleanup(s.Close)
	return s
}

// seen is what the server was asked.
func (s *server) seen() []request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]request(nil), s.requests...)
}

// answerJSON writes an answer of KMS.
func answerJSON(t *testing.T, w http.ResponseWriter, status int, body any) {
	t.Helper()
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(body); err != nil {
		t.Errorf("write answer: %v", err)
	}
}

// fails answers with an error of KMS.
func fails(t *testing.T, status int, code, message string) func(http.ResponseWriter, *http.Request, int) {
	t.Helper()
	return func(w http.ResponseWriter, _ *http.Request, _ int) {
		answerJSON(t, w, status, map[string]string{"__type": code, "message": message})
	}
}

// hermetic makes the AWS configuration of this test: nothing of the machine, and credentials in the environment.
func hermetic(t testing.TB) {
	t.Helper()
	for _, name := range []string{
		"AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_KMS", "AWS_CA_BUNDLE",
		"AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN",
		"AWS_MAX_ATTEMPTS", "AWS_RETRY_MODE", "HTTPS_PROXY", "HTTP_PROXY",
	} {
		t.Setenv(name, "")
	}
	none := t.TempDir() + "/none"
	t.Setenv("AWS_CONFIG_FILE", none)
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", none)
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	t.Setenv("AWS_ACCESS_KEY_ID", "AKIDTEST")
	t.Setenv("AWS_SECRET_ACCESS_KEY", secretKey)
	t.Setenv("AWS_SESSION_TOKEN", sessionToken)
}

// What must never be seen in an error or a log.
const (
	secretKey    = "not-a-secret-access-key"
	sessionToken = "not-a-session-token"
)

// newTestClient makes a client for the endpoint.
func newTestClient(t testing.TB, endpoint string, change ...func(*Config)) *Client {
	t.Helper()
	hermetic(t)
	c := Config{Region: testRegion, Endpoint: endpoint, Timeout: 5 * time.Second}
	for _, f := range change {
		f(&c)
	}
	client, err := New(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// operations calls every operation that takes a key, in its usual way.
func operations(c *Client) map[operation]func(t *testing.T) error {
	return map[operation]func(t *testing.T) error{
		opCreateAlias: func(t *testing.T) error { t.Helper(); return c.CreateAlias(t.Context(), "alias/a", testARN) },
		opCreateKey: func(t *testing.T) error {
			t.Helper()
			_, err := c.CreateKey(t.Context(), CreateKeyRequest{KeySpec: "SYMMETRIC_DEFAULT"})
			return err
		},
		opDeleteImported: func(t *testing.T) error { t.Helper(); return c.DeleteImportedKeyMaterial(t.Context(), testARN, "") },
		opDescribeKey:    func(t *testing.T) error { t.Helper(); _, err := c.DescribeKey(t.Context(), testARN); return err },
		opGenerateMAC: func(t *testing.T) error {
			t.Helper()
			_, err := c.GenerateMAC(t.Context(), testARN, "HMAC_SHA_256", []byte("message"))
			return err
		},
		opGetParametersForImport: func(t *testing.T) error {
			t.Helper()
			_, err := c.GetParametersForImport(t.Context(), testARN, "RSAES_OAEP_SHA_256", "RSA_2048")
			return err
		},
		opGetPublicKey: func(t *testing.T) error { t.Helper(); _, err := c.GetPublicKey(t.Context(), testARN); return err },
		opImportKeyMaterial: func(t *testing.T) error {
			t.Helper()
			_, err := c.ImportKeyMaterial(t.Context(), ImportRequest{KeyARN: testARN, ImportToken: []byte("import-token-bytes"), EncryptedKeyMaterial: []byte("encrypted-key-material")})
			return err
		},
		opListKeyRotations: func(t *testing.T) error { t.Helper(); _, err := c.ListKeyMaterials(t.Context(), testARN); return err },
		opRotateKeyOnDemand: func(t *testing.T) error {
			t.Helper()
			return c.RotateKeyOnDemand(t.Context(), testARN)
		},
		opSign: func(t *testing.T) error {
			t.Helper()
			_, err := c.Sign(t.Context(), testARN, "ECDSA_SHA_256", []byte("message"))
			return err
		},
	}
}
