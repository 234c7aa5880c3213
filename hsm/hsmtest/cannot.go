package hsmtest

import (
	"testing"

	"hsmbridge/hsm"
	"hsmbridge/hsm/pkcs11uri"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/hsm/wrapping/trial"
	"hsmbridge/test/token"
)

// testCannotWrap is for a token that wraps nothing: each way to a key says so, with the reason, and none tries.
func testCannotWrap(t *testing.T, tok token.Token, want Expect) {
	t.Helper()
	h := Open(t, tok)
	ctx := t.Context()
	caps, err := h.Probe(ctx, wrapping.KeySpecs()...)
	if err != nil {
		t.Fatal(err)
	}
	if n := keyCount(t, h); n != 0 {
		t.Errorf("the token has %d keys after the probe", n)
	}
	rsa, err := trial.NewRSAKey(wrapping.RSA2048)
	if err != nil {
		t.Fatal(err)
	}
	for _, spec := range wrapping.KeySpecs() {
		s := wrapping.Select(spec, caps, wrapping.Policy{AllowPKCS1v15: true, AllowPaddedPKCS8: true})
		if len(s.Plans) != 0 || s.Err() == nil {
			t.Errorf("%s: %d plans", spec, len(s.Plans))
			continue
		}
		for _, r := range s.Refused {
			if r.Reason != want.CannotWrap && r.Rule == wrapping.RuleToken {
				t.Errorf("%s: %s, want the reason %q", spec, r, want.CannotWrap)
			}
		}
		_, err := h.Generate(ctx, spec, "cannot-"+string(spec), nil)
		class(t, err, hsm.ClassCaller, want.CannotWrap, "nothing was done")
	}
	if n := keyCount(t, h); n != 0 {
		t.Errorf("the token has %d keys after Generate", n)
	}
	if _, err := h.GenerateSigning(ctx, "stay", nil); err != nil {
		t.Fatal(err)
	}
	key, err := h.Find(ctx, pkcs11uri.URI{Object: "stay", Type: pkcs11uri.TypePrivate})
	if err != nil {
		t.Fatal(err)
	}
	if len(key.Blockers) != 1 || key.Blockers[0] != want.CannotWrap {
		t.Errorf("blockers %q, want %q", key.Blockers, want.CannotWrap)
	}
	plan := wrapping.Plan{
		KeySpec: key.KeySpec, Algorithm: wrapping.OAEPSHA1, WrappingKeySpec: wrapping.RSA2048,
		Mechanism: wrapping.Mechanism{Name: "CKM_RSA_PKCS_OAEP", Type: 0x9, Form: wrapping.FormOAEP},
	}
	_, err = h.Wrap(ctx, key, rsa.Public(), plan)
	class(t, err, hsm.ClassCaller, "CKR_FUNCTION_NOT_SUPPORTED", want.CannotWrap)
	_, err = h.WrapTrusted(ctx, PIN(tok.SOPIN), PIN(tok.PIN), pkcs11uri.URI{Object: "stay"}, rsa.Public(), plan)
	class(t, err, hsm.ClassCaller, want.CannotWrap)
	testMatrix(t, tok, want.Matrix, caps, nil)
}
