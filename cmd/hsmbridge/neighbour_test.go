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

const short = time.Second // for what never comes; the connection has to be there by then

// A daemon that takes the connection and does not answer holds up neither a plan nor an import past it. It is asked once, and this is said once.
func TestSilentDaemon(t *testing.T) {
	w := newAlone(t)
	came := mute(t, w.config.ControlSocket())
	for _, args := range [][]string{{"plan", "mac"}, {"import", "--direct", "mac"}, {"import", "--direct", "--all", "--renew"}} {
		if code := w.run(t, short, args...); code != exitDone {
			t.Errorf("%v ends with exit code %d", args, code)
		}
		w.says(t, fmt.Sprintf("hsmbridge: the daemon on %s does not answer (waited %s) and is not asked again: which keys are revoked, and which key objects it has recorded, is not known here; this command goes on all the same\n", w.config.ControlSocket(), short), 1)
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
	if got := c.daemon.revoked(t.Context(), ""); len(got) > 0 {
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

// A key that is revoked between the question before its wrap and KMS's answer is in KMS again, perhaps after the daemon had emptied it. The command says so, asks the
// daemon to look at once, and does not end well.
func TestRevokedMeanwhile(t *testing.T) {
	for name, tt := range map[string]struct {
		status int
		says   string
	}{
		"the daemon looks":        {http.StatusOK, "the daemon was asked to look at it now (job 7) and deletes it then, or when it looks the next time by itself (kms.watch_every)"},
		"one who may not ask":     {http.StatusForbidden, "the daemon could not be asked to look at it now (you may not) and deletes it when it looks the next time (kms.watch_every)"},
		"the daemon is gone then": {0, "the daemon could not be asked to look at it now ("},
	} {
		t.Run(name, func(t *testing.T) {
			w := newAlone(t)
			asked := make(chan control.StartRequest, 1)
			answering(t, w.config.ControlSocket(), func(rw http.ResponseWriter, r *http.Request) {
				rw.Header().Set("Content-Type", "application/json")
				known := control.ManagedKey{Name: "mac", State: store.Key{Name: "mac"}}
				if w.emu.Count("ImportKeyMaterial") > 0 {
					known.State.RevokedBy, known.State.RevokedAt = "alice", time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
				}
				switch {
				case r.URL.Path == "/v1/status":
					_ = json.NewEncoder(rw).Encode(control.Status{})
				case r.URL.Path != "/v1/start":
					_ = json.NewEncoder(rw).Encode(control.KeyList{Keys: []control.ManagedKey{known}})
				case tt.status == 0:
					panic(http.ErrAbortHandler)
				default:
					var in control.StartRequest
					if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
						t.Error(err)
					}
					asked <- in
					rw.WriteHeader(tt.status)
					if tt.status != http.StatusOK {
						_ = json.NewEncoder(rw).Encode(control.Problem{Error: "you may not"})
						return
					}
					_ = json.NewEncoder(rw).Encode(control.JobList{Jobs: []store.Job{{ID: 7}}})
				}
			})
			if code := w.run(t, 0, "import", "--direct", "mac", "--json"); code != exitRefused {
				t.Errorf("exit code %d", code)
			}
			line, _, _ := strings.Cut(w.out.String(), "\n")
			var got importer.Result
			if err := json.Unmarshal([]byte(line), &got); err != nil {
				t.Fatalf("%v: %s", err, w.out.String())
			}
			const holds = "mac was revoked by alice at 2026-05-01T12:00:00Z, and KMS holds its material, which this command brought there meanwhile: "
			if got.Result != importer.Imported || got.ErrorClass != "caller" || !strings.HasPrefix(got.Error, holds+tt.says) || !strings.HasSuffix(got.Error, "; hsmbridge revoke mac --reason WHY deletes it now") {
				t.Errorf("got %+v", got)
			}
			w.says(t, "hsmbridge: 1 of 1 destinations failed; what was revoked meanwhile (mac) is not to be imported again; the rest that was imported stays\n", 1)
			if tt.status == 0 {
				return
			}
			if in := <-asked; in.Kind != store.KindReconcile || len(in.Keys) != 1 || in.Keys[0] != "mac" {
				t.Errorf("the daemon was asked for %+v", in)
			}
		})
	}
}

// What was wrapped and may have reached KMS is looked at too, after what is wrong with it. Of what certainly did not, nothing is said.
func TestRevokedMeanwhileUnknown(t *testing.T) {
	w := newAlone(t)
	n := answering(t, w.config.ControlSocket(), func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(rw).Encode(control.KeyList{Keys: []control.ManagedKey{{Name: "mac", State: store.Key{Name: "mac", RevokedAt: time.Now()}}}})
	})
	c := (&app{out: &w.out, err: &w.out, log: zap.NewNop()}).connect(w.config, nil)
	results := []importer.Result{
		{Result: importer.Failed, WrappingKeySHA256: "ab", Error: "refused", ErrorClass: "kms"},
		{Result: importer.Unchanged},
	}
	c.bringsBack(t.Context(), w.config.Keys[0], results)
	if n.Load() > 0 || len(c.back) > 0 || results[0].Error != "refused" || results[1].Error != "" {
		t.Errorf("asked %d times: %+v", n.Load(), results)
	}
	results = append(results,
		importer.Result{Result: importer.Unknown, WrappingKeySHA256: "ab", Error: "the answer is lost", ErrorClass: "kms"},
		importer.Result{Result: importer.Unchanged, WrappingKeySHA256: "ab"}, // the proof
	)
	c.bringsBack(t.Context(), w.config.Keys[0], results)
	if r := results[2]; !strings.HasPrefix(r.Error, "the answer is lost\nmac was revoked by ") || !strings.Contains(r.Error, "KMS may hold its material") || r.ErrorClass != "kms" {
		t.Errorf("got %+v", r)
	}
	if r := results[3]; !strings.Contains(r.Error, "KMS may hold its material") || r.ErrorClass != "caller" {
		t.Errorf("got %+v", r)
	}
	if results[0].Error != "refused" || results[1].Error != "" || len(c.back) != 1 {
		t.Errorf("got %+v, %v", results, c.back)
	}
}
