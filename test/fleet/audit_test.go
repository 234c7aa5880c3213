package fleet

import (
	"context"
	"crypto/rand"
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	_ "modernc.org/sqlite" // the driver "sqlite"

	"hsmbridge/daemon/approval"
	"hsmbridge/daemon/audit"
	"hsmbridge/daemon/control"
	"hsmbridge/daemon/store"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/kmsclient/kmsemu"
)

// kindsSince are the kinds of the records behind a number, without those of looks that change nothing.
func (p *process) kindsSince(n int64) (kinds []string, last int64) {
	p.t.Helper()
	for _, e := range p.events("") {
		last = max(last, e.ID)
		if e.ID > n && e.Kind != "observed" && e.Kind != "clock" {
			kinds = append(kinds, e.Kind)
		}
	}
	return kinds, last
}

// inOrder says that the wanted kinds stand in a list in this order; others may stand between them.
func inOrder(list []string, want string) error {
	at := 0
	for _, w := range strings.Fields(want) {
		for at < len(list) && list[at] != w {
			at++
		}
		if at == len(list) {
			return fmt.Errorf("%q is not there, or not in its place: %s; want in this order %s", w, strings.Join(list, " "), want)
		}
		at++
	}
	return nil
}

// A key's whole life stands in the log, and each thing in its order: nothing is wrapped before it was asked for, approved and allowed, and
// every configuration, failure and decision has its record.
func TestWholeLifeIsLogged(t *testing.T) {
	t.Parallel()
	w := newWorld(t, kmsemu.Options{})
	arn := w.key("k", wrapping.SymmetricDefault, "prove: true", "rotate_every: 270d")
	o := w.officers()
	p := w.start("first", "")
	ctx, c := t.Context(), p.client
	ready := func() bool { s, err := c.Status(ctx); return err == nil && s.Ready }
	until(t, "the start", ready)
	var last int64
	step := func(what, want string, do func(), done func() bool) {
		t.Helper()
		do()
		until(t, what, func() bool { k, _ := p.kindsSince(last); return inOrder(k, want) == nil && done() })
		_, last = p.kindsSince(0)
	}
	no := func(err error) {
		t.Helper()
		if err != nil {
			t.Error(err)
		}
	}
	always := func() bool { return true }
	approve := func() {
		t.Helper()
		until(t, "a request", func() bool { return len(o.open(ctx, c)) > 0 })
		for _, r := range o.open(ctx, c) {
			for i := range 2 {
				sig, err := o.sign(i, r.Text)
				no(err)
				_, err = c.Approve(ctx, r.Name, sig)
				no(err)
			}
		}
	}
	step("the start and the question", "start queued generate preflight intent request finished", func() {}, func() bool { return len(o.open(ctx, c)) == 1 })
	step("a rejection", "rejection rejected", func() {
		r := o.open(ctx, c)[0]
		text, err := approval.RejectionText([]byte(r.Text), "not today")
		no(err)
		sig, err := o.signers[0].Sign(rand.Reader, approval.ToSign(approval.RejectionNamespace, text))
		no(err)
		_, err = c.Reject(ctx, r.Name, "not today", approval.Armor(o.signers[0].PublicKey(), approval.RejectionNamespace, sig))
		no(err)
	}, func() bool { jobs := openJobs(ctx, c); return jobs == 0 })
	p.ask(store.KindImport, "k", false)
	step("the import", "approval approval approved preflight intent parameters allowed wrap import parameters allowed wrap import proof outcome used finished", approve, func() bool { return w.emu.State(arn) == "Enabled" && openJobs(ctx, c) == 0 })
	p.ask(store.KindImport, "k", true)
	step("the renewal", "approval approved preflight intent parameters allowed wrap import outcome used finished", approve, func() bool { return openJobs(ctx, c) == 0 })
	p.ask(store.KindRotate, "k", false)
	step("the rotation", "generation request approved allowed wrap import rotate rotated finished", approve, func() bool { return openJobs(ctx, c) == 0 })
	step("a reload", "reload", func() { no(c.Reload(ctx)) }, always)
	path := w.config("first", "")
	good := readFile(t, path)
	step("a reload that is refused", "reload", func() {
		if err := os.WriteFile(path, []byte(good+"nonsense: 1\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := c.Reload(ctx); err == nil {
			t.Error("it was taken")
		}
		if err := os.WriteFile(path, []byte(good), 0o600); err != nil {
			t.Fatal(err)
		}
	}, always)
	step("the stop", "stop start", func() {
		if err := p.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		<-p.done
		p = w.launch("first", path)
		c = p.client
		until(t, "the next start", ready)
	}, always)
	if n := everyWrapApproved(t, p.events("")); n < 4 {
		t.Errorf("only %d wraps are told", n)
	}
}

func openJobs(ctx context.Context, c *control.Client) (n int) {
	jobs, err := c.Jobs(ctx, store.JobFilter{})
	if err != nil {
		return -1
	}
	for _, j := range jobs {
		if j.State.Open() {
			n++
		}
	}
	return n
}

// Nothing is done whose record cannot be added: with the log refusing one kind after another the import stops before what would come next,
// and it goes on by itself when the log can be written again.
func TestNoRecordNoImport(t *testing.T) {
	t.Parallel()
	w := newWorld(t, kmsemu.Options{})
	path := filepath.Join(w.dir, "hsmbridge.db")
	w.key("first", wrapping.HMAC256)
	p := w.start("one", "")
	p.settled()
	db, err := sql.Open("sqlite", "file:"+path+"?_pragma=busy_timeout(20000)")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close() //nolint:errcheck // the end of the test
	exec := func(statement string) {
		t.Helper()
		if _, err := db.ExecContext(t.Context(), statement); err != nil { //nolint:gosec // statements of this test
			t.Fatal(err)
		}
	}
	for i, kind := range []string{"reload", "preflight", "intent", "parameters", "wrap"} {
		exec("CREATE TRIGGER no BEFORE INSERT ON events WHEN NEW.kind = '" + kind + "' BEGIN SELECT RAISE(ABORT, 'the log is full'); END")
		name := fmt.Sprintf("k%d", i)
		arn := w.key(name, wrapping.HMAC256)
		w.config("one", "")
		err := p.client.Reload(t.Context())
		if kind == "reload" {
			if err == nil || !strings.Contains(err.Error(), "the log is full") {
				t.Errorf("the configuration was taken: %v", err)
			}
			if s, err := p.client.Status(t.Context()); err != nil || s.Counts.Keys != 1 {
				t.Errorf("the keys of a configuration that is not in the log count: %v", err)
			}
		} else {
			if err != nil {
				t.Fatal(err)
			}
			until(t, "the job that fails at "+kind, func() bool { return strings.Contains(readFile(t, p.log), "the log is full") })
			if got := w.emu.State(arn); got != "PendingImport" {
				t.Errorf("without the record %s KMS has the key in state %s", kind, got)
			}
			for _, e := range p.events(name) {
				if e.Kind == kind || e.Kind == "import" || kind != "wrap" && e.Kind == "wrap" {
					t.Errorf("without the record %s there is %s", kind, e.Kind)
				}
			}
		}
		exec("DROP TRIGGER no")
		if kind == "reload" {
			if err := p.client.Reload(t.Context()); err != nil {
				t.Fatal(err)
			}
		} else {
			_, _ = p.client.Retry(t.Context(), name) // it may begin by itself
		}
		until(t, "the import of "+name, func() bool { return w.emu.State(arn) == "Enabled" })
		if err := os.Truncate(p.log, 0); err != nil {
			t.Fatal(err)
		}
	}
}

// Whoever can write the database writes another history, with all its hashes, and takes the signed checkpoints away that would contradict it.
// The daemon does not have the HSM sign that history beside the one that it signed before.
func TestAnotherHistoryIsNotSigned(t *testing.T) {
	t.Parallel()
	w := newWorld(t, kmsemu.Options{})
	w.extra += "audit: {token: hsm, uri: \"pkcs11:object=hsmbridge-audit;type=private\", generate: if-missing}\n"
	w.key("k", wrapping.HMAC256)
	p := w.start("one", "")
	p.settled()
	ctx := t.Context()
	if _, err := p.client.AuditCheckpoint(ctx, true); err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite", "file:"+filepath.Join(w.dir, "hsmbridge.db")+"?_pragma=busy_timeout(20000)&_txlock=immediate")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close() //nolint:errcheck // the end of the test
	if err := rewrite(ctx, db); err != nil {
		t.Fatal(err)
	}
	c, err := p.client.AuditCheckpoint(ctx, true)
	if err == nil || !strings.Contains(err.Error(), "is not the one that was signed at") {
		t.Errorf("a second history was signed: %v\n%s", err, c.Note)
	}
	if s, err := p.client.Status(ctx); err != nil || s.Audit.Signed != 0 {
		t.Errorf("got %+v, %v", s.Audit, err)
	}
}

// rewrite changes what the first record says, with all hashes of the tree, and removes the checkpoints.
func rewrite(ctx context.Context, db *sql.DB) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() //nolint:errcheck // after Commit there is nothing to take back
	rows, err := tx.QueryContext(ctx, "SELECT record FROM events ORDER BY id")
	if err != nil {
		return err
	}
	defer rows.Close() //nolint:errcheck // Err is looked at
	var records []string
	for rows.Next() {
		var r string
		if err := rows.Scan(&r); err != nil {
			return err
		}
		records = append(records, r)
	}
	if err := rows.Err(); err != nil {
		return err
	}
	first, err := audit.Decode([]byte(records[0]))
	if err != nil {
		return err
	}
	first.Message = "another history"
	raw, err := first.Encode()
	if err != nil {
		return err
	}
	records[0] = string(raw)
	if _, err := tx.ExecContext(ctx, "DELETE FROM checkpoints; DELETE FROM audit_hashes"); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, "UPDATE events SET record = ?, message = ? WHERE id = 1", records[0], first.Message); err != nil {
		return err
	}
	var stored []audit.Hash
	read := func(indexes []int64) ([]audit.Hash, error) {
		var out []audit.Hash
		for _, n := range indexes {
			out = append(out, stored[n])
		}
		return out, nil
	}
	for i, r := range records {
		_, hashes, err := audit.Append(int64(i)+1, audit.LeafHash([]byte(r)), read)
		if err != nil {
			return err
		}
		for _, h := range hashes {
			if _, err := tx.ExecContext(ctx, "INSERT INTO audit_hashes (number, hash) VALUES (?, ?)", len(stored), h.String()); err != nil {
				return err
			}
			stored = append(stored, h)
		}
	}
	return tx.Commit()
}
