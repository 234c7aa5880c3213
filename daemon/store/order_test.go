package store

import (
	"fmt"
	"sync"
	"testing"
	"time"
)

// What is written about a key at the same time, by jobs, by people and by the look at KMS, never waits in a circle: PostgreSQL would give up one of
// them, and a step of an import would be lost from the audit log.
func TestNothingWaitsInACircle(t *testing.T) {
	both(t, func(t *testing.T, open func(string, time.Duration) *Store, c *clock) {
		s := open("one", 0)
		q := &queue{}
		jobs, err := s.AddJobs(t.Context(), []Job{{Key: "k", Destination: "a", Kind: KindImport, Reason: "first", Token: "hsm", RequestedBy: "x"}}, q.enqueue)
		if err != nil {
			t.Fatal(err)
		}
		l, err := s.Lock(t.Context(), "k")
		if err != nil {
			t.Fatal(err)
		}
		j, err := s.StartJob(t.Context(), l, jobs[0].ID)
		if err != nil {
			t.Fatal(err)
		}
		seen := []Seen{{Key: "k", Destination: "b", Rotations: -1}, {Key: "k", Destination: "a", Rotations: -1}}
		done := make(chan struct{})
		time.AfterFunc(time.Second, func() { close(done) })
		var wg sync.WaitGroup
		for _, act := range []struct {
			name string
			do   func() error
		}{
			{"step", func() error {
				return s.Step(t.Context(), l, j, Event{Kind: "import", Destination: "a", Time: c.Now(), Message: "m", Imported: true})
			}},
			{"clear", func() error { return s.ClearErrors(t.Context(), "k", "alice", "mended") }},
			{"restore", func() error {
				_, deletes, err := s.Restore(t.Context(), "k", "alice")
				if err == nil && deletes != 0 { // and the next one changes something
					_, err = s.Cancel(t.Context(), deletes, "alice")
				}
				return err
			}},
			{"revoke", func() error {
				_, err := s.Revoke(t.Context(), "k", "alice", "lost", "", q.enqueue)
				return err
			}},
			{"pause", func() error {
				_, err := s.Pause(t.Context(), "k", "alice", time.Now().UnixNano()%2 == 0)
				return err
			}},
			{"see", func() error {
				_, err := s.See(t.Context(), seen)
				return err
			}},
			{"upload", func() error {
				return s.AddEvent(t.Context(), Event{Kind: "ceremony-upload", Key: "k", Destination: "b", Message: "m", Imported: true})
			}},
		} {
			wg.Go(func() {
				for { // at least once
					if err := act.do(); err != nil {
						t.Errorf("%s: %v", act.name, err)
						return
					}
					select {
					case <-done:
						return
					default:
					}
				}
			})
		}
		wg.Wait()
		list, err := s.DestinationsOf(t.Context(), "k")
		if err != nil || len(list) != 2 || list[0].ImportedAt.IsZero() || list[1].ImportedAt.IsZero() {
			t.Errorf("%+v, %v", list, err)
		}
		if err := l.Release(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// A look at KMS changes many destinations of a key in one order, and what a person does to the key all of them in whatever order PostgreSQL finds them.
func TestManyDestinationsAtOnce(t *testing.T) {
	both(t, func(t *testing.T, open func(string, time.Duration) *Store, _ *clock) {
		s := open("one", 0)
		var seen []Seen
		for i := range 60 {
			seen = append(seen, Seen{Key: "k", Destination: fmt.Sprintf("d%02d", i), Rotations: -1})
			if _, err := s.See(t.Context(), []Seen{{Key: "k", Destination: fmt.Sprintf("d%02d", 59-i), Rotations: -1}}); err != nil {
				t.Fatal(err)
			}
		}
		end := time.Now().Add(time.Second)
		n := 0
		var wg sync.WaitGroup
		for _, act := range []func() error{
			func() error {
				_, err := s.See(t.Context(), seen)
				return err
			},
			func() error { return s.ClearErrors(t.Context(), "k", "alice", "mended") },
			func() error { // a row that changes moves to the end of the table
				n++
				return s.AddEvent(t.Context(), Event{Kind: "ceremony-upload", Key: "k", Destination: seen[59-n%60].Destination, Message: "m", Imported: true})
			},
		} {
			wg.Go(func() {
				for { // at least once
					if err := act(); err != nil {
						t.Error(err)
						return
					}
					if time.Now().After(end) {
						return
					}
				}
			})
		}
		wg.Wait()
	})
}
