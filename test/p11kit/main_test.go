package p11kit_test

import (
	"testing"

	"hsmbridge/test/p11kit"
)

func TestMain(m *testing.M) { p11kit.Main(m) }
