package fleet

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"hsmbridge/configs"
	"hsmbridge/daemon"
	"hsmbridge/daemon/control"
	"hsmbridge/daemon/importer"
	"hsmbridge/daemon/store"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/kmsclient/kmsemu"
	"hsmbridge/test/loopback"
	"hsmbridge/test/shim"
)

// monitored is a daemon in this process, with what it tells systemd and its health page.
type monitored struct {
	*daemon.Daemon
	address string
	mu      sync.Mutex
	told    map[string]int
}

// monitor makes a daemon that is monitored; the test may change its options.
func monitor(t *testing.T, w *world, change func(o *daemon.Options)) *monitored {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", net.JoinHostPort(loopback.Host(), "0")) // bound again by the daemon
	if err != nil {
		t.Fatal(err)
	}
	x := &monitored{address: l.Addr().String(), told: map[string]int{}}
	_ = l.Close()
	path := w.config("one", "")
	text := strings.Replace(readFile(t, path), "metrics: {listen: none}", fmt.Sprintf("metrics: {listen: %q}", x.address), 1)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := configs.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	o := daemon.Options{
		Config: c, Log: zap.NewNop(), Version: "test", Poll: 10 * time.Millisecond, WatchdogIn: 60 * time.Millisecond, OpenToken: openToken(),
		Notify: func(state string) {
			x.mu.Lock()
			defer x.mu.Unlock()
			first, _, _ := strings.Cut(state, "\n")
			x.told[first]++
		},
	}
	change(&o)
	if x.Daemon, err = daemon.New(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	return x
}

// begin starts a daemon in this process. It ends with the test.
func begin(t *testing.T, d *daemon.Daemon) {
	t.Helper()
	stop, err := d.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

// signs is how many signs of life systemd got.
func (x *monitored) signs() int { return x.tells("WATCHDOG=1") }

func (x *monitored) tells(state string) int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.told[state]
}

func (x *monitored) get(t *testing.T, path string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+x.address+path, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close() //nolint:errcheck // it was only read
	b, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b)
}

// A module hangs in C_WrapKey: its process is killed at the call's deadline and replaced, and the import goes on from its journal. The daemon
// lives all the time, and says so.
func TestHungModule(t *testing.T) {
	t.Parallel()
	w := newWorld(t, kmsemu.Options{})
	module := shim.New(t, w.token.Token)
	w.token.Token = module.Token
	w.module = []string{"call_timeout: 5s"}
	arn := w.key("k", wrapping.HMAC256)
	core, logs := observer.New(zap.InfoLevel)
	var once sync.Once
	x := monitor(t, w, func(o *daemon.Options) {
		o.Log = zap.New(core)
		o.AfterStep = func(_ store.Job, step string) {
			if step == string(importer.StepParameters) { // the wrap is next
				once.Do(func() { module.Script(t, "C_WrapKey: hang") })
			}
		}
	})
	stop, err := x.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
		if x.tells("READY=1") != 1 || x.tells("STOPPING=1") != 1 {
			t.Errorf("systemd was told %v", x.told)
		}
	}()
	until(t, "the hang", func() bool { return module.Counters(t).Injected > 0 })
	before := x.signs()
	if status, body := x.get(t, "/livez"); status != 200 {
		t.Errorf("while a module hangs /livez answers %d %s", status, body)
	}
	until(t, "signs of life while a module hangs", func() bool { return x.signs() > before+2 })
	until(t, "the end of the module's process", func() bool {
		return logs.FilterMessageSnippet("process of a token's module is no more").Len() > 0
	})
	module.Script(t)
	until(t, "the import", func() bool { return w.emu.State(arn) == "Enabled" })
	jobs, err := x.Store().Jobs(t.Context(), store.JobFilter{Key: "k"})
	if err != nil || len(jobs) != 1 || w.emu.Count("ImportKeyMaterial") != 1 {
		t.Errorf("%d jobs (%v), %d imports", len(jobs), err, w.emu.Count("ImportKeyMaterial"))
	}
	for _, path := range []string{"/livez", "/readyz"} {
		if status, body := x.get(t, path); status != 200 || body != "ok\n" {
			t.Errorf("%s answers %d %q", path, status, body)
		}
	}
	until(t, "what the metrics tell of the import", func() bool {
		_, body := x.get(t, "/metrics")
		return strings.Contains(body, `hsmbridge_imports_total{action="import",result="imported"} 1`) && strings.Contains(body, `hsmbridge_destination_ready{destination="`+arn+`",key="k"} 1`)
	})
}

// A module crashes in C_WrapKey in the middle of an import: another process goes on, KMS gets the material once, and nothing is left behind.
func TestCrashedModule(t *testing.T) {
	t.Parallel()
	w := newWorld(t, kmsemu.Options{})
	module := shim.New(t, w.token.Token)
	w.token.Token = module.Token
	arn := w.key("k", wrapping.HMAC256)
	var once sync.Once
	core, logs := observer.New(zap.InfoLevel)
	x := monitor(t, w, func(o *daemon.Options) {
		o.Log = zap.New(core)
		o.AfterStep = func(_ store.Job, step string) {
			if step == string(importer.StepParameters) { // the wrap is next
				once.Do(func() { module.Script(t, "C_WrapKey: crash") })
			}
		}
	})
	begin(t, x.Daemon)
	until(t, "the crash", func() bool { return logs.FilterMessageSnippet("process of a token's module is no more").Len() > 0 })
	module.Script(t)
	until(t, "the import", func() bool { return w.emu.State(arn) == "Enabled" })
	until(t, "the end of the job", func() bool {
		jobs, err := x.Store().Jobs(t.Context(), store.JobFilter{Key: "k", Open: true})
		return err == nil && len(jobs) == 0
	})
	if n := w.emu.Count("ImportKeyMaterial"); n != 1 {
		t.Errorf("KMS was given the material %d times", n)
	}
	said := fmt.Sprint(logs.FilterMessageSnippet("process of a token's module is no more").All()[0].ContextMap())
	if !strings.Contains(said, "SIGSEGV") || !strings.Contains(said, "wrap") {
		t.Errorf("the log says %s", said)
	}
	if got := w.objects(); got["k"] != 1 || len(got) != 1 {
		t.Errorf("the token holds %v", got)
	}
}

// A module that crashes again and again parks its token, with the reason; when a person says so it is used again.
func TestModuleDiesTooOften(t *testing.T) {
	t.Parallel()
	w := newWorld(t, kmsemu.Options{})
	module := shim.New(t, w.token.Token)
	w.token.Token = module.Token
	arn := w.key("k", wrapping.HMAC256)
	module.Script(t, "C_GenerateKey: crash")
	x := monitor(t, w, func(*daemon.Options) {})
	begin(t, x.Daemon)
	var parked store.Parked
	until(t, "the parking", func() bool {
		_, _ = x.Retry(t.Context(), "test", "k") // not to wait
		list, err := x.Store().ParkedTokens(t.Context())
		parked = list["hsm"]
		return err == nil && parked.Code != "" && parked.Code != store.LoginBegun
	})
	if parked.Code != "ModuleDies" || !strings.Contains(parked.Reason, "ended 3 times within 10m") || !strings.Contains(parked.Reason, "SIGSEGV") {
		t.Errorf("it is parked because %+v", parked)
	}
	if logins := module.Counters(t).Calls["C_Login"]; logins != 3 {
		t.Errorf("%d logins for three processes", logins)
	}
	if _, body := x.get(t, "/metrics"); !strings.Contains(body, `hsmbridge_token_process_ends_total{reason="crash",token="hsm"} 3`) || !strings.Contains(body, `hsmbridge_token_process_ends_total{reason="deadline",token="hsm"} 0`) {
		t.Error("the ends of the processes are not counted")
	}
	module.Script(t)
	if err := x.ResumeToken(t.Context(), "test", "hsm"); err != nil {
		t.Fatal(err)
	}
	until(t, "the import", func() bool { return w.emu.State(arn) == "Enabled" })
}

// The daemon itself makes no progress: systemd gets no more signs of life, and /livez and /readyz say why. When it goes on, all is well.
func TestStuckDaemon(t *testing.T) {
	t.Parallel()
	w := newWorld(t, kmsemu.Options{})
	w.key("k", wrapping.HMAC256)
	var stuck atomic.Bool
	let := make(chan struct{})
	x := monitor(t, w, func(o *daemon.Options) {
		o.Stuck = 8 * time.Second // the loop comes around every five
		o.Now = func() time.Time {
			if stuck.Load() {
				<-let
			}
			return time.Now()
		}
	})
	stop, err := x.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	until(t, "signs of life", func() bool { return x.signs() > 0 })
	stuck.Store(true)
	until(t, "the alarm", func() bool {
		status, body := x.get(t, "/livez")
		return status == 503 && strings.Contains(body, "no progress")
	})
	if status, _ := x.get(t, "/readyz"); status != 503 {
		t.Errorf("/readyz answers %d", status)
	}
	time.Sleep(100 * time.Millisecond)
	before := x.signs()
	time.Sleep(300 * time.Millisecond)
	if now := x.signs(); now != before {
		t.Errorf("systemd got %d signs of life while the daemon is stuck", now-before)
	}
	stuck.Store(false)
	close(let)
	until(t, "signs of life", func() bool { return x.signs() > before })
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// A backup is taken, work goes on, the database is lost and the backup put back: the daemon finds out what it missed.
func TestBackupPutBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t, kmsemu.Options{})
	arn := w.key("k", wrapping.SymmetricDefault)
	p := w.start("one", "")
	p.settled()
	file := filepath.Join(t.TempDir(), "copy.db")
	if err := p.client.Backup(t.Context(), file); err != nil {
		t.Fatal(err)
	}
	if err := p.client.Backup(t.Context(), file); err == nil || !strings.Contains(err.Error(), "is there already") {
		t.Errorf("a second backup to the same file: %v", err)
	}
	p.ask(store.KindRotate, "k", false)
	p.settled()
	p.kill()
	w.loseDatabase()
	if err := os.Rename(file, filepath.Join(w.dir, "hsmbridge.db")); err != nil {
		t.Fatal(err)
	}
	p = w.start("one", "")
	p.settled()
	p.ask(store.KindRotate, "k", false)
	jobs := p.settled()
	if last := jobs[len(jobs)-1]; last.State != store.Done {
		t.Fatalf("a rotation after it: %s", asJSON(last))
	}
	if list := w.materials(arn); len(list) != 3 || list[2].State != "CURRENT" || list[2].Description != "hsmbridge: k.3" {
		t.Errorf("KMS has %s", asJSON(list))
	}
	keys, err := p.client.Keys(t.Context(), "k")
	if err != nil || len(keys[0].Materials) != 3 {
		t.Errorf("the daemon knows %s, %v", asJSON(keys), err)
	}
}

// A new configuration is taken while the daemon works, and a wrong one is not.
func TestReload(t *testing.T) {
	t.Parallel()
	w := newWorld(t, kmsemu.Options{})
	w.key("k", wrapping.HMAC256)
	p := w.start("one", "")
	p.settled()
	second := w.key("second", wrapping.HMAC256)
	path := w.config("one", "")
	good := readFile(t, path)
	for _, bad := range []string{good + "nonsense: 1\n", strings.Replace(good, "hsmbridge.db", "other.db", 1), ""} {
		if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := p.client.Reload(t.Context()); err == nil {
			t.Error("a wrong configuration was taken")
		}
		if s, err := p.client.Status(t.Context()); err != nil || s.Reload == "" || !s.Ready || s.Counts.Keys != 1 {
			t.Errorf("after a wrong configuration: %s, %v", asJSON(s), err)
		}
	}
	if err := os.WriteFile(path, []byte(good), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := p.client.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	until(t, "the import of the new key", func() bool { return w.emu.State(second) == "Enabled" })
	if _, err := p.client.Start(t.Context(), control.StartRequest{Keys: []string{"third"}, Kind: store.KindImport}); err == nil || !strings.Contains(err.Error(), "hsmbridge reload") {
		t.Errorf("a key that is not configured: %v", err)
	}
}
