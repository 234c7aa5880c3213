package ceremony_test

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hsmbridge/daemon/ceremony"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/test/e2e"
)

var update = flag.Bool("update", false, "write the screens in docs/ceremony.md anew")

const document = "../../docs/ceremony.md"

// TestDocument holds that the screens in docs/ceremony.md are those that a ceremony shows, but for names, times and fingerprints.
func TestDocument(t *testing.T) {
	emu := e2e.StartEmulator(t)
	kmsKey := emu.CreateKey(emu.Client(), wrapping.SymmetricDefault)
	w := newWorld(t, ", endpoint: "+emu.Endpoint, "approval: {allowed_signers: officers, threshold: 2, valid_for: 1d}\n", kmsKey)
	w.tok.Generate(t, "payments", "01")
	var officers strings.Builder
	for _, name := range []string{"alice", "bob", "carol"} {
		run(t, w.dir, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", name)
		fields := strings.Fields(string(w.read(filepath.Join(w.dir, name+".pub"))))
		fmt.Fprintf(&officers, "%s %s %s\n", name, fields[0], fields[1])
	}
	w.write("officers", []byte(officers.String()))
	if sample := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindSubmatch(w.read(document)); sample == nil {
		t.Error("the document has no configuration for the room")
	} else {
		w.write("sample.yaml", sample[1])
		if out, code := w.run("hsmbridge", "-c", filepath.Join(w.dir, "sample.yaml"), "config", "check"); code != 0 {
			t.Errorf("the room's configuration in the document: exit code %d\n%s", code, out)
		}
	}
	screens := map[string]string{}
	keep := func(name string, code int, command string, args ...string) string {
		out, got := w.run(command, args...)
		if got != code {
			t.Fatalf("%s %v: exit code %d\n%s", command, args, got, out)
		}
		screens[name] = out
		return out
	}
	keep("can", 0, "hsmceremony", "can", "-c", w.config, "payments")
	keep("fetch", 0, "hsmbridge", "-c", w.config, "ceremony", "fetch", "payments", "--algorithm", "RSAES_OAEP_SHA_1", "--why", "first import, ticket 4711")
	requests, err := filepath.Glob(filepath.Join(w.dir, "*"+ceremony.RequestExt))
	if err != nil || len(requests) != 1 {
		t.Fatalf("%v, %v", requests, err)
	}
	request := filepath.Base(requests[0])
	for _, name := range []string{"alice", "bob"} {
		run(t, w.dir, "cp", request, name+".request")
		run(t, w.dir, "ssh-keygen", "-q", "-Y", "sign", "-f", name, "-n", "hsmbridge-approval", name+".request")
		run(t, w.dir, "mv", name+".request.sig", request+"."+name+".sig")
		if name == "alice" {
			out := w.all(4, requests[0])
			screens["too few"] = out[strings.LastIndex(out, "\nStep"):]
		}
	}
	run(t, w.dir, "rm", strings.TrimSuffix(request, ceremony.RequestExt)+ceremony.LogExt)
	k := w.start(func(*exec.Cmd) {}, "wrap", "-c", w.config, request)
	k.until(w.questions(requests[0]), "")
	if code := k.code(); code != 0 {
		t.Fatalf("exit code %d\n%s", code, k.shown())
	}
	for i, s := range strings.Split(k.shown(), "\nStep ")[1:] {
		screens[fmt.Sprintf("step %d", i+1)] = "Step " + s
	}
	keep("upload", 0, "hsmbridge", "-c", w.config, "ceremony", "upload", strings.TrimSuffix(request, ceremony.RequestExt)+ceremony.WrappedExt)

	text, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	place := regexp.MustCompile("(?s)<!-- screen: ([^>]*) -->\n```text\n(.*?)```\n")
	seen := map[string]bool{}
	got := place.ReplaceAllStringFunc(string(text), func(block string) string {
		name := place.FindStringSubmatch(block)[1]
		seen[name] = true
		shown, ok := screens[name]
		if !ok {
			t.Errorf("docs/ceremony.md has a screen %q, which nothing shows", name)
		}
		return fmt.Sprintf("<!-- screen: %s -->\n```text\n%s\n```\n", name, strings.Trim(normal(w, shown), "\n"))
	})
	for name := range screens {
		if !seen[name] {
			t.Errorf("docs/ceremony.md does not show the screen %q", name)
		}
	}
	if *update {
		if err := os.WriteFile(document, []byte(got), 0o644); err != nil { //nolint:gosec // a document
			t.Fatal(err)
		}
	} else if d := cmp.Diff(string(text), got); d != "" {
		t.Errorf("docs/ceremony.md shows something else (go test ./test/ceremony -run TestDocument -update writes it anew):\n%s", d)
	}
}

// normal replaces what is different in every run.
func normal(w *world, s string) string {
	s = strings.NewReplacer(w.dir+"/", "", w.dir, "/media/stick", w.tok.Serial, "95b8b6c5f401211b", w.tok.Serial[len(w.tok.Serial)-4:], "211b").Replace(s)
	for _, r := range []struct{ what, with string }{
		{`[0-9A-HJKMNP-TV-Z]{4}(-[0-9A-HJKMNP-TV-Z]{4}){3}`, "7K3M-9QXA-0B2C-D4EF"},
		{`[0-9a-f]{64}`, strings.Repeat("0123456789abcdef", 4)},
		{`\b[0-9a-f]{32}\b`, strings.Repeat("0123456789abcdef", 2)},
		{`\b[0-9a-f]{16}( +(material-id-match|unproved))`, "0123456789abcdef$1"},
		{`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`, "1234abcd-12ab-34cd-56ef-1234567890ab"},
		{`SHA256:[0-9A-Za-z+/]{43}`, "SHA256:" + strings.Repeat("Xy5v", 10) + "Xy5"},
		{`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ`, "2030-01-31T12:00:00Z"},
		{`\d{4}-\d\d-\d\d \d\d:\d\d:\d\d`, "2030-01-31 12:00:00"},
		{`\d{4}-\d\d-\d\d \d\d:\d\d UTC`, "2030-02-01 11:59 UTC"},
		{`\b\d\d? h \d\d min`, "23 h 59 min"},
		{`check value [0-9a-f]{6}`, "check value 1a2b3c"},
		{`http://127\.0\.0\.1:\d+`, "http://127.0.0.1:4599"},
		{`(asked by: +|asked by +)\S+`, "${1}operator"},
		{`( +\n)`, "\n"},
	} {
		s = regexp.MustCompile(r.what).ReplaceAllString(s, r.with)
	}
	return s
}

func run(t *testing.T, dir, name string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}
