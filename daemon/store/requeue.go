package store

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// tooFar is longer than any job waits: a time that lies further ahead was written under a wrong clock.
const tooFar = 8 * time.Hour

const notPaused = "NOT EXISTS (SELECT 1 FROM keys WHERE keys.name = jobs.key_name AND keys.paused_at <> 0)"

// Wake queues waiting jobs whose time has come, and those that failed with one of the codes parks when no token is parked any more: a
// person may have said so in the moment in which the job began to wait.
func (s *Store) Wake(ctx context.Context, parks []string, enqueue Enqueue) (n int, err error) {
	args := []any{micros(s.now()), micros(s.now().Add(tooFar))}
	for _, code := range parks {
		args = append(args, code)
	}
	unparked := "(error_code IN ('-'" + strings.Repeat(", ?", len(parks)) + ") AND NOT EXISTS (SELECT 1 FROM parked) AND NOT EXISTS (SELECT 1 FROM parked_here))"
	err = s.Tx(ctx, func(tx *Tx) error {
		list, err := query(ctx, s, tx, scanJob, selectJobs+" WHERE state = 'waiting' AND (not_before <= ? OR not_before > ? OR "+unparked+") AND (kind = 'revoke' OR "+notPaused+") ORDER BY not_before LIMIT 500", args...)
		if err != nil || len(list) == 0 {
			return err
		}
		n = len(list)
		_, err = tx.requeue(ctx, list, enqueue)
		return err
	})
	return n, err
}

// Hurry lets a waiting job begin now, and gives false if there is none.
func (s *Store) Hurry(ctx context.Context, id int64, actor string, enqueue Enqueue) (found bool, err error) {
	err = s.noted(ctx, func(tx *Tx) error {
		list, err := query(ctx, s, tx, scanJob, selectJobs+" WHERE state = 'waiting' AND id = ?", id)
		if err != nil || len(list) == 0 {
			return err
		}
		found = true
		if err := tx.event(ctx, Event{Kind: "retry", Actor: actor, Key: list[0].Key, Destination: list[0].Destination, Job: id, Message: "asked to try again now"}); err != nil {
			return err
		}
		_, err = tx.requeue(ctx, list, enqueue)
		return err
	})
	return found, err
}

// HurryToken lets the jobs begin now that wait for a token, also those that other tokens can do as well.
func (s *Store) HurryToken(ctx context.Context, token string, enqueue Enqueue) (n int, err error) {
	err = s.Tx(ctx, func(tx *Tx) error {
		list, err := query(ctx, s, tx, scanJob, selectJobs+" WHERE state = 'waiting' AND ',' || token || ',' LIKE ? AND error_class IN ('token', 'session', 'library')", "%,"+token+",%")
		if err != nil || len(list) == 0 {
			return err
		}
		n = len(list)
		_, err = tx.requeue(ctx, list, enqueue)
		return err
	})
	return n, err
}

// Reclaim queues running jobs again whose daemon is gone: with own, those that this daemon's earlier life left behind, which is for
// its start; without, those whose lease has ended.
func (s *Store) Reclaim(ctx context.Context, own bool, enqueue Enqueue) (list []Job, err error) {
	err = s.Tx(ctx, func(tx *Tx) error {
		condition, args := "NOT EXISTS (SELECT 1 FROM locks WHERE locks.name = jobs.key_name AND locks.owner = jobs.daemon AND locks.until >= {{clock}})", []any{}
		if own {
			if err := tx.eventsInOrder(ctx); err != nil {
				return err
			}
			if _, err := tx.exec(ctx, "UPDATE locks SET until = 0, owner = '' WHERE owner = ?", s.daemon); err != nil {
				return err
			}
			condition, args = "daemon = ?", []any{s.daemon}
		}
		list, err = query(ctx, s, tx, scanJob, selectJobs+" WHERE state = 'running' AND "+condition, args...)
		if err != nil || len(list) == 0 {
			return err
		}
		if err := tx.eventsInOrder(ctx); err != nil { // not for nothing in each minute
			return err
		}
		if list, err = tx.requeue(ctx, list, enqueue); err != nil {
			return err
		}
		for _, j := range list {
			// Whoever has it still and was only slow is told so: its fence is not the last one any more.
			if _, err := tx.exec(ctx, "UPDATE locks SET until = 0, owner = '', fence = fence + 1 WHERE name = ? AND owner = ? AND until < {{clock}}", j.Key, j.Daemon); err != nil {
				return err
			}
			e := Event{Kind: "reclaimed", Key: j.Key, Destination: j.Destination, Job: j.ID, Message: fmt.Sprintf("%s ended in the middle of the job; it is done again from what KMS shows", j.Daemon)}
			if err := tx.event(ctx, e); err != nil {
				return err
			}
		}
		return nil
	})
	return list, err
}

// Orphans queues jobs again that the queue has lost: somebody took them out of it and ended, or was frozen, before the job began. pending
// is how many the queue has; while it has all, nothing is done. A job that is queued twice is done once.
func (s *Store) Orphans(ctx context.Context, pending int, after time.Duration, enqueue Enqueue) (n int, err error) {
	err = s.Tx(ctx, func(tx *Tx) error {
		var queued int
		if err := tx.QueryRowContext(ctx, "SELECT count(*) FROM jobs WHERE state = 'queued'").Scan(&queued); err != nil {
			return fmt.Errorf("database: %w", err)
		}
		if queued <= pending {
			return nil
		}
		list, err := query(ctx, s, tx, scanJob, selectJobs+" WHERE state = 'queued' AND queued_at < {{clock}} - ? ORDER BY queued_at LIMIT 500", after.Microseconds())
		if err != nil || len(list) == 0 {
			return err
		}
		n = len(list)
		_, err = tx.requeue(ctx, list, enqueue)
		return err
	})
	return n, err
}

// requeue queues jobs again that are still as they were read, and gives those: another daemon may have been faster.
func (tx *Tx) requeue(ctx context.Context, list []Job, enqueue Enqueue) (mine []Job, err error) {
	for _, j := range list {
		n, err := tx.exec(ctx, "UPDATE jobs SET state = 'queued', not_before = 0, queued_at = {{clock}} WHERE id = ? AND state = ? AND attempts = ?", j.ID, j.State, j.Attempts)
		if err != nil {
			return nil, err
		}
		if n > 0 {
			mine = append(mine, j)
		}
	}
	if len(mine) == 0 {
		return nil, nil
	}
	return mine, enqueue(ctx, tx.Tx, mine)
}
