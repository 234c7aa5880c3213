package hsmtest

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1" //nolint:gosec // RSAES_OAEP_SHA_1 is what it is
	"errors"
	"testing"

	"github.com/miekg/pkcs11"

	"hsmbridge/hsm"
	"hsmbridge/hsm/pkcs11uri"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/test/token"
)

// testTrusted wraps an object that lets itself be wrapped only under a trusted key. reason is what a token says that cannot; empty: it can.
func testTrusted(t *testing.T, tok token.Token, reason string) {
	t.Helper()
	t.Run("keys", func(t *testing.T) {
		Open(t, tok)
		raw(t, tok, func(c *pkcs11.Ctx, s pkcs11.SessionHandle) {
			if reason == "" {
				rawAES(t, c, s, "trusted-only", pkcs11.CKA_WRAP_WITH_TRUSTED, true)
			}
			rawAES(t, c, s, "stay", pkcs11.CKA_EXTRACTABLE, false)
		})
	})
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	plan := wrapping.Plan{
		KeySpec: wrapping.SymmetricDefault, Algorithm: wrapping.OAEPSHA1, WrappingKeySpec: wrapping.RSA2048, Length: 32,
		Mechanism: wrapping.Mechanism{Name: "CKM_RSA_PKCS_OAEP", Type: pkcs11.CKM_RSA_PKCS_OAEP, Form: wrapping.FormOAEP},
	}
	object := pkcs11uri.URI{Object: "trusted-only", Type: pkcs11uri.TypeSecretKey}
	wrap := func(t *testing.T, so string, u pkcs11uri.URI, p wrapping.Plan) ([]byte, error) {
		t.Helper()
		h := Open(t, tok)
		before := publicKeys(t, tok)
		out, err := h.WrapTrusted(t.Context(), PIN(so), PIN(tok.PIN), u, &private.PublicKey, p)
		if n := publicKeys(t, tok); n != before {
			t.Errorf("%d public keys were in the token before and %d are now", before, n)
		}
		return out, err
	}
	if reason != "" {
		_, err := wrap(t, tok.SOPIN, object, plan)
		class(t, err, hsm.ClassCaller, reason)
		return
	}
	t.Run("wraps", func(t *testing.T) {
		out, err := wrap(t, tok.SOPIN, object, plan)
		if err != nil {
			t.Fatal(err)
		}
		key, err := rsa.DecryptOAEP(sha1.New(), nil, private, out, nil) //nolint:gosec // see the import
		if err != nil || len(key) != 32 || bytes.Equal(key, make([]byte, 32)) {
			t.Errorf("%d bytes came out, %v", len(key), err)
		}
	})
	t.Run("what a killed process left", func(t *testing.T) {
		h := Open(t, tok)
		before := publicKeys(t, tok)
		leaveTrusted(t, tok)
		if n := publicKeys(t, tok); n != before+1 {
			t.Fatalf("%d public keys, were %d: nothing was left to be swept", n, before)
		}
		if _, err := h.WrapTrusted(t.Context(), PIN(tok.SOPIN), PIN(tok.PIN), object, &private.PublicKey, plan); err != nil {
			t.Fatal(err)
		}
		if n := publicKeys(t, tok); n != before {
			t.Errorf("%d public keys, were %d", n, before)
		}
	})
	t.Run("a key that must stay", func(t *testing.T) {
		_, err := wrap(t, tok.SOPIN, pkcs11uri.URI{Object: "stay"}, plan)
		class(t, err, hsm.ClassCaller, "CKA_EXTRACTABLE is false")
	})
	t.Run("two calls", func(t *testing.T) {
		p := plan
		p.Algorithm, p.Mechanism.Form = wrapping.RSAAESSHA256, wrapping.FormKWP
		_, err := wrap(t, tok.SOPIN, object, p)
		class(t, err, hsm.ClassCaller, "an AES key that nobody has made CKA_TRUSTED")
	})
	t.Run("a PIN that cannot be had", func(t *testing.T) {
		h := Open(t, tok)
		_, err := h.WrapTrusted(t.Context(), func(context.Context, wrapping.TokenIdentity) ([]byte, error) {
			return nil, errors.New("nobody is there")
		}, PIN(tok.PIN), object, &private.PublicKey, plan)
		class(t, err, hsm.ClassToken, "no login was tried: nobody is there")
	})
	t.Run("a wrong PIN, once", func(t *testing.T) {
		_, err := wrap(t, "not the SO PIN", object, plan)
		class(t, err, hsm.ClassToken, "CKR_PIN_INCORRECT")
	})
	t.Run("ended in the middle", func(t *testing.T) {
		h := Open(t, tok)
		ctx, cancel := context.WithCancel(t.Context())
		_, err := h.WrapTrusted(ctx, PIN(tok.SOPIN), func(context.Context, wrapping.TokenIdentity) ([]byte, error) {
			cancel()
			return []byte(tok.PIN), nil
		}, object, &private.PublicKey, plan)
		if !errors.Is(err, context.Canceled) {
			t.Errorf("ended with %v", err)
		}
	})
	t.Run("under another key", func(t *testing.T) {
		h := Open(t, tok)
		key, err := h.Find(t.Context(), object)
		if err != nil {
			t.Fatal(err)
		}
		_, err = h.Wrap(t.Context(), key, &private.PublicKey, plan)
		class(t, err, hsm.ClassCaller, "hsmceremony wrap --trusted")
	})
}

// leaveTrusted stores a trusted wrapping key in the token, as a token that stores session objects has it after a kill -9.
func leaveTrusted(t *testing.T, tok token.Token) {
	t.Helper()
	raw(t, tok, func(c *pkcs11.Ctx, s pkcs11.SessionHandle) {
		_ = c.Logout(s) // the user's, if there is one
		if err := c.Login(s, pkcs11.CKU_SO, tok.SOPIN); err != nil {
			t.Fatal(err)
		}
		_, err := c.CreateObject(s, []*pkcs11.Attribute{
			pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_PUBLIC_KEY), pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_RSA),
			pkcs11.NewAttribute(pkcs11.CKA_LABEL, "hsmbridge ceremony, trusted for one wrap"), pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true),
			pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, false), pkcs11.NewAttribute(pkcs11.CKA_TRUSTED, true), pkcs11.NewAttribute(pkcs11.CKA_WRAP, true),
			pkcs11.NewAttribute(pkcs11.CKA_MODULUS, bytes.Repeat([]byte{0xA5}, 256)), pkcs11.NewAttribute(pkcs11.CKA_PUBLIC_EXPONENT, []byte{1, 0, 1}),
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Logout(s); err != nil {
			t.Fatal(err)
		}
	})
}

// publicKeys counts the public keys in the token, also those of sessions.
func publicKeys(t *testing.T, tok token.Token) (n int) {
	t.Helper()
	raw(t, tok, func(c *pkcs11.Ctx, s pkcs11.SessionHandle) {
		if err := c.FindObjectsInit(s, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_PUBLIC_KEY)}); err != nil {
			t.Fatal(err)
		}
		for { // some answer with fewer than are left
			found, _, err := c.FindObjects(s, 64)
			if err != nil {
				t.Fatal(err)
			}
			if len(found) == 0 {
				break
			}
			n += len(found)
		}
		if err := c.FindObjectsFinal(s); err != nil {
			t.Fatal(err)
		}
	})
	return n
}
