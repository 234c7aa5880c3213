package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"hsmbridge/configs"
	"hsmbridge/daemon"
	"hsmbridge/daemon/control"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/test/pinpad"
	"hsmbridge/test/softhsm"
)

// padded is a token whose PIN is typed at its device, in a configuration that says so.
func padded(t *testing.T) (pinpad.Token, *configs.Config) {
	t.Helper()
	pad := pinpad.New(t, softhsm.New(t, "demo").Token)
	path := filepath.Join(t.TempDir(), "hsmbridge.yaml")
	text := fmt.Sprintf("database: x.db\ncontrol: {socket: s}\ntokens:\n  - {name: demo, module: %q, uri: \"pkcs11:token=demo\", environment: {SOFTHSM2_CONF: %q}, quirks: {protected_authentication_path: true}}\n",
		pad.Module, pad.Environment["SOFTHSM2_CONF"])
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := configs.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	return pad, c
}

// Commands that open a token by themselves do so where its PIN is typed at the device, and say what a person has to do.
func TestCommandAtDevice(t *testing.T) {
	pad, c := padded(t)
	pad.Type(t, pad.PIN)
	var out bytes.Buffer
	a := &app{out: &out, err: &out, log: zap.NewNop()}
	conn := a.connect(c, []string{"demo"})
	tok, err := conn.token(t.Context(), "demo")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tok.Keys(t.Context()); err != nil {
		t.Error(err)
	}
	for _, says := range []string{
		fmt.Sprintf(`hsmbridge: token demo (label "demo", serial %q) asks for its PIN at its own device. Type it there, or put the key in, within 5m0s; it is asked for once.`, pad.Serial),
		"hsmbridge: logged in to token demo at its device",
	} {
		if !strings.Contains(out.String(), says) {
			t.Errorf("%q is not in\n%s", says, out.String())
		}
	}
	if err := conn.close(); err != nil {
		t.Error(err)
	}
}

// While the daemon asks at the same device, a command does not.
func TestDaemonAtDevice(t *testing.T) {
	_, c := padded(t)
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", c.ControlSocket())
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(control.Status{Tokens: []control.Token{{Name: "demo", State: "opening", Reason: "asks for its PIN at its own device"}}})
	}))
	s.Listener = l
	s.Start()
	defer s.Close()
	var out bytes.Buffer
	conn := (&app{out: &out, err: &out, log: zap.NewNop()}).connect(c, []string{"demo"})
	_, err = conn.token(t.Context(), "demo")
	if err == nil || !strings.Contains(err.Error(), "no login was tried: the daemon logs in at the same device: token demo asks for its PIN at its own device") || out.Len() > 0 {
		t.Errorf("%v\n%s", err, out.String())
	}
}

// So does the daemon, and writes down first that a login begins.
func TestServeAtDevice(t *testing.T) {
	pad, c := padded(t)
	demo, _ := c.Token("demo")
	var o opener
	refuse := errors.New("it cannot be written down")
	l := daemon.Login{
		Begin:    func(context.Context) error { t.Error("a PIN is about to be given"); return nil },
		AtDevice: func(context.Context, wrapping.TokenIdentity, time.Duration) error { return refuse },
	}
	pad.Type(t, pad.PIN)
	if _, err := o.open(t.Context(), demo, l); !errors.Is(err, refuse) || !pad.Waits() {
		t.Fatalf("it is not written down: %v", err)
	}
	told := false
	l.AtDevice = func(_ context.Context, id wrapping.TokenIdentity, _ time.Duration) error {
		told = id.Serial == pad.Serial
		return nil
	}
	tok, err := o.open(t.Context(), demo, l)
	if err != nil {
		t.Fatal(err)
	}
	if err := tok.Close(); err != nil || !told {
		t.Errorf("told: %t; %v", told, err)
	}
}
