package audit_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hsmbridge/daemon/audit"
)

// TestFiles holds the file formats: a log, its key, a checkpoint of each kind of key and a proof, as they were once written, are read for ever.
// They are made once (-update, when testdata/log.jsonl is not there).
func TestFiles(t *testing.T) {
	t.Parallel()
	path := func(name string) string { return filepath.Join("testdata", name) }
	if _, err := os.Stat(path("log.jsonl")); err != nil && *update {
		write := func(name string, text string) {
			if err := os.WriteFile(path(name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		l := newLog(t, 9, 4, 7)
		write("log.jsonl", strings.Join(l.lines, "\n")+"\n")
		write("ec.pem", string(l.pair.key(t).PEM()))
		write("ec.checkpoint", l.notes[7])
		r := rsaKey(t, 3072)
		write("rsa.pem", string(r.key(t).PEM()))
		write("rsa.checkpoint", sign(t, r, 7, merkle(l.records[:7])))
		p, err := audit.Prove(5, l.records[4], l.notes[7], l.hashes.read)
		if err != nil {
			t.Fatal(err)
		}
		text, err := p.Text()
		if err != nil {
			t.Fatal(err)
		}
		write("proof.json", string(text))
	}
	file := func(name string) string {
		b, err := os.ReadFile(path(name))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	keys := map[string]*audit.Key{}
	for _, name := range []string{"ec", "rsa"} {
		k, err := audit.ParseKey([]byte(file(name+".pem")), "")
		if err != nil {
			t.Fatal(err)
		}
		if string(k.PEM()) != file(name+".pem") {
			t.Errorf("%s.pem is written otherwise now", name)
		}
		c, err := k.Open(file(name + ".checkpoint"))
		if err != nil || c.Size != 7 {
			t.Errorf("%s.checkpoint: %+v, %v", name, c, err)
		}
		keys[name] = k
	}
	r, err := audit.Verify(strings.NewReader(file("log.jsonl")), audit.Options{Keys: []*audit.Key{keys["ec"], keys["rsa"]}, Trusted: []string{file("ec.checkpoint"), file("rsa.checkpoint")}})
	if err != nil || !r.OK() || r.Records != 9 || r.Signed != 7 || r.Kept != 7 {
		t.Errorf("log.jsonl: %+v, %v", r, err)
	}
	for line := range strings.Lines(file("log.jsonl")) {
		l, err := audit.ParseLine([]byte(strings.TrimSuffix(line, "\n")))
		again := string(audit.CheckpointLine(l.Checkpoint))
		if l.Checkpoint == "" {
			again = string(audit.RecordLine(l.N, l.Record))
		}
		if err != nil || again+"\n" != line {
			t.Errorf("a line of log.jsonl is written otherwise now: %v\n got %s\nwant %s", err, again, line)
		}
	}
	p, err := audit.ParseProof([]byte(file("proof.json")))
	if err != nil {
		t.Fatal(err)
	}
	if got, _, err := p.Verify(keys["ec"]); err != nil || got.N != 5 {
		t.Errorf("proof.json: %+v, %v", got, err)
	}
}
