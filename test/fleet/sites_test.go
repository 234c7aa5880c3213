package fleet

import (
	"context"
	"io"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"hsmbridge/daemon/control"
	"hsmbridge/daemon/store"
	"hsmbridge/daemon/web"
	"hsmbridge/hsm/wrapping"
)

// A key in two HSMs, each of which one daemon reaches. The daemon that has begun its import is killed, frozen, cut off from the database or
// from its HSM; the other one goes on from its own HSM. KMS gets one material, once, and the first one does nothing more when it is back.
func TestSites(t *testing.T) {
	for _, x := range []struct {
		name  string
		env   string
		fail  func(s *sites)                 // when KMS gave the import parameters
		after func(s *sites, first *process) // when the other one has taken over
		log   string                         // a regular expression: what the first one says then
	}{
		{name: "killed", env: envKill + "=import/wrap/1"},
		{
			name: "frozen", env: envStop + "=import/wrap/1", log: "another daemon",
			after: func(_ *sites, first *process) { _ = first.Process.Signal(syscall.SIGCONT) },
		},
		{
			name: "database silent", fail: func(s *sites) { s.proxies["one"].silence() }, log: "another daemon|failed to connect",
			after: func(s *sites, _ *process) { s.proxies["one"].heal() },
		},
		{
			name: "database cut", fail: func(s *sites) { s.proxies["one"].cut() }, log: "another daemon|failed to connect",
			after: func(s *sites, _ *process) { s.proxies["one"].heal() },
		},
		{
			name: "HSM removed", fail: func(s *sites) { s.hsm.Script(s.t, "token removed") }, log: "handed over",
			after: func(s *sites, _ *process) { s.hsm.Script(s.t) },
		},
		{
			name: "HSM hangs", fail: func(s *sites) { s.hsm.Script(s.t, "*: hang") }, log: "handed over",
			after: func(s *sites, _ *process) { s.hsm.Script(s.t) },
		},
		{
			name: "module crashes", fail: func(s *sites) { s.hsm.Script(s.t, "C_WrapKey: crash") }, log: "handed over",
			after: func(s *sites, _ *process) { s.hsm.Script(s.t) },
		},
	} {
		t.Run(x.name, func(t *testing.T) {
			t.Parallel()
			s := newSites(t, "call_timeout: 2s")
			arn := s.replicated("k", wrapping.SymmetricDefault)
			two := s.daemon("two", []string{"other"})
			soon(t, "a look into the other HSM", func() bool { return looked(two, "k", "other") })
			_ = two.Process.Signal(syscall.SIGSTOP) // the first one is to begin
			var once sync.Once
			var failed time.Time
			s.hook(nil, func(op string) {
				if op != "GetParametersForImport" {
					return
				}
				once.Do(func() {
					_ = two.Process.Signal(syscall.SIGCONT)
					soon(t, "the other one's sign of life", func() bool { return alive(control.NewClient(s.socket("one")), "two") })
					if failed = time.Now(); x.fail != nil {
						x.fail(s)
					}
				})
			})
			one := s.daemon("one", []string{"hsm"}, strings.Fields(x.env)...)
			var done store.Job
			soon(t, "the import", func() bool {
				for _, j := range jobsOf(two) {
					if j.State == store.Done {
						done = j
						return true
					}
				}
				return false
			})
			took := time.Since(failed)
			t.Logf("taken over and done after %s", took.Round(10*time.Millisecond))
			if done.Daemon != "two" {
				t.Errorf("the job is %s", asJSON(done))
			}
			before := s.emu.Count("ImportKeyMaterial")
			if x.after != nil {
				x.after(s, one)
				soon(t, "the end of the first one's try", func() bool { return regexp.MustCompile(x.log).MatchString(readFile(t, one.log)) })
				time.Sleep(200 * time.Millisecond)
			}
			if list := s.materials(arn); len(list) != 1 || list[0].ImportState != "IMPORTED" {
				t.Errorf("KMS has %s", asJSON(list))
			}
			if now := s.emu.Count("ImportKeyMaterial"); now != before {
				t.Errorf("%d imports were sent after the other one had done it", now-before)
			}
			if x.name == "killed" {
				soon(t, "the first one's absence", func() bool {
					r := replicasOf(two, "k")
					return len(r) == 2 && r[0].Token == "hsm" && r[0].TokenState == "unreached" && r[1].TokenState == "open"
				})
			}
			if jobs := jobsOf(two); len(jobs) != 1 {
				t.Errorf("the jobs are %s", asJSON(jobs))
			}
		})
	}
}

// soon waits for something that is to happen, with much time: the machine may do much else.
func soon(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if f() {
			return
		}
	}
	t.Fatalf("%s did not happen", what)
}

// jobsOf lists a daemon's jobs; nil while it does not answer.
func jobsOf(p *process) []store.Job {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	jobs, err := p.client.Jobs(ctx, store.JobFilter{})
	if err != nil {
		return nil
	}
	return jobs
}

// lastJob is a daemon's newest job, as soon as it answers.
func lastJob(t *testing.T, p *process) store.Job {
	t.Helper()
	var jobs []store.Job
	soon(t, "an answer with jobs", func() bool {
		jobs = jobsOf(p)
		return len(jobs) > 0
	})
	return jobs[0]
}

// alive says that a daemon sees another one alive.
func alive(c *control.Client, other string) bool {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	st, err := c.Status(ctx)
	return err == nil && slices.ContainsFunc(st.Daemons, func(d control.Site) bool { return d.Name == other && d.Alive })
}

// replicasOf is what a daemon knows of a key's replicas.
func replicasOf(p *process, key string) []control.Replica {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	list, err := p.client.Keys(ctx, key)
	if err != nil {
		return nil
	}
	return list[0].Replicas
}

func looked(p *process, key, token string) bool {
	return slices.ContainsFunc(replicasOf(p, key), func(r control.Replica) bool { return r.Token == token && !r.Seen.IsZero() })
}

// officersPage is a page for officers, as a daemon serves it on its socket.
func officersPage(t *testing.T, socket, path string) string {
	t.Helper()
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://localhost"+web.Root+path, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close() //nolint:errcheck // it was only read
	page, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(page)
}

// The other HSM holds another key under the same name. It is never used: not for the first import, which waits, and not when the
// first HSM is gone. When a copy stands there it goes on by itself.
func TestSitesOtherKey(t *testing.T) {
	t.Parallel()
	s := newSites(t)
	key := material(t, wrapping.SymmetricDefault)
	hold(t, s.hsm, "k", wrapping.SymmetricDefault, key)
	hold(t, s.other, "k", wrapping.SymmetricDefault, material(t, wrapping.SymmetricDefault))
	arn := s.key("k", wrapping.SymmetricDefault, "replicas: [{token: other}]")
	p := s.daemon("one", []string{"hsm", "other"})
	soon(t, "the refusal", func() bool {
		jobs := jobsOf(p)
		return len(jobs) > 0 && jobs[0].ErrorCode == "NoReplica" && strings.Contains(jobs[0].Error, "another key")
	})
	st, err := p.client.Status(t.Context())
	if err != nil || !slices.ContainsFunc(st.People, func(n control.NeedsPerson) bool { return n.Key == "k" && strings.Contains(n.Message, "another key") }) {
		t.Errorf("the status says %s, %v", asJSON(st.People), err)
	}
	if !slices.ContainsFunc(p.events("k"), func(e store.Event) bool { return e.Kind == "replica" && strings.Contains(e.Message, "another key") }) {
		t.Errorf("no event says so: %s", asJSON(p.events("k")))
	}
	for _, x := range []struct{ path, says string }{
		{"keys/k", `(?s)tokens/hsm">hsm</a>, serial [0-9a-f]+<br><code>pkcs11:object=k;[^<]*</code></td><td class="token-open">open</td><td><code>check value [0-9a-f]+</code></td><td><span class="good">yes.*tokens/other">other</a>, serial [0-9a-f]+<br>[^ ]*</td><td class="token-open">.*<b class="bad">no</b>: another key`},
		{"tokens/other", `keys/k">k</a><br><code>pkcs11:object=k;[^<]*</code></td><td>1</td><td><code>check value [0-9a-f]+</code></td><td><b class="bad">no</b>: another key`},
		{"tokens/hsm", `keys/k">k</a><br><code>pkcs11:object=k;[^<]*</code></td><td>1</td><td><code>check value [0-9a-f]+</code></td><td><span class="good">yes`},
	} {
		if page := officersPage(t, s.socket("one"), x.path); !regexp.MustCompile(x.says).MatchString(page) {
			t.Errorf("the page %s does not say %s:\n%s", x.path, x.says, page)
		}
	}
	// As long as that is so the job waits: to try it again at each look would only fill the audit log.
	before := lastJob(t, p).Attempts
	time.Sleep(12 * time.Second)
	if now := lastJob(t, p).Attempts; now > before+1 {
		t.Errorf("%d attempts within two looks", now-before)
	}
	s.other.Tool(t, "--delete-object", "--type", "secrkey", "--label", "k")
	hold(t, s.other, "k", wrapping.SymmetricDefault, key)
	jobs := p.settled()
	if len(jobs) != 1 || jobs[0].State != store.Done {
		t.Fatalf("the jobs are %s", asJSON(jobs))
	}
	if s.emu.State(arn) != "Enabled" {
		t.Errorf("KMS says %s", s.emu.State(arn))
	}

	// Somebody exchanges the copy, and the first HSM is gone.
	s.other.Tool(t, "--delete-object", "--type", "secrkey", "--label", "k")
	hold(t, s.other, "k", wrapping.SymmetricDefault, material(t, wrapping.SymmetricDefault))
	s.hsm.Script(t, "token removed")
	imports := s.emu.Count("ImportKeyMaterial")
	p.ask(store.KindImport, "k", true)
	soon(t, "the second refusal", func() bool {
		jobs := jobsOf(p)
		return len(jobs) > 0 && jobs[0].Error != "" && slices.ContainsFunc(replicasOf(p, "k"), func(r control.Replica) bool { return r.Token == "other" && !r.Agrees })
	})
	if now := s.emu.Count("ImportKeyMaterial"); now != imports {
		t.Error("another key was sent to KMS")
	}
	s.hsm.Script(t)
	_ = p.client.ResumeToken(t.Context(), "hsm") // it may have been opened again already
	p.settled()
	if now := s.emu.Count("ImportKeyMaterial"); now == imports {
		t.Error("the first HSM is back, and nothing was imported")
	}
}

// New material waits until the other HSM has a copy, and goes on by itself then.
func TestSitesRotation(t *testing.T) {
	t.Parallel()
	s := newSites(t)
	arn := s.replicated("k", wrapping.SymmetricDefault)
	one, two := s.daemon("one", []string{"hsm"}), s.daemon("two", []string{"other"})
	one.settled()
	next := material(t, wrapping.SymmetricDefault)
	hold(t, s.hsm, "k.2", wrapping.SymmetricDefault, next)
	two.ask(store.KindRotate, "k", false)
	soon(t, "the wait for a copy", func() bool {
		jobs := jobsOf(one)
		return len(jobs) == 2 && jobs[0].ErrorCode == "NoReplica" && jobs[0].State == store.Waiting
	})
	if list := s.materials(arn); len(list) != 1 {
		t.Errorf("KMS has %s before the other HSM has a copy", asJSON(list))
	}
	hold(t, s.other, "k.2", wrapping.SymmetricDefault, next)
	began := time.Now()
	jobs := one.settled()
	t.Logf("it goes on %s after the copy", time.Since(began).Round(10*time.Millisecond))
	if last := jobs[len(jobs)-1]; last.State != store.Done {
		t.Errorf("the job is %s", asJSON(last))
	}
	if list := s.materials(arn); len(list) != 2 || list[1].State != "CURRENT" {
		t.Errorf("KMS has %s", asJSON(list))
	}
	// Both generations are in the other HSM, which therefore serves alone.
	one.kill()
	two.ask(store.KindImport, "k", true)
	jobs = two.settled()
	if last := jobs[len(jobs)-1]; last.State != store.Done || last.Daemon != "two" {
		t.Errorf("the job is %s", asJSON(last))
	}
}

// Officers approve one HSM. When its daemon is gone, they are asked anew for the other: what they signed for the first is not done there.
func TestSitesApproval(t *testing.T) {
	t.Parallel()
	s := newSites(t)
	s.replicated("k", wrapping.SymmetricDefault)
	o := s.officers()
	daemons := map[string]*process{"hsm": s.daemon("one", []string{"hsm"})}
	soon(t, "the look into the first HSM", func() bool { return looked(daemons["hsm"], "k", "hsm") })
	daemons["other"] = s.daemon("two", []string{"other"})
	serials := map[string]string{"hsm": s.hsm.Serial, "other": s.other.Serial}
	var first control.Request
	soon(t, "the first request", func() bool {
		list := o.open(t.Context(), daemons["other"].client)
		if len(list) == 0 {
			return false
		}
		first = list[0]
		return true
	})
	asked, left := "hsm", "other"
	if strings.Contains(first.Text, serials["other"]) {
		asked, left = left, asked
	}
	if !strings.Contains(first.Text, serials[asked]) || strings.Contains(first.Text, serials[left]) {
		t.Fatalf("the request does not name one of the HSMs:\n%s", first.Text)
	}
	daemons[asked].kill()
	p := daemons[left]
	approve := func(r control.Request) {
		for i := range 2 {
			sig, err := o.sign(i, r.Text)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := p.client.Approve(t.Context(), r.Name, sig); err != nil {
				t.Fatal(err)
			}
		}
	}
	approve(first)
	var second control.Request
	soon(t, "a request for the other HSM", func() bool {
		for _, r := range o.open(t.Context(), p.client) {
			if strings.Contains(r.Text, serials[left]) {
				second = r
			}
		}
		return second.Name != ""
	})
	if n := s.emu.Count("ImportKeyMaterial"); n != 0 {
		t.Errorf("%d imports before anybody approved the HSM", n)
	}
	approve(second)
	jobs := p.settled()
	if len(jobs) != 1 || jobs[0].State != store.Done {
		t.Errorf("the jobs are %s", asJSON(jobs))
	}
	for _, e := range p.events("k") {
		if e.Kind == "allowed" && e.Fields["request"] != second.Name {
			t.Errorf("a wrap in %s was allowed by %s", left, e.Fields["request"])
		}
	}
}

// A token that no daemon reaches is told of, and its keys wait; a daemon that reaches it begins at once.
func TestSitesNobodyReaches(t *testing.T) {
	t.Parallel()
	s := newSites(t)
	arn := s.key("k", wrapping.SymmetricDefault)
	two := s.daemon("two", []string{"other"})
	soon(t, "the word that nobody reaches it", func() bool {
		st, err := two.client.Status(t.Context())
		return err == nil && slices.ContainsFunc(st.People, func(n control.NeedsPerson) bool { return n.Token == "hsm" && strings.Contains(n.Message, "no daemon") })
	})
	soon(t, "the wait", func() bool { jobs := jobsOf(two); return len(jobs) == 1 && jobs[0].State == store.Queued })
	one := s.daemon("one", []string{"hsm"})
	if jobs := one.settled(); len(jobs) != 1 || jobs[0].State != store.Done || jobs[0].Daemon != "one" {
		t.Errorf("the jobs are %s", asJSON(jobs))
	}
	if s.emu.State(arn) != "Enabled" {
		t.Errorf("KMS says %s", s.emu.State(arn))
	}
	soon(t, "the sight of the other daemon", func() bool {
		st, err := two.client.Status(t.Context())
		return err == nil && len(st.Daemons) == 2
	})
}
