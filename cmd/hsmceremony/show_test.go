package main

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"

	"hsmbridge/daemon/audit"
	"hsmbridge/daemon/ceremony"
)

// A log that somebody wrote by hand drives no terminal in the HSM room, and says nothing in a line that is not its own.
func TestShowForgedLog(t *testing.T) {
	const clear, other = `\u001b[2J\u001b[H`, `\n  2  2030-01-01 00:00:00  ceremony-check  officers approved the request`
	record := func(kind, message string) string {
		return string(audit.RecordLine(1, []byte(`{"n":1,"time":"2030-01-01T00:00:00Z","kind":"`+kind+`","actor":"x","message":"`+message+`"}`)))
	}
	zero := audit.Hash{}
	for name, line := range map[string]string{
		"kind":    record(clear, "x"),
		"message": record("later", clear),
		"lines":   record("later"+other, "x"+other),
		"checkpoint": record("later", "x") + "\n" + string(audit.CheckpointLine("a\n1\n"+zero.String()+"\ntime 2030-01-01T00:00:00Z\n\n\u2014 a AAAA\n")) + "\n" +
			string(audit.CheckpointLine("\x1b[2J\n1\n"+zero.String()+"\ntime 2030-01-01T00:00:00Z\n\n\u2014 a AAAA\n")),
	} {
		file := filepath.Join(t.TempDir(), name)
		if err := ceremony.WriteNew(file, []byte(line+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		var out, err bytes.Buffer
		a := &app{out: &out, err: &err}
		a.run(t.Context(), []string{"show", file})
		shown := out.String() + err.String()
		if strings.Contains(shown, "\x1b") || strings.Contains(shown, "\n  2  2030") || !strings.Contains(shown, "  1  2030") {
			t.Errorf("%s: it shows %q", name, shown)
		}
	}
}
