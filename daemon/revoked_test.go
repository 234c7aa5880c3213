package daemon

import (
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"hsmbridge/daemon/control"
	"hsmbridge/daemon/store"
)

// seen has KMS show what it holds of a key.
func seen(t *testing.T, d *Daemon, key, destination string, present bool) {
	t.Helper()
	state := "PendingImport"
	if present {
		state = "Enabled"
	}
	if _, err := d.store.See(t.Context(), []store.Seen{{Key: key, Destination: destination, State: state, Present: present, Rotations: -1}}); err != nil {
		t.Fatal(err)
	}
}

// people are the entries about a key of what waits for a person, each with the command that goes on.
func people(t *testing.T, d *Daemon, key string) (out []string) {
	t.Helper()
	s, err := d.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range s.People {
		if p.Key == key {
			out = append(out, p.Destination+" "+p.Message+"; then "+p.Retry)
		}
	}
	return out
}

// The revocation of a key that the configuration has no more is told of: the key, what KMS holds of it still, and the job that deletes it or that there is none.
// A KMS key that another managed key feeds now is none of its.
func TestRevokedAndRemoved(t *testing.T) {
	eachDatabase(t, func(t *testing.T, database string) {
		t.Helper()
		now := time.Now().UTC().Truncate(time.Microsecond)
		d := still(t, fleet(t, database, 2, false), func() time.Time { return now })
		defer d.store.Close() //nolint:errcheck // the test is over
		for _, destination := range []string{arn(9, 0), arn(9, 1), arn(0, 0)} {
			seen(t, d, "gone", destination, true)
		}
		seen(t, d, "dropped", arn(8, 0), true)
		if err := d.store.Tx(t.Context(), func(tx *store.Tx) error {
			_, err := tx.ExecContext(t.Context(), "UPDATE destinations SET tried_at = 1 WHERE key_name = 'gone'")
			return err
		}); err != nil {
			t.Fatal(err)
		}
		if _, err := d.Keys(t.Context(), "gone"); err == nil || !strings.Contains(err.Error(), "has no key") {
			t.Errorf("a key that is in no configuration: %v", err)
		}
		j, err := d.Revoke(t.Context(), "alice", "gone", "leak")
		if err != nil {
			t.Fatal(err)
		}
		looks := func(present int, job int64) {
			t.Helper()
			s, err := d.Status(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			want := control.RemovedKey{Name: "gone", RevokedAt: now, RevokedBy: "alice", RevokedReason: "leak", Destinations: 2, Present: present, Job: job}
			if job != 0 {
				want.JobState = store.Queued
			}
			if s.Counts.Removed != 1 || s.Counts.Revoked != 0 || !slices.Equal(s.Removed, []control.RemovedKey{want}) {
				t.Errorf("removed are %+v, counted %+v, want %+v", s.Removed, s.Counts, want)
			}
			list, err := d.Keys(t.Context(), "gone")
			if err != nil {
				t.Fatal(err)
			}
			k := list[0]
			if !k.Removed || k.State.RevokedBy != "alice" || k.State.RevokedReason != "leak" || len(k.Destinations) != 2 || len(k.Renewals) != 2 || k.Destinations[0].Destination != arn(9, 0) || k.Destinations[0].Present != (present > 0) || (k.Deletion != nil) != (job != 0) {
				t.Errorf("the key is %+v", k)
			}
		}
		looks(2, j.ID)
		_, paused := d.Pause(t.Context(), "alice", "gone", false)
		_, queued := d.Queue(t.Context(), "alice", control.StartRequest{Keys: []string{"gone"}, Kind: store.KindImport})
		for what, err := range map[string]error{"pause": paused, "import": queued, "restore": d.Restore(t.Context(), "alice", "gone"), "waive": d.Waive(t.Context(), "alice", "gone", "test")} {
			if !errors.Is(err, control.ErrRefused) || !strings.Contains(err.Error(), "gone was revoked by alice") || !strings.Contains(err.Error(), "then hsmbridge reload, then hsmbridge restore gone") {
				t.Errorf("%s: %v", what, err)
			}
		}
		if got := people(t, d, "gone"); len(got) != 2 || !strings.HasPrefix(got[0], arn(9, 0)) || !strings.Contains(got[0], "see hsmbridge jobs gone; then hsmbridge retry gone") {
			t.Errorf("while its job is open: %q", got)
		}
		if _, err := d.store.Cancel(t.Context(), j.ID, "bob"); err != nil {
			t.Fatal(err)
		}
		looks(2, 0)
		if got := people(t, d, "gone"); len(got) != 2 || !strings.Contains(got[1], "no job does it") || !strings.HasSuffix(got[1], "; then hsmbridge revoke gone --reason WHY") {
			t.Errorf("without a job: %q", got)
		}
		seen(t, d, "gone", arn(9, 0), false)
		seen(t, d, "gone", arn(9, 1), false)
		looks(0, 0)
		if got := people(t, d, "gone"); len(got) != 0 {
			t.Errorf("when KMS holds nothing any more: %q", got)
		}

		// The same of a KMS key that the configuration of a key has no more.
		seen(t, d, "key-000001", arn(8, 1), true)
		if _, err := d.Revoke(t.Context(), "alice", "key-000001", "leak"); err != nil {
			t.Fatal(err)
		}
		if got := people(t, d, "key-000001"); len(got) != 1 || !strings.HasPrefix(got[0], arn(8, 1)+" the key is revoked, this KMS key is no longer in its configuration") {
			t.Errorf("a KMS key that was taken out: %q", got)
		}
	})
}

// A retry of a revoked key begins the deletion that is open or due, and is refused where there is none: it brings nothing back.
func TestRetryRevoked(t *testing.T) {
	d := still(t, fleet(t, filepath.Join(t.TempDir(), "x.db"), 1, false), time.Now)
	defer d.store.Close() //nolint:errcheck // the test is over
	const name = "key-000000"
	refused := func(key, says string) {
		t.Helper()
		since, err := d.store.LastEvent(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.Retry(t.Context(), "bob", key); !errors.Is(err, control.ErrRefused) || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want %s", key, err, says)
		}
		if now, err := d.store.LastEvent(t.Context()); err != nil || now != since {
			t.Errorf("%s: something was written down, %v", key, err)
		}
	}
	revoke := func(key string) (id int64) {
		t.Helper()
		j, err := d.Revoke(t.Context(), "alice", key, "leak")
		if err != nil {
			t.Fatal(err)
		}
		return j.ID
	}
	begins := func(key string, id int64) {
		t.Helper()
		if list, err := d.Retry(t.Context(), "bob", key); err != nil || len(list) != 1 || list[0].Kind != store.KindRevoke || id != 0 && list[0].ID != id {
			t.Errorf("%s: %+v, %v", key, list, err)
		}
	}
	cancel := func(id int64) {
		t.Helper()
		if _, err := d.store.Cancel(t.Context(), id, "bob"); err != nil {
			t.Fatal(err)
		}
	}
	seen(t, d, name, arn(0, 0), false)
	first := revoke(name)
	begins(name, first)
	cancel(first)
	refused(name, "was revoked by alice at ")
	refused(name, ": nothing is imported for it, and nothing was tried; hsmbridge restore key-000000 takes the revocation back, and the key is imported into KMS again")
	seen(t, d, name, arn(0, 0), true)
	begins(name, 0)

	seen(t, d, "gone", arn(9, 0), true)
	if _, err := d.Retry(t.Context(), "bob", "gone"); !errors.Is(err, control.ErrNotFound) {
		t.Errorf("a key that is in no configuration and not revoked: %v", err)
	}
	first = revoke("gone")
	begins("gone", first)
	cancel(first)
	refused("gone", "; hsmbridge revoke gone --reason WHY begins that again; nothing was tried")
	seen(t, d, "gone", arn(9, 0), false)
	refused("gone", "was revoked by alice at ")
	refused("gone", " and is no longer in the configuration; there is nothing to try again")
}

// What waits for a person of a revoked key is forgotten by the command that status names for it. It does not lead to a restore, which would bring into KMS what was
// revoked, and nothing is imported.
func TestRetryRevokedThatNeedsAPerson(t *testing.T) {
	for table, of := range map[string]string{"keys": "name", "destinations": "key_name"} {
		t.Run(table, func(t *testing.T) {
			d := still(t, fleet(t, filepath.Join(t.TempDir(), "x.db"), 1, false), time.Now)
			defer d.store.Close() //nolint:errcheck // the test is over
			const name = "key-000000"
			seen(t, d, name, arn(0, 0), false)
			j, err := d.Revoke(t.Context(), "alice", name, "leak")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := d.store.Cancel(t.Context(), j.ID, "bob"); err != nil {
				t.Fatal(err)
			}
			if err := d.store.Tx(t.Context(), func(tx *store.Tx) error { // as a reconcile leaves it that KMS refused
				_, err := tx.ExecContext(t.Context(), "UPDATE "+table+" SET needs_person = 1, error = 'no', error_class = 'kms', error_code = 'AccessDeniedException' WHERE "+of+" = 'key-000000'")
				return err
			}); err != nil {
				t.Fatal(err)
			}
			if got := people(t, d, name); table == "keys" && !slices.Equal(got, []string{" no; then hsmbridge retry key-000000"}) {
				t.Errorf("waits for a person: %q", got)
			}
			if s, err := d.snapshot(t.Context()); err != nil || !s.NeedPerson[name] {
				t.Errorf("the alert: %v, %v", s.NeedPerson, err)
			}
			if list, err := d.Retry(t.Context(), "bob", name); err != nil || len(list) != 0 {
				t.Errorf("it begins %+v, %v", list, err)
			}
			if got := people(t, d, name); len(got) != 0 {
				t.Errorf("afterwards waits for a person: %q", got)
			}
			if s, err := d.snapshot(t.Context()); err != nil || s.NeedPerson[name] {
				t.Errorf("the alert afterwards: %v, %v", s.NeedPerson, err)
			}
			if known, err := d.knownOf(t.Context(), []string{name}); err != nil || !known.keys[name].Revoked() {
				t.Errorf("the key is %+v, %v", known.keys[name], err)
			}
			if _, err := d.Retry(t.Context(), "bob", name); !errors.Is(err, control.ErrRefused) {
				t.Errorf("with nothing to forget: %v", err)
			}
		})
	}
}

// A job that deletes key material is not cancelled where the planner would make it anew at once. Where it is cancelled it is said what is left.
func TestCancelRevocation(t *testing.T) {
	d := still(t, fleet(t, filepath.Join(t.TempDir(), "x.db"), 3, false), time.Now)
	defer d.store.Close() //nolint:errcheck // the test is over
	for _, tc := range []struct {
		key, destination string
		present          bool
		refused          string
		left             []string
	}{
		{"key-000000", arn(0, 0), true, "cancelled, it would be begun again at once, because KMS held the material when it was asked last; to have the key back run hsmbridge restore key-000000,", nil},
		{"key-000001", arn(1, 0), false, "", []string{"key-000001 stays revoked and is not imported, and KMS may hold its material still.", "looks at its KMS keys every 15m, and begins the deletion again where one holds it"}},
		{"key-000002", arn(9, 2), true, "", []string{"looks at its KMS keys every 15m", "(when KMS was asked last, 1 held it), and nothing begins their deletion again but hsmbridge revoke key-000002 --reason WHY"}},
		{"gone", arn(9, 0), true, "", []string{"gone stays revoked and is not imported", "when KMS was asked last, 1 held it", "hsmbridge revoke gone --reason WHY"}},
	} {
		seen(t, d, tc.key, tc.destination, tc.present)
		j, err := d.Revoke(t.Context(), "alice", tc.key, "leak")
		if err != nil {
			t.Fatal(err)
		}
		left, err := d.Cancel(t.Context(), "bob", j.ID)
		if tc.refused != "" {
			if !errors.Is(err, control.ErrRefused) || !strings.Contains(err.Error(), tc.refused) {
				t.Errorf("%s: %q, %v", tc.key, left, err)
			}
		} else if err != nil {
			t.Errorf("%s: %v", tc.key, err)
		}
		for _, want := range tc.left {
			if !strings.Contains(left, want) {
				t.Errorf("%s: what is left is %q, want %q", tc.key, left, want)
			}
		}
		if err := d.plan(t.Context()); err != nil { // it was said what the planner does
			t.Fatal(err)
		}
		open, err := d.deletion(t.Context(), tc.key)
		if err != nil || (open != nil) != (tc.refused != "") {
			t.Errorf("%s: afterwards the open job is %+v, %v", tc.key, open, err)
		}
	}
	j, err := d.store.AddJobs(t.Context(), []store.Job{{Key: "key-000001", Kind: store.KindReconcile, RequestedBy: "alice"}}, d.queue.Enqueue)
	if err != nil {
		t.Fatal(err)
	}
	if left, err := d.Cancel(t.Context(), "bob", j[0].ID); err != nil || left != "" {
		t.Errorf("a job of another kind: %q, %v", left, err)
	}
	if _, err := d.Cancel(t.Context(), "bob", j[0].ID); !errors.Is(err, control.ErrRefused) {
		t.Errorf("one that is over: %v", err)
	}
}
