package nss_test

import (
	"flag"
	"testing"

	"hsmbridge/hsm/hsmtest"
	"hsmbridge/hsm/wrapping"
)

var update = flag.Bool("update", false, "write the token's part of docs/matrix.md anew")

// TestContract holds what NSS softokn was measured to do: everything but secp256k1 and Ed25519, exactly, given one
// C_WrapKey call with an ample buffer.
func TestContract(t *testing.T) {
	var generates []wrapping.KeySpec
	for spec := range chosen() {
		generates = append(generates, spec)
	}
	hsmtest.Run(t, freshToken, hsmtest.Expect{
		Matrix:  hsmtest.Part{Name: "NSS softokn", Packages: []string{"libnss3"}, Update: *update},
		NoTrust: "CKR_USER_TYPE_INVALID",
		Chosen:  chosen(), Generates: generates,
		Reasons: map[wrapping.KeySpec]string{
			wrapping.ECCSECGP256K1: "CKR_DOMAIN_PARAMS_INVALID (0x130)", wrapping.ECCEdwards25519: "CKR_MECHANISM_INVALID (0x70)",
		},
	})
}
