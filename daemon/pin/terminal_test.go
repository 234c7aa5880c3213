package pin_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hsmbridge/configs"
)

// roleEnv makes the test binary a process that asks for a PIN on its terminal and prints what it got.
const roleEnv = "PIN_TEST_ASK"

func TestMain(m *testing.M) {
	if os.Getenv(roleEnv) == "" {
		os.Exit(m.Run())
	}
	got, err := ask(context.Background(), configs.Token{Name: "demo", PINPrompt: true})
	if err != nil {
		fmt.Fprint(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Fprint(os.Stdout, got)
	os.Exit(0)
}

func TestPrompt(t *testing.T) {
	secret := rand.Text()
	for _, tt := range []struct {
		name, typed, want, err string
	}{
		{"a PIN", secret + "\n", secret, ""},
		{"blanks belong to it", " " + secret + " \n", " " + secret + " ", ""},
		{"mended with backspace", "x\x7f" + secret + "\n", secret, ""},
		{"nothing", "\n", "", "pin_prompt: no PIN was given; no login was tried"},
		{"end of input is no answer", "\x04" + secret + "\n", secret, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			terminal, slave := openTerminal(t)
			var stdout, stderr bytes.Buffer
			c := askingProcess(t, &stdout, &stderr)
			c.SysProcAttr.Setctty, c.SysProcAttr.Ctty = true, 3
			c.ExtraFiles = []*os.File{slave}
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() { ended <- c.Wait() }()
			waitForNoEcho(t, slave, ended)
			if _, err := terminal.WriteString(tt.typed); err != nil {
				t.Fatal(err)
			}
			err := <-ended
			if !echoes(t, slave) {
				t.Error("the terminal was left without echo")
			}
			shown := screen(t, terminal, slave)
			if tt.err != "" {
				refused(t, stdout.String(), errorOf(err, stderr.String()), "", tt.err)
			} else if err != nil || stdout.String() != tt.want {
				t.Errorf("got %q, %v, %s; want %q", stdout.String(), err, stderr.String(), tt.want)
			}
			if want := "PIN of token \"demo\" (serial \"0123\"): \r\n"; shown != want {
				t.Errorf("the terminal shows %q, want %q", shown, want)
			}
		})
	}
}

func TestPromptWithoutTerminal(t *testing.T) {
	var stdout, stderr bytes.Buffer
	c := askingProcess(t, &stdout, &stderr)
	c.Stdin = strings.NewReader("not to be read\n")
	err := c.Run()
	refused(t, stdout.String(), errorOf(err, stderr.String()), "not to be read",
		"pin_prompt: there is no terminal to ask on", "use pin_file, pin_command or pin_credential for a service")
}

// askingProcess is the test binary as a process of its own session, without a terminal until it is given one.
func askingProcess(t *testing.T, stdout, stderr io.Writer) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.CommandContext(t.Context(), self)
	c.Env = append(os.Environ(), roleEnv+"=1")
	c.Stdout, c.Stderr = stdout, stderr
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return c
}

func errorOf(err error, message string) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s (%w)", message, err)
}

// openTerminal opens a pseudo terminal: the person's side and the process's. Source: pts(4).
func openTerminal(t *testing.T) (person, process *os.File) {
	t.Helper()
	person, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = person.Close() })
	fd := int(person.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	process, err = os.OpenFile(filepath.Join("/dev/pts", strconv.Itoa(n)), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = process.Close() })
	return person, process
}

func echoes(t *testing.T, terminal *os.File) bool {
	t.Helper()
	state, err := unix.IoctlGetTermios(int(terminal.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return state.Lflag&unix.ECHO != 0
}

// waitForNoEcho waits until the process reads without echo: what is typed before that would be shown.
func waitForNoEcho(t *testing.T, terminal *os.File, ended <-chan error) {
	t.Helper()
	for echoes(t, terminal) {
		select {
		case err := <-ended:
			t.Fatalf("the process did not ask: %v", err)
		case <-time.After(time.Millisecond):
		}
	}
}

// screen is what the terminal showed. A mark written last tells the end.
func screen(t *testing.T, person, process *os.File) string {
	t.Helper()
	const mark = "\x00"
	if _, err := process.WriteString(mark); err != nil {
		t.Fatal(err)
	}
	var shown []byte
	buf := make([]byte, 256)
	for !bytes.HasSuffix(shown, []byte(mark)) {
		n, err := person.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		shown = append(shown, buf[:n]...)
	}
	return strings.TrimSuffix(string(shown), mark)
}
