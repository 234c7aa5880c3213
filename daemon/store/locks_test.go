package store

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Whoever lost the lock changes nothing any more.
func TestFence(t *testing.T) {
	both(t, func(t *testing.T, open func(string, time.Duration) *Store, _ *clock) {
		const lease = time.Hour
		s, q := open("one", lease), &queue{}
		j := add(t, s, q, Job{Key: "k", Destination: "arn", Kind: KindImport})
		old, j := begin(t, s, j)
		if _, err := s.Lock(t.Context(), "k"); !errors.Is(err, ErrLocked) {
			t.Errorf("a second holder: %v", err)
		}
		// The holder gives no sign of life until its lease has ended.
		silent := time.Now().Add(-lease)
		old.held.Store(&silent)
		if err := s.Tx(t.Context(), func(tx *Tx) error {
			_, err := tx.exec(t.Context(), "UPDATE locks SET until = 0")
			return err
		}); err != nil {
			t.Fatal(err)
		}
		if lost := must[[]Job](t)(s.Reclaim(t.Context(), false, q.enqueue)); len(lost) != 1 || lost[0].ID != j.ID {
			t.Errorf("reclaimed %+v", lost)
		}
		young, j2 := begin(t, s, j)
		if j2.Attempts != 2 {
			t.Errorf("attempt %d", j2.Attempts)
		}
		events := len(must[[]Event](t)(s.Events(t.Context(), EventFilter{})))
		for name, err := range map[string]error{
			"Renew":        old.Renew(t.Context()),
			"Sure":         old.Sure(t.Context()),
			"Release":      old.Release(t.Context()),
			"Step":         s.Step(t.Context(), old, j, Event{Kind: "import"}),
			"ChooseExpiry": s.ChooseExpiry(t.Context(), old, j.ID, time.Now()),
			"AddMaterial":  s.AddMaterial(t.Context(), old, "k", Material{Generation: 2, Object: "x"}),
			"FinishJob":    s.FinishJob(t.Context(), old, j, Outcome{State: Done, Materials: []Material{{Generation: 2, Object: "x"}}}, q.enqueue),
		} {
			if !errors.Is(err, ErrLeaseLost) {
				t.Errorf("%s by whoever lost the lock: %v", name, err)
			}
		}
		if got := job(t, s, j.ID); got.State != Running || !got.ValidTo.IsZero() {
			t.Errorf("the job is %+v", got)
		}
		if list := must[[]Material](t)(s.Materials(t.Context(), "k")); len(list) != 0 {
			t.Errorf("materials %+v", list)
		}
		if now := len(must[[]Event](t)(s.Events(t.Context(), EventFilter{}))); now != events {
			t.Errorf("%d events were written", now-events)
		}
		if err := s.FinishJob(t.Context(), young, j2, Outcome{State: Done}, q.enqueue); err != nil {
			t.Errorf("the holder: %v", err)
		}
	})
}

func TestOneHolder(t *testing.T) {
	both(t, func(t *testing.T, open func(string, time.Duration) *Store, _ *clock) {
		s := one(open)
		var holders, held atomic.Int32
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for range 25 {
					l, err := s.Lock(t.Context(), "k")
					if errors.Is(err, ErrLocked) {
						continue
					}
					if err != nil {
						t.Error(err)
						return
					}
					if holders.Add(1) != 1 {
						t.Error("two hold the lock")
					}
					held.Add(1)
					holders.Add(-1)
					if err := l.Release(t.Context()); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		if held.Load() == 0 {
			t.Error("nobody got the lock")
		}
	})
}

// A job that is queued here and in no queue is queued again, after a while.
func TestOrphans(t *testing.T) {
	both(t, func(t *testing.T, open func(string, time.Duration) *Store, _ *clock) {
		s, q := one(open), &queue{}
		j := add(t, s, q, Job{Key: "k", Destination: "a", Kind: KindImport})
		for _, tc := range []struct {
			pending int
			after   time.Duration
			want    int
		}{{1, -time.Second, 0}, {0, time.Hour, 0}, {0, -time.Second, 1}} {
			if n := must[int](t)(s.Orphans(t.Context(), tc.pending, tc.after, q.enqueue)); n != tc.want {
				t.Errorf("%d pending, after %s: %d are queued again, want %d", tc.pending, tc.after, n, tc.want)
			}
		}
		if len(q.ids) != 2 || q.ids[1] != j.ID {
			t.Errorf("queued %v", q.ids)
		}
	})
}

// The kill switch stops what runs before its next step, and what is queued at once.
func TestRevoke(t *testing.T) {
	both(t, func(t *testing.T, open func(string, time.Duration) *Store, c *clock) {
		s, q := one(open), &queue{}
		running, queued, other := add(t, s, q, Job{Key: "k", Destination: "a", Kind: KindImport}), add(t, s, q, Job{Key: "k", Destination: "b", Kind: KindImport}), add(t, s, q, Job{Key: "other", Destination: "c", Kind: KindImport})
		l, running := begin(t, s, running)
		r := must[Job](t)(s.Revoke(t.Context(), "k", "alice", "incident", "", q.enqueue))
		if r.Kind != KindRevoke || q.ids[len(q.ids)-1] != r.ID {
			t.Errorf("the job is %+v, queued %v", r, q.ids)
		}
		if err := s.Step(t.Context(), l, running, Event{Kind: "parameters"}); !errors.Is(err, ErrRevoked) {
			t.Errorf("the next step of a running import: %v", err)
		}
		if err := s.Step(t.Context(), l, running, Event{Kind: "import", Message: "KMS took it"}); err != nil {
			t.Errorf("what KMS did was not written down: %v", err)
		}
		if got := job(t, s, queued.ID); got.State != Cancelled {
			t.Errorf("the queued job is %s", got.State)
		}
		if got := job(t, s, other.ID); got.State != Queued {
			t.Errorf("another key's job is %s", got.State)
		}
		if _, err := s.Lock(t.Context(), "k"); !errors.Is(err, ErrLocked) {
			t.Errorf("the revocation may begin while the import is under way: %v", err)
		}
		if err := s.FinishJob(t.Context(), l, running, Outcome{State: Cancelled}, q.enqueue); err != nil {
			t.Fatal(err)
		}
		if again := must[Job](t)(s.Revoke(t.Context(), "k", "bob", "once more", "", q.enqueue)); again.ID != r.ID {
			t.Errorf("a second revocation has job %d", again.ID)
		}
		if k := must[map[string]Key](t)(s.Keys(t.Context()))["k"]; !k.Revoked() || k.RevokedBy != "alice" || k.RevokedReason != "incident" {
			t.Errorf("the key is %+v", k)
		}
		restore := func(wantChanged bool, wantDeletes int64) {
			t.Helper()
			if changed, deletes, err := s.Restore(t.Context(), "k", "bob"); err != nil || changed != wantChanged || deletes != wantDeletes {
				t.Errorf("restore: %v, job %d, %v", changed, deletes, err)
			}
			if k := must[map[string]Key](t)(s.Keys(t.Context()))["k"]; k.Revoked() == wantChanged || wantChanged != (k.RevokedReason == "") {
				t.Errorf("the key is %+v", k)
			}
		}
		restore(false, r.ID) // its job would delete what is imported again
		l, r = begin(t, s, r)
		restore(false, r.ID)
		if err := s.FinishJob(t.Context(), l, r, Outcome{State: Done}, q.enqueue); err != nil {
			t.Fatal(err)
		}
		since := must[int64](t)(s.LastEvent(t.Context()))
		restore(true, 0)
		if _, deletes, err := s.Restore(t.Context(), "k", "bob"); err != nil || deletes != 0 || must[int64](t)(s.LastEvent(t.Context())) != since+1 {
			t.Errorf("a second one does something: %v", err)
		}
		// One that waits for its next try ends with the revocation: cancelled before, it would be made anew.
		r = must[Job](t)(s.Revoke(t.Context(), "k", "alice", "incident", "", q.enqueue))
		l, r = begin(t, s, r)
		if err := s.FinishJob(t.Context(), l, r, Outcome{State: Waiting, NotBefore: c.Now().Add(time.Hour), Error: "denied", NeedsPerson: true}, q.enqueue); err != nil {
			t.Fatal(err)
		}
		restore(true, 0)
		if got := job(t, s, r.ID); got.State != Cancelled {
			t.Errorf("the job that waited is %s", got.State)
		}
		if k := must[map[string]Key](t)(s.Keys(t.Context()))["k"]; k.NeedsPerson || k.Error != "" {
			t.Errorf("what it waited for stays: %+v", k)
		}
		// A planner that saw the key before would delete what is wanted again.
		if list := must[[]Job](t)(s.AddJobs(t.Context(), []Job{{Key: "k", Kind: KindRevoke, Since: since}}, q.enqueue)); len(list) != 0 {
			t.Errorf("made %+v", list)
		}
	})
}

func TestCancelAndHurry(t *testing.T) {
	both(t, func(t *testing.T, open func(string, time.Duration) *Store, c *clock) {
		s, q := one(open), &queue{}
		j := add(t, s, q, Job{Key: "k", Destination: "a", Kind: KindImport, Token: "hsm"})
		l, j := begin(t, s, j)
		if found := must[bool](t)(s.Cancel(t.Context(), j.ID, "alice")); !found {
			t.Error("a running job cannot be cancelled")
		}
		if err := s.Step(t.Context(), l, j, Event{Kind: "wrap"}); !errors.Is(err, ErrCancelled) {
			t.Errorf("the next step: %v", err)
		}
		if err := s.FinishJob(t.Context(), l, j, Outcome{State: Done}, q.enqueue); err != nil {
			t.Fatal(err)
		}
		if got := job(t, s, j.ID); got.State != Cancelled {
			t.Errorf("the job is %s", got.State)
		}
		w := add(t, s, q, Job{Key: "k", Destination: "a", Kind: KindImport, Token: "hsm"})
		l, w = begin(t, s, w)
		far := c.Now().Add(6 * time.Hour)
		if err := s.FinishJob(t.Context(), l, w, Outcome{State: Waiting, NotBefore: far, Error: "parked", ErrorClass: "token"}, q.enqueue); err != nil {
			t.Fatal(err)
		}
		if n := must[int](t)(s.HurryToken(t.Context(), "other", q.enqueue)); n != 0 {
			t.Errorf("%d jobs of another token", n)
		}
		if n := must[int](t)(s.HurryToken(t.Context(), "hsm", q.enqueue)); n != 1 || job(t, s, w.ID).State != Queued {
			t.Errorf("%d jobs were hurried", n)
		}
		if found := must[bool](t)(s.Hurry(t.Context(), w.ID, "alice", q.enqueue)); found {
			t.Error("a queued job waits")
		}
		l, w = begin(t, s, w)
		if err := s.FinishJob(t.Context(), l, w, Outcome{State: Waiting, NotBefore: c.Now().Add(400 * 24 * time.Hour), Error: "x"}, q.enqueue); err != nil {
			t.Fatal(err)
		}
		if n := must[int](t)(s.Wake(t.Context(), nil, q.enqueue)); n != 1 {
			t.Error("a time that was written down under a wrong clock holds a job for a year")
		}
	})
}
