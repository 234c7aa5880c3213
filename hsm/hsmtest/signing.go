package hsmtest

import (
	"errors"
	"testing"

	"hsmbridge/hsm"
	"hsmbridge/hsm/pkcs11uri"
	"hsmbridge/test/token"
)

// testSigning makes a key that signs and cannot leave, and signs with it.
func testSigning(t *testing.T, tok token.Token) {
	t.Helper()
	var public []byte
	t.Run("one", func(t *testing.T) {
		h := Open(t, tok)
		ctx := t.Context()
		key, err := h.GenerateSigning(ctx, "audit", nil)
		if err != nil {
			t.Fatal(err)
		}
		if key.Extractable || !key.Sensitive || !key.Sign || key.Wrap {
			t.Errorf("the key is %+v", key)
		}
		if public, err = h.PublicKey(ctx, key); err != nil {
			t.Fatal(err)
		}
		for range 20 { // short R and S come up now and then
			if _, err := h.SignVerified(ctx, key, public, []byte("a checkpoint")); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := h.GenerateSigning(ctx, "audit", nil); !errors.Is(err, hsm.ErrExists) {
			t.Errorf("a second key of the label: %v", err)
		}
	})
	t.Run("another", func(t *testing.T) {
		h := Open(t, tok)
		ctx := t.Context()
		other, err := h.GenerateSigning(ctx, "audit-2", []byte{7})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := h.SignVerified(ctx, other, public, []byte("a checkpoint")); err == nil {
			t.Error("a signature by another key was taken")
		}
		found, err := h.Find(ctx, pkcs11uri.URI{Object: "audit-2", Type: pkcs11uri.TypePrivate})
		if err != nil || len(found.Blockers) == 0 {
			t.Errorf("a signing key is found as %+v, %v", found, err)
		}
	})
}
