package loopback_test

import (
	"errors"
	"net"
	"syscall"
	"testing"

	"hsmbridge/test/loopback"
)

// Who connects is refused, and nobody else gets the port.
func TestRefused(t *testing.T) {
	address := loopback.Refused(t)
	if c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", address); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a connection: %v, %v", c, err)
	}
	if l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", address); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("somebody listens there: %v, %v", l, err)
	}
}

// The addresses are loopback's, and not always the same.
func TestHost(t *testing.T) {
	seen := map[string]bool{}
	for range 20 {
		host := loopback.Host()
		l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", net.JoinHostPort(host, "0"))
		if err != nil {
			t.Fatal(err)
		}
		_ = l.Close()
		seen[host] = true
	}
	if len(seen) < 10 {
		t.Errorf("%d addresses of 20", len(seen))
	}
}
