// Package ceremony_test carries out ceremonies as officers do: the real hsmceremony, a real SoftHSM2 token, the emulator and the AWS CLI.
package ceremony_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"hsmbridge/daemon/approval"
	"hsmbridge/test/e2e"
	"hsmbridge/test/softhsm"
)

// world is a room: a token, a configuration, a folder.
type world struct {
	t      *testing.T
	tok    softhsm.Token
	dir    string
	config string
}

// newWorld makes a room with a key "payments" for the destinations. more is appended to the configuration.
func newWorld(t *testing.T, endpoint, more string, destinations ...string) *world {
	t.Helper()
	tok := softhsm.New(t, "vault")
	dir := t.TempDir()
	w := &world{t: t, tok: tok, dir: dir, config: filepath.Join(dir, "hsmbridge.yaml")}
	text := fmt.Sprintf(`kms: {region: %s%s}
database: x.db
control: {socket: c.sock}
metrics: {listen: none}
tokens:
  - {name: vault, module: %q, uri: "pkcs11:token=vault", pin_file: %q, environment: {SOFTHSM2_CONF: %q}}
keys:
  - {name: payments, token: vault, uri: "pkcs11:object=payments;type=secret-key", key_spec: SYMMETRIC_DEFAULT, expires: never, destinations: ["%s"]}
%s`, e2e.Region, endpoint, tok.Module, tok.PINFile(t), tok.Environment["SOFTHSM2_CONF"], strings.Join(destinations, `", "`), more)
	if err := os.WriteFile(w.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return w
}

// write writes a file into the room's folder.
func (w *world) write(name string, data []byte) string {
	w.t.Helper()
	path := filepath.Join(w.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		w.t.Fatal(err)
	}
	return path
}

func (w *world) read(name string) []byte {
	w.t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		w.t.Fatal(err)
	}
	return b
}

// hsmceremony runs a command that asks nothing.
func (w *world) hsmceremony(args ...string) (out string, code int) {
	w.t.Helper()
	return w.run("hsmceremony", args...)
}

func (w *world) run(name string, args ...string) (out string, code int) {
	w.t.Helper()
	cmd := exec.CommandContext(w.t.Context(), filepath.Join(e2e.Binaries(w.t), name), args...)
	cmd.Env, cmd.Dir = e2e.Environ(), w.dir
	b, err := cmd.CombinedOutput()
	var failed *exec.ExitError
	if err != nil && !errors.As(err, &failed) {
		w.t.Fatal(err)
	}
	return string(b), cmd.ProcessState.ExitCode()
}

// question is what a screen asks, and what people type.
type question struct{ asks, answer string }

// questions of a whole session, in order. What is not asked is passed over.
func (w *world) questions(request string) []question {
	w.t.Helper()
	short := approval.Short(approval.Digest(w.read(request)))
	return []question{
		{"Are the same people here?", "yes"},
		{"Name of the person who operates:", "Ann Operator"},
		{"Name of the person who watches:", "William Witness"},
		{"Type the four groups that you hear:", strings.ToLower(short)},
		{"Type approved to go on:", "approved"},
		{"Type none to go on without one:", "none"},
		{"Type right if the time is right:", "right"},
		{"Type the last 4 characters of the serial:", w.tok.Serial[len(w.tok.Serial)-4:]},
		{"Type the label of the key:", "payments"},
		{"Press Enter to go on.", ""},
		{"Type again to go on to another wrap:", "again"},
		{"Type the name of the key to have it wrapped:", "payments"},
	}
}

// talk is a session of hsmceremony and the people before it.
type talk struct {
	w     *world
	cmd   *exec.Cmd
	in    io.WriteCloser
	ended chan struct{}

	mu  sync.Mutex
	out bytes.Buffer
}

// Write gathers what the session shows.
func (k *talk) Write(b []byte) (int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.out.Write(b)
}

func (k *talk) shown() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.out.String()
}

// wrap begins a session.
func (w *world) wrap(request string, flags ...string) *talk {
	w.t.Helper()
	return w.start(func(*exec.Cmd) {}, append([]string{"wrap", "-c", w.config, request}, flags...)...)
}

func (w *world) start(change func(*exec.Cmd), args ...string) *talk {
	w.t.Helper()
	k := &talk{w: w, ended: make(chan struct{})}
	k.cmd = exec.Command(filepath.Join(e2e.Binaries(w.t), "hsmceremony"), args...) //nolint:noctx // ended by the test
	k.cmd.Dir, k.cmd.Stdout, k.cmd.Stderr = w.dir, k, k
	k.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	change(k.cmd)
	var err error
	if k.in, err = k.cmd.StdinPipe(); err != nil {
		w.t.Fatal(err)
	}
	if err := k.cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	go func() {
		_ = k.cmd.Wait()
		close(k.ended)
	}()
	return k
}

const patience = time.Minute

// until answers questions up to the one that begins with last, which stays open, or to the end. It gives the question that stays open.
func (k *talk) until(questions []question, last string) string {
	k.w.t.Helper()
	read := 0
	for end := time.Now().Add(patience); ; time.Sleep(2 * time.Millisecond) {
		out := k.shown()
		for _, q := range questions {
			if at := strings.Index(out[read:], q.asks+" "); at >= 0 {
				if last != "" && strings.HasPrefix(q.asks, last) {
					return q.asks
				}
				read += at + len(q.asks)
				_, _ = io.WriteString(k.in, q.answer+"\n") // a session that ended shows it below
				break
			}
		}
		select {
		case <-k.ended:
			if out := k.shown(); !unanswered(out[read:], questions) {
				return ""
			}
		default:
		}
		if time.Now().After(end) {
			k.w.t.Fatalf("the session hangs:\n%s", k.shown())
		}
	}
}

func unanswered(out string, questions []question) bool {
	for _, q := range questions {
		if strings.Contains(out, q.asks+" ") {
			return true
		}
	}
	return false
}

// signal ends the session as a person or a power cut does, and gives its exit code.
func (k *talk) signal(s syscall.Signal) int {
	k.w.t.Helper()
	if err := k.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		k.w.t.Fatal(err)
	}
	return k.code()
}

func (k *talk) code() int {
	k.w.t.Helper()
	select {
	case <-k.ended:
	case <-time.After(patience):
		k.w.t.Fatalf("the session does not end:\n%s", k.shown())
	}
	return k.cmd.ProcessState.ExitCode()
}

// all carries a session out and holds its exit code.
func (w *world) all(code int, request string, flags ...string) string {
	w.t.Helper()
	k := w.wrap(request, flags...)
	k.until(w.questions(request), "")
	if got := k.code(); got != code {
		w.t.Fatalf("exit code %d, want %d:\n%s", got, code, k.shown())
	}
	return k.shown()
}

// objects lists what is in the token, sessions' objects too.
func (w *world) objects() string {
	w.t.Helper()
	return regexp.MustCompile(`(?m)^.*(warning|Using slot).*\n`).ReplaceAllString(w.tok.Tool(w.t, "-O"), "")
}

// matches holds that a text has a pattern. The lines of a paragraph are one.
func matches(t *testing.T, text, pattern string) {
	t.Helper()
	if regexp.MustCompile(pattern).MatchString(strings.Join(strings.Fields(text), " ")) {
		return
	}
	if !regexp.MustCompile("(?m)" + pattern).MatchString(text) {
		t.Errorf("%s is not in\n%s", pattern, text)
	}
}
