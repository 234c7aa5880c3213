package control

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"hsmbridge/daemon/store"
)

var update = flag.Bool("update", false, "write the golden files anew")

const requestEnv = "HSMBRIDGE_TEST_REQUEST" // lines of "METHOD PATH": make these requests to the socket of the second variable, as whoever this is

func TestMain(m *testing.M) {
	if requests := os.Getenv(requestEnv); requests != "" {
		c := NewClient(os.Getenv("HSMBRIDGE_TEST_SOCKET"))
		for r := range strings.SplitSeq(requests, "\n") {
			method, path, _ := strings.Cut(r, " ")
			err := c.call(context.Background(), method, path, nil, nil, nil)
			var answer *Error
			switch {
			case err == nil:
				fmt.Fprintln(os.Stdout, http.StatusOK)
			case errors.As(err, &answer):
				fmt.Fprintln(os.Stdout, answer.Status, answer.Problem.Error)
			default:
				fmt.Fprintln(os.Stdout, 0, err)
			}
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// service answers with one of everything, and notes who asked for what.
type service struct {
	asked  []string
	events chan struct{}
	mu     sync.Mutex
	list   []store.Event
}

func (s *service) note(format string, args ...any) {
	s.asked = append(s.asked, fmt.Sprintf(format, args...))
}

func (s *service) Status(context.Context) (Status, error) {
	now := time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
	return Status{
		Daemon: "one", Version: "1", Started: now, Now: now, Ready: true, Jobs: map[string]int{"queued": 1}, Tokens: []Token{{Name: "hsm", State: "resting", Until: now}},
		Next: []Expiry{{Key: "k", ValidTo: now, Renewal: now}}, Running: []store.Job{{ID: 1, State: store.Running, Started: now}}, People: []NeedsPerson{{Key: "k", Message: "m", Retry: "r"}},
	}, nil
}

func (s *service) Keys(_ context.Context, name string) ([]ManagedKey, error) {
	if name == "unknown" {
		return nil, fmt.Errorf("no key %q: %w", name, ErrNotFound)
	}
	return []ManagedKey{{Name: "k", Destinations: []store.Destination{{Key: "k", Destination: "arn", ValidTo: time.Now()}}, Renewals: []time.Time{time.Now()}, Materials: []store.Material{{Generation: 1, IDs: map[string]string{"arn": "id"}}}}}, nil
}

// KeyPage has three keys in pages of two.
func (s *service) KeyPage(ctx context.Context, after, _ string, _ int) ([]ManagedKey, bool, error) {
	list, err := s.Keys(ctx, "")
	if after == "" {
		return append(list, ManagedKey{Name: "l", Destinations: []store.Destination{}, Renewals: []time.Time{}}), true, err
	}
	return []ManagedKey{{Name: "m", Destinations: []store.Destination{}, Renewals: []time.Time{}}}, false, err
}

func (s *service) Jobs(_ context.Context, f store.JobFilter) ([]store.Job, error) {
	if f.ID == 404 {
		return nil, nil
	}
	if f.State == store.Failed { // some more than an answer holds, from number 20,010 down
		var list []store.Job
		last := int64(20010)
		if f.Before > 0 {
			last = f.Before - 1
		}
		for id := last; id > 0 && len(list) < f.Limit; id-- {
			list = append(list, store.Job{ID: id, State: f.State})
		}
		return list, nil
	}
	return []store.Job{{ID: max(1, f.ID), Key: f.Key, NotBefore: time.Now()}}, nil
}

func (s *service) Imports(context.Context, string, int64, int) ([]store.Import, error) {
	return []store.Import{{ID: 1, RequestIDs: []string{"r"}, Details: map[string]any{"key": "k"}}}, nil
}

func (s *service) Events(_ context.Context, f store.EventFilter) ([]store.Event, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []store.Event
	for _, e := range s.list {
		if e.ID > f.After {
			out = append(out, e)
		}
	}
	return out, nil
}
func (s *service) Watch() (<-chan struct{}, func()) { return s.events, func() {} }

func (s *service) Queue(_ context.Context, actor string, r StartRequest) ([]store.Job, error) {
	s.note("%s start %v %s %t", actor, r.Keys, r.Kind, r.Renew)
	return []store.Job{{ID: 7}}, nil
}

func (s *service) Pause(_ context.Context, actor, key string, resume bool) (bool, error) {
	s.note("%s pause %s %t", actor, key, resume)
	return !resume, nil
}

func (s *service) ResumeToken(_ context.Context, actor, token string) error {
	s.note("%s token %s", actor, token)
	return fmt.Errorf("token %s is not parked: %w", token, ErrRefused)
}

func (s *service) Retry(_ context.Context, actor, key string) ([]store.Job, error) {
	s.note("%s retry %s", actor, key)
	return nil, nil
}

func (s *service) RetryJob(_ context.Context, actor string, id int64) error {
	s.note("%s retry job %d", actor, id)
	return nil
}

func (s *service) Cancel(_ context.Context, actor string, id int64) (string, error) {
	s.note("%s cancel %d", actor, id)
	if id == 2 {
		return "k stays revoked", nil
	}
	return "", errors.New("the database is away")
}

func (s *service) Revoke(_ context.Context, actor, key, reason string) (store.Job, error) {
	s.note("%s revoke %s %s", actor, key, reason)
	return store.Job{ID: 8}, nil
}

func (s *service) Restore(_ context.Context, actor, key string) error {
	s.note("%s restore %s", actor, key)
	return nil
}

func (s *service) Waive(_ context.Context, actor, key, reason string) error {
	s.note("%s waive %s %s", actor, key, reason)
	return nil
}

func (s *service) Reload(_ context.Context, actor string) error {
	s.note("%s reload", actor)
	return nil
}

func (s *service) Requests(context.Context, string, bool, int) ([]Request, error) {
	return []Request{{}}, nil
}

func (s *service) Request(_ context.Context, name string) (Request, error) {
	return Request{Request: store.Request{Name: name}}, nil
}

func (s *service) Approve(_ context.Context, _, name, signature string) (Request, error) {
	return Request{Request: store.Request{Name: name, Reason: signature}}, nil
}

func (s *service) Reject(_ context.Context, _, name, reason, _ string) (Request, error) {
	return Request{Request: store.Request{Name: name, Reason: reason}}, nil
}

func (s *service) Withdraw(_ context.Context, actor, name, _ string) (Request, error) {
	s.note("%s withdraw %s", actor, name)
	return Request{}, nil
}

func (s *service) Standing(_ context.Context, actor, key string, _ StandingRequest) ([]Request, error) {
	s.note("%s standing %s", actor, key)
	return nil, &WaitsError{Request: "7K3M", Message: "officers have to approve it"}
}

func (s *service) CeremonyStep(_ context.Context, actor string, c CeremonyStep) error {
	s.note("%s step %s", actor, c.Kind)
	return nil
}

func (s *service) MergeCeremony(_ context.Context, actor, log string) (int, error) {
	s.note("%s merge %s", actor, log)
	return 1, nil
}

func (s *service) AuditPage(context.Context, int64, int) (AuditPage, error) { return AuditPage{}, nil }

func (s *service) AuditKey(context.Context) (AuditKey, error) { return AuditKey{}, nil }

func (s *service) AuditCheckpoint(context.Context, bool) (store.Checkpoint, error) {
	return store.Checkpoint{}, nil
}

func (s *service) AuditProof(context.Context, int64) (string, error) { return "", nil }

func (s *service) Backup(_ context.Context, actor, file string) error {
	s.note("%s backup %s", actor, file)
	return nil
}

// serve serves a service on a socket that everybody can reach.
func serve(t *testing.T, s Service, operators ...string) string {
	t.Helper()
	return serveWith(t, s, zap.NewNop(), operators...)
}

func serveWith(t *testing.T, s Service, log *zap.Logger, operators ...string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "control") //nolint:usetesting // not below the test's own folder, which is its user's only
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // so that another user gets there
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "c.sock")
	l, err := Listen(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := (&Server{Service: s, Operators: func() []string { return operators }, Log: log}).Serve(l)
	t.Cleanup(func() { _ = srv.Close() })
	return socket
}

// as makes requests as another user, in a process of that user's, and gives a line for each. Only root can start one: for anybody else sudo does, as in make deps.
func as(t *testing.T, name, socket string, requests ...string) []string {
	t.Helper()
	u, err := user.Lookup(name)
	if err != nil {
		t.Fatal(err)
	}
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(filepath.Dir(socket), "client")                       // the test's own is in a folder that others cannot enter
	if err := os.Link(self, program); err != nil && !errors.Is(err, fs.ErrExist) { // on another disk
		b, err := os.ReadFile(self)
		if err == nil {
			err = os.WriteFile(program, b, 0o755) //nolint:gosec // another user starts it
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	env := []string{requestEnv + "=" + strings.Join(requests, "\n"), "HSMBRIDGE_TEST_SOCKET=" + socket}
	c := exec.CommandContext(t.Context(), program)
	if os.Getuid() == 0 {
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	} else {
		c = exec.CommandContext(t.Context(), "sudo", append(append([]string{"-n", "-u", name, "env"}, env...), program)...)
	}
	c.Dir, c.Env = "/", append([]string{"PATH=" + os.Getenv("PATH")}, env...)
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return strings.Split(strings.TrimSpace(string(out)), "\n")
}

// path fills in the parts of a route's path.
func path(rt route) string { return strings.NewReplacer("{name}", "k", "{id}", "1").Replace(rt.path) }

// Another user may look, and change nothing; named as an operator, or in a group of operators, also that. The kernel says who it is.
func TestPermissions(t *testing.T) {
	nobody, err := user.Lookup("nobody")
	if err != nil {
		t.Fatal(err)
	}
	group, err := user.LookupGroupId(nobody.Gid)
	if err != nil {
		t.Fatal(err)
	}
	for _, operators := range [][]string{nil, {"somebody", "@nogroupatall"}, {"nobody"}, {"@" + group.Name}} {
		s := &service{}
		socket := serve(t, s, operators...)
		if err := os.Chmod(socket, 0o666); err != nil { //nolint:gosec // what an administrator may do; the routes still ask who it is
			t.Fatal(err)
		}
		operator := len(operators) == 1
		var requests []string
		for _, rt := range routes() {
			requests = append(requests, rt.method+" "+path(rt))
		}
		answers := as(t, "nobody", socket, requests...)
		for i, rt := range routes() {
			got := answers[i]
			refused := strings.HasPrefix(got, "403 ")
			if want := rt.permission != mayLook && !operator; refused != want {
				t.Errorf("operators %v: %s %s answers %q", operators, rt.method, rt.path, got)
			}
			if refused && !strings.Contains(got, "user nobody may look and not change anything") {
				t.Errorf("the refusal says %q", got)
			}
		}
		for _, a := range s.asked {
			if !strings.HasPrefix(a, "nobody ") || !operator {
				t.Errorf("operators %v: the service was asked %q", operators, a)
			}
		}
	}
	// The socket itself lets only its owner and group in.
	socket := serve(t, &service{})
	if got := as(t, "nobody", socket, "GET /v1/status")[0]; !strings.HasPrefix(got, "0 ") || !strings.Contains(got, "permission denied") {
		t.Errorf("a user outside of the socket's group gets %q", got)
	}
}

func TestClient(t *testing.T) {
	s := &service{}
	c := NewClient(serve(t, s))
	ctx := t.Context()
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{
		"restore": c.Restore(ctx, "k"), "waive": c.Waive(ctx, "k", "why"),
		"retry job": c.Job(ctx, "retry", 3), "reload": c.Reload(ctx), "backup": c.Backup(ctx, "/x"),
	} {
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if left, err := c.Cancel(ctx, 2); err != nil || left != "k stays revoked" {
		t.Errorf("cancel: %q, %v", left, err)
	}
	for _, resume := range []bool{false, true} {
		if changed, err := c.Pause(ctx, "k", resume); err != nil || changed == resume {
			t.Errorf("pause, resume %t: %t, %v", resume, changed, err)
		}
	}
	for _, a := range s.asked {
		if !strings.HasPrefix(a, me.Username+" ") {
			t.Errorf("the actor of %q is not %s", a, me.Username)
		}
	}
	if j, err := c.Revoke(ctx, "k", ReasonRequest{Reason: "why", Confirm: "k"}); err != nil || j.ID != 8 {
		t.Errorf("%+v, %v", j, err)
	}
	if list, err := c.Start(ctx, StartRequest{Keys: []string{"k"}, Kind: store.KindImport}); err != nil || list[0].ID != 7 {
		t.Errorf("%+v, %v", list, err)
	}
	var answer *Error
	for _, tc := range []struct {
		err    error
		status int
		says   string
	}{
		{second(c.Revoke(ctx, "k", ReasonRequest{Reason: "why", Confirm: "other"})), 400, "nothing was revoked"},
		{second(c.Keys(ctx, "unknown")), 404, `no key "unknown"`},
		{second(c.Jobs(ctx, store.JobFilter{ID: 404})), 404, "there is no job 404"},
		{c.ResumeToken(ctx, "hsm"), 409, "token hsm is not parked"},
		{c.Job(ctx, "cancel", 1), 500, "the database is away"},
		{c.call(ctx, "GET", "/v1/nothing", nil, nil, nil), 404, "there is no GET /v1/nothing"},
		{c.call(ctx, "POST", "/v1/start", nil, map[string]any{"kind": "import", "nonsense": 1}, nil), 400, "unknown field"},
		{c.call(ctx, "POST", "/v1/start", nil, strings.Repeat("x", maxBody+1), nil), 400, "too large"},
		{c.call(ctx, "GET", "/v1/jobs", map[string][]string{"nonsense": {"1"}}, nil, nil), 400, "takes no parameter nonsense"},
		{c.call(ctx, "GET", "/v1/jobs", map[string][]string{"limit": {"-1"}}, nil, nil), 400, "is not a number"},
		{c.call(ctx, "POST", "/v1/jobs/x/retry", nil, nil, nil), 400, "is not the number of a job"},
		{c.call(ctx, "GET", "/v1/jobs", map[string][]string{"open": {"yes"}}, nil, nil), 400, "open=yes is neither true nor false"},
		{c.call(ctx, "GET", "/v1/jobs", map[string][]string{"state": {"over"}}, nil, nil), 400, "state=over is none of [queued running"},
	} {
		if !errors.As(tc.err, &answer) || answer.Status != tc.status || !strings.Contains(tc.err.Error(), tc.says) || strings.HasSuffix(tc.err.Error(), ": not found") {
			t.Errorf("%v, want %d %s", tc.err, tc.status, tc.says)
		}
	}
	for limit, want := range map[int]int{5: 5, 10000: 10000, 10007: 10007, 1 << 20: 20010} {
		list, err := c.Jobs(ctx, store.JobFilter{State: store.Failed, Limit: limit})
		if err != nil || len(list) != want || list[0].ID != 20010 || list[want-1].ID != int64(20011-want) || list[want-1].State != store.Failed {
			t.Errorf("%d failed jobs of at most %d, want %d, %v", len(list), limit, want, err)
		}
	}
	var none *NoDaemonError
	if _, err := NewClient("/nowhere/c.sock").Status(ctx); !errors.As(err, &none) || !strings.Contains(err.Error(), "systemctl start hsmbridge") {
		t.Errorf("without a daemon: %v", err)
	}
}

// Who may not open the socket is told so, and whom to ask; not to start a daemon that runs.
func TestMayNotOpen(t *testing.T) {
	socket := serve(t, &service{})
	if err := os.Chmod(socket, 0o660); err != nil { //nolint:gosec // as it is
		t.Fatal(err)
	}
	got := as(t, "nobody", socket, "GET /v1/status")[0]
	if !strings.HasPrefix(got, "0 you may not open "+socket+": connect: permission denied; ") || strings.Contains(got, "systemctl start") {
		t.Errorf("without access: %s", got)
	}
	if os.Geteuid() == 0 { // whose group is nobody's to ask for
		if err := os.Chown(socket, 0, 4); err != nil {
			t.Fatal(err)
		}
		if got := as(t, "nobody", socket, "GET /v1/status")[0]; !strings.Contains(got, "ask for membership of its group (usermod -aG ") || !strings.HasSuffix(got, " nobody), and log in again") {
			t.Errorf("without access: %s", got)
		}
	}
}

func second[T any](_ T, err error) error { return err }

func TestFollow(t *testing.T) {
	s := &service{events: make(chan struct{}, 1), list: []store.Event{{ID: 1, Message: "first"}}}
	c := NewClient(serve(t, s))
	ctx, cancel := context.WithCancel(t.Context())
	var got []string
	err := c.Events(ctx, store.EventFilter{}, true, func(e store.Event) error {
		got = append(got, e.Message)
		switch len(got) {
		case 1:
			s.mu.Lock()
			s.list = append(s.list, store.Event{ID: 2, Message: "second"})
			s.mu.Unlock()
			s.events <- struct{}{}
		case 2:
			cancel()
		}
		return nil
	})
	if !errors.Is(err, context.Canceled) || !reflect.DeepEqual(got, []string{"first", "second"}) {
		t.Errorf("followed %v, %v", got, err)
	}
}

// patient lists jobs when nobody waits for them any more.
type patient struct {
	*service
	asked chan struct{}
}

func (p *patient) Jobs(ctx context.Context, _ store.JobFilter) ([]store.Job, error) {
	close(p.asked)
	<-ctx.Done()
	return nil, fmt.Errorf("database: %w", ctx.Err())
}

// Whoever gives up a request is no error of the daemon.
func TestGivenUp(t *testing.T) {
	p := &patient{service: &service{}, asked: make(chan struct{})}
	core, logs := observer.New(zap.InfoLevel)
	c := NewClient(serveWith(t, p, zap.New(core)))
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-p.asked
		cancel()
	}()
	if _, err := c.Jobs(ctx, store.JobFilter{}); !errors.Is(err, context.Canceled) {
		t.Errorf("the caller is told %v", err)
	}
	for end := time.Now().Add(30 * time.Second); logs.Len() == 0 && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond)
	}
	if all := logs.All(); len(all) != 1 || all[0].Level != zap.InfoLevel || !strings.Contains(all[0].Message, "did not wait for its answer") {
		t.Errorf("the log has %+v", all)
	}
}

func TestListen(t *testing.T) {
	dir := t.TempDir()
	socket := filepath.Join(dir, "sub", "c.sock")
	l, err := Listen(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(socket); err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("the socket: %v, %v", info, err)
	}
	go func(l net.Listener) {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.Close()
		}
	}(l)
	if _, err := Listen(t.Context(), socket); err == nil || !strings.Contains(err.Error(), "is served by another process") {
		t.Errorf("a socket that is served: %v", err)
	}
	unix, ok := l.(*net.UnixListener)
	if !ok {
		t.Fatalf("%T", l)
	}
	unix.SetUnlinkOnClose(false) // as after kill -9
	_ = l.Close()
	l, err = Listen(t.Context(), socket)
	if err != nil {
		t.Fatalf("a socket that was left behind: %v", err)
	}
	_ = l.Close()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(t.Context(), file); err == nil || !strings.Contains(err.Error(), "is a file that is no socket") {
		t.Errorf("a file: %v", err)
	}
}
