// Package access says what somebody can do who may not open a file or a socket.
package access

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// What is needed of a path: the bits of its group's part of the mode.
const (
	Read    fs.FileMode = 0o4
	Connect fs.FileMode = 0o6 // to a Unix socket
	search  fs.FileMode = 0o1 // of a folder on the way
)

const groupShift = 3

// Advice says what the user who runs this can do who may not open path: ask for membership of the group for which it is open, the file itself or the first
// folder on its way that is closed. It begins with a semicolon; empty: nothing is known.
func Advice(path string, need fs.FileMode) string {
	closed := path
	info, err := os.Stat(closed)
	for err != nil {
		up := filepath.Dir(closed)
		if !errors.Is(err, fs.ErrPermission) || up == closed {
			return ""
		}
		closed, need = up, search
		info, err = os.Stat(closed)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return ""
	}
	whose := "its"
	if closed != path {
		whose = closed + "'s"
	}
	if st.Gid == 0 || info.Mode().Perm()>>groupShift&need != need {
		return fmt.Sprintf("; it is for %s owner (%s) and root only: run this as one of them", whose, userName(st.Uid))
	}
	return fmt.Sprintf("; ask for membership of %s group (usermod -aG %s %s), and log in again", whose, groupName(st.Gid), userName(uint32(os.Geteuid()))) //nolint:gosec // a number of a user is none below 0
}

func userName(id uint32) string {
	number := strconv.FormatUint(uint64(id), 10)
	if u, err := user.LookupId(number); err == nil {
		return u.Username
	}
	return number
}

func groupName(id uint32) string {
	number := strconv.FormatUint(uint64(id), 10)
	if g, err := user.LookupGroupId(number); err == nil {
		return g.Name
	}
	return number
}
