package main

import (
	"context"
	"strings"
	"testing"
)

// TestTyped holds what is taken for what: names to the letter, words and hexadecimal in any case. no and stop end each question, also one that only waits
// for Enter.
func TestTyped(t *testing.T) {
	exactly := func(s *screens) error { return s.exactly(context.Background(), "Type it:", "mac") }
	confirm := func(s *screens) error { return s.confirm(context.Background(), "Type it:", "1a2b") }
	next := func(s *screens) error { return s.next(context.Background()) }
	paged := func(s *screens) error {
		s.terminal, s.height, s.lines = true, 8, make([]string, 5)
		return s.show(context.Background())
	}
	for _, tt := range []struct {
		typed string
		ask   func(*screens) error
		stop  string // empty: it goes on
		says  string
	}{
		{"mac\n", exactly, "", ""},
		{" mac \n", exactly, "", ""},
		{"MAC\nmac\n", exactly, "", `"MAC" is not "mac". Small and capital letters are different ones here. Look again; type stop to end here.`},
		{"Mac\nMAC\nmAC\nmac\n", exactly, `"mAC" is not "mac", so the ceremony stops here`, ""},
		{"mac2\nmac\n", exactly, "", `"mac2" is not "mac". Look again; type stop to end here.`},
		{"STOP\nmac\n", exactly, `"STOP" is not "mac", so the ceremony stops here`, ""},
		{"1A2B\n", confirm, "", ""},
		{"\n", next, "", ""},
		{"what\n", next, "", ""},
		{"Stop\n", next, `"Stop" is not "Enter", so the ceremony stops here`, ""},
		{"\n\n", paged, "", ""},
		{"no\n", paged, `"no" is not "Enter", so the ceremony stops here`, ""},
	} {
		var out strings.Builder
		err := tt.ask((&app{in: strings.NewReader(tt.typed), out: &out}).screens(1))
		if (err == nil) != (tt.stop == "") || err != nil && err.Error() != tt.stop {
			t.Errorf("%q: %v", tt.typed, err)
		}
		if !strings.Contains(strings.Join(strings.Fields(out.String()), " "), tt.says) {
			t.Errorf("%q: it says %q", tt.typed, out.String())
		}
	}
}
