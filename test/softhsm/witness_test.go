package softhsm_test

import (
	"testing"

	"hsmbridge/hsm/wrapping"
	"hsmbridge/test/e2e"
	"hsmbridge/test/softhsm"
	"hsmbridge/test/spy"
)

// TestWitness watches a whole run of the real binary through OpenSC's pkcs11-spy.so: every PKCS#11 call is in its
// log, and none of them could have shown a key.
func TestWitness(t *testing.T) {
	tok := softhsm.New(t, "witness").Token
	emu := e2e.StartEmulator(t)
	c := emu.Client()
	keys := []e2e.Key{
		{Name: "aes", Spec: wrapping.SymmetricDefault, Destinations: []string{emu.CreateKey(c, wrapping.SymmetricDefault)}},
		{Name: "hmac", Spec: wrapping.HMAC384, Destinations: []string{emu.CreateKey(c, wrapping.HMAC384)}},
		{Name: "ec", Spec: wrapping.ECCNISTP384, Destinations: []string{emu.CreateKey(c, wrapping.ECCNISTP384)}},
	}
	plain := e2e.Config(t, emu.Endpoint, tok, keys, "")
	for _, k := range keys {
		if out := e2e.Run(t, plain, "keys", "generate", k.Name); out.Code != 0 {
			t.Fatalf("keys generate %s: %+v", k.Name, out)
		}
	}
	w := spy.New(t, tok)
	watched := e2e.Config(t, emu.Endpoint, w.Token, keys, "")
	out := e2e.Run(t, watched, "import", "--all", "--json")
	if out.Code != 0 {
		t.Fatalf("import: %+v", out)
	}
	for _, r := range e2e.Lines[e2e.Result](t, out.Stdout) {
		if r.Result != "imported" || r.Proof == "unproved" {
			t.Errorf("%+v", r)
		}
	}
	calls := w.Calls(t)
	if n := calls.Count("C_WrapKey"); n < 4 { // the symmetric key twice, for its proof; the others once
		t.Errorf("C_WrapKey was called %d times", n)
	}
	if n := calls.Count("C_Login"); n != 1 {
		t.Errorf("C_Login was called %d times", n)
	}
	for _, name := range []string{"C_Logout", "C_SetAttributeValue", "C_UnwrapKey", "C_Decrypt", "C_SetPIN", "C_InitToken"} {
		if n := calls.Count(name); n != 0 {
			t.Errorf("%s was called %d times", name, n)
		}
	}
	if asked := calls.SecretAttributesAsked(); len(asked) != 0 {
		t.Errorf("secret attributes were asked for: %+v", asked)
	}
	if given := calls.SecretAttributesGiven(); len(given) != 0 {
		t.Errorf("key material was given to the token: %+v", given)
	}
	if left := calls.Leftovers(); len(left) != 0 {
		t.Errorf("objects were left behind: %+v", left)
	}
}
