package fleet

import (
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"hsmbridge/daemon"
	"hsmbridge/daemon/control"
	"hsmbridge/daemon/importer"
	"hsmbridge/daemon/store"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/kmsclient/kmsemu"
)

// Of an import KMS does not show whether it took it. The daemon says so and tries it again. When the key is gone from the token meanwhile, none is
// made in its place: KMS may have that one.
func TestUnknownOutcome(t *testing.T) {
	t.Parallel()
	w := newWorld(t, kmsemu.Options{})
	arn := w.key("mac", wrapping.HMAC256)
	var lost atomic.Bool
	lost.Store(true)
	w.hook(func(op string) {
		if op == "ImportKeyMaterial" && lost.Load() {
			panic(http.ErrAbortHandler)
		}
	}, nil)
	x := monitor(t, w, func(*daemon.Options) {})
	begin(t, x.Daemon)
	c := control.NewClient(w.socket("one"))
	job := waits(t, c, "mac")
	if job.ErrorClass != "kms" || !strings.Contains(job.Error, "whether KMS imported mac is not known") {
		t.Errorf("the job is %s", asJSON(job))
	}
	rows, err := c.Imports(t.Context(), "mac", 0, 10)
	if err != nil || len(rows) == 0 || rows[0].Result != string(importer.Unknown) || rows[0].Error != job.Error {
		t.Errorf("the imports are %s, %v", asJSON(rows), err)
	}
	if _, body := x.get(t, "/metrics"); !strings.Contains(body, `hsmbridge_imports_total{action="import",result="unknown"}`) || strings.Contains(body, `result="failed"`) {
		t.Errorf("the metrics are %s", body)
	}
	w.token.Tool(t, "--login", "--pin", w.token.PIN, "--delete-object", "--type", "secrkey", "--label", "mac")
	lost.Store(false)
	if err := c.Job(t.Context(), "retry", job.ID); err != nil {
		t.Log(err) // it has begun by itself
	}
	until(t, "the end of the job", func() bool {
		list, err := c.Jobs(t.Context(), store.JobFilter{ID: job.ID})
		return err == nil && len(list) == 1 && list[0].State == store.Failed
	})
	if got := w.objects(); len(got) != 0 || w.emu.State(arn) == "Enabled" {
		t.Errorf("the token holds %v, and the KMS key is %s", got, w.emu.State(arn))
	}
}

// Of an import KMS shows only later that it took it, when the key was revoked meanwhile and the revocation found nothing. The daemon goes on looking at
// such a KMS key, and deletes what came late.
func TestRevokedUnknown(t *testing.T) {
	t.Parallel()
	w := newWorld(t, kmsemu.Options{})
	w.kms = ", watch_every: 1m"
	arn := w.key("mac", wrapping.HMAC256)
	w.emu.SetLag(10 * time.Minute)
	w.hook(nil, func(op string) {
		if op == "ImportKeyMaterial" {
			panic(http.ErrAbortHandler)
		}
	})
	var later atomic.Int64
	x := monitor(t, w, func(o *daemon.Options) {
		o.Now = func() time.Time { return time.Now().Add(time.Duration(later.Load())) }
	})
	begin(t, x.Daemon)
	c := control.NewClient(w.socket("one"))
	until(t, "an import of which nothing is known", func() bool {
		rows, err := c.Imports(t.Context(), "mac", 0, 10)
		return err == nil && len(rows) > 0 && rows[0].Result == string(importer.Unknown)
	})
	w.emu.SetLag(0)
	if _, err := c.Revoke(t.Context(), "mac", control.ReasonRequest{Reason: "leak", Confirm: "mac"}); err != nil {
		t.Fatal(err)
	}
	until(t, "the end of the revocation", func() bool {
		list, err := c.Jobs(t.Context(), store.JobFilter{Key: "mac"})
		return err == nil && slices.ContainsFunc(list, func(j store.Job) bool { return j.Kind == store.KindRevoke && j.State == store.Done })
	})
	if n := w.emu.Count("DeleteImportedKeyMaterial"); n > 0 {
		t.Fatalf("%d deletions of what KMS does not show yet", n)
	}
	w.emu.Advance(11 * time.Minute)
	if s := w.emu.State(arn); s != "Enabled" {
		t.Fatalf("the KMS key is %s", s)
	}
	later.Store(int64(11 * time.Minute))
	until(t, "the deletion of what came late", func() bool { return w.emu.State(arn) == "PendingImport" })
}

// KMS shows a deletion later than it takes it: the revocation is done when it is taken, and is not begun again until it shows.
func TestRevokedNotShown(t *testing.T) {
	t.Parallel()
	w := newWorld(t, kmsemu.Options{})
	arn := w.key("mac", wrapping.HMAC256)
	p := w.start("one", "")
	p.settled()
	w.emu.SetLag(10 * time.Minute)
	if _, err := p.client.Revoke(t.Context(), "mac", control.ReasonRequest{Reason: "leak", Confirm: "mac"}); err != nil {
		t.Fatal(err)
	}
	p.settled()
	if d := p.destination("mac"); d.Present || d.State != "PendingImport" || w.emu.Count("DeleteImportedKeyMaterial") != 1 {
		t.Errorf("%d deletions of %s: %s", w.emu.Count("DeleteImportedKeyMaterial"), arn, asJSON(d))
	}
}

// A daemon that meets a key which KMS holds already says so, also when the proof cannot be made.
func TestHeldAndNotProved(t *testing.T) {
	t.Parallel()
	w := newWorld(t, kmsemu.Options{})
	w.key("aes", wrapping.SymmetricDefault)
	earlier := w.start("zero", filepath.Join(w.dir, "another.db"))
	earlier.settled()
	earlier.kill()
	w.hook(func(op string) {
		if op == "ImportKeyMaterial" {
			panic(http.ErrAbortHandler)
		}
	}, nil)
	x := monitor(t, w, func(*daemon.Options) {})
	begin(t, x.Daemon)
	c := control.NewClient(w.socket("one"))
	job := waits(t, c, "aes")
	if !strings.HasPrefix(job.Error, "KMS holds the key as before, its proof failed: ") {
		t.Errorf("the job is %s", asJSON(job))
	}
	if s, err := c.Status(t.Context()); err != nil || s.Counts.Ready != 1 || s.Counts.Missing != 0 || s.Counts.Unseen != 0 {
		t.Errorf("%+v, %v", s.Counts, err)
	}
}
