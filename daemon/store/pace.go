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
	// Until is how long the turn is certainly this one's; [Store.Renew] makes it longer.
	Until time.Time
	// Others wait for turns too, or did a few steps ago.
	Others bool

	name string
	slot int64 // by the database's clock
	step int64
	lost int64 // see [Lost]
	mark int64 // by which the row is known to be this turn's still
}

// ErrTurnLost says that a turn was not renewed in time: another one may have the next.
var ErrTurnLost = errors.New("the turn was not renewed in time")

// Sender is who claims turns.
type Sender struct {
	Name string
	// Usual is how long its requests take at least, from the claim to the answer; 0: not known. Of the answer to another sender's request only half of what is
	// usual for the nearer of both is taken for the way that the answer took: neither way is known by itself.
	Usual time.Duration
}

// lately is how many steps somebody is taken to wait who asked in vain.
const lately = 4

// Claim takes the next turn of a queue that passes one request every step, shared by all daemons on the database. No turn is given before
// that of the request before is [Store.Answered]: how late that request was decides when the next one may be sent. Without an answer and
// without being renewed, a turn counts as lost after a while: see [Lost]. If it is not yet time, wait says when to ask again. A turn is given up to a quarter of a step
// before its slot, and at most 100 ms.
func (s *Store) Claim(ctx context.Context, name string, by Sender, step time.Duration) (t Turn, wait time.Duration, err error) {
	st, ahead, lost, usual := step.Microseconds(), Ahead(step).Microseconds(), Lost(step).Microseconds(), by.Usual.Microseconds()
	far := farAhead.Microseconds() + lost
	err = s.Tx(ctx, func(tx *Tx) error {
		var args []any
		number := func(n int64) string {
			args = append(args, n)
			return "CAST(? AS BIGINT)"
		}
		me := func() string {
			args = append(args, by.Name)
			return "limits.sender = CAST(? AS TEXT)"
		}
		// When this sender may send next. After another one's request, the answer to it says less: it came back another way than the next request goes.
		due := func() string {
			return "(limits.tat + CASE WHEN " + me() + " THEN 0 WHEN limits.usual < " + number(usual) + " THEN limits.usual - limits.usual / 2 ELSE limits.usual - " + number(usual) + " / 2 END)"
		}
		slot := func() string {
			return "(CASE WHEN " + due() + " < {{clock}} OR limits.tat > {{clock}} + " + number(far) + " THEN {{clock}} ELSE " + due() + " END)"
		}
		args = append(args, name)
		text := "INSERT INTO limits (name, tat, open, sender, usual) VALUES (?, {{clock}} + " + number(lost) + ", {{clock}} + " + number(st) + ", "
		args = append(args, by.Name)
		text += "?, 0) ON CONFLICT (name) DO UPDATE SET tat = " + slot() + " + " + number(lost) + ", open = " + slot() + " + " + number(st)
		args = append(args, by.Name)
		text += ", sender = ? WHERE " + due() + " <= {{clock}} + " + number(ahead) + " OR limits.tat > {{clock}} + " + number(far) + " RETURNING tat, asked, {{clock}}"
		var now, others int64
		t, wait = Turn{name: name, step: st, lost: lost}, 0
		asked := time.Now()
		err := tx.QueryRowContext(ctx, s.rebind(text), args...).Scan(&t.mark, &others, &now)
		if err == nil {
			t.slot, t.Others = t.mark-lost, others > now-lately*st
			left := time.Duration(max(0, t.slot-now)) * time.Microsecond
			t.Slot, t.NotAfter, t.Until = time.Now().Add(left), asked.Add(left), asked.Add(Lost(step))
			return nil
		}
		if !errors.Is(err, sql.ErrNoRows) {
			return fmt.Errorf("database: %w", err)
		}
		args = nil
		text = "SELECT " + due() + ", open, sender, asked, {{clock}} FROM limits WHERE name = ?"
		args = append(args, name)
		var next, open int64
		var sender string
		if err := tx.QueryRowContext(ctx, s.rebind(text), args...).Scan(&next, &open, &sender, &others, &now); err != nil {
			return fmt.Errorf("database: %w", err)
		}
		left := next - ahead - now
		if open != 0 { // another daemon's request is under way: its answer may let the next one go earlier
			left = min(left, max(open-ahead-now, st/8))
		}
		wait = time.Duration(max(left, 1000)) * time.Microsecond
		if sender != by.Name && others < now-st {
			_, err = tx.exec(ctx, "UPDATE limits SET asked = ? WHERE name = ?", now, name)
			return err
		}
		return nil
	})
	return t, wait, err
}

// Ahead is how long before its slot a turn may be claimed.
func Ahead(step time.Duration) time.Duration { return min(step/4, 100*time.Millisecond) }

// Lost is how long after its slot a turn counts as lost that nobody renews: long enough for an answer of the database, and short, because its daemon may have been killed.
func Lost(step time.Duration) time.Duration { return max(3*step, 4*time.Second) }

// Renew says that the request of a turn is still under way, or still to be sent: nobody else has a turn before it counts as lost anew. The error is [ErrTurnLost] if somebody may have.
func (s *Store) Renew(ctx context.Context, t Turn) (Turn, error) {
	asked := time.Now()
	err := s.Tx(ctx, func(tx *Tx) error {
		return tx.QueryRowContext(ctx, s.rebind("UPDATE limits SET tat = {{clock}} + CAST(? AS BIGINT) WHERE name = ? AND tat = ? RETURNING tat"), t.lost, t.name, t.mark).Scan(&t.mark)
	})
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return t, ErrTurnLost
	case err != nil:
		return t, fmt.Errorf("database: %w", err)
	}
	t.Until = asked.Add(time.Duration(t.lost) * time.Microsecond)
	return t, nil
}

// Answered says that the request of a turn was answered, and that the next one may be sent a step and late after its slot. Usual is what was taken off how long it took.
func (s *Store) Answered(ctx context.Context, t Turn, late, usual time.Duration) error {
	return s.Tx(ctx, func(tx *Tx) error {
		_, err := tx.exec(ctx, "UPDATE limits SET tat = ?, open = 0, usual = ? WHERE name = ? AND tat = ?", t.slot+t.step+late.Microseconds(), usual.Microseconds(), t.name, t.mark)
		return err
	})
}

// Unused gives a turn back that no request was sent for.
func (s *Store) Unused(ctx context.Context, t Turn) error {
	return s.Tx(ctx, func(tx *Tx) error {
		_, err := tx.exec(ctx, "UPDATE limits SET tat = ?, open = 0 WHERE name = ? AND tat = ?", t.slot, t.name, t.mark)
		return err
	})
}
