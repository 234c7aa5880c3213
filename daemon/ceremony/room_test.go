package ceremony_test

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"hsmbridge/configs"
	"hsmbridge/daemon/approval"
	"hsmbridge/daemon/audit"
	"hsmbridge/daemon/ceremony"
	"hsmbridge/hsm/failure"
	"hsmbridge/hsm/pkcs11uri"
	"hsmbridge/hsm/wrapping"
)

// hsmOf is a token that really wraps, in Go: one AES key.
type hsmOf struct {
	serial, kcv string
	key         [32]byte
	wraps       int
	dies        bool // in the wrap, as a process that is killed
}

func (h *hsmOf) Identity() wrapping.TokenIdentity {
	return wrapping.TokenIdentity{Manufacturer: "Test", Model: "HSM", Serial: h.serial, Firmware: "1.0", Label: "demo"}
}

func (h *hsmOf) Find(context.Context, pkcs11uri.URI) (wrapping.Key, error) {
	return wrapping.Key{Label: "payments", KeyType: "CKK_AES", Bits: 256, KeySpec: wrapping.SymmetricDefault, Extractable: true}, nil
}

func (h *hsmOf) Probe(context.Context, ...wrapping.KeySpec) (wrapping.Capabilities, error) {
	return wrapping.Capabilities{}, nil
}

func (h *hsmOf) Wrap(_ context.Context, _ wrapping.Key, pub *rsa.PublicKey, _ wrapping.Plan) ([]byte, error) {
	h.wraps++
	if h.dies {
		return nil, errors.New("killed")
	}
	return rsa.EncryptOAEP(sha256.New(), rand.Reader, pub, h.key[:], nil)
}

func (h *hsmOf) PublicKey(context.Context, wrapping.Key) ([]byte, error) { return nil, nil }

func (h *hsmOf) MAC(context.Context, wrapping.Key, []byte) ([]byte, error) { return nil, nil }

func (h *hsmOf) CheckValue(context.Context, wrapping.Key) (string, error) { return h.kcv, nil }

const config = `
kms: {region: eu-central-1}
tokens:
  - {name: demo, module: /usr/lib/x.so, uri: "pkcs11:token=demo", pin_file: /pin}
keys:
  - {name: payments, token: demo, uri: "pkcs11:object=payments;type=secret-key", key_spec: SYMMETRIC_DEFAULT, expires: 90d, destinations: ["` + arn + `"]}
`

func loaded(t *testing.T, text string) *configs.Config {
	t.Helper()
	name := filepath.Join(t.TempDir(), "hsmbridge.yaml")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := configs.Load(name)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// room is one in which every step is done up to the wrap.
func room(t *testing.T, dir string, h *hsmOf, text []byte) *ceremony.Room {
	t.Helper()
	l, err := ceremony.OpenLog(filepath.Join(dir, "x.log"), id, "room", clock())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return &ceremony.Room{Config: loaded(t, config), Text: text, Token: h, Log: l, Now: func() time.Time { return now }, People: "Ann, Will"}
}

func TestOpenRefuses(t *testing.T) {
	for want, change := range map[string]func(*approval.Request){
		"in the room only imports are prepared":         func(q *approval.Request) { q.Purpose = approval.Waive },
		`configuration has no key "other"`:              func(q *approval.Request) { q.Key = "other" },
		"is for a key of spec HMAC_256":                 func(q *approval.Request) { q.KeySpec = "HMAC_256" },
		"is none of payments in the room":               func(q *approval.Request) { q.Destination = arn[:len(arn)-1] + "0" },
		"the request names the object pkcs11:object=x":  func(q *approval.Request) { q.Object = "pkcs11:object=x" },
		"has no wrapping public key":                    func(q *approval.Request) { q.WrappingKeys = nil },
		"the request says RSA_4096, and its wrapping":   func(q *approval.Request) { q.WrappingSpec = "RSA_4096" },
		"wrapping keys of the request are the same one": func(q *approval.Request) { q.WrappingKeys[1] = q.WrappingKeys[0] },
		"this is no wrapping public key":                func(q *approval.Request) { q.WrappingKeys[1] = []byte("nonsense") },
	} {
		q := sample()
		change(&q)
		r := &ceremony.Room{Config: loaded(t, config), Text: textOf(t, q), Now: func() time.Time { return now }}
		_, err := r.Open()
		says(t, err, want)
	}
	r := &ceremony.Room{Config: loaded(t, config), Text: bytes.Replace(textOf(t, sample()), []byte("key spec: "), []byte("key spec:  "), 1), Now: func() time.Time { return now }}
	_, err := r.Open()
	says(t, err, "is not written as hsmbridge writes it")
}

// opened goes up to the wrap; the plan is what a probe would give.
func ready(t *testing.T, r *ceremony.Room) {
	t.Helper()
	if _, err := r.Open(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := r.FindKey(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.Plan(wrapping.Plan{KeySpec: wrapping.SymmetricDefault, Algorithm: wrapping.OAEPSHA256, WrappingKeySpec: wrapping.RSA2048, Mechanism: wrapping.Mechanism{Name: "CKM_RSA_PKCS_OAEP", Form: wrapping.FormOAEP}})
}

func TestWrap(t *testing.T) {
	one, two := newRSA(t, 2048), newRSA(t, 2048)
	q := sample()
	q.WrappingKeys = [][]byte{spkiOf(t, one), spkiOf(t, two)}
	text := textOf(t, q)
	h := &hsmOf{serial: "0123", kcv: "1A2B3C", key: [32]byte{1, 2, 3}}
	r := room(t, t.TempDir(), h, text)
	if _, err := r.Wrap(t.Context()); err == nil {
		t.Fatal("wrapped before the steps before were done")
	}
	ready(t, r)
	w, err := r.Wrap(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Belongs(q, text); err != nil {
		t.Error(err)
	}
	for i, k := range []*rsa.PrivateKey{one, two} {
		if got, err := rsa.DecryptOAEP(sha256.New(), nil, k, w.Keys[i].Bytes, nil); err != nil || !bytes.Equal(got, h.key[:]) {
			t.Errorf("output %d opens as %x, %v", i, got, err)
		}
	}
	if w.Material != "check value 1A2B3C" || w.Serial != "0123" || w.At != now || w.Log != ceremony.Origin(id) {
		t.Errorf("%+v", w)
	}
	begun, done := r.Log.Wraps()
	if len(begun) != 2 || len(done) != 2 {
		t.Errorf("%d begun, %d done", len(begun), len(done))
	}
}

// TestWrapAgain holds that a wrap whose result was lost is never repeated unawares.
func TestWrapAgain(t *testing.T) {
	dir := t.TempDir()
	text := textOf(t, sample())
	h := &hsmOf{dies: true}
	r := room(t, dir, h, text)
	ready(t, r)
	if _, err := r.Wrap(t.Context()); err == nil {
		t.Fatal("it did not die")
	}
	if err := r.Log.Close(); err != nil {
		t.Fatal(err)
	}
	h.dies = false
	r = room(t, dir, h, text)
	ready(t, r)
	_, err := r.Wrap(t.Context())
	says(t, err, "the HSM was asked for this wrap before, at 2030-01-31T12:00:01Z, and its result is not here")
	if h.wraps != 1 {
		t.Errorf("the HSM wrapped %d times", h.wraps)
	}
	r.Again = true
	if _, err := r.Wrap(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestWrapChecksAgain holds that everything is checked at the moment of the wrap, not only when it was shown.
func TestWrapChecksAgain(t *testing.T) {
	text := textOf(t, sample())
	for want, change := range map[string]func(*ceremony.Room, *hsmOf){
		"this is a dry run": func(r *ceremony.Room, _ *hsmOf) { r.DryRun = true },
		"the import parameters expire in": func(r *ceremony.Room, _ *hsmOf) {
			r.Now = func() time.Time { return sample().ParametersValidTo.Add(-time.Minute) }
		},
		"is none of payments":                 func(r *ceremony.Room, _ *hsmOf) { r.Config.Keys[0].Destinations[0].ARN += "0" },
		"the room's configuration has no key": func(r *ceremony.Room, _ *hsmOf) { r.Config.Keys = nil },
		"0 of 1 approvals": func(r *ceremony.Room, _ *hsmOf) {
			r.Config = loaded(t, config+"approval: {officers: [{name: alice, keys: [\"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB5Sn5sGPHqSSJgTpAoUZ4bNSDhLmAKYwmXyZ3wWXHZz\"]}], threshold: 1, valid_for: 2d}\n")
		},
	} {
		h := &hsmOf{}
		r := room(t, t.TempDir(), h, text)
		ready(t, r)
		change(r, h)
		_, err := r.Wrap(t.Context())
		says(t, err, want)
		if h.wraps != 0 {
			t.Errorf("%s: the HSM was asked all the same", want)
		}
	}
	q := sample()
	q.Serial, q.Material = "0123", "check value 1A2B3C"
	for want, change := range map[string]func(*hsmOf){
		"the request is for the HSM with serial 0123, and this one has 9": func(h *hsmOf) { h.serial = "9" },
		"it is another key": func(h *hsmOf) { h.kcv = "FFFFFF" },
	} {
		h := &hsmOf{serial: "0123", kcv: "1A2B3C"}
		r := room(t, t.TempDir(), h, textOf(t, q))
		ready(t, r)
		change(h)
		_, err := r.Wrap(t.Context())
		says(t, err, want)
		if h.wraps != 0 {
			t.Errorf("%s: the HSM was asked all the same", want)
		}
	}
}

// TestNoRecordNoWrap holds that a log that cannot be written stops the wrap.
func TestNoRecordNoWrap(t *testing.T) {
	h := &hsmOf{}
	r := room(t, t.TempDir(), h, textOf(t, sample()))
	ready(t, r)
	if err := r.Log.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Wrap(t.Context()); err == nil || h.wraps != 0 {
		t.Errorf("%d wraps, %v", h.wraps, err)
	}
}

func TestCannot(t *testing.T) {
	r := room(t, t.TempDir(), &hsmOf{}, textOf(t, sample()))
	if _, err := r.Open(); err != nil {
		t.Fatal(err)
	}
	_, err := r.Choose(t.Context())
	says(t, err, "this token cannot wrap payments by RSAES_OAEP_SHA_256 under RSA_2048")
	says(t, err, "by no algorithm that KMS takes")
}

func TestRecordOfSignature(t *testing.T) {
	r := room(t, t.TempDir(), &hsmOf{}, textOf(t, sample()))
	if _, err := r.Open(); err != nil {
		t.Fatal(err)
	}
	if err := r.Approval(verdicts()[0], []byte("signature")); err != nil {
		t.Fatal(err)
	}
	s, ok := r.Log.Records()[0].Data.(*audit.Step)
	if !ok || s.Detail != verdicts()[0].Key || s.FileSHA == "" || s.Person != "Ann, Will" || s.Serial != "" {
		t.Errorf("%+v", s)
	}
}

// The request often does not say which key it has to be: people compare what the token shows. Another object under the same name afterwards is not
// wrapped, and what a wrap under a trusted key made of one does not leave the room.
func TestObjectIsSwappedAfterItWasCompared(t *testing.T) {
	swap := func(h *hsmOf) { h.kcv = "FFFFFF" }
	for name, tt := range map[string]struct {
		trusted bool
		wraps   int
	}{"plain": {false, 0}, "trusted": {true, 1}} {
		h := &hsmOf{serial: "0123", kcv: "1A2B3C"}
		r := room(t, t.TempDir(), h, textOf(t, sample()))
		ready(t, r)
		if tt.trusted {
			r.Trusted = func(ctx context.Context, _ pkcs11uri.URI, pub *rsa.PublicKey, plan wrapping.Plan) ([]byte, error) {
				swap(h) // while people log in
				return h.Wrap(ctx, wrapping.Key{}, pub, plan)
			}
		} else {
			swap(h)
		}
		w, err := r.Wrap(t.Context())
		says(t, err, "the object in the token is another one than was compared: it has check value FFFFFF now, and had check value 1A2B3C")
		if h.wraps != tt.wraps || len(w.Keys) != 0 {
			t.Errorf("%s: %d wraps, %d came out", name, h.wraps, len(w.Keys))
		}
	}
}

// hmacOf is a token with one HMAC key.
type hmacOf struct {
	hsmOf
	hmac []byte
	err  error
}

func (h *hmacOf) MAC(_ context.Context, _ wrapping.Key, message []byte) ([]byte, error) {
	if h.err != nil || h.hmac == nil {
		return nil, h.err
	}
	m := hmac.New(sha256.New, h.hmac)
	m.Write(message)
	return m.Sum(nil), nil
}

// An HMAC key is told by what docs/ceremony.md says, so that people can compute it with other tools. A key that makes no HMAC is told by nothing, and may be
// wrapped; a fault of the HSM says nothing about the key.
func TestIdentifyHMAC(t *testing.T) {
	const message = "hsmbridge: which key is this?"
	document, err := os.ReadFile("../../docs/ceremony.md")
	if err != nil || !bytes.Contains(document, []byte("`"+message+"`")) {
		t.Errorf("docs/ceremony.md does not name the message: %v", err)
	}
	secret := []byte(rand.Text())
	m := hmac.New(sha256.New, secret)
	m.Write([]byte(message))
	key := wrapping.Key{Label: "sessions", KeyType: "CKK_GENERIC_SECRET", Bits: 256, KeySpec: wrapping.HMAC256}
	for name, tt := range map[string]struct {
		token *hmacOf
		want  string
		fails bool
	}{
		"told":        {&hmacOf{hmac: secret}, "HMAC of a fixed message " + hex.EncodeToString(m.Sum(nil)[:16]), false},
		"no HMAC":     {&hmacOf{err: &failure.Error{Op: "C_SignInit", ErrClass: failure.ClassCaller, Cause: "the key may not sign"}}, "", false},
		"an empty":    {&hmacOf{}, "", false},
		"a fault":     {&hmacOf{err: &failure.Error{Op: "C_Sign", ErrClass: failure.ClassToken, Cause: "the device failed"}}, "", true},
		"interrupted": {&hmacOf{err: context.Canceled}, "", true},
	} {
		got, err := ceremony.Identify(t.Context(), tt.token, key)
		if got != tt.want || (err != nil) != tt.fails {
			t.Errorf("%s: %q, %v; want %q", name, got, err, tt.want)
		}
	}
}
