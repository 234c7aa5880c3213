package pin

import (
	"bytes"
	"strings"
	"testing"
	"testing/iotest"
)

// FuzzRead holds that a PIN is the first line, whole, whatever the pieces in which it comes, and that its text is never in an error.
func FuzzRead(f *testing.F) {
	for _, s := range []string{"1234\n", "1234", "1234\r\n5678\n", "\n1234", "\r\n", "", "a\rb\n", "\x00\n", strings.Repeat("9", maxBytes), strings.Repeat("9", maxBytes+1), "user:word\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := read(bytes.NewReader(b), "pin_file")
		slow, slowErr := read(iotest.OneByteReader(bytes.NewReader(b)), "pin_file")
		if !bytes.Equal(got, slow) || (err == nil) != (slowErr == nil) {
			t.Errorf("%q is read as %q (%v), and byte by byte as %q (%v)", b, got, err, slow, slowErr)
		}
		line, _, _ := strings.Cut(string(b), "\n")
		line = strings.TrimSuffix(line, "\r")
		if err != nil {
			const shown = 8 // a shorter one is in any sentence
			if len(line) >= shown && strings.Contains(err.Error(), line) {
				t.Errorf("%v", err)
			}
			if line != "" && len(b) <= maxBytes || got != nil {
				t.Errorf("%q is refused: %v", b, err)
			}
			return
		}
		if string(got) != line || len(got) == 0 || len(b) > maxBytes {
			t.Errorf("%q is read as %q", b, got)
		}
	})
}
