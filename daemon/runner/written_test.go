package runner

import (
	"context"
	"database/sql"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/zap"

	"hsmbridge/configs"
	"hsmbridge/daemon/importer"
	"hsmbridge/daemon/store"
)

// watcher notes what the database says of a job at the moment in which it is told something.
type watcher struct {
	t              *testing.T
	store          *store.Store
	finished, then store.State
}

func (w *watcher) state() store.State {
	w.t.Helper()
	list, err := w.store.Jobs(w.t.Context(), store.JobFilter{})
	if err != nil || len(list) != 1 {
		w.t.Fatalf("%+v, %v", list, err)
	}
	return list[0].State
}

func (*watcher) Step(store.Job, importer.Event, time.Duration) {}

func (w *watcher) Finished(store.Job, store.Outcome, time.Duration) { w.finished = w.state() }

func (w *watcher) Written() { w.then = w.state() }

// The planner is told to look when the outcome is in the database, where it looks. Told before, it finds the job open still, and what comes
// due by its end would wait for the next minute.
func TestWritten(t *testing.T) {
	s, err := store.Open(t.Context(), store.Config{Path: filepath.Join(t.TempDir(), "x.db"), NoSync: true, Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close() //nolint:errcheck // the test is over
	queue := func(context.Context, *sql.Tx, []store.Job) error { return nil }
	list, err := s.AddJobs(t.Context(), []store.Job{{Key: "k", Destination: "d", Kind: store.KindImport}}, queue)
	if err != nil {
		t.Fatal(err)
	}
	w := &watcher{t: t, store: s}
	r := &Runner{Store: s, Now: time.Now, Config: func() *configs.Config { return &configs.Config{} }, Enqueue: queue, Observer: w, Log: zap.NewNop()}
	if _, err := r.Work(t.Context(), list[0].ID); err != nil {
		t.Fatal(err)
	}
	if w.finished != store.Running || w.then != store.Cancelled {
		t.Errorf("at its end the job was %s, and %q when its outcome was said to be written down", w.finished, w.then)
	}
}
