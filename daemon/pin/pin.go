// Package pin gets the PIN of a token from where the configuration says: a file that only its owner reads, a
// command, a prompt on the terminal, or a systemd credential. A PIN never stands in configuration, argv or a log.
package pin

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/term"

	"hsmbridge/configs"
	"hsmbridge/hsm/wrapping"
)

// Source gives a PIN. Whoever calls it overwrites the bytes after use.
type Source func(ctx context.Context, token wrapping.TokenIdentity) ([]byte, error)

// maxBytes is more than any token takes.
const maxBytes = 1024

// commandTimeout is how long a pin_command may take.
const commandTimeout = 60 * time.Second

// Later makes the source of a token's PIN for a process that loads no PKCS#11 module itself: all of it, pin_command included, waits until
// the token is found, so that a PIN is in memory for as long as it takes to hand it over. The source is nil for a token whose PIN is typed at the
// device.
func Later(t configs.Token) (Source, error) {
	if t.Quirks.NeedsNoPIN() {
		return nil, nil
	}
	if len(t.PINCommand) > 0 && t.PINFile == "" {
		return func(ctx context.Context, _ wrapping.TokenIdentity) ([]byte, error) {
			return fromCommand(ctx, t.PINCommand)
		}, nil
	}
	return waiting(t)
}

// Prepare makes the source of a token's PIN for a process that loads the PKCS#11 module itself. A pin_command is run at once, because such a
// process must not start others once the module is initialised in it; everything else waits until the token is found. The source is nil for a
// token whose PIN is typed at the device.
func Prepare(ctx context.Context, t configs.Token) (Source, error) {
	if t.Quirks.NeedsNoPIN() {
		return nil, nil // it is typed at the device
	}
	if len(t.PINCommand) > 0 && t.PINFile == "" {
		secret, err := fromCommand(ctx, t.PINCommand)
		if err != nil {
			return nil, err
		}
		return func(context.Context, wrapping.TokenIdentity) ([]byte, error) {
			s := secret
			secret = nil // whoever gets it overwrites it: a second time there would be zero bytes
			if s == nil {
				return nil, errors.New("pin_command: its PIN was used already; no login was tried")
			}
			return s, nil
		}, nil
	}
	return waiting(t)
}

// waiting is the source of a PIN that is read when the token asks for it.
func waiting(t configs.Token) (Source, error) {
	switch {
	case t.PINFile != "":
		return func(context.Context, wrapping.TokenIdentity) ([]byte, error) { return fromFile(t.PINFile) }, nil
	case t.PINPrompt:
		return func(ctx context.Context, token wrapping.TokenIdentity) ([]byte, error) {
			return fromTerminal(ctx, token, "PIN")
		}, nil
	case t.PINCredential != "":
		return func(context.Context, wrapping.TokenIdentity) ([]byte, error) { return fromCredential(t.PINCredential) }, nil
	}
	return nil, fmt.Errorf("token %s has no source for its PIN; set pin_file, pin_command, pin_prompt or pin_credential", t.Name)
}

// SecurityOfficer is the source of the security officer's PIN: a file that only its owner reads, or the terminal if none is named.
func SecurityOfficer(file string) Source {
	return func(ctx context.Context, token wrapping.TokenIdentity) ([]byte, error) {
		if file != "" {
			return fromFile(file)
		}
		return fromTerminal(ctx, token, "PIN of the security officer (SO)")
	}
}

// fromFile reads a PIN file.
func fromFile(path string) ([]byte, error) {
	f, err := openFile(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // it was only read
	return read(f, "pin_file "+path)
}

// openFile opens a PIN file: a regular file of ours or of root that nobody else can read.
func openFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a FIFO without a writer is refused below, not waited for
	if err != nil {
		return nil, fmt.Errorf("pin_file: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		err = fmt.Errorf("pin_file: %w", err)
	} else {
		err = usable(path, info)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// usable refuses a PIN file that others can read, or have put there.
func usable(path string, info fs.FileInfo) error {
	if !info.Mode().IsRegular() {
		return fmt.Errorf("pin_file %s is not a regular file", path)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("pin_file %s can be read by others (mode %04o), so it was not used; run: chmod 0400 %s", path, info.Mode().Perm(), path)
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Uid != 0 && int(st.Uid) != os.Getuid() {
		return &OwnerError{Path: path, UID: st.Uid}
	}
	return nil
}

// OwnerError says that a PIN file belongs to another user than the one who runs this process.
type OwnerError struct {
	Path string
	UID  uint32
}

func (e *OwnerError) Error() string {
	return fmt.Sprintf("pin_file %s belongs to user %d, neither root nor the user of this process, so it was not used", e.Path, e.UID)
}

// Look says why a token's PIN could not be had from its pin_file or pin_command, as far as that shows without reading the PIN and without running
// the command. What is for another user only is an [OwnerError] or [fs.ErrPermission]: it may be good for the daemon's.
func Look(t configs.Token) error {
	switch {
	case t.Quirks.NeedsNoPIN():
		return nil
	case t.PINFile != "":
		f, err := openFile(t.PINFile)
		if err == nil {
			return f.Close()
		}
		if errors.Is(err, fs.ErrPermission) {
			if info, serr := os.Stat(t.PINFile); serr == nil { // who may not read it may see who may
				return cmp.Or(usable(t.PINFile, info), err)
			}
		}
		return err
	case len(t.PINCommand) > 0:
		if _, err := exec.LookPath(t.PINCommand[0]); err != nil {
			return fmt.Errorf("pin_command: %w", err)
		}
	}
	return nil
}

// Notes says what a look as this user cannot tell of another one's: a pin_file that root alone can read, and a pin_command that is not named by its whole path.
func Notes(t configs.Token) []string {
	switch {
	case t.Quirks.NeedsNoPIN():
	case t.PINFile != "":
		info, err := os.Stat(t.PINFile)
		if err != nil || os.Geteuid() != 0 || usable(t.PINFile, info) != nil {
			return nil
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Uid == 0 {
			return []string{fmt.Sprintf("pin_file %s belongs to root, and only root can read it: a daemon that runs as another user (User= of its unit) needs it to belong to that user", t.PINFile)}
		}
	case len(t.PINCommand) > 0 && !filepath.IsAbs(t.PINCommand[0]):
		where := "PATH"
		if strings.Contains(t.PINCommand[0], "/") {
			where = "working folder"
		}
		return []string{fmt.Sprintf("pin_command %s is looked up by the %s of who runs it: this check took its own, and for the daemon its own counts; write the whole path", t.PINCommand[0], where)}
	}
	return nil
}

// fromCredential reads a systemd credential (LoadCredential= or LoadCredentialEncrypted=).
// Source: systemd.exec(5), "Credentials".
func fromCredential(name string) ([]byte, error) {
	dir := os.Getenv("CREDENTIALS_DIRECTORY")
	if dir == "" {
		return nil, fmt.Errorf("pin_credential %s: CREDENTIALS_DIRECTORY is not set; this works under systemd, with LoadCredential=%s:/path in the unit", name, name)
	}
	if name != filepath.Base(name) || strings.HasPrefix(name, ".") {
		return nil, fmt.Errorf("pin_credential %q is not the name of a credential", name)
	}
	f, err := os.Open(filepath.Join(dir, name)) //nolint:gosec // name is one component, checked above
	if err != nil {
		return nil, fmt.Errorf("pin_credential %s: %w; add LoadCredential=%s:/path to the unit", name, err, name)
	}
	defer f.Close() //nolint:errcheck // it was only read
	return read(f, "pin_credential "+name)
}

// fromCommand runs the command and takes the first line of what it prints. Its standard error is shown, its
// output never.
func fromCommand(ctx context.Context, argv []string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	var out bytes.Buffer
	out.Grow(maxBytes + bytes.MinRead) // never grown, so that no copy stays behind
	c := exec.CommandContext(ctx, argv[0], argv[1:]...)
	c.Stdout, c.Stderr = &limited{&out, maxBytes + 1}, os.Stderr
	// Its whole process group ends with it. It cannot ask on the terminal: pin_prompt does.
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c.Cancel = func() error { return syscall.Kill(-c.Process.Pid, syscall.SIGKILL) }
	c.WaitDelay = time.Second
	err := c.Run()
	defer func() {
		out.Reset() // back to the start: what was read is behind the offset
		clear(out.AvailableBuffer()[:out.Cap()])
	}()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) && ctx.Err() == nil {
			return nil, fmt.Errorf("pin_command ended with exit code %d", exit.ExitCode())
		}
		return nil, fmt.Errorf("pin_command: %w", errors.Join(err, ctx.Err()))
	}
	return read(&out, "pin_command")
}

// limited passes on n bytes and drops the rest.
type limited struct {
	w io.Writer
	n int
}

// ReadFrom copies through a buffer of its own, which it clears: io.Copy's would keep the PIN.
func (l *limited) ReadFrom(r io.Reader) (total int64, err error) {
	buf := make([]byte, maxBytes)
	defer clear(buf)
	for {
		n, rerr := r.Read(buf)
		total += int64(n)
		if _, err := l.Write(buf[:n]); err != nil {
			return total, err
		}
		if errors.Is(rerr, io.EOF) {
			return total, nil
		}
		if rerr != nil {
			return total, rerr
		}
	}
}

func (l *limited) Write(p []byte) (int, error) {
	take := min(len(p), l.n)
	l.n -= take
	if _, err := l.w.Write(p[:take]); err != nil {
		return 0, err
	}
	return len(p), nil
}

// fromTerminal asks on the controlling terminal, without echo.
func fromTerminal(ctx context.Context, token wrapping.TokenIdentity, what string) ([]byte, error) {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("pin_prompt: there is no terminal to ask on (%w); use pin_file, pin_command or pin_credential for a service", err)
	}
	fd := int(tty.Fd())
	before, err := term.GetState(fd)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("pin_prompt: %w", err), tty.Close())
	}
	fmt.Fprintf(tty, "%s of token %q (serial %q): ", what, token.Label, token.Serial)
	type answer struct {
		secret []byte
		err    error
	}
	answered := make(chan answer, 1)
	go func() {
		secret, err := term.ReadPassword(fd)
		answered <- answer{secret, err}
	}()
	var secret []byte
	select {
	case a := <-answered:
		secret, err = a.secret, a.err
		defer tty.Close() //nolint:errcheck // nothing is buffered
	case <-ctx.Done():
		// The read cannot be ended, so the terminal stays open: the process is about to end.
		err = errors.Join(ctx.Err(), term.Restore(fd, before))
	}
	fmt.Fprintln(tty)
	if err != nil {
		return nil, fmt.Errorf("pin_prompt: %w", err)
	}
	if len(secret) == 0 {
		return nil, errors.New("pin_prompt: no PIN was given; no login was tried")
	}
	return secret, nil
}

// read takes the first line.
func read(r io.Reader, what string) ([]byte, error) {
	buf := make([]byte, maxBytes+1)
	n, err := io.ReadFull(r, buf)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		clear(buf)
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	if n > maxBytes {
		clear(buf)
		return nil, fmt.Errorf("%s has more than %d bytes, which is no PIN", what, maxBytes)
	}
	line, _, _ := bytes.Cut(buf[:n], []byte("\n"))
	line = bytes.TrimSuffix(line, []byte("\r"))
	if len(line) == 0 {
		return nil, fmt.Errorf("%s is empty; no login was tried", what)
	}
	secret := bytes.Clone(line)
	clear(buf)
	return secret, nil
}
