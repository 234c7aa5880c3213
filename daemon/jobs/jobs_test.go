package jobs

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"hsmbridge/daemon/store"
	"hsmbridge/test/postgres"
)

// worked counts how often each job was given to be done.
type worked struct {
	mu    sync.Mutex
	times map[int64]int
	do    func(ctx context.Context, id int64, times int) (time.Duration, error)
}

func (w *worked) work(ctx context.Context, id int64) (time.Duration, error) {
	w.mu.Lock()
	if w.times == nil {
		w.times = map[int64]int{}
	}
	w.times[id]++
	n := w.times[id]
	w.mu.Unlock()
	if w.do == nil {
		return 0, nil
	}
	return w.do(ctx, id, n)
}

func (w *worked) of(id int64) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.times[id]
}

func until(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if f() {
			return
		}
	}
	t.Fatalf("%s did not happen", what)
}

// both runs a test on both databases.
func both(t *testing.T, f func(t *testing.T, s *store.Store)) {
	t.Helper()
	for _, kind := range []string{"sqlite", "postgres"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			c := store.Config{Path: filepath.Join(t.TempDir(), "x.db"), NoSync: true, Daemon: "one"}
			if kind == "postgres" {
				c = store.Config{Postgres: postgres.Shared(t), Daemon: "one"}
			}
			s, err := store.Open(t.Context(), c)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = s.Close() })
			f(t, s)
		})
	}
}

func queue(t *testing.T, s *store.Store, w *worked, tokens ...string) *Queue {
	t.Helper()
	q, err := New(t.Context(), Config{DB: s.DB(), Postgres: s.Postgres(), Daemon: "one", Tokens: tokens, Poll: 5 * time.Millisecond, Work: w.work, Log: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	return q
}

func start(t *testing.T, q *Queue) {
	t.Helper()
	if err := q.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := q.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
}

func enqueue(t *testing.T, s *store.Store, q *Queue, token string, ids ...int64) {
	t.Helper()
	if err := s.Tx(t.Context(), func(tx *store.Tx) error { return q.Enqueue(t.Context(), tx.Tx, list(token, ids...)) }); err != nil {
		t.Fatal(err)
	}
}

func list(token string, ids ...int64) []store.Job {
	var out []store.Job
	for _, id := range ids {
		out = append(out, store.Job{ID: id, Token: token})
	}
	return out
}

func TestWorkedOnce(t *testing.T) {
	both(t, func(t *testing.T, s *store.Store) {
		w := &worked{}
		q := queue(t, s, w, "hsm")
		start(t, q)
		gone := errors.New("no")
		if err := s.Tx(t.Context(), func(tx *store.Tx) error {
			return errors.Join(q.Enqueue(t.Context(), tx.Tx, list("hsm", 1000)), gone)
		}); !errors.Is(err, gone) {
			t.Fatal(err)
		}
		var ids []int64
		for id := range int64(60) {
			ids = append(ids, id+1)
		}
		enqueue(t, s, q, "hsm", ids[:30]...)
		enqueue(t, s, q, "", ids[30:]...)
		until(t, "the work", func() bool {
			for _, id := range ids {
				if w.of(id) == 0 {
					return false
				}
			}
			return true
		})
		time.Sleep(50 * time.Millisecond)
		for _, id := range ids {
			if n := w.of(id); n != 1 {
				t.Errorf("job %d was done %d times", id, n)
			}
		}
		if w.of(1000) != 0 {
			t.Error("a job of a transaction that was rolled back was done")
		}
	})
}

func TestAgain(t *testing.T) {
	both(t, func(t *testing.T, s *store.Store) {
		w := &worked{do: func(_ context.Context, id int64, times int) (time.Duration, error) {
			switch {
			case id == 1 && times < 3:
				return 10 * time.Millisecond, nil
			case id == 2 && times < 2:
				return 0, errors.New("the outcome could not be written down")
			}
			return 0, nil
		}}
		q := queue(t, s, w, "hsm")
		start(t, q)
		enqueue(t, s, q, "hsm", 1, 2)
		until(t, "the repetition", func() bool { return w.of(1) == 3 && w.of(2) == 2 })
	})
}

// A daemon does the jobs of its own tokens, and of others from when it serves them.
func TestTokens(t *testing.T) {
	both(t, func(t *testing.T, s *store.Store) {
		w := &worked{}
		q := queue(t, s, w, "mine")
		start(t, q)
		enqueue(t, s, q, "other", 1)
		enqueue(t, s, q, "mine", 2)
		until(t, "its own job", func() bool { return w.of(2) == 1 })
		time.Sleep(100 * time.Millisecond)
		if w.of(1) != 0 {
			t.Error("the job of another token was done")
		}
		if err := q.Serve(Place{Token: "other"}); err != nil {
			t.Fatal(err)
		}
		until(t, "the other job", func() bool { return w.of(1) == 1 })
	})
}

// Stop waits for what runs and takes nothing new; what a dead process left as running is given back at the next start.
func TestStop(t *testing.T) {
	both(t, func(t *testing.T, s *store.Store) {
		begun, end := make(chan struct{}), make(chan struct{})
		w := &worked{do: func(context.Context, int64, int) (time.Duration, error) {
			close(begun)
			<-end
			return 0, nil
		}}
		q := queue(t, s, w, "hsm")
		if err := q.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		enqueue(t, s, q, "hsm", 1)
		<-begun
		stopped := make(chan error, 1)
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			stopped <- q.Stop(ctx)
		}()
		select {
		case err := <-stopped:
			t.Fatalf("stopped while a job runs: %v", err)
		case <-time.After(100 * time.Millisecond):
		}
		close(end)
		if err := <-stopped; err != nil {
			t.Fatal(err)
		}
		left(t, s)
		w2 := &worked{}
		q2 := queue(t, s, w2, "hsm")
		taken := func(ago int) { // by the clock that the queue looks at
			t.Helper()
			at := fmt.Sprintf("datetime('now', '-%d seconds')", ago)
			if s.Postgres() {
				at = fmt.Sprintf("now() - interval '%d seconds'", ago)
			}
			if _, err := s.DB().ExecContext(t.Context(), "UPDATE river_job SET attempted_at = "+at); err != nil {
				t.Fatal(err)
			}
		}
		taken(0)
		if n, err := q2.Pending(t.Context()); n != 1 || err != nil {
			t.Errorf("%d are pending, %v: it was taken a moment ago, and may be about to begin", n, err)
		}
		taken(60)
		if n, err := q2.Pending(t.Context()); n != 0 || err != nil {
			t.Errorf("%d are pending, %v", n, err)
		}
		if err := q2.Recover(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n, err := q2.Pending(t.Context()); n != 1 || err != nil {
			t.Errorf("%d are pending after the recovery, %v", n, err)
		}
		start(t, q2)
		enqueue(t, s, q2, "hsm", 2)
		until(t, "the work of the next one", func() bool { return w2.of(1) == 1 && w2.of(2) == 1 })
	})
}

// left makes the queue's row of a job look as kill -9 leaves it.
func left(t *testing.T, s *store.Store) {
	t.Helper()
	err := s.Tx(t.Context(), func(tx *store.Tx) error {
		var r sql.Result
		r, err := tx.ExecContext(t.Context(), "UPDATE river_job SET state = 'running', finalized_at = NULL")
		if err != nil {
			return err
		}
		if n, err := r.RowsAffected(); err != nil || n != 1 {
			return fmt.Errorf("%d rows, %w", n, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
