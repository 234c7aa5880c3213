package softhsm_test

import (
	"testing"

	"hsmbridge/hsm/wrapping"
	"hsmbridge/test/e2e"
	"hsmbridge/test/softhsm"
)

func TestAWSCLI(t *testing.T) {
	e2e.AWSCLI(t, softhsm.New(t, "cli").Token, wrapping.SymmetricDefault, wrapping.HMAC256, wrapping.ECCNISTP384)
}
