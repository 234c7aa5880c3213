package daemon

import (
	"testing"
	"time"

	"hsmbridge/daemon/store"
)

// What nobody has seen is left to its import at first, which looks too. When none came, as where a token cannot be opened, KMS is asked all the same.
func TestUnseenIsLookedAt(t *testing.T) {
	eachDatabase(t, func(t *testing.T, database string) {
		t.Helper()
		now := time.Now()
		d := still(t, fleet(t, database, 3, true), func() time.Time { return now })
		defer d.store.Close() //nolint:errcheck // the test is over
		every := d.config.Load().KMS.Watch()
		looks := func() map[string]bool {
			list, err := d.unseen(t.Context(), 100)
			if err != nil {
				t.Fatal(err)
			}
			out := map[string]bool{}
			for _, x := range list {
				out[x.dest.ARN] = true
			}
			return out
		}
		if _, err := d.store.See(t.Context(), []store.Seen{{Key: "key-000001", Destination: arn(1, 0), State: "Enabled", Present: true, Rotations: -1}}); err != nil {
			t.Fatal(err)
		}
		if got := looks(); len(got) != 0 {
			t.Errorf("at once: %v", got)
		}
		now = now.Add(every + time.Second)
		if got := looks(); !got[arn(0, 0)] || !got[arn(1, 1)] || !got[arn(2, 1)] {
			t.Errorf("later: %v", got)
		}
		s, err := d.snapshot(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		names := map[string]bool{}
		for _, x := range s.Unseen {
			names[x.Destination] = true
		}
		if len(names) != 5 || names[arn(1, 0)] || len(s.Destinations) != 1 || s.Destinations[0].Destination != arn(1, 0) {
			t.Errorf("unseen are %v, and the others %+v", s.Unseen, s.Destinations)
		}
	})
}
