package daemon

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"hsmbridge/configs"
	"hsmbridge/daemon/store"
)

const day = 24 * time.Hour

// fleet is the configuration of a daemon with n keys, of two destinations where two is true.
func fleet(tb testing.TB, database string, n int, two bool) string {
	tb.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "name: one\ndatabase: %q\nmetrics: {listen: none}\ntokens:\n  - {name: hsm, module: /lib/p11.so, uri: \"pkcs11:token=hsm\", pin_file: pin}\nkeys:\n", database)
	for i := range n {
		fmt.Fprintf(&b, "  - name: key-%06d\n    token: hsm\n    uri: \"pkcs11:object=key-%06d;type=secret-key\"\n    key_spec: SYMMETRIC_DEFAULT\n    expires: 90d\n    drill_every: 60d\n    rotate_every: 365d\n    destinations:\n", i, i)
		fmt.Fprintf(&b, "      - \"%s\"\n", arn(i, 0))
		if two {
			fmt.Fprintf(&b, "      - \"%s\"\n", arn(i, 1))
		}
	}
	path := filepath.Join(tb.TempDir(), "hsmbridge.yaml")
	if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
		tb.Fatal(err)
	}
	return path
}

func arn(key, n int) string {
	return fmt.Sprintf("arn:aws:kms:eu-central-1:111122223333:key/%08d-0000-4000-8000-%012d", key, n)
}

// still is a daemon that does nothing by itself.
func still(tb testing.TB, path string, now func() time.Time) *Daemon {
	tb.Helper()
	c, err := configs.Load(path)
	if err != nil {
		tb.Fatal(err)
	}
	o := Options{Config: c, Log: zap.NewNop(), Version: "test", Now: now, NoSync: true, Manual: true}
	d, err := New(context.Background(), o)
	var running *store.AlreadyRunningError // PostgreSQL has not seen yet that a process of the same name was killed
	for end := time.Now().Add(30 * time.Second); errors.As(err, &running) && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		d, err = New(context.Background(), o)
	}
	if err != nil {
		tb.Fatal(err)
	}
	return d
}

// rows inserts rows, many in a statement.
func rows(tb testing.TB, s *store.Store, into string, n int, row func(i int) string) {
	tb.Helper()
	const each = 200
	err := s.Tx(tb.Context(), func(tx *store.Tx) error {
		for at := 0; at < n; at += each {
			var list []string
			for i := at; i < min(n, at+each); i++ {
				list = append(list, "("+row(i)+")")
			}
			if _, err := tx.ExecContext(tb.Context(), "INSERT INTO "+into+" VALUES "+strings.Join(list, ", ")); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		tb.Fatal(err)
	}
}

// imported makes every destination one that holds its material.
func imported(tb testing.TB, s *store.Store, keys, destinations int, now time.Time) {
	tb.Helper()
	rows(tb, s, "destinations (key_name, destination, seen_at, kms_state, present, valid_to, first_at, imported_at, drilled_at, life, material_id, proof)", keys*destinations, func(i int) string {
		at, ends := now.Add(-time.Duration(i%28)*day).UnixMicro(), now.Add(time.Duration(61+i%28)*day).UnixMicro()
		return fmt.Sprintf("'key-%06d', '%s', %d, 'Enabled', 1, %d, %d, %d, %d, %d, '%064d', 'material-id-match'", i/destinations, arn(i/destinations, i%destinations), now.UnixMicro(), ends, at, at, at, (90 * day).Microseconds(), i)
	})
	rows(tb, s, "keys (name, rotated_at)", keys, func(i int) string { return fmt.Sprintf("'key-%06d', %d", i, now.UnixMicro()) })
}

// history is what years of renewals leave behind: so many jobs of each key, the last of them yesterday, each with its import.
func history(tb testing.TB, s *store.Store, keys, each int, now time.Time) {
	tb.Helper()
	at := func(i int) int64 {
		return now.Add(-time.Duration(1+30*(i/keys))*day - time.Duration(i%keys)).UnixMicro()
	}
	rows(tb, s, "jobs (key_name, destination, kind, reason, token, requested_by, state, attempts, created_at, finished_at)", keys*each, func(i int) string {
		i = keys*each - 1 - i // the oldest first
		reason, state := "renew", "done"
		switch {
		case i%17 == 0:
			state = "failed"
		case i%11 == 0:
			reason = "drill"
		}
		return fmt.Sprintf("'key-%06d', '%s', 'import', '%s', 'hsm', 'planner', '%s', 1, %d, %d", i%keys, arn(i%keys, 0), reason, state, at(i), at(i))
	})
	if err := s.Tx(tb.Context(), func(tx *store.Tx) error {
		_, err := tx.ExecContext(tb.Context(), `INSERT INTO imports (job_id, key_name, destination, generation, result, finished_at, wrapping_algorithm, wrapping_key_spec, mechanism, wrapping_key_sha256, request_ids)
			SELECT id, key_name, destination, 1, CASE WHEN state = 'done' THEN 'reimported' ELSE 'failed' END, finished_at, 'RSAES_OAEP_SHA_256', 'RSA_4096', 'CKM_RSA_PKCS_OAEP',
			'0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef', '["0123abcd-0000-4000-8000-000000000000"]' FROM jobs WHERE state IN ('done', 'failed') ORDER BY id`)
		return err
	}); err != nil {
		tb.Fatal(err)
	}
}

// BenchmarkGrowth shows what grows with the number of keys, each with a year of monthly jobs: a pass of the planner (ns/op), the status, one page of keys,
// of jobs and of one key, a scrape, memory, the database, and retention. All but ns/op is processor time. What is given for each key stays about the
// same; a page does not grow.
func BenchmarkGrowth(b *testing.B) {
	for _, keys := range []int{1_000, 10_000, 100_000} {
		b.Run(strconv.Itoa(keys), func(b *testing.B) { growth(b, keys) })
	}
}

func growth(b *testing.B, keys int) {
	b.Helper()
	const each = 12
	now := time.Now()
	database := filepath.Join(b.TempDir(), "hsmbridge.db")
	path := fleet(b, database, keys, false)
	before := heap()
	began := processor(b)
	d := still(b, path, func() time.Time { return now })
	loaded := processor(b) - began
	memory := heap() - before
	defer d.store.Close() //nolint:errcheck // the benchmark is over
	began = processor(b)
	if err := d.plan(b.Context()); err != nil { // everything is due
		b.Fatal(err)
	}
	first := processor(b) - began
	if err := d.store.Tx(b.Context(), func(tx *store.Tx) error {
		_, err := tx.ExecContext(b.Context(), "UPDATE jobs SET state = 'done', finished_at = "+strconv.FormatInt(now.UnixMicro(), 10))
		return err
	}); err != nil {
		b.Fatal(err)
	}
	imported(b, d.store, keys, 1, now)
	history(b, d.store, keys, each, now)
	d.ready.Store(true)
	k := float64(keys)
	began = processor(b)
	for b.Loop() {
		if err := d.plan(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	passes := processor(b) - began
	if open, err := d.store.OpenJobs(b.Context()); err != nil || len(open) != 0 {
		b.Fatal(len(open), err)
	}
	b.ReportMetric(passes.Seconds()*1e6/float64(b.N)/k, "pass-µs/key")
	b.ReportMetric(loaded.Seconds()*1e6/k, "start-µs/key")
	b.ReportMetric(first.Seconds()*1e6/k, "first-pass-µs/key")
	b.ReportMetric(float64(memory)/k, "heap-B/key")
	b.ReportMetric(resident(b), "RSS-MiB")
	for name, f := range map[string]func() error{
		"status-ms": func() error { _, err := d.Status(b.Context()); return err },
		"keys-page-ms": func() error {
			page, more, err := d.KeyPage(b.Context(), fmt.Sprintf("key-%06d", keys/2), "", 50)
			if err == nil && (len(page) != 50 || !more) {
				err = fmt.Errorf("%d keys", len(page))
			}
			return err
		},
		"jobs-page-ms": func() error {
			_, err := d.Jobs(b.Context(), store.JobFilter{Before: int64(keys * each / 2), Limit: 50})
			return err
		},
		"key-ms": func() error {
			name := fmt.Sprintf("key-%06d", keys/2)
			if _, err := d.Keys(b.Context(), name); err != nil {
				return err
			}
			if _, err := d.Jobs(b.Context(), store.JobFilter{Key: name, Limit: 20}); err != nil {
				return err
			}
			if _, err := d.Imports(b.Context(), name, 0, 20); err != nil {
				return err
			}
			_, err := d.Events(b.Context(), store.EventFilter{Key: name, Last: 15})
			return err
		},
		"scrape-ms": func() error { _, err := d.snapshot(b.Context()); return err },
	} {
		b.ReportMetric(best(b, f).Seconds()*1000, name)
	}
	size := func() float64 {
		if err := d.store.Tx(b.Context(), func(*store.Tx) error { return nil }); err != nil {
			b.Fatal(err)
		}
		db, err := sql.Open("sqlite", database)
		if err != nil {
			b.Fatal(err)
		}
		defer db.Close() //nolint:errcheck // it was only read
		var bytes float64
		if err := db.QueryRowContext(b.Context(), "SELECT (page_count - freelist_count) * page_size FROM pragma_page_count(), pragma_freelist_count(), pragma_page_size()").Scan(&bytes); err != nil {
			b.Fatal(err)
		}
		return bytes
	}
	b.ReportMetric(size()/k, "database-B/key")
	now = now.Add(300 * day) // two months of the year are left
	began = processor(b)
	if err := d.Retain(b.Context()); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric((processor(b)-began).Seconds()*1e6/k, "retention-µs/key")
	b.ReportMetric(size()/k, "retained-B/key")
}

// processor is the processor time that this process has used. What else the machine does changes it little.
func processor(b *testing.B) time.Duration {
	b.Helper()
	var used unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &used); err != nil {
		b.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

// best is the least of three runs.
func best(b *testing.B, f func() error) time.Duration {
	b.Helper()
	shortest := time.Hour
	for range 3 {
		began := processor(b)
		if err := f(); err != nil {
			b.Fatal(err)
		}
		shortest = min(shortest, processor(b)-began)
	}
	return shortest
}

// resident is the resident memory of this process in MiB, with what SQLite holds. Source: proc(5).
func resident(b *testing.B) float64 {
	b.Helper()
	debug.FreeOSMemory()
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		b.Fatal(err)
	}
	var size, pages int
	if _, err := fmt.Sscan(string(text), &size, &pages); err != nil {
		b.Fatal(err)
	}
	return float64(pages*os.Getpagesize()) / (1 << 20)
}

// heap is what lives.
func heap() uint64 {
	debug.FreeOSMemory()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
