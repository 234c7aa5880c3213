package importer_test

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hsmbridge/daemon/importer"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/kmsclient"
	"hsmbridge/kmsclient/kmsemu"
	"hsmbridge/test/loopback"
)

var update = flag.Bool("update", false, "write docs/faults-kms.md")

// forEver is more often than any run asks.
const forEver = 1000

// fault is something that goes wrong with one call of KMS: told to the emulator, or done to the connection.
type fault struct {
	name string
	emu  kmsemu.Fault
	wire string // "dns", "tls", "refused": the call does not reach KMS
}

func faults() []fault {
	return []fault{
		{name: "cut before it took effect", emu: kmsemu.Fault{Cut: "before"}},
		{name: "cut after it took effect", emu: kmsemu.Fault{Cut: "after"}},
		{name: "cut in the middle of the answer", emu: kmsemu.Fault{Cut: "during"}},
		{name: "slow answer, once", emu: kmsemu.Fault{Drip: time.Second}},
		{name: "throttled once", emu: kmsemu.Fault{Code: "ThrottlingException", Message: "Rate exceeded"}},
		{name: "throttling storm", emu: kmsemu.Fault{Code: "ThrottlingException", Message: "Rate exceeded", Times: forEver}},
		{name: "HTTP 500 once", emu: kmsemu.Fault{Code: "KMSInternalException", Message: "try again", Status: 500}},
		{name: "HTTP 500 for ever", emu: kmsemu.Fault{Code: "KMSInternalException", Message: "try again", Status: 500, Times: forEver}},
		{name: "HTTP 503 without JSON, for ever", emu: kmsemu.Fault{Body: "<html>busy</html>", Status: 503, Times: forEver}},
		{name: "a web page in place of KMS", emu: kmsemu.Fault{Body: "<html>please log in</html>", Times: forEver}},
		{name: "an answer about another key", emu: kmsemu.Fault{Body: `{"KeyId":"arn:aws:kms:eu-central-1:111122223333:key/00000000-0000-4000-8000-00000000dead"}`, Type: "application/x-amz-json-1.1", Times: forEver}},
		{name: "skewed clock", emu: kmsemu.Fault{Code: "RequestTimeTooSkewed", Message: "the clock of the sender is wrong", Status: 403, Times: forEver}},
		{name: "expired credentials", emu: kmsemu.Fault{Code: "ExpiredTokenException", Message: "the security token has expired", Times: forEver}},
		{name: "no such name in the DNS", wire: "dns"},
		{name: "TLS by an unknown authority", wire: "tls"},
		{name: "nobody listens", wire: "refused"},
	}
}

// callOf is one request of an import: the n-th of an operation, counted from 0, of a key of a kind that needs it.
type callOf struct {
	name, operation string
	skip            int
	spec            wrapping.KeySpec
	usage           string
	renew           bool // of an import that finds the material there and renews it
}

func calls() []callOf {
	return []callOf{
		{name: "DescribeKey", operation: "DescribeKey", spec: wrapping.SymmetricDefault},
		{name: "GetParametersForImport", operation: "GetParametersForImport", spec: wrapping.SymmetricDefault},
		{name: "ImportKeyMaterial", operation: "ImportKeyMaterial", spec: wrapping.SymmetricDefault},
		{name: "GetParametersForImport of the proof", operation: "GetParametersForImport", skip: 1, spec: wrapping.SymmetricDefault},
		{name: "ImportKeyMaterial of the proof", operation: "ImportKeyMaterial", skip: 1, spec: wrapping.SymmetricDefault},
		{name: "GenerateMac", operation: "GenerateMac", spec: wrapping.HMAC256},
		{name: "GetPublicKey", operation: "GetPublicKey", spec: wrapping.ECCNISTP256, usage: "SIGN_VERIFY"},
		{name: "Sign", operation: "Sign", spec: wrapping.ECCNISTP256, usage: "SIGN_VERIFY"},
		{name: "ListKeyRotations of a renewal", operation: "ListKeyRotations", spec: wrapping.SymmetricDefault, renew: true},
		{name: "ImportKeyMaterial of a renewal", operation: "ImportKeyMaterial", spec: wrapping.SymmetricDefault, renew: true},
	}
}

// wire sends requests of one operation somewhere else than to KMS, from the n-th on.
type wire struct {
	http.RoundTripper
	operation, to string
	mu            sync.Mutex
	skip          int
	mended        bool
}

func (w *wire) RoundTrip(r *http.Request) (*http.Response, error) {
	w.mu.Lock()
	broken := !w.mended && w.to != "" && strings.HasSuffix(r.Header.Get("X-Amz-Target"), "."+w.operation)
	if broken && w.skip > 0 {
		w.skip--
		broken = false
	}
	w.mu.Unlock()
	if broken {
		r = r.Clone(r.Context())
		scheme, host, _ := strings.Cut(w.to, "://")
		r.URL.Scheme, r.URL.Host = scheme, host
	}
	return w.RoundTripper.RoundTrip(r)
}

func (w *wire) mend() { w.set(true) }

func (w *wire) breakAgain() { w.set(false) }

func (w *wire) set(mended bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.mended = mended
}

// bench is what all rows share: keys that take long to make, and places where no KMS is.
type bench struct {
	wrappers map[int]*rsa.PrivateKey
	places   map[string]string
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{wrappers: map[int]*rsa.PrivateKey{}, places: map[string]string{"dns": "https://kms.invalid"}}
	for _, bits := range []int{4096, 2048} {
		k, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			t.Fatal(err)
		}
		b.wrappers[bits] = k
	}
	secure := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(secure.Close)
	b.places["tls"] = secure.URL
	b.places["refused"] = "http://" + loopback.Refused(t)
	return b
}

// row runs an import with a fault, then again without it, and tells what happened. Whatever the fault, the second run has to leave KMS with
// the key, once and proved; and the first one never says that it is there when it is not.
func (b *bench) row(t *testing.T, c callOf, f fault) (first, second string) {
	t.Helper()
	emu, err := kmsemu.New(kmsemu.Options{Wrappers: b.wrappers})
	if err != nil {
		t.Error(err)
		return "", ""
	}
	srv := httptest.NewServer(emu)
	defer srv.Close()
	transport := &http.Transport{DisableKeepAlives: true}
	broken := &wire{RoundTripper: transport, operation: c.operation, skip: c.skip, to: b.places[f.wire]}
	timeout := time.Minute
	if f.emu.Drip > 0 {
		timeout = 10 * time.Second // the answer takes minutes
	}
	client, err := kmsclient.New(t.Context(), kmsclient.Config{Region: "eu-central-1", Endpoint: srv.URL, MaxAttempts: 2, Timeout: timeout, HTTPClient: &http.Client{Transport: broken}})
	if err != nil {
		t.Error(err)
		return "", ""
	}
	token := newToken()
	key, err := newKey(c.spec)
	if err != nil {
		t.Error(err)
		return "", ""
	}
	token.keys["k"] = key
	im := &importer.Importer{
		Token: token, KMS: func(context.Context, string) (importer.KMS, error) { return client, nil },
		Authorize: func(context.Context, importer.Act) error { return nil }, Wait: func(context.Context, time.Duration) error { return nil },
	}
	info, err := client.CreateKey(t.Context(), kmsclient.CreateKeyRequest{KeySpec: string(c.spec), KeyUsage: c.usage})
	if err != nil {
		t.Error(err)
		return "", ""
	}
	r := (&world{}).request("k", c.spec, info.ARN)
	if c.renew {
		broken.mend()
		if first, err := im.Run(t.Context(), r); err != nil {
			t.Errorf("the import before the renewal: %+v, %v", first, err)
			return "", ""
		}
		broken.breakAgain()
		r.Renew, r.Expires = true, r.Expires+24*time.Hour // so that its effect can be told from what was there
	}
	asked := emu.Count(c.operation)
	if f.wire == "" {
		f.emu.Operation, f.emu.Skip = c.operation, c.skip
		emu.AddFault(f.emu)
	}
	result, err := im.Run(t.Context(), r)
	there := emu.State(info.ARN) == "Enabled"
	at := c.name + ", " + f.name
	if f.wire == "" && emu.Count(c.operation) <= asked+c.skip && f.emu.Cut != "before" {
		t.Errorf("%s: the call was never made", at)
	}
	switch {
	case took(result) && !there:
		t.Errorf("%s: it says %s, and KMS does not hold the material", at, result.Result)
	case errors.As(err, new(*importer.UnknownOutcomeError)) != (result.Result == importer.Unknown):
		t.Errorf("%s: it says %s, and the error is %v", at, result.Result, err)
	case err == nil && (!took(result) || result.Proof == importer.Unproved && result.ProofReason == ""):
		t.Errorf("%s: no error, and %+v", at, result)
	case err != nil && importer.Class(err) == "":
		t.Errorf("%s: an error without a class: %v", at, err)
	}
	first = outcome(result, err, there)
	emu.ClearFaults()
	broken.mend()
	again, err := im.Run(t.Context(), r)
	if err != nil || !took(again) || again.Proof == importer.Unproved || emu.State(info.ARN) != "Enabled" {
		t.Errorf("%s: run again: %+v, %v", at, again, err)
	}
	if list, err := client.ListKeyMaterials(t.Context(), info.ARN); c.spec == wrapping.SymmetricDefault && (err != nil || len(list) != 1) {
		t.Errorf("%s: %d materials, %v", at, len(list), err)
	}
	return first, outcome(again, err, true)
}

// took says that by the result KMS holds the material.
func took(r importer.Result) bool {
	return r.Result != importer.Failed && r.Result != importer.Unknown
}

// outcome is a result in a few words.
func outcome(r importer.Result, err error, there bool) string {
	s := string(r.Result)
	if took(r) {
		s += ", " + string(r.Proof)
	}
	if err != nil {
		code := kmsclient.Code(err)
		var untrusted *kmsclient.UntrustedParametersError
		if errors.As(err, &untrusted) {
			code = "untrusted parameters"
		}
		s += ": " + code + " (" + importer.Class(err) + ")"
	}
	if there && !took(r) {
		s += "; KMS holds the key"
	}
	return s
}

// TestKMSFaults runs an import against every fault at every call of KMS that it makes. The table that comes out is docs/faults-kms.md.
func TestKMSFaults(t *testing.T) {
	t.Setenv("AWS_ACCESS_KEY_ID", "test")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "test")
	t.Setenv("AWS_CONFIG_FILE", os.DevNull)
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", os.DevNull)
	b := newBench(t)
	type cell struct{ first, second string }
	rows := make([][]cell, len(calls()))
	for i := range rows {
		rows[i] = make([]cell, len(faults()))
	}
	// What computes runs a few at a time, then what waits for a timeout, all at once: on a loaded machine the one must not delay the other.
	for _, slow := range []bool{false, true} {
		places := make(chan struct{}, 16)
		if slow {
			places = make(chan struct{}, len(rows))
		}
		var running sync.WaitGroup
		for i, c := range calls() {
			for j, f := range faults() {
				if slow != (f.emu.Drip > 0) {
					continue
				}
				places <- struct{}{}
				running.Go(func() {
					defer func() { <-places }()
					rows[i][j].first, rows[i][j].second = b.row(t, c, f)
				})
			}
		}
		running.Wait()
	}
	var out strings.Builder
	out.WriteString(preface)
	for i, c := range calls() {
		fmt.Fprintf(&out, "\n## %s\n\nOf a %s key.\n\n| fault | the import | again, without the fault |\n|---|---|---|\n", c.name, c.spec)
		for j, f := range faults() {
			fmt.Fprintf(&out, "| %s | %s | %s |\n", f.name, rows[i][j].first, rows[i][j].second)
		}
	}
	file := filepath.Join("..", "..", "docs", "faults-kms.md")
	if *update {
		if err := os.WriteFile(file, []byte(out.String()), 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), out.String()); diff != "" {
		t.Errorf("docs/faults-kms.md is not current (-file +now); go test ./daemon/importer -run KMSFaults -update writes it:\n%s", diff)
	}
}

const preface = `# Faults of KMS and of the way to it

Made by ` + "`go test ./daemon/importer -run KMSFaults -update`" + `, which holds it: an import of a new key, or a renewal, with one fault at one call of KMS, then the same import
again without the fault. In every row the second run leaves KMS with the key, once and proved, and no run says that KMS holds a key
which it does not.

The import is given as its result and the proof, or the error's code and its class (*unknown*: ImportKeyMaterial was sent, and KMS does not show whether it took effect), by which daemon/runner/retry.go decides what the daemon does: all of
these are tried again, but for untrusted parameters, which need a person. Calls that change nothing are sent twice here (five times by default); ImportKeyMaterial is sent once, and what became of it is
read back. Faults are the emulator's (docs/emulator.md), or done to the connection.
`
