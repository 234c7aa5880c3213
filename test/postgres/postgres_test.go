package postgres_test

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx"

	"hsmbridge/test/postgres"
)

func open(t *testing.T, address string) *sql.DB {
	t.Helper()
	db, err := sql.Open("pgx", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

func query(t *testing.T, db *sql.DB, statement string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	var got string
	err := db.QueryRowContext(ctx, statement).Scan(&got)
	return got, err
}

func want(t *testing.T, db *sql.DB, statement, want string) {
	t.Helper()
	if got, err := query(t, db, statement); err != nil || got != want {
		t.Errorf("%s: %q, %v, want %q", statement, got, err, want)
	}
}

// TestServer holds that a server goes away and comes back with the same URL and the same rows.
func TestServer(t *testing.T) {
	s := postgres.NewTCP(t)
	for _, u := range []string{s.URL, s.TCP} {
		want(t, open(t, u), "SELECT current_database()", "postgres")
	}
	withoutPassword, err := url.Parse(s.TCP)
	if err != nil {
		t.Fatal(err)
	}
	withoutPassword.User = url.User("postgres")
	if _, err := query(t, open(t, withoutPassword.String()), "SELECT 'in'"); err == nil {
		t.Error("everybody on the machine can log in")
	}

	db := open(t, s.NewDatabase(t))
	if _, err := db.ExecContext(t.Context(), "CREATE TABLE kept AS SELECT 'kept' AS word"); err != nil {
		t.Fatal(err)
	}
	s.Stop(t)
	if _, err := query(t, db, "SELECT word FROM kept"); err == nil {
		t.Error("a stopped server answers")
	}
	s.Start(t)
	want(t, db, "SELECT word FROM kept", "kept")
}

// TestShared holds that each call is a database of its own in one cluster.
func TestShared(t *testing.T) {
	one, two := open(t, postgres.Shared(t)), open(t, postgres.Shared(t))
	const system = "SELECT system_identifier::text FROM pg_control_system()"
	first, err := query(t, one, system)
	if err != nil {
		t.Fatal(err)
	}
	want(t, two, system, first)
	if _, err := one.ExecContext(t.Context(), "CREATE TABLE mine (n int)"); err != nil {
		t.Fatal(err)
	}
	want(t, one, "SELECT count(*)::text FROM pg_tables WHERE tablename = 'mine'", "1")
	want(t, two, "SELECT count(*)::text FROM pg_tables WHERE tablename = 'mine'", "0")
}

const victim = "HSMBRIDGE_TEST_POSTGRES_VICTIM"

// TestVictim is what TestKilled kills.
func TestVictim(t *testing.T) {
	if os.Getenv(victim) == "" {
		return
	}
	u, err := url.Parse(postgres.Shared(t))
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println(u.Query().Get("host")) //nolint:forbidigo // to TestKilled
	time.Sleep(time.Minute)
}

// TestKilled holds that a test process that is killed leaves no server and no directory.
func TestKilled(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^TestVictim$")
	cmd.Env = append(os.Environ(), victim+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	dir, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	dir = strings.TrimSpace(dir)
	lines, err := os.ReadFile(filepath.Join(dir, "data", "postmaster.pid"))
	if err != nil {
		t.Fatal(err)
	}
	first, _, _ := strings.Cut(string(lines), "\n")
	pid, err := strconv.Atoi(first)
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed

	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		_, err := os.Stat(dir)
		gone := errors.Is(err, fs.ErrNotExist) && !runs(pid)
		if gone {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("still there: directory %t, server %t", err == nil, runs(pid))
		}
	}
}

// runs says whether a process is there and has not ended: an orphan that nobody waits for stays a zombie where
// process 1 does not reap.
func runs(pid int) bool {
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return false
	}
	_, state, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(state, "Z")
}
