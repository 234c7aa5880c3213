package shim

import (
	"os"
	"path/filepath"
	"testing"
)

// While the first C_Initialize makes the file, and before it has written all of it, nothing is counted.
func TestCountersBegun(t *testing.T) {
	m := Module{counters: filepath.Join(t.TempDir(), "counters")}
	for _, text := range []string{"", "\x00\x00\x00", "C_Initialize             00000000000000000000\nC_Finalize\x00\x00"} {
		if err := os.WriteFile(m.counters, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if c := m.Counters(t); len(c.Calls) > 0 || c.OpenSessions != 0 {
			t.Errorf("%q: %+v", text, c)
		}
	}
}
