package access

import (
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// Whom to ask is found at the file, or at the folder that is closed.
func TestAdvice(t *testing.T) {
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	gid := os.Getegid()
	name := groupName(uint32(gid)) //nolint:gosec // a number of a group is none below 0
	if os.Geteuid() == 0 {
		gid, name = 4, groupName(4) // root's group is nobody's to ask for
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(file, -1, gid); err != nil {
		t.Fatal(err)
	}
	member := "; ask for membership of its group (usermod -aG " + name + " " + me.Username + "), and log in again"
	owner := "; it is for its owner (" + me.Username + ") and root only: run this as one of them"
	if gid == 0 {
		member = owner
	}
	for _, tc := range []struct {
		mode, need os.FileMode
		want       string
	}{
		{0o640, Read, member}, {0o660, Connect, member}, {0o640, Connect, owner}, {0o600, Read, owner},
	} {
		if err := os.Chmod(file, tc.mode); err != nil {
			t.Fatal(err)
		}
		if got := Advice(file, tc.need); got != tc.want {
			t.Errorf("%v, %v:\n%s\nwant\n%s", tc.mode, tc.need, got, tc.want)
		}
	}
	if got := Advice("/nowhere/at all", Read); got != "" {
		t.Error(got)
	}
	const nobody = 4123456789
	if got := userName(nobody) + groupName(nobody); got != strings.Repeat(strconv.Itoa(nobody), 2) {
		t.Error(got)
	}
}
