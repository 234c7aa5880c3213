package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// Server serves the API on a Unix socket.
type Server struct {
	Service   Service
	Operators func() []string // users, and groups with an @, who may operate beside root and the daemon's user
	Log       *zap.Logger
	Pages     http.Handler // what browsers get under /ui/; nil: nothing
}

const maxBody = 1 << 20

// peer is the process at the other end of the socket.
type peer struct {
	uid, gid uint32
	pid      int32
	known    bool
}

type peerKey struct{}

// Serve serves requests until the listener is closed or Shutdown of the returned server is called.
func (s *Server) Serve(l net.Listener) *http.Server {
	srv := &http.Server{
		Handler: s.Handler(), ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute,
		ErrorLog: zap.NewStdLog(s.Log.Named("control")),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, peerKey{}, credentials(c))
		},
	}
	go func() {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			s.Log.Error("the control socket is not served any more", zap.Error(err))
		}
	}()
	return srv
}

// Listen makes the socket, which its owner and group can open. One that a dead process left behind is replaced, one that is served is not.
func Listen(ctx context.Context, path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { //nolint:gosec // whoever is in the socket's group has to reach it
		return nil, fmt.Errorf("control socket: %w", err)
	}
	if _, err := os.Lstat(path); err == nil {
		if c, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "unix", path); err == nil {
			return nil, errors.Join(fmt.Errorf("control socket %s is served by another process; stop it, or set control.socket", path), c.Close())
		}
		if info, err := os.Lstat(path); err == nil && info.Mode()&os.ModeSocket == 0 {
			return nil, fmt.Errorf("control socket %s is a file that is no socket; remove it, or set control.socket", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("control socket: %w", err)
		}
	}
	old := syscall.Umask(0o177) // nobody else between bind and chmod
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", path)
	syscall.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	if err := os.Chmod(path, 0o660); err != nil { //nolint:gosec // its group may look
		return nil, errors.Join(fmt.Errorf("control socket: %w", err), l.Close())
	}
	return l, nil
}

// credentials asks the kernel who opened the connection. Source: unix(7), SO_PEERCRED.
func credentials(c net.Conn) peer {
	conn, ok := c.(*net.UnixConn)
	if !ok {
		return peer{}
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return peer{}
	}
	var p peer
	_ = raw.Control(func(fd uintptr) {
		if u, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			p = peer{u.Uid, u.Gid, u.Pid, true}
		}
	})
	return p
}

// Caller is the user who opened the connection of a request; "" when the kernel does not say.
func Caller(ctx context.Context) string {
	p, _ := ctx.Value(peerKey{}).(peer)
	if !p.known {
		return ""
	}
	return p.name()
}

// name is the caller's user name, or its number.
func (p peer) name() string {
	id := strconv.FormatUint(uint64(p.uid), 10)
	if u, err := user.LookupId(id); err == nil {
		return u.Username
	}
	return "uid " + id
}

// operates says whether the caller may change something.
func (p peer) operates(operators []string) bool {
	if !p.known {
		return false
	}
	if p.uid == 0 || int(p.uid) == os.Getuid() {
		return true
	}
	u, err := user.LookupId(strconv.FormatUint(uint64(p.uid), 10))
	if err != nil {
		return false
	}
	var groups []string
	ids, err := u.GroupIds()
	if err != nil {
		return slices.Contains(operators, u.Username)
	}
	for _, id := range append(ids, strconv.FormatUint(uint64(p.gid), 10)) {
		if g, err := user.LookupGroupId(id); err == nil {
			groups = append(groups, "@"+g.Name)
		}
	}
	return slices.ContainsFunc(operators, func(o string) bool { return o == u.Username || slices.Contains(groups, o) })
}

// Handler serves the routes.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	for _, rt := range routes() {
		mux.HandleFunc(rt.method+" "+rt.path, func(w http.ResponseWriter, r *http.Request) { s.handle(rt, w, r) })
	}
	if s.Pages != nil {
		mux.Handle("/ui/", s.Pages)
		mux.Handle("GET /{$}", http.RedirectHandler("/ui/", http.StatusSeeOther))
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		reply(w, http.StatusNotFound, Problem{Error: fmt.Sprintf("there is no %s %s; GET /v1/openapi.json lists what there is", r.Method, r.URL.Path), Class: "caller"})
	})
	return mux
}

func (s *Server) handle(rt route, w http.ResponseWriter, r *http.Request) {
	p, _ := r.Context().Value(peerKey{}).(peer)
	if !p.known {
		reply(w, http.StatusForbidden, Problem{Error: "the kernel does not say who asks", Class: "caller"})
		return
	}
	if rt.permission != mayLook && !p.operates(s.Operators()) {
		s.Log.Warn("a request was refused", zap.String("user", p.name()), zap.Int32("pid", p.pid), zap.String("request", rt.method+" "+rt.path))
		reply(w, http.StatusForbidden, Problem{
			Error: fmt.Sprintf("user %s may look and not change anything; add the user, or a group as @NAME, to control.operators of the configuration", p.name()), Class: "caller",
		})
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		reply(w, http.StatusBadRequest, Problem{Error: err.Error(), Class: "caller"})
		return
	}
	req := &request{actor: p.name(), path: r.PathValue, query: r.URL.Query(), body: body}
	for name := range req.query {
		if _, ok := rt.query[name]; !ok {
			reply(w, http.StatusBadRequest, Problem{Error: fmt.Sprintf("%s takes no parameter %s", rt.path, name), Class: "caller"})
			return
		}
	}
	if _, ok := rt.query["follow"]; ok && req.query.Get("follow") == "true" {
		w.Header().Set("Content-Type", "application/x-ndjson")
		rc := http.NewResponseController(w)
		_ = follow(r.Context(), s.Service, req, w, func() { _ = rc.Flush() })
		return
	}
	out, err := rt.do(r.Context(), s.Service, req)
	if err != nil && r.Context().Err() != nil && errors.Is(err, context.Canceled) {
		s.Log.Info("whoever made a request did not wait for its answer", zap.String("user", p.name()), zap.String("request", rt.method+" "+rt.path), zap.Error(err))
		reply(w, http.StatusServiceUnavailable, Problem{Error: "the request was given up by whoever made it, and what was done of it is not known: look with hsmbridge status"})
		return
	}
	if err != nil {
		s.fail(w, rt, p, err)
		return
	}
	reply(w, http.StatusOK, out)
}

func (s *Server) fail(w http.ResponseWriter, rt route, p peer, err error) {
	var bad *badRequestError
	var waits *WaitsError
	if errors.As(err, &waits) {
		reply(w, http.StatusAccepted, Problem{Error: waits.Message, Class: ClassApproval, Request: waits.Request})
		return
	}
	status := http.StatusInternalServerError
	class := ""
	switch {
	case errors.As(err, &bad):
		status, class = http.StatusBadRequest, "caller"
	case errors.Is(err, ErrNotFound):
		status, class = http.StatusNotFound, "caller"
	case errors.Is(err, ErrRefused):
		status, class = http.StatusConflict, "caller"
	default:
		s.Log.Error("a request failed", zap.String("user", p.name()), zap.String("request", rt.method+" "+rt.path), zap.Error(err))
	}
	message := strings.TrimSuffix(strings.TrimSuffix(err.Error(), ": "+ErrNotFound.Error()), ": "+ErrRefused.Error())
	reply(w, status, Problem{Error: message, Class: class})
}

func reply(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	_ = e.Encode(v)
}

func readBytes(b []byte) io.Reader { return bytes.NewReader(b) }

// wait waits for a change, and asks again after some seconds all the same: another daemon on the database may have made one.
func wait(ctx context.Context, changed <-chan struct{}) error {
	const atMost = 2 * time.Second
	timer := time.NewTimer(atMost)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-changed:
	case <-timer.C:
	}
	return nil
}
