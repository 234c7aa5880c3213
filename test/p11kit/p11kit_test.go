package p11kit_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hsmbridge/test/p11kit"
	"hsmbridge/test/softhsm"
	"hsmbridge/test/token"
)

// serving counts the processes that serve the socket.
func serving(t *testing.T, socket string) (n int) {
	t.Helper()
	found, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range found {
		if line, err := os.ReadFile(file); err == nil && strings.Contains(string(line), socket) {
			n++
		}
	}
	return n
}

func TestNothingIsLeft(t *testing.T) {
	var socket string
	t.Run("use", func(t *testing.T) {
		s := p11kit.Serve(t, softhsm.New(t, "left").Token)
		socket = strings.TrimPrefix(s.Environment["P11_KIT_SERVER_ADDRESS"], "unix:path=")
		s.Generate(t, "key", "01")
		if serving(t, socket) == 0 {
			t.Error("no process serves the socket")
		}
	})
	if left := token.Files(t, filepath.Dir(socket)); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	for deadline := time.Now().Add(30 * time.Second); serving(t, socket) > 0; time.Sleep(5 * time.Millisecond) { // killed, they end in their own time
		if time.Now().After(deadline) {
			t.Fatal("processes of p11-kit are left")
		}
	}
}
