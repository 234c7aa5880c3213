package control

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"hsmbridge/daemon/store"
)

// FuzzServer holds that every request is answered in JSON, that nothing but one strict JSON value is taken as a body, and that nobody but an
// operator has anything done.
func FuzzServer(f *testing.F) {
	for _, rt := range routes() {
		body := []byte(nil)
		if rt.in != nil {
			var err error
			if body, err = json.Marshal(rt.in); err != nil {
				f.Fatal(err)
			}
		}
		f.Add(rt.method == http.MethodPost, strings.NewReplacer("{name}", "k", "{id}", "7").Replace(rt.path), "", body, true)
	}
	f.Add(true, "/v1/start", "", []byte(`{"keys":["k"]}{"keys":["other"]}`), true)
	f.Add(true, "/v1/keys/k/revoke", "", []byte(`{"confirm":"k","reason":"r"}`), false)
	f.Add(false, "/v1/events", "follow=true&after=18446744073709551616", []byte(nil), false)
	f.Add(false, "/v1/keys/%2e%2e%2fjobs", "key=%00", []byte(nil), true)
	s := new(service)
	h := (&Server{Service: s, Operators: func() []string { return nil }, Log: zap.NewNop()}).Handler()
	f.Fuzz(func(t *testing.T, post bool, path, query string, body []byte, operator bool) {
		method := http.MethodGet
		if post {
			method = http.MethodPost
		}
		u, err := url.ParseRequestURI("http://hsmbridge/" + strings.TrimPrefix(path, "/"))
		if err != nil {
			return
		}
		u.RawQuery = query
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond) // ends what follows the events
		defer cancel()
		who := peer{uid: 65534, gid: 65534, known: true}
		if operator {
			who = peer{known: true}
		}
		*s = service{events: make(chan struct{})}
		r := (&http.Request{Method: method, URL: u, Host: u.Host, Header: http.Header{}, Body: io.NopCloser(bytes.NewReader(body)), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1}).
			WithContext(context.WithValue(ctx, peerKey{}, who))
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if !operator && len(s.asked) > 0 {
			t.Errorf("%s %s by somebody else: %q", method, u, s.asked)
		}
		switch w.Code {
		case http.StatusMovedPermanently, http.StatusTemporaryRedirect, http.StatusPermanentRedirect: // a path with "..", by net/http
			return
		case http.StatusOK, http.StatusAccepted, http.StatusBadRequest, http.StatusForbidden, http.StatusNotFound, http.StatusConflict:
		case http.StatusInternalServerError:
			if len(s.asked) == 0 || !strings.Contains(s.asked[0], " cancel ") { // which fails, here
				t.Errorf("%s %s: %s", method, u, w.Body)
			}
		default:
			t.Errorf("%s %s: %d %s", method, u, w.Code, w.Body)
		}
		if follows := w.Header().Get("Content-Type") == "application/x-ndjson"; !follows && !json.Valid(w.Body.Bytes()) {
			t.Errorf("%s %s: %d %q", method, u, w.Code, w.Body)
		}
		if takes := slices.ContainsFunc(s.asked, func(a string) bool { return strings.Contains(a, " start ") || strings.Contains(a, " revoke ") }); takes && !json.Valid(body) {
			t.Errorf("%s %s takes the body %q: %q", method, u, body, s.asked)
		}
	})
}

// answers is a daemon that answers every request with the same.
type answers struct {
	status int
	body   []byte
}

func (a answers) RoundTrip(r *http.Request) (*http.Response, error) {
	return &http.Response{Status: http.StatusText(a.status), StatusCode: a.status, Header: http.Header{}, Body: io.NopCloser(bytes.NewReader(a.body)), Request: r}, nil
}

// FuzzClient holds that no answer of a daemon makes the commands fail otherwise than with an error, and that none but 200 is a success.
func FuzzClient(f *testing.F) {
	now := time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, v := range []any{
		Status{Now: now, Jobs: map[string]int{"queued": 1}},
		KeyList{Keys: []ManagedKey{{Name: "k"}}},
		JobList{Jobs: []store.Job{{ID: 1, NotBefore: now}}},
		ImportList{Imports: []store.Import{{ID: 1}}},
		EventList{Events: []store.Event{{ID: 1, Time: now}}},
		store.Event{ID: 1},
		RequestList{Requests: []Request{{}}},
		Problem{Error: "no", Class: "caller"},
		OK{},
	} {
		b, err := json.Marshal(v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint16(http.StatusOK), b)
		f.Add(uint16(http.StatusConflict), b)
	}
	f.Add(uint16(http.StatusAccepted), []byte(`{"error":"waits","class":"approval","request":"7K3M"}`))
	f.Add(uint16(http.StatusBadGateway), []byte("<html>"))
	f.Fuzz(func(t *testing.T, status uint16, body []byte) {
		ctx := t.Context()
		c := &Client{socket: "socket", http: &http.Client{Transport: answers{100 + int(status)%500, body}}}
		filter := store.EventFilter{}
		for name, ask := range map[string]func() error{
			"status":   func() error { _, err := c.Status(ctx); return err },
			"keys":     func() error { _, err := c.Keys(ctx, ""); return err },
			"jobs":     func() error { _, err := c.Jobs(ctx, store.JobFilter{}); return err },
			"imports":  func() error { _, err := c.Imports(ctx, "", 0, 0); return err },
			"events":   func() error { return c.Events(ctx, filter, false, func(store.Event) error { return nil }) },
			"follow":   func() error { return c.Events(ctx, filter, true, func(store.Event) error { return nil }) },
			"revoke":   func() error { _, err := c.Revoke(ctx, "k", ReasonRequest{}); return err },
			"requests": func() error { _, err := c.Requests(ctx, "", false, 0); return err },
			"request":  func() error { _, err := c.Request(ctx, "7K3M"); return err },
			"approve":  func() error { _, err := c.Approve(ctx, "7K3M", nil); return err },
		} {
			err := ask()
			if err == nil && 100+int(status)%500 != http.StatusOK {
				t.Errorf("%s: the answer %d %q is a success", name, status, body)
			}
			if err != nil && err.Error() == "" {
				t.Errorf("%s: %d %q is an error without a word", name, status, body)
			}
		}
	})
}
