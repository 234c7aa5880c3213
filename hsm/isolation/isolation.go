// Package isolation makes a process alone: no network, no new privileges, no core image, no debugger, no swap. A vendor's library is then
// loaded into it. What the kernel does not allow is left out and said; nothing here fails.
package isolation

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// Measure is one thing that was done, and how it went.
type Measure struct{ Name, State string }

// Restrict takes away what the process must not have and what stays away over execve(2): new privileges, the network unless it is
// wanted, other processes' memory. It restricts the calling thread, which then has to become the process by execve(2).
func Restrict(network bool) []Measure {
	out := []Measure{{"new privileges", state("none", unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))}}
	abi, err := landlock(network)
	switch {
	case err != nil:
		out = append(out, Measure{"Landlock", "not here: " + err.Error()})
	default:
		out = append(out, Measure{"Landlock", fmt.Sprintf("ABI %d", abi)})
	}
	return append(out, Measure{"seccomp", state("on", filter(network))})
}

// Finish does what has to be done after the last execve(2), and tries whether the network is away.
func Finish() []Measure {
	return []Measure{
		{"core dumps", state("none", NoDumps())},
		{"memory", locked()},
		{"sockets", sockets()},
	}
}

// NoDumps keeps what is in the process's memory out of core images and away from debuggers of the same user.
func NoDumps() error {
	err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
	if perr := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); perr != nil {
		err = perr
	}
	return err
}

func state(good string, err error) string {
	if err != nil {
		return "not here: " + err.Error()
	}
	return good
}

// locked keeps the memory that the process uses out of swap. A limit would count what is only reserved, and Go reserves much: then the
// runtime would end the process. So all is locked where there is no limit, and else only the page that a PIN goes through, which is
// locked by itself.
func locked() string {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &limit); err != nil {
		return "the PIN's page locked: " + err.Error()
	}
	if limit.Cur != unix.RLIM_INFINITY && !mayLock() {
		return fmt.Sprintf("the PIN's page locked (the limit of locked memory is %d KiB)", limit.Cur>>10)
	}
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil {
		return "the PIN's page locked: " + err.Error()
	}
	return "all locked"
}

// mayLock tells whether the process has CAP_IPC_LOCK, for which there is no limit.
func mayLock() bool {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&head, &data[0]); err != nil {
		return false
	}
	return data[0].Effective&(1<<unix.CAP_IPC_LOCK) != 0 && sameUsers()
}

// sockets opens one of each family, to see.
func sockets() string {
	open := ""
	for _, f := range []struct {
		name   string
		family int
	}{{"AF_INET", unix.AF_INET}, {"AF_INET6", unix.AF_INET6}, {"AF_NETLINK", unix.AF_NETLINK}} {
		if fd, err := unix.Socket(f.family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err == nil {
			_ = unix.Close(fd)
			open += " " + f.name
		}
	}
	if open == "" {
		return "AF_UNIX only"
	}
	return "AF_UNIX" + open
}

// LockedPage is memory of its own for a secret: locked, not in core images, zero in a child.
func LockedPage(size int) ([]byte, error) {
	page, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("memory for a secret: %w", err)
	}
	_ = unix.Mlock(page) // a limit of zero: it may then be swapped, for as long as a login takes
	_ = unix.Madvise(page, unix.MADV_DONTDUMP)
	_ = unix.Madvise(page, unix.MADV_WIPEONFORK)
	return page, nil
}

// supported are the processors whose system call numbers the filter knows.
func supported() (arch uint32, ok bool) {
	switch runtime.GOARCH {
	case "amd64":
		return unix.AUDIT_ARCH_X86_64, true
	case "arm64":
		return unix.AUDIT_ARCH_AARCH64, true
	}
	return 0, false
}
