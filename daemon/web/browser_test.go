package web

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
)

// browse lets a real browser load a page and gives the document as it is after a while, and what the browser complained about.
func browse(t *testing.T, address, virtual string) (document string, complaints []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	// --no-sandbox: as root Chromium has no sandbox; the page is our own.
	cmd := exec.CommandContext(ctx, "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr", "--log-level=0",
		"--user-data-dir="+t.TempDir(), "--virtual-time-budget="+virtual, "--dump-dom", address)
	var out, log strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &log
	if err := cmd.Run(); err != nil {
		t.Fatalf("chromium (installed? run `make deps`): %v\n%s", err, log.String())
	}
	for line := range strings.Lines(log.String()) {
		if strings.Contains(line, ":CONSOLE") {
			complaints = append(complaints, line)
		}
	}
	return out.String(), complaints
}

// A browser shows every page under the strict policy without a complaint, asks nobody else, and loads the first page anew by itself.
func TestBrowser(t *testing.T) {
	s := &Server{Service: &service{}, Log: zap.NewNop(), Now: func() time.Time { return noon }}
	h, err := s.Handler()
	if err != nil {
		t.Fatal(err)
	}
	var first, anew atomic.Int32
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == Root && r.Header.Get("HX-Request") == "true":
			anew.Add(1)
		case r.URL.Path == Root:
			first.Add(1)
		}
		h.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	for _, path := range []string{"", "requests/7K3M-9QXA-0B2C-D4EF", "keys/payments"} {
		document, complaints := browse(t, srv.URL+Root+path, "40000")
		if len(complaints) > 0 {
			t.Errorf("%q: the browser complains: %s", path, complaints)
		}
		if !strings.Contains(document, "</footer>") || strings.Contains(document, "<script>alert") {
			t.Errorf("%q: %s", path, document)
		}
	}
	if first.Load() != 1 || anew.Load() < 1 {
		t.Errorf("the first page was loaded %d times and anew %d times", first.Load(), anew.Load())
	}
}

// The test would see a complaint if there were one.
func TestBrowserComplains(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Security-Policy", "default-src 'none'")
		w.Header().Set("Content-Type", "text/html")
		_, _ = w.Write([]byte("<!DOCTYPE html><p style='color:red'>x<script>alert(1)</script>"))
	}))
	t.Cleanup(srv.Close)
	if _, complaints := browse(t, srv.URL, "1000"); len(complaints) == 0 {
		t.Error("the browser does not complain about what the policy forbids")
	}
}
