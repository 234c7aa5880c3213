package daemon

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"

	"hsmbridge/configs"
	"hsmbridge/daemon/control"
	"hsmbridge/daemon/schedule"
	"hsmbridge/daemon/store"
	"hsmbridge/test/postgres"
)

// envRetain makes this binary a daemon that deletes old jobs and ends: a test kills that process, not itself.
const envRetain = "RETAIN_CONFIG"

func TestMain(m *testing.M) {
	if path := os.Getenv(envRetain); path != "" {
		os.Exit(retainOnce(path))
	}
	os.Exit(m.Run())
}

func retainOnce(path string) int {
	c, err := configs.Load(path)
	if err == nil {
		var d *Daemon
		if d, err = New(context.Background(), Options{Config: c, Log: zap.NewNop(), Version: "test", NoSync: true, Manual: true}); err == nil {
			err = d.Retain(context.Background())
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// eachDatabase runs a test on both databases.
func eachDatabase(t *testing.T, f func(t *testing.T, database string)) {
	t.Helper()
	t.Run("sqlite", func(t *testing.T) { f(t, filepath.Join(t.TempDir(), "hsmbridge.db")) })
	t.Run("postgres", func(t *testing.T) { f(t, postgres.Shared(t)) })
}

// decisions is everything that a daemon decides and shows from its database, at several times to come.
func decisions(t *testing.T, d *Daemon) (due [][]schedule.Job, keys []control.ManagedKey, counts control.Counts, imported []bool) {
	t.Helper()
	h, err := d.history(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, ahead := range []time.Duration{0, 20 * day, 45 * day, 70 * day, 200 * day, 500 * day} {
		due = append(due, schedule.Due(d.now().Add(ahead), *d.keys.Load(), h))
	}
	if keys, err = d.Keys(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	for i := range keys {
		one, err := d.Keys(t.Context(), keys[i].Name)
		if err != nil {
			t.Fatal(err)
		}
		keys[i] = one[0] // with its key materials
		was, err := d.store.Imported(t.Context(), keys[i].Name, "failed", "waits")
		if err != nil {
			t.Fatal(err)
		}
		imported = append(imported, was)
	}
	st, err := d.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return due, keys, st.Counts, imported
}

// What is due, what is shown of keys, and whether a key was ever imported are the same before old jobs are deleted and after.
func TestRetentionDecidesNothing(t *testing.T) {
	eachDatabase(t, func(t *testing.T, database string) {
		t.Helper()
		const keys, each = 30, 40
		now := time.Now()
		d := still(t, fleet(t, database, keys+3, true), func() time.Time { return now }) // three were never imported
		defer d.store.Close()                                                            //nolint:errcheck // the test is over
		imported(t, d.store, keys, 2, now)
		history(t, d.store, keys, each, now)
		if _, err := d.store.AddJobs(t.Context(), []store.Job{{Key: "key-000001", Destination: arn(1, 0), Kind: store.KindImport, Reason: "renew", Token: "hsm", RequestedBy: planner}}, d.queue.Enqueue); err != nil {
			t.Fatal(err)
		}
		last, err := d.store.LastEvent(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		due, shown, counts, was := decisions(t, d)
		if err := d.Retain(t.Context()); err != nil {
			t.Fatal(err)
		}
		due2, shown2, counts2, was2 := decisions(t, d)
		for _, diff := range []string{cmp.Diff(due, due2), cmp.Diff(shown, shown2), cmp.Diff(counts, counts2), cmp.Diff(was, was2)} {
			if diff != "" {
				t.Errorf("decided otherwise (-before +after):\n%s", diff)
			}
		}
		if len(due[0]) == 0 || len(due[5]) == 0 || !was[0] || was[keys] {
			t.Errorf("the test shows nothing: %d due, %v", len(due[0]), was)
		}
		left, err := d.store.Jobs(t.Context(), store.JobFilter{Limit: 10 * keys * each})
		if err != nil {
			t.Fatal(err)
		}
		old := 0
		seen := map[string]bool{}
		for _, j := range left { // the latest first
			kind := strings.Join([]string{j.Key, j.Destination, string(j.Kind), j.Reason, string(j.State)}, " ")
			if !j.Finished.IsZero() && j.Finished.Before(now.Add(-400*day)) {
				old++
				if seen[kind] {
					t.Errorf("job %d is old, and not the last of %s", j.ID, kind)
				}
			}
			seen[kind] = true
		}
		if len(left) >= keys*each || len(left) < keys*13 {
			t.Errorf("%d jobs are left, %d of them old", len(left), old)
		}
		told, err := d.store.Events(t.Context(), store.EventFilter{After: last})
		if err != nil || len(told) == 0 || told[0].Kind != "retention" {
			t.Errorf("told: %+v, %v", told, err)
		}
	})
}

// A kill in the middle loses nothing but time: what is gone is told, what is not goes the next time, and the same is left.
func TestRetentionKilled(t *testing.T) {
	eachDatabase(t, func(t *testing.T, database string) {
		t.Helper()
		const keys, each, all = 20, 400, 20 * 400
		now := time.Now()
		path := fleet(t, database, keys, false)
		fill := func() {
			d := still(t, path, time.Now)
			defer d.store.Close() //nolint:errcheck // the next one opens it
			history(t, d.store, keys, each, now)
		}
		driver := "pgx"
		if !strings.HasPrefix(database, "postgres") {
			driver = "sqlite"
		}
		fill()
		db, err := sql.Open(driver, database)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close() //nolint:errcheck // it was only read
		count := func(what string) (n int) {
			if err := db.QueryRowContext(t.Context(), "SELECT count(*) FROM "+what).Scan(&n); err != nil && !strings.Contains(err.Error(), "locked") {
				t.Fatal(err)
			}
			return n
		}
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		killed := false
		for range 10 {
			before := count("events WHERE kind = 'retention'")
			c := exec.CommandContext(t.Context(), self)
			c.Env = append(os.Environ(), envRetain+"="+path)
			c.Stderr = os.Stderr
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() { ended <- c.Wait() }()
			for begun := false; !begun && len(ended) == 0; time.Sleep(time.Millisecond) {
				begun = count("events WHERE kind = 'retention'") > before
			}
			_ = c.Process.Kill()
			if err := <-ended; err != nil && c.ProcessState.ExitCode() > 0 {
				t.Fatal(err)
			}
			if killed = c.ProcessState.ExitCode() == -1; killed {
				break
			}
			fill() // it was faster than this test
		}
		if !killed {
			t.Fatal("it could not be killed in the middle")
		}
		const old = "jobs WHERE finished_at > 0"
		half := count(old)
		if imports := count("imports"); imports < half {
			t.Errorf("%d jobs and %d imports are left", half, imports)
		}
		d := still(t, path, time.Now)                                                        // its name and its lock are free
		defer d.store.Close()                                                                //nolint:errcheck // the test is over
		if _, err := db.ExecContext(t.Context(), "UPDATE locks SET until = 0"); err != nil { // its lease has ended
			t.Fatal(err)
		}
		if err := d.Retain(t.Context()); err != nil {
			t.Fatal(err)
		}
		left := count(old)
		if left >= half || half == all {
			t.Errorf("%d jobs, %d after the kill, %d at the end", all, half, left)
		}
		told, err := d.store.Events(t.Context(), store.EventFilter{})
		if err != nil {
			t.Fatal(err)
		}
		gone := 0
		for _, e := range told {
			n := 0
			if _, err := fmt.Sscanf(e.Message, "%d jobs that ended", &n); e.Kind == "retention" && err == nil {
				gone += n
			}
		}
		if made := count("jobs") + gone; made%all != 0 {
			t.Errorf("%d jobs are told of as deleted and %d are left: that is not a multiple of %d", gone, left, all)
		}
		if err := d.Retain(t.Context()); err != nil || count(old) != left {
			t.Errorf("once more: %d jobs are left, %v", count(old), err)
		}
	})
}

// Where jobs are kept for ever, and where another daemon is at it, nothing is deleted.
func TestRetentionLeavesAlone(t *testing.T) {
	database := filepath.Join(t.TempDir(), "hsmbridge.db")
	path := fleet(t, database, 2, false)
	now := time.Now()
	d := still(t, path, func() time.Time { return now })
	defer d.store.Close() //nolint:errcheck // the test is over
	history(t, d.store, 2, 40, now)
	jobs := func() int {
		list, err := d.store.Jobs(t.Context(), store.JobFilter{})
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	l, err := d.store.Lock(t.Context(), retention)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Retain(t.Context()); err != nil || jobs() != 80 {
		t.Errorf("beside another: %d jobs are left, %v", jobs(), err)
	}
	if err := l.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	c := *d.config.Load()
	never := configs.Never
	c.Retention.Jobs = &never
	d.config.Store(&c)
	if err := d.Retain(t.Context()); err != nil || jobs() != 80 {
		t.Errorf("for ever: %d jobs are left, %v", jobs(), err)
	}
	c.Retention.Jobs = nil
	if err := d.Retain(t.Context()); err != nil || jobs() >= 80 {
		t.Errorf("%d jobs are left, %v", jobs(), err)
	}
}
