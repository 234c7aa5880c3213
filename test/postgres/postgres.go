// Package postgres makes throwaway PostgreSQL clusters for tests: real ones, on a Unix socket of their own, without fsync. The machine's own cluster, if there is one, is neither used nor disturbed.
//
//	url := postgres.Start(t)   // a cluster of its own
//	url := postgres.Shared(t)  // a new database in the one cluster of this test process, which costs far less
//	s := postgres.New(t)       // a cluster that can be stopped and started again
//	s := postgres.NewTCP(t)    // one that listens on loopback as well
//
// Nothing is left behind, not by a test process that was killed either: the kernel stops its servers, and a shell that
// waits for the end of the test process removes their directories.
package postgres

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"hsmbridge/test/loopback"
)

const (
	superuser = "postgres"
	patience  = 30 * time.Second // for a start, a stop, an initdb
)

// Server is one PostgreSQL cluster.
type Server struct {
	// URL is the database "postgres" over the Unix socket, as its superuser and without a password: only the user of the
	// cluster and root can open the socket's directory.
	URL string
	// TCP is the same database over loopback, for [NewTCP]. Everybody on the machine can reach that, so it has a password.
	TCP string

	bin  string              // where the programs of PostgreSQL are
	dir  string              // of the socket, the data and the log
	host string              // where it listens on loopback; empty: nowhere
	port int                 // there, and the number of the socket
	cred *syscall.Credential // of the unprivileged user, when this process is root's

	remove func() error // holds the pipe whose end is the sign to remove the files, as long as the server is known

	mutex   sync.Mutex
	process *os.Process   // nil when it is stopped
	ended   chan struct{} // closed when process has ended
}

// Start is the URL of a cluster that belongs to one test and is gone after it.
func Start(tb testing.TB) string {
	tb.Helper()
	return New(tb).URL
}

// New makes a cluster that belongs to one test and is gone after it. It listens on its socket only: a port would be free for others while it is stopped.
func New(tb testing.TB) *Server {
	tb.Helper()
	return own(tb, "", 5432)
}

// NewTCP is [New] with TCP, on an address of loopback that is the cluster's own.
func NewTCP(tb testing.TB) *Server {
	tb.Helper()
	const lowest, ports = 10000, 20000 // the kernel gives others from 32768 up
	return own(tb, loopback.Host(), lowest+int(time.Now().UnixNano()%ports))
}

func own(tb testing.TB, host string, port int) *Server {
	tb.Helper()
	s, remove, err := create(tb.Context(), host, port)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := errors.Join(s.stop(), remove()); err != nil {
			tb.Error(err)
		}
	})
	return s
}

// shared is the cluster of [Shared]. It ends with the process.
var shared = sync.OnceValues(func() (*Server, error) { //nolint:gochecknoglobals // one cluster for all tests
	s, _, err := create(context.Background(), "", 5432)
	return s, err
})

// Shared is the URL of a new, empty database in the cluster that all tests of this process share.
func Shared(tb testing.TB) string {
	tb.Helper()
	s, err := shared()
	if err != nil {
		tb.Fatal(err)
	}
	return s.NewDatabase(tb)
}

// NewDatabase makes an empty database and returns its URL over the Unix socket.
func (s *Server) NewDatabase(tb testing.TB) string {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), patience)
	defer cancel()
	conn, err := pgx.Connect(ctx, s.URL)
	for err != nil && ctx.Err() == nil { // its queue of connections is short, and others start side by side
		time.Sleep(100 * time.Millisecond)
		conn, err = pgx.Connect(ctx, s.URL)
	}
	if err != nil {
		tb.Fatalf("connect to PostgreSQL: %v", err)
	}
	defer conn.Close(context.WithoutCancel(ctx)) //nolint:errcheck // the database is there
	name := "test_" + strings.ToLower(rand.Text())
	if _, err := conn.Exec(ctx, "CREATE DATABASE "+name); err != nil {
		tb.Fatal(err)
	}
	return s.socketURL(name)
}

// Stop ends the server and every connection to it, as a database that goes away.
func (s *Server) Stop(tb testing.TB) {
	tb.Helper()
	if err := s.stop(); err != nil {
		tb.Fatal(err)
	}
}

// Start starts a stopped server: the same URLs, the same databases.
func (s *Server) Start(tb testing.TB) {
	tb.Helper()
	if err := s.start(tb.Context()); err != nil {
		tb.Fatal(err)
	}
}

// create makes a cluster and starts it. remove takes the stopped server's files away; the end of the process does too.
func create(ctx context.Context, host string, port int) (s *Server, remove func() error, err error) {
	bin, err := programs()
	if err != nil {
		return nil, nil, err
	}
	// Not TMPDIR: a socket's path has room for 107 bytes, and the unprivileged user has to get there.
	dir, err := os.MkdirTemp("/tmp", "hsmbridge-postgres-")
	if err != nil {
		return nil, nil, fmt.Errorf("make a directory for PostgreSQL: %w", err)
	}
	remove, err = removeAtEnd(dir)
	if err != nil {
		return nil, nil, errors.Join(err, os.RemoveAll(dir))
	}
	s = &Server{bin: bin, dir: dir, host: host, port: port, remove: remove}
	if err := s.initialise(ctx); err != nil {
		return nil, nil, errors.Join(err, remove())
	}
	if err := s.start(ctx); err != nil {
		return nil, nil, errors.Join(err, remove())
	}
	return s, remove, nil
}

// initialise makes the files of the cluster, and the URLs.
func (s *Server) initialise(ctx context.Context) error {
	if err := s.becomeUnprivileged(); err != nil {
		return err
	}
	password := rand.Text()
	passwordFile := filepath.Join(s.dir, "password")
	if err := s.write(passwordFile, password); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(s.bin, "initdb"), "--pgdata", s.data(), "--username", superuser,
		"--auth-local", "trust", "--auth-host", "scram-sha-256", "--pwfile", passwordFile,
		"--encoding", "UTF8", "--locale", "C", "--no-sync", "--no-instructions")
	cmd.Dir, cmd.Env = s.dir, environ()
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.cred}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w\n%s", err, out)
	}
	s.URL = s.socketURL(superuser)
	if s.host != "" {
		s.TCP = (&url.URL{
			Scheme: "postgres", User: url.UserPassword(superuser, password),
			Host: net.JoinHostPort(s.host, strconv.Itoa(s.port)), Path: "/" + superuser,
			RawQuery: url.Values{"sslmode": {"disable"}}.Encode(),
		}).String()
	}
	return nil
}

// becomeUnprivileged gives the cluster to Debian's user postgres where this process is root's: PostgreSQL refuses to run as root.
func (s *Server) becomeUnprivileged() error {
	if os.Geteuid() != 0 {
		return nil
	}
	u, err := user.Lookup(superuser)
	if err != nil {
		return fmt.Errorf("PostgreSQL does not run as root, and the user that it would run as is missing (run `make deps`): %w", err)
	}
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	if err := errors.Join(err1, err2, os.Chown(s.dir, int(uid), int(gid))); err != nil {
		return fmt.Errorf("give PostgreSQL's directory to its user: %w", err)
	}
	s.cred = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	return nil
}

// write makes a file that the user of the cluster can read, and nobody else.
func (s *Server) write(path, content string) error {
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		return fmt.Errorf("write for PostgreSQL: %w", err)
	}
	if s.cred == nil {
		return nil
	}
	if err := os.Chown(path, int(s.cred.Uid), int(s.cred.Gid)); err != nil {
		return fmt.Errorf("write for PostgreSQL: %w", err)
	}
	return nil
}

func (s *Server) data() string { return filepath.Join(s.dir, "data") }

func (s *Server) socketURL(database string) string {
	query := url.Values{"host": {s.dir}, "port": {strconv.Itoa(s.port)}, "sslmode": {"disable"}}
	return (&url.URL{Scheme: "postgres", User: url.User(superuser), Path: "/" + database, RawQuery: query.Encode()}).String()
}

// start starts the server and waits until it takes connections.
func (s *Server) start(ctx context.Context) error {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if s.process != nil {
		return errors.New("PostgreSQL runs already")
	}
	log, err := os.OpenFile(filepath.Join(s.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("open PostgreSQL's log: %w", err)
	}
	defer log.Close() //nolint:errcheck // the server has its own

	args := []string{"-D", s.data()}
	for _, setting := range []string{
		"port=" + strconv.Itoa(s.port), "listen_addresses=" + s.host, "unix_socket_directories=" + s.dir,
		"max_connections=400", // of the daemons of many tests at a time
		"fsync=off", "synchronous_commit=off", "full_page_writes=off", "shared_buffers=16MB",
		"dynamic_shared_memory_type=mmap", // files in its own directory, not in /dev/shm
	} {
		args = append(args, "-c", setting)
	}
	cmd := exec.Command(filepath.Join(s.bin, "postgres"), args...) //nolint:noctx // it lives longer than a context, until stop
	cmd.Dir, cmd.Env = s.dir, environ()
	cmd.Stdout, cmd.Stderr = log, log
	// SIGQUIT is PostgreSQL's immediate shutdown: it takes its processes and its shared memory with it. A group of its own keeps
	// Ctrl-C from it, so that the tests' clean-up finds it running.
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.cred, Pdeathsig: syscall.SIGQUIT, Setpgid: true}
	started, ended := make(chan error), make(chan struct{})
	go func() {
		// The kernel sends Pdeathsig when the thread that started the child ends, not the process: this one waits with it.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // the log says how it ended
			close(ended)
		}
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("start PostgreSQL: %w", err)
	}
	s.process, s.ended = cmd.Process, ended
	if err := s.untilReady(ctx); err != nil {
		said, _ := os.ReadFile(log.Name())
		return errors.Join(fmt.Errorf("%w\n%s", err, said), s.end())
	}
	return nil
}

// untilReady waits until the server has written that it takes connections into the eighth line of its postmaster.pid,
// where pg_ctl looks too.
func (s *Server) untilReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	poll := time.NewTicker(5 * time.Millisecond)
	defer poll.Stop()
	for {
		if lines := s.pidFile(); len(lines) > 7 && strings.TrimSpace(lines[7]) == "ready" && lines[0] == strconv.Itoa(s.process.Pid) {
			return nil
		}
		select {
		case <-poll.C:
		case <-s.ended:
			return errors.New("PostgreSQL ended at once")
		case <-ctx.Done():
			return fmt.Errorf("PostgreSQL is not ready: %w", ctx.Err())
		}
	}
}

func (s *Server) pidFile() []string {
	content, _ := os.ReadFile(filepath.Join(s.data(), "postmaster.pid")) // there is none yet
	return strings.Split(string(content), "\n")
}

func (s *Server) stop() error {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return s.end()
}

// end ends the server: fast shutdown, which breaks all connections, and after a while an immediate one.
func (s *Server) end() error {
	if s.process == nil {
		return nil
	}
	for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGQUIT, syscall.SIGKILL} {
		if err := s.process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return fmt.Errorf("stop PostgreSQL: %w", err)
		}
		select {
		case <-s.ended:
			s.process, s.ended = nil, nil
			return nil
		case <-time.After(patience / 3):
		}
	}
	return errors.New("PostgreSQL does not stop")
}

// removeAtEnd has a shell wait for the end of this process, however it ends, and then remove dir. remove is the same at once.
func removeAtEnd(dir string) (remove func() error, err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make a pipe: %w", err)
	}
	// PostgreSQL ends at the same moment and may still write: so several times.
	const script = `read -r _; i=0; while [ $i -lt 50 ]; do rm -rf -- "$0" 2>/dev/null && exit; sleep 0.2; i=$((i+1)); done; exit 1`
	cmd := exec.Command("/bin/sh", "-c", script, dir) //nolint:noctx // it has to outlive everything here
	cmd.Stdin = r
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // Ctrl-C is for the tests
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start a shell: %w", err), r.Close(), w.Close())
	}
	_ = r.Close()
	return sync.OnceValue(func() error {
		if err := w.Close(); err != nil {
			return fmt.Errorf("remove PostgreSQL's directory: %w", err)
		}
		if err := cmd.Wait(); err != nil {
			return fmt.Errorf("remove %s: %w", dir, err)
		}
		return nil
	}), nil
}

// programs is the directory with initdb and postgres, of the newest version installed: Debian keeps them off PATH.
func programs() (string, error) {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if err != nil {
		return "", fmt.Errorf("look for PostgreSQL: %w", err)
	}
	if path, err := exec.LookPath("initdb"); err == nil && len(found) == 0 {
		found = []string{path}
	}
	if len(found) == 0 {
		return "", errors.New("PostgreSQL is not installed: run `make deps`")
	}
	version := func(path string) int {
		n, _ := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(path))))
		return n
	}
	return filepath.Dir(slices.MaxFunc(found, func(a, b string) int { return version(a) - version(b) })), nil
}

// environ is this process's environment without what PostgreSQL's programs would read from it.
func environ() []string {
	env := slices.DeleteFunc(os.Environ(), func(kv string) bool {
		return strings.HasPrefix(kv, "PG") || strings.HasPrefix(kv, "LC_") || strings.HasPrefix(kv, "LANG")
	})
	return append(env, "LC_ALL=C")
}
