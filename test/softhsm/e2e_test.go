package softhsm_test

import (
	"testing"

	"hsmbridge/hsm/wrapping"
	"hsmbridge/test/e2e"
	"hsmbridge/test/softhsm"
	"hsmbridge/test/token"
)

func freshToken(tb testing.TB, label string) token.Token {
	tb.Helper()
	return softhsm.New(tb, label).Token
}

// chosen is what SoftHSM 2.6.1 wraps, and how.
func chosen() map[wrapping.KeySpec]wrapping.Algorithm {
	return map[wrapping.KeySpec]wrapping.Algorithm{
		wrapping.SymmetricDefault: wrapping.OAEPSHA1,
		wrapping.HMAC224:          wrapping.OAEPSHA1,
		wrapping.HMAC256:          wrapping.OAEPSHA1,
		wrapping.HMAC384:          wrapping.OAEPSHA1,
		wrapping.HMAC512:          wrapping.OAEPSHA1,
		wrapping.ECCNISTP384:      wrapping.RSAAESSHA1,
		wrapping.ECCSECGP256K1:    wrapping.RSAAESSHA1,
	}
}

func TestMatrix(t *testing.T) {
	e2e.Matrix(t, freshToken, e2e.Expect{Chosen: chosen(), GCM: true})
}
