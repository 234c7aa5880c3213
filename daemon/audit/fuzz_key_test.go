package audit_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"hsmbridge/daemon/audit"
)

// FuzzKey holds that a public key that is taken from a file is written as a file that gives the same key and the same name, in one form.
func FuzzKey(f *testing.F) {
	pem, err := os.ReadFile(filepath.Join("testdata", "ec.pem"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(pem, "")
	f.Add(pem, "another log")
	f.Add(append([]byte("# hsmbridge audit log: a\n# hsmbridge audit log: b\n"), pem...), "")
	f.Add(bytes.ReplaceAll(pem, []byte("\n"), []byte("\r\n")), "")
	f.Add([]byte("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"), "x")
	f.Fuzz(func(t *testing.T, text []byte, origin string) {
		k, err := audit.ParseKey(text, origin)
		if err != nil {
			return
		}
		if origin != "" && k.Name() != origin || k.Name() == "" {
			t.Errorf("%q is of the log %q, and %q was asked for", text, k.Name(), origin)
		}
		again, err := audit.ParseKey(k.PEM(), "")
		if err != nil {
			t.Fatalf("%q is written as %q: %v", text, k.PEM(), err)
		}
		if again.Name() != k.Name() || again.SHA256() != k.SHA256() || !bytes.Equal(again.PEM(), k.PEM()) {
			t.Errorf("%q is written as %q and then as %q", text, k.PEM(), again.PEM())
		}
	})
}
