package nss_test

import (
	"testing"

	"hsmbridge/hsm/hsmtest"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/test/nss"
	"hsmbridge/test/token"
)

// TestContract holds what NSS softokn was measured to do: everything but secp256k1 and Ed25519, exactly, given one
// C_WrapKey call with an ample buffer.
func TestContract(t *testing.T) {
	fresh := func(tb testing.TB, label string) token.Token {
		tb.Helper()
		return nss.New(tb, label).Token
	}
	var generates []wrapping.KeySpec
	chosen := map[wrapping.KeySpec]wrapping.Algorithm{}
	for _, spec := range wrapping.KeySpecs() {
		if spec == wrapping.ECCSECGP256K1 || spec == wrapping.ECCEdwards25519 {
			continue
		}
		generates = append(generates, spec)
		chosen[spec] = wrapping.RSAAESSHA256
		if spec.MaterialBytes() > 0 {
			chosen[spec] = wrapping.OAEPSHA256
		}
	}
	hsmtest.Run(t, fresh, hsmtest.Expect{
		Chosen: chosen, Generates: generates,
		Reasons: map[wrapping.KeySpec]string{
			wrapping.ECCSECGP256K1: "CKR_DOMAIN_PARAMS_INVALID (0x130)", wrapping.ECCEdwards25519: "CKR_MECHANISM_INVALID (0x70)",
		},
	})
}
