package remote

import (
	"bytes"
	"context"
	"crypto/rsa"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"hsmbridge/hsm"
	"hsmbridge/hsm/failure"
	"hsmbridge/hsm/hsmtest"
	"hsmbridge/hsm/pkcs11uri"
	"hsmbridge/hsm/remote"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/hsm/wrapping/trial"
	"hsmbridge/test/softhsm"
)

// opened is what a token can be asked for, whichever process its module is in.
type opened interface {
	Identity() wrapping.TokenIdentity
	Warnings() []string
	Mechanisms(ctx context.Context) ([]wrapping.MechanismInfo, error)
	Probe(ctx context.Context, specs ...wrapping.KeySpec) (wrapping.Capabilities, error)
	Keys(ctx context.Context) ([]wrapping.Key, error)
	Find(ctx context.Context, u pkcs11uri.URI) (wrapping.Key, error)
	Generate(ctx context.Context, spec wrapping.KeySpec, label string, id []byte) (wrapping.Key, error)
	GenerateSigning(ctx context.Context, label string, id []byte) (wrapping.Key, error)
	Wrap(ctx context.Context, key wrapping.Key, pub *rsa.PublicKey, plan wrapping.Plan) ([]byte, error)
	PublicKey(ctx context.Context, key wrapping.Key) ([]byte, error)
	MAC(ctx context.Context, key wrapping.Key, message []byte) ([]byte, error)
	SignVerified(ctx context.Context, key wrapping.Key, public, message []byte) ([]byte, error)
	CheckValue(ctx context.Context, key wrapping.Key) (string, error)
}

var (
	_ opened = (*hsm.Token)(nil)
	_ opened = (*remote.Token)(nil)
)

// TestSameInAProcess holds that a token whose module is in a child process answers as one in the same process: the same keys, capabilities, values and
// refusals, word for word. What hsm does on each token is held by its contract (hsm/hsmtest); this is the way to it.
func TestSameInAProcess(t *testing.T) {
	fixture := softhsm.New(t)
	near := hsmtest.Open(t, fixture.Token)
	far := open(t, new(remote.Starter), config(t, fixture.Token), fixture.PIN)
	for label, spec := range map[string]wrapping.KeySpec{"aes": wrapping.SymmetricDefault, "hmac": wrapping.HMAC512, "ec": wrapping.ECCNISTP384} {
		if _, err := near.Generate(t.Context(), spec, label, []byte(label)); err != nil {
			t.Fatal(err)
		}
	}
	signing, err := far.GenerateSigning(t.Context(), "signs", []byte("signs"))
	if err != nil {
		t.Fatal(err)
	}
	plan, private := planAndKey(t)
	named := func(label string) pkcs11uri.URI { return pkcs11uri.URI{Object: label} }
	with := func(label string, f func(ctx context.Context, tok opened, k wrapping.Key) (any, error)) func(context.Context, opened) (any, error) {
		return func(ctx context.Context, tok opened) (any, error) {
			k, err := tok.Find(ctx, named(label))
			if err != nil {
				return nil, err
			}
			return f(ctx, tok, k)
		}
	}
	wrapped := func(ctx context.Context, tok opened, k wrapping.Key) (any, error) {
		return opens(ctx, tok, k, plan, private)
	}
	for name, do := range map[string]func(ctx context.Context, tok opened) (any, error){
		"identity":   func(_ context.Context, tok opened) (any, error) { return tok.Identity(), nil },
		"warnings":   func(_ context.Context, tok opened) (any, error) { return len(tok.Warnings()), nil },
		"mechanisms": func(ctx context.Context, tok opened) (any, error) { return tok.Mechanisms(ctx) },
		"probe": func(ctx context.Context, tok opened) (any, error) {
			return tok.Probe(ctx, wrapping.SymmetricDefault)
		},
		"keys": func(ctx context.Context, tok opened) (any, error) { return tok.Keys(ctx) },
		"find": func(ctx context.Context, tok opened) (any, error) { return tok.Find(ctx, named("aes")) },
		"find by id": func(ctx context.Context, tok opened) (any, error) {
			return tok.Find(ctx, pkcs11uri.URI{ID: []byte("ec"), Type: pkcs11uri.TypePrivate})
		},
		"not there": func(ctx context.Context, tok opened) (any, error) { return tok.Find(ctx, named("nobody's")) },
		"two match": func(ctx context.Context, tok opened) (any, error) {
			return tok.Find(ctx, pkcs11uri.URI{Type: pkcs11uri.TypePrivate})
		},
		"label taken": func(ctx context.Context, tok opened) (any, error) {
			return tok.Generate(ctx, wrapping.HMAC256, "aes", nil)
		},
		"not generated": func(ctx context.Context, tok opened) (any, error) { return tok.Generate(ctx, "SM2", "x", nil) },
		"check value":   with("aes", func(ctx context.Context, tok opened, k wrapping.Key) (any, error) { return tok.CheckValue(ctx, k) }),
		"MAC": with("hmac", func(ctx context.Context, tok opened, k wrapping.Key) (any, error) {
			return tok.MAC(ctx, k, []byte("message"))
		}),
		"public key":     with("ec", func(ctx context.Context, tok opened, k wrapping.Key) (any, error) { return tok.PublicKey(ctx, k) }),
		"wrap":           with("aes", wrapped),
		"must not leave": with("signs", wrapped),
		"other key's plan": with("aes", func(ctx context.Context, tok opened, k wrapping.Key) (any, error) {
			p := plan
			p.WrappingKeySpec = wrapping.RSA4096
			_, err := tok.Wrap(ctx, k, private.Public(), p)
			return nil, err
		}),
		"a signature of another key": with("signs", func(ctx context.Context, tok opened, k wrapping.Key) (any, error) {
			ec, err := near.Find(ctx, named("ec"))
			if err != nil {
				return nil, err
			}
			other, err := near.PublicKey(ctx, ec)
			if err != nil {
				return nil, err
			}
			out, err := tok.SignVerified(ctx, k, other, []byte("message"))
			return out, kind(err)
		}),
		"a signature": with("signs", func(ctx context.Context, tok opened, k wrapping.Key) (any, error) {
			public, err := tok.PublicKey(ctx, k)
			if err != nil {
				return nil, err
			}
			out, err := tok.SignVerified(ctx, k, public, []byte("message"))
			return len(out) > 0, err
		}),
	} {
		t.Run(name, func(t *testing.T) {
			here, errHere := do(t.Context(), near)
			there, errThere := do(t.Context(), far)
			same := cmp.Options{cmpopts.IgnoreFields(wrapping.Key{}, "Handle", "Epoch"), cmpopts.EquateEmpty(), cmpopts.SortSlices(func(a, b wrapping.Key) bool { return a.Label < b.Label })}
			if diff := cmp.Diff(here, there, same); diff != "" {
				t.Errorf("-in this process, +in a child:\n%s", diff)
			}
			if diff := cmp.Diff(told(errHere), told(errThere)); diff != "" {
				t.Errorf("-in this process, +in a child:\n%s", diff)
			}
		})
	}
	if keys, err := far.Keys(t.Context()); err != nil || len(keys) != 4 || signing.Extractable {
		t.Errorf("%d keys are in the token, %v", len(keys), err)
	}
}

// opens has a key wrapped and opened again, twice: the same comes out, and never the same ciphertext.
func opens(ctx context.Context, tok opened, k wrapping.Key, plan wrapping.Plan, private *trial.RSAKey) ([]byte, error) {
	first, err := tok.Wrap(ctx, k, private.Public(), plan)
	if err != nil {
		return nil, err
	}
	second, err := tok.Wrap(ctx, k, private.Public(), plan)
	if err != nil {
		return nil, err
	}
	a, errA := private.Open(plan.Algorithm, first)
	b, errB := private.Open(plan.Algorithm, second)
	if !bytes.Equal(a, b) || bytes.Equal(first, second) {
		return nil, errors.New("two wraps of one key differ in what is in them, or in nothing")
	}
	return a, errors.Join(errA, errB)
}

// told is what an error says to whom.
func told(err error) []string {
	if err == nil {
		return nil
	}
	var e *failure.Error
	if !errors.As(err, &e) {
		return []string{err.Error()}
	}
	out := []string{e.Error(), e.Class(), e.CKR()}
	for _, sentinel := range []error{failure.ErrNotFound, failure.ErrAmbiguous, failure.ErrExists, failure.ErrNotExportable, failure.ErrParked} {
		if errors.Is(err, sentinel) {
			out = append(out, sentinel.Error())
		}
	}
	return out
}

// kind is an error by its class only.
func kind(err error) error {
	var e *failure.Error
	if errors.As(err, &e) {
		return errors.New(e.Class())
	}
	return err
}
