package tpm2_test

import (
	"flag"
	"testing"

	"hsmbridge/hsm/hsmtest"
	"hsmbridge/test/p11kit"
	"hsmbridge/test/token"
	"hsmbridge/test/tpm2"
)

var update = flag.Bool("update", false, "write the token's part of docs/matrix.md anew")

func freshToken(tb testing.TB, label string) token.Token {
	tb.Helper()
	return tpm2.New(tb, label).Token
}

// expect is what tpm2-pkcs11 1.9.0 was measured to do: nothing that leads to KMS.
func expect(part hsmtest.Part) hsmtest.Expect {
	part.Update = *update
	return hsmtest.Expect{
		Matrix:     part,
		CannotWrap: "the token cannot wrap keys: it lists no mechanism that wraps, and C_WrapKey answers CKR_FUNCTION_NOT_SUPPORTED (0x54)",
	}
}

func TestContract(t *testing.T) {
	hsmtest.Run(t, freshToken, expect(hsmtest.Part{Name: "TPM 2.0, tpm2-pkcs11", How: "The TPM is swtpm.", Packages: []string{"libtpm2-pkcs11-1", "swtpm"}}))
}

func TestServed(t *testing.T) {
	hsmtest.Run(t, func(tb testing.TB, label string) token.Token {
		tb.Helper()
		return p11kit.Serve(tb, freshToken(tb, label)).Token
	}, expect(hsmtest.Part{
		Name: "TPM 2.0, tpm2-pkcs11, served by p11-kit", How: "The TPM is swtpm. " + p11kit.HowServed,
		Packages: []string{"p11-kit", "p11-kit-modules", "libtpm2-pkcs11-1", "swtpm"},
	}))
}
