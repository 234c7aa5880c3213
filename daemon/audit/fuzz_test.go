package audit_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"hsmbridge/daemon/audit"
)

// FuzzRecord: what is read is written again to the byte, and its fields make the same record.
func FuzzRecord(f *testing.F) {
	names, err := filepath.Glob(filepath.Join("testdata", "kinds", "*.json"))
	if err != nil || len(names) == 0 {
		f.Fatal("no golden records", err)
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(bytes.TrimSuffix(b, []byte("\n")))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		r, err := audit.Decode(line)
		if err != nil {
			return
		}
		again, err := r.Encode()
		if err != nil || !bytes.Equal(again, line) {
			t.Fatalf("%q is written as %q (%v)", line, again, err)
		}
		fields, err := r.Fields()
		if err != nil {
			t.Fatal(err)
		}
		set := r
		set.Data = nil
		if err := set.SetFields(fields); err != nil {
			t.Fatal(err)
		}
		if len(fields) == 0 {
			set.Data = r.Data // "data":{} and none at all say the same
		}
		if third, err := set.Encode(); err != nil || !bytes.Equal(third, line) {
			t.Fatalf("%q becomes %q by its fields (%v)", line, third, err)
		}
	})
}

// FuzzLine: a line that is read is written again to the byte.
func FuzzLine(f *testing.F) {
	f.Add([]byte(`{"n":1,"hash":"xyw95Bd19TWFRZ8zNJTTJ8xCYoRMIDT2zGsIr8Y63Fg=","record":{}}`))
	f.Add([]byte(`{"checkpoint":"hsmbridge/a\n1\n"}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		l, err := audit.ParseLine(line)
		if err != nil {
			return
		}
		again := audit.CheckpointLine(l.Checkpoint)
		if l.Checkpoint == "" {
			again = bytes.Replace(audit.RecordLine(l.N, l.Record), []byte(audit.LeafHash(l.Record).String()), []byte(l.Hash.String()), 1)
		}
		if !bytes.Equal(again, line) {
			t.Fatalf("%q is written as %q", line, again)
		}
	})
}

// FuzzCheckpoint: nothing that the key did not sign is opened, and a text has one form.
func FuzzCheckpoint(f *testing.F) {
	for _, name := range []string{"ec", "rsa"} {
		note, err := os.ReadFile(filepath.Join("testdata", name+".checkpoint"))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(note))
	}
	keys := map[string]*audit.Key{}
	texts := map[string]bool{}
	for _, name := range []string{"ec", "rsa"} {
		pem, err := os.ReadFile(filepath.Join("testdata", name+".pem"))
		if err != nil {
			f.Fatal(err)
		}
		if keys[name], err = audit.ParseKey(pem, ""); err != nil {
			f.Fatal(err)
		}
		note, err := os.ReadFile(filepath.Join("testdata", name+".checkpoint"))
		if err != nil {
			f.Fatal(err)
		}
		c, err := keys[name].Open(string(note))
		if err != nil {
			f.Fatal(err)
		}
		texts[c.Text()] = true
	}
	f.Fuzz(func(t *testing.T, note string) {
		for _, k := range keys {
			if c, err := k.Open(note); err == nil && !texts[c.Text()] {
				t.Fatalf("this was never signed: %q", note)
			}
		}
		if c, err := audit.ReadUnsigned(note); err == nil && !bytes.HasPrefix([]byte(note), []byte(c.Text()+"\n")) {
			t.Fatalf("%q is read as %q", note, c.Text())
		}
	})
}

// FuzzVerify: no file makes verification fail or take long, and one that is called whole has the records of its signed checkpoint.
func FuzzVerify(f *testing.F) {
	text, err := os.ReadFile(filepath.Join("testdata", "log.jsonl"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	for _, cut := range []int{1, len(text) / 3, len(text) / 2, len(text) - 2} {
		f.Add(text[:cut])
		f.Add(append(bytes.Clone(text[cut:]), text[:cut]...))
	}
	pem, err := os.ReadFile(filepath.Join("testdata", "ec.pem"))
	if err != nil {
		f.Fatal(err)
	}
	key, err := audit.ParseKey(pem, "")
	if err != nil {
		f.Fatal(err)
	}
	whole, err := audit.Verify(bytes.NewReader(text), audit.Options{Keys: []*audit.Key{key}})
	if err != nil || !whole.OK() || whole.Signed == 0 {
		f.Fatal(whole, err)
	}
	signed := func(t *testing.T, text []byte) map[int64]string {
		t.Helper()
		out := map[int64]string{}
		for line := range bytes.Lines(text) {
			if l, err := audit.ParseLine(bytes.TrimSuffix(line, []byte("\n"))); err == nil && l.Checkpoint == "" && l.N <= whole.Signed {
				out[l.N] = string(l.Record)
			}
		}
		return out
	}
	want := map[int64]string{}
	for line := range bytes.Lines(text) {
		if l, err := audit.ParseLine(bytes.TrimSuffix(line, []byte("\n"))); err == nil && l.Checkpoint == "" {
			want[l.N] = string(l.Record)
		}
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := audit.Verify(bytes.NewReader(text), audit.Options{Keys: []*audit.Key{key}})
		if err != nil || !r.OK() || r.Records == 0 {
			return
		}
		got := signed(t, text)
		for n := int64(1); n <= r.Signed; n++ {
			if got[n] != want[n] {
				t.Fatalf("record %d is called signed and is %s", n, got[n])
			}
		}
	})
}

// FuzzProof: a proof has one form, and none is taken that the key did not sign.
func FuzzProof(f *testing.F) {
	text, err := os.ReadFile(filepath.Join("testdata", "proof.json"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	pem, err := os.ReadFile(filepath.Join("testdata", "ec.pem"))
	if err != nil {
		f.Fatal(err)
	}
	key, err := audit.ParseKey(pem, "")
	if err != nil {
		f.Fatal(err)
	}
	good, err := audit.ParseProof(text)
	if err != nil {
		f.Fatal(err)
	}
	if _, _, err := good.Verify(key); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		p, err := audit.ParseProof(in)
		if err != nil {
			return
		}
		again, err := p.Text()
		if err != nil || !bytes.Equal(again, in) {
			t.Fatalf("%q is written as %q (%v)", in, again, err)
		}
		if _, _, err := p.Verify(key); err == nil && p.N == good.N && !bytes.Equal(p.Record, good.Record) {
			t.Fatalf("this was never in the log: %s", p.Record)
		}
	})
}

// TestErrorsOfReaders: an error of the reader, or of the caller, ends the verification.
func TestErrorsOfReaders(t *testing.T) {
	t.Parallel()
	l := newLog(t, 3)
	stop := errors.New("enough")
	o := l.options()
	o.Each = func(audit.Record) error { return stop }
	if _, err := audit.Verify(bytes.NewReader([]byte(l.lines[0]+"\n")), o); !errors.Is(err, stop) {
		t.Errorf("got %v", err)
	}
}
