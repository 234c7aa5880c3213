package opencryptoki_test

import (
	"testing"

	"hsmbridge/hsm/hsmtest"
	"hsmbridge/hsm/wrapping"
)

// TestContract holds what openCryptoki 3.8.1's soft token was measured to do: OAEP with both hashes, and no private keys.
func TestContract(t *testing.T) {
	hsmtest.Run(t, freshToken, hsmtest.Expect{
		Chosen: chosen(), NoWrapWithTrusted: true, NoTrust: "CKR_TEMPLATE_INCONSISTENT", NoMAC: []wrapping.KeySpec{wrapping.HMAC224},
		Generates: []wrapping.KeySpec{
			wrapping.SymmetricDefault, wrapping.HMAC224, wrapping.HMAC256, wrapping.HMAC384, wrapping.HMAC512,
			wrapping.KeyRSA2048, wrapping.KeyRSA3072, wrapping.KeyRSA4096,
		},
	})
}
