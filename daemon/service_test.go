package daemon

import (
	"errors"
	"strings"
	"testing"
	"time"

	"hsmbridge/daemon/control"
	"hsmbridge/daemon/store"
)

// What makes no sense is refused before anything is queued or noted. A rotation that is "renewed" would be done a second time, and KMS allows 25.
func TestRefusedRequests(t *testing.T) {
	eachDatabase(t, func(t *testing.T, database string) {
		t.Helper()
		d := still(t, fleet(t, database, 1, true), time.Now)
		defer d.store.Close() //nolint:errcheck // the test is over
		before, err := d.store.LastEvent(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		long := strings.Repeat("ä", 1001)
		start := func(r control.StartRequest) error {
			r.Keys = []string{"key-000000"}
			_, err := d.Queue(t.Context(), "alice", r)
			return err
		}
		revoke := func(reason string) error {
			_, err := d.Revoke(t.Context(), "alice", "key-000000", reason)
			return err
		}
		for name, err := range map[string]error{
			"a rotation that is a renewal": start(control.StartRequest{Kind: store.KindRotate, Renew: true}),
			"a drill of a rotation":        start(control.StartRequest{Kind: store.KindRotate, Drill: true}),
			"a look that is a renewal":     start(control.StartRequest{Kind: store.KindReconcile, Renew: true}),
			"a long why":                   start(control.StartRequest{Kind: store.KindImport, Renew: true, Why: long}),
			"a long reason":                revoke(long),
			"no reason":                    revoke(" "),
		} {
			if !errors.Is(err, control.ErrRefused) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if after, err := d.store.LastEvent(t.Context()); err != nil || after != before {
			t.Errorf("the log has %d records, %d before; %v", after, before, err)
		}
		if err := revoke(long[:2*1000]); err != nil {
			t.Errorf("a reason of 1000 characters: %v", err)
		}
	})
}
