package fleet

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
	"golang.org/x/crypto/ssh"

	"hsmbridge/configs"
	"hsmbridge/daemon"
	"hsmbridge/daemon/approval"
	"hsmbridge/daemon/control"
	"hsmbridge/daemon/store"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/kmsclient/kmsemu"
)

// counted is a token that counts what it is told to wrap: the witness.
type counted struct {
	daemon.Token
	wraps *wraps
}

// wraps says how often each object was told to be wrapped, by label.
type wraps struct {
	mu sync.Mutex
	of map[string]int
}

func (w *wraps) add(label string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.of == nil {
		w.of = map[string]int{}
	}
	w.of[label]++
}

// count is that of a managed key: of all its objects.
func (w *wraps) count(key string) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for label, m := range w.of {
		if label == key || strings.HasPrefix(label, key+".") {
			n += m
		}
	}
	return n
}

func (c counted) Wrap(ctx context.Context, k wrapping.Key, pub *rsa.PublicKey, p wrapping.Plan) ([]byte, error) {
	c.wraps.add(k.Label)
	return c.Token.Wrap(ctx, k, pub, p)
}

// watched is a daemon in this process, with officers, a witness and a clock that can be set.
type watched struct {
	*world
	officers
	t      *testing.T
	d      *daemon.Daemon
	client *control.Client
	path   string // of its configuration
	key    string // in question
	wraps  wraps
	clock  atomic.Int64 // how far the clock is ahead, of the daemon and of KMS
}

// watch starts it. more adds keys.
func watch(t *testing.T, more func(w *world)) *watched {
	t.Helper()
	x := &watched{t: t}
	now := func() time.Time { return time.Now().Add(time.Duration(x.clock.Load())) }
	x.world = newWorld(t, kmsemu.Options{Now: now})
	more(x.world)
	x.officers = x.world.officers()
	x.path = x.config("one", "")
	load := func() (*configs.Config, error) { return configs.Load(x.path) }
	c, err := load()
	if err != nil {
		t.Fatal(err)
	}
	open := openToken()
	x.d, err = daemon.New(t.Context(), daemon.Options{
		Config: c, Load: load, Log: zap.NewNop(), Version: "test", Poll: 2 * time.Millisecond, NoSync: true, Now: now,
		Wait: func(context.Context, time.Duration) error { return nil },
		OpenToken: func(ctx context.Context, c configs.Token, l daemon.Login) (daemon.Token, error) {
			token, err := open(ctx, c, l)
			if err != nil {
				return nil, err
			}
			return counted{token, &x.wraps}, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	begin(t, x.d)
	x.client = control.NewClient(x.socket("one"))
	return x
}

// asked waits until officers are asked about the key, and gives the request.
func (x *watched) asked() (r control.Request) {
	x.t.Helper()
	until(x.t, "the request for approval of "+x.key, func() bool {
		for _, q := range x.open(x.t.Context(), x.client) {
			if q.Key == x.key {
				r = q
				return true
			}
		}
		return false
	})
	return r
}

// end ends the open jobs of the key.
func (x *watched) end(ctx context.Context) {
	x.t.Helper()
	until(x.t, "the end of the jobs", func() bool {
		list, err := x.client.Jobs(ctx, store.JobFilter{Key: x.key, Open: true})
		if err != nil {
			x.t.Fatal(err)
		}
		for _, j := range list {
			if j.State != store.Waiting || x.client.Job(ctx, "cancel", j.ID) != nil {
				return false
			}
		}
		return true
	})
}

// approve signs with the first two officers.
func (x *watched) approve(r control.Request) {
	x.t.Helper()
	for i := range 2 {
		sig, err := x.sign(i, r.Text)
		if err != nil {
			x.t.Fatal(err)
		}
		if _, err := x.client.Approve(x.t.Context(), r.Name, sig); err != nil {
			x.t.Fatal(err)
		}
	}
}

// reconfigure replaces text in the configuration and has it read.
func (x *watched) reconfigure(old, now string) {
	before := readFile(x.t, x.path)
	after := strings.ReplaceAll(before, old, now)
	if after == before {
		x.t.Errorf("the configuration has no %q", old)
	}
	x.configure(after)
}

// configure has the daemon read a configuration.
func (x *watched) configure(text string) {
	if err := os.WriteFile(x.path, []byte(text), 0o600); err != nil {
		x.t.Error(err)
	}
	if err := x.client.Reload(x.t.Context()); err != nil {
		x.t.Error(err)
	}
}

// write changes the database behind the daemon's back.
func (x *watched) write(statement string, args ...any) {
	if err := x.d.Store().Tx(x.t.Context(), func(tx *store.Tx) error {
		_, err := tx.ExecContext(x.t.Context(), statement, args...)
		return err
	}); err != nil {
		x.t.Error(err)
	}
}

// said is everything that the journal and the jobs say.
func (x *watched) said() string {
	var all []string
	ctx := x.t.Context()
	if err := x.client.Events(ctx, store.EventFilter{Key: x.key}, false, func(e store.Event) error { all = append(all, e.Message); return nil }); err != nil {
		x.t.Error(err)
	}
	jobs, err := x.client.Jobs(ctx, store.JobFilter{Key: x.key})
	if err != nil {
		x.t.Error(err)
	}
	for _, j := range jobs {
		all = append(all, j.Error)
	}
	return strings.Join(all, "\n")
}

// last is the latest job of the key, when it is neither queued nor running.
func (x *watched) last(ctx context.Context) store.Job {
	x.t.Helper()
	var last store.Job
	until(x.t, "the job", func() bool {
		list, err := x.client.Jobs(ctx, store.JobFilter{Key: x.key})
		if err != nil || len(list) == 0 {
			return false
		}
		last = list[0]
		return last.State != store.Queued && last.State != store.Running
	})
	return last
}

// Two officers have approved, the parameters have come from KMS, and then something changes: it is decided anew, and nothing is wrapped.
func TestDecidedImmediatelyBeforeTheWrap(t *testing.T) {
	t.Parallel()
	const other = "arn:aws:kms:eu-central-1:111122223333:key/11111111-2222-4333-8444-555555555555"
	cases := []struct {
		name   string
		key    string // a line of the key's configuration
		before bool   // of KMS's answer, not after it
		change func(x *watched, r control.Request)
		want   string // what the job says; KEY is the key's name
	}{
		{name: "approval is asked for only now", key: "approval: {exempt: true}", change: func(x *watched, _ control.Request) {
			x.reconfigure("approval: {exempt: true}", "approval: {threshold: 2}")
		}, want: "KEY waits for officers: 0 of 2 approvals"},
		{name: "an officer is called otherwise: the key counts, not the name", change: func(x *watched, _ control.Request) { x.reconfigure("name: alice,", "name: Alice Two,") }, want: "done"},
		{name: "an officer's key is removed", change: func(x *watched, _ control.Request) {
			x.reconfigure(publicLine(x.signers[0].PublicKey()), publicLine(newSigner(x.t).PublicKey()))
		}, want: "1 of 2 approvals; one does not count: the key SHA256:"},
		{name: "three have to approve now", change: func(x *watched, _ control.Request) { x.reconfigure("threshold: 2", "threshold: 3") }, want: "2 of 3 approvals; still to be asked: carol"},
		{name: "hardware keys are required now", change: func(x *watched, _ control.Request) {
			sk := "  officers:\n"
			for _, name := range []string{"dave", "erin"} {
				sk += "    - {name: " + name + ", keys: [\"" + authenticatorLine(x.t) + "\"]}\n"
			}
			x.reconfigure("  officers:\n", "  require_hardware: true\n"+sk)
		}, want: "0 of 2 approvals; one does not count: alice signed with a key in a file, and a hardware key (sk-ssh-ed25519, sk-ecdsa) is required; one does not count: bob"},
		{name: "requests are valid for a shorter time now", change: func(x *watched, _ control.Request) {
			x.reconfigure("  threshold: 2", "  valid_for: 5m\n  threshold: 2")
		}, want: "KEY waits for officers: 0 of 2 approvals"},
		{name: "the destination is taken out", change: func(x *watched, r control.Request) { x.reconfigure(r.Destination, other) }, want: "the configuration of KEY has changed since the job began, so nothing was wrapped"},
		{name: "the key is taken out", change: func(x *watched, r control.Request) { x.reconfigure("name: "+r.Key+"\n", "name: another\n") }, want: "KEY is no longer in the configuration"},
		{name: "another expiry", change: func(x *watched, _ control.Request) { x.reconfigure("expires: 90d", "expires: 30d") }, want: "the configuration of KEY has changed since the job began, so nothing was wrapped"},
		{name: "an officer says no", change: func(x *watched, r control.Request) {
			said, err := approval.RejectionText([]byte(r.Text), "not today")
			if err != nil {
				x.t.Error(err)
			}
			sig, err := x.signers[2].Sign(rand.Reader, approval.ToSign(approval.RejectionNamespace, said))
			if err != nil {
				x.t.Error(err)
				return
			}
			if _, err := x.client.Reject(x.t.Context(), r.Name, "not today", approval.Armor(x.signers[2].PublicKey(), approval.RejectionNamespace, sig)); err != nil {
				x.t.Error(err)
			}
		}, want: "was rejected: by carol: not today; hsmbridge retry KEY asks again"},
		{name: "a signature in the database is of another text", change: func(x *watched, r control.Request) {
			sig, err := x.sign(1, strings.Replace(r.Text, "90d", "91d", 1))
			if err != nil {
				x.t.Error(err)
			}
			x.write("UPDATE signatures SET signature = ? WHERE officer = 'bob' AND request_id = (SELECT id FROM requests WHERE name = ?)", string(sig), r.Name)
		}, want: "1 of 2 approvals; one does not count: the signature of bob is over another text"},
		{name: "a signature in the database is in another namespace", change: func(x *watched, r control.Request) {
			s := x.signers[1]
			sig, err := s.Sign(rand.Reader, approval.ToSign("file", []byte(r.Text)))
			if err != nil {
				x.t.Error(err)
				return
			}
			x.write("UPDATE signatures SET signature = ? WHERE officer = 'bob' AND request_id = (SELECT id FROM requests WHERE name = ?)", string(approval.Armor(s.PublicKey(), "file", sig)), r.Name)
		}, want: `1 of 2 approvals; one does not count: the signature of bob is for the namespace "file"`},
		{name: "the second signature in the database is the first once more", change: func(x *watched, r control.Request) {
			x.write(`UPDATE signatures SET signature = (SELECT a.signature FROM signatures a WHERE a.officer = 'alice' AND a.request_id = signatures.request_id)
				WHERE officer = 'bob' AND request_id = (SELECT id FROM requests WHERE name = ?)`, r.Name)
		}, want: "1 of 2 approvals; one does not count: alice has signed already: two keys of one person count once"},
		{name: "the text in the database is another one", change: func(x *watched, r control.Request) {
			x.write("UPDATE requests SET text = replace(text, '90d after', '91d after') WHERE name = ?", r.Name)
		}, want: "KEY waits for officers: 0 of 2 approvals"},
		{name: "the time is over", change: func(x *watched, _ control.Request) { x.clock.Store(int64(2 * time.Hour)) }, key: "approval: {valid_for: 1h}", want: "KEY waits for officers: it was valid until "},
		{name: "KMS takes only a shorter wrapping key", before: true, change: func(x *watched, _ control.Request) { x.emu.Refuse("RSA_4096", "ValidationException") }, want: "KEY waits for officers: 0 of 2 approvals"},
	}
	key := func(i int) string { return fmt.Sprintf("k%02d", i) }
	x := watch(t, func(w *world) {
		for i, c := range cases {
			w.key(key(i), wrapping.HMAC256)
			if c.key != "" {
				w.keys[i] += "    " + c.key + "\n"
			}
		}
	})
	for i, c := range cases {
		if x.key = key(i); strings.Contains(c.key, "exempt") {
			until(t, "the first import of what needs no approval", func() bool { return x.last(x.t.Context()).State == store.Done })
		}
	}
	configured := readFile(t, x.path)
	for i, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			x.t, x.key = t, key(i)
			exempt := strings.Contains(c.key, "exempt")
			var r control.Request
			if exempt {
				r.Key = x.key
			} else {
				r = x.asked()
			}
			wraps := x.wraps.count(x.key)
			var once sync.Once
			changed := make(chan struct{})
			hook := func(op string) {
				if op == "GetParametersForImport" {
					once.Do(func() { c.change(x, r); close(changed) })
				}
			}
			if c.before {
				x.hook(hook, nil)
			} else {
				x.hook(nil, hook)
			}
			defer x.hook(nil, nil)
			if !exempt {
				x.approve(r)
			} else if _, err := x.client.Start(t.Context(), control.StartRequest{Keys: []string{x.key}, Kind: store.KindImport, Renew: true}); err != nil {
				t.Fatal(err)
			}
			select {
			case <-changed:
			case <-time.After(30 * time.Second):
				t.Fatal("no parameters were fetched")
			}
			if c.want == "done" {
				until(t, "the import", func() bool { return x.last(x.t.Context()).State == store.Done })
			} else {
				want := strings.ReplaceAll(c.want, "KEY", x.key)
				for end := time.Now().Add(30 * time.Second); !strings.Contains(x.said(), want); time.Sleep(20 * time.Millisecond) {
					if time.Now().After(end) {
						t.Fatalf("it never says %q, but:\n%s", want, x.said())
					}
				}
				x.end(x.t.Context())
				if n := x.wraps.count(x.key) - wraps; n != 0 {
					t.Errorf("the token was told %d times to wrap", n)
				}
			}
			x.configure(configured)
		})
	}
}

// authenticatorLine is the public key of an authenticator, as it stands in a .pub file. Source: OpenSSH, PROTOCOL.u2f.
func authenticatorLine(tb testing.TB) string {
	tb.Helper()
	public, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	blob := ssh.Marshal(struct{ Type, Key, Application string }{ssh.KeyAlgoSKED25519, string(public), "ssh:"})
	return ssh.KeyAlgoSKED25519 + " " + base64.StdEncoding.EncodeToString(blob)
}
