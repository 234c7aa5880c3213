// Package web is the officers' view: pages of the daemon for a browser, on its control socket and, where the configuration says so, on a
// loopback address. They show what expires, what waits for a person and the exact text to sign. The one thing that they take is an officer's
// signature, which says itself whose it is. Nothing is fetched from anywhere else.
package web

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"html/template"
	"io/fs"
	"net"
	"net/http"
	"strings"
	"time"

	"go.uber.org/zap"

	"hsmbridge/daemon/control"
	"hsmbridge/daemon/store"
	"hsmbridge/hsm/wrapping"
)

// Service is the daemon as the pages see it.
type Service interface {
	Status(ctx context.Context) (control.Status, error)
	KeyPage(ctx context.Context, after, search string, limit int) (page []control.ManagedKey, more bool, err error)
	Keys(ctx context.Context, name string) ([]control.ManagedKey, error)
	Expiries(ctx context.Context) (at []time.Time, never int, err error)
	Jobs(ctx context.Context, f store.JobFilter) ([]store.Job, error)
	Events(ctx context.Context, f store.EventFilter) ([]store.Event, error)
	Requests(ctx context.Context, key string, all bool, limit int) ([]control.Request, error)
	Request(ctx context.Context, name string) (control.Request, error)
	Approve(ctx context.Context, actor, name, signature string) (control.Request, error)
	Reject(ctx context.Context, actor, name, reason, signature string) (control.Request, error)
	Copies(ctx context.Context, token string, limit int) (list []control.Replica, total int, err error)
	Capabilities(ctx context.Context, token string) (map[wrapping.KeySpec]wrapping.Capabilities, error)
}

// Root is the path under which all pages are.
const Root = "/ui/"

//go:embed templates static
var files embed.FS

// Server serves the pages.
type Server struct {
	Service Service
	Log     *zap.Logger
	Now     func() time.Time                 // nil: time.Now
	Actor   func(ctx context.Context) string // who asks, for the journal; nil: "web"

	pages map[string]*template.Template
}

// page is one route: what is shown under a path.
type page struct {
	method, path, template string
	data                   func(s *Server, r *http.Request) (view, error)
}

// view is what a template gets: the frame, and the page's own data.
type view struct {
	Title   string
	Section string // of the navigation
	Refresh bool   // the page loads itself anew from time to time
	Path    string
	Now     time.Time
	Status  control.Status
	Data    any
}

// routes is the whole of what can be asked for.
func routes() []page {
	return []page{
		{http.MethodGet, "{$}", "overview", (*Server).overview},
		{http.MethodGet, "keys", "keys", (*Server).keys},
		{http.MethodGet, "keys/{name}", "key", (*Server).key},
		{http.MethodGet, "requests", "requests", (*Server).requests},
		{http.MethodGet, "requests/{name}", "request", (*Server).request},
		{http.MethodGet, "tokens/{name}", "token", (*Server).token},
		{http.MethodGet, "events", "events", (*Server).events},
		{http.MethodPost, "requests/{name}/sign", "request", (*Server).sign},
		{http.MethodPost, "requests/{name}/reject", "request", (*Server).reject},
	}
}

// Handler serves everything under [Root].
func (s *Server) Handler() (http.Handler, error) {
	s.pages = map[string]*template.Template{}
	mux := http.NewServeMux()
	for _, p := range routes() {
		if s.pages[p.template] == nil {
			t, err := template.New("frame.html").Funcs(functions()).ParseFS(files, "templates/frame.html", "templates/parts.html", "templates/"+p.template+".html")
			if err != nil {
				return nil, fmt.Errorf("pages: %w", err)
			}
			s.pages[p.template] = t
		}
		mux.HandleFunc(p.method+" "+Root+p.path, func(w http.ResponseWriter, r *http.Request) { s.show(p, w, r) })
	}
	static, err := fs.Sub(files, "static")
	if err != nil {
		return nil, fmt.Errorf("pages: %w", err)
	}
	mux.Handle("GET "+Root+"static/", http.StripPrefix(Root+"static/", http.FileServerFS(static)))
	mux.HandleFunc(Root, func(w http.ResponseWriter, r *http.Request) {
		s.fail(w, r, http.StatusNotFound, errors.New("there is no such page"))
	})
	return s.guard(http.NewCrossOriginProtection().Handler(mux)), nil
}

const maxForm = 64 << 10

// guard sets what every answer says, and refuses what a page of another site could make a browser ask: a name that is not this machine's
// (DNS rebinding), and forms of other origins.
func (s *Server) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		if !strings.HasPrefix(r.URL.Path, Root+"static/") {
			h.Set("Cache-Control", "no-store")
		}
		if !local(r.Host) {
			http.Error(w, "these pages are for this machine: ask for them as localhost", http.StatusMisdirectedRequest)
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxForm)
		next.ServeHTTP(w, r)
	})
}

// local says whether a Host header names this machine by its loopback address.
func local(host string) bool {
	name, _, err := net.SplitHostPort(host)
	if err != nil {
		name = strings.Trim(host, "[]")
	}
	ip := net.ParseIP(name)
	return strings.EqualFold(name, "localhost") || ip != nil && ip.IsLoopback()
}

func (s *Server) show(p page, w http.ResponseWriter, r *http.Request) {
	v, err := p.data(s, r)
	var bad *formError
	switch {
	case errors.As(err, &bad):
		s.fail(w, r, http.StatusBadRequest, err)
		return
	case errors.Is(err, control.ErrNotFound):
		s.fail(w, r, http.StatusNotFound, err)
		return
	case err != nil:
		s.Log.Error("a page failed", zap.String("page", r.URL.Path), zap.Error(err))
		s.fail(w, r, http.StatusInternalServerError, err)
		return
	}
	s.render(w, r, http.StatusOK, p.template, v)
}

// render fills a template in before anything is sent: a page is whole, or it is an error.
func (s *Server) render(w http.ResponseWriter, r *http.Request, status int, name string, v view) {
	if v.Status.Daemon == "" {
		st, err := s.Service.Status(r.Context())
		if err != nil {
			s.fail(w, r, http.StatusInternalServerError, err)
			return
		}
		v.Status = st
	}
	v.Now, v.Path = s.now(), r.URL.Path
	var b bytes.Buffer
	if err := s.pages[name].ExecuteTemplate(&b, "frame.html", v); err != nil {
		s.Log.Error("a page cannot be written", zap.String("page", r.URL.Path), zap.Error(err))
		s.fail(w, r, http.StatusInternalServerError, errors.New("the page cannot be written: see the log"))
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write(bytes.ToValidUTF8(b.Bytes(), []byte("\uFFFD"))) // what somebody asked for need not be text
}

// fail is a plain page: it must not fail itself.
func (s *Server) fail(w http.ResponseWriter, _ *http.Request, status int, err error) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	fmt.Fprintf(w, "%s\n\nThe first page: %s\n", plain(err), Root)
}

// plain is an error without the words that only programs need.
func plain(err error) string {
	s := err.Error()
	for _, e := range []error{control.ErrNotFound, control.ErrRefused} {
		s = strings.TrimSuffix(s, ": "+e.Error())
	}
	return s
}

func (s *Server) now() time.Time {
	if s.Now != nil {
		return s.Now()
	}
	return time.Now()
}

func (s *Server) actor(ctx context.Context) string {
	if s.Actor != nil {
		if who := s.Actor(ctx); who != "" {
			return who
		}
	}
	return "web"
}
