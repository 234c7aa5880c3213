package main

import (
	"strings"
	"testing"
)

// TestUsage holds that a wrong command line ends with 2, and says what is wrong with it and where its help is.
func TestUsage(t *testing.T) {
	for _, tt := range []struct{ args, want, see string }{
		{"frob", `there is no command "frob"`, ""},
		{"can -c room.yaml", "a name is missing: hsmceremony can [flags] KEY", " can"},
		{"show", "a name is missing: hsmceremony show [flags] FILE", " show"},
		{"show one two", `"two" is one name too many: hsmceremony show [flags] FILE`, " show"},
		{"wrap -frob x", "there is no flag --frob", " wrap"},
		{"wrap --frob=1 x", "there is no flag --frob", " wrap"},
		{"wrap -x", "there is no flag -x", " wrap"},
		{"wrap ---x", `"---x" is no flag`, " wrap"},
		{"wrap x -c", "-c needs a value", " wrap"},
		{"request x --from", "--from needs a value", " request"},
		{"wrap --dry-run=perhaps x", `--dry-run is true or false, and not "perhaps"`, " wrap"},
		{"wrap x", "-c is missing: the room's configuration, with the token, the key and its officers", " wrap"},
		{"request", "a name is missing: hsmceremony request [flags] KEY [DESTINATION]", " request"},
		{"version extra", `"extra" is one name too many: hsmceremony version [flags]`, " version"},
	} {
		var out, errs strings.Builder
		code := (&app{in: strings.NewReader(""), out: &out, err: &errs}).run(t.Context(), strings.Fields(tt.args))
		if want := "hsmceremony: " + tt.want + "\nsee: hsmceremony" + tt.see + " --help\n"; code != exitUsage || errs.String() != want || out.String() != "" {
			t.Errorf("%s: exit code %d, %s%s", tt.args, code, errs.String(), out.String())
		}
	}
}

// TestHelp holds that the help that a wrong command line names is there.
func TestHelp(t *testing.T) {
	for args, want := range map[string]string{
		"--help": "hsmceremony wrap ", "help": "hsmceremony wrap ", "wrap --help": "-dry-run", "can -h": "-c file", "request --help": "-valid-to", "show --help": "show [flags] FILE", "version --help": "Print the version.",
	} {
		var out, errs strings.Builder
		code := (&app{in: strings.NewReader(""), out: &out, err: &errs}).run(t.Context(), strings.Fields(args))
		if code != exitDone || !strings.Contains(out.String(), want) || errs.String() != "" {
			t.Errorf("%s: exit code %d, %s%s", args, code, out.String(), errs.String())
		}
	}
}

// TestYes holds that only yes is yes and only no is no; a slip is asked again, and the end of the input stops the session.
func TestYes(t *testing.T) {
	const question = "Are the same people here?"
	for _, tt := range []struct {
		typed string
		want  bool
		stop  string // empty: an answer
		asked int
	}{
		{"yes\n", true, "", 1},
		{" Y \n", true, "", 1},
		{"no\n", false, "", 1},
		{"N\n", false, "", 1},
		{"yse\nyes\n", true, "", 2},
		{"\nnope\nno\n", false, "", 3},
		{"maybe\nstop\nyes\n", false, `"stop" is not "yes or no", so the ceremony stops here`, 2},
		{"a\nb\nc\nyes\n", false, `"c" is not "yes or no", so the ceremony stops here`, 3},
		{"", false, "nobody answers", 1},
		{"yse\n", false, "nobody answers", 2},
	} {
		var out strings.Builder
		got, err := (&app{in: strings.NewReader(tt.typed), out: &out}).screens(1).yes(t.Context(), question)
		if got != tt.want || (err == nil) != (tt.stop == "") || err != nil && !strings.Contains(err.Error(), tt.stop) {
			t.Errorf("%q: %v, %v", tt.typed, got, err)
		}
		if n := strings.Count(out.String(), question); n != tt.asked {
			t.Errorf("%q: asked %d times, want %d:\n%s", tt.typed, n, tt.asked, out.String())
		}
	}
}
