package opencryptoki_test

import (
	"strings"
	"testing"

	"hsmbridge/hsm/wrapping"
	"hsmbridge/test/e2e"
	"hsmbridge/test/opencryptoki"
	"hsmbridge/test/token"
)

func freshToken(tb testing.TB, label string) token.Token {
	tb.Helper()
	return opencryptoki.New(tb, label).Token
}

// chosen is what openCryptoki's soft token wraps: secrets only.
func chosen() map[wrapping.KeySpec]wrapping.Algorithm {
	out := map[wrapping.KeySpec]wrapping.Algorithm{}
	for _, spec := range wrapping.KeySpecs() {
		if spec.MaterialBytes() > 0 {
			out[spec] = wrapping.OAEPSHA256
		}
	}
	return out
}

func TestMatrix(t *testing.T) {
	e2e.Matrix(t, freshToken, e2e.Expect{Chosen: chosen(), Unproved: []wrapping.KeySpec{wrapping.HMAC224}})
}

func TestAWSCLI(t *testing.T) {
	e2e.AWSCLI(t, freshToken(t, "cli"), wrapping.SymmetricDefault, wrapping.HMAC512)
}

// TestLockedToken holds that a wrong PIN is given once, that the last try is left to a person, and that a locked
// token is not asked at all.
func TestLockedToken(t *testing.T) {
	tok := freshToken(t, "locked")
	right := tok.PIN
	tok.PIN = "00000000"
	wrong := e2e.Config(t, "", tok, nil, "")
	for i, want := range []string{"CKR_PIN_INCORRECT", "CKR_PIN_INCORRECT", "CKF_USER_PIN_FINAL_TRY"} {
		out := e2e.Run(t, wrong, "keys", "list")
		if out.Code != 5 || !strings.Contains(out.Stderr, want) {
			t.Errorf("wrong PIN, run %d: %+v, want %s", i+1, out, want)
		}
		if strings.Contains(out.Stderr+out.Stdout, tok.PIN) || strings.Contains(out.Stderr+out.Stdout, right) {
			t.Error("a PIN was printed")
		}
	}
	// The third try was not used up: the right PIN, given by hand, still logs in.
	tok.PIN = right
	tok.Tool(t, "--list-objects")
	if out := e2e.Run(t, e2e.Config(t, "", tok, nil, ""), "keys", "list"); out.Code != 0 {
		t.Errorf("the right PIN: %+v", out)
	}
	// Now it is locked by hand: it is not asked at all.
	for range 3 {
		tok.ToolFails(t, "00000000", "--list-objects")
	}
	if out := e2e.Run(t, e2e.Config(t, "", tok, nil, ""), "keys", "list"); out.Code != 5 || !strings.Contains(out.Stderr, "CKF_USER_PIN_LOCKED") {
		t.Errorf("locked: %+v", out)
	}
}
