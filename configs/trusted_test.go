package configs

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A configuration that somebody else can change is not used.
func TestTrusted(t *testing.T) {
	const text = "tokens: []\n"
	const good = 0o640
	me := os.Geteuid()
	for name, tt := range map[string]struct {
		mode, folder os.FileMode
		owner        int
		link         bool
		want         string
	}{
		"own":                  {good, 0o755, me, false, ""},
		"readable by all":      {0o644, 0o755, me, false, ""},
		"group writes":         {0o660, 0o755, me, false, "others than its owner can write to it (mode 0660), and so decide which keys go where; it was not used; run: chmod go-w "},
		"others write":         {0o602, 0o755, me, false, "(mode 0602)"},
		"through a link":       {0o660, 0o755, me, true, "(mode 0660)"},
		"everybody's folder":   {good, 0o757, me, false, "everybody can write to its folder (mode 0757)"},
		"folder behind a link": {good, 0o757, me, true, "everybody can write to its folder (mode 0757)"},
		"like /tmp":            {good, 0o777 | os.ModeSticky, me, false, ""},
		"another's":            {good, 0o755, 65534, false, "it belongs to user 65534, who is neither root nor the one who runs this (" + strconv.Itoa(me) + ")"},
	} {
		t.Run(name, func(t *testing.T) {
			if tt.owner != me && me != 0 {
				// Only root can give a file away; who is not root finds files of root trusted.
				if _, err := Load("/etc/hostname"); err != nil && strings.Contains(err.Error(), "belongs to") {
					t.Error(err)
				}
				return
			}
			dir := filepath.Join(t.TempDir(), "d")
			path := filepath.Join(dir, "hsmbridge.yaml")
			for _, err := range []error{
				os.Mkdir(dir, 0o700), os.WriteFile(path, []byte(text), 0o600), os.Chmod(path, tt.mode), os.Chown(path, tt.owner, -1), os.Chmod(dir, tt.folder),
			} {
				if err != nil {
					t.Fatal(err)
				}
			}
			if tt.link {
				link := filepath.Join(t.TempDir(), "link.yaml")
				if err := os.Symlink(path, link); err != nil {
					t.Fatal(err)
				}
				path = link
			}
			_, err := Load(path)
			refused := err != nil && strings.Contains(err.Error(), "it was not used")
			switch {
			case tt.want == "" && refused:
				t.Error(err)
			case tt.want != "" && (!refused || !strings.Contains(err.Error(), tt.want) || !strings.HasPrefix(err.Error(), "read the configuration: "+path+": ")):
				t.Errorf("got %v, want %s", err, tt.want)
			}
		})
	}
}

// Where others can put files, a pipe of theirs is no way around: what comes out of it is theirs. One without a name comes from whoever runs this.
func TestTrustedPipe(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "hsmbridge.yaml")
	write := func(w *os.File) {
		if _, err := w.WriteString("tokens: []\n"); err != nil { // less than a pipe holds
			t.Fatal(err)
		}
	}
	read := func(path string) (used bool, err error) {
		loaded := make(chan error, 1)
		go func() {
			_, err := Load(path)
			loaded <- err
		}()
		select {
		case err = <-loaded:
			return err == nil || !strings.Contains(err.Error(), "it was not used"), err
		case <-time.After(time.Minute):
			return true, errors.New("the end of what is read has not come")
		}
	}
	const private, written, public, everybody os.FileMode = 0o600, 0o622, 0o755, 0o777
	for _, others := range []string{"owner", "mode", "folder"} {
		if err := syscall.Mkfifo(path, uint32(private)); err != nil {
			t.Fatal(err)
		}
		var err error
		switch others {
		case "owner":
			if os.Geteuid() == 0 { // only root can give it away
				err = os.Chown(path, 65534, -1)
			} else {
				err = os.Chmod(path, written)
			}
		case "mode":
			err = os.Chmod(path, written)
		case "folder":
			err = os.Chmod(dir, everybody)
		}
		if err != nil {
			t.Fatal(err)
		}
		w, err := os.OpenFile(path, os.O_RDWR, 0) // does not wait for who reads; who reads waits for a writer, and so it stays open
		if err != nil {
			t.Fatal(err)
		}
		write(w)
		if used, err := read(path); used {
			t.Errorf("%s: the pipe of others was read: %v", others, err)
		}
		if err := errors.Join(w.Close(), os.Remove(path), os.Chmod(dir, public)); err != nil {
			t.Fatal(err)
		}
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close() //nolint:errcheck // of a test
	write(w)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if used, err := read("/dev/fd/" + strconv.Itoa(int(r.Fd()))); !used {
		t.Errorf("a pipe from the one who runs this: %v", err)
	}
}

// Who may not read the configuration is told whom to ask, and not to write another one.
func TestMayNotRead(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "hsmbridge.yaml")
	if err := errors.Join(os.WriteFile(path, []byte("tokens: []\n"), 0o600), os.Chmod(path, 0), os.Chmod(dir, 0o755), os.Chmod(filepath.Dir(dir), 0o755)); err != nil { //nolint:gosec // others get there
		t.Fatal(err)
	}
	failed := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread, which is another user's from here on, ends with this
		if os.Geteuid() == 0 {
			const nobody = 65534
			if _, err := unix.SetfsuidRetUid(nobody); err != nil {
				failed <- err
				return
			}
		}
		_, err := Load(path)
		failed <- err
	}()
	err := <-failed
	if !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), "open "+path+": permission denied; it is for its owner (") || strings.Contains(err.Error(), "config init") {
		t.Errorf("without access: %v", err)
	}
}
