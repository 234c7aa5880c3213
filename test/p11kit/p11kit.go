// Package p11kit shows other fixtures' tokens through p11-kit: by its proxy module, which joins the modules that the machine is configured
// for into one, and by `p11-kit server`, which serves a token over a Unix socket to p11-kit-client.so in other processes.
//
// Both modules give a new function list, with a state of its own, at each C_GetFunctionList. The protocol of the server knows OAEP and
// strips every AES key wrap mechanism.
//
// The configuration of p11-kit belongs to the machine, and root's is ignored where a user's would be read. So the tests of a package that
// uses [Proxy] run in private namespaces, which [Main] enters from TestMain.
package p11kit

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"hsmbridge/test/namespace"
	"hsmbridge/test/token"
)

const (
	environment = "HSMBRIDGE_TEST_P11KIT_NAMESPACE" // inside, the directory of Dir
	modules     = "/usr/share/p11-kit/modules"      // of packages
	machine     = "/etc/pkcs11"                     // of the administrator
)

// HowServed says how a token of [Serve] is reached.
const HowServed = "The module is p11-kit-client.so, which reaches a `p11-kit server` over a Unix socket. Its protocol strips the mechanisms that it does not know."

// Main is the body of a TestMain: the package's tests run where p11-kit knows only the modules that they name.
func Main(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintf(os.Stderr, "p11-kit for tests: %v\n", err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	if os.Getenv(environment) == "" {
		return namespace.Enter(environment)
	}
	hidden := []string{modules}
	if _, err := os.Stat(machine); !errors.Is(err, fs.ErrNotExist) {
		hidden = append(hidden, machine)
	}
	if err := namespace.Hide(hidden...); err != nil {
		return 0, err
	}
	dir, err := os.MkdirTemp("", "p11kit")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := os.Setenv(environment, dir); err != nil {
		return 0, err
	}
	return m.Run(), nil
}

// Dir is a directory that stays as long as the tests run.
func Dir() string { return os.Getenv(environment) }

// Proxy gives the tokens as p11-kit-proxy.so shows them, all in one module. p11-kit reads once in a process which modules there are (its
// library stays loaded): every call in a process has to name the same modules with the same parameters.
func Proxy(tb testing.TB, tokens ...token.Token) []token.Token {
	tb.Helper()
	configure(tb, tokens)
	proxy, err := token.Module("p11-kit-proxy.so")
	if err != nil {
		tb.Fatal(err)
	}
	all := map[string]string{}
	for _, t := range tokens {
		for name, value := range t.Environment {
			all[name] = value
		}
	}
	out := make([]token.Token, len(tokens))
	for i, t := range tokens {
		out[i] = t
		out[i].Module, out[i].Parameters, out[i].Environment = proxy, "", all
	}
	return out
}

// configure writes one file for each module. A module that cannot be initialised fails the proxy.
func configure(tb testing.TB, tokens []token.Token) {
	tb.Helper()
	if os.Getenv(environment) == "" {
		tb.Fatal("p11kit works only inside p11kit.Main: call it from TestMain")
	}
	old, err := filepath.Glob(filepath.Join(modules, "*"))
	if err != nil {
		tb.Fatal(err)
	}
	for _, file := range old {
		if err := os.Remove(file); err != nil {
			tb.Fatal(err)
		}
	}
	for _, t := range tokens {
		lines := "module: " + t.Module + "\ncritical: yes\n"
		if t.Parameters != "" {
			lines += "x-init-reserved: " + t.Parameters + "\n"
		}
		name := strings.TrimSuffix(filepath.Base(t.Module), ".so") + ".module"
		if err := os.WriteFile(filepath.Join(modules, name), []byte(lines), 0o644); err != nil { //nolint:gosec // as public as what it replaces
			tb.Fatalf("configure p11-kit: %v", err)
		}
	}
}

// Server is a `p11-kit server` for one token.
type Server struct {
	token.Token // as p11-kit-client.so shows it

	served token.Token
	socket string
	cmd    *exec.Cmd
	said   bytes.Buffer // by the server, its modules and what they use
}

// Serve starts a server for the token. It ends with the test. Outside [Main] the token's module must need no parameters.
func Serve(tb testing.TB, t token.Token) *Server {
	tb.Helper()
	if Dir() != "" || t.Parameters != "" {
		configure(tb, []token.Token{t})
	}
	client, err := token.Module("p11-kit-client.so", "pkcs11")
	if err != nil {
		tb.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "p11") //nolint:usetesting // a socket's path has room for 107 bytes, which the directory of a test can exceed
	if err != nil {
		tb.Fatal(err)
	}
	s := &Server{Token: t, served: t, socket: filepath.Join(dir, "socket")}
	s.Module, s.Parameters = client, ""
	s.Environment = map[string]string{"P11_KIT_SERVER_ADDRESS": "unix:path=" + s.socket}
	tb.Cleanup(func() {
		s.Kill()
		if tb.Failed() {
			tb.Logf("p11-kit server said:\n%s", s.said.String())
		}
		if err := os.RemoveAll(dir); err != nil {
			tb.Error(err)
		}
	})
	s.Start(tb)
	return s
}

// Start starts the server, again after [Server.Kill], and waits until it listens.
func (s *Server) Start(tb testing.TB) {
	tb.Helper()
	if err := os.Remove(s.socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		tb.Fatal(err)
	}
	path, err := token.Program("p11-kit")
	if err != nil {
		tb.Fatal(err)
	}
	args := []string{"server", "--foreground", "--name", s.socket}
	if Dir() == "" {
		args = append(args, "--provider", s.served.Module)
	}
	s.cmd = exec.Command(path, append(args, s.served.URI())...) //nolint:noctx // it lives until Kill
	s.cmd.Env = s.served.Environ()
	s.cmd.Stdout, s.cmd.Stderr = &s.said, &s.said
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // it has a process for each connection
	if err := s.cmd.Start(); err != nil {
		tb.Fatalf("start p11-kit server: %v", err)
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		ready, err := listens(s.socket)
		if err != nil {
			tb.Fatal(err)
		}
		if ready {
			return
		}
		if time.Now().After(deadline) {
			s.Kill()
			tb.Fatalf("p11-kit server does not listen:\n%s", s.said.String())
		}
	}
}

// listens says that a connection to the socket would be taken. None is made: for each, the server begins a process that initialises the
// module, and two of them at once lock each other out of the database of tpm2-pkcs11.
func listens(socket string) (bool, error) {
	table, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		return false, err
	}
	for line := range strings.Lines(string(table)) {
		// Num RefCount Protocol Flags Type St Inode Path; __SO_ACCEPTCON is 1 << 16.
		if f := strings.Fields(line); len(f) == 8 && f[7] == socket && f[3] == "00010000" {
			return true, nil
		}
	}
	return false, nil
}

// Kill kills the server and the processes of its connections.
func (s *Server) Kill() {
	if s.cmd == nil {
		return
	}
	_ = syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL) // it may have ended
	_ = s.cmd.Wait()                                      // killed
	s.cmd = nil
}
