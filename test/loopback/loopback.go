// Package loopback has addresses of this machine that are one test's alone: a port that was found free and given back may be somebody else's when
// it is used.
package loopback

import (
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// Refused is an address, host and port, where nobody listens until the test has ended. The port is bound: nobody else gets it, and the kernel refuses
// who connects, as there is no listen(2). Source: tcp(7).
func Refused(tb testing.TB) string {
	tb.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		tb.Fatal(os.NewSyscallError("socket", err))
	}
	tb.Cleanup(func() { _ = unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		tb.Fatal(os.NewSyscallError("bind", err))
	}
	bound, err := unix.Getsockname(fd)
	if err != nil {
		tb.Fatal(os.NewSyscallError("getsockname", err))
	}
	at, ok := bound.(*unix.SockaddrInet4)
	if !ok {
		tb.Fatalf("the socket is bound to %T", bound)
	}
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(at.Port))
}

// Host is an address of loopback by chance, one of 16 million. Nearly everybody else uses 127.0.0.1: a port of this one that is given back and bound
// again later is still free.
func Host() string {
	var b [3]byte
	_, _ = rand.Read(b[:])
	return fmt.Sprintf("127.%d.%d.%d", b[0], b[1], 2+b[2]%250) // not 127.0.0.1
}
