package store

import (
	"context"
	"fmt"
	"strconv"
)

// Merge adds the records of another log as events, those that are not there yet: each names that log and its number there ("origin", "n").
// It gives how many were added.
func (s *Store) Merge(ctx context.Context, origin string, events []Event) (n int, err error) {
	err = s.Tx(ctx, func(tx *Tx) error {
		if err := tx.eventsInOrder(ctx); err != nil {
			return err
		}
		var have int64
		if err := tx.QueryRowContext(ctx, s.rebind("SELECT coalesce(max(size), 0) FROM merged WHERE origin = ?"), origin).Scan(&have); err != nil {
			return fmt.Errorf("database: %w", err)
		}
		last := have
		for _, e := range events {
			at, err := strconv.ParseInt(e.Fields["n"], 10, 64)
			if err != nil {
				return fmt.Errorf("merge: %w", err)
			}
			if at <= have {
				continue
			}
			if err := tx.event(ctx, e); err != nil {
				return err
			}
			last = at
			n++
		}
		if n == 0 {
			return nil
		}
		_, err := tx.exec(ctx, "INSERT INTO merged (origin, size) VALUES (?, ?) ON CONFLICT (origin) DO UPDATE SET size = excluded.size", origin, last)
		return err
	})
	return n, err
}
