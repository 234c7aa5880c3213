package opencryptoki_test

import (
	"flag"
	"testing"

	"hsmbridge/hsm/hsmtest"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/test/p11kit"
	"hsmbridge/test/token"
)

var update = flag.Bool("update", false, "write the token's part of docs/matrix.md anew")

// expect is what openCryptoki 3.8.1's soft token was measured to do: OAEP with both hashes, and no private keys.
func expect(part hsmtest.Part) hsmtest.Expect {
	part.Update = *update
	return hsmtest.Expect{
		Matrix: part,
		Chosen: chosen(), NoWrapWithTrusted: true, NoTrust: "CKR_TEMPLATE_INCONSISTENT", NoMAC: []wrapping.KeySpec{wrapping.HMAC224},
		Generates: []wrapping.KeySpec{
			wrapping.SymmetricDefault, wrapping.HMAC224, wrapping.HMAC256, wrapping.HMAC384, wrapping.HMAC512,
			wrapping.KeyRSA2048, wrapping.KeyRSA3072, wrapping.KeyRSA4096,
		},
	}
}

func TestContract(t *testing.T) {
	hsmtest.Run(t, freshToken, expect(hsmtest.Part{Name: "openCryptoki, soft token", Packages: []string{"opencryptoki"}}))
}

func TestServed(t *testing.T) {
	hsmtest.Run(t, func(tb testing.TB, label string) token.Token {
		tb.Helper()
		return p11kit.Serve(tb, freshToken(tb, label)).Token
	}, expect(hsmtest.Part{
		Name: "openCryptoki, soft token, served by p11-kit", How: p11kit.HowServed, Packages: []string{"p11-kit", "p11-kit-modules", "opencryptoki"},
	}))
}
