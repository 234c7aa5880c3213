package ceremony_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"hsmbridge/daemon/approval"
	"hsmbridge/daemon/audit"
	"hsmbridge/daemon/ceremony"
)

func step() audit.Step { return audit.Step{Request: id, Person: "Ann Operator, William Witness"} }

func TestLogGoesOn(t *testing.T) {
	l, name := aLog(t, t.TempDir())
	n, root := len(l.Records()), rootOf(t, l)
	if _, err := ceremony.OpenLog(name, id, "room", clock()); err == nil {
		t.Error("two sessions have the log open")
	} else {
		says(t, err, "another hsmceremony is at work on request "+id)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(name, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(`{"n":10,"hash":"torn`); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	l, err = ceremony.OpenLog(name, id, "room", clock())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // of a test
	if len(l.Records()) != n || rootOf(t, l) != root {
		t.Errorf("%d records, were %d", len(l.Records()), n)
	}
	if err := l.Add("ceremony-end", "payments", arn, "more", step()); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	got, err := ceremony.Records(text)
	if err != nil || len(got) != n+1 || got[n].Message != "more" {
		t.Errorf("%d records, %v", len(got), err)
	}
	begun, done := l.Wraps()
	if len(begun) != 2 || len(done) != 2 || l.Signed() || l.Last("ceremony-end").Message != "more" || l.Last("queued") != nil {
		t.Errorf("%d begun, %d done", len(begun), len(done))
	}
}

func rootOf(t *testing.T, l *ceremony.Log) string {
	t.Helper()
	place, err := l.Place()
	if err != nil {
		t.Fatal(err)
	}
	return place
}

func TestLogRefuses(t *testing.T) {
	l, name := aLog(t, t.TempDir())
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	lines := bytes.SplitAfter(text, []byte("\n"))
	join := func(l ...[]byte) []byte { return bytes.Join(l, nil) }
	other := filepath.Join(t.TempDir(), "other.log")
	o, err := ceremony.OpenLog(other, "other", "room", clock())
	if err != nil {
		t.Fatal(err)
	}
	s := step()
	s.Request = "other"
	if err := o.Add("ceremony-open", "payments", arn, "x", s); err != nil {
		t.Fatal(err)
	}
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	foreign, err := os.ReadFile(other)
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		text []byte
		says string
	}{
		"edited":          {bytes.Replace(text, []byte("William"), []byte("Willma "), 1), "record 1 was edited"},
		"a record gone":   {join(append([][]byte{lines[0]}, lines[2:]...)...), "record 2 is missing"},
		"two swapped":     {join(append([][]byte{lines[1], lines[0]}, lines[2:]...)...), "record 1 stands behind record 2"},
		"no log":          {[]byte("hello\n"), "line 1, where record 1 should be"},
		"another request": {foreign, "record 1 is of another request"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "log")
			if err := os.WriteFile(file, tc.text, 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := ceremony.OpenLog(file, id, "room", clock())
			says(t, err, tc.says)
			if after, err := os.ReadFile(file); err != nil || !bytes.Equal(after, tc.text) {
				t.Errorf("a log that was refused was changed: %v", err)
			}
		})
	}
	for name, tc := range map[string]struct {
		text []byte
		says string
	}{
		"empty":     {nil, "it has no record"},
		"mixed":     {join(lines[0], foreign), "there are two different records 1"},
		"cut":       {text[:len(text)-5], "where record"},
		"not steps": {audit.RecordLine(1, mustEncode(t, audit.Record{N: 1, Time: now, Kind: "stop", Actor: "a", Message: "m"})), "its first record is of something else"},
	} {
		t.Run("merged, "+name, func(t *testing.T) {
			_, err := ceremony.Records(tc.text)
			says(t, err, tc.says)
		})
	}
}

func mustEncode(t *testing.T, r audit.Record) []byte {
	t.Helper()
	raw, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestUsed(t *testing.T) {
	dir := t.TempDir()
	l, _ := aLog(t, dir)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "other.log"), []byte("not of a ceremony\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	q := sample()
	if err := ceremony.Used(dir, q); err != nil {
		t.Errorf("the request's own log: %v", err)
	}
	q.ID = "other"
	says(t, ceremony.Used(dir, q), "was used before, in request "+id+" (payments-"+id+".log)")
	q.WrappingKeys = [][]byte{spki("three", 2048)}
	if err := ceremony.Used(dir, q); err != nil {
		t.Error(err)
	}
	says(t, ceremony.Used(dir, approval.Request{WrappingKeys: sample().WrappingKeys[1:]}), "fetch new ones")
	if err := ceremony.Used(filepath.Join(dir, "none"), q); err == nil || !strings.Contains(err.Error(), "look for earlier ceremonies") {
		t.Error(err)
	}
}

// The folder of a ceremony comes from outside. What somebody put there under the log's name, or a link to what is elsewhere, is not emptied.
func TestLogLeavesOtherFiles(t *testing.T) {
	dir := t.TempDir()
	elsewhere := filepath.Join(dir, "pin")
	const secret = "a file without a line's end"
	for name, tt := range map[string]struct {
		make func(name string) error
		says string
	}{
		"link":    {func(name string) error { return os.Symlink(elsewhere, name) }, "is a symbolic link"},
		"nowhere": {func(name string) error { return os.Symlink(filepath.Join(dir, "new"), name) }, "is a symbolic link"},
		"file":    {func(name string) error { return os.WriteFile(name, []byte(secret), 0o600) }, "it ends with something else than lines of a log"},
	} {
		if err := os.WriteFile(elsewhere, []byte(secret), 0o600); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, name+ceremony.LogExt)
		if err := tt.make(path); err != nil {
			t.Fatal(err)
		}
		l, err := ceremony.OpenLog(path, id, "room", clock())
		if err == nil {
			t.Errorf("%s: it was taken for a log", name)
			_ = l.Close()
		} else {
			says(t, err, tt.says)
		}
		for _, file := range []string{elsewhere, path} {
			if got, err := os.ReadFile(file); name != "nowhere" && (err != nil || string(got) != secret) {
				t.Errorf("%s: %s has %q now, %v", name, file, got, err)
			}
		}
		if _, err := os.Stat(filepath.Join(dir, "new")); err == nil {
			t.Error("a file was made elsewhere")
		}
	}
	// What a session that was ended may leave behind is no hindrance.
	for i, torn := range []string{"", "{", `{"n":1,"hash":"x`, "\x00\x00\x00", `{"n":1` + "\x00\x00"} {
		path := filepath.Join(dir, strings.Repeat("t", i+1)+ceremony.LogExt)
		if err := os.WriteFile(path, []byte(torn), 0o600); err != nil {
			t.Fatal(err)
		}
		l, err := ceremony.OpenLog(path, id, "room", clock())
		if err != nil {
			t.Errorf("%q: %v", torn, err)
			continue
		}
		_ = l.Close()
	}
}

// TestLogIsNoPipe holds that what would hold a reader for ever is not taken for a log, neither of this ceremony nor of another.
func TestLogIsNoPipe(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "pipe"+ceremony.LogExt)
	if err := syscall.Mkfifo(name, 0o600); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 2)
	go func() { ended <- ceremony.Used(dir, sample()) }()
	go func() {
		_, err := ceremony.OpenLog(name, id, "room", clock())
		ended <- err
	}()
	for range 2 {
		select {
		case err := <-ended:
			if err != nil {
				says(t, err, "pipe.log is not a regular file; nothing was done")
			}
		case <-time.After(time.Minute):
			t.Fatal("it waits for the pipe")
		}
	}
}
