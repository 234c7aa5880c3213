package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestSecondDaemonIsRefused(t *testing.T) {
	both(t, func(t *testing.T, open func(string, time.Duration) *Store, _ *clock) {
		s := one(open)
		config := Config{Path: filepath.Join(t.TempDir(), "x.db"), Daemon: "one"}
		if s.Postgres() {
			config = Config{Postgres: pgURL(t, s), Daemon: "one"}
		} else {
			first, err := Open(t.Context(), config)
			if err != nil {
				t.Fatal(err)
			}
			defer first.Close() //nolint:errcheck // the end of the test
		}
		_, err := Open(t.Context(), config)
		var running *AlreadyRunningError
		if !errors.As(err, &running) || !s.Postgres() && !strings.Contains(err.Error(), fmt.Sprintf("process %d", os.Getpid())) {
			t.Errorf("a second daemon: %v", err)
		}
		if s.Postgres() {
			config.Daemon = "two"
			other, err := Open(t.Context(), config)
			if err != nil {
				t.Fatalf("a second daemon of another name: %v", err)
			}
			if err := other.Close(); err != nil {
				t.Error(err)
			}
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

// pgURL is the URL of the database that a store uses.
func pgURL(t *testing.T, s *Store) string {
	t.Helper()
	var name, dir, port string
	if err := s.read.QueryRowContext(t.Context(), "SELECT current_database(), current_setting('unix_socket_directories'), current_setting('port')").Scan(&name, &dir, &port); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("postgres://postgres@/%s?host=%s&port=%s", name, dir, port)
}

const holdEnv = "HSMBRIDGE_TEST_HOLD"

func TestMain(m *testing.M) {
	if path := os.Getenv(holdEnv); path != "" {
		s, err := Open(context.Background(), Config{Path: path, Daemon: "one"})
		fmt.Fprintln(os.Stdout, s != nil, err)
		time.Sleep(time.Minute)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// The lock of a killed process is gone with it.
func TestKilledHolder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.db")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.CommandContext(t.Context(), self)
	c.Env = append(os.Environ(), holdEnv+"="+path)
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 4)
	if _, err := out.Read(b); err != nil || string(b) != "true" {
		t.Fatalf("%s, %v", b, err)
	}
	var running *AlreadyRunningError
	if _, err := Open(t.Context(), Config{Path: path, Daemon: "one"}); !errors.As(err, &running) {
		t.Errorf("while it lives: %v", err)
	}
	_ = c.Process.Kill()
	_ = c.Wait()
	s, err := Open(t.Context(), Config{Path: path, Daemon: "one"})
	if err != nil {
		t.Fatalf("after its end: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
