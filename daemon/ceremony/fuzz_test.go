package ceremony_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"hsmbridge/daemon/ceremony"
)

// What is taken is written again to the byte.

func FuzzParseTokens(f *testing.F) {
	f.Add([]byte(mustText(f, tokens(f))))
	f.Fuzz(func(t *testing.T, text []byte) {
		x, err := ceremony.ParseTokens(text)
		if err == nil && mustText(t, x) != string(text) {
			t.Errorf("taken and not written again:\n%s", text)
		}
	})
}

func FuzzParseWrapped(f *testing.F) {
	w := wrapped(f)
	f.Add([]byte(mustText(f, w)))
	w.Keys, w.Public, w.MAC = w.Keys[:1], spki("pair", 2048), "ab"
	f.Add([]byte(mustText(f, w)))
	f.Fuzz(func(t *testing.T, text []byte) {
		x, err := ceremony.ParseWrapped(text)
		if err == nil && mustText(t, x) != string(text) {
			t.Errorf("taken and not written again:\n%s", text)
		}
	})
}

// FuzzLog holds that a log that is taken goes on: its records stay to the byte, and the next one makes it a whole log again.
func FuzzLog(f *testing.F) {
	l, name := aLog(f, f.TempDir())
	if err := l.Close(); err != nil {
		f.Fatal(err)
	}
	text, err := os.ReadFile(name)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add(text[:len(text)-10])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, text []byte) {
		name := filepath.Join(t.TempDir(), "log")
		if err := os.WriteFile(name, text, 0o600); err != nil {
			t.Fatal(err)
		}
		l, err := ceremony.OpenLog(name, id, "room", clock())
		if err != nil {
			return
		}
		defer l.Close() //nolint:errcheck // of a test
		if err := l.Add("ceremony-check", "payments", arn, "one more", step()); err != nil {
			t.Fatal(err)
		}
		after, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		whole := text[:bytes.LastIndexByte(text, '\n')+1]
		if !bytes.HasPrefix(after, whole) {
			t.Error("records that were there have changed")
		}
		if _, err := ceremony.Records(after); err != nil {
			t.Errorf("a log that was taken is not whole after a record more: %v", err)
		}
	})
}
