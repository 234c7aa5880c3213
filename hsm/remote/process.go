package remote

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"hsmbridge/hsm/failure"
	"hsmbridge/hsm/remote/wire"
)

// inherited are the variables of its own environment that hsmbridge hands on. LD_LIBRARY_PATH is how some vendors' modules find their
// other libraries. AWS's credentials are not among them.
func inherited() []string { return []string{"PATH", "HOME", "TZ", "LANG", "LD_LIBRARY_PATH"} }

func environment(c Config) []string {
	all := map[string]string{}
	for _, name := range inherited() {
		if v, ok := os.LookupEnv(name); ok {
			all[name] = v
		}
	}
	maps.Copy(all, c.Environment)
	all[wire.EnvStage] = wire.StageNone
	if c.Network {
		all[wire.EnvStage] = wire.StageAllowed
	}
	var out []string
	for _, name := range slices.Sorted(maps.Keys(all)) {
		out = append(out, name+"="+all[name])
	}
	return out
}

// start starts the process: this binary again, with one end of a socket pair that nobody else has.
func start(c Config) (*Token, error) {
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("a socket pair: %w", err)
	}
	theirs := os.NewFile(uintptr(ends[1]), "module process")
	defer theirs.Close() //nolint:errcheck // the process has a copy
	if err := unix.SetNonblock(ends[0], true); err != nil {
		return nil, errors.Join(err, unix.Close(ends[0]))
	}
	ours := os.NewFile(uintptr(ends[0]), "module process")
	cmd := &exec.Cmd{
		Path: "/proc/self/exe", Args: []string{os.Args[0], wire.Argument, c.Name}, Env: environment(c), Stdout: os.Stderr, Stderr: os.Stderr,
		ExtraFiles:  []*os.File{theirs},
		SysProcAttr: &syscall.SysProcAttr{Setpgid: true}, // Ctrl-C is for hsmbridge
	}
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(err, ours.Close())
	}
	t := newToken(c, ours, ours)
	t.kill = func() {
		_ = cmd.Process.Kill()
		_ = ours.Close()
	}
	t.pid = cmd.Process.Pid
	go t.receive()
	go func() {
		_ = cmd.Wait()
		close(t.reaped)
		t.end(death{mark: failure.ProcessDied, cause: ending(cmd.ProcessState)})
	}()
	return t, nil
}

// ending says how the process ended.
func ending(s *os.ProcessState) string {
	if ws, ok := s.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return fmt.Sprintf("the process of the PKCS#11 module was ended by %s (%s)", unix.SignalName(ws.Signal()), ws.Signal())
	}
	return fmt.Sprintf("the process of the PKCS#11 module ended with exit code %d", s.ExitCode())
}

// newToken makes a token that speaks over a connection.
func newToken(c Config, in io.Reader, out io.Writer) *Token {
	return &Token{
		name: c.Name, timeout: c.CallTimeout, private: append(slices.Collect(maps.Values(c.Environment)), c.Module, c.Parameters), conn: wire.NewConn(bufio.NewReaderSize(in, 16<<10), out, wire.MaxAnswer), calls: map[uint64]*call{},
		hello: make(chan wire.Hello, 1), wants: make(chan wire.WantPIN, 1), opened: make(chan answer, 1),
		ended: make(chan struct{}), reaped: make(chan struct{}), kill: func() {},
	}
}

// receive hands out what the process sends, until it ends or sends what it must not.
func (t *Token) receive() {
	for {
		h, err := t.conn.Next()
		if err == nil {
			err = t.dispatch(h)
		}
		switch {
		case err == nil:
		case errors.Is(err, wire.ErrMalformed):
			_ = t.violation(err)
			return
		default:
			t.broken(err)
			return
		}
	}
}

func (t *Token) dispatch(h wire.Header) error {
	payload, err := t.conn.Payload(h, nil)
	if err != nil {
		return err
	}
	twice := fmt.Errorf("%w: a frame of kind %d that nobody waits for", wire.ErrMalformed, h.Kind)
	switch {
	case h.Kind == wire.KindHello:
		var m wire.Hello
		if err := wire.Decode(payload, &m); err != nil {
			return err
		}
		return offer(t.hello, m, twice)
	case h.Kind == wire.KindWantPIN:
		var m wire.WantPIN
		if err := wire.Decode(payload, &m); err != nil {
			return err
		}
		return offer(t.wants, m, twice)
	case h.Kind != wire.KindAnswer && h.Kind != wire.KindFailed:
		return twice
	}
	a := answer{failed: h.Kind == wire.KindFailed, payload: payload}
	if h.Call == 0 {
		return offer(t.opened, a, twice)
	}
	if !t.complete(h.Call, a) {
		return twice
	}
	return nil
}

// offer puts v where one is waited for. full is the error when nobody does.
func offer[T any](c chan T, v T, full error) error {
	select {
	case c <- v:
		return nil
	default:
		return full
	}
}

// broken is called when the connection is: as a rule because the process ended, which is then waited for, to say how.
func (t *Token) broken(err error) {
	const soon = 2 * time.Second
	select {
	case <-t.ended:
	case <-t.reaped:
		<-t.ended
	case <-time.After(soon):
		t.end(death{mark: failure.ProcessDied, cause: "the process of the PKCS#11 module does not answer any more (" + err.Error() + ") and was killed"})
	}
}

// violation kills a process that sends what it must not.
func (t *Token) violation(err error) error {
	cause := "the process of the PKCS#11 module sent what it must not (" + strings.ToValidUTF8(err.Error(), "?") + ") and was killed"
	t.end(death{mark: failure.Protocol, cause: cause})
	return &failure.Error{Op: "talk to the module of " + t.name, ErrClass: failure.ClassSession, Cause: cause, Fix: "if it happens again, report this module", Err: err, Mark: failure.Protocol}
}
