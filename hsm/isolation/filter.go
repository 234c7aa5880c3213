package isolation

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Where things are in what a filter sees. Source: struct seccomp_data, linux/seccomp.h.
const (
	offsetNumber   = 0
	offsetArch     = 4
	offsetArgument = 16 // the lower half of the first, little endian
	x32            = 0x40000000
)

// refused are the system calls that a module's process has no use for: they reach into other processes, or, io_uring, do what
// the filter does not see.
func refused() []uint32 {
	return []uint32{unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_PIDFD_GETFD, unix.SYS_IO_URING_SETUP}
}

// program is the filter: calls of another processor's table and those of refused fail with EPERM, socket(2) of another family than AF_UNIX
// with EAFNOSUPPORT, unless the network is allowed. Everything else passes. Nothing is killed: modules try this and that.
func program(arch uint32, network bool) []unix.SockFilter {
	const (
		load   = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		equal  = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		atMost = unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K
		answer = unix.BPF_RET | unix.BPF_K
		allow  = unix.SECCOMP_RET_ALLOW
		fail   = unix.SECCOMP_RET_ERRNO
	)
	p := []unix.SockFilter{
		{Code: load, K: offsetArch},
		{Code: equal, K: arch, Jt: 1},
		{Code: answer, K: fail | uint32(unix.EPERM)},
		{Code: load, K: offsetNumber},
	}
	if arch == unix.AUDIT_ARCH_X86_64 {
		p = append(p, unix.SockFilter{Code: atMost, K: x32, Jf: 1}, unix.SockFilter{Code: answer, K: fail | uint32(unix.EPERM)})
	}
	for _, number := range refused() {
		p = append(p, unix.SockFilter{Code: equal, K: number, Jf: 1}, unix.SockFilter{Code: answer, K: fail | uint32(unix.EPERM)})
	}
	if !network {
		p = append(p,
			unix.SockFilter{Code: equal, K: unix.SYS_SOCKET, Jf: 3},
			unix.SockFilter{Code: load, K: offsetArgument},
			unix.SockFilter{Code: equal, K: unix.AF_UNIX, Jt: 1},
			unix.SockFilter{Code: answer, K: fail | uint32(unix.EAFNOSUPPORT)})
	}
	return append(p, unix.SockFilter{Code: answer, K: allow})
}

// filter installs it for the calling thread and what comes of it. prctl(2) rather than seccomp(2): systemd's @system-service has it.
func filter(network bool) error {
	arch, ok := supported()
	if !ok {
		return fmt.Errorf("no filter for %s", runtime.GOARCH)
	}
	p := program(arch, network)
	prog := unix.SockFprog{Len: uint16(len(p)), Filter: &p[0]} //nolint:gosec // some twenty
	err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&prog)), 0, 0)
	runtime.KeepAlive(p)
	return err //nolint:wrapcheck // an error number
}

// ruleset is struct landlock_ruleset_attr of linux/landlock.h.
type ruleset struct{ fs, net, scoped uint64 }

// The rights that a ruleset takes away when no rule gives them back. Source: linux/landlock.h.
const (
	fsMakeBlock    = 1 << 11 // block devices, which no module makes
	netBindTCP     = 1 << 0
	netConnectTCP  = 1 << 1
	scopeAbstract  = 1 << 0 // abstract Unix sockets of others
	scopeSignal    = 1 << 1 // signals to others
	versionFlag    = 1
	abiNetwork     = 4
	abiScoped      = 6
	sizeOfFiles    = 8
	sizeOfNetwork  = 16
	sizeOfScoped   = 24
	landlockCreate = unix.SYS_LANDLOCK_CREATE_RULESET
)

// landlock forbids TCP, unless the network is allowed, and signals to other processes, as far as the kernel can; it also keeps debuggers' calls away from
// them, which any ruleset does, and so there is always one. It gives the ABI version of the kernel.
func landlock(network bool) (abi int, err error) {
	v, _, errno := unix.Syscall(landlockCreate, 0, 0, versionFlag)
	if errno != 0 {
		return 0, errno
	}
	abi = int(v)
	r, size := rules(abi, network)
	fd, _, errno := unix.Syscall(landlockCreate, uintptr(unsafe.Pointer(&r)), size, 0)
	if errno != 0 {
		return abi, errno
	}
	defer unix.Close(int(fd)) //nolint:errcheck // a ruleset has nothing to lose
	if _, _, errno = unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, fd, 0, 0); errno != 0 {
		return abi, errno
	}
	return abi, nil
}

// rules is the ruleset for a kernel of that ABI, and how much of it such a kernel knows.
func rules(abi int, network bool) (r ruleset, size uintptr) {
	size = sizeOfFiles
	if abi >= abiNetwork {
		size = sizeOfNetwork
		if !network {
			r.net = netBindTCP | netConnectTCP
		}
	}
	if abi >= abiScoped {
		r.scoped, size = scopeSignal, sizeOfScoped
		if !network {
			r.scoped |= scopeAbstract
		}
	}
	if r == (ruleset{}) { // one with a right to files also forbids to move them from directory to directory (LANDLOCK_ACCESS_FS_REFER), whatever it says
		r.fs = fsMakeBlock
	}
	return r, size
}

// sameUsers tells whether the process is in the first user namespace: capabilities of another one unlock no memory.
func sameUsers() bool {
	b, err := os.ReadFile("/proc/self/uid_map")
	f := strings.Fields(string(b))
	return err == nil && len(f) == 3 && f[0] == "0" && f[1] == "0" && f[2] == "4294967295"
}
