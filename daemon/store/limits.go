package store

import (
	"context"
	"fmt"
	"time"
)

// farAhead is more than any queue of requests: an arrival time that lies further ahead was written under another clock.
const farAhead = 10 * time.Minute

// Reserve takes the next place in a queue that passes perSecond requests a second, and says how long to wait for it. All daemons on the
// database share the queue. The generic cell rate algorithm (ITU-T I.371) with a burst of one second's requests, at least one.
func (s *Store) Reserve(ctx context.Context, name string, perSecond float64) (wait time.Duration, err error) {
	step := int64(float64(time.Second.Microseconds()) / perSecond)
	burst := max(0, time.Second.Microseconds()-step)
	var tat, now int64
	err = s.Tx(ctx, func(tx *Tx) error {
		err := tx.QueryRowContext(ctx, s.rebind(`INSERT INTO limits (name, tat) VALUES (?, {{clock}} + CAST(? AS BIGINT))
			ON CONFLICT (name) DO UPDATE SET tat = CAST(? AS BIGINT) +
				CASE WHEN limits.tat < {{clock}} OR limits.tat > {{clock}} + CAST(? AS BIGINT) THEN {{clock}} ELSE limits.tat END
			RETURNING tat, {{clock}}`), name, step, step, farAhead.Microseconds()+burst).Scan(&tat, &now)
		if err != nil {
			return fmt.Errorf("database: %w", err)
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	return max(0, time.Duration(tat-step-burst-now)*time.Microsecond), nil
}
