package softhsm_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"hsmbridge/hsm/wrapping"
	"hsmbridge/test/e2e"
	"hsmbridge/test/loopback"
	"hsmbridge/test/softhsm"
)

// TestInterrupted kills or interrupts hsmbridge while KMS has the import and has not answered: run again, it finds
// what KMS did, imports nothing twice and has lost no key.
func TestInterrupted(t *testing.T) {
	for _, tt := range []struct {
		name   string
		signal syscall.Signal
	}{
		{"kill -9", syscall.SIGKILL},
		{"Ctrl-C", syscall.SIGINT},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tok := softhsm.New(t, "interrupted").Token
			emu := e2e.StartEmulator(t)
			config := e2e.Config(t, emu.Endpoint, tok, []e2e.Key{
				{Name: "mac", Spec: wrapping.HMAC384, Generate: true, Destinations: []string{emu.CreateKey(emu.Client(), wrapping.HMAC384)}},
				{Name: "later", Spec: wrapping.HMAC384, Generate: true, Destinations: []string{emu.CreateKey(emu.Client(), wrapping.HMAC384)}},
			}, "")
			emu.HoldUp("ImportKeyMaterial")
			cmd := exec.Command(filepath.Join(e2e.Binaries(t), "hsmbridge"), "-c", config, "--log-level", "info", "import", "mac", "later") //nolint:noctx // ended below
			cmd.Env = e2e.Environ()
			log := filepath.Join(t.TempDir(), "log")
			f, err := os.Create(log)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close() //nolint:errcheck // the command writes to it
			var stdout bytes.Buffer
			cmd.Stderr, cmd.Stdout = f, &stdout
			stderr := func() string {
				b, err := os.ReadFile(log)
				if err != nil {
					t.Fatal(err)
				}
				return string(b)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			emu.Held("ImportKeyMaterial")
			if !strings.Contains(stderr(), `"step":"wrap"`) {
				t.Errorf("before the import it says: %s", stderr())
			}
			if err := cmd.Process.Signal(tt.signal); err != nil {
				t.Fatal(err)
			}
			err = cmd.Wait()
			if err == nil {
				t.Fatal("hsmbridge ended as if nothing had happened")
			}
			if code := cmd.ProcessState.ExitCode(); tt.signal == syscall.SIGINT && (code != 130 || !strings.Contains(stderr(), "interrupted; 1 of 2 keys were not begun: run it again")) {
				t.Errorf("exit code %d: %s", code, stderr())
			}
			if tt.signal == syscall.SIGINT {
				if !regexp.MustCompile(`(?m)^mac +unknown `).MatchString(stdout.String()) || !strings.Contains(stdout.String(), "\n  unknown      whether KMS imported mac is not known") {
					t.Errorf("it prints: %s", stdout.String())
				}
				for _, bare := range []string{"context canceled", "Canceled"} {
					if strings.Contains(stdout.String()+stderr(), bare) {
						t.Errorf("it prints the bare words %q: %s%s", bare, stdout.String(), stderr())
					}
				}
			}
			emu.GoOn()
			e2e.Until(t, "the import", func() bool { return emu.Count("ImportKeyMaterial") != "0" })
			out := e2e.Run(t, config, "import", "mac", "--json")
			if out.Code != 0 || out.Stdout == "" {
				t.Fatalf("again: %+v", out)
			}
			if r := e2e.Lines[e2e.Result](t, out.Stdout)[0]; r.Result != "unchanged" || r.Proof != "mac-match" {
				t.Errorf("again: %+v", r)
			}
			if n := emu.Count("ImportKeyMaterial"); n != "1" {
				t.Errorf("ImportKeyMaterial was called %s times", n)
			}
			if out := e2e.Run(t, config, "keys", "list"); !strings.Contains(out.Stdout, ": 1 key\n") {
				t.Errorf("keys: %+v", out)
			}
		})
	}
}

// TestExitCodes holds what scripts rely on.
func TestExitCodes(t *testing.T) {
	tok := softhsm.New(t, "codes").Token
	emu := e2e.StartEmulator(t)
	c := emu.Client()
	keys := []e2e.Key{
		{Name: "good", Spec: wrapping.SymmetricDefault, Generate: true, Destinations: []string{emu.CreateKey(c, wrapping.SymmetricDefault)}},
		{Name: "missing", Spec: wrapping.SymmetricDefault, Destinations: []string{emu.CreateKey(c, wrapping.SymmetricDefault)}},
	}
	config := e2e.Config(t, emu.Endpoint, tok, keys, "")
	wrong := tok
	wrong.PIN = "00000000"
	down := e2e.Config(t, "http://"+loopback.Refused(t), tok, keys, "")
	bad := e2e.Config(t, emu.Endpoint, tok, keys, "nonsense: true\n")
	for _, tt := range []struct {
		name   string
		config string
		args   []string
		want   int
	}{
		{"done", config, []string{"import", "good"}, 0},
		{"usage", config, []string{"import"}, 2},
		{"unknown command", config, []string{"imprt"}, 2},
		{"unknown key", config, []string{"import", "nobody"}, 2},
		{"configuration", bad, []string{"import", "good"}, 3},
		{"no configuration file", filepath.Join(t.TempDir(), "none"), []string{"import", "good"}, 3},
		{"refused", config, []string{"import", "missing"}, 4},
		{"token", e2e.Config(t, emu.Endpoint, wrong, keys, ""), []string{"import", "good"}, 5},
		{"KMS", down, []string{"import", "good"}, 6},
		{"partly", config, []string{"import", "--all"}, 7},
		{"partly planned", config, []string{"plan", "--all"}, 7},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if out := e2e.Run(t, tt.config, tt.args...); out.Code != tt.want {
				t.Errorf("exit code %d, want %d\n%s%s", out.Code, tt.want, out.Stdout, out.Stderr)
			}
		})
	}
}
