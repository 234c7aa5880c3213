package runner

import (
	"bytes"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write the table of retries in docs/operations.md")

const (
	manual     = "../../docs/operations.md"
	tableBegin = "<!-- begin: written by go test ./daemon/runner -run Docs -update -->\n"
	tableEnd   = "<!-- end -->\n"
)

// TestDocs holds the table in docs/operations.md to [rules].
func TestDocs(t *testing.T) {
	text, err := os.ReadFile(manual)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := bytes.Cut(text, []byte(tableBegin))
	_, after, ok2 := bytes.Cut(rest, []byte(tableEnd))
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the table: %s ... %s", manual, tableBegin, tableEnd)
	}
	want := bytes.Join([][]byte{before, []byte(tableBegin), []byte(retries(t)), []byte(tableEnd), after}, nil)
	switch {
	case bytes.Equal(want, text):
	case !*update:
		t.Fatalf("%s does not say what retry.go says: run go test ./daemon/runner -run Docs -update", manual)
	default:
		if err := os.WriteFile(manual, want, 0o600); err != nil { //nolint:gosec // a constant name
			t.Fatal(err)
		}
	}
}

// happened says in words what the rows are for, by their first code, or by their class where they have none. Of a row that is not here the comment behind it is shown.
func happened() map[string]string {
	return map[string]string{ //nolint:gosec // words for codes, no credentials
		"CKR_PIN_INCORRECT":             "the token refuses the PIN",
		codePIN:                         "hsmbridge does not give the PIN: few tries are left; or the process ended, or its answer was lost, before it was written down whether the PIN was right",
		CodeParked:                      "the token is parked",
		CodeResting:                     "the token is left alone for a while",
		CodeNotReached:                  "no living daemon reaches the token",
		codeOtherReplica:                "the token holds another key under the name than the other tokens of the key",
		codeNotHere:                     "the token lacks the key or a generation of it, and other tokens have it",
		codePINSource:                   "the PIN cannot be read (file, command, credential); no login was tried",
		codeModuleDies:                  "the module's process ended three times in 10 minutes",
		codeOverdue:                     "a call to the module is past its deadline, the module crashes, or it answers what it must not; its process was replaced",
		"CKR_CRYPTOKI_NOT_INITIALIZED":  "the module's state in its process is broken",
		"CKR_HOST_MEMORY":               "sessions or memory run out",
		"CKR_GENERAL_ERROR":             "the token says only that something failed",
		"library":                       "any other fault of the module",
		"token":                         "the token is away, restarts, cannot be reached, or reports any other error of its own",
		"session":                       "any other error of a session or its operation",
		CodeApproval:                    "officers have to approve it, and were asked; enough signatures let it begin at once",
		codeRequestClosed:               "the request for approval was closed in this moment; officers are asked anew",
		codeRejected:                    "an officer rejected it",
		codeChanged:                     "the configuration of the key has changed since the job began",
		"ExpiredImportTokenException":   "import parameters have expired; new ones are fetched",
		"InvalidImportTokenException":   "KMS refuses the import token",
		"IncorrectKeyMaterialException": "KMS says that the material or its wrapping is wrong, or the proof fails",
		codeNoBackup:                    "no copy in the backup token",
		CodeNoReplica:                   "new material is not in all replicas; a copy that is seen lets it begin at once",
		CodeClock:                       "the clock is more than 5 minutes off; nothing is decided by it",
		codePrimaryFirst:                "the primary of a multi-Region key has not got the material yet",
		codeRotating:                    "KMS was asked to rotate, and does not show it yet",
		"LimitExceededException":        "KMS refuses the request as such: wrong spec, limit reached",
		"NotFoundException":             "the KMS key is not found",
		"KMSInvalidStateException":      "the KMS key is in a state that allows no import",
		"DisabledException":             "the KMS key is disabled, or cannot be used at the moment",
		"AccessDeniedException":         "access is denied",
		"NoCredentials":                 "credentials are missing or have expired",
		"UnrecognizedClientException":   "the credentials are not known, or the signature is wrong",
		"ThrottlingException":           "throttled, or held back by the daemon itself",
		"TLSFailure":                    "what answers is not KMS, or TLS fails",
		"kms":                           "KMS cannot be reached, or answers 5xx",
		"database":                      "the database is away or full",
		"caller":                        "any other refusal, of KMS or by hsmbridge itself",
		"":                              "anything else",
	}
}

// retries is the table.
func retries(t *testing.T) string {
	t.Helper()
	words, comments := happened(), rowComments(t)
	var b strings.Builder
	b.WriteString("| what | codes | then |\n|---|---|---|\n")
	for i, r := range rules() {
		codes := strings.Fields(r.codes)
		name := r.class
		shown := "others of class `" + r.class + "`"
		switch {
		case len(codes) > 0:
			name, shown = codes[0], "`"+strings.Join(codes, "` `")+"`"
		case r.class == "":
			shown = "all others"
		}
		what, ok := words[name]
		if !ok {
			what = comments[i]
		}
		delete(words, name)
		fmt.Fprintf(&b, "| %s | %s | %s |\n", what, shown, then(r))
	}
	for name := range words {
		t.Errorf("there is no row %q any more", name)
	}
	return b.String()
}

// then says what a row does.
func then(r rule) string {
	wait := span(r.first)
	if r.most != r.first {
		wait += " up to " + span(r.most)
	}
	var out string
	switch r.do {
	case park:
		return "the token is parked until `hsmbridge resume --token`, also after a restart; a person"
	case stop:
		return "never again by itself; a person"
	case rest:
		out = "the token is closed, left alone for " + wait + ", then opened anew"
	case replace:
		out = "the module's process is replaced; again after " + wait
	case again:
		out = "again after " + wait
	}
	if r.tries > 0 {
		return fmt.Sprintf("%s, %d times, then a person", out, r.tries)
	}
	if r.person {
		out += "; a person"
	}
	return out
}

func span(d time.Duration) string {
	for _, unit := range []struct {
		of   time.Duration
		name string
	}{{time.Hour, "h"}, {time.Minute, "min"}} {
		if d >= unit.of && d%unit.of == 0 {
			return fmt.Sprintf("%d %s", d/unit.of, unit.name)
		}
	}
	return fmt.Sprintf("%d s", d/time.Second)
}

// rowComments are the comments behind the rows of [rules] in retry.go, by row.
func rowComments(t *testing.T) []string {
	t.Helper()
	files := token.NewFileSet()
	parsed, err := parser.ParseFile(files, "retry.go", nil, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	behind := map[int]string{}
	for _, group := range parsed.Comments {
		behind[files.Position(group.Pos()).Line] = strings.TrimSpace(strings.TrimPrefix(group.List[0].Text, "//"))
	}
	var out []string
	for _, d := range parsed.Decls {
		f, ok := d.(*ast.FuncDecl)
		if !ok || f.Name.Name != "rules" {
			continue
		}
		ast.Inspect(f, func(n ast.Node) bool {
			list, ok := n.(*ast.CompositeLit)
			if !ok {
				return true
			}
			if _, ok := list.Type.(*ast.ArrayType); !ok {
				return true
			}
			for _, row := range list.Elts {
				out = append(out, behind[files.Position(row.End()).Line])
			}
			return false
		})
	}
	if len(out) != len(rules()) {
		t.Fatalf("retry.go has %d rows, rules %d", len(out), len(rules()))
	}
	return out
}
