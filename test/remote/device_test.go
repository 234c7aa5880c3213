package remote

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"hsmbridge/hsm/failure"
	"hsmbridge/hsm/remote"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/test/pinpad"
	"hsmbridge/test/shim"
	"hsmbridge/test/softhsm"
)

// atDevice is a SoftHSM2 token that says that its PIN is typed at the device (CKF_PROTECTED_AUTHENTICATION_PATH). It has no such device: it answers
// CKR_ARGUMENTS_BAD to a C_Login without a PIN.
const atDevice = "token flags 0x100"

// noPIN is a source that must not be asked.
func noPIN(t *testing.T) remote.PINSource {
	t.Helper()
	return func(context.Context, wrapping.TokenIdentity) ([]byte, error) {
		t.Error("a PIN was asked for")
		return nil, errors.New("none")
	}
}

// A token whose PIN is typed at the device is opened without one, and whoever opens it is told before.
func TestLoginAtDevice(t *testing.T) {
	pad := pinpad.New(t, softhsm.New(t).Token)
	m := shim.New(t, pad.Token)
	var starter remote.Starter
	c := config(t, m.Token)
	told := 0
	c.AtDevice = func(_ context.Context, id wrapping.TokenIdentity, wait time.Duration) error {
		told++
		if id.Label != m.Label || wait != remote.DefaultDeviceTime || m.Counters(t).Calls["C_Login"] != 0 {
			t.Errorf("told of %q, %s, after %d logins", id.Label, wait, m.Counters(t).Calls["C_Login"])
		}
		pad.Type(t, m.PIN)
		return nil
	}
	tok, err := starter.Open(t.Context(), c, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tok.Generate(t.Context(), wrapping.SymmetricDefault, "k", nil); err != nil {
		t.Error(err)
	}
	if err := tok.Close(); err != nil {
		t.Error(err)
	}
	if n := m.Counters(t).Calls["C_Login"]; told != 1 || n != 1 {
		t.Errorf("told %d times, %d logins", told, n)
	}
}

// A login at the device whose outcome nobody knows counts as refused, and so does one that the token refused: none is tried again before a person says so.
func TestLoginAtDeviceFails(t *testing.T) {
	for _, tc := range []struct{ name, rule, says string }{
		{"crash", "C_Login: crash", "is not known"},
		{"exit", "C_Login: exit", "is not known"},
		{"nobody comes", "C_Login: hang", "nobody logged in at the device, or the device hangs"},
		{"interrupted", "C_Login: hang", "is not known: it was not waited for any more: context canceled"},
		{"refused", "", "C_Login: CKR_ARGUMENTS_BAD (0x7): nobody was logged in at the device"},
		{"cancelled there", "C_Login: return CKR_FUNCTION_CANCELED", "CKR_FUNCTION_CANCELED (0x50): nobody was logged in at the device"},
		{"wrong PIN", "C_Login: return CKR_PIN_INCORRECT", "CKR_PIN_INCORRECT (0xA0): nobody was logged in at the device"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := faulty(t)
			m.Script(t, atDevice, tc.rule)
			var starter remote.Starter
			c := config(t, m.Token)
			if tc.name == "nobody comes" {
				c.DeviceTime = time.Second
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if tc.name == "interrupted" {
				go func() {
					for m.Counters(t).Injected == 0 && ctx.Err() == nil {
						time.Sleep(10 * time.Millisecond)
					}
					cancel()
				}()
			}
			_, err := starter.Open(ctx, c, noPIN(t))
			if code(err) != failure.PINRefused || !strings.Contains(err.Error(), tc.says) || !strings.Contains(err.Error(), "hsmbridge resume --token") {
				t.Errorf("%s: %v", code(err), err)
			}
			if errors.Is(err, context.Canceled) != (tc.name == "interrupted") {
				t.Errorf("interrupted: %v", err)
			}
			logins := m.Counters(t).Calls["C_Login"]
			if _, err := starter.Open(t.Context(), c, noPIN(t)); code(err) != failure.PINRefused || m.Counters(t).Calls["C_Login"] != logins || logins != 1 {
				t.Errorf("%d and %d logins; the next: %v", logins, m.Counters(t).Calls["C_Login"], err)
			}
			m.Script(t, atDevice)
			c.LoginAgain = true
			if _, err := starter.Open(t.Context(), c, noPIN(t)); code(err) != failure.PINRefused || m.Counters(t).Calls["C_Login"] != logins+1 {
				t.Errorf("a person said so, and there were %d logins: %v", m.Counters(t).Calls["C_Login"], err)
			}
		})
	}
}

// With an error of whoever is told, no login begins, and the next may.
func TestLoginAtDeviceNotBegun(t *testing.T) {
	m := faulty(t)
	m.Script(t, atDevice)
	var starter remote.Starter
	c := config(t, m.Token)
	var told atomic.Int32
	refuse := errors.New("it cannot be written down")
	c.AtDevice = func(context.Context, wrapping.TokenIdentity, time.Duration) error { told.Add(1); return refuse }
	for n := int32(1); n <= 2; n++ {
		_, err := starter.Open(t.Context(), c, noPIN(t))
		if code(err) != failure.PINUnavailable || !errors.Is(err, refuse) || told.Load() != n {
			t.Errorf("%d: %v", n, err)
		}
	}
	if n := m.Counters(t).Calls["C_Login"]; n != 0 {
		t.Errorf("%d logins", n)
	}
}
