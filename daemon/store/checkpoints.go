package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"hsmbridge/daemon/audit"
)

// Tree is the present size of the audit log and its root hash.
func (s *Store) Tree(ctx context.Context) (c audit.Checkpoint, err error) {
	err = s.Tx(ctx, func(tx *Tx) error {
		if err := tx.QueryRowContext(ctx, "SELECT origin FROM audit_log").Scan(&c.Origin); err != nil {
			return fmt.Errorf("database: %w", err)
		}
		if err := tx.QueryRowContext(ctx, "SELECT coalesce(max(id), 0) FROM events").Scan(&c.Size); err != nil {
			return fmt.Errorf("database: %w", err)
		}
		c.Time = s.now()
		c.Root, err = audit.Root(c.Size, func(numbers []int64) ([]audit.Hash, error) { return s.hashes(ctx, tx, nil, numbers) })
		return err
	})
	return c, err
}

// TreeSince is [Store.Tree] after it was made sure that the log is the one of which an earlier checkpoint was made: its root is still that of
// the first records, and every later record has the hash that the tree has. The root is computed anew from those records, and not taken from
// hashes that stand in the database: whoever changed one of them would have a record signed, and could prove it, that is not in the log. It
// is the last look before the log is signed: what somebody changed in the database is not signed.
func (s *Store) TreeSince(ctx context.Context, earlier audit.Checkpoint) (c audit.Checkpoint, err error) {
	if c, err = s.Tree(ctx); err != nil {
		return c, err
	}
	read := func(numbers []int64) ([]audit.Hash, error) { return s.hashes(ctx, s.read, nil, numbers) }
	if earlier.Size > c.Size {
		return c, fmt.Errorf("the audit log has %d records, and its last signed checkpoint has %d: %w", c.Size, earlier.Size, ErrLogChanged)
	}
	tree, err := audit.Grow(earlier.Size, read)
	if err != nil {
		return c, err
	}
	if earlier.Size > 0 && tree.Root() != earlier.Root {
		return c, fmt.Errorf("the first %d records of the audit log are not those of its last signed checkpoint: %w", earlier.Size, ErrLogChanged)
	}
	const batch = 500
	for next := earlier.Size + 1; next <= c.Size; next += batch {
		list, err := s.Log(ctx, next, int(min(batch, c.Size-next+1)))
		if err != nil {
			return c, err
		}
		if int64(len(list)) != min(batch, c.Size-next+1) {
			return c, fmt.Errorf("records from number %d on are missing in the audit log: %w", next, ErrLogChanged)
		}
		numbers := make([]int64, len(list))
		for i, l := range list {
			if l.N != next+int64(i) {
				return c, fmt.Errorf("record %d is missing in the audit log: %w", next+int64(i), ErrLogChanged)
			}
			numbers[i] = audit.LeafIndex(l.N)
		}
		hashes, err := read(numbers)
		if err != nil {
			return c, err
		}
		for i, l := range list {
			leaf := audit.LeafHash(l.Record)
			if leaf != hashes[i] {
				return c, fmt.Errorf("record %d of the audit log is not the one that was written: %w", l.N, ErrLogChanged)
			}
			tree.Add(leaf)
		}
	}
	if tree.Root() != c.Root {
		return c, fmt.Errorf("the hashes of the audit log's tree are not those of its records: %w", ErrLogChanged)
	}
	return c, nil
}

// ErrLogChanged says that somebody changed the audit log in the database.
var ErrLogChanged = errors.New("the log was changed, or damaged, in the database")

// Checkpoint is a signed checkpoint.
type Checkpoint struct {
	Size int64     `json:"size"`
	At   time.Time `json:"at"`
	Note string    `json:"note"` // signed
}

// AddCheckpoint keeps a signed checkpoint. One of the same size that another daemon made stays.
func (s *Store) AddCheckpoint(ctx context.Context, c Checkpoint) error {
	return s.Tx(ctx, func(tx *Tx) error {
		_, err := tx.exec(ctx, "INSERT INTO checkpoints (size, at, note) VALUES (?, ?, ?) ON CONFLICT DO NOTHING", c.Size, micros(c.At), c.Note)
		return err
	})
}

// Checkpoints lists signed checkpoints of more than after records, the smallest first.
func (s *Store) Checkpoints(ctx context.Context, after int64, limit int) ([]Checkpoint, error) {
	return query(ctx, s, s.read, scanCheckpoint, "SELECT size, at, note FROM checkpoints WHERE size > ? ORDER BY size LIMIT ?", after, limit)
}

// LastCheckpoint is the latest signed checkpoint, and false if there is none.
func (s *Store) LastCheckpoint(ctx context.Context) (Checkpoint, bool, error) {
	list, err := query(ctx, s, s.read, scanCheckpoint, "SELECT size, at, note FROM checkpoints ORDER BY size DESC LIMIT 1")
	if err != nil || len(list) == 0 {
		return Checkpoint{}, false, err
	}
	return list[0], true, nil
}

func scanCheckpoint(scan func(...any) error) (Checkpoint, error) {
	var c Checkpoint
	var at int64
	err := scan(&c.Size, &at, &c.Note)
	c.At = stamp(at)
	return c, err
}
