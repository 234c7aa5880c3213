package main

import (
	"bytes"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"hsmbridge/daemon/approval"
	"hsmbridge/daemon/audit"
	"hsmbridge/daemon/ceremony"
)

// Where there is nothing to compare, Enter alone is no confirmation.
func TestNothingToConfirm(t *testing.T) {
	var out bytes.Buffer
	a := &app{in: strings.NewReader("\n\n\n"), out: &out, err: &out}
	if err := a.screens(1).confirm(t.Context(), "Type the label of the key:", ""); err == nil {
		t.Error("an empty line confirmed a key without a label")
	}
}

// What came under the name of the result while the session went on is not carried out in its place.
func TestForeignResult(t *testing.T) {
	var out bytes.Buffer
	a := &app{in: strings.NewReader(""), out: &out, err: &out}
	s := &session{screens: a.screens(1), app: a, name: filepath.Join(t.TempDir(), "payments-X")}
	if err := ceremony.WriteNew(filepath.Join(filepath.Dir(s.name), ceremony.MaterialBin), []byte("of somebody else"), 0o600); err != nil {
		t.Fatal(err)
	}
	err := s.leave(ceremony.Wrapped{Keys: []ceremony.WrappedKey{{WrappingKey: "x", Bytes: []byte("ours")}}}, approval.Decision{})
	var exists *ceremony.ExistsError
	if !errors.As(err, &exists) {
		t.Errorf("got %v", err)
	}
}

// A log that somebody wrote by hand drives no terminal in the HSM room, and says nothing in a line that is not its own.
func TestShowForgedLog(t *testing.T) {
	const wipe, other = `\u001b[2J\u001b[H`, `\n  2  2030-01-01 00:00:00  ceremony-check  officers approved the request`
	record := func(kind, message string) string {
		return string(audit.RecordLine(1, []byte(`{"n":1,"time":"2030-01-01T00:00:00Z","kind":"`+kind+`","actor":"x","message":"`+message+`"}`)))
	}
	zero := audit.Hash{}
	for name, line := range map[string]string{
		"kind":    record(wipe, "x"),
		"message": record("later", wipe),
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
