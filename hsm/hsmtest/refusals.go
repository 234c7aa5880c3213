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
	"hsmbridge/hsm/wrapping/trial"
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

func testOpen(t *testing.T, tok token.Token) {
	t.Helper()
	h := Open(t, tok)
	if h.Identity().Label != tok.Label {
		t.Errorf("opened %+v", h.Identity())
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

func testFind(t *testing.T, tok token.Token) {
	t.Helper()
	h := Open(t, tok)
	one, err := h.Generate(t.Context(), wrapping.SymmetricDefault, "find-one", []byte{0x0f, 0x01})
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range []pkcs11uri.URI{
		{Object: "find-one"},
		{ID: []byte{0x0f, 0x01}},
		{Object: "find-one", Type: "secret-key"},
	} {
		if k, err := h.Find(t.Context(), u); err != nil || k.Handle != one.Handle {
			t.Errorf("%s: %+v, %v", u, k, err)
		}
	}
	for _, u := range []pkcs11uri.URI{{Object: "find-none"}, {Object: "find-one", Type: "private"}, {Object: "find-one", ID: []byte{9}}} {
		_, err := h.Find(t.Context(), u)
		class(t, err, hsm.ClassCaller, `object="find-one"`)
		if !isErr(err, hsm.ErrNotFound) {
			t.Errorf("%s: %v is not ErrNotFound", u, err)
		}
	}
	raw(t, tok, func(c *pkcs11.Ctx, s pkcs11.SessionHandle) {
		rawAES(t, c, s, "find-two", pkcs11.CKA_EXTRACTABLE, true)
		rawAES(t, c, s, "find-two", pkcs11.CKA_EXTRACTABLE, true)
	})
	_, err = h.Find(t.Context(), pkcs11uri.URI{Object: "find-two"})
	class(t, err, hsm.ClassCaller, "find-two", "match")
	if !isErr(err, hsm.ErrAmbiguous) {
		t.Errorf("two with one label: %v is not ErrAmbiguous", err)
	}
}

// testMustNotLeave holds that hsmbridge itself refuses: NSS would wrap both keys.
func testMustNotLeave(t *testing.T, tok token.Token, want Expect) {
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
	rsa, err := trial.NewRSAKey(wrapping.RSA2048)
	if err != nil {
		t.Fatal(err)
	}
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

// raw runs f on a session of its own in the same process, to make what hsm itself never makes.
func raw(t *testing.T, tok token.Token, f func(c *pkcs11.Ctx, s pkcs11.SessionHandle)) {
	t.Helper()
	c := pkcs11.New(tok.Module)
	if c == nil {
		t.Fatalf("load %s", tok.Module)
	}
	defer c.Destroy()
	slots, err := c.GetSlotList(true)
	if err != nil {
		t.Fatal(err)
	}
	for _, slot := range slots {
		info, err := c.GetTokenInfo(slot)
		if err != nil || strings.TrimRight(info.Label, " \x00") != tok.Label {
			continue
		}
		s, err := c.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
		if err != nil {
			t.Fatal(err)
		}
		f(c, s)
		if err := c.CloseSession(s); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Fatalf("no token %q", tok.Label)
}

// rawAES generates an AES-256 key with one attribute as given.
func rawAES(t *testing.T, c *pkcs11.Ctx, s pkcs11.SessionHandle, label string, attribute uint, value bool) {
	t.Helper()
	template := []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_AES),
		pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, 32), pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true), pkcs11.NewAttribute(pkcs11.CKA_LABEL, label),
		pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, true), pkcs11.NewAttribute(attribute, value),
	}
	if attribute != pkcs11.CKA_EXTRACTABLE {
		template = append(template, pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, true))
	}
	if _, err := c.GenerateKey(s, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_KEY_GEN, nil)}, template); err != nil {
		t.Fatalf("generate %s: %v", label, err)
	}
}
