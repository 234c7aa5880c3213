package softhsm_test

import (
	"errors"
	"flag"
	"strings"
	"testing"

	"hsmbridge/hsm"
	"hsmbridge/hsm/hsmtest"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/test/softhsm"
)

var update = flag.Bool("update", false, "write the token's part of docs/matrix.md anew")

// TestContract holds what SoftHSM 2.6.1 was measured to do: OAEP with SHA-1 only, and an AES key wrap that appends zero
// bytes, so that of the private keys only those of P-384 and secp256k1 come out exactly.
func TestContract(t *testing.T) {
	const padded = "zero bytes that are not part of it follow the key"
	hsmtest.Run(t, freshToken, hsmtest.Expect{
		Matrix: hsmtest.Part{Name: "SoftHSM", Packages: []string{"libsofthsm2"}, Update: *update},
		Chosen: chosen(),
		Reasons: map[wrapping.KeySpec]string{
			wrapping.KeyRSA2048: padded, wrapping.KeyRSA3072: padded, wrapping.KeyRSA4096: padded,
			wrapping.ECCNISTP256: padded, wrapping.ECCNISTP521: padded, wrapping.ECCEdwards25519: "CKR_KEY_NOT_WRAPPABLE (0x69)",
		},
		Generates: wrapping.KeySpecs(),
	})
}

// TestTwoTokensMatch holds that an ambiguous URI opens nothing.
func TestTwoTokensMatch(t *testing.T) {
	tok := softhsm.New(t, "twin-a", "twin-b")
	c := hsmtest.Config(t, tok.Token)
	c.URI = hsmtest.URI(t, "pkcs11:manufacturer=SoftHSM%20project")
	if _, err := hsm.Open(t.Context(), c, hsmtest.PIN(tok.PIN)); err == nil || !isAmbiguous(err) {
		t.Errorf("Open: %v", err)
	}
}

func isAmbiguous(err error) bool {
	return errors.Is(err, hsm.ErrAmbiguousToken) && strings.Contains(err.Error(), "twin-a") && strings.Contains(err.Error(), "twin-b")
}
