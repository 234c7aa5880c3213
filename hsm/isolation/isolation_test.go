package isolation

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// envRole makes this binary a restricted process that says what it could do: "none" or "allowed", for the network.
const envRole = "ISOLATION_TEST"

func TestMain(m *testing.M) {
	if role := os.Getenv(envRole); role != "" {
		os.Exit(restricted(role == "allowed"))
	}
	os.Exit(m.Run())
}

// attempts are tried on the restricted thread.
func attempts() map[string]func() error {
	socket := func(family, kind int) func() error {
		return func() error {
			fd, err := unix.Socket(family, kind, 0)
			if err == nil {
				err = unix.Close(fd)
			}
			return err
		}
	}
	other := func(number uintptr) func() error {
		return func() error {
			if _, _, errno := unix.Syscall6(number, uintptr(os.Getppid()), 0, 0, 0, 0, 0); errno != 0 {
				return errno
			}
			return nil
		}
	}
	return map[string]func() error{
		"AF_INET": socket(unix.AF_INET, unix.SOCK_STREAM), "AF_INET6": socket(unix.AF_INET6, unix.SOCK_DGRAM), "AF_PACKET": socket(unix.AF_PACKET, unix.SOCK_RAW),
		"AF_VSOCK": socket(unix.AF_VSOCK, unix.SOCK_STREAM), "AF_UNIX": socket(unix.AF_UNIX, unix.SOCK_STREAM),
		"ptrace": func() error { return unix.PtraceAttach(os.Getppid()) }, "process_vm_readv": other(unix.SYS_PROCESS_VM_READV), "pidfd_getfd": other(unix.SYS_PIDFD_GETFD),
		"io_uring_setup": other(unix.SYS_IO_URING_SETUP),
		"parent's memory": func() error {
			f, err := os.Open("/proc/" + strconv.Itoa(os.Getppid()) + "/mem")
			if err == nil {
				err = f.Close()
			}
			return err
		},
		"move a file": func() error {
			dir, err := os.MkdirTemp("", "isolation")
			if err != nil {
				return err
			}
			defer os.RemoveAll(dir) //nolint:errcheck // of a test
			from, to := filepath.Join(dir, "file"), filepath.Join(dir, "sub", "file")
			return errors.Join(os.WriteFile(from, nil, 0o600), os.Mkdir(filepath.Dir(to), 0o700), os.Rename(from, to))
		},
		"connect": func() error {
			fd, err := strconv.Atoi(os.Getenv("ISOLATION_TEST_SOCKET")) // of TCP, made before
			if err != nil {
				return err
			}
			return unix.Connect(fd, &unix.SockaddrInet4{Port: 9, Addr: [4]byte{127, 0, 0, 1}})
		},
	}
}

func restricted(network bool) int {
	runtime.LockOSThread()
	measures := Restrict(network)
	out := map[string]string{}
	for _, m := range append(measures, Finish()...) {
		out[m.Name] = m.State
	}
	for name, try := range attempts() {
		var errno unix.Errno
		switch err := try(); {
		case err == nil:
			out[name] = "done"
		case errors.As(err, &errno):
			out[name] = unix.ErrnoName(errno)
		default:
			out[name] = err.Error()
		}
	}
	_ = json.NewEncoder(os.Stdout).Encode(out)
	return 0
}

// Whatever the kernel's Landlock knows, there is a ruleset, which keeps the process away from its parent's memory; what a kernel of an earlier ABI is given,
// this one takes too.
func TestRulesets(t *testing.T) {
	v, _, errno := unix.Syscall(landlockCreate, 0, 0, versionFlag)
	if errno != 0 {
		t.Fatalf("this kernel has no Landlock: %v", errno)
	}
	for abi := 1; abi <= int(v); abi++ {
		for _, network := range []bool{false, true} {
			r, size := rules(abi, network)
			if (r.fs != 0) != (r.net == 0 && r.scoped == 0) || (r.net != 0) != (abi >= abiNetwork && !network) || (r.scoped != 0) != (abi >= abiScoped) {
				t.Errorf("ABI %d, network %t: %+v", abi, network, r)
			}
			fd, _, errno := unix.Syscall(landlockCreate, uintptr(unsafe.Pointer(&r)), size, 0)
			if errno != 0 {
				t.Errorf("ABI %d, network %t: %v", abi, network, errno)
				continue
			}
			if err := unix.Close(int(fd)); err != nil {
				t.Error(err)
			}
		}
	}
}

// A restricted process tries what it must not do.
func TestRestricted(t *testing.T) {
	for role, want := range map[string]map[string]string{
		"none": {
			"AF_INET": "EAFNOSUPPORT", "AF_INET6": "EAFNOSUPPORT", "AF_PACKET": "EAFNOSUPPORT", "AF_VSOCK": "EAFNOSUPPORT", "AF_UNIX": "done", "ptrace": "EPERM", "process_vm_readv": "EPERM",
			"pidfd_getfd": "EPERM", "io_uring_setup": "EPERM", "new privileges": "none", "seccomp": "on", "core dumps": "none", "sockets": "AF_UNIX only", "parent's memory": "EACCES", "move a file": "done",
		},
		"allowed": {
			"AF_INET": "done", "AF_INET6": "done", "AF_UNIX": "done", "ptrace": "EPERM", "process_vm_readv": "EPERM", "pidfd_getfd": "EPERM", "io_uring_setup": "EPERM",
			"new privileges": "none", "seccomp": "on", "core dumps": "none", "sockets": "AF_UNIX AF_INET AF_INET6 AF_NETLINK", "parent's memory": "EACCES", "move a file": "done",
		},
	} {
		t.Run(role, func(t *testing.T) {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			f := os.NewFile(uintptr(fd), "socket")
			defer f.Close() //nolint:errcheck // nothing was sent
			c := exec.CommandContext(t.Context(), "/proc/self/exe")
			c.Env, c.ExtraFiles, c.Stderr = []string{envRole + "=" + role, "ISOLATION_TEST_SOCKET=3"}, []*os.File{f}, os.Stderr
			b, err := c.Output()
			if err != nil {
				t.Fatal(err)
			}
			got := map[string]string{}
			if err := json.Unmarshal(b, &got); err != nil {
				t.Fatal(err)
			}
			for name, state := range want {
				if got[name] != state {
					t.Errorf("%s: %q, want %q", name, got[name], state)
				}
			}
			// Landlock is not in every kernel. Where it is, it refuses a connection also over a socket that was open before.
			if landlocked := strings.HasPrefix(got["Landlock"], "ABI"); landlocked && role == "none" && got["connect"] != "EACCES" {
				t.Errorf("Landlock %s lets connect end with %s", got["Landlock"], got["connect"])
			}
		})
	}
}

// A page for a secret is there, zero, and can be written.
func TestLockedPage(t *testing.T) {
	page, err := LockedPage(os.Getpagesize())
	if err != nil {
		t.Fatal(err)
	}
	for i := range page {
		if page[i] != 0 {
			t.Fatal("it is not zero")
		}
		page[i] = 1
	}
}
