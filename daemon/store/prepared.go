package store

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"strings"
)

// mostKept is how many statements a connection keeps. The store and its queue have about 150; lists in a query (IN) make more, of which the long ones, which
// have some tens of kilobytes each, are not kept.
const (
	mostKept    = 256
	longestKept = 4096 // bytes of text
)

// keeper opens connections to SQLite that keep the statements that they prepared. The driver, and with it database/sql and the queue, prepares each anew each
// time, which takes longer than to carry it out (BenchmarkPrepared).
type keeper struct {
	dsn string
	of  driver.Driver
}

// Driver is that of SQLite.
func (k keeper) Driver() driver.Driver { return k.of }

// Connect opens a connection.
func (k keeper) Connect(context.Context) (driver.Conn, error) {
	c, err := k.of.Open(k.dsn)
	if err != nil {
		return nil, err //nolint:wrapcheck // database/sql knows the driver's errors
	}
	inner, ok := c.(sqliteConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("the driver's connections are %T", c), c.Close())
	}
	return &keepingConn{sqliteConn: inner, kept: map[string]*keptStmt{}}, nil
}

// sqliteConn is what database/sql asks of a connection of the driver.
type sqliteConn interface {
	driver.Conn
	driver.ConnBeginTx
	driver.ConnPrepareContext
	driver.ExecerContext
	driver.QueryerContext
	driver.Pinger
	driver.SessionResetter
	driver.Validator
}

// sqliteStmt is what it asks of a statement.
type sqliteStmt interface {
	driver.Stmt
	driver.StmtExecContext
	driver.StmtQueryContext
}

// keepingConn is a connection. Like any other it serves one caller at a time.
type keepingConn struct {
	sqliteConn
	kept map[string]*keptStmt
}

// keptStmt is a statement; while its rows are read it is taken.
type keptStmt struct {
	sqliteStmt
	taken bool
}

// ExecContext carries out a statement that was kept, or keeps it.
func (c *keepingConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	s, err := c.statement(ctx, query)
	switch {
	case err != nil:
		return nil, err
	case s == nil:
		return c.sqliteConn.ExecContext(ctx, query, args) //nolint:wrapcheck // as above
	}
	return s.ExecContext(ctx, args) //nolint:wrapcheck // as above
}

// QueryContext is the same for one with rows.
func (c *keepingConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	s, err := c.statement(ctx, query)
	switch {
	case err != nil:
		return nil, err
	case s == nil:
		return c.sqliteConn.QueryContext(ctx, query, args) //nolint:wrapcheck // as above
	}
	rows, err := s.QueryContext(ctx, args)
	if err != nil {
		return nil, err //nolint:wrapcheck // as above
	}
	s.taken = true
	return &keptRows{Rows: rows, of: s}, nil
}

// statement gives the query's statement; nil: it is not one to keep, or its rows are being read.
func (c *keepingConn) statement(ctx context.Context, query string) (*keptStmt, error) {
	if s := c.kept[query]; s != nil {
		if s.taken {
			return nil, nil //nolint:nilnil // there is a second way
		}
		return s, nil
	}
	if !worthKeeping(query) {
		return nil, nil //nolint:nilnil // as above
	}
	if len(c.kept) >= mostKept {
		if err := c.drop(); err != nil {
			return nil, err
		}
	}
	s, err := c.PrepareContext(ctx, query)
	if err != nil {
		return nil, err //nolint:wrapcheck // as above
	}
	inner, ok := s.(sqliteStmt)
	if !ok {
		return nil, errors.Join(fmt.Errorf("the driver's statements are %T", s), s.Close())
	}
	kept := &keptStmt{sqliteStmt: inner}
	c.kept[query] = kept
	return kept, nil
}

// worthKeeping: what is read and written again and again, not the schema's changes and the pragmas. A query may begin with a comment.
func worthKeeping(query string) bool {
	if len(query) > longestKept {
		return false
	}
	for {
		query = strings.TrimLeft(query, " \t\r\n")
		if !strings.HasPrefix(query, "--") {
			break
		}
		_, query, _ = strings.Cut(query, "\n")
	}
	word, _, _ := strings.Cut(query, " ")
	word, _, _ = strings.Cut(word, "\n")
	switch strings.ToUpper(word) {
	case "SELECT", "INSERT", "UPDATE", "DELETE", "WITH":
		return true
	}
	return false
}

// drop closes the statements whose rows are not being read.
func (c *keepingConn) drop() (err error) {
	for query, s := range c.kept {
		if !s.taken {
			err = errors.Join(err, s.Close())
			delete(c.kept, query)
		}
	}
	return err
}

// Close closes the statements too.
func (c *keepingConn) Close() error {
	var err error
	for _, s := range c.kept {
		err = errors.Join(err, s.Close())
	}
	c.kept = nil
	return errors.Join(err, c.sqliteConn.Close())
}

// keptRows are the rows of a kept statement, which is free again when they are closed.
type keptRows struct {
	driver.Rows
	of *keptStmt
}

// Close lets go of the statement.
func (r *keptRows) Close() error {
	r.of.taken = false
	return r.Rows.Close() //nolint:wrapcheck // as above
}
