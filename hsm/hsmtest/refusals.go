package hsmtest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"

	"hsmbridge/hsm"
	"hsmbridge/hsm/pkcs11uri"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/test/token"
)

func isErr(err, target error) bool { return errors.Is(err, target) }

// class checks an error's class and that it says all of the parts.
func class(t *testing.T, err error, want string, parts ...string) {
	t.Helper()
	var e *hsm.Error
	if !errors.As(err, &e) {
		t.Fatalf("%v is not an *hsm.Error", err)
	}
	if e.Class() != want {
		t.Errorf("%v has class %s, want %s", err, e.Class(), want)
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("%v does not say %q", err, p)
		}
	}
}

func testOpen(t *testing.T, tok token.Token, want Expect) {
	t.Helper()
	h := Open(t, tok)
	if h.Identity().Label != tok.Label {
		t.Errorf("opened %+v", h.Identity())
	}
	if warned := strings.Contains(strings.Join(h.Warnings(), "; "), "cannot wrap"); warned != (want.CannotWrap != "") {
		t.Errorf("warnings: %q", h.Warnings())
	}
	t.Run("no such token", func(t *testing.T) {
		c := Config(t, tok)
		c.URI = URI(t, "pkcs11:token=nobody-has-this-label")
		_, err := hsm.Open(t.Context(), c, PIN(tok.PIN))
		class(t, err, hsm.ClassToken, "no token matches", tok.Label)
		if !isErr(err, hsm.ErrNoSuchToken) {
			t.Errorf("%v is not ErrNoSuchToken", err)
		}
	})
	t.Run("other parameters", func(t *testing.T) {
		c := Config(t, tok)
		c.Parameters += " "
		_, err := hsm.Open(t.Context(), c, PIN(tok.PIN))
		class(t, err, hsm.ClassCaller, "other parameters")
	})
	t.Run("module missing", func(t *testing.T) {
		c := Config(t, tok)
		c.Module = filepath.Join(t.TempDir(), "libnothing.so")
		_, err := hsm.Open(t.Context(), c, PIN(tok.PIN))
		class(t, err, hsm.ClassCaller, "cannot be found", "tokens[].module")
	})
	t.Run("not a shared object", func(t *testing.T) {
		c := Config(t, tok)
		c.Module = filepath.Join(t.TempDir(), "libtext.so")
		if err := os.WriteFile(c.Module, []byte("text"), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := hsm.Open(t.Context(), c, PIN(tok.PIN))
		class(t, err, hsm.ClassCaller, "not a usable PKCS#11 module")
	})
	t.Run("not PKCS#11", func(t *testing.T) {
		c := Config(t, tok)
		libc, err := token.Module("libm.so.6", "")
		if err != nil {
			t.Fatal(err)
		}
		c.Module = libc
		_, err = hsm.Open(t.Context(), c, PIN(tok.PIN))
		class(t, err, hsm.ClassCaller, "C_GetFunctionList")
	})
}

// testFind opens the token anew for each part: a TPM has room for three loaded keys.
func testFind(t *testing.T, tok token.Token, want Expect) {
	t.Helper()
	right, other := pkcs11uri.TypeSecretKey, pkcs11uri.TypePrivate
	if want.CannotWrap != "" { // it makes pairs only
		right, other = other, right
	}
	t.Run("one", func(t *testing.T) {
		h := Open(t, tok)
		one, err := generateOne(t, h, right, "find-one", []byte{0x0f, 0x01})
		if err != nil {
			t.Fatal(err)
		}
		for _, u := range []pkcs11uri.URI{
			{Object: "find-one"},
			{ID: []byte{0x0f, 0x01}},
			{Object: "find-one", Type: right},
		} {
			if k, err := h.Find(t.Context(), u); err != nil || k.Handle != one.Handle {
				t.Errorf("%s: %+v, %v", u, k, err)
			}
		}
		for _, u := range []pkcs11uri.URI{{Object: "find-none"}, {Object: "find-one", Type: other}, {Object: "find-one", ID: []byte{9}}} {
			_, err := h.Find(t.Context(), u)
			class(t, err, hsm.ClassCaller, `object="find-one"`)
			if !isErr(err, hsm.ErrNotFound) {
				t.Errorf("%s: %v is not ErrNotFound", u, err)
			}
		}
	})
	for range 2 {
		t.Run("generate", func(t *testing.T) {
			Open(t, tok)
			raw(t, tok, func(c *pkcs11.Ctx, s pkcs11.SessionHandle) {
				if right == pkcs11uri.TypePrivate {
					rawPair(t, c, s, "find-two")
				} else {
					rawAES(t, c, s, "find-two", pkcs11.CKA_EXTRACTABLE, true)
				}
			})
		})
	}
	t.Run("two", func(t *testing.T) {
		_, err := Open(t, tok).Find(t.Context(), pkcs11uri.URI{Object: "find-two"})
		class(t, err, hsm.ClassCaller, "find-two", "match")
		if !isErr(err, hsm.ErrAmbiguous) {
			t.Errorf("two with one label: %v is not ErrAmbiguous", err)
		}
	})
}

// generateOne generates a key of the type, as PKCS #11 URIs have it.
func generateOne(t *testing.T, h *hsm.Token, kind, label string, id []byte) (wrapping.Key, error) {
	t.Helper()
	if kind == pkcs11uri.TypePrivate {
		return h.GenerateSigning(t.Context(), label, id)
	}
	return h.Generate(t.Context(), wrapping.SymmetricDefault, label, id)
}

// testMustNotLeave holds that hsmbridge itself refuses: NSS would wrap both keys.
func testMustNotLeave(t *testing.T, tok token.Token, keys throwaways, want Expect) {
	t.Helper()
	h := Open(t, tok)
	raw(t, tok, func(c *pkcs11.Ctx, s pkcs11.SessionHandle) {
		rawAES(t, c, s, "stay", pkcs11.CKA_EXTRACTABLE, false)
		if !want.NoWrapWithTrusted {
			rawAES(t, c, s, "trusted-only", pkcs11.CKA_WRAP_WITH_TRUSTED, true)
		}
	})
	cases := map[string]string{"stay": "CKA_EXTRACTABLE is false"}
	if !want.NoWrapWithTrusted {
		cases["trusted-only"] = "CKA_WRAP_WITH_TRUSTED is true"
	}
	rsa := keys[wrapping.RSA2048]
	plan := wrapping.Plan{
		KeySpec: wrapping.SymmetricDefault, Algorithm: wrapping.OAEPSHA1, WrappingKeySpec: wrapping.RSA2048, Length: 32,
		Mechanism: wrapping.Mechanism{Name: "CKM_RSA_PKCS_OAEP", Type: pkcs11.CKM_RSA_PKCS_OAEP, Form: wrapping.FormOAEP},
	}
	for label, reason := range cases {
		key, err := h.Find(t.Context(), pkcs11uri.URI{Object: label})
		if err != nil {
			t.Fatal(err)
		}
		if len(key.Blockers) == 0 {
			t.Errorf("%s: nothing blocks %+v", label, key)
		}
		_, err = h.Wrap(t.Context(), key, rsa.Public(), plan)
		class(t, err, hsm.ClassCaller, reason)
		// The attributes count that the token has now, not those that a caller was told.
		key.Blockers, key.Extractable, key.WrapWithTrusted = nil, true, false
		_, err = h.Wrap(t.Context(), key, rsa.Public(), plan)
		class(t, err, hsm.ClassCaller, reason)
	}
	old, err := h.Find(t.Context(), pkcs11uri.URI{Object: "stay"})
	if err != nil {
		t.Fatal(err)
	}
	old.Epoch--
	_, err = h.Wrap(t.Context(), old, rsa.Public(), plan)
	class(t, err, hsm.ClassSession, "earlier connection")
}

// testGiveUp holds that a caller never waits longer than its context lets it.
func testGiveUp(t *testing.T, tok token.Token) {
	t.Helper()
	h := Open(t, tok)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := h.Keys(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Keys with a cancelled context: %v", err)
	}
	if _, err := h.Probe(ctx, wrapping.SymmetricDefault); !errors.Is(err, context.Canceled) {
		t.Errorf("Probe with a cancelled context: %v", err)
	}
	if _, err := h.Keys(t.Context()); err != nil {
		t.Errorf("after a cancelled call: %v", err)
	}
}

// testWrongPIN holds that a wrong PIN is given to the token once in the life of the process.
func testWrongPIN(t *testing.T, tok token.Token) {
	t.Helper()
	asked := 0
	wrong := func(context.Context, wrapping.TokenIdentity) ([]byte, error) {
		asked++
		return []byte("0000-wrong"[:8]), nil
	}
	_, err := hsm.Open(t.Context(), Config(t, tok), wrong)
	class(t, err, hsm.ClassToken, "CKR_PIN_INCORRECT", "tried once")
	_, err = hsm.Open(t.Context(), Config(t, tok), wrong)
	class(t, err, hsm.ClassToken, "refused before")
	if asked != 1 {
		t.Errorf("the PIN was asked for %d times", asked)
	}
}
