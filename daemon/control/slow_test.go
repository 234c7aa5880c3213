package control

import (
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"
	"time"
)

// Of a daemon that takes a request and does not answer it is told, and its answer counts when it comes.
func TestSlow(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	told := make(chan struct{})
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		<-told
		_, _ = w.Write([]byte(`{"daemon": "one"}`))
	}))
	_ = s.Listener.Close()
	s.Listener = l
	s.Start()
	defer s.Close()
	times := 0
	c := NewClient(socket).Slow(time.Millisecond, func() {
		times++
		close(told)
	})
	got, err := c.Status(t.Context())
	if err != nil || got.Daemon != "one" || times != 1 {
		t.Errorf("told %d times, %+v, %v", times, got, err)
	}
	c.Slow(time.Hour, func() { t.Error("told of a daemon that answers") })
	if _, err := c.Status(t.Context()); err != nil {
		t.Error(err)
	}
}
