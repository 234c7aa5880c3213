package store

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// Ended is a place in the order in which jobs ended.
type Ended struct {
	At  time.Time
	Job int64
}

// Dropped is what a batch of [Store.DropJobs] deleted, and how far it came.
type Dropped struct {
	Jobs, Imports int64
	Until         Ended // the last job that was looked at
	More          bool  // there may be others behind it
}

// DropJobs deletes jobs that ended before a time, with the rows of their imports, of at most so many that ended behind a
// place; with the event that says so, in one transaction that needs the lease. It leaves
//   - jobs that are open, and those for which a request is open,
//   - the last job of each key, destination, kind, reason and state,
//   - the last import of each key, destination, generation and result, which also tells whether a key was ever imported,
//   - the audit log.
//
// Nothing that is due is decided by what it deletes: that stands in the destinations, the keys and the audit log.
func (s *Store) DropJobs(ctx context.Context, l *Lease, before time.Time, after Ended, batch int) (d Dropped, err error) {
	err = s.Tx(ctx, func(tx *Tx) error {
		d = Dropped{Until: after}
		if err := tx.hold(ctx, l); err != nil {
			return err
		}
		type row struct {
			Ended
			drop bool
		}
		// The last of each kind are looked at in each pass and stay; the index is in the order in which jobs end.
		list, err := query(ctx, s, tx, func(scan func(...any) error) (row, error) {
			var r row
			var last, at int64
			err := scan(&at, &r.Job, &last)
			r.At, r.drop = stamp(at), last == 0
			return r, err
		}, `SELECT finished_at, id, CASE WHEN state IN ('done', 'failed', 'cancelled') AND EXISTS (SELECT 1 FROM jobs AS later WHERE later.key_name = jobs.key_name AND later.destination = jobs.destination AND later.kind = jobs.kind
				AND later.reason = jobs.reason AND later.state = jobs.state AND later.id > jobs.id)
			AND NOT EXISTS (SELECT 1 FROM requests WHERE requests.job_id = jobs.id AND requests.state IN ('open', 'approved')) THEN 0 ELSE 1 END
			FROM jobs WHERE finished_at > 0 AND finished_at < ? AND (finished_at, id) > (?, ?) ORDER BY finished_at, id LIMIT ?`,
			micros(before), micros(after.At), after.Job, batch)
		if err != nil || len(list) == 0 {
			return err
		}
		d.Until, d.More = list[len(list)-1].Ended, len(list) == batch
		var ids []any
		for _, r := range list {
			if r.drop {
				ids = append(ids, r.Job)
			}
		}
		if len(ids) == 0 {
			return nil
		}
		these := "(" + strings.TrimPrefix(strings.Repeat(", ?", len(ids)), ", ") + ")"
		if d.Imports, err = tx.exec(ctx, `DELETE FROM imports WHERE job_id IN `+these+` AND EXISTS (SELECT 1 FROM imports AS later WHERE later.key_name = imports.key_name
			AND later.destination = imports.destination AND later.generation = imports.generation AND later.result = imports.result AND later.id > imports.id)`, ids...); err != nil {
			return err
		}
		if d.Jobs, err = tx.exec(ctx, "DELETE FROM jobs WHERE id IN "+these, ids...); err != nil {
			return err
		}
		return tx.event(ctx, Event{Kind: "retention", Message: fmt.Sprintf("%d jobs that ended before %s were deleted, and %d rows of their imports", d.Jobs, before.UTC().Format(time.RFC3339), d.Imports)})
	})
	return d, err
}
