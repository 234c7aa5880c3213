package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// lockFile holds an advisory lock on a file as long as the process lives. The kernel ends it with the process, also after kill -9.
func lockFile(path string) (release func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("database: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		who := ""
		if b, rerr := io.ReadAll(io.LimitReader(f, 20)); rerr == nil && len(b) > 0 {
			who = " (process " + strings.TrimSpace(string(b)) + ")"
		}
		return nil, errors.Join(&AlreadyRunningError{strings.TrimSuffix(path, ".lock"), who}, f.Close())
	}
	if err := f.Truncate(0); err == nil {
		_, _ = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	return func() { _ = f.Close() }, nil
}

// lockName is the same for PostgreSQL: a lock of the session, which ends with its connection.
func (s *Store) lockName(ctx context.Context) (release func(), err error) {
	conn, err := s.write.Conn(ctx)
	if err != nil {
		return nil, fmt.Errorf("database: %w", err)
	}
	h := fnv.New64a()
	_, _ = io.WriteString(h, "hsmbridge/"+s.daemon)
	var got bool
	err = conn.QueryRowContext(ctx, "SELECT pg_try_advisory_lock($1)", int64(h.Sum64())).Scan(&got) //nolint:gosec // any 64 bits will do
	switch {
	case err != nil:
		return nil, errors.Join(fmt.Errorf("database: %w", err), conn.Close())
	case !got:
		return nil, errors.Join(&AlreadyRunningError{"the database as", fmt.Sprintf(" %q (see name: in the configuration)", s.daemon)}, conn.Close())
	}
	return func() {
		_ = conn.Raw(func(any) error { return errReleased }) // not back into the pool: its end is the end of the lock
		_ = conn.Close()
	}, nil
}

var errReleased = errors.New("released")

// Errors of locks.
var (
	// ErrLocked says that somebody else works on the key.
	ErrLocked = errors.New("somebody else works on the key")
	// ErrLeaseLost says that this process lost its lock, because it gave no sign of life in time: somebody else may work on the key.
	ErrLeaseLost = errors.New("another daemon has taken over the key, because this one gave no sign of life; it stopped before its next step")
)

// Lease is a lock on a name that has to be renewed. Its fence grows with every holder: what an earlier holder still tries is refused.
type Lease struct {
	s     *Store
	name  string
	fence int64
	held  atomic.Pointer[time.Time] // when it was surely held last, by this machine's clocks
}

// Lock takes the lock, or gives [ErrLocked].
func (s *Store) Lock(ctx context.Context, name string) (*Lease, error) {
	l := &Lease{s: s, name: name}
	err := l.renewing(func() error { return s.take(ctx, l) })
	if err != nil {
		return nil, err
	}
	return l, nil
}

func (s *Store) take(ctx context.Context, l *Lease) error {
	return s.Tx(ctx, func(tx *Tx) error {
		err := tx.QueryRowContext(ctx, s.rebind(`INSERT INTO locks (name, owner, fence, until) VALUES (?, ?, 1, {{clock}} + ?)
			ON CONFLICT (name) DO UPDATE SET owner = excluded.owner, fence = locks.fence + 1, until = excluded.until
			WHERE locks.until < {{clock}} OR locks.owner = '' RETURNING fence`), l.name, s.daemon, s.lease.Microseconds()).Scan(&l.fence)
		if errors.Is(err, sql.ErrNoRows) {
			return ErrLocked
		}
		if err != nil {
			return fmt.Errorf("database: %w", err)
		}
		return nil
	})
}

// renewing notes that the lease was held when f, which renews it, began.
func (l *Lease) renewing(f func() error) error {
	began := time.Now()
	err := f()
	if err == nil {
		l.held.Store(&began)
	}
	return err
}

// Sure is asked immediately before what cannot be taken back. A process that was frozen meanwhile, or that the database did not answer, does
// not know whether it still has the lock: it asks, and gives [ErrLeaseLost] or why it could not.
func (l *Lease) Sure(ctx context.Context) error {
	held := l.held.Load()
	if held == nil {
		return l.Renew(ctx)
	}
	// The clock that only counts stands still while a machine sleeps, the other one may be set.
	if max(time.Since(*held), time.Since(held.Round(0)).Abs()) < l.s.lease/3 {
		return nil
	}
	return l.Renew(ctx)
}

// hold renews the lease inside a transaction: nothing of it is committed by whoever has lost the lock.
func (tx *Tx) hold(ctx context.Context, l *Lease) error {
	n, err := tx.exec(ctx, "UPDATE locks SET until = {{clock}} + ? WHERE name = ? AND owner = ? AND fence = ?", tx.s.lease.Microseconds(), l.name, tx.s.daemon, l.fence)
	if err == nil && n == 0 {
		err = ErrLeaseLost
	}
	return err
}

// Renew renews the lease.
func (l *Lease) Renew(ctx context.Context) error {
	const enough = 5 * time.Second
	ctx, cancel := context.WithTimeout(ctx, max(l.s.lease, enough)) // an answer that comes later says nothing any more
	defer cancel()
	return l.renewing(func() error {
		return l.s.Tx(ctx, func(tx *Tx) error { return tx.hold(ctx, l) })
	})
}

// release ends the lock inside a transaction.
func (tx *Tx) release(ctx context.Context, l *Lease) error {
	n, err := tx.exec(ctx, "UPDATE locks SET until = 0, owner = '' WHERE name = ? AND owner = ? AND fence = ?", l.name, tx.s.daemon, l.fence)
	if err == nil && n == 0 {
		err = ErrLeaseLost
	}
	return err
}

// Release ends the lock.
func (l *Lease) Release(ctx context.Context) error {
	return l.s.Tx(ctx, func(tx *Tx) error { return tx.release(ctx, l) })
}

// LeaseTime is how long a lock outlives its holder's last sign of life.
func (s *Store) LeaseTime() time.Duration { return s.lease }
