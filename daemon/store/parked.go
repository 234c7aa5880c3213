package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
)

// ReadParked lists the parked tokens of a SQLite database whose daemon does not run. It takes no lock and writes nothing into it. A login
// that a process began and did not end is among them. A database that is not there, or that has no such table yet, has none.
func ReadParked(ctx context.Context, path string) (map[string]Parked, error) {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	v := url.Values{"mode": {"ro"}, "_pragma": {"busy_timeout(2000)"}}
	if _, err := os.Stat(path + "-wal"); errors.Is(err, fs.ErrNotExist) {
		v.Set("immutable", "1") // it was closed in good order: no file has to be made beside it
	}
	db, err := sql.Open("sqlite", (&url.URL{Scheme: "file", Opaque: (&url.URL{Path: path}).EscapedPath(), RawQuery: v.Encode()}).String())
	if err != nil {
		return nil, fmt.Errorf("database %s: %w", path, err)
	}
	defer db.Close() //nolint:errcheck // it was only read
	var tables int
	if err := db.QueryRowContext(ctx, "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'parked'").Scan(&tables); err != nil {
		return nil, fmt.Errorf("database %s: %w", path, err)
	}
	if tables == 0 {
		return nil, nil
	}
	list, err := query(ctx, &Store{}, db, scanParked, "SELECT token, daemon, parked_at, code, reason FROM parked")
	if err != nil {
		return nil, err
	}
	var here []Parked
	if err := db.QueryRowContext(ctx, "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'parked_here'").Scan(&tables); err != nil {
		return nil, fmt.Errorf("database %s: %w", path, err)
	}
	if tables > 0 { // the database was used by a version that has it
		if here, err = query(ctx, &Store{}, db, scanParked, "SELECT token, daemon, parked_at, code, reason FROM parked_here"); err != nil {
			return nil, err
		}
	}
	out := make(map[string]Parked, len(list)+len(here))
	for _, p := range append(here, list...) {
		out[p.Token] = p
	}
	return out, nil
}
