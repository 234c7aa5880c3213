package opencryptoki_test

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hsmbridge/test/opencryptoki"
	"hsmbridge/test/token"
)

func TestMain(m *testing.M) { opencryptoki.Main(m) }

func TestTwoTokensDoNotMeet(t *testing.T) {
	one, two := opencryptoki.New(t), opencryptoki.New(t, "named")
	one.Generate(t, "in-one", "01")
	if got := one.Tool(t, "--list-objects", "--type", "secrkey"); !strings.Contains(got, "in-one") {
		t.Errorf("the token does not list its key:\n%s", got)
	}
	if got := two.Tool(t, "--list-objects", "--type", "secrkey"); strings.Contains(got, "in-one") {
		t.Errorf("the second token lists the first's key:\n%s", got)
	}
	if one.PIN == two.PIN || one.Slot == two.Slot || one.Label == two.Label {
		t.Errorf("two tokens share a PIN, a slot (%d, %d) or a label (%s, %s)", one.Slot, two.Slot, one.Label, two.Label)
	}
}

// A soft token locks for good after three wrong PINs: the others must go on working.
func TestLockedTokenHarmsNoOther(t *testing.T) {
	locked, other := opencryptoki.New(t), opencryptoki.New(t)
	wrong := locked
	wrong.PIN = "00000000"
	args := []string{
		"--module", wrong.Module, "--token-label", wrong.Label, "--login", "--pin", wrong.PIN, "--list-objects",
	}
	for range 3 {
		if _, err := token.Run(t.Context(), wrong.Environ(), "pkcs11-tool", args...); err == nil {
			t.Fatal("login with a wrong PIN succeeded")
		}
	}
	args[5+1] = locked.PIN
	if _, err := token.Run(t.Context(), wrong.Environ(), "pkcs11-tool", args...); err == nil || !strings.Contains(err.Error(), "CKR_PIN_LOCKED") {
		t.Errorf("login after three wrong PINs: %v, want CKR_PIN_LOCKED", err)
	}
	other.Generate(t, "key", "01")
}

// However a run of a test binary ends, nothing of it may stay. This test's own namespace stands for the machine: whatever a
// run inside it leaves behind would be seen here.
func TestNothingIsLeft(t *testing.T) {
	tests := []struct {
		name string
		kill bool
		code int
	}{
		{"tests end", false, 0},
		{"test binary killed", true, -1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			before := machine(t)
			run := nested(t)
			run.expect(t, "token ready")
			if tt.kill {
				if err := run.cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			} else if err := run.stdin.Close(); err != nil {
				t.Fatal(err)
			}
			if err := run.cmd.Wait(); run.cmd.ProcessState.ExitCode() != tt.code {
				t.Errorf("exit code %d, want %d: %v", run.cmd.ProcessState.ExitCode(), tt.code, err)
			}
			run.waitForLastProcess(t)
			if diff := cmp.Diff(before, machine(t)); diff != "" {
				t.Errorf("the machine changed (-before +after):\n%s", diff)
			}
		})
	}
}

// What a test has used, the next test does not find, with the same label too.
func TestLabelComesBack(t *testing.T) {
	t.Run("use", func(t *testing.T) {
		opencryptoki.New(t, "again").Generate(t, "key", "01")
	})
	if got := opencryptoki.New(t, "again").Tool(t, "--list-objects", "--type", "secrkey"); got != "" {
		t.Errorf("a new token lists objects:\n%s", got)
	}
}

// A failing test must fail the whole binary: its exit code has to come out of the namespaces.
func TestFailureComesOut(t *testing.T) {
	run := nested(t)
	run.expect(t, "token ready")
	if _, err := io.WriteString(run.stdin, "fail\n"); err != nil {
		t.Fatal(err)
	}
	if err := run.cmd.Wait(); run.cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("exit code %d, want 1: %v", run.cmd.ProcessState.ExitCode(), err)
	}
}

const nestedRun = "HSMBRIDGE_TEST_NESTED_RUN"

// TestNestedRun is what a nested run of this binary executes; otherwise it does nothing. It makes a token, says so, and
// ends when its standard input does.
func TestNestedRun(t *testing.T) {
	if os.Getenv(nestedRun) == "" {
		return
	}
	opencryptoki.New(t).Generate(t, "key", "01")
	fmt.Println("token ready") //nolint:forbidigo // read by nested
	line, err := bufio.NewReader(os.Stdin).ReadString('\n')
	if err == nil {
		t.Errorf("told to %s", line)
	}
}

type process struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stdout *bufio.Reader
	alive  *os.File // read end of a pipe whose write end every process of the run has inherited
}

// nested starts this test binary once more, as `go test` would, in namespaces inside this test's own.
func nested(t *testing.T) process {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, "-test.run=^TestNestedRun$")
	cmd.Env = append(slices.DeleteFunc(os.Environ(), func(v string) bool {
		return strings.HasPrefix(v, "HSMBRIDGE_TEST_OPENCRYPTOKI_NAMESPACE=")
	}), nestedRun+"=1")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	alive, inherited, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = alive.Close() })
	cmd.ExtraFiles = []*os.File{inherited}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := inherited.Close(); err != nil {
		t.Fatal(err)
	}
	return process{cmd, stdin, bufio.NewReader(stdout), alive}
}

func (p process) expect(t *testing.T, line string) {
	t.Helper()
	got, err := p.stdout.ReadString('\n')
	if err != nil || strings.TrimSpace(got) != line {
		t.Fatalf("the nested run said %q (%v), want %q", got, err, line)
	}
}

// waitForLastProcess returns when no process of the run exists any more, pkcsslotd included.
func (p process) waitForLastProcess(t *testing.T) {
	t.Helper()
	if err := p.alive.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if n, err := p.alive.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("a process of the nested run is still there: %v", err)
	}
}

// machine lists everything that openCryptoki keeps outside the processes that use it.
func machine(t *testing.T) []string {
	t.Helper()
	segments, err := os.ReadFile("/proc/sysvipc/shm")
	if err != nil {
		t.Fatal(err)
	}
	files := token.Files(t, "/run", "/dev/shm", "/var/lib/opencryptoki")
	return append(files, fmt.Sprintf("%d System V shared memory segments", strings.Count(string(segments), "\n")-1))
}
