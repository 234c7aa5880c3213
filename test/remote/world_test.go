package remote

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hsmbridge/hsm/failure"
	"hsmbridge/hsm/pkcs11uri"
	"hsmbridge/hsm/remote"
	"hsmbridge/hsm/worker"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/hsm/wrapping/trial"
	"hsmbridge/test/shim"
	"hsmbridge/test/softhsm"
	"hsmbridge/test/token"
)

// envParent makes this binary a process that opens a token and makes a key: a test kills it.
const envParent = "REMOTE_TEST_PARENT"

func TestMain(m *testing.M) {
	switch {
	case worker.Called(os.Args):
		os.Exit(worker.Main(os.Args))
	case os.Getenv(envParent) != "":
		os.Exit(parent())
	}
	os.Exit(m.Run())
}

// config is how a fixture's token is opened.
func config(tb testing.TB, tok token.Token) remote.Config {
	tb.Helper()
	u, err := pkcs11uri.Parse(tok.URI())
	if err != nil {
		tb.Fatal(err)
	}
	return remote.Config{Name: tok.Label, Module: tok.Module, Parameters: tok.Parameters, Environment: tok.Environment, URI: u, CallTimeout: 30 * time.Second}
}

func pin(secret string) remote.PINSource {
	return func(context.Context, wrapping.TokenIdentity) ([]byte, error) { return []byte(secret), nil }
}

// faulty is a SoftHSM2 token behind the module that injects faults.
func faulty(t *testing.T) shim.Module {
	t.Helper()
	return shim.New(t, softhsm.New(t).Token)
}

// open opens a token for the length of the test.
func open(t testing.TB, s *remote.Starter, c remote.Config, secret string) *remote.Token {
	t.Helper()
	tok, err := s.Open(t.Context(), c, pin(secret))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tok.Close(); err != nil {
			t.Error(err)
		}
	})
	return tok
}

// TestMonitorOfTheModule holds that in a module's process, which is where wraps are made, the thread with which Go's runtime watches the others gives way to them.
func TestMonitorOfTheModule(t *testing.T) {
	m := softhsm.New(t)
	tok := open(t, new(remote.Starter), config(t, m.Token), m.PIN)
	dir, err := os.Open(fmt.Sprintf("/proc/%d/task", tok.PID()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = dir.Close() })
	threads, err := dir.Readdirnames(-1)
	if err != nil || len(threads) < 2 {
		t.Fatal(threads, err)
	}
	thread, err := strconv.Atoi(threads[1]) // hsm's TestMonitor shows that this is the one
	if err != nil {
		t.Fatal(err)
	}
	attr, err := unix.SchedGetAttr(thread, 0)
	if err != nil {
		t.Fatal(err)
	}
	if attr.Policy != unix.SCHED_BATCH {
		t.Errorf("the policy is %d, want SCHED_BATCH", attr.Policy)
	}
}

// generated is a key in the token, the plan for it and a wrapping key whose private half the test has.
func generated(t testing.TB, tok *remote.Token) (wrapping.Key, wrapping.Plan, *trial.RSAKey) {
	t.Helper()
	key, err := tok.Generate(t.Context(), wrapping.SymmetricDefault, "k", nil)
	if err != nil {
		t.Fatal(err)
	}
	plan, rsa := planAndKey(t)
	return key, plan, rsa
}

// planAndKey is a plan that SoftHSM2 can do, and a wrapping key for it.
func planAndKey(t testing.TB) (wrapping.Plan, *trial.RSAKey) {
	t.Helper()
	plan := wrapping.Plan{
		KeySpec: wrapping.SymmetricDefault, Algorithm: wrapping.OAEPSHA1, WrappingKeySpec: wrapping.RSA2048, Length: 32,
		Mechanism: wrapping.Mechanism{Name: "CKM_RSA_PKCS_OAEP", Type: 9, Form: wrapping.FormOAEP},
	}
	rsa, err := trial.NewRSAKey(plan.WrappingKeySpec)
	if err != nil {
		t.Fatal(err)
	}
	return plan, rsa
}

// until waits for something that happens in another process.
func until(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if f() {
			return
		}
	}
	t.Fatalf("%s did not happen", what)
}

// code is how the table of retries knows an error.
func code(err error) string {
	var e *failure.Error
	if errors.As(err, &e) {
		return e.CKR()
	}
	return fmt.Sprint(err)
}

// parentOf is a process's parent; 0 when it has ended.
func parentOf(pid int) int {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	_, rest, _ := strings.Cut(string(b), "\nPPid:")
	line, _, _ := strings.Cut(rest, "\n")
	ppid, _ := strconv.Atoi(strings.TrimSpace(line))
	return ppid
}

func gone(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(b), ") Z ")
}
