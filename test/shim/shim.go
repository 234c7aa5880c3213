// Package shim puts a fault-injecting PKCS#11 module in front of a token's own: a small C library (module/) that passes every
// function of PKCS#11 v2.40 on, and on the way does what a script says: answers with an error, waits, hangs, crashes, loses sessions, handles,
// the login or the whole token, spoils outputs, lies about lengths and mechanisms. It counts what it sees, so that a test can tell
// that a fault did happen and that nothing was left behind.
//
// The language of the script is described at the top of module/script.c, and [Module.Script] changes it while the module is in use, also in another process.
package shim

import (
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"hsmbridge/test/token"
)

//go:embed module
var sources embed.FS

// Module is a token that is reached through the shim.
type Module struct {
	token.Token
	script, counters string
	writing          *sync.Mutex
	written          *int64
}

// New puts the shim in front of t. Every Module has a library of its own, so that a process can have several, in front of different modules.
func New(tb testing.TB, t token.Token) Module {
	tb.Helper()
	built, err := build(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	dir := tb.TempDir()
	m := Module{Token: t, script: filepath.Join(dir, "script"), counters: filepath.Join(dir, "counters"), writing: new(sync.Mutex), written: new(int64)}
	m.Module = filepath.Join(dir, "shim.so")
	library, err := os.ReadFile(built)
	if err != nil {
		tb.Fatal(err)
	}
	if err := os.WriteFile(m.Module, library, 0o700); err != nil { //nolint:gosec // a library is executable
		tb.Fatal(err)
	}
	settings := fmt.Sprintf("HSMBRIDGE_SHIM_MODULE=%s\nHSMBRIDGE_SHIM_SCRIPT=%s\nHSMBRIDGE_SHIM_COUNTERS=%s\n", t.Module, m.script, m.counters)
	if err := os.WriteFile(m.Module+".conf", []byte(settings), 0o600); err != nil {
		tb.Fatal(err)
	}
	m.Script(tb)
	return m
}

// Script replaces the script by these lines; none: the module behaves. It counts from the next PKCS#11 call on, and ends what hangs.
func (m Module) Script(tb testing.TB, lines ...string) {
	tb.Helper()
	m.writing.Lock()
	defer m.writing.Unlock()
	next := m.script + ".next"
	if err := os.WriteFile(next, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		tb.Fatalf("write the script of the shim: %v", err)
	}
	*m.written++
	when := time.Unix(*m.written, 0) // the shim reads a file again that has another time
	if err := os.Chtimes(next, when, when); err != nil {
		tb.Fatalf("write the script of the shim: %v", err)
	}
	if err := os.Rename(next, m.script); err != nil {
		tb.Fatalf("write the script of the shim: %v", err)
	}
}

// Counters is what the shim has counted since the first C_Initialize. The counts go on over processes, and are there after a crash.
type Counters struct {
	Calls          map[string]int // by function
	OpenSessions   int            // now
	SessionObjects int            // that live now
	TokenObjects   int            // stored objects made less those destroyed
	Injected       int            // faults
	Scripts        int            // how often a script was read
}

// Counters reads them. They are all zero before the first C_Initialize.
func (m Module) Counters(tb testing.TB) Counters {
	tb.Helper()
	c := Counters{Calls: map[string]int{}}
	text, err := os.ReadFile(m.counters)
	if os.IsNotExist(err) {
		return c
	}
	if err != nil {
		tb.Fatalf("read the counters of the shim: %v", err)
	}
	if bytes.IndexByte(text, 0) >= 0 {
		return c // the first C_Initialize is about to write it
	}
	others := map[string]*int{
		"open_sessions": &c.OpenSessions, "session_objects": &c.SessionObjects, "token_objects": &c.TokenObjects, "injected": &c.Injected, "scripts": &c.Scripts,
	}
	for line := range strings.Lines(string(text)) {
		name, number, _ := strings.Cut(strings.TrimRight(line, "\n"), " ")
		n, err := strconv.Atoi(strings.TrimSpace(number))
		if err != nil {
			tb.Fatalf("read the counters of the shim: %q: %v", line, err)
		}
		if place := others[name]; place != nil {
			*place = n
		} else {
			c.Calls[name] = n
		}
	}
	return c
}

// Include is the directory that holds p11-kit/pkcs11.h, the declarations of PKCS#11.
func include() (string, error) {
	for _, dir := range []string{"/usr/include/p11-kit-1", "/usr/local/include/p11-kit-1"} {
		if _, err := os.Stat(filepath.Join(dir, "p11-kit", "pkcs11.h")); err == nil {
			return dir, nil
		}
	}
	return "", fmt.Errorf("p11-kit/pkcs11.h is not installed: run `make deps`")
}

// build compiles the library, unless one of the same sources is in the user's cache, and gives its path.
func build(ctx context.Context) (string, error) {
	digest := sha256.New()
	var files []string
	err := fs.WalkDir(sources, "module", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		files = append(files, path)
		text, err := sources.ReadFile(path)
		digest.Write(text)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("read the sources of the shim: %w", err)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("keep the shim: %w", err)
	}
	cache = filepath.Join(cache, "hsmbridge")
	library := filepath.Join(cache, "shim-"+hex.EncodeToString(digest.Sum(nil)[:8])+".so")
	if _, err := os.Stat(library); err == nil {
		return library, nil
	}
	if err := os.MkdirAll(cache, 0o700); err != nil {
		return "", fmt.Errorf("keep the shim: %w", err)
	}
	work, err := os.MkdirTemp(cache, "build-")
	if err != nil {
		return "", fmt.Errorf("keep the shim: %w", err)
	}
	defer func() { _ = os.RemoveAll(work) }()
	return library, compile(ctx, work, files, library)
}

// compile compiles in the directory work and puts the result to its place in one step.
func compile(ctx context.Context, work string, files []string, library string) error {
	headers, err := include()
	if err != nil {
		return err
	}
	args := []string{
		"-shared", "-fPIC", "-O2", "-g", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden",
		"-DCRYPTOKI_COMPAT", "-I" + headers, "-o", "shim.so",
	}
	for _, path := range files {
		text, err := sources.ReadFile(path)
		if err != nil {
			return fmt.Errorf("read the sources of the shim: %w", err)
		}
		name := filepath.Base(path)
		if err := os.WriteFile(filepath.Join(work, name), text, 0o600); err != nil {
			return fmt.Errorf("build the shim: %w", err)
		}
		if strings.HasSuffix(name, ".c") {
			args = append(args, name)
		}
	}
	cmd := exec.CommandContext(ctx, "gcc", append(args, "-ldl", "-lpthread")...)
	cmd.Dir = work
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the shim: %w\n%s", err, out)
	}
	if err := os.Rename(filepath.Join(work, "shim.so"), library); err != nil {
		return fmt.Errorf("keep the shim: %w", err)
	}
	return nil
}
