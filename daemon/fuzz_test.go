package daemon

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"hsmbridge/daemon/audit"
	"hsmbridge/daemon/store"
)

// FuzzLogFile is a file that holds anything where the audit log is to be copied to. Either it is left alone, or what is added follows whole lines,
// nothing that was whole is lost, and the next look finds what was added.
func FuzzLogFile(f *testing.F) {
	text, err := os.ReadFile(filepath.Join("audit", "testdata", "log.jsonl"))
	if err != nil {
		f.Fatal(err)
	}
	lines := bytes.SplitAfter(text, []byte("\n"))
	f.Add([]byte{})
	f.Add(bytes.Join(lines[:2], nil))
	f.Add(append(bytes.Clone(lines[0]), lines[1][:len(lines[1])/2]...))
	f.Add([]byte("\n"))
	f.Add([]byte("{\n{"))
	f.Add([]byte("notes of somebody\n"))
	f.Add(append([]byte("notes\n"), lines[0]...))
	f.Add(append(bytes.Clone(lines[0]), 0, '\n'))
	more := bytes.TrimSuffix(lines[2], []byte("\n"))
	want, err := audit.ParseLine(more)
	if err != nil {
		f.Fatal(err)
	}
	name := filepath.Join(f.TempDir(), "log.jsonl")
	f.Fuzz(func(t *testing.T, before []byte) {
		if err := os.WriteFile(name, before, 0o600); err != nil {
			t.Fatal(err)
		}
		l, err := openLog(name)
		if err == nil {
			err = l.add([][]byte{more})
			if err != nil {
				t.Fatal(err)
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
		}
		after, rerr := os.ReadFile(name)
		if rerr != nil {
			t.Fatal(rerr)
		}
		if l == nil || err != nil {
			if !bytes.Equal(before, after) {
				t.Errorf("%q was refused and is %q now", before, after)
			}
			return
		}
		whole := before[:bytes.LastIndexByte(before, '\n')+1]
		if !bytes.Equal(after, append(append(bytes.Clone(whole), more...), '\n')) {
			t.Fatalf("%q is %q now", before, after)
		}
		if l, err = openLog(name); err != nil {
			t.Fatalf("%q: %v", after, err)
		}
		if l.last == nil || l.last.N != want.N || l.last.Hash != want.Hash || l.end != int64(len(after)) {
			t.Errorf("%q: the last record is %+v", after, l.last)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// FuzzStatement holds that what is signed of import parameters says all of them: two that differ in anything never have the same statement, and none
// reads as a checkpoint of the audit log, which the same key signs.
func FuzzStatement(f *testing.F) {
	f.Add("arn", "https://kms", "RSAES_OAEP_SHA_256", "RSA_4096", []byte("key"), []byte("token"), "id", int64(1), int64(2), uint8(0), "x")
	f.Add("a\nendpoint \"b\"", "", "", "", []byte(nil), []byte(nil), "\"\n", int64(-1), int64(0), uint8(1), "\nendpoint")
	f.Add("\xff", "\u2028", "", "", []byte("\n"), []byte{0}, "", int64(1)<<62, int64(-1)<<62, uint8(6), "")
	f.Fuzz(func(t *testing.T, arn, endpoint, algorithm, spec string, key, token []byte, id string, fetched, validTo int64, which uint8, other string) {
		a := store.Parameters{
			Destination: arn, Endpoint: endpoint, Algorithm: algorithm, WrappingKeySpec: spec, PublicKey: key, ImportToken: token, RequestID: id, Fetched: time.UnixMicro(fetched), ValidTo: time.UnixMicro(validTo),
		}
		b := a
		same := false
		text := func(p *string) { same = *p == other; *p = other }
		raw := func(p *[]byte) { same = string(*p) == other; *p = []byte(other) }
		moment := func(p *time.Time) { *p = time.UnixMicro(p.UnixMicro() ^ int64(len(other)+1)) }
		switch which % 9 {
		case 0:
			text(&b.Destination)
		case 1:
			text(&b.Endpoint)
		case 2:
			text(&b.Algorithm)
		case 3:
			text(&b.WrappingKeySpec)
		case 4:
			text(&b.RequestID)
		case 5:
			raw(&b.PublicKey)
		case 6:
			raw(&b.ImportToken)
		case 7:
			moment(&b.Fetched)
		case 8:
			moment(&b.ValidTo)
		}
		first, second := statement(a), statement(b)
		if bytes.Equal(first, second) != same {
			t.Errorf("%q says the same of\n%+v\n%+v", first, a, b)
		}
		if lines := bytes.Count(first, []byte("\n")); lines != 10 {
			t.Errorf("%q has %d lines", first, lines)
		}
		if _, err := audit.ReadUnsigned(string(first)); err == nil {
			t.Errorf("%q is a checkpoint", first)
		}
	})
}
