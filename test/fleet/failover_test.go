package fleet

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"hsmbridge/daemon/control"
	"hsmbridge/daemon/store"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/test/shim"
)

// envFailures is how many failures TestFailover makes; `make failover` sets it.
const envFailures = "FLEET_FAILURES"

// TestFailover keeps three daemons at two sites busy with imports and rotations while one after the other is killed, frozen, cut off from the
// database or from its HSM, at random, and then holds KMS's own record, the database and both HSMs against each other.
func TestFailover(t *testing.T) {
	n := 4
	if text := os.Getenv(envFailures); text != "" {
		var err error
		if n, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	} else {
		t.Parallel()
	}
	f := newFailover(t)
	began := time.Now()
	for i := range n {
		f.fail()
		if n > 20 && i%20 == 19 {
			t.Logf("%d failures after %s", i+1, time.Since(began).Round(time.Second))
		}
	}
	f.calm()
	f.account(n, time.Since(began))
}

// failover is three daemons: the first reaches one HSM, the second the other one, the third both.
type failover struct {
	*sites
	t     *testing.T
	names []string
	reach map[string][]string
	p     map[string]*process
	keys  map[string]string // ARNs
	only  []string          // keys in one HSM, which are rotated
	asked map[int64]bool
	made  map[string]int // failures by kind

	refused, encouraged int
}

func newFailover(t *testing.T) *failover {
	t.Helper()
	f := &failover{
		sites: newSites(t, "call_timeout: 3s"), t: t, names: []string{"one", "two", "both"}, p: map[string]*process{}, keys: map[string]string{}, asked: map[int64]bool{}, made: map[string]int{},
		reach: map[string][]string{"one": {"hsm"}, "two": {"other"}, "both": {"hsm", "other"}},
	}
	for i := range 4 {
		name, spec := "aes"+itoa(i), wrapping.SymmetricDefault
		if i%2 == 1 {
			name, spec = "ec"+itoa(i), wrapping.ECCNISTP384
		}
		f.keys[name] = f.replicated(name, spec)
	}
	for _, on := range []string{"hsm", "other"} {
		for i := range 2 {
			name := on + "-only" + itoa(i)
			f.keys[name] = f.key(name, wrapping.SymmetricDefault)
			last := len(f.world.keys) - 1
			f.world.keys[last] = strings.Replace(f.world.keys[last], "token: hsm\n", "token: "+on+"\n", 1)
			f.only = append(f.only, name)
		}
	}
	for _, name := range f.names {
		f.p[name] = f.daemon(name, f.reach[name])
	}
	f.p["both"].settled()
	return f
}

func (f *failover) ctx() (context.Context, context.CancelFunc) {
	return context.WithTimeout(f.t.Context(), 3*time.Second)
}

// request asks a daemon for an import or, less often, for a rotation.
func (f *failover) request() {
	r := control.StartRequest{Keys: []string{slices.Sorted(maps.Keys(f.keys))[rand.IntN(len(f.keys))]}, Kind: store.KindImport, Renew: true} //nolint:gosec // a test
	if rand.IntN(6) == 0 {                                                                                                                   //nolint:gosec // a test
		r = control.StartRequest{Keys: []string{f.only[rand.IntN(len(f.only))]}, Kind: store.KindRotate} //nolint:gosec // a test
	}
	if !f.ask(f.names[rand.IntN(len(f.names))], r) { //nolint:gosec // a test
		f.refused++ // that daemon has just failed, or KMS allows no more rotations
	}
}

// ask asks one of the daemons for jobs, and says whether it took them all.
func (f *failover) ask(name string, r control.StartRequest) bool {
	ctx, cancel := f.ctx()
	defer cancel()
	jobs, err := f.p[name].client.Start(ctx, r)
	for _, j := range jobs {
		f.asked[j.ID] = true
	}
	return err == nil
}

// fail makes one failure while there is work, and takes it back.
func (f *failover) fail() {
	for range 3 {
		f.request()
	}
	name := f.names[rand.IntN(len(f.names))]           //nolint:gosec // a test
	hsm := []shim.Module{f.hsm, f.other}[rand.IntN(2)] //nolint:gosec // a test
	kinds := []string{"killed", "frozen", "database silent", "database cut", "HSM removed", "HSM hangs", "HSM errors", "module crashes"}
	kind := kinds[rand.IntN(len(kinds))] //nolint:gosec // a test
	f.made[kind]++
	time.Sleep(time.Duration(rand.IntN(400)) * time.Millisecond) //nolint:gosec // a test
	p, wire := f.p[name], f.proxies[name]
	switch kind {
	case "killed":
		_ = p.Process.Kill()
		<-p.done
	case "frozen":
		_ = p.Process.Signal(syscall.SIGSTOP)
	case "database silent":
		wire.silence()
	case "database cut":
		wire.cut()
	case "HSM removed":
		hsm.Script(f.t, "token removed")
	case "HSM hangs":
		hsm.Script(f.t, "C_WrapKey: hang")
	case "HSM errors":
		hsm.Script(f.t, "*: return CKR_DEVICE_ERROR one in 3")
	case "module crashes":
		hsm.Script(f.t, "C_WrapKey: crash times 1")
	}
	for range 1 + rand.IntN(3) { //nolint:gosec // a test
		f.request()
		time.Sleep(time.Duration(200+rand.IntN(1200)) * time.Millisecond) //nolint:gosec // a test
	}
	switch kind {
	case "killed":
		f.p[name] = f.daemon(name, f.reach[name])
	case "frozen":
		_ = p.Process.Signal(syscall.SIGCONT)
	case "database silent", "database cut":
		wire.heal()
	default:
		hsm.Script(f.t)
	}
	f.up()
	if rand.IntN(4) == 0 { //nolint:gosec // a test
		f.encourage()
	}
}

// up starts again what has ended by itself.
func (f *failover) up() {
	for _, name := range f.names {
		select {
		case <-f.p[name].done:
			f.p[name] = f.daemon(name, f.reach[name])
		default:
		}
	}
}

// encourage does what an operator does: lets parked tokens be used again, and tries again what has failed.
func (f *failover) encourage() {
	f.encouraged++
	c := f.p["both"].client
	for _, token := range []string{"hsm", "other"} {
		ctx, cancel := f.ctx()
		_ = c.ResumeToken(ctx, token) // it may be neither parked nor resting
		cancel()
	}
	for name := range f.keys {
		ctx, cancel := f.ctx()
		_, _ = c.Retry(ctx, name) // the daemon may be starting
		cancel()
	}
}

// calm waits until nothing is left to do. Then keys of both HSMs are imported once more, so that what is held of sessions at the end is what a process left
// that was not killed.
func (f *failover) calm() {
	f.t.Helper()
	var last string
	again := false
	for end := time.Now().Add(4 * time.Minute); time.Now().Before(end); time.Sleep(time.Second) {
		f.up()
		f.encourage()
		ctx, cancel := f.ctx()
		open, err := f.p["both"].client.Jobs(ctx, store.JobFilter{Open: true})
		cancel()
		if err == nil && len(open) == 0 {
			if again {
				return
			}
			again = f.ask("both", control.StartRequest{Keys: f.only, Kind: store.KindImport, Renew: true})
		}
		last = fmt.Sprint(err, asJSON(open))
	}
	f.t.Fatalf("it does not come to rest: %s", last)
}

// account holds everything against everything.
func (f *failover) account(n int, took time.Duration) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), time.Minute)
	defer cancel()
	jobs, err := f.p["both"].client.Jobs(ctx, store.JobFilter{Limit: 1000000})
	if err != nil {
		f.t.Fatal(err)
	}
	states, by, rotated, tried := map[store.State]int{}, map[string]int{}, map[string]int{}, map[string]int{}
	for _, j := range jobs {
		delete(f.asked, j.ID)
		states[j.State]++
		by[j.Daemon]++
		if j.State == store.Done == (j.Error != "") {
			f.t.Errorf("a job is neither done nor reported, or both: %s", asJSON(j))
		}
		if j.Kind == store.KindRotate {
			tried[j.Key]++
			if j.State == store.Done {
				rotated[j.Key]++
			}
		}
	}
	for id := range f.asked {
		f.t.Errorf("job %d was asked for and is not there", id)
	}
	imports, rotations := 0, map[string]int{}
	for _, r := range f.emu.Requests() {
		switch {
		case r.Code != "":
		case r.Operation == "ImportKeyMaterial":
			imports++
		case r.Operation == "RotateKeyOnDemand":
			rotations[r.KeyID]++
		}
	}
	held := map[string]int{} // generations that HSMs have to hold
	for name, arn := range f.keys {
		held[name]++
		if state := f.emu.State(arn); state != "Enabled" {
			f.t.Errorf("%s is %s", name, state)
		}
		if strings.HasPrefix(name, "ec") {
			continue
		}
		current := 0
		list := f.materials(arn)
		for _, m := range list {
			if m.ImportState != "IMPORTED" {
				f.t.Errorf("%s lacks a material: %s", name, asJSON(m))
			}
			if m.State == "CURRENT" {
				current++
			}
		}
		if current != 1 || len(list) < 1+rotated[name] || len(list) > 1+tried[name] || tried[name] == rotated[name] && len(list) != 1+rotated[name] {
			f.t.Errorf("%s has %d materials, %d of them current, after %d rotations of which %d were done", name, len(list), current, tried[name], rotated[name])
		}
		if got := rotations[arn[strings.LastIndex(arn, "/")+1:]] + rotations[arn]; got > tried[name] {
			f.t.Errorf("%s was rotated %d times for %d jobs", name, got, tried[name])
		}
		for g := 2; g <= len(list); g++ {
			held[name+"."+itoa(g)]++
		}
	}
	for _, name := range f.names {
		_ = f.p[name].Process.Signal(syscall.SIGTERM)
	}
	for _, name := range f.names {
		<-f.p[name].done
		if f.p[name].err != nil {
			f.t.Errorf("daemon %s ended with %v", name, f.p[name].err)
		}
	}
	for name, m := range map[string]shim.Module{"hsm": f.hsm, "other": f.other} {
		if c := m.Counters(f.t); c.OpenSessions != 0 || c.SessionObjects != 0 {
			f.t.Errorf("in %s %d sessions and %d session objects are left", name, c.OpenSessions, c.SessionObjects)
		}
		seen := map[string]int{}
		for _, class := range []string{"secrkey", "privkey"} {
			for line := range strings.Lines(m.Tool(f.t, "--list-objects", "--type", class)) {
				if label, ok := strings.CutPrefix(strings.TrimSpace(line), "label:"); ok {
					seen[strings.TrimSpace(label)]++
				}
			}
		}
		for label, n := range seen {
			// The object of a rotation that was given up stays for the next one.
			key, _, _ := strings.Cut(label, ".")
			if n != 1 || f.keys[key] == "" || held[label] == 0 && len(rotated) > 0 && tried[key] == rotated[key] {
				f.t.Errorf("%s holds %d of %s", name, n, label)
			}
		}
	}
	f.t.Logf("%d failures in %s: %v. %d jobs: %v, done by %v; %d requests were refused at once. KMS took %d imports and made %d rotations; %d times an operator acted",
		n, took.Round(time.Second), f.made, len(jobs), states, by, f.refused, imports, total(rotations), f.encouraged)
}

func total(m map[string]int) (n int) {
	for _, v := range m {
		n += v
	}
	return n
}
