package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"modernc.org/sqlite"

	"hsmbridge/test/turns"
)

// keeping opens a database in both ways, on one connection each.
func keeping(tb testing.TB) (kept, plain *sql.DB) {
	tb.Helper()
	dsn := (&url.URL{Scheme: "file", Opaque: filepath.Join(tb.TempDir(), "db"), RawQuery: "_pragma=journal_mode(WAL)&_pragma=synchronous(OFF)&_pragma=busy_timeout(5000)"}).String()
	plain, err := sql.Open("sqlite", dsn)
	if err != nil {
		tb.Fatal(err)
	}
	kept = sql.OpenDB(keeper{dsn: dsn, of: &sqlite.Driver{}})
	for _, db := range []*sql.DB{kept, plain} {
		db.SetMaxOpenConns(1)
		tb.Cleanup(func() {
			if err := db.Close(); err != nil {
				tb.Error(err)
			}
		})
	}
	return kept, plain
}

// A statement is kept over changes of the schema by another connection, is not disturbed by the same one whose rows are still read, nor by an error or
// by more statements than are kept.
func TestKeptStatements(t *testing.T) {
	kept, plain := keeping(t)
	exec := func(db *sql.DB, query string, args ...any) {
		t.Helper()
		if _, err := db.ExecContext(t.Context(), query, args...); err != nil {
			t.Fatal(err)
		}
	}
	exec(kept, "CREATE TABLE n (i INTEGER PRIMARY KEY)")
	for i := range 5 {
		exec(kept, "INSERT INTO n (i) VALUES (?)", i)
	}
	if _, err := kept.ExecContext(t.Context(), "INSERT INTO n (i) VALUES (?)", 3); err == nil {
		t.Error("a key that is there twice is taken")
	}
	exec(kept, "INSERT INTO n (i) VALUES (?)", 5)

	tx, err := kept.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	const all = "-- a comment\nSELECT i FROM n ORDER BY i"
	seen := ""
	outer, err := tx.QueryContext(t.Context(), all)
	if err != nil {
		t.Fatal(err)
	}
	for outer.Next() {
		var a, sum int
		if err := outer.Scan(&a); err != nil {
			t.Fatal(err)
		}
		inner, err := tx.QueryContext(t.Context(), all)
		if err != nil {
			t.Fatal(err)
		}
		for inner.Next() {
			var b int
			if err := inner.Scan(&b); err != nil {
				t.Fatal(err)
			}
			sum += b
		}
		if err := inner.Err(); err != nil {
			t.Fatal(err)
		}
		seen += fmt.Sprintf("%d/%d ", a, sum)
	}
	if err := outer.Err(); err != nil {
		t.Fatal(err)
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	if want := "0/15 1/15 2/15 3/15 4/15 5/15 "; seen != want {
		t.Errorf("nested: %s, want %s", seen, want)
	}

	columns := func() int {
		t.Helper()
		rows, err := kept.QueryContext(t.Context(), "SELECT * FROM n LIMIT 1")
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close() //nolint:errcheck // it was read
		names, err := rows.Columns()
		if err != nil || !rows.Next() || rows.Err() != nil {
			t.Fatal(err, rows.Err())
		}
		return len(names)
	}
	for want := 1; want <= 3; want++ {
		if got := columns(); got != want {
			t.Errorf("%d columns, want %d", got, want)
		}
		exec(plain, fmt.Sprintf("ALTER TABLE n ADD COLUMN more%d", want))
	}
	for i := range 2*mostKept + 10 {
		exec(kept, fmt.Sprintf("UPDATE n SET more1 = %d", i))
	}
	if got := columns(); got != 4 {
		t.Errorf("%d columns, want 4", got)
	}
}

// What is half read when its transaction ends, or its context, is over: nothing is left of it that would hold up a checkpoint, and the same is read anew.
func TestKeptStatementsEnd(t *testing.T) {
	kept, plain := keeping(t)
	for _, query := range []string{"CREATE TABLE n (i INTEGER PRIMARY KEY)", "INSERT INTO n (i) VALUES (1), (2), (3)"} {
		if _, err := kept.ExecContext(t.Context(), query); err != nil {
			t.Fatal(err)
		}
	}
	const all, add = "SELECT i FROM n ORDER BY i", "INSERT INTO n (i) VALUES (?) RETURNING i"
	for round := range 6 {
		ctx, cancel := context.WithCancel(t.Context())
		tx, err := kept.BeginTx(ctx, nil)
		if err != nil {
			t.Fatal(err)
		}
		var i int
		if err := tx.QueryRowContext(ctx, add, 10+round).Scan(&i); err != nil || i != 10+round {
			t.Fatal(i, err)
		}
		rows, err := tx.QueryContext(ctx, all) //nolint:rowserrcheck // it is left half read
		if err != nil || !rows.Next() {
			t.Fatal(err)
		}
		switch round % 3 {
		case 0:
			err = tx.Rollback()
		case 1:
			cancel()
			for tx.Rollback() == nil { // until database/sql has ended it
				time.Sleep(time.Millisecond)
			}
		default:
			err = errors.Join(rows.Close(), tx.Rollback())
		}
		cancel()
		if err := errors.Join(err, rows.Close()); err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		var n, sum int
		if err := kept.QueryRowContext(t.Context(), "SELECT count(*), sum(i) FROM n").Scan(&n, &sum); err != nil || n != 3 || sum != 6 {
			t.Errorf("round %d: %d rows, sum %d: %v", round, n, sum, err)
		}
		var busy, log, done int
		if err := plain.QueryRowContext(t.Context(), "PRAGMA wal_checkpoint(TRUNCATE)").Scan(&busy, &log, &done); err != nil || busy != 0 || log != 0 {
			t.Errorf("round %d: a checkpoint is held up: busy %d, log %d: %v", round, busy, log, err)
		}
	}
}

func TestWorthKeeping(t *testing.T) {
	for query, want := range map[string]bool{
		"SELECT 1": true, "\n\tinsert into x": true, "-- name: JobGetAvailable :many\nUPDATE\n x": true, "WITH a AS (SELECT 1) SELECT 1": true, "delete from x": true,
		"SELECT " + strings.Repeat("1,", longestKept): false, "CREATE TABLE x (i)": false, "PRAGMA foreign_keys": false, "": false, "-- only a comment": false, "BEGIN": false, "SELECTED": false,
	} {
		if got := worthKeeping(query); got != want {
			t.Errorf("%q: %v", query, got)
		}
	}
}

// BenchmarkPrepared looks for work in the queue, as a daemon does several times a second, and looks up a key, with statements that are kept and with such
// that are prepared each time, in turns.
func BenchmarkPrepared(b *testing.B) {
	kept, plain := keeping(b)
	for _, query := range []string{
		"CREATE TABLE work (id INTEGER PRIMARY KEY, state TEXT NOT NULL, queue TEXT NOT NULL, priority INTEGER NOT NULL, at TEXT NOT NULL, attempt INTEGER NOT NULL)",
		"CREATE INDEX work_by ON work (state, queue, priority, at, id)",
		"INSERT INTO work (state, queue, priority, at, attempt) VALUES ('done', 'one', 1, '2027-01-01', 1)",
	} {
		if _, err := kept.ExecContext(b.Context(), query); err != nil {
			b.Fatal(err)
		}
	}
	look := func(db *sql.DB) func(n int) time.Duration {
		return func(n int) time.Duration {
			began := time.Now()
			for range n {
				rows, err := db.QueryContext(b.Context(), `UPDATE work SET attempt = attempt + 1, state = 'running' WHERE id IN (
					SELECT id FROM work WHERE state = 'available' AND queue = ? AND at <= ? ORDER BY priority, at, id LIMIT ?) RETURNING *`, "one", "2027-02-01", 10)
				if err != nil {
					b.Fatal(err)
				}
				if rows.Next() {
					b.Fatal("there is work")
				}
				if err := errors.Join(rows.Err(), rows.Close()); err != nil {
					b.Fatal(err)
				}
				var state string
				if err := db.QueryRowContext(b.Context(), "SELECT state FROM work WHERE id = ?", 1).Scan(&state); err != nil {
					b.Fatal(err)
				}
			}
			return time.Since(began)
		}
	}
	t := turns.New(look(kept), look(plain))
	const slice = 200
	t.Take(slice)
	for b.Loop() {
		t.Take(slice)
	}
	b.ReportMetric(t.Middle(0).Seconds()*1e6/slice, "kept-µs")
	b.ReportMetric(t.Middle(1).Seconds()*1e6/slice, "prepared-µs")
	b.ReportMetric(t.Ratio(0, 1), "times-faster")
	b.ReportMetric(0, "ns/op")
}
