package store

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"hsmbridge/daemon/audit"
)

// dump is everything that is known, but for locks, which end by themselves.
func dump(t *testing.T, s *Store) string {
	t.Helper()
	var b strings.Builder
	for _, table := range []string{
		"keys", "destinations", "jobs", "imports", "materials", "material_ids", "parked", "events", "audit_log", "audit_hashes", "checkpoints", "audit_exports", "requests",
		"signatures", "merged",
	} {
		rows, err := s.read.QueryContext(t.Context(), "SELECT * FROM "+table+" ORDER BY 1, 2") //nolint:gosec // names of this test
		if err != nil {
			t.Fatal(err)
		}
		names, err := rows.Columns()
		if err != nil {
			t.Fatal(err)
		}
		for rows.Next() {
			values := make([]any, len(names))
			for i := range values {
				values[i] = new(any)
			}
			if err := rows.Scan(values...); err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(&b, "%s:", table)
			for i, v := range values {
				fmt.Fprintf(&b, " %s=%v", names[i], *v.(*any)) //nolint:errcheck,forcetypeassert // made above
			}
			b.WriteByte('\n')
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil {
			t.Fatal(err)
		}
	}
	return b.String()
}

// act is something that changes what is known, and the kinds of the records that tell it.
type act struct {
	name  string
	do    func(ctx context.Context) error
	kinds string
}

// acts are all changes that are written down, with a state in which each can be done.
func acts(t *testing.T, s *Store, c *clock, q *queue) []act {
	t.Helper()
	must[[]Job](t)(s.AddJobs(t.Context(), []Job{{Key: "waits", Destination: "arn:w", Kind: KindImport, RequestedBy: "planner"}}, q.enqueue))
	l, waits := begin(t, s, must[[]Job](t)(s.Jobs(t.Context(), JobFilter{Key: "waits"}))[0])
	if err := s.FinishJob(t.Context(), l, waits, Outcome{State: Waiting, NotBefore: c.Now().Add(time.Hour), Message: "waits"}, q.enqueue); err != nil {
		t.Fatal(err)
	}
	queued := add(t, s, q, Job{Key: "queued", Destination: "arn:q", Kind: KindImport, RequestedBy: "planner"})
	lease, running := begin(t, s, add(t, s, q, Job{Key: "runs", Destination: "arn:r", Kind: KindImport, RequestedBy: "planner"}))
	request := func(name string, valid time.Duration) Request {
		return Request{Name: name, Purpose: "import", Key: "runs", Destination: "arn:r", Job: running.ID, Text: "text of " + name, AskedBy: "planner", Created: c.Now(), ValidUntil: c.Now().Add(valid)}
	}
	for name, valid := range map[string]time.Duration{"open": time.Hour, "used": time.Hour, "late": 0} {
		if err := s.AddRequest(t.Context(), nil, request(name, valid), "asked"); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Park(t.Context(), Parked{Token: "parked", Reason: "a wrong PIN"}); err != nil {
		t.Fatal(err)
	}
	must[bool](t)(s.Pause(t.Context(), "still", "alice", false))
	must[bool](t)(s.Cancel(t.Context(), must[Job](t)(s.Revoke(t.Context(), "gone", "alice", "stolen", "", q.enqueue)).ID, "alice"))
	open := must[[]Request](t)(s.Requests(t.Context(), RequestFilter{Name: "open"}))[0]
	enough := func([]Signature) (Judged, error) { return Judged{Approved: true, Officers: "olga"}, nil }
	signed := Event{Kind: "approval", Actor: "olga", Message: "signed", Fields: map[string]string{"officer": "olga"}}
	leaf := audit.LeafHash([]byte("x"))
	return []act{
		{"a job", func(ctx context.Context) error {
			_, err := s.AddJobs(ctx, []Job{{Key: "new", Destination: "arn:n", Kind: KindImport, RequestedBy: "alice"}}, q.enqueue)
			return err
		}, "queued"},
		{"a step", func(ctx context.Context) error {
			return s.Step(ctx, lease, running, Event{Kind: "intent", Message: "next", Fields: map[string]string{"plan": "x"}})
		}, "intent"},
		{"a wrap", func(ctx context.Context) error {
			return s.Step(ctx, lease, running, Event{Kind: "wrap", Message: "wrapped"})
		}, "wrap"},
		{"an import", func(ctx context.Context) error {
			return s.Step(ctx, lease, running, Event{Kind: "import", Message: "imported"})
		}, "import"},
		{"a request", func(ctx context.Context) error { return s.AddRequest(ctx, lease, request("new", time.Hour), "asked") }, "request"},
		{"leave to wrap", func(ctx context.Context) error {
			return s.Allow(ctx, lease, running, open.ID, Event{Kind: "allowed", Message: "allowed"})
		}, "allowed"},
		{"an approval", func(ctx context.Context) error {
			_, err := s.Sign(ctx, "open", Signature{Officer: "olga", Key: "SHA256:x", Signature: "x", HandedBy: "olga"}, signed, enough, q.enqueue)
			return err
		}, "approval approved"},
		{"a rejection", func(ctx context.Context) error {
			_, err := s.EndRequest(ctx, "open", RequestRejected, "olga", "no", &Event{Kind: "rejection", Actor: "olga", Message: "no"}, q.enqueue)
			return err
		}, "rejection rejected"},
		{"a withdrawal", func(ctx context.Context) error {
			_, err := s.EndRequest(ctx, "used", RequestWithdrawn, "alice", "", nil, q.enqueue)
			return err
		}, "withdrawn"},
		{"an expiry", func(ctx context.Context) error {
			_, err := s.ExpireRequests(ctx, q.enqueue)
			return err
		}, "expired"},
		{"another try of a job", func(ctx context.Context) error {
			_, err := s.Hurry(ctx, waits.ID, "alice", q.enqueue)
			return err
		}, "retry"},
		{"another try of a key", func(ctx context.Context) error { return s.ClearErrors(ctx, "runs", "alice", "mended") }, "retry"},
		{"a cancellation", func(ctx context.Context) error {
			_, err := s.Cancel(ctx, queued.ID, "alice")
			return err
		}, "cancelled"},
		{"a pause", func(ctx context.Context) error {
			_, err := s.Pause(ctx, "runs", "alice", false)
			return err
		}, "pause"},
		{"a resumption", func(ctx context.Context) error {
			_, err := s.Pause(ctx, "still", "alice", true)
			return err
		}, "resume"},
		{"a waiver", func(ctx context.Context) error { return s.Waive(ctx, "runs", "alice", "no second HSM yet", "") }, "waiver"},
		{"a parked token", func(ctx context.Context) error { return s.Park(ctx, Parked{Token: "hsm", Reason: "a wrong PIN"}) }, "parked"},
		{"an unparked token", func(ctx context.Context) error {
			_, err := s.Unpark(ctx, "parked", "alice", "the PIN is mended")
			return err
		}, "unparked"},
		{"the key of the log", func(ctx context.Context) error {
			return s.SetAuditKey(ctx, []byte("der"), Event{Kind: "audit-key", Message: "signs"})
		}, "audit-key"},
		{"a ceremony's log", func(ctx context.Context) error {
			_, err := s.Merge(ctx, "hsmceremony/r", []Merging{{N: 1, Hash: leaf, Event: Event{Kind: "ceremony", Message: "record 1"}}})
			return err
		}, "ceremony"},
		{"an event by itself", func(ctx context.Context) error { return s.AddEvent(ctx, Event{Kind: "reload", Message: "read again"}) }, "reload"},
		{"a revocation", func(ctx context.Context) error {
			_, err := s.Revoke(ctx, "queued", "alice", "stolen", "", q.enqueue)
			return err
		}, "revoke queued"},
		{"a restoration", func(ctx context.Context) error {
			_, _, err := s.Restore(ctx, "gone", "alice")
			return err
		}, "restore"},
		{"an outcome", func(ctx context.Context) error {
			return s.FinishJob(ctx, lease, running, Outcome{
				State: Done, Message: "imported", Imports: []Import{{Key: "runs", Destination: "arn:r", Result: "imported", Generation: 1}},
				Seen: []Seen{{Key: "runs", Destination: "arn:r", State: "Enabled", Present: true}}, Imported: []Success{{Destination: "arn:r", Sent: true}},
			}, q.enqueue)
		}, "finished"},
	}
}

func kindsAfter(t *testing.T, s *Store, n int64) string {
	t.Helper()
	var out []string
	for _, e := range must[[]Event](t)(s.Events(t.Context(), EventFilter{After: n})) {
		out = append(out, e.Kind)
	}
	return strings.Join(out, " ")
}

// TestNoRecordNoChange: when the record of a change cannot be added to the log, nothing of the change is done. When it can, the change is in
// the log, in the same transaction.
func TestNoRecordNoChange(t *testing.T) {
	both(t, func(t *testing.T, open func(string, time.Duration) *Store, c *clock) {
		s, q := open("one", time.Hour), &queue{}
		list := acts(t, s, c, q)
		exec := func(statement string) {
			t.Helper()
			if _, err := s.write.ExecContext(t.Context(), statement); err != nil {
				t.Fatal(err)
			}
		}
		faults := map[string][2]string{
			"the table of records takes nothing": {"CREATE TRIGGER no BEFORE INSERT ON events BEGIN SELECT RAISE(ABORT, 'no'); END", "DROP TRIGGER no"},
			"the tree takes nothing":             {"CREATE TRIGGER no BEFORE INSERT ON audit_hashes BEGIN SELECT RAISE(ABORT, 'no'); END", "DROP TRIGGER no"},
			"the tree was damaged":               {"UPDATE audit_hashes SET hash = '!' || hash", "UPDATE audit_hashes SET hash = substr(hash, 2)"},
			"the database is read-only":          {"PRAGMA query_only = ON", "PRAGMA query_only = OFF"},
		}
		if s.Postgres() {
			faults = map[string][2]string{
				"the table of records takes nothing": {"ALTER TABLE events ADD CONSTRAINT no CHECK (id < 0) NOT VALID", "ALTER TABLE events DROP CONSTRAINT no"},
				"the tree takes nothing":             {"ALTER TABLE audit_hashes ADD CONSTRAINT no CHECK (number < 0) NOT VALID", "ALTER TABLE audit_hashes DROP CONSTRAINT no"},
				"the tree was damaged":               {"UPDATE audit_hashes SET hash = '!' || hash", "UPDATE audit_hashes SET hash = substr(hash, 2)"},
			}
		}
		for fault, sql := range faults {
			// A tree needs no older hash when its size is a power of two less one record: an odd number of records makes it look.
			if n := must[int64](t)(s.LastEvent(t.Context())); n%2 == 0 {
				if err := s.AddEvent(t.Context(), Event{Kind: "clock", Message: "one more"}); err != nil {
					t.Fatal(err)
				}
			}
			exec(sql[0])
			before := dump(t, s)
			for _, a := range list {
				if err := a.do(t.Context()); err == nil {
					t.Errorf("%s: %s was done", fault, a.name)
				}
				if after := dump(t, s); after != before {
					t.Errorf("%s: %s left something behind:\n%s", fault, a.name, after)
				}
			}
			exec(sql[1])
		}
		for _, a := range list {
			n := must[int64](t)(s.LastEvent(t.Context()))
			if err := a.do(t.Context()); err != nil && !errors.Is(err, ErrRequestClosed) {
				t.Fatalf("%s: %v", a.name, err)
			} else if err != nil {
				t.Logf("%s: the request is closed by now", a.name)
				continue
			}
			if got := kindsAfter(t, s, n); got != a.kinds && a.name != "an outcome" || a.name == "an outcome" && !strings.HasSuffix(got, "finished") {
				t.Errorf("%s is told as %q, want %q", a.name, got, a.kinds)
			}
		}
	})
}

// TestLockedLog: while somebody else holds the database nothing is done, and it is afterwards.
func TestLockedLog(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "x.db")
	s := must[*Store](t)(Open(t.Context(), Config{Path: path, Daemon: "one", NoSync: true}))
	defer s.Close() //nolint:errcheck // the end of the test
	other := must[*sql.DB](t)(sql.Open("sqlite", "file:"+path+"?_txlock=immediate"))
	defer other.Close() //nolint:errcheck // the end of the test
	tx := must[*sql.Tx](t)(other.BeginTx(t.Context(), nil))
	if _, err := s.write.ExecContext(t.Context(), "PRAGMA busy_timeout = 50"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Pause(t.Context(), "k", "alice", false); err == nil || !strings.Contains(err.Error(), "locked") {
		t.Errorf("got %v", err)
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	if keys := must[map[string]Key](t)(s.Keys(t.Context())); keys["k"].PausedBy != "" {
		t.Error("the key is paused")
	}
	if _, err := s.Pause(t.Context(), "k", "alice", false); err != nil {
		t.Error(err)
	}
}

// TestFullDisk: a record that does not fit any more takes its change with it.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	s := must[*Store](t)(Open(t.Context(), Config{Path: filepath.Join(t.TempDir(), "x.db"), Daemon: "one", NoSync: true}))
	defer s.Close() //nolint:errcheck // the end of the test
	var pages int64
	if err := s.write.QueryRowContext(t.Context(), "PRAGMA page_count").Scan(&pages); err != nil {
		t.Fatal(err)
	}
	if _, err := s.write.ExecContext(t.Context(), fmt.Sprintf("PRAGMA max_page_count = %d", pages)); err != nil {
		t.Fatal(err)
	}
	before := dump(t, s)
	err := s.Waive(t.Context(), "k", "alice", strings.Repeat("because ", 20000), "")
	if err == nil || !strings.Contains(err.Error(), "full") || dump(t, s) != before {
		t.Errorf("got %v", err)
	}
}

// TestRequiredCopy: a change whose record could not be copied is an error for whoever asked, and the record is there.
func TestRequiredCopy(t *testing.T) {
	both(t, func(t *testing.T, open func(string, time.Duration) *Store, _ *clock) {
		s := one(open)
		away, asked := errors.New("the place is away"), 0
		s.Require(func(context.Context) error {
			asked++
			return away
		})
		if _, err := s.Pause(t.Context(), "k", "alice", false); !errors.Is(err, away) || asked != 1 {
			t.Errorf("got %v, asked %d times", err, asked)
		}
		if err := s.SetExported(t.Context(), "file x", 2, 1); err != nil || asked != 1 {
			t.Errorf("a change without a record: %v, asked %d times", err, asked)
		}
		if got := kindsAfter(t, s, 0); got != "pause" {
			t.Errorf("the log has %q", got)
		}
	})
}

// TestMerge takes another log over once, and only the one that it took before.
func TestMerge(t *testing.T) {
	both(t, func(t *testing.T, open func(string, time.Duration) *Store, _ *clock) {
		s := one(open)
		records := func(n int, what string) []Merging {
			var out []Merging
			for i := range n {
				text := fmt.Sprintf("%s%d", what, i+1)
				out = append(out, Merging{int64(i) + 1, audit.LeafHash([]byte(text)), Event{Kind: "ceremony", Message: text, Fields: map[string]string{"record": text}}})
			}
			return out
		}
		merge := func(origin string, list []Merging) (int, error) { return s.Merge(t.Context(), origin, list) }
		for i, c := range []struct {
			origin string
			list   []Merging
			want   int
			err    error
		}{
			{"a", records(3, "x"), 3, nil},
			{"a", records(3, "x"), 0, nil},
			{"a", records(5, "x"), 2, nil},
			{"a", records(2, "x"), 0, nil}, // an older copy
			{"a", records(6, "y"), 0, ErrOtherHistory},
			{"a", append(records(4, "x"), records(6, "y")[4:]...), 0, ErrOtherHistory},
			{"a", append(records(5, "x"), Merging{N: 7}), 0, ErrOtherHistory},
			{"a", slices.Concat(records(1, "x"), records(6, "x")[2:]), 0, ErrOtherHistory},
			{"b", records(2, "y"), 2, nil},
			{"a", records(6, "x"), 1, nil},
		} {
			before := must[int64](t)(s.LastEvent(t.Context()))
			n, err := merge(c.origin, c.list)
			if n != c.want || !errors.Is(err, c.err) {
				t.Errorf("%d: got %d, %v; want %d, %v", i, n, err, c.want, c.err)
			}
			if after := must[int64](t)(s.LastEvent(t.Context())); after-before != int64(c.want) {
				t.Errorf("%d: %d records were added", i, after-before)
			}
		}
	})
}

// TestTreeSince: what somebody changed in the database is found before it is signed.
func TestTreeSince(t *testing.T) {
	both(t, func(t *testing.T, open func(string, time.Duration) *Store, _ *clock) {
		s := one(open)
		for i := range 20 {
			if err := s.AddEvent(t.Context(), Event{Kind: "clock", Message: fmt.Sprint(i)}); err != nil {
				t.Fatal(err)
			}
		}
		earlier := must[audit.Checkpoint](t)(s.TreeSince(t.Context(), audit.Checkpoint{}))
		for i := range 10 {
			if err := s.AddEvent(t.Context(), Event{Kind: "clock", Message: fmt.Sprint(i)}); err != nil {
				t.Fatal(err)
			}
		}
		if c, err := s.TreeSince(t.Context(), earlier); err != nil || c.Size != 30 {
			t.Fatalf("got %+v, %v", c, err)
		}
		for what, change := range map[string]string{
			"a record since":            "UPDATE events SET record = replace(record, '\"clock\"', '\"stop\"') WHERE id = 25",
			"a record less":             "DELETE FROM events WHERE id = 23",
			"the end cut off":           "DELETE FROM events WHERE id >= 15",
			"a hash under a checkpoint": "UPDATE audit_hashes SET hash = (SELECT hash FROM audit_hashes WHERE number = 0) WHERE number = 30", // of the first 16 records
		} {
			tx := must[*sql.Tx](t)(s.write.BeginTx(t.Context(), nil))
			if _, err := tx.ExecContext(t.Context(), "CREATE TABLE kept AS SELECT * FROM events"); err != nil {
				t.Fatal(err)
			}
			for _, statement := range []string{"CREATE TABLE kept_hashes AS SELECT * FROM audit_hashes", change} {
				if _, err := tx.ExecContext(t.Context(), statement); err != nil {
					t.Fatal(what, err)
				}
			}
			if err := tx.Commit(); err != nil {
				t.Fatal(err)
			}
			if _, err := s.TreeSince(t.Context(), earlier); !errors.Is(err, ErrLogChanged) {
				t.Errorf("%s: got %v", what, err)
			}
			for _, statement := range []string{
				"DELETE FROM events", "INSERT INTO events SELECT * FROM kept", "DROP TABLE kept", "DELETE FROM audit_hashes",
				"INSERT INTO audit_hashes SELECT * FROM kept_hashes", "DROP TABLE kept_hashes",
			} {
				if _, err := s.write.ExecContext(t.Context(), statement); err != nil {
					t.Fatal(err)
				}
			}
		}
		if _, err := s.TreeSince(t.Context(), earlier); err != nil {
			t.Error(err)
		}
		earlier.Root[0] ^= 1
		if _, err := s.TreeSince(t.Context(), earlier); !errors.Is(err, ErrLogChanged) {
			t.Errorf("another root: %v", err)
		}
	})
}

// Whoever writes the database and changes one hash inside of the tree, where no record stands, would have the HSM sign a root from which a
// record can be proved that was never written.
func TestForgedProofIsNotSigned(t *testing.T) {
	both(t, func(t *testing.T, open func(string, time.Duration) *Store, c *clock) {
		s := one(open)
		add := func(n int) {
			t.Helper()
			for i := range n {
				if err := s.AddEvent(t.Context(), Event{Kind: "clock", Message: fmt.Sprint(i)}); err != nil {
					t.Fatal(err)
				}
			}
		}
		add(20)
		earlier := must[audit.Checkpoint](t)(s.TreeSince(t.Context(), audit.Checkpoint{}))
		add(10)
		// Of records 25 to 28 the hash that stands above them, with another record 25.
		forged := must[[]byte](t)(audit.Record{N: 25, Time: c.Now(), Kind: "clock", Message: "approved by everybody"}.Encode())
		stored := func(numbers ...int64) []audit.Hash {
			return must[[]audit.Hash](t)(s.hashes(t.Context(), s.read, nil, numbers))
		}
		node := func(l, r audit.Hash) audit.Hash { return sha256.Sum256(append(append([]byte{1}, l[:]...), r[:]...)) }
		have := stored(audit.LeafIndex(26), audit.LeafIndex(28)+1)
		top := node(node(audit.LeafHash(forged), have[0]), have[1])
		if _, err := s.write.ExecContext(t.Context(), s.rebind("UPDATE audit_hashes SET hash = ? WHERE number = ?"), top.String(), audit.LeafIndex(28)+2); err != nil {
			t.Fatal(err)
		}
		private := must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
		der := must[[]byte](t)(x509.MarshalPKIXPublicKey(private.Public()))
		sign := func(m []byte) ([]byte, error) {
			sum := sha256.Sum256(m)
			return ecdsa.SignASN1(rand.Reader, private, sum[:])
		}
		prove := func(tree audit.Checkpoint) error {
			note := must[string](t)(tree.Sign(der, sign))
			p := must[audit.Proof](t)(audit.Prove(25, forged, note, func(n []int64) ([]audit.Hash, error) { return s.hashes(t.Context(), s.read, nil, n) }))
			_, _, err := p.Verify(must[*audit.Key](t)(audit.NewKey(tree.Origin, der)))
			return err
		}
		if err := prove(must[audit.Checkpoint](t)(s.Tree(t.Context()))); err != nil {
			t.Fatalf("the attack is not what it should be: %v", err)
		}
		if tree, err := s.TreeSince(t.Context(), earlier); !errors.Is(err, ErrLogChanged) {
			t.Errorf("the tree would be signed (%v), and a record that is not in the log can be proved: %v", err, prove(tree))
		}
		if _, err := s.TreeSince(t.Context(), audit.Checkpoint{}); !errors.Is(err, ErrLogChanged) {
			t.Errorf("the first checkpoint would be signed: %v", err)
		}
	})
}

// TestProofOfStore: what the database proves, the key verifies.
func TestProofOfStore(t *testing.T) {
	both(t, func(t *testing.T, open func(string, time.Duration) *Store, c *clock) {
		s := one(open)
		for i := range 13 {
			if err := s.AddEvent(t.Context(), Event{Kind: "clock", Message: fmt.Sprint(i)}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := s.Prove(t.Context(), 3); !errors.Is(err, ErrNoCheckpoint) {
			t.Errorf("without a checkpoint: %v", err)
		}
		private := must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
		der := must[[]byte](t)(x509.MarshalPKIXPublicKey(private.Public()))
		tree := must[audit.Checkpoint](t)(s.Tree(t.Context()))
		note := must[string](t)(tree.Sign(der, func(m []byte) ([]byte, error) {
			sum := sha256.Sum256(m)
			return ecdsa.SignASN1(rand.Reader, private, sum[:])
		}))
		if err := s.AddCheckpoint(t.Context(), Checkpoint{tree.Size, c.Now(), note}); err != nil {
			t.Fatal(err)
		}
		if err := s.AddEvent(t.Context(), Event{Kind: "clock", Message: "later"}); err != nil {
			t.Fatal(err)
		}
		key := must[*audit.Key](t)(audit.NewKey(tree.Origin, der))
		for n := int64(1); n <= 13; n++ {
			p := must[audit.Proof](t)(s.Prove(t.Context(), n))
			if r, _, err := p.Verify(key); err != nil || r.N != n {
				t.Errorf("record %d: %v", n, err)
			}
		}
		if _, err := s.Prove(t.Context(), 14); !errors.Is(err, ErrNoCheckpoint) {
			t.Errorf("a record that is not signed yet: %v", err)
		}
		if _, err := s.Prove(t.Context(), 15); !errors.Is(err, ErrNoRecord) {
			t.Errorf("a record that is not there: %v", err)
		}
	})
}
