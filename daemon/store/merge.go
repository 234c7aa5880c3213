package store

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"

	"hsmbridge/daemon/audit"
)

// Merging is a record of another log, with its number and its leaf hash there, and the event by which it is taken over.
type Merging struct {
	N     int64
	Hash  audit.Hash
	Event Event
}

// ErrOtherHistory says that a log is not the one of which records were taken over before.
var ErrOtherHistory = errors.New("the log has another history")

// Merge takes the records of another log over, those that are not there yet, and gives how many. They have to be numbered from 1 without
// gaps, and to begin with the very records that were taken over before: otherwise nothing is taken, and the error is [ErrOtherHistory]. A
// log that ends earlier than what is there is an older copy, of which nothing is new.
func (s *Store) Merge(ctx context.Context, origin string, records []Merging) (n int, err error) {
	err = s.noted(ctx, func(tx *Tx) error {
		n = 0
		have, err := query(ctx, s, tx, func(scan func(...any) error) (string, error) {
			var hash string
			err := scan(&hash)
			return hash, err
		}, "SELECT hash FROM merged WHERE origin = ? ORDER BY number", origin)
		if err != nil {
			return err
		}
		for i, r := range records {
			if r.N != int64(i)+1 {
				return fmt.Errorf("%s: record %d stands in the place of record %d: %w", origin, r.N, i+1, ErrOtherHistory)
			}
			hash := base64.StdEncoding.EncodeToString(r.Hash[:])
			if i < len(have) {
				if have[i] != hash {
					return fmt.Errorf("%s: record %d is not the one that was taken over before: %w", origin, r.N, ErrOtherHistory)
				}
				continue
			}
			if _, err := tx.exec(ctx, "INSERT INTO merged (origin, number, hash) VALUES (?, ?, ?)", origin, r.N, hash); err != nil {
				return err
			}
			if err := tx.event(ctx, r.Event); err != nil {
				return err
			}
			n++
		}
		return nil
	})
	if err != nil {
		n = 0
	}
	return n, err
}
