package configs

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	othersWrite = 0o022 // group and others
	worldWrites = 0o002
)

// trusted refuses a file that somebody else can change: whoever can do that decides which keys go where, and who approves it. It has to
// belong to root or to the user who runs this, and no one else may write to it, nor put another into its place: its folder is not
// writable for everybody, unless it is one like /tmp (sticky). Symbolic links were followed.
func trusted(path string, f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err //nolint:wrapcheck // it names the file
	}
	if passed, err := handedOver(info, f); passed || err != nil {
		return err
	}
	if err := owned(path, info, othersWrite); err != nil {
		return err
	}
	target, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err //nolint:wrapcheck // it names the file
	}
	folder := filepath.Dir(target)
	if info, err = os.Stat(folder); err != nil {
		return err //nolint:wrapcheck // it names the folder
	}
	if info.Mode()&fs.ModeSticky != 0 {
		return nil
	}
	if mode := info.Mode().Perm(); mode&worldWrites != 0 {
		return fmt.Errorf("everybody can write to its folder (mode %04o), and so put another file into its place; it was not used; run: chmod o-w %s", mode, folder)
	}
	return nil
}

// handedOver says that a file has no name by which somebody else could have put it there: a pipe from the one who runs this, or a device, which
// only root makes. A pipe or socket with a name is looked at like any file: whoever owns it decides what is read.
func handedOver(info fs.FileInfo, f *os.File) (bool, error) {
	switch mode := info.Mode(); {
	case mode.IsRegular():
		return false, nil
	case mode&fs.ModeNamedPipe == 0:
		return true, nil
	}
	var where unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &where); err != nil {
		return false, fmt.Errorf("find out where it is: %w", err)
	}
	return where.Type == unix.PIPEFS_MAGIC, nil
}

// owned says who owns a file and who may write to it.
func owned(path string, info fs.FileInfo, mask fs.FileMode) error {
	if mode := info.Mode().Perm(); mode&mask != 0 {
		return fmt.Errorf("others than its owner can write to it (mode %04o), and so decide which keys go where; it was not used; run: chmod go-w %s", mode, path)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if me := os.Geteuid(); ok && st.Uid != 0 && int(st.Uid) != me {
		return fmt.Errorf("it belongs to user %d, who is neither root nor the one who runs this (%d), and so decides which keys go where; it was not used; run: chown root %s", st.Uid, me, path)
	}
	return nil
}

// readTrusted reads a file that nobody else can change.
func readTrusted(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err //nolint:wrapcheck // it names the file
	}
	defer f.Close() //nolint:errcheck // it was only read
	if err := trusted(path, f); err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(f, maxSigners+1)) //nolint:wrapcheck // it names the file
}
