package fleet

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	systemd "github.com/coreos/go-systemd/v22/daemon"
	"go.uber.org/zap"

	"hsmbridge/configs"
	"hsmbridge/daemon"
	"hsmbridge/daemon/control"
	"hsmbridge/daemon/store"
	"hsmbridge/hsm/remote"
	"hsmbridge/hsm/worker"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/kmsclient"
	"hsmbridge/kmsclient/kmsemu"
	"hsmbridge/test/softhsm"
)

// Environment variables that make this binary the daemon: a test kills that process, not itself.
const (
	envConfig = "FLEET_CONFIG" // its configuration
	envKill   = "FLEET_KILL"   // "job kind/step/n": kill -9 when the n-th such step is written down; "login": when a token has answered to a PIN
	envLease  = "FLEET_LEASE"
	envStop   = "FLEET_STOP"   // like envKill, but SIGSTOP
	envDevice = "FLEET_DEVICE" // how long a person has to log in at a device
	envPoll   = "FLEET_POLL"   // how often the queue is looked at; default 20 ms, so that tests do not wait
)

func TestMain(m *testing.M) {
	switch {
	case worker.Called(os.Args):
		os.Exit(worker.Main(os.Args))
	case os.Getenv(envConfig) != "":
		os.Exit(child())
	}
	for name, value := range map[string]string{
		"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_CONFIG_FILE": os.DevNull, "AWS_SHARED_CREDENTIALS_FILE": os.DevNull, "AWS_EC2_METADATA_DISABLED": "true",
	} {
		if err := os.Setenv(name, value); err != nil {
			panic(err)
		}
	}
	os.Exit(m.Run())
}

// child is the daemon, as hsmbridge serve runs it.
func child() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	c, err := daemon.LoadQuickly(func() (*configs.Config, error) { return configs.Load(os.Getenv(envConfig)) })
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 3
	}
	lease, _ := time.ParseDuration(os.Getenv(envLease))
	poll, err := time.ParseDuration(os.Getenv(envPoll))
	if err != nil {
		poll = 20 * time.Millisecond
	}
	log, err := zap.NewProduction()
	if err != nil {
		return 1
	}
	d, err := daemon.New(ctx, daemon.Options{
		Config: c, OpenToken: openToken(), Log: log, Version: "test", Lease: lease, Poll: poll, AfterStep: signalAt(),
		Notify: func(state string) { _, _ = systemd.SdNotify(false, state) },
		Load:   func() (*configs.Config, error) { return configs.Load(os.Getenv(envConfig)) },
	})
	if err == nil {
		err = d.Run(ctx)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// signalAt ends or freezes this process at the step that the environment names.
func signalAt() func(store.Job, string) {
	var mu sync.Mutex
	seen := map[string]int{}
	return func(j store.Job, step string) {
		mu.Lock()
		defer mu.Unlock()
		at := string(j.Kind) + "/" + step
		seen[at]++
		switch at = fmt.Sprintf("%s/%d", at, seen[at]); at {
		case os.Getenv(envKill):
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {} // it is over before the next instruction of the job
		case os.Getenv(envStop):
			_ = syscall.Kill(os.Getpid(), syscall.SIGSTOP)
			time.Sleep(50 * time.Millisecond) // the kernel stops this thread when it has told the others: the next step is not begun before that
		}
	}
}

// openToken opens tokens as the command does, with the PIN from its file.
func openToken() daemon.OpenToken {
	var starter remote.Starter
	wait, _ := time.ParseDuration(os.Getenv(envDevice))
	return func(ctx context.Context, t configs.Token, l daemon.Login) (daemon.Token, error) {
		token, err := starter.Open(ctx, remote.Config{
			Name: t.Name, Module: t.Module, Parameters: t.ModuleParameters, Environment: t.Environment, URI: t.URI, LoginAgain: l.Again, CallTimeout: t.Timeout(),
			Quirks: t.Quirks, AtDevice: l.AtDevice, DeviceTime: wait,
		}, func(ctx context.Context, _ wrapping.TokenIdentity) ([]byte, error) {
			if err := l.Begin(ctx); err != nil {
				return nil, err
			}
			return os.ReadFile(t.PINFile)
		})
		if os.Getenv(envKill) == "login" {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
		if err != nil {
			return nil, err
		}
		return token, nil
	}
}

// wrappers is one wrapping key for all tests: they make thousands of imports and do not look at it.
var wrappers = sync.OnceValue(func() map[int]*rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 4096)
	if err != nil {
		panic(err)
	}
	short, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return map[int]*rsa.PrivateKey{4096: key, 2048: short}
})

// world is a token, a KMS and a configuration; daemons come and go.
type world struct {
	t      testing.TB
	dir    string
	token  softhsm.Token
	emu    *kmsemu.Server
	url    string
	client *kmsclient.Client
	extra  string // lines of the configuration
	kms    string // more of its kms
	keys   []string
	tokens string          // more tokens of the configuration
	module []string        // more lines of the token
	quotas bool            // AWS's default quotas
	before func(op string) // called when a request has come, before KMS has it
	after  func(op string) // called when KMS has done it, before it answers
	mu     sync.Mutex
}

func newWorld(tb testing.TB, o kmsemu.Options) *world {
	tb.Helper()
	o.Wrappers = wrappers()
	emu, err := kmsemu.New(o)
	if err != nil {
		tb.Fatal(err)
	}
	w := &world{t: tb, dir: tb.TempDir(), token: softhsm.New(tb, "hsm"), emu: emu}
	srv := httptest.NewServer(http.HandlerFunc(w.serve))
	tb.Cleanup(srv.Close)
	w.url = srv.URL
	if w.client, err = kmsclient.New(tb.Context(), kmsclient.Config{Region: "eu-central-1", Endpoint: w.url}); err != nil {
		tb.Fatal(err)
	}
	return w
}

// serve is the emulator with somebody at the wire.
func (w *world) serve(rw http.ResponseWriter, r *http.Request) {
	w.mu.Lock()
	before, after := w.before, w.after
	w.mu.Unlock()
	w.pass(rw, r, before, after)
}

// wire is another way to the emulator, with hooks of its own: they see what those ask for who are given this URL, and nothing else.
func (w *world) wire(before, after func(op string)) (url string) {
	srv := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { w.pass(rw, r, before, after) }))
	w.t.Cleanup(srv.Close)
	return srv.URL
}

// pass has the emulator answer a request, between two hooks.
func (w *world) pass(rw http.ResponseWriter, r *http.Request, before, after func(op string)) {
	op := strings.TrimPrefix(r.Header.Get("X-Amz-Target"), "TrentService.")
	if before != nil {
		before(op)
	}
	rec := httptest.NewRecorder()
	w.emu.ServeHTTP(rec, r)
	if after != nil {
		after(op)
	}
	for name, values := range rec.Header() {
		rw.Header()[name] = values
	}
	rw.WriteHeader(rec.Code)
	_, _ = rw.Write(rec.Body.Bytes())
}

// hook has f called when KMS has done an operation, before it answers.
func (w *world) hook(before, after func(op string)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.before, w.after = before, after
}

// key makes a KMS key and a managed key that feeds it.
func (w *world) key(name string, spec wrapping.KeySpec, lines ...string) string {
	w.t.Helper()
	info, err := w.client.CreateKey(w.t.Context(), kmsclient.CreateKeyRequest{KeySpec: string(spec)})
	if err != nil {
		w.t.Fatal(err)
	}
	w.manage(name, spec, []string{info.ARN}, lines...)
	return info.ARN
}

// manage configures a managed key.
func (w *world) manage(name string, spec wrapping.KeySpec, arns []string, lines ...string) {
	class := "secret-key"
	if spec.Kind() != wrapping.KindSymmetric && spec.Kind() != wrapping.KindHMAC {
		class = "private"
	}
	uri := "pkcs11:object=" + name + ";type=" + class
	y := fmt.Sprintf("  - name: %s\n    token: hsm\n    uri: %q\n    key_spec: %s\n    generate: if-missing\n    destinations: [%s]\n", name, uri, spec, `"`+strings.Join(arns, `", "`)+`"`)
	hasExpiry := false
	for _, l := range lines {
		y += "    " + l + "\n"
		hasExpiry = hasExpiry || strings.HasPrefix(l, "expires")
	}
	if !hasExpiry {
		y += "    expires: 90d\n"
	}
	w.keys = append(w.keys, y)
}

// config writes the configuration of a daemon. Each has its own socket; the database is shared where it is given.
func (w *world) config(name, database string) string {
	w.t.Helper()
	if database == "" {
		database = filepath.Join(w.dir, "hsmbridge.db")
	}
	extra := w.extra
	if !w.quotas {
		extra += "quotas:\n"
		for _, op := range []string{"GetParametersForImport", "ImportKeyMaterial", "ListKeyRotations", "RotateKeyOnDemand", "DeleteImportedKeyMaterial"} {
			extra += "  - {operation: " + op + ", rate: 1000/s}\n"
		}
	}
	module := ""
	for _, l := range w.module {
		module += "    " + l + "\n"
	}
	y := fmt.Sprintf(`name: %s
database: %q
kms: {endpoint: %q%s}
control: {socket: %q}
metrics: {listen: none}
%s
tokens:
  - name: hsm
    module: %q
    uri: %q
    pin_file: %q
    environment: %s
%s%skeys:
%s`, name, database, w.url, w.kms, w.socket(name), extra, w.token.Module, w.token.URI(), w.token.PINFile(w.t), environment(w.token.Environment), module, w.tokens, strings.Join(w.keys, ""))
	path := filepath.Join(w.dir, name+".yaml")
	if err := os.WriteFile(path, []byte(y), 0o600); err != nil {
		w.t.Fatal(err)
	}
	if _, err := configs.Load(path); err != nil {
		w.t.Fatal(err)
	}
	return path
}

// environment is a token's environment in YAML.
func environment(of map[string]string) string {
	var parts []string
	for name, value := range of {
		parts = append(parts, fmt.Sprintf("%s: %q", name, value))
	}
	slices.Sort(parts)
	return "{" + strings.Join(parts, ", ") + "}"
}

func (w *world) socket(name string) string { return filepath.Join(w.dir, name+".sock") }

// loseDatabase removes the SQLite database.
func (w *world) loseDatabase() {
	w.t.Helper()
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if err := os.Remove(filepath.Join(w.dir, "hsmbridge.db"+suffix)); err != nil && !os.IsNotExist(err) {
			w.t.Fatal(err)
		}
	}
}

// process is a daemon in a process of its own.
type process struct {
	*exec.Cmd
	t      testing.TB
	client *control.Client
	log    string
	done   chan struct{}
	err    error // of Wait, when done is closed
}

// start starts a daemon; env are further variables.
func (w *world) start(name, database string, env ...string) *process {
	w.t.Helper()
	return w.launch(name, w.config(name, database), env...)
}

// launch starts a daemon with a configuration that is there.
func (w *world) launch(name, path string, env ...string) *process {
	w.t.Helper()
	self, err := os.Executable()
	if err != nil {
		w.t.Fatal(err)
	}
	p := &process{Cmd: exec.Command(self), t: w.t, client: control.NewClient(w.socket(name)), log: filepath.Join(w.dir, name+".log"), done: make(chan struct{})} //nolint:noctx // the test ends it by signals
	p.Env = append(append(os.Environ(), envConfig+"="+path), env...)
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		w.t.Fatal(err)
	}
	p.Stdout, p.Stderr = log, log
	p.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.Start(); err != nil {
		w.t.Fatal(err)
	}
	_ = log.Close()
	go func() { p.err = p.Wait(); close(p.done) }()
	w.t.Cleanup(p.kill)
	return p
}

func (p *process) kill() {
	_ = p.Process.Kill()
	select {
	case <-p.done:
	case <-time.After(time.Minute):
	}
	if p.t.Failed() || os.Getenv("FLEET_LOGS") != "" {
		if b, err := os.ReadFile(p.log); err == nil {
			p.t.Logf("log of %s:\n%s", filepath.Base(p.log), tail(string(b), 4000))
		}
	}
}

func tail(s string, n int) string { return s[max(0, len(s)-n):] }

// died waits until the process was killed.
func (p *process) died() {
	p.t.Helper()
	select {
	case <-p.done:
		var exit *exec.ExitError
		if errors.As(p.err, &exit) {
			if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() && ws.Signal() == syscall.SIGKILL {
				return
			}
		}
		p.t.Fatalf("the daemon ended with %v", p.err)
	case <-time.After(2 * time.Minute):
		p.t.Fatal("the daemon did not get to where it was to be killed")
	}
}

// settled waits until a daemon answers and has nothing left to do, and gives its jobs, oldest first.
func (p *process) settled() []store.Job {
	p.t.Helper()
	var last string
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); time.Sleep(30 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		s, err := p.client.Status(ctx)
		if err != nil || !s.Ready {
			last = fmt.Sprint(err, s.NotReady)
			cancel()
			continue
		}
		jobs, err := p.client.Jobs(ctx, store.JobFilter{})
		cancel()
		if err != nil {
			p.t.Fatal(err)
		}
		open := 0
		for _, j := range jobs {
			if j.State.Open() {
				open++
				last = fmt.Sprintf("%+v", j)
			}
		}
		if open == 0 && len(jobs) > 0 {
			for i, j := 0, len(jobs)-1; i < j; i, j = i+1, j-1 {
				jobs[i], jobs[j] = jobs[j], jobs[i]
			}
			return jobs
		}
	}
	p.t.Fatalf("the daemon does not settle: %s", last)
	return nil
}

// ask queues a job.
func (p *process) ask(kind store.Kind, key string, renew bool) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if _, err := p.client.Start(ctx, control.StartRequest{Keys: []string{key}, Kind: kind, Renew: renew}); err != nil && !strings.Contains(err.Error(), "did not answer") {
		p.t.Fatal(err)
	}
}

func (p *process) events(key string) []store.Event {
	p.t.Helper()
	var all []store.Event
	if err := p.client.Events(context.Background(), store.EventFilter{Key: key}, false, func(e store.Event) error { all = append(all, e); return nil }); err != nil {
		p.t.Fatal(err)
	}
	return all
}

// materials lists what KMS has.
func (w *world) materials(arn string) []kmsclient.KeyMaterial {
	w.t.Helper()
	list, err := w.client.ListKeyMaterials(context.Background(), arn)
	if err != nil {
		w.t.Fatal(err)
	}
	return list
}

// objects lists the key objects in the token by label.
func (w *world) objects() map[string]int {
	w.t.Helper()
	out, kind := map[string]int{}, ""
	for line := range strings.Lines(w.token.Tool(w.t, "--list-objects")) {
		if object, ok := strings.CutSuffix(strings.TrimSpace(strings.Split(line, ";")[0]), " Object"); ok {
			kind = object
		}
		if label, ok := strings.CutPrefix(line, "  label:"); ok && kind != "Public Key" {
			out[strings.TrimSpace(label)]++
		}
	}
	return out
}

func asJSON(v any) string {
	b, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		return err.Error()
	}
	return string(b)
}

func readFile(tb testing.TB, path string) string {
	tb.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return string(b)
}

func itoa(n int) string { return strconv.Itoa(n) }
