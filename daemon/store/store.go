// Package store is the daemon's database: what it knows of keys and destinations, the jobs, the truth about imports, the
// journal, locks and rate limits. SQLite by default, PostgreSQL for several daemons; the SQL is the same.
//
// Every change of state is one transaction together with its event, so that the journal never says less or more than what was
// done. Locks and limits use the database's own clock: the clocks of several daemons need not agree.
package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"golang.org/x/sys/unix"
	"modernc.org/sqlite"

	"hsmbridge/daemon/audit"
)

// Config says where the database is and who uses it.
type Config struct {
	Postgres string // URL; empty: SQLite
	Path     string // of the SQLite file; made, with its folder, if it is not there
	Daemon   string // name of this daemon: no second one of this name runs on the database
	Now      func() time.Time
	Lease    time.Duration // how long a lock outlives its holder's last sign of life; 0: 30 seconds, on PostgreSQL 10
	NoSync   bool          // SQLite without fsync, for tests that simulate years
	// Clock stands for the database's own clock, for tests in simulated time; nil: it has one.
	Clock func() time.Time
}

// Store is the database. It is safe for concurrent use.
type Store struct {
	write, read *sql.DB // the same for PostgreSQL
	postgres    bool
	daemon      string
	now         func() time.Time
	lease       time.Duration
	simulated   func() time.Time // in place of the database's clock
	release     func()           // of the lock against a second daemon
	ready       bool             // the schema is up to date

	mu       sync.Mutex
	watchers map[chan struct{}]bool
	copied   func(ctx context.Context) error // see Require
}

// Open opens the database, makes sure that no other daemon of this name uses it, and brings its schema up to date.
func Open(ctx context.Context, o Config) (*Store, error) {
	s := &Store{postgres: o.Postgres != "", daemon: o.Daemon, now: o.Now, lease: o.Lease, simulated: o.Clock, watchers: map[chan struct{}]bool{}}
	if s.now == nil {
		s.now = time.Now
	}
	switch {
	case s.lease != 0:
	case s.postgres:
		s.lease = 10 * time.Second // others wait for it
	default:
		s.lease = 30 * time.Second
	}
	open := s.openSQLite
	if s.postgres {
		open = s.openPostgres
	}
	if err := open(ctx, o); err != nil {
		return nil, err
	}
	if err := s.Exclusively(ctx, func() error { return s.migrate(ctx) }); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	s.ready = true
	return s, nil
}

func (s *Store) openSQLite(ctx context.Context, o Config) error {
	path, err := filepath.Abs(o.Path)
	if err != nil {
		return fmt.Errorf("database: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("database: %w", err)
	}
	if s.release, err = lockFile(path + ".lock"); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		s.release()
		return fmt.Errorf("database: %w", err)
	}
	pragmas := []string{"busy_timeout(5000)", "journal_mode(WAL)", "synchronous(FULL)", "foreign_keys(ON)"}
	if o.NoSync {
		pragmas[2] = "synchronous(OFF)"
	}
	v := url.Values{"_pragma": pragmas, "_txlock": {"immediate"}, "_time_format": {"sqlite"}}
	dsn := (&url.URL{Scheme: "file", Opaque: (&url.URL{Path: path}).EscapedPath(), RawQuery: v.Encode()}).String()
	connections := keeper{dsn: dsn, of: &sqlite.Driver{}}
	s.write, s.read = sql.OpenDB(connections), sql.OpenDB(connections)
	s.write.SetMaxOpenConns(1) // one writer: more would only wait for each other
	s.read.SetMaxOpenConns(4)
	s.read.SetMaxIdleConns(4) // with what they keep
	var version string
	if err := s.write.QueryRowContext(ctx, "SELECT sqlite_version()").Scan(&version); err != nil {
		return errors.Join(fmt.Errorf("database %s: %w", path, err), s.Close())
	}
	return nil
}

func (s *Store) openPostgres(ctx context.Context, o Config) error {
	config, err := pgx.ParseConfig(o.Postgres)
	if err != nil {
		return errors.New("database: the postgres URL cannot be read") // the error would show a password
	}
	// A daemon that is frozen in the middle of a transaction, or cut off, must not hold up the others: the server ends it.
	for name, value := range map[string]string{
		"idle_in_transaction_session_timeout": "5s", "lock_timeout": "30s", "application_name": "hsmbridge " + o.Daemon,
		"tcp_keepalives_idle": "5", "tcp_keepalives_interval": "5", "tcp_keepalives_count": "3",
	} {
		if _, given := config.RuntimeParams[name]; !given {
			config.RuntimeParams[name] = value
		}
	}
	config.DialFunc = dialer().DialContext
	db := stdlib.OpenDB(*config)
	const most = 16
	db.SetMaxOpenConns(most)
	db.SetMaxIdleConns(most) // PostgreSQL starts a process for each: they are kept while the daemon is busy
	db.SetConnMaxIdleTime(time.Minute)
	s.write, s.read = db, db
	if s.release, err = s.lockName(ctx); err != nil {
		return errors.Join(err, db.Close())
	}
	return nil
}

// dialer makes connections that end when the other side is gone without a word: else a call would wait for a quarter of an hour.
func dialer() *net.Dialer {
	const connect, silence = 10 * time.Second, 15 * time.Second
	return &net.Dialer{
		Timeout: connect, KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: silence / 3, Interval: silence / 3, Count: 3},
		Control: func(network, _ string, c syscall.RawConn) (err error) {
			if !strings.HasPrefix(network, "tcp") {
				return nil
			}
			cerr := c.Control(func(fd uintptr) {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(silence.Milliseconds()))
			})
			return errors.Join(cerr, err)
		},
	}
}

// patience is how long PostgreSQL may take for one transaction or query. What hangs longer is given up: the way there may be cut.
const patience = time.Minute

// bounded ends a call to a database that is reached over a network.
func (s *Store) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	if !s.postgres || !s.ready {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, patience)
}

// AlreadyRunningError says that another daemon uses the database.
type AlreadyRunningError struct{ What, Who string }

func (e *AlreadyRunningError) Error() string {
	return fmt.Sprintf("another hsmbridge uses %s%s: a second one was refused, because both would do the same work; stop it first, or give this one another database", e.What, e.Who)
}

// Class is "caller".
func (e *AlreadyRunningError) Class() string { return "caller" }

// Close closes the database.
func (s *Store) Close() error {
	var errs []error
	if s.read != s.write && s.read != nil {
		errs = append(errs, s.read.Close())
	}
	if s.write != nil {
		errs = append(errs, s.write.Close())
	}
	if s.release != nil {
		s.release()
	}
	return errors.Join(errs...)
}

// DB is the pool through which the queue writes, so that its rows and ours are in one transaction.
func (s *Store) DB() *sql.DB { return s.write }

// Postgres says that the database is PostgreSQL.
func (s *Store) Postgres() bool { return s.postgres }

// Daemon is this daemon's name.
func (s *Store) Daemon() string { return s.daemon }

// Ping asks whether the database answers.
func (s *Store) Ping(ctx context.Context) error {
	var one int
	if err := s.read.QueryRowContext(ctx, "SELECT 1").Scan(&one); err != nil {
		return fmt.Errorf("database: %w", err)
	}
	return nil
}

// Tx is a transaction.
type Tx struct {
	*sql.Tx
	s *Store

	alone bool                 // nobody else can add to the audit log
	size  int64                // of it; 0: not known
	added bool                 // to the audit log
	fresh map[int64]audit.Hash // hashes of the audit log that the transaction made
}

// Tx runs f in a transaction, and tells whoever waits for events when it is committed.
func (s *Store) Tx(ctx context.Context, f func(tx *Tx) error) error {
	bound, cancel := s.bounded(ctx)
	defer cancel()
	tx, err := s.write.BeginTx(bound, nil)
	if err != nil {
		return fmt.Errorf("database: %w", err)
	}
	own := &Tx{Tx: tx, s: s}
	if err := f(own); err != nil {
		return errors.Join(err, ignoreDone(tx.Rollback()))
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("database: %w", err)
	}
	s.wake()
	if !own.added {
		return nil
	}
	return s.copy(ctx)
}

// noted is [Store.Tx] for what adds to the audit log, or may: the log's lock is taken before any row that others change too, so that no two of
// them wait for each other.
func (s *Store) noted(ctx context.Context, f func(tx *Tx) error) error {
	return s.Tx(ctx, func(tx *Tx) error {
		if err := tx.eventsInOrder(ctx); err != nil {
			return err
		}
		return f(tx)
	})
}

// Require has f called after each transaction that added to the audit log: it copies what was added, and its error is that of the
// transaction, although that is committed. Whoever asked for it then does not go on.
func (s *Store) Require(f func(ctx context.Context) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.copied = f
}

func (s *Store) copy(ctx context.Context) error {
	s.mu.Lock()
	f := s.copied
	s.mu.Unlock()
	if f == nil {
		return nil
	}
	return f(context.WithoutCancel(ctx))
}

func ignoreDone(err error) error {
	if errors.Is(err, sql.ErrTxDone) {
		return nil
	}
	return err
}

// exec runs a statement and gives the number of rows that it changed.
func (tx *Tx) exec(ctx context.Context, query string, args ...any) (int64, error) {
	r, err := tx.ExecContext(ctx, tx.s.rebind(query), args...)
	if err != nil {
		return 0, fmt.Errorf("database: %w", err)
	}
	n, err := r.RowsAffected()
	if err != nil {
		return 0, fmt.Errorf("database: %w", err)
	}
	return n, nil
}

// querier is a pool or a transaction.
type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

// query collects the rows of a query.
func query[T any](ctx context.Context, s *Store, q querier, scan func(scan func(...any) error) (T, error), text string, args ...any) (list []T, err error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	rows, err := q.QueryContext(ctx, s.rebind(text), args...)
	if err != nil {
		return nil, fmt.Errorf("database: %w", err)
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		v, err := scan(rows.Scan)
		if err != nil {
			return nil, fmt.Errorf("database: %w", err)
		}
		list = append(list, v)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("database: %w", err)
	}
	return list, nil
}

// rebind writes the placeholders as the database wants them. No statement has a '?' of another meaning.
func (s *Store) rebind(query string) string {
	if s.postgres {
		var b strings.Builder
		n := 0
		for _, part := range strings.SplitAfter(query, "?") {
			if before, ok := strings.CutSuffix(part, "?"); ok {
				n++
				part = before + "$" + strconv.Itoa(n)
			}
			b.WriteString(part)
		}
		query = b.String()
	}
	return strings.ReplaceAll(query, "{{clock}}", s.clock())
}

// clock is the database's own time in microseconds.
func (s *Store) clock() string {
	if s.simulated != nil {
		return strconv.FormatInt(s.simulated().UnixMicro(), 10)
	}
	if s.postgres {
		return "CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS BIGINT)"
	}
	return "CAST(unixepoch('subsec') * 1000000 AS INTEGER)"
}

// micros is a time as it is stored.
func micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

// stamp is a stored time.
func stamp(us int64) time.Time {
	if us == 0 {
		return time.Time{}
	}
	return time.UnixMicro(us).UTC()
}

func flag(b bool) int64 {
	if b {
		return 1
	}
	return 0
}
