package fleet

import (
	"context"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"

	"hsmbridge/configs"
	"hsmbridge/daemon"
	"hsmbridge/daemon/store"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/kmsclient/kmsemu"
	"hsmbridge/test/postgres"
)

// until waits for something that is to happen.
func until(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if f() {
			return
		}
	}
	t.Fatalf("%s did not happen", what)
}

// state is that of a process in the kernel: 'T' is stopped. Source: proc(5).
func (p *process) state(t *testing.T) string {
	t.Helper()
	_, rest, _ := strings.Cut(readFile(t, "/proc/"+itoa(p.Process.Pid)+"/stat"), ") ")
	return rest[:min(1, len(rest))]
}

// Two daemons on one PostgreSQL database: one is frozen in the middle of a rotation, the other takes over when the lease has ended, and
// the first wakes up again. There is one new material, one outcome, and the first one changes nothing any more.
func TestZombie(t *testing.T) {
	for _, step := range []string{"rotate/generate/1", "rotate/parameters/1", "rotate/wrap/1", "rotate/import/1", "rotate/rotate/1"} {
		t.Run(strings.ReplaceAll(step, "/", " "), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, kmsemu.Options{})
			arn := w.key("k", wrapping.SymmetricDefault)
			db := postgres.Shared(t)
			frozen := w.start("frozen", db, envStop+"="+step, envLease+"=2s")
			frozen.settled()
			frozen.ask(store.KindRotate, "k", false)
			until(t, "the freeze", func() bool { return frozen.state(t) == "T" })
			other := w.start("other", db, envLease+"=2s")
			jobs := other.settled()
			if last := jobs[len(jobs)-1]; last.Kind != store.KindRotate || last.State != store.Done || last.Daemon != "other" {
				t.Errorf("the job is %s", asJSON(last))
			}
			count := len(other.events("k"))
			_ = frozen.Process.Signal(syscall.SIGCONT)
			until(t, "the zombie's end of its step", func() bool { return strings.Contains(readFile(t, frozen.log), "another daemon") })
			time.Sleep(200 * time.Millisecond)
			if list := w.materials(arn); len(list) != 2 || list[1].State != "CURRENT" {
				t.Errorf("KMS has %s", asJSON(list))
			}
			if n := w.emu.Count("RotateKeyOnDemand"); n > 2 {
				t.Errorf("%d rotations were asked for", n)
			}
			if now := other.events("k"); len(now) != count {
				t.Errorf("the zombie wrote %s", asJSON(now[count:]))
			}
			imports, err := other.client.Imports(context.Background(), "k", jobs[len(jobs)-1].ID, 10)
			if err != nil || len(imports) != 1 {
				t.Errorf("the job has the imports %s, %v", asJSON(imports), err)
			}
			frozen.kill()
			other.kill()
			if got := w.objects(); got["k"] != 1 || got["k.2"] != 1 || len(got) != 2 {
				t.Errorf("the token holds %v", got)
			}
		})
	}
}

// Two daemons share the work of many keys; one of them is killed in the middle. Every key is imported once.
func TestTwoDaemonsOneKilled(t *testing.T) {
	t.Parallel()
	w := newWorld(t, kmsemu.Options{})
	const keys = 60 // more than both have under way at a time
	arns := map[string]string{}
	for i := range keys {
		name := "k" + itoa(i)
		arns[name] = w.key(name, wrapping.HMAC256)
	}
	db := postgres.Shared(t)
	var imported atomic.Int32
	started := make(chan *process, 1)
	var once sync.Once
	w.hook(func(op string) {
		if op == "ImportKeyMaterial" && imported.Add(1) == keys*3/4 {
			once.Do(func() { _ = (<-started).Process.Kill() })
		}
	}, nil)
	started <- w.start("one", db, envLease+"=2s")
	two := w.start("two", db, envLease+"=2s")
	jobs := two.settled()
	if len(jobs) != keys {
		t.Errorf("there are %d jobs for %d keys", len(jobs), keys)
	}
	by := map[string]int{}
	for _, j := range jobs {
		if j.State != store.Done {
			t.Errorf("a job ended as %s", asJSON(j))
		}
		by[j.Daemon]++
	}
	if by["one"] == 0 || by["two"] == 0 {
		t.Errorf("the work was done by %v", by)
	}
	for name, arn := range arns {
		if info, err := w.client.DescribeKey(t.Context(), arn); err != nil || info.State != "Enabled" {
			t.Errorf("%s is %s, %v", name, info.State, err)
		}
	}
	two.kill()
	for label, n := range w.objects() {
		if n != 1 {
			t.Errorf("the token holds %d of %s", n, label)
		}
	}
}

// A daemon looks at a KMS key into which another one imports at that moment. What it saw before the import is out of date when it would be
// written down: the key is not imported a second time.
func TestLookFromBeforeTheImport(t *testing.T) {
	t.Parallel()
	w := newWorld(t, kmsemu.Options{})
	w.key("k", wrapping.HMAC256)
	db := postgres.Shared(t)
	importing, goOn, looked, answer := make(chan struct{}), make(chan struct{}), make(chan struct{}), make(chan struct{})
	var fetched, begun, held atomic.Bool
	w.hook(func(op string) {
		switch {
		case op == "GetParametersForImport":
			fetched.Store(true)
		case op == "DescribeKey" && fetched.Load(): // the job asks for that before; now only a look of the first daemon does, which must not be the one that counts
			<-goOn
		case op == "ImportKeyMaterial" && begun.CompareAndSwap(false, true):
			close(importing)
			<-goOn
		}
	}, nil)
	one := w.start("one", db)
	<-importing
	w.url = w.wire(nil, func(op string) {
		if op == "DescribeKey" && held.CompareAndSwap(false, true) {
			close(looked)
			<-answer
		}
	})
	c, err := configs.Load(w.config("two", db))
	if err != nil {
		t.Fatal(err)
	}
	two, err := daemon.New(t.Context(), daemon.Options{Config: c, OpenToken: openToken(), Log: zap.NewNop(), Version: "test", Manual: true})
	if err != nil {
		t.Fatal(err)
	}
	begin(t, two)
	ticked := make(chan error, 1)
	go func() { ticked <- two.Tick(t.Context()) }()
	<-looked
	close(goOn)
	if jobs := one.settled(); len(jobs) != 1 || jobs[0].State != store.Done {
		t.Errorf("the jobs are %s", asJSON(jobs))
	}
	close(answer)
	if err := <-ticked; err != nil {
		t.Error(err)
	}
	if jobs := one.settled(); len(jobs) != 1 {
		t.Errorf("the jobs are %s", asJSON(jobs))
	}
	if n := w.emu.Count("ImportKeyMaterial"); n != 1 {
		t.Errorf("%d imports", n)
	}
}

// The database goes away in the middle of an import and comes back. The outcome is not lost, and nothing is imported twice.
func TestDatabaseGoesAway(t *testing.T) {
	t.Parallel()
	w := newWorld(t, kmsemu.Options{})
	arn := w.key("k", wrapping.SymmetricDefault)
	db := postgres.New(t)
	url := db.NewDatabase(t)
	var once sync.Once
	gone := make(chan struct{})
	w.hook(nil, func(op string) {
		if op == "ImportKeyMaterial" {
			once.Do(func() { defer close(gone); db.Stop(t) })
		}
	})
	p := w.start("one", url, envLease+"=2s")
	<-gone
	time.Sleep(500 * time.Millisecond)
	db.Start(t)
	jobs := p.settled()
	if len(jobs) != 1 || jobs[0].State != store.Done {
		t.Errorf("the jobs are %s", asJSON(jobs))
	}
	if list := w.materials(arn); len(list) != 1 || list[0].ImportState != "IMPORTED" {
		t.Errorf("KMS has %s", asJSON(list))
	}
}

// KMS does what it is asked for and its answer is cut off on the way: no second material, and the outcome is known.
func TestConnectionCut(t *testing.T) {
	t.Parallel()
	for _, op := range []string{"ImportKeyMaterial", "RotateKeyOnDemand"} {
		t.Run(op, func(t *testing.T) {
			w := newWorld(t, kmsemu.Options{})
			arn := w.key("k", wrapping.SymmetricDefault)
			p := w.start("one", "")
			p.settled()
			w.emu.AddFault(kmsemu.Fault{Operation: op, Cut: "after"})
			p.ask(store.KindRotate, "k", false)
			jobs := p.settled()
			if last := jobs[len(jobs)-1]; last.State != store.Done {
				t.Errorf("the job is %s", asJSON(last))
			}
			if list := w.materials(arn); len(list) != 2 || list[1].State != "CURRENT" {
				t.Errorf("KMS has %s", asJSON(list))
			}
		})
	}
}

// SIGTERM in the middle of a job: the step under way is finished, the job is handed back, and the next daemon goes on with it.
func TestTerminated(t *testing.T) {
	t.Parallel()
	w := newWorld(t, kmsemu.Options{})
	arn := w.key("k", wrapping.SymmetricDefault)
	started := make(chan *process, 1)
	var once sync.Once
	w.hook(func(op string) {
		if op != "GetParametersForImport" {
			return
		}
		once.Do(func() {
			p := <-started
			_ = p.Process.Signal(syscall.SIGTERM)
			until(t, "the daemon's beginning of its end", func() bool { return strings.Contains(readFile(t, p.log), `"ending: `) })
		})
	}, nil)
	p := w.start("one", "")
	started <- p
	select {
	case <-p.done:
	case <-time.After(2 * time.Minute):
		t.Fatal("the daemon does not end")
	}
	if p.err != nil {
		t.Errorf("the daemon ended with %v", p.err)
	}
	if n := w.emu.Count("ImportKeyMaterial"); n != 0 {
		t.Errorf("%d imports after SIGTERM", n)
	}
	p = w.start("one", "")
	jobs := p.settled()
	if len(jobs) != 1 || jobs[0].State != store.Done || jobs[0].Attempts != 2 {
		t.Errorf("the jobs are %s", asJSON(jobs))
	}
	kinds := []string{}
	for _, e := range p.events("k") {
		kinds = append(kinds, e.Kind)
	}
	if slices.Contains(kinds, "reclaimed") {
		t.Errorf("the job was not handed back, but left: %v", kinds)
	}
	if list := w.materials(arn); len(list) != 1 {
		t.Errorf("KMS has %s", asJSON(list))
	}
}

// A second daemon on the same file is refused and says who is there.
func TestSecondDaemon(t *testing.T) {
	t.Parallel()
	w := newWorld(t, kmsemu.Options{})
	w.key("k", wrapping.HMAC256)
	one := w.start("one", "")
	one.settled()
	two := w.start("two", "")
	select {
	case <-two.done:
	case <-time.After(2 * time.Minute):
		t.Fatal("a second daemon runs on the same file")
	}
	if log := readFile(t, two.log); !strings.Contains(log, "another hsmbridge uses") || !strings.Contains(log, "process "+itoa(one.Process.Pid)) {
		t.Errorf("the second daemon says %q", log)
	}
	if s, err := one.client.Status(t.Context()); err != nil || !s.Ready {
		t.Errorf("the first daemon: %+v, %v", s, err)
	}
}
