package daemon

import (
	"strings"
	"testing"
	"time"

	"hsmbridge/daemon/store"
)

// A key and its destination that wait for a person by the same error are told of once, with the destination; by two errors, twice.
func TestSameErrorOnce(t *testing.T) {
	eachDatabase(t, func(t *testing.T, database string) {
		t.Helper()
		d := still(t, fleet(t, database, 1, false), time.Now)
		defer d.store.Close() //nolint:errcheck // the test is over
		seen(t, d, "key-000000", arn(0, 0), true)
		if _, err := d.Pause(t.Context(), "alice", "key-000000", false); err != nil {
			t.Fatal(err)
		}
		wrong := func(ofDestination string) {
			t.Helper()
			if err := d.store.Tx(t.Context(), func(tx *store.Tx) error {
				if _, err := tx.ExecContext(t.Context(), "UPDATE keys SET needs_person = 1, error = 'another key', error_code = 'OtherKey' WHERE name = 'key-000000'"); err != nil {
					return err
				}
				_, err := tx.ExecContext(t.Context(), "UPDATE destinations SET needs_person = 1, error_code = 'OtherKey', error = '"+ofDestination+"' WHERE key_name = 'key-000000'")
				return err
			}); err != nil {
				t.Fatal(err)
			}
		}
		wrong("another key")
		if got := people(t, d, "key-000000"); len(got) != 1 || !strings.HasPrefix(got[0], arn(0, 0)) {
			t.Errorf("the same error: %q", got)
		}
		wrong("the proof failed")
		if got := people(t, d, "key-000000"); len(got) != 2 {
			t.Errorf("two errors: %q", got)
		}
	})
}

// A revoked key is not renewed, so it has no renewal.
func TestNoRenewalOfRevoked(t *testing.T) {
	eachDatabase(t, func(t *testing.T, database string) {
		t.Helper()
		d := still(t, fleet(t, database, 1, false), time.Now)
		defer d.store.Close() //nolint:errcheck // the test is over
		if _, err := d.store.See(t.Context(), []store.Seen{{Key: "key-000000", Destination: arn(0, 0), State: "Enabled", Present: true, Rotations: -1, ValidTo: time.Now().AddDate(0, 0, 90)}}); err != nil {
			t.Fatal(err)
		}
		for _, revoked := range []bool{false, true} {
			if revoked {
				if _, err := d.Revoke(t.Context(), "alice", "key-000000", "leak"); err != nil {
					t.Fatal(err)
				}
			}
			list, err := d.Keys(t.Context(), "key-000000")
			if err != nil || list[0].Renewals[0].IsZero() != revoked {
				t.Errorf("revoked: %t; renewals %v, %v", revoked, list, err)
			}
		}
	})
}
