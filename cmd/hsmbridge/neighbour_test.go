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
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"

	"hsmbridge/configs"
	"hsmbridge/daemon/control"
	"hsmbridge/daemon/importer"
	"hsmbridge/daemon/store"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/kmsclient"
	"hsmbridge/kmsclient/kmsemu"
	"hsmbridge/test/softhsm"
)

// alone is a token with an empty KMS key, and a configuration of both whose daemon is the test's.
type alone struct {
	file   string
	config *configs.Config
	kms    *kmsclient.Client
	emu    *kmsemu.Server
	arn    string
	out    bytes.Buffer
}

func newAlone(t *testing.T) *alone {
	t.Helper()
	for name, value := range map[string]string{
		"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true",
		"AWS_CONFIG_FILE": os.DevNull, "AWS_SHARED_CREDENTIALS_FILE": os.DevNull,
	} {
		t.Setenv(name, value)
	}
	emu, err := kmsemu.New(kmsemu.Options{})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(emu)
	t.Cleanup(server.Close)
	w := &alone{emu: emu, file: filepath.Join(t.TempDir(), "hsmbridge.yaml")}
	if w.kms, err = kmsclient.New(t.Context(), kmsclient.Config{Region: "eu-central-1", Endpoint: server.URL}); err != nil {
		t.Fatal(err)
	}
	k, err := w.kms.CreateKey(t.Context(), kmsclient.CreateKeyRequest{KeySpec: "HMAC_256"})
	if err != nil {
		t.Fatal(err)
	}
	w.arn = k.ARN
	tok := softhsm.New(t, "demo")
	text := fmt.Sprintf(`kms: {region: eu-central-1, endpoint: %q}
database: x.db
control: {socket: s}
tokens: [{name: demo, module: %q, uri: "pkcs11:token=demo", pin_file: %q, environment: {SOFTHSM2_CONF: %q}}]
keys: [{name: mac, token: demo, uri: "pkcs11:object=mac;type=secret-key", key_spec: HMAC_256, generate: if-missing, expires: 90d, destinations: [%q]}]
`, server.URL, tok.Module, tok.PINFile(t), tok.Environment["SOFTHSM2_CONF"], w.arn)
	if err := os.WriteFile(w.file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if w.config, err = configs.Load(w.file); err != nil {
		t.Fatal(err)
	}
	return w
}

// run runs the command and gives its exit code; w.out has what it printed.
func (w *alone) run(t *testing.T, patience time.Duration, args ...string) int {
	t.Helper()
	w.out.Reset()
	a := &app{out: &w.out, err: &w.out, patience: patience}
	return a.run(t.Context(), append([]string{"-c", w.file}, args...))
}

func (w *alone) says(t *testing.T, text string, times int) {
	t.Helper()
	if got := strings.Count(w.out.String(), text); got != times {
		t.Errorf("%q is there %d times, want %d:\n%s", text, got, times, w.out.String())
	}
}

// mute is a daemon that takes connections and answers nothing, as one that was stopped (SIGSTOP). It tells of each.
func mute(t *testing.T, socket string) <-chan struct{} {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	const most = 100
	came, done := make(chan struct{}, most), make(chan struct{})
	go func() {
		defer close(done)
		var all []net.Conn
		for {
			conn, err := l.Accept()
			if err != nil {
				for _, c := range all {
					_ = c.Close()
				}
				return
			}
			all = append(all, conn)
			came <- struct{}{}
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-done
	})
	return came
}

// answering is a daemon whose answers the test gives. It counts the connections to it.
func answering(t *testing.T, socket string, answer http.HandlerFunc) *atomic.Int32 {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var n atomic.Int32
	s := httptest.NewUnstartedServer(answer)
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			n.Add(1)
		}
	}
	s.Listener = l
	s.Start()
	t.Cleanup(s.Close)
	return &n
}

const short = 20 * time.Millisecond // for what never comes

// A daemon that takes the connection and does not answer holds up neither a plan nor an import past it. It is asked once, and this is said once.
func TestSilentDaemon(t *testing.T) {
	w := newAlone(t)
	came := mute(t, w.config.ControlSocket())
	for _, args := range [][]string{{"plan", "mac"}, {"import", "--direct", "mac"}, {"import", "--direct", "--all", "--renew"}} {
		if code := w.run(t, short, args...); code != exitDone {
			t.Errorf("%v ends with exit code %d", args, code)
		}
		w.says(t, fmt.Sprintf("hsmbridge: the daemon on %s does not answer (waited 20ms) and is not asked again: which keys are revoked, and which key objects it has recorded, is not known here; this command goes on all the same\n", w.config.ControlSocket()), 1)
		w.says(t, "hsmbridge: ", 1)
		<-came
		if len(came) > 0 {
			t.Errorf("%v asked again", args)
			for len(came) > 0 {
				<-came
			}
		}
	}
	if got := w.emu.Count("ImportKeyMaterial"); got != 2 {
		t.Errorf("KMS took %d imports", got)
	}
}

// Where the daemon does not answer, its database says which tokens are parked.
func TestSilentDaemonParked(t *testing.T) {
	w := newAlone(t)
	_, path := w.config.DatabaseLocation()
	s, err := store.Open(t.Context(), store.Config{Path: path, Daemon: "one"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close() //nolint:errcheck // the daemon has it open
	mute(t, w.config.ControlSocket())
	for _, tt := range []struct {
		park func() error
		want string
	}{
		{func() error { return s.BeginLogin(t.Context(), "demo") }, "no login was tried: the daemon, which does not answer, gave it the PIN at 20"},
		{func() error {
			return s.Park(t.Context(), store.Parked{Token: "demo", Code: "CKR_PIN_INCORRECT", Reason: "the PIN is wrong"})
		}, "no login was tried: the PIN is wrong"},
	} {
		if err := tt.park(); err != nil {
			t.Fatal(err)
		}
		if code := w.run(t, short, "import", "--direct", "mac"); code != exitToken {
			t.Errorf("exit code %d", code)
		}
		w.says(t, tt.want, 1)
	}
}

// wrapsNext is the act immediately before a wrap.
func (w *alone) wrapsNext() importer.Act {
	return importer.Act{Plan: importer.Plan{Key: "mac", Destination: w.arn}, Key: wrapping.Key{}, Now: true}
}

// A daemon that answers with an error is told once, also when it answered at first. All questions of a command go through one connection.
func TestDaemonAnswersError(t *testing.T) {
	w := newAlone(t)
	var broken, unknown atomic.Bool
	n := answering(t, w.config.ControlSocket(), func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Type", "application/json")
		switch {
		case unknown.Load():
			rw.WriteHeader(http.StatusNotFound)
			_ = json.NewEncoder(rw).Encode(control.Problem{Error: "there is no managed key mac"})
		case broken.Load():
			rw.WriteHeader(http.StatusInternalServerError)
			_ = json.NewEncoder(rw).Encode(control.Problem{Error: "the database is away"})
		default:
			_ = json.NewEncoder(rw).Encode(control.KeyList{Keys: []control.ManagedKey{{Name: "mac"}}})
		}
	})
	c := (&app{out: &w.out, err: &w.out, log: zap.NewNop()}).connect(w.config, nil)
	if got := c.daemon.revoked(t.Context()); len(got) > 0 {
		t.Errorf("revoked: %v", got)
	}
	unknown.Store(true) // it was not reloaded
	if err := c.authorize(t.Context(), w.wrapsNext()); err != nil || w.out.Len() > 0 {
		t.Errorf("%v\n%s", err, w.out.String())
	}
	unknown.Store(false)
	broken.Store(true)
	for range 3 {
		if err := c.authorize(t.Context(), w.wrapsNext()); err != nil {
			t.Error(err)
		}
	}
	w.says(t, "hsmbridge: the daemon does not say which keys are revoked (the database is away); --direct goes on all the same\n", 1)
	if got := n.Load(); got != 1 {
		t.Errorf("%d connections", got)
	}
}

// Whoever interrupts the command while the daemon is asked is not told that the daemon is silent.
func TestInterruptedWhileAsked(t *testing.T) {
	w := newAlone(t)
	came := mute(t, w.config.ControlSocket())
	c := (&app{out: &w.out, err: &w.out, log: zap.NewNop()}).connect(w.config, nil)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		_, err := c.recorded(ctx, w.config.Keys[0])
		done <- err
	}()
	<-came
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) || w.out.Len() > 0 {
		t.Errorf("%v\n%s", err, w.out.String())
	}
}
