package ceremony

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hsmbridge/daemon/audit"
)

func openLog(t *testing.T, name, request string) *Log {
	t.Helper()
	at := time.Date(2027, 1, 2, 3, 4, 5, 0, time.UTC)
	l, err := OpenLog(name, request, "olga", func() time.Time { return at })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func add(t *testing.T, l *Log, kinds ...audit.Kind) {
	t.Helper()
	for _, k := range kinds {
		if err := l.Add(k, "payments", "arn", "step "+string(k), audit.Step{Request: "r1"}); err != nil {
			t.Fatal(err)
		}
	}
}

func readLog(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestRoomLog: the room's log is an audit log: it goes on after each end, is signed, and verifies with the key alone.
func TestRoomLog(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "x.log")
	l := openLog(t, name, "r1")
	add(t, l, "ceremony-open", "ceremony-check", "ceremony-wrap")
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	// The machine lost power in the middle of a line.
	if err := os.WriteFile(name, append(readLog(t, name), `{"n":4,"ha`...), 0o600); err != nil {
		t.Fatal(err)
	}
	l = openLog(t, name, "r1")
	if len(l.Records()) != 3 || l.Last("ceremony-check").N != 2 || l.Last("ceremony-end") != nil {
		t.Errorf("it goes on with %d records", len(l.Records()))
	}
	add(t, l, "ceremony-write", "ceremony-end")
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(private.Public())
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Sign(der, func(m []byte) ([]byte, error) {
		sum := sha256.Sum256(m)
		return ecdsa.SignASN1(rand.Reader, private, sum[:])
	}); err != nil {
		t.Fatal(err)
	}
	key, err := audit.NewKey(Origin("r1"), der)
	if err != nil {
		t.Fatal(err)
	}
	text := readLog(t, name)
	r, err := audit.Verify(bytes.NewReader(text), audit.Options{Keys: []*audit.Key{key}})
	root, _ := l.Root()
	if err != nil || !r.OK() || r.Records != 5 || r.Signed != 5 || r.Root != root.String() || r.Origin != Origin("r1") {
		t.Errorf("%+v, %v", r, err)
	}
	if list, err := Records(text); err != nil || len(list) != 5 {
		t.Errorf("%d records, %v", len(list), err)
	}
	if place, err := l.Place(); err != nil || !strings.HasPrefix(place, "5, root ") {
		t.Errorf("its place is %q, %v", place, err)
	}
}

// TestRoomLogIsRefused: a log that was changed, or is of another request, is neither continued nor taken over.
func TestRoomLogIsRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	name := filepath.Join(dir, "x.log")
	l := openLog(t, name, "r1")
	add(t, l, "ceremony-open", "ceremony-check", "ceremony-wrap")
	text := string(readLog(t, name))
	lines := strings.SplitAfter(text, "\n")
	other := string(audit.RecordLine(4, []byte(`{"n":4,"time":"2027-01-02T03:04:05Z","kind":"ceremony-end","actor":"olga","message":"m","data":{"request":"r2"}}`))) + "\n"
	later := string(audit.RecordLine(4, []byte(`{"n":4,"time":"2027-01-02T03:04:05Z","kind":"later","actor":"olga","message":"m"}`))) + "\n"
	for what, c := range map[string]struct{ text, want string }{
		"edited":              {strings.Replace(text, "step ceremony-check", "step ceremony-chess", 1), "record 2 was edited"},
		"a record missing":    {lines[0] + lines[2], "record 2 is missing"},
		"two swapped":         {lines[1] + lines[0] + lines[2], "record 1 stands behind record 2"},
		"one twice":           {lines[0] + lines[1] + lines[1] + lines[2], "record 2 is there a second time"},
		"another request":     {text + other, "record 4 is of another request"},
		"a kind of later":     {text + later, "record 4 is of another request"},
		"something else":      {"hello\n" + text, "this is no line"},
		"a forged checkpoint": {text + string(audit.CheckpointLine("hsmceremony/r1\n3\n"+strings.Repeat("A", 43)+"=\ntime 2027-01-02T03:04:05Z\n\n— hsmceremony/r1 AAAAAAA=\n")) + "\n", "changed together with its hash"},
	} {
		bad := filepath.Join(dir, "bad.log")
		if err := os.WriteFile(bad, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		var file *FileError
		_, err := OpenLog(bad, "r1", "olga", time.Now)
		if !errors.As(err, &file) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", what, err, c.want)
		}
		if string(readLog(t, bad)) != c.text {
			t.Errorf("%s: the file was changed", what)
		}
		if _, err := Records([]byte(c.text)); err == nil {
			t.Errorf("%s was taken over", what)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenLog(name, "r2", "olga", time.Now); err == nil || !strings.Contains(err.Error(), "record 1 is of another request") {
		t.Errorf("the log of another request: %v", err)
	}
	if _, err := Records(nil); err == nil {
		t.Error("a log without a record was taken over")
	}
}

// TestRoomLogIsWritten: a step whose record is not on the disk is not done.
func TestRoomLogIsWritten(t *testing.T) {
	t.Parallel()
	l := openLog(t, filepath.Join(t.TempDir(), "x.log"), "r1")
	add(t, l, "ceremony-open")
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := l.Add("ceremony-wrap", "k", "arn", "m", audit.Step{Request: "r1"}); err == nil || !strings.Contains(err.Error(), "so nothing more is done") {
		t.Errorf("got %v", err)
	}
	if len(l.Records()) != 1 {
		t.Error("the record counts")
	}
}
