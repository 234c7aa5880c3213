// Package kmsemu is an emulator of AWS KMS for the demo and the tests. It speaks AWS JSON 1.1 so that the
// unmodified AWS CLI and SDKs work against it, it really unwraps what it is given, and it enforces what AWS
// enforces for imported key material. It is not for production: it holds keys in memory, takes any credentials and
// trusts whoever can reach it.
//
// It shares no code with the rest of hsmbridge: a mistake made on both sides would go unseen.
//
// # Ciphertext blobs
//
// A blob of Encrypt or GenerateDataKey is laid out so that a test can open it with the imported key alone:
//
//	1 byte version (1) || 16 bytes key ID (UUID) || 32 bytes key material ID || 12 bytes IV || AES-256-GCM
//
// with the canonical JSON of the encryption context as additional data. [ParseBlob] takes one apart.
package kmsemu

import (
	"cmp"
	"crypto/rsa"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Options says which KMS is emulated.
type Options struct {
	Account    string                  // 12 digits; default 111122223333
	Region     string                  // of requests that do not say; default eu-central-1
	Era        string                  // "2018": RSAES_PKCS1_V1_5 is still taken; empty: today
	Quotas     bool                    // enforce AWS's default request quotas
	LenientDER bool                    // take bytes that follow a PKCS#8
	Wrappers   map[int]*rsa.PrivateKey // by bits: wrapping keys that are given out again and again, for tests with thousands of imports
	Roles      map[string]string       // roles that can be assumed, with the external ID that each wants; nil: every role
	Accounts   bool                    // a role is in the account that its ARN names, and sees the keys of that account; otherwise all are in Account
	StateFile  string                  // keep keys across restarts; holds key material of tests in the clear
	Now        func() time.Time
}

// Server is the emulator. It is an http.Handler.
type Server struct {
	opt Options

	mu       sync.Mutex
	account  string // of the request at hand
	skew     time.Duration
	keys     map[string]*key   // by ARN
	aliases  map[string]string // by Region + "/" + name, to key ARN
	params   map[string]*parameters
	buckets  map[string]*bucket
	faults   []*Fault
	held     []string      // operations that a delay holds up
	goOn     chan struct{} // closed when the delays under way are over
	requests []Request
	lag      time.Duration // eventual consistency
	hostile  Hostile
	without  map[string]bool // operations that this server lacks
	refused  map[string]string
	noIDs    bool
	wrappers *wrapperPool
	serial   int
	assumed  map[string]string // role by access key ID
}

// New makes an emulator; with a state file that exists it goes on where that one ended.
func New(o Options) (*Server, error) {
	if o.Account == "" {
		o.Account = "111122223333"
	}
	if o.Region == "" {
		o.Region = "eu-central-1"
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	s := &Server{
		opt: o, keys: map[string]*key{}, aliases: map[string]string{}, params: map[string]*parameters{},
		buckets: map[string]*bucket{}, without: map[string]bool{}, refused: map[string]string{}, wrappers: newWrapperPool(o.Wrappers),
		assumed: map[string]string{}, goOn: make(chan struct{}),
	}
	if err := s.load(); err != nil {
		return nil, err
	}
	return s, nil
}

// Request is one line of the emulator's log.
type Request struct {
	Time      time.Time `json:"time"`
	Operation string    `json:"operation"`
	Region    string    `json:"region"`
	KeyID     string    `json:"key_id,omitempty"`
	Role      string    `json:"role,omitempty"` // whose temporary credentials signed it
	Code      string    `json:"code,omitempty"` // error code, empty for success
}

// awsError is an error as AWS answers it.
type awsError struct {
	Code    string
	Message string
	status  int
}

func (e *awsError) Error() string { return e.Code + ": " + e.Message }

func fail(code, format string, args ...any) error {
	status := http.StatusBadRequest
	if code == "KMSInternalException" || code == "DependencyTimeoutException" {
		status = http.StatusInternalServerError
	}
	return &awsError{Code: code, Message: fmt.Sprintf(format, args...), status: status}
}

const (
	target  = "TrentService."
	maxBody = 1 << 20
)

// ServeHTTP answers one KMS request, or one of the emulator's own under /_emulator/.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if strings.HasPrefix(r.URL.Path, "/_emulator/") {
		s.control(w, r)
		return
	}
	w.Header().Set("Date", s.clock().UTC().Format(http.TimeFormat))
	if strings.HasPrefix(r.Header.Get("Content-Type"), "application/x-www-form-urlencoded") {
		s.sts(w, r)
		return
	}
	op, ok := strings.CutPrefix(r.Header.Get("X-Amz-Target"), target)
	if !ok || r.Method != http.MethodPost {
		s.reply(w, nil, fail("UnknownOperationException", "not a KMS request"))
		return
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody))
	if err != nil {
		return
	}
	f := s.fault(op)
	if f != nil && f.Delay > 0 {
		s.hold(op, f.Delay)
	}
	if f != nil && f.Cut == "before" {
		panic(http.ErrAbortHandler)
	}
	out, err := s.call(op, region(r, s.opt.Region), signer(r), body, f)
	if f != nil && f.Cut == "after" {
		panic(http.ErrAbortHandler)
	}
	switch {
	case f != nil && f.Body != "":
		w.Header().Set("Content-Type", cmp.Or(f.Type, "text/html"))
		w.WriteHeader(cmp.Or(f.Status, http.StatusOK))
		_, _ = io.WriteString(w, f.Body)
	case f != nil && f.Cut == "during":
		s.broken(w, out, err, 0)
		panic(http.ErrAbortHandler)
	case f != nil && f.Drip > 0:
		s.broken(w, out, err, f.Drip)
	default:
		s.reply(w, out, err)
	}
}

// broken sends the answer a byte at a time, or no more than half of it.
func (s *Server) broken(w http.ResponseWriter, out any, err error, drip time.Duration) {
	status, body := s.answer(w, out, err)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	if drip == 0 {
		body = body[:len(body)/2]
	}
	for i := range body {
		if _, err := w.Write(body[i : i+1]); err != nil { //nolint:gosec // JSON of our own
			return
		}
		if drip > 0 {
			_ = http.NewResponseController(w).Flush()
			time.Sleep(drip)
		}
	}
	_ = http.NewResponseController(w).Flush()
}

// region is the Region of the signature's credential scope: one emulator serves every Region.
func region(r *http.Request, otherwise string) string {
	_, scope, ok := strings.Cut(r.Header.Get("Authorization"), "Credential=")
	parts := strings.Split(scope, "/")
	if !ok || len(parts) < 5 {
		return otherwise
	}
	return parts[2]
}

func (s *Server) reply(w http.ResponseWriter, out any, err error) {
	status, body := s.answer(w, out, err)
	w.WriteHeader(status)
	_, _ = w.Write(body) //nolint:gosec // JSON of our own
}

// answer sets the headers of an answer and gives its status and body.
func (s *Server) answer(w http.ResponseWriter, out any, err error) (status int, body []byte) {
	s.mu.Lock()
	s.serial++
	id := fmt.Sprintf("00000000-0000-4000-8000-%012d", s.serial)
	s.mu.Unlock()
	w.Header().Set("x-amzn-RequestId", id)
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	if err != nil {
		e, ok := err.(*awsError) //nolint:errorlint // made by fail, never wrapped
		if !ok {
			e = &awsError{Code: "KMSInternalException", Message: err.Error(), status: http.StatusInternalServerError}
		}
		body, _ = json.Marshal(map[string]string{"__type": e.Code, "message": e.Message}) // texts always have a form
		return e.status, body
	}
	if out == nil {
		out = struct{}{}
	}
	if body, err = json.Marshal(out); err != nil {
		return http.StatusInternalServerError, []byte("{}")
	}
	return http.StatusOK, body
}

// call runs one operation under the lock and logs it.
func (s *Server) call(op, region, signer string, body []byte, f *Fault) (out any, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var peek struct{ KeyID string }
	_ = json.Unmarshal(body, &peek)
	defer func() {
		line := Request{Time: s.now(), Operation: op, Region: region, KeyID: peek.KeyID, Role: s.assumed[signer]}
		if e, ok := err.(*awsError); ok { //nolint:errorlint // made by fail, never wrapped
			line.Code = e.Code
		}
		s.requests = append(s.requests, line)
	}()
	s.account = s.accountOf(signer)
	handler, ok := operations()[op]
	switch {
	case !ok || s.without[op]:
		return nil, fail("UnknownOperationException", "%s", op)
	case signer == "":
		return nil, fail("MissingAuthenticationTokenException", "Request is missing Authentication Token")
	case f != nil && f.Code != "":
		return nil, &awsError{Code: f.Code, Message: f.Message, status: f.status()}
	case s.opt.Quotas && !s.take(op, s.account+"/"+region):
		return nil, fail("ThrottlingException", "Rate exceeded")
	}
	s.expire()
	out, err = handler(s, call{op: op, region: region, body: body})
	if err == nil {
		err = s.save()
	}
	return out, err
}

// accountOf is the account of whoever signed: that of the role that was assumed.
func (s *Server) accountOf(signer string) string {
	const account = 4 // arn:partition:iam::account:role/name
	if parts := strings.Split(s.assumed[signer], ":"); s.opt.Accounts && len(parts) > account {
		return parts[account]
	}
	return s.opt.Account
}

// signer is the access key ID of the request's signature, empty for none.
func signer(r *http.Request) string {
	_, scope, _ := strings.Cut(r.Header.Get("Authorization"), "Credential=")
	id, _, _ := strings.Cut(scope, "/")
	return id
}

// clock is now for whoever does not hold the lock.
func (s *Server) clock() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now()
}

func (s *Server) now() time.Time { return s.opt.Now().Add(s.skew) }

// call is one request.
type call struct {
	op, region string
	body       []byte
}

// decode reads the request; unknown members are left alone, as AWS leaves those of newer clients.
func (c call) decode(v any) error {
	if err := json.Unmarshal(c.body, v); err != nil {
		return fail("SerializationException", "the request cannot be read: %v", err)
	}
	return nil
}
