package store

import (
	"cmp"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

// ended makes a job that ended in some way, with an import.
func ended(t *testing.T, s *Store, q *queue, j Job, o Outcome, generation int64, result string) int64 {
	t.Helper()
	l, j := begin(t, s, add(t, s, q, j))
	o.Imports = []Import{{Destination: cmp.Or(j.Destination, "arn"), Generation: generation, Result: result}}
	if err := s.FinishJob(t.Context(), l, j, o, q.enqueue); err != nil {
		t.Fatal(err)
	}
	return j.ID
}

// dropAll deletes in batches, and gives the numbers of what is gone.
func dropAll(t *testing.T, s *Store, before time.Time, batch int) (all Dropped) {
	t.Helper()
	l := must[*Lease](t)(s.Lock(t.Context(), "retention"))
	for more := true; more; {
		d := must[Dropped](t)(s.DropJobs(t.Context(), l, before, all.Until, batch))
		all.Jobs, all.Imports, all.Until, more = all.Jobs+d.Jobs, all.Imports+d.Imports, d.Until, d.More
	}
	if err := l.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	return all
}

// Of jobs that ended long ago the last of each kind stays, with what shows that a key was imported; and what is open, asked for, or recent.
func TestDropJobs(t *testing.T) {
	both(t, func(t *testing.T, open func(string, time.Duration) *Store, c *clock) {
		s, q := one(open), &queue{}
		const day = 24 * time.Hour
		renewal := Job{Key: "k", Destination: "arn", Kind: KindImport, Reason: "renew"}
		first := ended(t, s, q, Job{Key: "k", Destination: "arn", Kind: KindImport, Reason: "first"}, Outcome{State: Done}, 1, "imported")
		var old []int64
		for range 5 {
			c.Advance(day)
			old = append(old, ended(t, s, q, renewal, Outcome{State: Done}, 1, "reimported"))
		}
		lastOld := ended(t, s, q, renewal, Outcome{State: Done}, 2, "reimported")
		failed := ended(t, s, q, renewal, Outcome{State: Failed, Error: "x"}, 1, "failed")
		gone := ended(t, s, q, Job{Key: "gone", Destination: "a", Kind: KindImport, Reason: "first"}, Outcome{State: Done}, 1, "imported")
		asked := ended(t, s, q, Job{Key: "asked", Destination: "a", Kind: KindImport, Reason: "renew"}, Outcome{State: Done}, 1, "unchanged")
		ended(t, s, q, Job{Key: "asked", Destination: "a", Kind: KindImport, Reason: "renew"}, Outcome{State: Done}, 1, "unchanged")
		if err := s.AddRequest(t.Context(), nil, Request{Name: "R", Purpose: "import", Key: "asked", Job: asked, Text: "t", AskedBy: "p", Created: c.Now(), ValidUntil: c.Now().Add(1000 * day)}, "asked"); err != nil {
			t.Fatal(err)
		}
		waits := add(t, s, q, Job{Key: "slow", Destination: "a", Kind: KindImport, Reason: "first"})
		c.Advance(400 * day)
		recent := ended(t, s, q, renewal, Outcome{State: Done}, 1, "reimported")
		records := must[int64](t)(s.LastEvent(t.Context()))

		before := c.Now().Add(-399 * day)
		for _, batch := range []int{2, 1000} { // and once more, for nothing
			got := dropAll(t, s, before, batch)
			if want := map[int]int64{2: 6, 1000: 0}[batch]; got.Jobs != want {
				t.Errorf("batches of %d: %d jobs were deleted, want %d", batch, got.Jobs, want)
			}
		}
		var left []int64
		for _, j := range must[[]Job](t)(s.Jobs(t.Context(), JobFilter{})) {
			left = append(left, j.ID)
		}
		slices.Sort(left)
		for _, id := range []int64{first, failed, gone, asked, waits.ID, recent} {
			if !slices.Contains(left, id) {
				t.Errorf("job %d is gone, and %v are left", id, left)
			}
		}
		for _, id := range append(old, lastOld) {
			if slices.Contains(left, id) {
				t.Errorf("job %d is still there", id)
			}
		}
		var kept []string
		for _, i := range must[[]Import](t)(s.Imports(t.Context(), "k", 0, 100)) {
			kept = append(kept, i.Result)
		}
		slices.Sort(kept)
		// Of the job that is gone the import of generation 2 stays: nothing else tells of it.
		if strings.Join(kept, " ") != "failed imported reimported reimported" {
			t.Errorf("imports: %v", kept)
		}
		told := must[[]Event](t)(s.Events(t.Context(), EventFilter{After: records}))
		if len(told) == 0 {
			t.Fatal("nothing is told of it")
		}
		for _, e := range told {
			if e.Kind != "retention" || !strings.Contains(e.Message, "were deleted") {
				t.Errorf("event %+v", e)
			}
		}
		for key, want := range map[string]bool{"k": true, "gone": true, "slow": false} {
			if got := must[bool](t)(s.Imported(t.Context(), key, "failed", "waits")); got != want {
				t.Errorf("%s imported: %t", key, got)
			}
		}
	})
}

// Whoever has lost the lock deletes nothing more, and nothing is deleted beside somebody who has it.
func TestDropJobsAlone(t *testing.T) {
	both(t, func(t *testing.T, open func(string, time.Duration) *Store, c *clock) {
		s, q := one(open), &queue{}
		for range 3 {
			ended(t, s, q, Job{Key: "k", Destination: "arn", Kind: KindImport, Reason: "renew"}, Outcome{State: Done}, 1, "reimported")
		}
		c.Advance(time.Hour)
		l := must[*Lease](t)(s.Lock(t.Context(), "retention"))
		if _, err := s.Lock(t.Context(), "retention"); !errors.Is(err, ErrLocked) {
			t.Errorf("a second lock: %v", err)
		}
		if _, err := s.write.ExecContext(t.Context(), "UPDATE locks SET until = 0, owner = ''"); err != nil {
			t.Fatal(err)
		}
		must[*Lease](t)(s.Lock(t.Context(), "retention"))
		if _, err := s.DropJobs(t.Context(), l, c.Now(), Ended{}, 10); !errors.Is(err, ErrLeaseLost) {
			t.Errorf("without the lock: %v", err)
		}
		if n := len(must[[]Job](t)(s.Jobs(t.Context(), JobFilter{}))); n != 3 {
			t.Errorf("%d jobs are left", n)
		}
	})
}
