package nss_test

import (
	"testing"

	"hsmbridge/hsm/wrapping"
	"hsmbridge/test/e2e"
	"hsmbridge/test/nss"
	"hsmbridge/test/token"
)

func freshToken(tb testing.TB, label string) token.Token {
	tb.Helper()
	return nss.New(tb, label).Token
}

// chosen is what NSS wraps: everything but secp256k1 and Ed25519, by AWS's first choice.
func chosen() map[wrapping.KeySpec]wrapping.Algorithm {
	out := map[wrapping.KeySpec]wrapping.Algorithm{}
	for _, spec := range wrapping.KeySpecs() {
		switch {
		case spec == wrapping.ECCSECGP256K1 || spec == wrapping.ECCEdwards25519:
		case spec.MaterialBytes() > 0:
			out[spec] = wrapping.OAEPSHA256
		default:
			out[spec] = wrapping.RSAAESSHA256
		}
	}
	return out
}

func TestMatrix(t *testing.T) {
	e2e.Matrix(t, freshToken, e2e.Expect{Chosen: chosen(), GCM: true})
}

func TestAWSCLI(t *testing.T) {
	e2e.AWSCLI(t, freshToken(t, "cli"), wrapping.KeyRSA2048, wrapping.ECCNISTP521)
}
