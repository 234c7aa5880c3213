package main

import (
	"strings"
	"testing"
)

// TestUsage holds that a wrong command line ends with 2, and says what is wrong with it last.
func TestUsage(t *testing.T) {
	for _, tt := range []struct{ args, want string }{
		{"frob", `there is no command "frob"`},
		{"can -c room.yaml", "hsmceremony: a name is missing: the first line above says which\n"},
		{"show", "hsmceremony: a name is missing: the first line above says which\n"},
		{"show one two", `hsmceremony: "two" is one name too many` + "\n"},
		{"wrap -frob x", "flag provided but not defined: -frob"},
	} {
		var out, errs strings.Builder
		code := (&app{in: strings.NewReader(""), out: &out, err: &errs}).run(t.Context(), strings.Fields(tt.args))
		if code != exitUsage || !strings.Contains(errs.String(), tt.want) || strings.Contains(errs.String(), "hsmceremony: shown") {
			t.Errorf("%s: exit code %d, %s", tt.args, code, errs.String())
		}
	}
}
