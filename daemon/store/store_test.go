package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hsmbridge/test/postgres"
)

// clock is the daemon's; the database has its own.
type clock struct{ now atomic.Int64 }

func (c *clock) Now() time.Time          { return time.UnixMicro(c.now.Load()).UTC() }
func (c *clock) Advance(d time.Duration) { c.now.Add(d.Microseconds()) }

func newClock() *clock {
	c := &clock{}
	c.now.Store(time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC).UnixMicro())
	return c
}

// both runs a test on both databases. open opens the same one under a daemon's name.
func both(t *testing.T, f func(t *testing.T, open func(daemon string, lease time.Duration) *Store, c *clock)) {
	t.Helper()
	for _, kind := range []string{"sqlite", "postgres"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			c := newClock()
			config := Config{Path: filepath.Join(t.TempDir(), "data", "x.db"), NoSync: true, Now: c.Now}
			if kind == "postgres" {
				config = Config{Postgres: postgres.Shared(t), Now: c.Now}
			}
			f(t, func(daemon string, lease time.Duration) *Store {
				t.Helper()
				config.Daemon, config.Lease = daemon, lease
				s, err := Open(t.Context(), config)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = s.Close() })
				return s
			}, c)
		})
	}
}

func one(open func(string, time.Duration) *Store) *Store { return open("one", 0) }

// queue collects what was queued by committed transactions, as far as these tests roll none back.
type queue struct {
	mu   sync.Mutex
	ids  []int64
	fail error
}

func (q *queue) enqueue(_ context.Context, tx *sql.Tx, jobs []Job) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if tx == nil {
		return errors.New("no transaction")
	}
	for _, j := range jobs {
		q.ids = append(q.ids, j.ID)
	}
	return q.fail
}

func must[T any](t *testing.T) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func add(t *testing.T, s *Store, q *queue, j Job) Job {
	t.Helper()
	return must[[]Job](t)(s.AddJobs(t.Context(), []Job{j}, q.enqueue))[0]
}

func begin(t *testing.T, s *Store, j Job) (*Lease, Job) {
	t.Helper()
	l := must[*Lease](t)(s.Lock(t.Context(), j.Key))
	return l, must[Job](t)(s.StartJob(t.Context(), l, j.ID))
}

func job(t *testing.T, s *Store, id int64) Job {
	t.Helper()
	return must[[]Job](t)(s.Jobs(t.Context(), JobFilter{ID: id}))[0]
}

func TestJobLife(t *testing.T) {
	both(t, func(t *testing.T, open func(string, time.Duration) *Store, c *clock) {
		s, q := one(open), &queue{}
		want := Job{Key: "k", Destination: "arn", Kind: KindImport, Reason: "first", Token: "hsm", RequestedBy: "planner"}
		j := add(t, s, q, want)
		again := add(t, s, q, Job{Key: "k", Destination: "arn", Kind: KindImport, Reason: "asked for", Token: "hsm", RequestedBy: "alice", Options: Options{Renew: true}})
		if again.ID != j.ID || again.Reason != "first" || !again.Options.Renew || len(q.ids) != 1 {
			t.Errorf("a second job for the same: %+v, queued %v", again, q.ids)
		}
		if other := add(t, s, q, Job{Key: "k", Kind: KindRotate, RequestedBy: "alice"}); other.ID == j.ID {
			t.Error("another kind of job is the same job")
		}
		l, j := begin(t, s, j)
		if j.State != Running || j.Attempts != 1 || j.Daemon != "one" || !j.Options.Renew {
			t.Errorf("started: %+v", j)
		}
		if err := s.Step(t.Context(), l, j, Event{Kind: "wrap", Destination: "arn", Message: "wrapped", Fields: map[string]string{"mechanism": "CKM_RSA_PKCS_OAEP"}}); err != nil {
			t.Fatal(err)
		}
		validTo := c.Now().Add(90 * 24 * time.Hour)
		if err := s.ChooseExpiry(t.Context(), l, j.ID, validTo); err != nil {
			t.Fatal(err)
		}
		next := c.Now().Add(time.Minute)
		if err := s.FinishJob(t.Context(), l, j, Outcome{State: Waiting, NotBefore: next, Error: "KMS is away", ErrorClass: "kms", ErrorCode: "Timeout", Message: "KMS is away"}, q.enqueue); err != nil {
			t.Fatal(err)
		}
		if got := job(t, s, j.ID); got.State != Waiting || !got.NotBefore.Equal(next) || !got.ValidTo.Equal(validTo) || got.ErrorCode != "Timeout" {
			t.Errorf("waits: %+v", got)
		}
		if n := must[int](t)(s.Wake(t.Context(), nil, q.enqueue)); n != 0 {
			t.Errorf("%d jobs woke too early", n)
		}
		c.Advance(time.Minute)
		if n := must[int](t)(s.Wake(t.Context(), nil, q.enqueue)); n != 1 || q.ids[len(q.ids)-1] != j.ID {
			t.Errorf("%d jobs woke, queued %v", n, q.ids)
		}
		l, j = begin(t, s, j)
		took := c.Now()
		if err := s.Step(t.Context(), l, j, Event{Kind: "import", Destination: "arn", Time: took, Message: "KMS took the key material", Imported: true}); err != nil {
			t.Fatal(err)
		}
		c.Advance(time.Second)
		o := Outcome{
			State: Done, Message: "imported", Imported: []Success{{Destination: "arn", Life: 90 * 24 * time.Hour, Proof: "mac-match", Sent: true, Scheduled: true}},
			Seen:      []Seen{{Key: "k", Destination: "arn", State: "Enabled", Present: true, ValidTo: validTo, MaterialID: "id", Rotations: 2}},
			Materials: []Material{{Generation: 1, Object: "pkcs11:object=k", CheckValue: "abcdef", IDs: map[string]string{"arn": "id"}}},
			Imports: []Import{{
				Destination: "arn", Generation: 1, Result: "imported", Algorithm: "RSAES_OAEP_SHA_256", WrappingKeySpec: "RSA_4096", Mechanism: "CKM_RSA_PKCS_OAEP",
				WrappingKeySHA256: "ff", KeyMaterialID: "id", CheckValue: "abcdef", ValidTo: validTo, Proof: "mac-match", RequestIDs: []string{"r1", "r2"}, Details: map[string]int{"a": 1},
			}},
		}
		if err := s.FinishJob(t.Context(), l, j, o, q.enqueue); err != nil {
			t.Fatal(err)
		}
		destinations := must[[]Destination](t)(s.Destinations(t.Context()))
		wantDestination := Destination{
			Key: "k", Destination: "arn", SeenAt: c.Now(), State: "Enabled", Present: true, ValidTo: validTo, MaterialID: "id", Rotations: 2, FirstAt: c.Now(), ImportedAt: took, TriedAt: took, SettledAt: c.Now(),
			Life: 90 * 24 * time.Hour, DrilledAt: c.Now(), ScheduledAt: c.Now(), ProvedAt: c.Now(), Proof: "mac-match",
		}
		if diff := cmp.Diff([]Destination{wantDestination}, destinations); diff != "" {
			t.Errorf("the destination (-want +got):\n%s", diff)
		}
		materials := must[[]Material](t)(s.Materials(t.Context(), "k"))
		if diff := cmp.Diff([]Material{{Generation: 1, Object: "pkcs11:object=k", CheckValue: "abcdef", Created: c.Now(), IDs: map[string]string{"arn": "id"}}}, materials); diff != "" {
			t.Errorf("the materials (-want +got):\n%s", diff)
		}
		imports := must[[]Import](t)(s.Imports(t.Context(), "k", j.ID, 10))
		wantImport := o.Imports[0]
		wantImport.ID, wantImport.Job, wantImport.Key, wantImport.Finished = imports[0].ID, j.ID, "k", c.Now()
		wantImport.Details, imports[0].Details = nil, nil
		if diff := cmp.Diff(wantImport, imports[0]); diff != "" {
			t.Errorf("the import (-want +got):\n%s", diff)
		}
		var kinds []string
		for _, e := range must[[]Event](t)(s.Events(t.Context(), EventFilter{Job: j.ID})) {
			kinds = append(kinds, e.Kind)
		}
		if want := []string{"queued", "wrap", "finished", "import", "finished"}; !cmp.Equal(want, kinds) {
			t.Errorf("the journal is %v", kinds)
		}
		if _, err := s.Lock(t.Context(), "k"); err != nil {
			t.Errorf("the lock was not given back: %v", err)
		}
		if fresh := add(t, s, q, want); fresh.ID == j.ID {
			t.Error("a job that is over is open")
		}
	})
}

// When KMS took the material is the time of the import, whatever became of the job; what KMS held already was seen, and imported by nobody here.
func TestImportedAndSeen(t *testing.T) {
	both(t, func(t *testing.T, open func(string, time.Duration) *Store, c *clock) {
		s, q := one(open), &queue{}
		began := c.Now()
		run := func(sent bool, o Outcome) Destination {
			t.Helper()
			c.Advance(time.Hour)
			j := add(t, s, q, Job{Key: "k", Destination: "arn", Kind: KindImport})
			l, j := begin(t, s, j)
			if err := s.Step(t.Context(), l, j, Event{Kind: "import", Destination: "arn", Message: "KMS took the key material", Imported: sent}); err != nil {
				t.Fatal(err)
			}
			c.Advance(time.Minute)
			if err := s.FinishJob(t.Context(), l, j, o, q.enqueue); err != nil {
				t.Fatal(err)
			}
			d := must[[]Destination](t)(s.DestinationsOf(t.Context(), "k"))[0]
			times := must[[]Destination](t)(s.Times(t.Context()))[0]
			if !times.SettledAt.Equal(d.SettledAt) || !times.FirstAt.Equal(d.FirstAt) {
				t.Errorf("the planner sees %+v of %+v", times, d)
			}
			return d
		}
		at := func(hours, minutes int) time.Time {
			return began.Add(time.Duration(hours)*time.Hour + time.Duration(minutes)*time.Minute)
		}
		done := func(sent bool) Outcome {
			return Outcome{State: Done, Imported: []Success{{Destination: "arn", Sent: sent}}}
		}
		hold := func(when string, d Destination, imported, firstSeen, settled time.Time) {
			t.Helper()
			if !d.ImportedAt.Equal(imported) || !d.FirstSeenAt.Equal(firstSeen) || !d.SettledAt.Equal(settled) {
				t.Errorf("%s: imported %s, first seen %s, settled %s", when, d.ImportedAt, d.FirstSeenAt, d.SettledAt)
			}
		}
		var never time.Time
		hold("found there, with a proof", run(false, done(false)), never, at(1, 1), at(1, 1))
		hold("found there again", run(false, done(false)), never, at(1, 1), at(1, 1))
		hold("taken, and the proof failed", run(true, Outcome{State: Failed, Error: "no proof"}), at(3, 2), never, at(1, 1))
		hold("found there after that", run(false, done(false)), at(3, 2), never, at(1, 1))
		hold("imported", run(true, done(true)), at(5, 4), never, at(5, 5))
		hold("found there after that", run(false, done(false)), at(5, 4), never, at(5, 5))
	})
}

// What a transaction cannot queue is not there either.
func TestQueueAndJobTogether(t *testing.T) {
	both(t, func(t *testing.T, open func(string, time.Duration) *Store, _ *clock) {
		s, q := one(open), &queue{fail: errors.New("the queue is full")}
		if _, err := s.AddJobs(t.Context(), []Job{{Key: "k", Kind: KindImport}}, q.enqueue); !errors.Is(err, q.fail) {
			t.Errorf("adding: %v", err)
		}
		if list := must[[]Job](t)(s.Jobs(t.Context(), JobFilter{})); len(list) != 0 {
			t.Errorf("there are jobs %+v", list)
		}
		if events := must[[]Event](t)(s.Events(t.Context(), EventFilter{})); len(events) != 0 {
			t.Errorf("there are events %+v", events)
		}
		q.fail = nil
		j := add(t, s, q, Job{Key: "k", Kind: KindImport})
		l, j := begin(t, s, j)
		q.fail = errors.New("the queue is full")
		if err := s.FinishJob(t.Context(), l, j, Outcome{State: Queued}, q.enqueue); !errors.Is(err, q.fail) {
			t.Errorf("handing back: %v", err)
		}
		if got := job(t, s, j.ID); got.State != Running {
			t.Errorf("the job is %s", got.State)
		}
	})
}

// What was planned from an older look is not made when a job has ended since, or the key is not to be imported any more.
func TestOutOfDate(t *testing.T) {
	both(t, func(t *testing.T, open func(string, time.Duration) *Store, _ *clock) {
		s, q := one(open), &queue{}
		j := add(t, s, q, Job{Key: "k", Destination: "arn", Kind: KindImport})
		since := must[int64](t)(s.LastEvent(t.Context()))
		l, j := begin(t, s, j)
		if err := s.FinishJob(t.Context(), l, j, Outcome{State: Done}, q.enqueue); err != nil {
			t.Fatal(err)
		}
		late := Job{Key: "k", Destination: "arn", Kind: KindImport, Since: since}
		if list := must[[]Job](t)(s.AddJobs(t.Context(), []Job{late, {Key: "other", Destination: "x", Kind: KindImport, Since: since}}, q.enqueue)); len(list) != 1 || list[0].Key != "other" {
			t.Errorf("made %+v", list)
		}
		since = must[int64](t)(s.LastEvent(t.Context()))
		must[Job](t)(s.Revoke(t.Context(), "revoked", "alice", "incident", "", q.enqueue))
		must[bool](t)(s.Pause(t.Context(), "paused", "alice", false))
		for _, key := range []string{"revoked", "paused"} {
			if list := must[[]Job](t)(s.AddJobs(t.Context(), []Job{{Key: key, Destination: "arn", Kind: KindImport, Since: since}}, q.enqueue)); len(list) != 0 {
				t.Errorf("made %+v", list)
			}
		}
	})
}

// What KMS showed before something was done with the key is not written over what is known now.
func TestSeenTooEarly(t *testing.T) {
	both(t, func(t *testing.T, open func(string, time.Duration) *Store, _ *clock) {
		s := one(open)
		if err := s.AddEvent(t.Context(), Event{Kind: "start", Message: "began"}); err != nil {
			t.Fatal(err)
		}
		since := must[int64](t)(s.LastEvent(t.Context()))
		see := func(state string, since int64, late int) {
			t.Helper()
			list := must[[]Seen](t)(s.See(t.Context(), []Seen{{Key: "k", Destination: "a", State: state, Since: since}, {Key: "other", Destination: "b", State: state, Since: since}}))
			if len(list) != late || late > 0 && list[0].Key != "k" {
				t.Errorf("%s: late are %+v", state, list)
			}
		}
		is := func(want string) {
			t.Helper()
			for _, d := range must[[]Destination](t)(s.Destinations(t.Context())) {
				if d.Key == "k" && d.State != want || d.Key == "other" && d.State == "" {
					t.Errorf("%s is %s, want %s", d.Key, d.State, want)
				}
			}
		}
		see("PendingImport", since, 0)
		event := func(destination string) {
			t.Helper()
			if err := s.AddEvent(t.Context(), Event{Kind: "import", Key: "k", Destination: destination, Message: "KMS took it"}); err != nil {
				t.Fatal(err)
			}
		}
		event("another") // of a key with many destinations one is always being imported
		see("Creating", since, 0)
		is("Creating")
		event("a")
		see("Enabled", 0, 0)
		see("PendingImport", since, 1)
		is("Enabled")
		since = must[int64](t)(s.LastEvent(t.Context()))
		event("") // of the key as a whole
		see("PendingImport", since, 1)
		is("Enabled")
		see("Disabled", must[int64](t)(s.LastEvent(t.Context())), 0)
		is("Disabled")
	})
}

// A follower misses no event, though many commit at once.
func TestEventsInOrder(t *testing.T) {
	both(t, func(t *testing.T, open func(string, time.Duration) *Store, _ *clock) {
		s := one(open)
		const writers, each = 6, 30
		var wg sync.WaitGroup
		for w := range writers {
			wg.Go(func() {
				for i := range each {
					if err := s.AddEvent(t.Context(), Event{Kind: "clock", Key: fmt.Sprint(w), Message: fmt.Sprint(i)}); err != nil {
						t.Error(err)
					}
				}
			})
		}
		done := make(chan struct{})
		go func() { wg.Wait(); close(done) }()
		changed, stop := s.Watch()
		defer stop()
		after, seen := int64(0), 0
		for over := false; ; {
			list := must[[]Event](t)(s.Events(t.Context(), EventFilter{After: after}))
			for _, e := range list {
				if e.ID <= after {
					t.Fatalf("event %d after %d", e.ID, after)
				}
				after = e.ID
				seen++
			}
			if over && len(list) == 0 {
				break
			}
			select {
			case <-changed:
			case <-done:
				over = true
			}
		}
		if seen != writers*each {
			t.Errorf("the follower saw %d of %d events", seen, writers*each)
		}
		last := must[[]Event](t)(s.Events(t.Context(), EventFilter{Last: 3, Key: "2"}))
		if len(last) != 3 || last[2].Message != fmt.Sprint(each-1) || last[0].Message != fmt.Sprint(each-3) {
			t.Errorf("the last three are %+v", last)
		}
	})
}

func TestPersonAndState(t *testing.T) {
	both(t, func(t *testing.T, open func(string, time.Duration) *Store, _ *clock) {
		s, q := one(open), &queue{}
		seen := func(state string) {
			t.Helper()
			if _, err := s.See(t.Context(), []Seen{{Key: "k", Destination: "a", State: state, Rotations: -1}}); err != nil {
				t.Fatal(err)
			}
		}
		needs := func() bool { return must[[]Destination](t)(s.Destinations(t.Context()))[0].NeedsPerson }
		seen("PendingDeletion")
		j := add(t, s, q, Job{Key: "k", Destination: "a", Kind: KindImport})
		l, j := begin(t, s, j)
		if err := s.FinishJob(t.Context(), l, j, Outcome{State: Failed, NeedsPerson: true, Error: "refused", ErrorClass: "caller"}, q.enqueue); err != nil {
			t.Fatal(err)
		}
		seen("PendingDeletion")
		if !needs() {
			t.Error("a look that shows nothing new ends the need for a person")
		}
		seen("PendingImport")
		if needs() {
			t.Error("a KMS key in another state is worth another try")
		}
		// An error of the key as a whole says nothing about its destinations.
		r := add(t, s, q, Job{Key: "k", Kind: KindRotate})
		l, r = begin(t, s, r)
		if err := s.FinishJob(t.Context(), l, r, Outcome{State: Failed, NeedsPerson: true, Error: "refused"}, q.enqueue); err != nil {
			t.Fatal(err)
		}
		if k := must[map[string]Key](t)(s.Keys(t.Context()))["k"]; !k.NeedsPerson || needs() {
			t.Errorf("the key is %+v, its destination needs a person: %t", k, needs())
		}
		if err := s.ClearErrors(t.Context(), "k", "alice", "mended"); err != nil {
			t.Fatal(err)
		}
		if k := must[map[string]Key](t)(s.Keys(t.Context()))["k"]; k.NeedsPerson || k.Error != "" {
			t.Errorf("the key is %+v", k)
		}
	})
}

func TestPauseWaiveAndPark(t *testing.T) {
	both(t, func(t *testing.T, open func(string, time.Duration) *Store, c *clock) {
		s := one(open)
		if !must[bool](t)(s.Pause(t.Context(), "k", "alice", false)) {
			t.Error("it was not paused")
		}
		for _, err := range []error{
			s.Waive(t.Context(), "k", "bob", "soon", ""),
			s.Park(t.Context(), Parked{Token: "hsm", Code: "CKR_PIN_INCORRECT", Reason: "wrong"}), s.Park(t.Context(), Parked{Token: "hsm", Code: "CKR_PIN_LOCKED", Reason: "locked"}),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
		want := Key{Name: "k", PausedAt: c.Now(), PausedBy: "alice", WaivedAt: c.Now(), WaivedBy: "bob", WaivedReason: "soon"}
		if diff := cmp.Diff(want, must[map[string]Key](t)(s.Keys(t.Context()))["k"]); diff != "" {
			t.Errorf("the key (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff(map[string]Parked{"hsm": {Token: "hsm", Daemon: "one", At: c.Now(), Code: "CKR_PIN_LOCKED", Reason: "locked"}}, must[map[string]Parked](t)(s.ParkedTokens(t.Context()))); diff != "" {
			t.Errorf("parked (-want +got):\n%s", diff)
		}
		if !must[bool](t)(s.Unpark(t.Context(), "hsm", "alice", "mended")) || must[bool](t)(s.Unpark(t.Context(), "hsm", "alice", "mended")) {
			t.Error("a token is unparked once")
		}
		if must[bool](t)(s.Pause(t.Context(), "k", "bob", false)) {
			t.Error("a key is paused once")
		}
		if k := must[map[string]Key](t)(s.Keys(t.Context()))["k"]; k.PausedBy != "alice" {
			t.Errorf("paused by %s", k.PausedBy)
		}
		if !must[bool](t)(s.Pause(t.Context(), "k", "alice", true)) || must[bool](t)(s.Pause(t.Context(), "k", "alice", true)) || must[map[string]Key](t)(s.Keys(t.Context()))["k"].Paused() {
			t.Error("a pause is taken back once")
		}
	})
}

// Requests leave at the rate that is asked for, however many ask.
func TestReserve(t *testing.T) {
	both(t, func(t *testing.T, open func(string, time.Duration) *Store, _ *clock) {
		s := one(open)
		for _, rate := range []float64{0.05, 0.1, 15} {
			var mu sync.Mutex
			var waits []time.Duration
			var wg sync.WaitGroup
			const n = 12
			for range 4 {
				wg.Go(func() {
					for range n / 4 {
						began := time.Now()
						w, err := s.Reserve(t.Context(), fmt.Sprint(rate), rate)
						if err != nil {
							t.Error(err)
						}
						mu.Lock()
						waits = append(waits, w-time.Since(began)) // a little earlier than it will be
						mu.Unlock()
					}
				})
			}
			wg.Wait()
			late := 0
			for _, w := range waits {
				if w > 0 {
					late++
				}
			}
			burst := max(1, int(rate))
			longest := time.Duration(float64(n-burst) / rate * float64(time.Second))
			for _, w := range waits {
				if w > longest+time.Second {
					t.Errorf("rate %g: a wait of %s where %s is the longest", rate, w, longest)
				}
			}
			if want := max(0, n-burst); late < want-1 {
				t.Errorf("rate %g: %d of %d requests wait, where %d are to", rate, late, n, want)
			}
		}
		// A time far ahead was written under another clock.
		if err := s.Tx(t.Context(), func(tx *Tx) error {
			_, err := tx.exec(t.Context(), "UPDATE limits SET tat = {{clock}} + ?", (24 * time.Hour).Microseconds())
			return err
		}); err != nil {
			t.Fatal(err)
		}
		if w := must[time.Duration](t)(s.Reserve(t.Context(), "0.1", 0.1)); w > time.Second {
			t.Errorf("a wait of %s after the clock was set back", w)
		}
	})
}
