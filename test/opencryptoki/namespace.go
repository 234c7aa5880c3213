package opencryptoki

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hsmbridge/test/namespace"
	"hsmbridge/test/token"
)

// TestingM is *testing.M, or what wraps one.
type TestingM interface{ Run() int }

// Main is the body of a TestMain: the package's tests run inside private namespaces with a pkcsslotd.
func Main(m *testing.M) { os.Exit(Wrap(m).Run()) }

// Wrap gives an m whose Run runs the tests inside private namespaces with a pkcsslotd, for a TestMain that does more:
//
//	func TestMain(m *testing.M) { testscript.Main(opencryptoki.Wrap(m), commands) }
func Wrap(m TestingM) TestingM { return wrapped{m} }

type wrapped struct{ tests TestingM }

// Run starts the test binary once more in new namespaces and waits for it. There it finds environment set, lays out
// the private directories, starts the daemon and runs the tests.
func (w wrapped) Run() int {
	run := w.run
	if os.Getenv(environment) == "" {
		run = func() (int, error) { return namespace.Enter(environment) }
	}
	code, err := run()
	if err != nil {
		fmt.Fprintf(os.Stderr, "openCryptoki for tests: %v\n", err)
		return 1
	}
	return code
}

// run is process 1 of the namespaces.
func (w wrapped) run() (int, error) {
	if err := layOut(); err != nil {
		return 0, err
	}
	stop, err := startDaemon()
	if err != nil {
		return 0, err
	}
	defer stop()
	return w.tests.Run(), nil
}

// layOut gives this mount namespace empty directories where openCryptoki keeps its state, a configuration with soft tokens
// only, and a group file in which pkcs11 is root's group: in a user namespace the real one cannot be used.
func layOut() error {
	const lib = "/var/lib/opencryptoki"
	if err := namespace.Hide("/run", "/dev/shm", lib); err != nil {
		return err
	}
	configuration := []string{"version opencryptoki-3.1"}
	dirs := []string{claims}
	for slot := range slots {
		name := fmt.Sprintf("test%d", slot)
		configuration = append(configuration, fmt.Sprintf("slot %d\n{\nstdll = libpkcs11_sw.so\ntokname = %s\n}", slot, name))
		dirs = append(dirs, filepath.Join(lib, name, "TOK_OBJ"), filepath.Join("/run/lock/opencryptoki", name))
	}
	for _, dir := range dirs {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("lay out openCryptoki's directories: %w", err)
		}
	}
	groups, err := os.ReadFile("/etc/group")
	if err != nil {
		return fmt.Errorf("read the groups: %w", err)
	}
	groups = regexp.MustCompile(`(?m)^pkcs11:.*\n`).ReplaceAll(groups, nil)
	replacements := []struct{ path, content string }{
		{"/etc/opencryptoki/opencryptoki.conf", strings.Join(configuration, "\n") + "\n"},
		{"/etc/group", strings.TrimSpace(string(groups)) + "\npkcs11:x:0:root\n"},
	}
	for _, r := range replacements {
		private := filepath.Join("/run", filepath.Base(r.path))
		if err := os.WriteFile(private, []byte(r.content), 0o644); err != nil { //nolint:gosec // as public as what it replaces
			return fmt.Errorf("write a private %s: %w", r.path, err)
		}
		if err := unix.Mount(private, r.path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount a private %s: %w", r.path, err)
		}
	}
	return nil
}

// startDaemon starts pkcsslotd, waits until it listens, and returns what stops it.
func startDaemon() (stop func(), err error) {
	path, err := token.Program("pkcsslotd")
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	daemon := exec.CommandContext(ctx, path, "-f")
	var said strings.Builder
	daemon.Stdout, daemon.Stderr = &said, &said
	daemon.Cancel = func() error { return daemon.Process.Signal(syscall.SIGTERM) }
	daemon.WaitDelay = 5 * time.Second // then it is killed
	if err := daemon.Start(); err != nil {
		cancel()
		return nil, fmt.Errorf("start pkcsslotd: %w", err)
	}
	var end error // of the daemon, once ended is closed
	ended := make(chan struct{})
	go func() {
		end = daemon.Wait()
		close(ended)
	}()
	stop = func() {
		cancel()
		<-ended
	}

	poll := time.NewTicker(5 * time.Millisecond)
	defer poll.Stop()
	patience := time.NewTimer(30 * time.Second)
	defer patience.Stop()
	for {
		if pid, err := os.ReadFile("/run/pkcsslotd.pid"); err == nil && len(pid) > 0 { // its last step before it serves
			return stop, nil
		}
		select {
		case <-poll.C:
		case <-ended:
			cancel()
			return nil, fmt.Errorf("pkcsslotd ended at once: %w\n%s", end, said.String())
		case <-patience.C:
			stop()
			return nil, fmt.Errorf("pkcsslotd was not ready after 30 s:\n%s", said.String())
		}
	}
}
