package daemon_test

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"hsmbridge/hsm/wrapping"
	"hsmbridge/test/e2e"
	"hsmbridge/test/softhsm"
)

// manager is the part of systemd that a service of Type=notify talks to: a datagram socket. Source: sd_notify(3).
type manager struct {
	path string
	mu   sync.Mutex
	told []string
}

func newManager(t *testing.T) *manager {
	t.Helper()
	m := &manager{path: filepath.Join(t.TempDir(), "notify")}
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: m.path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	go func() {
		b := make([]byte, 4096)
		for {
			n, err := c.Read(b)
			if err != nil {
				return
			}
			m.mu.Lock()
			m.told = append(m.told, string(b[:n]))
			m.mu.Unlock()
		}
	}()
	return m
}

func (m *manager) count(state string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := 0
	for _, told := range m.told {
		for line := range strings.Lines(told) {
			if strings.HasPrefix(line, state) {
				n++
			}
		}
	}
	return n
}

// settle returns when all that was told before is counted: datagrams of one socket are read in the order in which they were sent.
func (m *manager) settle(t *testing.T) {
	t.Helper()
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: m.path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if _, err := c.Write([]byte("SETTLED=1")); err != nil {
		t.Fatal(err)
	}
	happens(t, "the end of what was told", func() bool { return m.count("SETTLED=1") == 1 })
}

func happens(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if f() {
			return
		}
	}
	t.Fatalf("%s did not happen", what)
}

// serve starts hsmbridge serve as systemd does; with activate through systemd's own socket activation.
func serve(t *testing.T, config, socket string, activate bool, env ...string) (c *exec.Cmd, log string) {
	t.Helper()
	argv := []string{filepath.Join(e2e.Binaries(t), "hsmbridge"), "-c", config, "serve"}
	if activate {
		program, err := exec.LookPath("systemd-socket-activate")
		if err != nil {
			t.Fatalf("%v: run make deps", err)
		}
		argv = append([]string{program, "--listen=" + socket, "--fdname=control"}, argv...)
		for _, e := range append(e2e.Environ(), env...) { // it hands on no environment by itself
			argv = append(argv[:1], append([]string{"--setenv=" + e}, argv[1:]...)...)
		}
	}
	c = exec.CommandContext(context.Background(), argv[0], argv[1:]...)
	c.Env = append(e2e.Environ(), env...)
	log = filepath.Join(t.TempDir(), "log")
	f, err := os.Create(log)
	if err != nil {
		t.Fatal(err)
	}
	c.Stdout, c.Stderr = f, f
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	t.Cleanup(func() {
		_ = c.Process.Kill()
		_ = c.Wait()
		if b, err := os.ReadFile(log); err == nil && t.Failed() {
			t.Logf("%s", b)
		}
	})
	return c, log
}

func configured(t *testing.T, socket string) string {
	t.Helper()
	emulator := e2e.StartEmulator(t)
	arn := emulator.CreateKey(emulator.Client(), wrapping.HMAC256)
	return e2e.Config(t, emulator.Endpoint, softhsm.New(t).Token, []e2e.Key{{Name: "k", Spec: wrapping.HMAC256, Generate: true, Destinations: []string{arn}}},
		"database: x.db\ncontrol: {socket: "+socket+"}\nmetrics: {listen: none}\n")
}

// systemd is told when the daemon is ready, that it lives, that it reads its configuration again, and that it ends.
func TestNotify(t *testing.T) {
	m := newManager(t)
	socket := filepath.Join(t.TempDir(), "c.sock")
	config := configured(t, socket)
	c, _ := serve(t, config, socket, false, "NOTIFY_SOCKET="+m.path, "WATCHDOG_USEC=300000")
	happens(t, "READY=1", func() bool { return m.count("READY=1") == 1 })
	happens(t, "WATCHDOG=1", func() bool { return m.count("WATCHDOG=1") >= 2 })
	if err := c.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	happens(t, "a reload", func() bool {
		return m.count("RELOADING=1") == 1 && m.count("MONOTONIC_USEC=") == 1 && m.count("READY=1") == 2
	})
	if err := c.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := c.Wait(); err != nil {
		t.Errorf("the daemon ended with %v", err)
	}
	m.settle(t)
	if n := m.count("STOPPING=1"); n != 1 {
		t.Errorf("systemd was told %d times that the daemon ends", n)
	}
}

// systemd opens the socket: the daemon serves that one, and starts with the first request.
func TestSocketActivation(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "c.sock")
	config := configured(t, socket)
	serve(t, config, socket, true)
	happens(t, "the socket", func() bool { _, err := os.Stat(socket); return err == nil })
	happens(t, "an answer", func() bool {
		out := e2e.Run(t, config, "status")
		return out.Code == 0 && strings.Contains(out.Stdout, "ready")
	})
	happens(t, "an import", func() bool { return strings.Contains(e2e.Run(t, config, "jobs").Stdout, " done ") })
}
