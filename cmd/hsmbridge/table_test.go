package main

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestWrapped(t *testing.T) {
	long := strings.Repeat("x", width+20)
	fill := strings.Repeat("x", width-len("  why  "))
	wide := strings.Repeat("ü", width-len("  why  "))
	for _, tt := range []struct {
		name, text string
		want       []string
	}{
		{"one line", "a short text", []string{"  why  a short text"}},
		{"nothing", "", []string{"  why  "}},
		{"blanks and breaks are laid out anew", " a \t b\n\nc ", []string{`  why  a \u0009 b c`}},
		{"just fits", fill, []string{"  why  " + fill}},
		{"just does not fit", fill[1:] + " y", []string{"  why  " + fill[1:], "       y"}},
		{"fits with its last word", fill[2:] + " y", []string{"  why  " + fill[2:] + " y"}},
		{"characters count, not bytes", wide[4:] + " ü", []string{"  why  " + wide[4:] + " ü"}},
		{"a word longer than the line stays whole", "a " + long + " b", []string{"  why  a", "       " + long, "       b"}},
		{"three lines", strings.Repeat("word ", 40), []string{
			"  why  " + words(18), "       " + words(18), "       " + words(4),
		}},
		{"no escape sequences", "a \x1b[2Jb", []string{`  why  a \u001b[2Jb`}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var b bytes.Buffer
			wrapped(&b, "  why  ", "       ", tt.text)
			if want := strings.Join(tt.want, "\n") + "\n"; b.String() != want {
				t.Errorf("got\n%swant\n%s", b.String(), want)
			}
			for line := range strings.Lines(b.String()) {
				if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > width && !strings.Contains(line, long) {
					t.Errorf("%d characters: %q", n, line)
				}
			}
		})
	}
}

func words(n int) string { return strings.TrimSpace(strings.Repeat("word ", n)) }

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"plain":         "plain",
		"ünïcode 鍵":     "ünïcode 鍵",
		"\x1b[2J":       `\u001b[2J`,
		"a\rb\tc":       `a\u000db\u0009c`,
		"\x00\x7f":      `\u0000\u007f`,
		"\u009b2J":      `\u009b2J`, // CSI as one character
		"\u202egnp":     `\u202egnp`,
		"\u2066a":       `\u2066a`,
		"a\u2028b":      `a\u2028b`,
		"two\nlines":    "two\nlines",
		"\u202emixed\n": `\u202emixed` + "\n",
	} {
		if got := printable(in); got != want {
			t.Errorf("printable(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestTable(t *testing.T) {
	var b bytes.Buffer
	table(&b, []string{"LABEL", "KIND"}, [][]string{{"payments", "AES"}, {"ü", "EC"}, {"a\tb\x1b", "RSA"}})
	want := "LABEL           KIND\n" +
		"payments        AES\n" +
		"ü               EC\n" +
		`a\u0009b\u001b  RSA` + "\n"
	if b.String() != want {
		t.Errorf("got\n%swant\n%s", b.String(), want)
	}
}

func TestWriteJSON(t *testing.T) {
	var b bytes.Buffer
	if err := writeJSON(&b, map[string]string{"text": "a <b> & \"c\"\nd"}); err != nil {
		t.Fatal(err)
	}
	if want := `{"text":"a <b> & \"c\"\nd"}` + "\n"; b.String() != want {
		t.Errorf("got %s, want %s", b.String(), want)
	}
}

// TestKeeper: what cannot be written, here to a full disk, is not forgotten when later writes succeed.
func TestKeeper(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close() //nolint:errcheck // nothing is in it
	k := &keeper{w: full}
	if _, err := k.Write([]byte("x")); err == nil {
		t.Fatal("/dev/full took a byte")
	}
	first := k.err
	k.w = &bytes.Buffer{}
	if n, err := k.Write([]byte("xyz")); n != 3 || err != nil {
		t.Errorf("%d bytes, %v", n, err)
	}
	if first == nil || !errors.Is(k.err, first) {
		t.Errorf("kept %v, want the first error %v", k.err, first)
	}
}
