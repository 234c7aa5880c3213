package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestFlagsThatAreRefused(t *testing.T) {
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"-listen", "0.0.0.0:0"}, "loopback only"},
		{[]string{"-listen", "192.0.2.1:0"}, "loopback only"},
		{[]string{"-listen", "nowhere"}, "-listen"},
		{[]string{"-quotas", "yes"}, "on or off"},
		{[]string{"-era", "1999"}, "2018"},
		{[]string{"-account", "12"}, "12 digits"},
		{[]string{"extra"}, "unexpected argument"},
		{[]string{"-state", filepath.Join("no", "such", "folder", "state.json"), "-listen", "127.0.0.1:-1"}, ""},
	} {
		err := run(t.Context(), tt.args, io.Discard)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: %v, want %q", tt.args, err, tt.want)
		}
	}
}

// TestInUse has the emulator's own words about the commonest mistake: two of them.
func TestInUse(t *testing.T) {
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // nothing was written
	err = run(t.Context(), []string{"-listen", l.Addr().String()}, io.Discard)
	if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), "another address with -listen") {
		t.Errorf("%v", err)
	}
}

// TestServes holds the first lines that it prints, and that it ends when it is told to.
func TestServes(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() { done <- run(ctx, []string{"-listen", "127.0.0.1:0"}, w) }()
	buf := make([]byte, 4096)
	var out bytes.Buffer
	for strings.Count(out.String(), "\n") < 2 {
		n, err := r.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		out.Write(buf[:n])
	}
	lines := strings.Split(out.String(), "\n")
	endpoint, ok := strings.CutPrefix(lines[1], "listening on ")
	if !strings.Contains(lines[0], "NOT FOR PRODUCTION") || !ok {
		t.Fatalf("printed %q", out.String())
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, endpoint, strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Amz-Target", "TrentService.ListKeys")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusBadRequest || !bytes.Contains(body, []byte("MissingAuthenticationToken")) {
		t.Errorf("an unsigned request: %s %s, %v", resp.Status, body, err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("run: %v", err)
	}
}
