package tpm2_test

import (
	"testing"

	"hsmbridge/hsm/hsmtest"
	"hsmbridge/test/token"
	"hsmbridge/test/tpm2"
)

func freshToken(tb testing.TB, label string) token.Token {
	tb.Helper()
	return tpm2.New(tb, label).Token
}

// TestContract holds what tpm2-pkcs11 1.9.0 was measured to do: nothing that leads to KMS.
func TestContract(t *testing.T) {
	hsmtest.Run(t, freshToken, hsmtest.Expect{
		CannotWrap: "the token cannot wrap keys: it lists no mechanism that wraps, and C_WrapKey answers CKR_FUNCTION_NOT_SUPPORTED (0x54)",
	})
}
