package p11kit_test

import (
	"errors"
	"strings"
	"testing"

	"hsmbridge/hsm"
	"hsmbridge/hsm/hsmtest"
	"hsmbridge/hsm/pkcs11uri"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/hsm/wrapping/trial"
	"hsmbridge/test/p11kit"
	"hsmbridge/test/softhsm"
)

// TestServerKilled holds that a token whose server dies is usable again once it is closed and opened anew. p11-kit-client.so answers
// CKR_DEVICE_ERROR to everything until C_Finalize and C_Initialize, which the last Close and the next Open of a module call.
func TestServerKilled(t *testing.T) {
	s := p11kit.Serve(t, softhsm.New(t, "killed").Token)
	open := func() (*hsm.Token, error) {
		return hsm.Open(t.Context(), hsmtest.Config(t, s.Token), hsmtest.PIN(s.PIN))
	}
	h, err := open()
	if err != nil {
		t.Fatal(err)
	}
	key, err := h.Generate(t.Context(), wrapping.SymmetricDefault, "kept", nil)
	if err != nil {
		t.Fatal(err)
	}
	rsa, err := trial.NewRSAKey(wrapping.RSA2048)
	if err != nil {
		t.Fatal(err)
	}
	plan := wrapping.Plan{
		KeySpec: wrapping.SymmetricDefault, Algorithm: wrapping.OAEPSHA1, WrappingKeySpec: wrapping.RSA2048, Length: 32,
		Mechanism: wrapping.Mechanism{Name: "CKM_RSA_PKCS_OAEP", Type: 0x9, Form: wrapping.FormOAEP},
	}

	s.Kill()
	for _, call := range []struct {
		name string
		do   func() error
	}{
		{"Wrap", func() error { _, err := h.Wrap(t.Context(), key, rsa.Public(), plan); return err }},
		{"Keys", func() error { _, err := h.Keys(t.Context()); return err }},
		{"Probe", func() error { _, err := h.Probe(t.Context(), wrapping.SymmetricDefault); return err }},
		{"another Open", func() error { _, err := open(); return err }},
	} {
		tokenError(t, call.name, call.do(), "CKR_DEVICE_ERROR (0x30)")
	}
	s.Start(t) // alone it mends nothing
	_, err = h.Keys(t.Context())
	tokenError(t, "Keys, the server being there", err, "CKR_DEVICE_ERROR (0x30)")
	s.Kill()
	tokenError(t, "Close", h.Close(), "C_CloseSession") // says what it could not do, and has given the module back
	_, err = open()
	tokenError(t, "Open without a server", err, "no initialised token")

	s.Start(t)
	if h, err = open(); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Wrap(t.Context(), key, rsa.Public(), plan); err == nil || !strings.Contains(err.Error(), "earlier connection") {
		t.Errorf("a handle of the earlier connection: %v", err)
	}
	if key, err = h.Find(t.Context(), pkcs11uri.URI{Object: "kept"}); err != nil {
		t.Fatal(err)
	}
	out, err := h.Wrap(t.Context(), key, rsa.Public(), plan)
	if err != nil {
		t.Fatal(err)
	}
	if material, err := rsa.Open(plan.Algorithm, out); err != nil || len(material) != 32 {
		t.Errorf("%d bytes came out, %v", len(material), err)
	}
	if err := h.Close(); err != nil {
		t.Error(err)
	}
}

// tokenError holds that a failure is the token's, which is closed and opened anew after a while, and that it says what.
func tokenError(t *testing.T, call string, err error, want string) {
	t.Helper()
	var e *hsm.Error
	if !errors.As(err, &e) || e.Class() != hsm.ClassToken || !strings.Contains(err.Error(), want) {
		t.Errorf("%s: %v, want a token error with %q", call, err, want)
	}
}
