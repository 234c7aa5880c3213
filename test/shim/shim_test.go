package shim_test

import (
	"context"
	"errors"
	"os/exec"
	"strings"
	"testing"
	"time"

	"hsmbridge/hsm"
	"hsmbridge/hsm/pkcs11uri"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/test/shim"
	"hsmbridge/test/softhsm"
)

func open(t *testing.T, m shim.Module) (*hsm.Token, error) {
	t.Helper()
	u, err := pkcs11uri.Parse(m.URI())
	if err != nil {
		t.Fatal(err)
	}
	return hsm.Open(t.Context(), hsm.Config{Name: "test", Module: m.Module, Environment: m.Environment, URI: u},
		func(context.Context, wrapping.TokenIdentity) ([]byte, error) { return []byte(m.PIN), nil })
}

// TestShim shows what the tests of faults stand on: the shim passes everything on, does what the script says when it says it, and counts.
func TestShim(t *testing.T) {
	m := shim.New(t, softhsm.New(t).Token)
	tok, err := open(t, m)
	if err != nil {
		t.Fatal(err)
	}
	generate := func(label string) error {
		_, err := tok.Generate(t.Context(), wrapping.SymmetricDefault, label, nil)
		return err
	}
	if err := generate("one"); err != nil {
		t.Fatal(err)
	}
	if c := m.Counters(t); c.Calls["C_Login"] != 1 || c.Calls["C_GenerateKey"] != 1 || c.TokenObjects != 1 || c.OpenSessions != 2 || c.SessionObjects != 0 || c.Injected != 0 {
		t.Errorf("counters: %+v", c)
	}

	m.Script(t, "# two of three", "C_GenerateKey: return CKR_DEVICE_ERROR after 1 times 2")
	for i, bad := range []bool{false, true, true, false} {
		err := generate(string(rune('a' + i)))
		var e *hsm.Error
		if bad != (err != nil) || bad && (!errors.As(err, &e) || e.CKR() != "CKR_DEVICE_ERROR") {
			t.Errorf("call %d: %v", i, err)
		}
	}
	if c := m.Counters(t); c.Injected != 2 || c.Scripts != 2 || c.TokenObjects != 3 {
		t.Errorf("counters: %+v", c)
	}

	m.Script(t, "C_GenerateKey: answer lost CKR_ARGUMENTS_BAD times 1")
	before := m.Counters(t)
	if err := generate("lost"); err == nil || !strings.Contains(err.Error(), "CKR_ARGUMENTS_BAD") {
		t.Errorf("an answer that was lost: %v", err)
	}
	if key, err := tok.Find(t.Context(), pkcs11uri.URI{Object: "lost"}); err != nil || key.Handle == 0 {
		t.Errorf("what was done although the answer was lost: %+v, %v", key, err)
	}
	if c := m.Counters(t); c.Injected != before.Injected+1 || c.TokenObjects != before.TokenObjects+1 {
		t.Errorf("counters: %+v", c)
	}

	m.Script(t, "C_FindObjects: hang")
	hung := make(chan error, 1)
	go func() { _, err := tok.Keys(t.Context()); hung <- err }()
	select {
	case err := <-hung:
		t.Errorf("it did not hang: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	m.Script(t)
	if err := <-hung; err != nil {
		t.Errorf("after the hang: %v", err)
	}

	m.Script(t, "token removed")
	if _, err := tok.Keys(t.Context()); err == nil {
		t.Error("a token that is not there gave its keys")
	}
	m.Script(t)
	if err := tok.Close(); err != nil {
		t.Error(err)
	}
	if c := m.Counters(t); c.OpenSessions != 0 || c.Calls["C_Finalize"] != 1 {
		t.Errorf("counters: %+v", c)
	}
}

// TestScriptError shows that a script which cannot be read, and a crash, end the process; and that the counters outlive it.
func TestScriptError(t *testing.T) {
	m := shim.New(t, softhsm.New(t).Token)
	for _, tt := range []struct{ script, want string }{
		{"C_WrapKey: return CKR_NOTHING", "what the rule does is not known"},
		{"C_Wrap: hang", "no such function"},
		{"C_WrapKey: delay 3", "what the rule does is not known"},
		{"C_WrapKey: answer lost", "what the rule does is not known"},
		{"C_WrapKey: hang sometimes", "something is left over"},
		{"token", "this is not a statement"},
		{"C_WrapKey: output zero times", "a number is missing"},
		{"C_GetSlotList: crash", "signal: segmentation fault"},
		{"C_GetSlotList: exit", "exit status 3"},
		{"C_GetSlotList: return 0x80000001", "80000001"},
		{"C_Sign: return 0x5 until C_Logins", "no such function"},
	} {
		m.Script(t, tt.script)
		cmd := exec.CommandContext(t.Context(), "pkcs11-tool", "--module", m.Module, "--list-slots")
		cmd.Env = m.Environ()
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out)+err.Error(), tt.want) {
			t.Errorf("%q: %v, want %q\n%s", tt.script, err, tt.want, out)
		}
	}
	if c := m.Counters(t); c.Calls["C_GetSlotList"] != 3 || c.Injected != 3 {
		t.Errorf("counters: %+v", c)
	}
}
