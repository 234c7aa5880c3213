package fleet

import (
	"context"
	"crypto/rsa"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"hsmbridge/configs"
	"hsmbridge/daemon"
	"hsmbridge/daemon/control"
	"hsmbridge/daemon/store"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/kmsclient/kmsemu"
)

// hanging is a token whose C_WrapKey does not come back until it is let go, whatever happens to the context: a C call cannot be cancelled.
type hanging struct {
	daemon.Token
	let chan struct{}
}

func (h hanging) Wrap(ctx context.Context, k wrapping.Key, pub *rsa.PublicKey, p wrapping.Plan) ([]byte, error) {
	<-h.let
	return h.Token.Wrap(ctx, k, pub, p)
}

// A call to the token that hangs: systemd gets no more signs of life, and /livez and the status say why. When it comes back, all is well.
func TestHungToken(t *testing.T) {
	w := newWorld(t, kmsemu.Options{})
	arn := w.key("k", wrapping.HMAC256)
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	_ = l.Close()
	path := w.config("one", "")
	text := strings.Replace(readFile(t, path), "metrics: {listen: none}", fmt.Sprintf("metrics: {listen: %q}", address), 1)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := configs.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	let := make(chan struct{})
	var mu sync.Mutex
	told := map[string]int{}
	d, err := daemon.New(t.Context(), daemon.Options{
		Config: c, Log: zap.NewNop(), Version: "test", Poll: 10 * time.Millisecond, WatchdogIn: 60 * time.Millisecond, Hung: 200 * time.Millisecond,
		Notify: func(state string) {
			mu.Lock()
			defer mu.Unlock()
			first, _, _ := strings.Cut(state, "\n")
			told[first]++
		},
		OpenToken: func(ctx context.Context, tc configs.Token, l daemon.Login) (daemon.Token, error) {
			token, err := openToken()(ctx, tc, l)
			if err != nil {
				return nil, err
			}
			return hanging{token, let}, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	signs := func() int {
		mu.Lock()
		defer mu.Unlock()
		return told["WATCHDOG=1"]
	}
	get := func(path string) (int, string) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+path, http.NoBody)
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
	stop, err := d.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	until(t, "the hang", func() bool {
		status, body := get("/livez")
		return status == 503 && strings.Contains(body, "wrap on hsm")
	})
	if status, _ := get("/readyz"); status != 503 {
		t.Errorf("/readyz answers %d", status)
	}
	time.Sleep(100 * time.Millisecond)
	before := signs()
	time.Sleep(300 * time.Millisecond)
	if now := signs(); now != before {
		t.Errorf("systemd got %d signs of life while a call hangs", now-before)
	}
	close(let)
	until(t, "the import", func() bool { return w.emu.State(arn) == "Enabled" })
	until(t, "signs of life", func() bool { return signs() > before })
	for _, path := range []string{"/livez", "/readyz"} {
		if status, body := get(path); status != 200 || body != "ok\n" {
			t.Errorf("%s answers %d %q", path, status, body)
		}
	}
	until(t, "what the metrics tell of the import", func() bool {
		_, body := get("/metrics")
		return strings.Contains(body, `hsmbridge_imports_total{action="import",result="imported"} 1`) && strings.Contains(body, `hsmbridge_destination_ready{destination="`+arn+`",key="k"} 1`)
	})
	if err := stop(); err != nil {
		t.Error(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if told["READY=1"] != 1 || told["STOPPING=1"] != 1 {
		t.Errorf("systemd was told %v", told)
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
