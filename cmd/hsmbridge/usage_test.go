package main

import (
	"bytes"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"
)

// answers serves a daemon's answers, by path, on a socket; what is not among them is not there.
func answers(t *testing.T, byPath map[string]string) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "c.sock")
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, ok := byPath[r.URL.Path]
		if !ok {
			w.WriteHeader(http.StatusNotFound)
			body = `{"error":"there is nothing like that"}`
		}
		_, _ = w.Write([]byte(body))
	}))
	_ = s.Listener.Close()
	s.Listener = l
	s.Start()
	t.Cleanup(s.Close)
	return socket
}

// A subcommand of jobs that is misspelt looks like the name of a key, which no key has.
func TestJobsMisspelt(t *testing.T) {
	socket := answers(t, map[string]string{"/v1/jobs": `{"jobs":[]}`})
	for name, want := range map[string]string{
		"cnacel":   "hsmbridge: there is no key \"cnacel\", and no command: did you mean hsmbridge jobs cancel?\nsee: hsmbridge jobs --help\n",
		"payments": "hsmbridge: there is nothing like that\n",
	} {
		var out, said bytes.Buffer
		(&app{out: &out, err: &said}).run(t.Context(), []string{"jobs", "--socket", socket, name})
		if said.String() != want {
			t.Errorf("jobs %s said %q, want %q", name, said.String(), want)
		}
	}
}
