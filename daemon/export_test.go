package daemon

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"hsmbridge/configs"
	"hsmbridge/daemon/audit"
	"hsmbridge/daemon/store"
)

// copies is a daemon's exporter with a real database and a key that signs.
type copies struct {
	*auditor

	t      *testing.T
	dir    string
	places []configs.Export
	out    bytes.Buffer // standard output
	der    []byte
	key    *audit.Key
	signer *ecdsa.PrivateKey
}

func newCopies(t *testing.T, places ...configs.Export) *copies {
	t.Helper()
	c := &copies{t: t, dir: t.TempDir(), places: places}
	c.open()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if c.der, err = x509.MarshalPKIXPublicKey(private.Public()); err != nil {
		t.Fatal(err)
	}
	c.signer = private
	origin, err := c.store.Origin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if c.key, err = audit.NewKey(origin, c.der); err != nil {
		t.Fatal(err)
	}
	return c
}

// open opens the database, as the next life of the daemon does.
func (c *copies) open() {
	c.t.Helper()
	s, err := store.Open(c.t.Context(), store.Config{Path: filepath.Join(c.dir, "x.db"), Daemon: "one", NoSync: true})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = s.Close() })
	c.auditor = &auditor{
		store: s, log: zap.NewNop(), now: time.Now, config: func() *configs.Config { return &configs.Config{Audit: configs.Audit{Export: c.places}} },
		stdout: func(line []byte) error {
			c.out.Write(append(line, '\n'))
			return nil
		},
	}
}

// happen adds records, and a checkpoint behind them.
func (c *copies) happen(n int) {
	c.t.Helper()
	for i := range n {
		if err := c.store.AddEvent(c.t.Context(), store.Event{Kind: "clock", Message: fmt.Sprintf("event %d", i)}); err != nil {
			c.t.Fatal(err)
		}
	}
	tree, err := c.store.Tree(c.t.Context())
	if err != nil {
		c.t.Fatal(err)
	}
	note, err := tree.Sign(c.der, func(m []byte) ([]byte, error) {
		sum := sha256.Sum256(m)
		return ecdsa.SignASN1(rand.Reader, c.signer, sum[:])
	})
	if err == nil {
		err = c.store.AddCheckpoint(c.t.Context(), store.Checkpoint{Size: tree.Size, At: time.Now(), Note: note})
	}
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *copies) copy(e configs.Export) {
	c.t.Helper()
	if err := c.export(c.t.Context(), e); err != nil {
		c.t.Fatal(err)
	}
}

// whole verifies what a place has: every record once, in order, signed to the end.
func (c *copies) whole(text string, records int64) {
	c.t.Helper()
	r, err := audit.Verify(strings.NewReader(text), audit.Options{Keys: []*audit.Key{c.key}})
	if err != nil || !r.OK() || r.Records != records || r.Signed != records {
		c.t.Fatalf("%d records, signed up to %d, %+v, %v; want %d\n%s", r.Records, r.Signed, r.Problems, err, records, text)
	}
	seen := map[string]bool{}
	for line := range strings.Lines(text) {
		if seen[line] {
			c.t.Errorf("this line is there twice: %s", line)
		}
		seen[line] = true
	}
}

func (c *copies) read(name string) string {
	c.t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		c.t.Fatal(err)
	}
	return string(b)
}

// TestExportFile: each record stands in the file once, whatever happened to the daemon or to the file.
func TestExportFile(t *testing.T) {
	t.Parallel()
	file := configs.Export{File: filepath.Join(t.TempDir(), "log.jsonl")}
	c := newCopies(t, file)
	c.happen(700) // more than are copied at a time
	c.copy(file)
	c.whole(c.read(file.File), 700)
	c.copy(file)
	c.happen(3)
	c.copy(file)
	c.whole(c.read(file.File), 703)

	// Killed after the file was written and before that was noted.
	c.happen(5)
	next, signed, err := c.store.Exported(t.Context(), file.Name())
	if err != nil {
		t.Fatal(err)
	}
	c.copy(file)
	if err := c.store.SetExported(t.Context(), file.Name(), next, signed); err != nil {
		t.Fatal(err)
	}
	c.copy(file)
	c.whole(c.read(file.File), 708)

	// Killed in the middle of each place of what is written.
	c.happen(4)
	before := c.read(file.File)
	c.copy(file)
	after := c.read(file.File)
	for cut := len(before); cut <= len(after); cut += 97 {
		if err := os.WriteFile(file.File, []byte(after[:cut]), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := c.store.SetExported(t.Context(), file.Name(), 709, 709); err != nil {
			t.Fatal(err)
		}
		c.copy(file)
		if c.read(file.File) != after {
			t.Fatalf("cut at %d it is\n%s\nwant\n%s", cut, c.read(file.File), after)
		}
	}

	// The end of the file was lost, further back than what was written last.
	lines := strings.SplitAfter(after, "\n")
	if err := os.WriteFile(file.File, []byte(strings.Join(lines[:600], "")), 0o600); err != nil {
		t.Fatal(err)
	}
	c.happen(1)
	c.copy(file)
	c.whole(c.read(file.File), 713)

	// logrotate
	rotated := file.File + ".1"
	if err := os.Rename(file.File, rotated); err != nil {
		t.Fatal(err)
	}
	c.happen(2)
	c.copy(file)
	c.happen(2)
	c.copy(file)
	c.whole(c.read(rotated)+c.read(file.File), 717)
	if info, err := os.Stat(file.File); err != nil || info.Mode().Perm()&0o137 != 0 {
		t.Errorf("its mode is %v", info.Mode())
	}
}

// Its group may read a new file, under systemd's UMask=0077 too; the mode of one that is there stays.
func TestExportMode(t *testing.T) {
	defer unix.Umask(unix.Umask(0o077)) // of the process: no other test runs beside this one
	file := configs.Export{File: filepath.Join(t.TempDir(), "log.jsonl")}
	c := newCopies(t, file)
	for _, mode := range []os.FileMode{0o640, 0o600} {
		c.happen(1)
		c.copy(file)
		if info, err := os.Stat(file.File); err != nil || info.Mode() != mode {
			t.Errorf("%v %v, want %v", info.Mode(), err, mode)
		}
		if err := os.Chmod(file.File, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestExportOtherHistory: a file of another log, or of a later state of this one, is left alone.
func TestExportOtherHistory(t *testing.T) {
	t.Parallel()
	file := configs.Export{File: filepath.Join(t.TempDir(), "log.jsonl")}
	c := newCopies(t, file)
	c.happen(5)
	c.copy(file)
	backup := filepath.Join(t.TempDir(), "backup.db")
	if err := c.store.Backup(t.Context(), backup); err != nil {
		t.Fatal(err)
	}
	c.happen(5)
	c.copy(file)
	full := c.read(file.File)
	if err := c.store.Close(); err != nil {
		t.Fatal(err)
	}
	old, err := os.ReadFile(backup)
	if err != nil {
		t.Fatal(err)
	}
	for _, end := range []string{"-wal", "-shm"} {
		_ = os.Remove(filepath.Join(c.dir, "x.db"+end))
	}
	if err := os.WriteFile(filepath.Join(c.dir, "x.db"), old, 0o600); err != nil { //nolint:gosec // a directory of this test
		t.Fatal(err)
	}
	c.open()
	for range 3 {
		c.happen(3) // in the end there are more records than the file has
		if err := c.export(t.Context(), file); err == nil || !strings.Contains(err.Error(), "record 10, the last one in") || !strings.Contains(err.Error(), "was put back to an earlier state") {
			t.Errorf("got %v", err)
		}
	}
	if c.read(file.File) != full {
		t.Error("the file was changed")
	}
	if err := os.Rename(file.File, file.File+".old"); err != nil {
		t.Fatal(err)
	}
	c.copy(file)
	if got := c.read(file.File); !strings.HasPrefix(got, `{"n":6,`) {
		t.Errorf("the new file begins with %.60s", got)
	}

	for what, text := range map[string]string{"something else": "root:x:0:0\n", "half a line of something else": "root", "much of it": strings.Repeat("x", 2<<20)} {
		other := configs.Export{File: filepath.Join(t.TempDir(), "passwd")}
		if err := os.WriteFile(other.File, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := c.export(t.Context(), other); err == nil || !strings.Contains(err.Error(), "used for something else") || c.read(other.File) != text {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestExportSocket sends each record as one datagram, and again what was on its way when the daemon was killed.
func TestExportSocket(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "log")
	place := configs.Export{Syslog: "unix://" + path}
	c := newCopies(t, place)
	if err := c.export(t.Context(), place); err != nil {
		t.Fatalf("there is nothing to send: %v", err)
	}
	c.happen(50)
	if err := c.export(t.Context(), place); err == nil {
		t.Fatal("nobody listens, and it was sent")
	}
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // the end of the test
	got := make(chan string, 1000)
	go func() {
		b := make([]byte, 1<<16)
		for {
			n, err := l.Read(b)
			if err != nil {
				close(got)
				return
			}
			got <- string(b[:n])
		}
	}()
	form := regexp.MustCompile(`^<85>[A-Z][a-z]{2} [ 0-9][0-9] \d\d:\d\d:\d\d hsmbridge-audit\[\d+\]: (\{.*\}\n)$`)
	receive := func(n int) (lines []string) {
		t.Helper()
		for range n {
			select {
			case m := <-got:
				parts := form.FindStringSubmatch(m)
				if parts == nil {
					t.Fatalf("this is no message of RFC 3164: %q", m)
				}
				lines = append(lines, parts[1])
			case <-time.After(20 * time.Second):
				t.Fatalf("%d of %d messages came", len(lines), n)
			}
		}
		return lines
	}
	c.copy(place)
	all := receive(51)
	c.copy(place)
	c.happen(2)
	c.copy(place)
	all = append(all, receive(3)...)
	c.whole(strings.Join(all, ""), 52)
	select {
	case m := <-got:
		t.Errorf("one more came: %s", m)
	default:
	}
	// Killed before it was noted that they were sent: they come again, to the byte, and nothing is left out.
	if err := c.store.SetExported(t.Context(), place.Name(), 51, 51); err != nil {
		t.Fatal(err)
	}
	c.copy(place)
	again := receive(3)
	slices.Sort(again)
	want := slices.Sorted(slices.Values(all[len(all)-3:]))
	if !slices.Equal(again, want) {
		t.Errorf("sent again: %s\nwant %s", again, want)
	}
}

// TestExportTCP sends to another machine.
func TestExportTCP(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // it is closed
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // the end of the test
	place := configs.Export{Syslog: "tcp://" + l.Addr().String()}
	c := newCopies(t, place)
	c.happen(3)
	text := make(chan string, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			text <- err.Error()
			return
		}
		var b bytes.Buffer
		_, _ = b.ReadFrom(conn)
		text <- b.String()
	}()
	c.copy(place)
	got := <-text
	form := regexp.MustCompile(`(?m)^<85>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\S+ \S+ hsmbridge-audit\[\d+\]: `)
	if n := len(form.FindAllString(got, -1)); n != 4 {
		t.Errorf("%d messages came:\n%s", n, got)
	}
	c.whole(form.ReplaceAllString(got, ""), 3)
}

func TestExportStdout(t *testing.T) {
	t.Parallel()
	place := configs.Export{Stdout: true}
	c := newCopies(t, place)
	for _, n := range []int{70, 1, 3} {
		c.happen(n)
		c.copy(place)
	}
	c.whole(c.out.String(), 74)
}

// TestRequiredPlace: while a place that is required cannot be written, changes are errors for whoever asked; the records come when it can.
func TestRequiredPlace(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := configs.Export{File: filepath.Join(dir, "gone", "log.jsonl"), Required: true}
	c := newCopies(t, configs.Export{Stdout: true}, file)
	c.store.Require(c.required)
	event := func() error { return c.store.AddEvent(t.Context(), store.Event{Kind: "clock", Message: "x"}) }
	if err := event(); err == nil || !strings.Contains(err.Error(), "could not be copied to file "+file.File) {
		t.Errorf("got %v", err)
	}
	if err := os.Mkdir(filepath.Dir(file.File), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := event(); err != nil {
		t.Error(err)
	}
	if got := strings.Count(c.read(file.File), "\n"); got != 2 {
		t.Errorf("the file has %d records", got)
	}
	if c.out.Len() > 0 {
		t.Error("what is not required was written at once")
	}
}
