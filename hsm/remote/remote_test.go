package remote

import (
	"bytes"
	"context"
	"crypto/rsa"
	"errors"
	"io"
	"math/big"
	"net"
	"testing"
	"time"

	"hsmbridge/hsm/failure"
	"hsmbridge/hsm/pkcs11uri"
	"hsmbridge/hsm/remote/wire"
	"hsmbridge/hsm/wrapping"
)

// conversation is a token whose process is the test: it answers every frame with the next of answers, and then is silent.
func conversation(tb testing.TB, answers ...[]byte) *Token {
	tb.Helper()
	return converse(tb, false, answers...)
}

// converse is the same; with ends the process ends after the last answer.
func converse(tb testing.TB, ends bool, answers ...[]byte) *Token {
	tb.Helper()
	ours, theirs := net.Pipe()
	t := newToken(Config{Name: "test", CallTimeout: 2 * time.Second}, ours, ours)
	t.kill = func() { _ = ours.Close() }
	t.ready(wrapping.TokenIdentity{Label: "test"}, nil, false, 4)
	go t.receive()
	go func() {
		defer theirs.Close() //nolint:errcheck // a pipe
		c := wire.NewConn(theirs, theirs, wire.MaxRequest)
		for _, a := range answers {
			h, err := c.Next()
			if err != nil {
				return
			}
			if _, err := c.Payload(h, nil); err != nil {
				return
			}
			if _, err := theirs.Write(a); err != nil {
				return
			}
		}
		if ends {
			t.end(death{mark: failure.ProcessDied, cause: "it ended"})
			return
		}
		_, _ = io.Copy(io.Discard, theirs)
	}()
	tb.Cleanup(func() { t.end(death{cause: "the test is over"}) })
	return t
}

// frame is one as it is sent.
func frame(tb testing.TB, kind wire.Kind, call uint64, m wire.Message) []byte {
	tb.Helper()
	var b bytes.Buffer
	if err := wire.NewConn(nil, &b, 0).Send(kind, 0, call, m); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

func plan() wrapping.Plan {
	return wrapping.Plan{KeySpec: wrapping.SymmetricDefault, Algorithm: wrapping.OAEPSHA256, WrappingKeySpec: wrapping.RSA2048, Length: 32, Mechanism: wrapping.Mechanism{Name: "CKM_RSA_PKCS_OAEP", Form: wrapping.FormOAEP}}
}

func publicKey() *rsa.PublicKey {
	n := new(big.Int).Lsh(big.NewInt(1), 2047)
	return &rsa.PublicKey{N: n.Add(n, big.NewInt(1)), E: 65537}
}

// A process that lies is found out: the lie goes nowhere, and the process is ended.
func TestLies(t *testing.T) {
	good := wrapping.Key{Label: "k", Class: "CKO_SECRET_KEY", KeyType: "CKK_AES", KeySpec: wrapping.SymmetricDefault, Extractable: true}
	other := func(change func(k *wrapping.Key)) wire.Message {
		k := good
		change(&k)
		return &wire.Key{Key: k}
	}
	find := func(tok *Token) error {
		_, err := tok.Find(context.Background(), pkcs11uri.URI{Object: "k", Type: pkcs11uri.TypeSecretKey})
		return err
	}
	wrap := func(tok *Token) error {
		out, err := tok.Wrap(context.Background(), good, publicKey(), plan())
		if out != nil {
			return nil
		}
		return err
	}
	mac := func(tok *Token) error {
		_, err := tok.MAC(context.Background(), wrapping.Key{KeySpec: wrapping.HMAC256}, nil)
		return err
	}
	for name, tc := range map[string]struct {
		answer wire.Message
		do     func(tok *Token) error
		lives  bool
	}{
		"another label":            {other(func(k *wrapping.Key) { k.Label = "other" }), find, false},
		"another class":            {other(func(k *wrapping.Key) { k.Class = "CKO_PRIVATE_KEY" }), find, false},
		"no class":                 {other(func(k *wrapping.Key) { k.Class = "" }), find, false},
		"an unknown spec":          {other(func(k *wrapping.Key) { k.KeySpec = "AES" }), find, false},
		"not extractable, quietly": {other(func(k *wrapping.Key) { k.Extractable = false }), find, false},
		"no key at all":            {&wire.Text{Text: "k"}, find, false},
		"plaintext for a wrap":     {&wire.Bytes{Bytes: make([]byte, 256)}, wrap, true},
		"a short wrap":             {&wire.Bytes{Bytes: []byte{1, 2, 3}}, wrap, true},
		"a wrap above the modulus": {&wire.Bytes{Bytes: bytes.Repeat([]byte{0xfe, 0x17, 0x9a, 0x41}, 64)}, wrap, true},
		"a short MAC":              {&wire.Bytes{Bytes: make([]byte, 31)}, mac, false},
		"a signature that is none": {&wire.Bytes{Bytes: make([]byte, 64)}, func(tok *Token) error {
			_, err := tok.SignVerified(context.Background(), good, nil, nil)
			return err
		}, false},
		"a public key that is none": {&wire.Bytes{Bytes: make([]byte, 64)}, func(tok *Token) error {
			_, err := tok.PublicKey(context.Background(), good)
			return err
		}, false},
		"a probe of another token": {&wire.Capabilities{}, func(tok *Token) error {
			_, err := tok.Probe(context.Background(), wrapping.HMAC256)
			return err
		}, false},
		"another spec than generated": {other(func(*wrapping.Key) {}), func(tok *Token) error {
			_, err := tok.Generate(context.Background(), wrapping.HMAC256, "k", nil)
			return err
		}, false},
		"a signing key that may leave": {other(func(*wrapping.Key) {}), func(tok *Token) error {
			_, err := tok.GenerateSigning(context.Background(), "k", nil)
			return err
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			tok := conversation(t, frame(t, wire.KindAnswer, 1, tc.answer))
			err := tc.do(tok)
			var e *failure.Error
			if !errors.As(err, &e) {
				t.Fatalf("it was believed: %v", err)
			}
			if tc.lives != !tok.over() || !tc.lives && e.CKR() != failure.Protocol {
				t.Errorf("the process lives: %t; %v", !tok.over(), err)
			}
		})
	}
}

// A call that nobody answers ends at its deadline, one whose caller gives up at once.
func TestSilence(t *testing.T) {
	tok := conversation(t)
	tok.timeout = 50 * time.Millisecond
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := tok.Keys(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a caller that gave up: %v", err)
	}
	var e *failure.Error
	if _, err := tok.CheckValue(t.Context(), wrapping.Key{}); !errors.As(err, &e) || e.CKR() != failure.CallTimeout || e.Fix == "" {
		t.Errorf("a call that was not answered: %v", err)
	}
	if code := tok.Err(); !errors.As(code, &e) || e.CKR() != failure.CallTimeout {
		t.Errorf("the token says %v", code)
	}
}

// FuzzProcess is a process that sends anything: no panic, and every call comes back.
func FuzzProcess(f *testing.F) {
	f.Add(frame(f, wire.KindAnswer, 1, &wire.Keys{Keys: []wire.Key{{Key: wrapping.Key{Label: "k", Class: "CKO_SECRET_KEY"}}}}))
	f.Add(frame(f, wire.KindFailed, 1, wire.FailureOf(&failure.Error{Op: "find", Err: failure.ErrNotFound})))
	f.Add(frame(f, wire.KindAnswer, 2, nil))
	f.Add(frame(f, wire.KindHello, 0, &wire.Hello{Version: wire.Version}))
	f.Add(frame(f, wire.KindWantPIN, 0, &wire.WantPIN{}))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, byte(wire.KindAnswer), 0, 0, 0, 0, 0, 0, 0, 0, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		tok := converse(t, true, b)
		if keys, err := tok.Keys(context.Background()); err == nil {
			for _, k := range keys {
				if k.Epoch != tok.epoch {
					t.Error("a key of another connection")
				}
			}
		}
	})
}

// over says that the process has ended.
func (t *Token) over() bool {
	select {
	case <-t.ended:
		return true
	default:
		return false
	}
}
