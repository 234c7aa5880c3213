package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

// Turn is the right to send one request of a queue that passes one at a time.
type Turn struct {
	// Slot is when it may be sent, by this process's clock, or a little after: by what the database's answer may have been under way.
	Slot time.Time
	// NotAfter the slot is this time. How late a request was is reckoned from here: from Slot, it would be less than it was.
	NotAfter time.Time

	name string
	slot int64 // by the database's clock
	step int64
	mark int64 // by which the row is known to be this turn's still
}

// Claim takes the next turn of a queue that passes one request every step, shared by all daemons on the database. No turn is given before
// that of the request before is [Store.Answered]: how late that request was decides when the next one may be sent. Without an answer the
// turn counts as lost after a second step. If it is not yet time, wait says when to ask again. A turn is given up to a quarter of a step
// before its slot, and at most 100 ms.
func (s *Store) Claim(ctx context.Context, name string, step time.Duration) (t Turn, wait time.Duration, err error) {
	st := step.Microseconds()
	ahead := Ahead(step).Microseconds()
	err = s.Tx(ctx, func(tx *Tx) error {
		const slot = "(CASE WHEN limits.tat < {{clock}} OR limits.tat > {{clock}} + CAST(? AS BIGINT) THEN {{clock}} ELSE limits.tat END)"
		var now int64
		t, wait = Turn{name: name, step: st}, 0
		far := farAhead.Microseconds() + 2*st
		asked := time.Now()
		err := tx.QueryRowContext(ctx, s.rebind(`INSERT INTO limits (name, tat, open) VALUES (?, {{clock}} + CAST(? AS BIGINT), {{clock}} + CAST(? AS BIGINT))
			ON CONFLICT (name) DO UPDATE SET tat = `+slot+` + CAST(? AS BIGINT), open = `+slot+` + CAST(? AS BIGINT)
			WHERE limits.tat <= {{clock}} + CAST(? AS BIGINT) OR limits.tat > {{clock}} + CAST(? AS BIGINT) RETURNING tat, {{clock}}`),
			name, 2*st, st, far, 2*st, far, st, ahead, far).Scan(&t.mark, &now)
		if err == nil {
			t.slot = t.mark - 2*st
			ahead := time.Duration(max(0, t.slot-now)) * time.Microsecond
			t.Slot, t.NotAfter = time.Now().Add(ahead), asked.Add(ahead)
			return nil
		}
		if !errors.Is(err, sql.ErrNoRows) {
			return fmt.Errorf("database: %w", err)
		}
		var tat, open int64
		if err := tx.QueryRowContext(ctx, s.rebind("SELECT tat, open, {{clock}} FROM limits WHERE name = ?"), name).Scan(&tat, &open, &now); err != nil {
			return fmt.Errorf("database: %w", err)
		}
		left := tat - ahead - now
		if open != 0 { // another daemon's request is under way: its answer may let the next one go earlier
			left = min(left, max(open-ahead-now, st/8))
		}
		wait = time.Duration(max(left, 1000)) * time.Microsecond
		return nil
	})
	return t, wait, err
}

// Ahead is how long before its slot a turn may be claimed.
func Ahead(step time.Duration) time.Duration { return min(step/4, 100*time.Millisecond) }

// Answered says that the request of a turn was answered, and that the next one may be sent a step and late after its slot.
func (s *Store) Answered(ctx context.Context, t Turn, late time.Duration) error {
	return s.passOn(ctx, t, t.slot+t.step+late.Microseconds())
}

// Unused gives a turn back that no request was sent for.
func (s *Store) Unused(ctx context.Context, t Turn) error { return s.passOn(ctx, t, t.slot) }

func (s *Store) passOn(ctx context.Context, t Turn, next int64) error {
	return s.Tx(ctx, func(tx *Tx) error {
		_, err := tx.exec(ctx, "UPDATE limits SET tat = ?, open = 0 WHERE name = ? AND tat = ?", next, t.name, t.mark)
		return err
	})
}
