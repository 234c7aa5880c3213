package tpm2_test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hsmbridge/test/token"
	"hsmbridge/test/tpm2"
)

func TestTwoTPMsDoNotMeet(t *testing.T) {
	one, two := tpm2.New(t), tpm2.New(t, "other")
	one.Tool(t, "--keypairgen", "--key-type", "EC:prime256v1", "--label", "in-one", "--id", "01")
	if got := one.Tool(t, "--list-objects"); !strings.Contains(got, "in-one") {
		t.Errorf("the first does not list its key:\n%s", got)
	}
	if got := two.Tool(t, "--list-objects"); strings.Contains(got, "in-one") {
		t.Errorf("the second lists the first's key:\n%s", got)
	}
}

func TestNothingIsLeft(t *testing.T) {
	var dir, socket string
	before := token.Files(t, "/dev/shm")
	t.Run("use", func(t *testing.T) {
		tok := tpm2.New(t)
		tok.PINFile(t)
		dir, socket = tok.Dir, strings.TrimPrefix(tok.Environment["TPM2_PKCS11_TCTI"], "swtpm:path=")
	})
	if left := token.Files(t, dir, filepath.Dir(socket)); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if diff := cmp.Diff(before, token.Files(t, "/dev/shm")); diff != "" {
		t.Errorf("files of the machine changed (-before +after):\n%s", diff)
	}
}
