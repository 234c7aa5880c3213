package store

import (
	"errors"
	"testing"
	"time"
)

// What people do while an attempt is under way finds the job running. It counts all the same when the attempt ends.
func TestOvertaken(t *testing.T) {
	both(t, func(t *testing.T, open func(string, time.Duration) *Store, c *clock) {
		s, q := one(open), &queue{}
		attempt := func(t *testing.T, key string, meanwhile func(l *Lease, j Job), o Outcome) Job {
			t.Helper()
			l, j := begin(t, s, add(t, s, q, Job{Key: key, Destination: key, Kind: KindImport, RequestedBy: "planner"}))
			meanwhile(l, j)
			if err := s.FinishJob(t.Context(), l, j, o, q.enqueue); err != nil {
				t.Fatal(err)
			}
			return job(t, s, j.ID)
		}
		request := func(l *Lease, j Job) error {
			return s.AddRequest(t.Context(), l, Request{Name: "of " + j.Key, Purpose: "import", Key: j.Key, Job: j.ID, Text: "t", AskedBy: "p", Created: c.Now(), ValidUntil: c.Now().Add(time.Hour)}, "asked")
		}
		waits := Outcome{State: Waiting, NotBefore: c.Now().Add(6 * time.Hour), NeedsPerson: true, Error: "no copy", ErrorCode: "NoBackup"}
		over := func(t *testing.T, j Job) {
			t.Helper()
			if j.State != Cancelled || j.Finished.IsZero() || !j.NotBefore.IsZero() {
				t.Errorf("the job is %+v", j)
			}
			if list := must[[]Request](t)(s.Requests(t.Context(), RequestFilter{Job: j.ID, Open: true})); len(list) != 0 {
				t.Errorf("officers are asked for nothing: %+v", list)
			}
		}
		queued := func(j Job) (n int) {
			for _, id := range q.ids {
				if id == j.ID {
					n++
				}
			}
			return n
		}
		t.Run("cancelled", func(t *testing.T) {
			over(t, attempt(t, "cancelled", func(l *Lease, j Job) {
				if err := request(l, j); err != nil {
					t.Fatal(err)
				}
				must[bool](t)(s.Cancel(t.Context(), j.ID, "alice"))
			}, waits))
		})
		t.Run("cancelled before officers are asked", func(t *testing.T) {
			over(t, attempt(t, "asks", func(l *Lease, j Job) {
				must[bool](t)(s.Cancel(t.Context(), j.ID, "alice"))
				if err := request(l, j); !errors.Is(err, ErrCancelled) {
					t.Errorf("officers are asked for a job that is over: %v", err)
				}
			}, waits))
		})
		t.Run("revoked", func(t *testing.T) {
			over(t, attempt(t, "revoked", func(l *Lease, j Job) {
				must[Job](t)(s.Revoke(t.Context(), j.Key, "alice", "incident", "", q.enqueue))
				if err := request(l, j); !errors.Is(err, ErrRevoked) {
					t.Errorf("officers are asked to approve the import of a key that was revoked: %v", err)
				}
			}, waits))
		})
		t.Run("revoked and failed", func(t *testing.T) {
			over(t, attempt(t, "fails", func(_ *Lease, j Job) {
				must[Job](t)(s.Revoke(t.Context(), j.Key, "alice", "incident", "", q.enqueue))
			}, Outcome{State: Failed, NeedsPerson: true, Error: "another key"}))
			for _, d := range must[[]Destination](t)(s.DestinationsOf(t.Context(), "fails")) {
				if d.NeedsPerson {
					t.Errorf("a person has to look at the import of a key that was revoked: %+v", d)
				}
			}
		})
		t.Run("cancelled and failed", func(t *testing.T) {
			j := attempt(t, "wrong", func(_ *Lease, j Job) {
				must[bool](t)(s.Cancel(t.Context(), j.ID, "alice"))
			}, Outcome{State: Failed, NeedsPerson: true, Error: "KMS holds another key", ErrorCode: "NotTheSameKey"})
			if j.State != Cancelled || j.Finished.IsZero() {
				t.Errorf("the job is %+v", j)
			}
			for _, d := range must[[]Destination](t)(s.DestinationsOf(t.Context(), "wrong")) {
				if !d.NeedsPerson || d.ErrorCode != "NotTheSameKey" {
					t.Errorf("nobody is told what KMS holds: %+v", d)
				}
			}
		})
		t.Run("another job retried", func(t *testing.T) {
			other := add(t, s, q, Job{Key: "two", Destination: "other", Kind: KindImport})
			l, other := begin(t, s, other)
			if err := s.FinishJob(t.Context(), l, other, waits, q.enqueue); err != nil {
				t.Fatal(err)
			}
			j := attempt(t, "two", func(*Lease, Job) {
				if !must[bool](t)(s.Hurry(t.Context(), other.ID, "alice", q.enqueue)) {
					t.Error("the other job does not wait")
				}
			}, waits)
			if j.State != Waiting {
				t.Errorf("the job is %+v", j)
			}
		})
		t.Run("retried", func(t *testing.T) {
			mended := func(_ *Lease, j Job) {
				if err := s.ClearErrors(t.Context(), j.Key, "alice", "mended"); err != nil {
					t.Fatal(err)
				}
				if must[bool](t)(s.Hurry(t.Context(), j.ID, "alice", q.enqueue)) {
					t.Error("a running job waits")
				}
			}
			j := attempt(t, "retried", mended, waits)
			if j.State != Queued || q.ids[len(q.ids)-1] != j.ID {
				t.Errorf("the job is %+v, queued are %v", j, q.ids)
			}
			l, j := begin(t, s, j) // the retry was before this attempt
			if err := s.FinishJob(t.Context(), l, j, waits, q.enqueue); err != nil {
				t.Fatal(err)
			}
			if j = job(t, s, j.ID); j.State != Waiting || !j.NotBefore.Equal(waits.NotBefore) {
				t.Errorf("the job is %+v", j)
			}
			if j = attempt(t, "failed", mended, Outcome{State: Failed, NeedsPerson: true, Error: "another key"}); j.State != Failed {
				t.Errorf("what failed for good is %s", j.State)
			}
		})
		t.Run("renewed", func(t *testing.T) {
			asked := func(_ *Lease, j Job) {
				add(t, s, q, Job{Key: j.Key, Destination: j.Destination, Kind: KindImport, RequestedBy: "alice", Options: Options{Renew: true}})
			}
			done := func(sent bool) Outcome {
				return Outcome{State: Done, Imported: []Success{{Destination: "d", Sent: sent}}}
			}
			j := attempt(t, "renewed", asked, done(false))
			if j.State != Queued || !j.Options.Renew || q.ids[len(q.ids)-1] != j.ID {
				t.Errorf("the renewal that was asked for is lost: %+v", j)
			}
			l, j := begin(t, s, j)
			if err := s.FinishJob(t.Context(), l, j, done(false), q.enqueue); err != nil {
				t.Fatal(err)
			}
			if j = job(t, s, j.ID); j.State != Done {
				t.Errorf("the job is %+v", j)
			}
			if j = attempt(t, "sent", asked, done(true)); j.State != Done {
				t.Errorf("what was just imported is %s", j.State)
			}
			j = attempt(t, "renewed and cancelled", func(l *Lease, j Job) {
				asked(l, j)
				must[bool](t)(s.Cancel(t.Context(), j.ID, "alice"))
			}, done(false))
			if j.State != Cancelled || j.Finished.IsZero() || queued(j) != 1 {
				t.Errorf("the job is %+v, queued are %v", j, q.ids)
			}
			j = attempt(t, "renewed and revoked", func(l *Lease, j Job) {
				asked(l, j)
				must[Job](t)(s.Revoke(t.Context(), j.Key, "alice", "incident", "", q.enqueue))
			}, done(false))
			if j.State != Done || queued(j) != 1 {
				t.Errorf("the job is %+v, queued are %v", j, q.ids)
			}
		})
		t.Run("renewed by somebody else while officers are asked", func(t *testing.T) {
			more := func(j Job) {
				add(t, s, q, Job{Key: j.Key, Destination: j.Destination, Kind: KindImport, RequestedBy: "olga", Options: Options{Renew: true}})
			}
			open := func(j Job) int {
				return len(must[[]Request](t)(s.Requests(t.Context(), RequestFilter{Job: j.ID, Open: true})))
			}
			asked := func(key string) Outcome {
				return Outcome{State: Waiting, NotBefore: c.Now().Add(6 * time.Hour), Waits: "of " + key}
			}
			j := attempt(t, "asked before", func(l *Lease, j Job) {
				more(j)
				if err := request(l, j); err != nil {
					t.Fatal(err)
				}
			}, asked("asked before"))
			if j.State != Queued || open(j) != 0 || queued(j) != 2 {
				t.Errorf("officers are asked by %s, and the job is %+v", "p", j)
			}
			j = attempt(t, "asked after", func(l *Lease, j Job) {
				if err := request(l, j); err != nil {
					t.Fatal(err)
				}
			}, asked("asked after"))
			if j.State != Waiting || open(j) != 1 {
				t.Errorf("the job is %+v", j)
			}
			more(j)
			if j = job(t, s, j.ID); j.State != Queued || j.RequestedBy != "olga" || open(j) != 0 || queued(j) != 2 {
				t.Errorf("the job is %+v, open %d, queued %d", j, open(j), queued(j))
			}
		})
		t.Run("rotated", func(t *testing.T) {
			l, j := begin(t, s, add(t, s, q, Job{Key: "r", Kind: KindRotate, RequestedBy: "planner"}))
			add(t, s, q, Job{Key: "r", Kind: KindRotate, RequestedBy: "alice", Options: Options{Renew: true}})
			if err := s.FinishJob(t.Context(), l, j, Outcome{State: Done, Rotated: true}, q.enqueue); err != nil {
				t.Fatal(err)
			}
			if j = job(t, s, j.ID); j.State != Done { // a rotation more is gone for good
				t.Errorf("the job is %+v", j)
			}
		})
	})
}

// Officers are asked for no standing approval of a key that was revoked meanwhile: it would count at once when the key is restored.
func TestStandingOfARevokedKey(t *testing.T) {
	both(t, func(t *testing.T, open func(string, time.Duration) *Store, c *clock) {
		s, q := one(open), &queue{}
		ask := func(name, purpose string) error {
			return s.AddRequest(t.Context(), nil, Request{Name: name, Purpose: purpose, Key: "k", Destination: "d", Text: "t", AskedBy: "alice", Created: c.Now(), ValidUntil: c.Now().Add(time.Hour)}, "asked")
		}
		if err := ask("before", "standing"); err != nil {
			t.Fatal(err)
		}
		must[bool](t)(s.Cancel(t.Context(), must[Job](t)(s.Revoke(t.Context(), "k", "alice", "incident", "", q.enqueue)).ID, "alice"))
		if err := ask("after", "standing"); !errors.Is(err, ErrRevoked) {
			t.Errorf("a standing approval of a revoked key: %v", err)
		}
		if list := must[[]Request](t)(s.Requests(t.Context(), RequestFilter{Open: true})); len(list) != 0 {
			t.Errorf("open are %+v", list)
		}
		if err := ask("once more", "revoke"); err != nil {
			t.Errorf("a revocation of a revoked key: %v", err)
		}
		if changed, _, err := s.Restore(t.Context(), "k", "bob"); err != nil || !changed {
			t.Errorf("restore: %v, %v", changed, err)
		}
		if err := ask("restored", "standing"); err != nil {
			t.Errorf("a standing approval of a restored key: %v", err)
		}
	})
}
