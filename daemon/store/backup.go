package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// ErrNoBackup says that no copy was made, because of what was asked for.
var ErrNoBackup = errors.New("no copy was made")

// Backup writes a copy of an SQLite database to a new file, as it is at one moment, while the daemon works. The file is its owner's only.
func (s *Store) Backup(ctx context.Context, file string) error {
	switch {
	case s.postgres:
		return fmt.Errorf("%w: the database is PostgreSQL; use pg_dump", ErrNoBackup)
	case !filepath.IsAbs(file):
		return fmt.Errorf("%w: %q is not an absolute path", ErrNoBackup, file)
	}
	if _, err := os.Lstat(file); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %s is there already, or cannot be looked at", ErrNoBackup, file)
	}
	partial := file + ".partial"
	f, err := os.OpenFile(partial, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNoBackup, err)
	}
	err = f.Close()
	if err == nil {
		_, err = s.read.ExecContext(ctx, "VACUUM INTO ?", partial) // into a file that is there and empty
	}
	if err == nil {
		err = os.Link(partial, file) // never over another file
	}
	if err = errors.Join(err, os.Remove(partial)); err != nil {
		return fmt.Errorf("copy the database: %w", err)
	}
	return nil
}
