package fleet

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"hsmbridge/daemon/control"
	"hsmbridge/daemon/importer"
	"hsmbridge/daemon/store"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/kmsclient"
	"hsmbridge/kmsclient/kmsemu"
	"hsmbridge/test/nss"
	"hsmbridge/test/shim"
)

// envSoak is how long TestSoak goes on; `make soak` sets it.
const envSoak = "FLEET_SOAK"

// troubles is what may happen to a token, in the words of the shim. Each lasts for a moment.
var troubles = []string{
	"C_WrapKey: return CKR_DEVICE_ERROR one in 2", "C_WrapKey: session lost one in 2", "C_WrapKey: output zero one in 2", "C_WrapKey: output garbage one in 2", "C_WrapKey: output truncated",
	"C_WrapKey: return CKR_GENERAL_ERROR times 3", "C_WrapKey: delay 50ms", "C_WrapKey: hang", "C_WrapKey: length 1000000 times 1", "C_WrapKey: oaep sha1",
	"C_CreateObject: return CKR_DEVICE_MEMORY one in 2", "C_CreateObject: session lost one in 2", "C_DestroyObject: return CKR_GENERAL_ERROR one in 2", "C_DestroyObject: session lost",
	"C_FindObjects: return CKR_FUNCTION_FAILED one in 3", "C_FindObjectsInit: sessions lost times 1", "C_GetAttributeValue: objects stale one in 20", "C_FindObjectsInit: login lost times 1",
	"C_OpenSession: return CKR_SESSION_COUNT", "sessions limit 2", "C_CloseSession: return CKR_DEVICE_ERROR one in 2", "C_Sign: output garbage", "C_Encrypt: return CKR_DEVICE_ERROR",
	"token removed", "C_FindObjectsInit: token removed times 1", "C_FindObjects: crash times 1", "C_WrapKey: crash times 1", "*: return CKR_DEVICE_ERROR one in 20", "*: delay 5ms",
}

// TestSoak keeps a daemon busy with imports for two tokens while tokens fail, connections are cut and the process is killed, and then holds
// what KMS, the database and the tokens have against each other.
func TestSoak(t *testing.T) {
	t.Parallel()
	duration := 5 * time.Second
	if text := os.Getenv(envSoak); text != "" {
		var err error
		if duration, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
	}
	s := newSoak(t)
	s.run(duration)
	s.calm()
	s.account()
}

// soak is a daemon that is never left alone.
type soak struct {
	*world
	t       *testing.T
	tokens  map[string]shim.Module
	keys    map[string]string // ARNs
	p       *process
	cutting atomic.Bool
	asked   map[int64]bool // jobs

	starts, kills, stops, ends, injections, refusedAsks int
	cuts                                                atomic.Int64
}

func newSoak(t *testing.T) *soak {
	t.Helper()
	w := newWorld(t, kmsemu.Options{})
	soft, other := shim.New(t, w.token.Token), shim.New(t, nss.New(t).Token)
	w.token.Token = soft.Token
	w.tokens = fmt.Sprintf("  - name: nss\n    module: %q\n    module_parameters: %q\n    uri: %q\n    pin_file: %q\n    environment: %s\n",
		other.Module, other.Parameters, other.URI(), other.PINFile(t), environment(other.Environment))
	s := &soak{world: w, t: t, tokens: map[string]shim.Module{"hsm": soft, "nss": other}, keys: map[string]string{}, asked: map[int64]bool{}}
	for _, on := range []string{"hsm", "nss"} {
		for name, spec := range map[string]wrapping.KeySpec{"aes": wrapping.SymmetricDefault, "mac": wrapping.HMAC256, "ec": wrapping.ECCNISTP384} {
			s.keys[on+"-"+name] = w.key(on+"-"+name, spec)
			last := len(w.keys) - 1
			w.keys[last] = strings.Replace(w.keys[last], "token: hsm\n", "token: "+on+"\n", 1)
		}
	}
	w.hook(nil, func(op string) {
		if s.cutting.Load() && op == "ImportKeyMaterial" && rand.IntN(20) == 0 { //nolint:gosec // a test
			s.cuts.Add(1)
			panic(http.ErrAbortHandler) // KMS has done it, and the answer is lost
		}
	})
	return s
}

func (s *soak) up() {
	s.starts++
	s.p = s.start("soak", "", envLease+"=2s")
}

// ended says that the daemon has ended by itself or was killed by a fault, and starts it again.
func (s *soak) ended() bool {
	select {
	case <-s.p.done:
		s.ends++
		s.up()
		return true
	default:
		return false
	}
}

// run makes trouble.
func (s *soak) run(duration time.Duration) {
	s.t.Helper()
	s.up()
	s.p.settled() // every key is there and imported once
	s.cutting.Store(true)
	for end := time.Now().Add(duration); time.Now().Before(end); time.Sleep(time.Duration(20+rand.IntN(100)) * time.Millisecond) { //nolint:gosec // a test
		if s.ended() {
			continue
		}
		switch n := rand.IntN(100); { //nolint:gosec // a test
		case n < 60:
			s.request()
		case n < 85:
			s.trouble()
		case n < 96:
			s.encourage()
		case n < 98:
			s.kills++
			_ = s.p.Process.Kill()
			<-s.p.done
			s.up()
		default:
			s.stops++
			_ = s.p.Process.Signal(syscall.SIGTERM)
			select {
			case <-s.p.done:
			case <-time.After(20 * time.Second): // it may wait for a call that hangs
				_ = s.p.Process.Kill()
				<-s.p.done
			}
			s.up()
		}
	}
}

func (s *soak) ctx() (context.Context, context.CancelFunc) {
	return context.WithTimeout(s.t.Context(), 5*time.Second)
}

func (s *soak) anyKey() string {
	for name := range s.keys { // in no order
		return name
	}
	return ""
}

// request asks for an import.
func (s *soak) request() { s.ask(s.anyKey()) }

// ask asks for imports, and says whether the daemon took that.
func (s *soak) ask(keys ...string) bool {
	ctx, cancel := s.ctx()
	defer cancel()
	jobs, err := s.p.client.Start(ctx, control.StartRequest{Keys: keys, Kind: store.KindImport, Renew: true})
	if err != nil {
		s.refusedAsks++ // the daemon is starting, or has just been killed
	}
	for _, j := range jobs {
		s.asked[j.ID] = true
	}
	return err == nil
}

// trouble makes one or two faults for a moment.
func (s *soak) trouble() {
	var lines []string
	for range 1 + rand.IntN(2) { //nolint:gosec // a test
		lines = append(lines, troubles[rand.IntN(len(troubles))]) //nolint:gosec // a test
	}
	m := s.tokens[[]string{"hsm", "nss"}[rand.IntN(2)]] //nolint:gosec // a test
	s.injections++
	m.Script(s.t, lines...)
	for range 3 {
		s.request()
	}
	time.Sleep(time.Duration(50+rand.IntN(500)) * time.Millisecond) //nolint:gosec // a test
	m.Script(s.t)
}

// encourage does what an operator does: use the tokens again, and try again what has failed.
func (s *soak) encourage() {
	for name := range s.tokens {
		ctx, cancel := s.ctx()
		_ = s.p.client.ResumeToken(ctx, name) // it may be neither parked nor resting
		cancel()
	}
	for name := range s.keys {
		ctx, cancel := s.ctx()
		_, _ = s.p.client.Retry(ctx, name) // the daemon may be starting
		cancel()
	}
}

// calm ends all trouble and waits until nothing is left to do. Then every key is imported once more: what a process leaves behind in a token that was killed
// is gone with it, and what is held at the end is what one left that was not.
func (s *soak) calm() {
	s.t.Helper()
	s.cutting.Store(false)
	for _, m := range s.tokens {
		m.Script(s.t)
	}
	var last string
	again := false
	for end := time.Now().Add(3 * time.Minute); time.Now().Before(end); time.Sleep(time.Second) {
		if s.ended() {
			again = false
			continue
		}
		s.encourage()
		ctx, cancel := s.ctx()
		open, err := s.p.client.Jobs(ctx, store.JobFilter{Open: true})
		cancel()
		if err == nil && len(open) == 0 {
			if again {
				return
			}
			again = s.ask(slices.Sorted(maps.Keys(s.keys))...)
		}
		last = fmt.Sprint(err, asJSON(open))
	}
	s.t.Fatalf("it does not come to rest: %s", last)
}

// account holds everything against everything.
func (s *soak) account() {
	s.t.Helper()
	jobs := s.jobs()
	states, codes, reported := map[store.State]int{}, map[string]int{}, 0
	for _, j := range jobs {
		delete(s.asked, j.ID)
		states[j.State]++
		if j.State != store.Done {
			reported++
			code := string(j.State) + " " + j.ErrorClass + " " + j.ErrorCode
			codes[code]++
			if codes[code] == 1 {
				s.t.Logf("reported, for example: %s", j.Error)
			}
			if j.Error == "" {
				s.t.Errorf("a job ended without success and without a reason: %s", asJSON(j))
			}
		}
		if j.State == store.Done && j.Error != "" {
			s.t.Errorf("a job is both: %s", asJSON(j))
		}
	}
	for id := range s.asked {
		s.t.Errorf("job %d was asked for and is not there", id)
	}
	results := s.results(jobs)
	took := 0
	for _, r := range s.emu.Requests() {
		if r.Operation == "ImportKeyMaterial" && r.Code == "" {
			took++
		}
	}
	journalled := 0
	for after := int64(0); ; {
		page := s.eventsAfter(after)
		if len(page) == 0 {
			break
		}
		for _, e := range page {
			after = e.ID
			if e.Kind == string(importer.StepImport) {
				journalled++
			}
		}
	}
	lost := took - journalled
	if lost < 0 || int64(lost) > s.cuts.Load()+int64(s.kills+s.stops+s.ends) {
		s.t.Errorf("KMS took %d imports, the journal has %d: more were lost than answers were cut (%d) and processes ended (%d)", took, journalled, s.cuts.Load(), s.kills+s.stops+s.ends)
	}
	for name, arn := range s.keys {
		if state := s.emu.State(arn); state != "Enabled" {
			s.t.Errorf("%s is %s", name, state)
		}
		if list := s.current(arn); list != 1 {
			s.t.Errorf("KMS has %d materials of %s", list, name)
		}
	}
	_ = s.p.Process.Signal(syscall.SIGTERM)
	<-s.p.done
	if s.p.err != nil {
		s.t.Errorf("the daemon ended with %v", s.p.err)
	}
	injected := 0
	for name, m := range s.tokens {
		c := m.Counters(s.t)
		injected += c.Injected
		if c.OpenSessions != 0 || c.SessionObjects != 0 {
			s.t.Errorf("in %s %d sessions and %d session objects are left", name, c.OpenSessions, c.SessionObjects)
		}
	}
	for label, n := range s.objects() {
		if n != 1 || s.keys[label] == "" {
			s.t.Errorf("the token has %d keys %q", n, label)
		}
	}
	s.t.Logf("%d jobs: %d done, %d reported %v; %d requests were refused at once. The imports ended as %v. KMS took %d imports, %d of them are in the journal as such, the others were found by the read-back. "+
		"%d times trouble, %d faults, %d answers cut; the daemon was started %d times: killed %d times, stopped %d, ended by a fault or replaced %d",
		len(jobs), states[store.Done], reported, codes, s.refusedAsks, results, took, journalled, s.injections, injected, s.cuts.Load(), s.starts, s.kills, s.stops, s.ends)
}

// results counts how imports ended, and holds that each ended in one way: well, or with a reason. Of which it is not known whether KMS took it is reported, and
// a job that is done did not end with such a one.
func (s *soak) results(jobs []store.Job) map[string]int {
	s.t.Helper()
	imports, err := s.p.client.Imports(s.t.Context(), "", 0, 10000) // the latest; more are not given
	if err != nil {
		s.t.Fatal(err)
	}
	done, seen, results := map[int64]bool{}, map[int64]bool{}, map[string]int{}
	for _, j := range jobs {
		done[j.ID] = j.State == store.Done
	}
	for _, i := range imports {
		results[i.Result]++
		outcome := importer.Outcome(i.Result)
		good := slices.Contains([]importer.Outcome{importer.Imported, importer.Restored, importer.Reimported, importer.Unchanged}, outcome)
		bad := slices.Contains([]importer.Outcome{importer.Failed, importer.Unknown, importer.Waits}, outcome)
		switch last := !seen[i.Job]; {
		case !good && !bad:
			s.t.Errorf("an import ended in no known way: %s", asJSON(i))
		case bad && i.Error == "":
			s.t.Errorf("an import ended without success and without a reason: %s", asJSON(i))
		case last && done[i.Job] && (bad || i.Error != ""):
			s.t.Errorf("job %d is done, and its last import is not: %s", i.Job, asJSON(i))
		}
		seen[i.Job] = true
	}
	return results
}

// eventsAfter gives a page of the journal.
func (s *soak) eventsAfter(after int64) (page []store.Event) {
	s.t.Helper()
	err := s.p.client.Events(s.t.Context(), store.EventFilter{After: after}, false, func(e store.Event) error { page = append(page, e); return nil })
	if err != nil {
		s.t.Fatal(err)
	}
	return page
}

// jobs lists all jobs.
func (s *soak) jobs() []store.Job {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	jobs, err := s.p.client.Jobs(ctx, store.JobFilter{Limit: 1000000})
	if err != nil {
		s.t.Fatal(err)
	}
	return jobs
}

// current counts the materials of a KMS key; one that is not symmetric has none to list.
func (s *soak) current(arn string) int {
	s.t.Helper()
	list, err := s.client.ListKeyMaterials(s.t.Context(), arn)
	if errors.Is(err, context.Canceled) || kmsclient.IsUnsupportedOperation(err) {
		return 1
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return max(len(list), 1)
}
