// Package token is what the fixtures of real tokens (test/softhsm, test/nss, test/opencryptoki) have in
// common: what a test needs to know to use a token, and how the parts of one are found on a machine.
//
// A missing part fails the test; it never skips it. Everything can be installed with `make deps`.
package token

import (
	"context"
	"crypto/rand"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"
)

// Token is one initialised token that belongs to one test and is gone after it.
type Token struct {
	Module      string            // absolute path of the PKCS#11 module
	Parameters  string            // CK_C_INITIALIZE_ARGS.pReserved; empty for every module but NSS
	Environment map[string]string // what the module reads from the environment at C_Initialize
	Label       string            // CK_TOKEN_INFO.label without its trailing spaces; unique in its module
	Serial      string            // CK_TOKEN_INFO.serialNumber without its trailing spaces; need not be unique
	PIN         string            // of the user, random
	SOPIN       string            // of the security officer, random; empty where a module has no SO login
	Dir         string            // private directory of the test: PIN files go there
}

// PINFile writes the user's PIN, without a newline, to a new file with mode 0400 and returns its path.
func (t Token) PINFile(tb testing.TB) string {
	tb.Helper()
	f, err := os.CreateTemp(t.Dir, "pin-*")
	if err != nil {
		tb.Fatalf("write the PIN file: %v", err)
	}
	if _, err := f.WriteString(t.PIN); err != nil {
		tb.Fatalf("write the PIN file: %v", err)
	}
	if err := f.Chmod(0o400); err != nil {
		tb.Fatalf("write the PIN file: %v", err)
	}
	if err := f.Close(); err != nil {
		tb.Fatalf("write the PIN file: %v", err)
	}
	return f.Name()
}

// Setenv sets Environment for the test and its children until the test ends. A module that is loaded into
// the test's own process reads it at C_Initialize.
func (t Token) Setenv(tb testing.TB) {
	tb.Helper()
	for name, value := range t.Environment {
		tb.Setenv(name, value)
	}
}

// Environ is the process's environment with Environment added, for exec.Cmd.Env.
func (t Token) Environ() []string {
	env := os.Environ()
	for name, value := range t.Environment {
		env = append(env, name+"="+value)
	}
	return env
}

// URI names the token alone, as RFC 7512 writes it. Labels of fixtures need no escaping.
func (t Token) URI() string { return "pkcs11:token=" + t.Label }

// Tool runs OpenSC's pkcs11-tool on the token, logged in as the user, and returns what it prints. It fails the test
// when pkcs11-tool does. It cannot drive NSS, which needs Parameters.
func (t Token) Tool(tb testing.TB, args ...string) string {
	tb.Helper()
	args = append([]string{"--module", t.Module, "--token-label", t.Label, "--login", "--pin", t.PIN}, args...)
	out, err := Run(tb.Context(), t.Environ(), "pkcs11-tool", args...)
	if err != nil {
		tb.Fatal(err)
	}
	return out
}

// ToolFails is [Token.Tool] with another PIN, which the token must refuse.
func (t Token) ToolFails(tb testing.TB, pin string, args ...string) {
	tb.Helper()
	args = append([]string{"--module", t.Module, "--token-label", t.Label, "--login", "--pin", pin}, args...)
	if _, err := Run(tb.Context(), t.Environ(), "pkcs11-tool", args...); err == nil {
		tb.Fatal("the token took a wrong PIN")
	}
}

// Generate makes an extractable, sensitive AES-256 key with pkcs11-tool: something for a test to find.
func (t Token) Generate(tb testing.TB, label, id string) {
	tb.Helper()
	t.Tool(tb, "--keygen", "--key-type", "AES:32", "--label", label, "--id", id, "--sensitive", "--extractable")
}

// Run runs a program with the environment env and returns what it wrote to both outputs. An error holds that
// output, and the hint to run `make deps` when the program is missing. PINs stand in the arguments of
// softhsm2-util and pkcs11-tool because those take them nowhere else: right for a token that lives as
// long as a test, and wrong everywhere else.
func Run(ctx context.Context, env []string, name string, args ...string) (string, error) {
	path, err := Program(name)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = env
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

// Program finds a program on PATH or in the sbin directories, which a user's PATH often lacks.
func Program(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/local/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s is not installed: run `make deps`", name)
}

// Module finds a PKCS#11 module by file name in the library directories of Debian (every architecture),
// Fedora, SUSE and /usr/local. below lists directories under those to look in first, for example "softhsm".
// The path returned has no symbolic links in it, so that one file has one name.
func Module(name string, below ...string) (string, error) {
	roots := []string{"/usr/lib/*-linux-gnu*", "/usr/lib64", "/usr/lib", "/usr/local/lib64", "/usr/local/lib"}
	for _, sub := range append(below, ".") {
		for _, root := range roots {
			found, err := filepath.Glob(filepath.Join(root, sub, name))
			if err != nil {
				return "", fmt.Errorf("find %s: %w", name, err)
			}
			sort.Strings(found)
			for _, path := range found {
				if file, err := filepath.EvalSymlinks(path); err == nil {
					return file, nil
				}
			}
		}
	}
	return "", fmt.Errorf("%s is not installed: run `make deps`", name)
}

// Digits is a random PIN of n decimal digits, which every token accepts.
func Digits(n int) (string, error) {
	var pin strings.Builder
	for range n {
		d, err := rand.Int(rand.Reader, big.NewInt(10))
		if err != nil {
			return "", fmt.Errorf("make a PIN: %w", err)
		}
		pin.WriteString(d.String())
	}
	return pin.String(), nil
}

// PINs is Digits for a test: a user's and a security officer's PIN, never equal.
func PINs(tb testing.TB, n int) (user, so string) {
	tb.Helper()
	for {
		user, err := Digits(n)
		if err != nil {
			tb.Fatal(err)
		}
		so, err := Digits(n)
		if err != nil {
			tb.Fatal(err)
		}
		if user != so {
			return user, so
		}
	}
}

// Files lists every path under the directories given, sorted: for tests which show that nothing was left behind.
// A directory that does not exist has no files. What PostgreSQL keeps in /dev/shm is left out: other packages'
// tests start and stop servers at the same time, and initdb tries POSIX shared memory whatever it is told to use.
func Files(tb testing.TB, dirs ...string) []string {
	tb.Helper()
	var files []string
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			if err != nil {
				return fs.SkipDir // gone in the meantime, or another user's
			}
			if !strings.HasPrefix(path, "/dev/shm/PostgreSQL.") {
				files = append(files, path)
			}
			return nil
		})
		if err != nil {
			tb.Fatalf("list %s: %v", dir, err)
		}
	}
	sort.Strings(files)
	return files
}
