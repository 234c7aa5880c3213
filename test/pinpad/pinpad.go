// Package pinpad puts a PIN pad in front of a token: a small C library that says of the token that its PINs are typed at the device, takes none in
// C_Login, and waits in it for what the test types.
package pinpad

import (
	_ "embed"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"hsmbridge/test/token"
)

//go:embed module/pinpad.c
var source []byte

// Token is a token whose PINs are typed at the device.
type Token struct{ token.Token }

// New puts a PIN pad in front of t. Its PIN stays known, to be typed.
func New(tb testing.TB, t token.Token) Token {
	tb.Helper()
	dir := tb.TempDir()
	p := Token{t}
	p.Module = filepath.Join(dir, "pinpad.so")
	write(tb, p.Module+".module", t.Module)
	write(tb, filepath.Join(dir, "pinpad.c"), string(source))
	cmd := exec.CommandContext(tb.Context(), "gcc", "-shared", "-fPIC", "-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-DCRYPTOKI_COMPAT",
		"-I/usr/include/p11-kit-1", "-I/usr/local/include/p11-kit-1", "-o", p.Module, filepath.Join(dir, "pinpad.c"), "-ldl")
	if out, err := cmd.CombinedOutput(); err != nil {
		tb.Fatalf("build the PIN pad: %v\n%s", err, out)
	}
	return p
}

// Type types the user's PIN, for the login that waits for it or the next one; an empty one presses cancel.
func (t Token) Type(tb testing.TB, pin string) {
	tb.Helper()
	t.typed(tb, "user", pin)
}

// TypeSO types the security officer's.
func (t Token) TypeSO(tb testing.TB, pin string) {
	tb.Helper()
	t.typed(tb, "so", pin)
}

// Silent has the token not say that its PINs are typed at the device, as some do not.
func (t Token) Silent(tb testing.TB) {
	tb.Helper()
	write(tb, t.Module+".silent", "")
}

// Waits says that what was typed has not been taken.
func (t Token) Waits() bool {
	_, err := os.Stat(t.Module + ".user")
	return err == nil
}

// TypeAhead types both PINs for the next login of each, where nothing is typed yet. It may be called while nobody looks: what fails is typed the next time.
func (t Token) TypeAhead(user, so string) {
	for who, pin := range map[string]string{"user": user, "so": so} {
		if _, err := os.Stat(t.Module + "." + who); err == nil {
			continue
		}
		next := t.Module + "." + who + ".next"
		if err := os.WriteFile(next, []byte(pin), 0o600); err == nil {
			_ = os.Rename(next, t.Module+"."+who)
		}
	}
}

func (t Token) typed(tb testing.TB, who, pin string) {
	tb.Helper()
	write(tb, t.Module+"."+who+".next", pin)
	if err := os.Rename(t.Module+"."+who+".next", t.Module+"."+who); err != nil { // whole at once
		tb.Fatal(err)
	}
}

func write(tb testing.TB, path, text string) {
	tb.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		tb.Fatal(err)
	}
}
