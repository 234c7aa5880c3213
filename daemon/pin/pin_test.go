package pin_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"hsmbridge/configs"
	"hsmbridge/daemon/pin"
	"hsmbridge/hsm/quirks"
	"hsmbridge/hsm/wrapping"
)

// ask prepares the source of a token's PIN and asks it.
func ask(ctx context.Context, t configs.Token) (string, error) {
	source, err := pin.Prepare(ctx, t)
	if err != nil {
		return "", err
	}
	secret, err := source(ctx, wrapping.TokenIdentity{Label: "demo", Serial: "0123"})
	return string(secret), err
}

// refused checks that no PIN came and that the error says all of want and nothing of the secret.
func refused(t *testing.T, got string, err error, secret string, want ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("it was taken")
	}
	if got != "" {
		t.Error("a PIN came with the error")
	}
	for _, w := range want {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("the error does not say %q: %v", w, err)
		}
	}
	if secret != "" && strings.Contains(err.Error(), secret) {
		t.Errorf("the error shows what was read: %v", err)
	}
}

// A token whose PIN is typed at the device has no source, for both kinds of processes, and that is no error.
func TestAtDevice(t *testing.T) {
	yes := true
	at := configs.Token{Name: "demo", Quirks: quirks.Override{ProtectedPath: &yes}}
	later, err := pin.Later(at)
	if later != nil || err != nil {
		t.Errorf("Later: %v", err)
	}
	now, err := pin.Prepare(t.Context(), at)
	if now != nil || err != nil {
		t.Errorf("Prepare: %v", err)
	}
}

func write(t *testing.T, path, content string, mode os.FileMode) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil { // whatever the umask
		t.Fatal(err)
	}
	return path
}

// contents are what every source that is read as text has to take or refuse alike.
func contents(secret string) []struct{ name, content, want, err string } {
	long := strings.Repeat("x", 1024)
	return []struct{ name, content, want, err string }{
		{"bare", secret, secret, ""},
		{"line", secret + "\n", secret, ""},
		{"CRLF", secret + "\r\n", secret, ""},
		{"further lines", secret + "\nsecond\nthird\n", secret, ""},
		{"blanks belong to it", " " + secret + " \n", " " + secret + " ", ""},
		{"a bare CR belongs to it", secret + "\rrest\n", secret + "\rrest", ""},
		{"not ASCII", "päss-" + secret + "\n", "päss-" + secret, ""},
		{"as long as it may be", long, long, ""},
		{"empty", "", "", "is empty; no login was tried"},
		{"empty line", "\n" + secret, "", "is empty; no login was tried"},
		{"empty CRLF line", "\r\n" + secret, "", "is empty; no login was tried"},
		{"too long", secret + long, "", "has more than 1024 bytes, which is no PIN"},
	}
}

func TestFile(t *testing.T) {
	secret := rand.Text()
	for _, tt := range contents(secret) {
		t.Run(tt.name, func(t *testing.T) {
			path := write(t, filepath.Join(t.TempDir(), "pin"), tt.content, 0o400)
			got, err := ask(t.Context(), configs.Token{Name: "demo", PINFile: path})
			if tt.err != "" {
				refused(t, got, err, secret, "pin_file "+path, tt.err)
				return
			}
			if err != nil || got != tt.want {
				t.Errorf("got %q, %v; want %q", got, err, tt.want)
			}
		})
	}
}

func TestFileModes(t *testing.T) {
	secret := rand.Text()
	for mode, good := range map[os.FileMode]bool{
		0o400: true, 0o600: true, 0o500: true, 0o700: true,
		0o644: false, 0o640: false, 0o604: false, 0o440: false, 0o404: false, 0o620: false, 0o602: false, 0o610: false, 0o601: false,
	} {
		t.Run(fmt.Sprintf("%04o", mode), func(t *testing.T) {
			path := write(t, filepath.Join(t.TempDir(), "pin"), secret, mode)
			got, err := ask(t.Context(), configs.Token{Name: "demo", PINFile: path})
			looked(t, path, err)
			if !good {
				refused(t, got, err, secret, fmt.Sprintf("(mode %04o)", mode), "it was not used", "run: chmod 0400 "+path)
				return
			}
			if err != nil || got != secret {
				t.Errorf("got %q, %v; want %q", got, err, secret)
			}
		})
	}
}

func TestFileKinds(t *testing.T) {
	secret := rand.Text()
	dir := t.TempDir()
	fine := write(t, filepath.Join(dir, "fine"), secret, 0o400)
	open := write(t, filepath.Join(dir, "open"), secret, 0o644)
	for link, target := range map[string]string{"to-fine": fine, "to-open": open, "to-nothing": filepath.Join(dir, "nothing"), "to-itself": filepath.Join(dir, "to-itself")} {
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o400); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		err  string // empty: the PIN
		is   error
	}{
		{"fine", "", nil},
		{"to-fine", "", nil},
		{"to-open", "(mode 0644)", nil}, // the target's mode counts, not the link's
		{"to-nothing", "pin_file: open ", os.ErrNotExist},
		{"to-itself", "pin_file: open ", syscall.ELOOP},
		{"missing", "pin_file: open ", os.ErrNotExist},
		{".", "is not a regular file", nil},
		{"fifo", "is not a regular file", nil},
		{"fine/below", "pin_file: open ", syscall.ENOTDIR},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(dir, tt.name)
			got, err := ask(t.Context(), configs.Token{Name: "demo", PINFile: path})
			looked(t, path, err)
			if tt.err == "" {
				if err != nil || got != secret {
					t.Errorf("got %q, %v; want %q", got, err, secret)
				}
				return
			}
			refused(t, got, err, secret, "pin_file", path, tt.err)
			if tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("%v is not %v", err, tt.is)
			}
		})
	}
}

// TestFileOwner gives a file away, which only root can do; others cannot make what is refused here.
func TestFileOwner(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can give a file away")
	}
	secret := rand.Text()
	path := write(t, filepath.Join(t.TempDir(), "pin"), secret, 0o400)
	const nobody = 65534
	if err := os.Chown(path, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	got, err := ask(t.Context(), configs.Token{Name: "demo", PINFile: path})
	refused(t, got, err, secret, "pin_file "+path, "belongs to user 65534", "it was not used")
	looked(t, path, err)
	var owner *pin.OwnerError
	if !errors.As(pin.Look(configs.Token{PINFile: path}), &owner) || owner.UID != nobody {
		t.Errorf("a look does not say whose it is: %v", owner)
	}
}

// A PIN file is read when the token asks, not before: it may be replaced in between, and a token that is not there
// costs no look at it.
func TestFileIsReadLate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pin")
	source, err := pin.Prepare(t.Context(), configs.Token{Name: "demo", PINFile: path})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		want := rand.Text()
		write(t, path, want, 0o600)
		got, err := source(t.Context(), wrapping.TokenIdentity{})
		if err != nil || string(got) != want {
			t.Errorf("got %q, %v; want %q", got, err, want)
		}
		clear(got)
	}
}

func TestCommand(t *testing.T) {
	secret := rand.Text()
	for _, tt := range contents(secret) {
		t.Run(tt.name, func(t *testing.T) {
			path := write(t, filepath.Join(t.TempDir(), "out"), tt.content, 0o600)
			got, err := ask(t.Context(), configs.Token{Name: "demo", PINCommand: []string{"cat", path}})
			if tt.err != "" {
				refused(t, got, err, secret, "pin_command", tt.err)
				return
			}
			if err != nil || got != tt.want {
				t.Errorf("got %q, %v; want %q", got, err, tt.want)
			}
		})
	}
}

func TestCommandFailures(t *testing.T) {
	secret := rand.Text()
	path := write(t, filepath.Join(t.TempDir(), "out"), secret+"\n", 0o600)
	for _, tt := range []struct {
		name string
		argv []string
		err  string
		is   error
	}{
		{"exit code", []string{"sh", "-c", `cat "$0"; exit 3`, path}, "pin_command ended with exit code 3", nil},
		{"fails without a word", []string{"false"}, "pin_command ended with exit code 1", nil},
		{"more than it may print", []string{"sh", "-c", `cat "$0"; head -c 1000000 /dev/zero`, path}, "pin_command has more than 1024 bytes", nil},
		{"not there", []string{filepath.Join(t.TempDir(), "nothing")}, "pin_command: ", os.ErrNotExist},
		{"not executable", []string{path}, "pin_command: ", os.ErrPermission},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ask(t.Context(), configs.Token{Name: "demo", PINCommand: tt.argv})
			refused(t, got, err, secret, tt.err)
			if tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("%v is not %v", err, tt.is)
			}
		})
	}
}

func TestCommandRunsAtOnceAndOnce(t *testing.T) {
	dir := t.TempDir()
	secret := rand.Text()
	out := write(t, filepath.Join(dir, "out"), secret, 0o600)
	runs := filepath.Join(dir, "runs")
	source, err := pin.Prepare(t.Context(), configs.Token{Name: "demo", PINCommand: []string{"sh", "-c", `echo run >>"$1"; cat "$0"`, out, runs}})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(runs); err != nil || string(got) != "run\n" {
		t.Fatalf("before the PIN is asked for the command ran as %q, %v", got, err)
	}
	first, err := source(t.Context(), wrapping.TokenIdentity{})
	if err != nil || string(first) != secret {
		t.Errorf("got %q, %v; want %q", first, err, secret)
	}
	clear(first) // as whoever logs in does; the zeros are not given as a PIN
	again, err := source(t.Context(), wrapping.TokenIdentity{})
	refused(t, string(again), err, secret, "pin_command", "was used already", "no login was tried")
	if got, err := os.ReadFile(runs); err != nil || string(got) != "run\n" {
		t.Errorf("the command ran as %q, %v", got, err)
	}
}

func TestCommandTakesItsArgumentsAsTheyAre(t *testing.T) {
	arg := `$(id); "` + rand.Text() + ` 'x`
	got, err := ask(t.Context(), configs.Token{Name: "demo", PINCommand: []string{"printf", "%s", arg}})
	if err != nil || got != arg {
		t.Errorf("got %q, %v; want %q", got, err, arg)
	}
}

// A command that hangs is ended with the context; what it printed until then is no PIN.
func TestCommandTimeout(t *testing.T) {
	secret := rand.Text()
	out := write(t, filepath.Join(t.TempDir(), "out"), secret+"\n", 0o600)
	for _, tt := range []struct {
		name   string
		script string
	}{
		{"the command", `cat "$0"; exec sleep 600`},
		{"its child that holds the output", `cat "$0"; sleep 600; :`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			got, err := ask(ctx, configs.Token{Name: "demo", PINCommand: []string{"sh", "-c", tt.script, out}})
			refused(t, got, err, secret, "pin_command: ")
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%v is not the deadline", err)
			}
		})
	}
	t.Run("cancelled before", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		got, err := ask(ctx, configs.Token{Name: "demo", PINCommand: []string{"cat", out}})
		refused(t, got, err, secret, "pin_command: ")
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%v is not the cancellation", err)
		}
	})
}

// A command that is ended takes its children with it: they would go on holding what they hold, here a lock.
func TestCommandEndsWithItsChildren(t *testing.T) {
	dir := t.TempDir()
	lock, ready, lived := filepath.Join(dir, "lock"), filepath.Join(dir, "ready"), filepath.Join(dir, "lived")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		defer cancel()
		for ctx.Err() == nil {
			if _, err := os.Stat(ready); err == nil {
				return
			}
			time.Sleep(time.Millisecond)
		}
	}()
	const script = `flock "$0" -c "touch '$1'; sleep 60; touch '$2'"; :`
	got, err := ask(ctx, configs.Token{Name: "demo", PINCommand: []string{"sh", "-c", script, lock, ready, lived}})
	refused(t, got, err, "", "pin_command: ")
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v is not the cancellation", err)
	}
	f, err := os.Open(lock)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // nothing is in it
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(lived); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the child held its lock to its own end: %v", err)
	}
}

func TestCredential(t *testing.T) {
	secret := rand.Text()
	for _, tt := range contents(secret) {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			t.Setenv("CREDENTIALS_DIRECTORY", dir)
			write(t, filepath.Join(dir, "demo-pin"), tt.content, 0o440) // systemd's own mode: the directory guards it
			got, err := ask(t.Context(), configs.Token{Name: "demo", PINCredential: "demo-pin"})
			if tt.err != "" {
				refused(t, got, err, secret, "pin_credential demo-pin", tt.err)
				return
			}
			if err != nil || got != tt.want {
				t.Errorf("got %q, %v; want %q", got, err, tt.want)
			}
		})
	}
}

func TestCredentialNames(t *testing.T) {
	secret := rand.Text()
	above := t.TempDir()
	write(t, filepath.Join(above, "outside"), secret, 0o400)
	dir := filepath.Join(above, "credentials")
	if err := os.MkdirAll(filepath.Join(dir, "below"), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "below", "pin"), secret, 0o400)
	write(t, filepath.Join(dir, ".hidden"), secret, 0o400)
	t.Setenv("CREDENTIALS_DIRECTORY", dir)
	const noName = "is not the name of a credential"
	for name, want := range map[string]string{
		"../outside":                    noName,
		filepath.Join(above, "outside"): noName,
		"below/pin":                     noName,
		"./below":                       noName,
		"..":                            noName,
		".":                             noName,
		".hidden":                       noName,
		"missing":                       "add LoadCredential=missing:/path to the unit",
		"below":                         "is a directory",
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ask(t.Context(), configs.Token{Name: "demo", PINCredential: name})
			refused(t, got, err, secret, "pin_credential ", want)
		})
	}
}

func TestCredentialOutsideSystemd(t *testing.T) {
	t.Setenv("CREDENTIALS_DIRECTORY", "")
	got, err := ask(t.Context(), configs.Token{Name: "demo", PINCredential: "demo-pin"})
	refused(t, got, err, "", "pin_credential demo-pin", "CREDENTIALS_DIRECTORY is not set", "LoadCredential=demo-pin:/path")
}

func TestNoSource(t *testing.T) {
	_, err := pin.Prepare(t.Context(), configs.Token{Name: "demo"})
	refused(t, "", err, "", "token demo has no source for its PIN", "pin_file, pin_command, pin_prompt or pin_credential")
}
