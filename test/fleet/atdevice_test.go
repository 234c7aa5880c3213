package fleet

import (
	"slices"
	"strings"
	"syscall"
	"testing"

	"hsmbridge/daemon/control"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/kmsclient/kmsemu"
	"hsmbridge/test/pinpad"
	"hsmbridge/test/shim"
)

// device is a daemon with a token whose PIN is typed at its device.
type device struct {
	*world
	test *testing.T
	pad  pinpad.Token
	shim shim.Module
	arn  string
	path string // the configuration
}

func newDevice(t *testing.T) *device {
	t.Helper()
	w := newWorld(t, kmsemu.Options{})
	d := &device{world: w, test: t, arn: w.key("k", wrapping.HMAC256)}
	d.pad = pinpad.New(t, w.token.Token)
	d.shim = shim.New(t, d.pad.Token)
	w.token.Module = d.shim.Module
	d.path = w.config("one", "")
	text := readFile(t, d.path)
	at := strings.Index(text, "    pin_file:")
	end := at + strings.Index(text[at:], "\n")
	write(t, d.path, text[:at]+"    quirks: {protected_authentication_path: true}"+text[end:])
	return d
}

func (d *device) logins() int { return d.shim.Counters(d.t).Calls["C_Login"] }

// state waits until the token of a daemon is in a state, with a reason that has a part.
func (d *device) state(p *process, state, part string) control.Status {
	d.t.Helper()
	var s control.Status
	until(d.test, "the token to be "+state, func() bool {
		var err error
		s, err = p.client.Status(d.t.Context())
		return err == nil && len(s.Tokens) == 1 && s.Tokens[0].State == state && strings.Contains(s.Tokens[0].Reason, part)
	})
	return s
}

// A daemon calls for somebody at its start when a token's PIN is typed at its device, waits without being in the way, and goes on when it was typed. When the
// login is over, it does not ask again before a person says so.
func TestAtDevice(t *testing.T) {
	t.Parallel()
	d := newDevice(t)
	p := d.launch("one", d.path)
	s := d.state(p, "opening", "type it there")
	people := slices.ContainsFunc(s.People, func(n control.NeedsPerson) bool {
		return n.Token == "hsm" && strings.Contains(n.Message, "asks for its PIN at its own device") && strings.Contains(n.Message, d.token.Serial)
	})
	if !people || !s.Ready || s.Tokens[0].Until.IsZero() {
		t.Errorf("while it waits: %s", asJSON(s))
	}
	until(t, "the login", func() bool { return d.logins() == 1 })
	d.pad.Type(t, d.token.PIN)
	d.state(p, "open", "")
	until(t, "the import", func() bool { return d.emu.State(d.arn) == "Enabled" })
	p.settled()
	if n := strings.Count(readFile(t, p.log), "the token asks for its PIN at its own device"); n != 1 || d.logins() != 1 {
		t.Errorf("%d lines of the log, %d logins", n, d.logins())
	}

	// The module crashes, and with it the login goes.
	d.shim.Script(t, "C_SignInit: crash times 1", "C_WrapKey: crash times 1", "C_FindObjectsInit: crash times 1")
	p.ask("import", "k", true)
	s = d.state(p, "parked", "does not ask again by itself")
	if !strings.Contains(s.Tokens[0].Reason, "SIGSEGV") || d.logins() != 1 {
		t.Errorf("after %d logins: %s", d.logins(), asJSON(s.Tokens))
	}
	d.shim.Script(t)
	if err := p.client.ResumeToken(t.Context(), "hsm"); err != nil {
		t.Fatal(err)
	}
	d.state(p, "opening", "type it there")
	d.pad.Type(t, d.token.PIN)
	d.state(p, "open", "")
	p.settled()
	if d.logins() != 2 {
		t.Errorf("%d logins", d.logins())
	}
}

// An error of the HSM that passes costs no login at the device. What does is asked for at once: another configuration of the token, by whoever changed it, and
// a person's word that it is to be used again.
func TestAtDeviceKept(t *testing.T) {
	t.Parallel()
	d := newDevice(t)
	p := d.launch("one", d.path)
	until(t, "the login", func() bool { return d.logins() == 1 })
	d.pad.Type(t, d.token.PIN)
	until(t, "the import", func() bool { return d.emu.State(d.arn) == "Enabled" })
	p.settled()

	d.shim.Script(t, "C_WrapKey: return CKR_DEVICE_ERROR times 1")
	p.ask("import", "k", true)
	d.state(p, "resting", "CKR_DEVICE_ERROR")
	d.shim.Script(t)
	if err := p.client.ResumeToken(t.Context(), "hsm"); err != nil {
		t.Fatal(err)
	}
	d.state(p, "opening", "type it there") // somebody is there, and wants it to be opened anew
	d.pad.Type(t, d.token.PIN)
	d.state(p, "open", "")
	p.settled()
	if d.logins() != 2 {
		t.Errorf("%d logins", d.logins())
	}

	d.shim.Script(t, "C_WrapKey: return CKR_DEVICE_ERROR times 1")
	p.ask("import", "k", true)
	d.state(p, "resting", "CKR_DEVICE_ERROR")
	d.shim.Script(t)
	until(t, "the end of its rest", func() bool {
		_, err := p.client.Start(t.Context(), control.StartRequest{Keys: []string{"k"}, Kind: "import", Renew: true})
		s, serr := p.client.Status(t.Context())
		return err == nil && serr == nil && s.Tokens[0].State == "open"
	})
	p.settled()
	if d.logins() != 2 {
		t.Errorf("%d logins after an error that passed", d.logins())
	}

	write(t, d.path, strings.Replace(readFile(t, d.path), "quirks: {protected_authentication_path: true}", "quirks: {protected_authentication_path: true}\n    call_timeout: 31s", 1))
	if err := p.client.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	d.state(p, "opening", "type it there")
	d.pad.Type(t, d.token.PIN)
	d.state(p, "open", "")
	if d.logins() != 3 {
		t.Errorf("%d logins", d.logins())
	}
}

// A login at the device that does not succeed, whose daemon is killed or ended, or to which nobody comes, is the last one before a person says so, also
// for the next process.
func TestAtDeviceFails(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		env  string
		do   func(d *device, p *process)
		says string
	}{
		"wrong PIN":   {"", func(d *device, _ *process) { d.pad.Type(d.t, "000000") }, "CKR_PIN_INCORRECT (0xA0): nobody was logged in at the device"},
		"cancelled":   {"", func(d *device, _ *process) { d.pad.Type(d.t, "") }, "CKR_FUNCTION_CANCELED (0x50): nobody was logged in at the device"},
		"nobody came": {envDevice + "=2s", func(*device, *process) {}, "C_Login did not come back within 2s: nobody logged in at the device, or the device hangs"},
		"killed":      {"", func(_ *device, p *process) { p.kill() }, "that logged in at the token's device at"},
		"ended": {"", func(_ *device, p *process) {
			_ = p.Process.Signal(syscall.SIGTERM)
			<-p.done
		}, "it was not waited for any more: context canceled"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDevice(t)
			p := d.launch("one", d.path, tc.env)
			until(t, "the login", func() bool { return d.logins() == 1 })
			tc.do(d, p)
			for range 2 {
				select {
				case <-p.done:
					p = d.launch("one", d.path, tc.env)
				default:
				}
				s := d.state(p, "parked", tc.says)
				if len(s.People) == 0 || s.People[0].Retry != "hsmbridge resume --token hsm" || d.logins() != 1 {
					t.Errorf("%d logins; %s", d.logins(), asJSON(s.People))
				}
				p.kill()
			}
			p = d.launch("one", d.path)
			d.state(p, "parked", tc.says)
			if err := p.client.ResumeToken(t.Context(), "hsm"); err != nil {
				t.Fatal(err)
			}
			d.state(p, "opening", "type it there")
			d.pad.Type(t, d.token.PIN)
			until(t, "the import", func() bool { return d.emu.State(d.arn) == "Enabled" })
		})
	}
}
