package pin_test

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"hsmbridge/configs"
	"hsmbridge/daemon/pin"
	"hsmbridge/hsm/quirks"
)

// looked checks that a look at a PIN file says the same as its use.
func looked(t *testing.T, path string, used error) {
	t.Helper()
	err := pin.Look(configs.Token{Name: "demo", PINFile: path})
	if fmt.Sprint(err) != fmt.Sprint(used) {
		t.Errorf("a look says %v, its use %v", err, used)
	}
}

// A look reads no PIN and runs no command: what a file holds is not looked at, and a token whose PIN is typed at its device has none.
func TestLook(t *testing.T) {
	dir := t.TempDir()
	ran := filepath.Join(dir, "ran")
	script := write(t, filepath.Join(dir, "script"), "#!/bin/sh\ntouch "+ran+"\n", 0o700)
	empty := write(t, filepath.Join(dir, "empty"), "", 0o400)
	gone := filepath.Join(dir, "gone")
	yes := true
	for name, tt := range map[string]struct {
		token configs.Token
		want  string
	}{
		"an empty file":         {configs.Token{PINFile: empty}, ""},
		"a command":             {configs.Token{PINCommand: []string{script}}, ""},
		"a command of the PATH": {configs.Token{PINCommand: []string{"cat", gone}}, ""},
		"no command":            {configs.Token{PINCommand: []string{gone}}, "pin_command: "},
		"no program":            {configs.Token{PINCommand: []string{empty}}, "pin_command: "},
		"a prompt":              {configs.Token{PINPrompt: true}, ""},
		"a credential":          {configs.Token{PINCredential: "demo"}, ""},
		"at the device":         {configs.Token{PINFile: gone, Quirks: quirks.Override{ProtectedPath: &yes}}, ""},
	} {
		err := pin.Look(tt.token)
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.HasPrefix(err.Error(), tt.want)) {
			t.Errorf("%s: got %v, want %q", name, err, tt.want)
		}
	}
	if _, err := os.Stat(ran); !errors.Is(err, os.ErrNotExist) {
		t.Error("the command was run")
	}
}

// Who may not read a PIN file is told so, and still that others may.
func TestLookOfAnother(t *testing.T) {
	dir := t.TempDir()
	if err := errors.Join(os.Chmod(dir, 0o755), os.Chmod(filepath.Dir(dir), 0o755)); err != nil { //nolint:gosec // others get there
		t.Fatal(err)
	}
	secret := rand.Text()
	private := write(t, filepath.Join(dir, "private"), secret, 0)
	group := write(t, filepath.Join(dir, "group"), secret, 0o040)
	var closed, open error
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread, which is another user's from here on, ends with this
		if os.Geteuid() == 0 {
			const nobody = 65534
			if _, err := unix.SetfsuidRetUid(nobody); err != nil {
				done <- err
				return
			}
			if _, err := unix.SetfsgidRetGid(nobody); err != nil {
				done <- err
				return
			}
		}
		closed, open = pin.Look(configs.Token{PINFile: private}), pin.Look(configs.Token{PINFile: group})
		done <- nil
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if !errors.Is(closed, os.ErrPermission) {
		t.Errorf("a private file: %v", closed)
	}
	if open == nil || !strings.Contains(open.Error(), "can be read by others (mode 0040)") {
		t.Errorf("a file that its group reads: %v", open)
	}
}
