package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"

	"hsmbridge/daemon/store"
)

// permission is who may use a route.
type permission string

const (
	mayLook    permission = "look"    // whoever can open the socket
	mayOperate permission = "operate" // root, the daemon's user, and control.operators
)

// route is one operation of the API.
type route struct {
	method, path string
	permission   permission
	summary      string
	query        map[string]string // name and meaning of the parameters
	in, out      any               // zero values of the types of the bodies; in nil: none
	do           func(ctx context.Context, s Service, r *request) (any, error)
}

// request is one request with its caller.
type request struct {
	actor string
	path  func(name string) string
	query url.Values
	body  []byte
}

// decode reads the body, strictly: one JSON value with nothing behind it.
func (r *request) decode(v any) error {
	d := json.NewDecoder(readBytes(r.body))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return &badRequestError{"the body cannot be read: " + err.Error()}
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return &badRequestError{"the body cannot be read: there is something behind its JSON"}
	}
	return nil
}

func (r *request) number(name string) (int64, error) {
	s := r.query.Get(name)
	if s == "" {
		return 0, nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 {
		return 0, &badRequestError{fmt.Sprintf("%s=%s is not a number from 0 on", name, s)}
	}
	return n, nil
}

// truth is a parameter that is true, false or not there.
func (r *request) truth(name string) (bool, error) {
	switch s := r.query.Get(name); s {
	case "", "false":
		return false, nil
	case "true":
		return true, nil
	default:
		return false, &badRequestError{fmt.Sprintf("%s=%s is neither true nor false", name, s)}
	}
}

func (r *request) id() (int64, error) {
	n, err := strconv.ParseInt(r.path("id"), 10, 64)
	if err != nil {
		return 0, &badRequestError{fmt.Sprintf("%q is not the number of a job", r.path("id"))}
	}
	return n, nil
}

// routes is the whole API.
func routes() []route {
	const key = "only of this key"
	list := []route{
		{method: http.MethodGet, path: "/v1/status", permission: mayLook, summary: "The daemon at a glance", out: Status{}, do: func(ctx context.Context, s Service, _ *request) (any, error) {
			st, err := s.Status(ctx)
			st.Tokens, st.Next, st.Running, st.People = all(st.Tokens), all(st.Next), all(st.Running), all(st.People)
			st.Audit.Exports = all(st.Audit.Exports)
			return st, err
		}},
		{method: http.MethodGet, path: "/v1/keys", permission: mayLook, summary: "Managed keys in the order of the configuration, and what is known of their destinations", query: map[string]string{"after": "those behind this key: the last of the page before", "search": "whose name contains this", "limit": "at most so many; 1000 is the most, and what is given without it"}, out: KeyList{}, do: func(ctx context.Context, s Service, r *request) (any, error) {
			limit, err := r.number("limit")
			if err != nil {
				return nil, err
			}
			const most = 1000
			if limit == 0 || limit > most {
				limit = most
			}
			list, more, err := s.KeyPage(ctx, r.query.Get("after"), r.query.Get("search"), int(limit))
			return KeyList{Keys: all(list), More: more}, err
		}},
		{method: http.MethodGet, path: "/v1/keys/{name}", permission: mayLook, summary: "One managed key, also its key materials", out: KeyList{}, do: func(ctx context.Context, s Service, r *request) (any, error) {
			list, err := s.Keys(ctx, r.path("name"))
			return KeyList{Keys: all(list)}, err
		}},
		{method: http.MethodGet, path: "/v1/jobs", permission: mayLook, summary: "Jobs, the latest first", query: map[string]string{"key": key, "open": "true: only open ones", "state": "only those in this state", "before": "only those with a smaller number: the last of the page before", "limit": "at most so many; without it 1000, and 10,000 at most"}, out: JobList{}, do: func(ctx context.Context, s Service, r *request) (any, error) {
			limit, err := r.number("limit")
			if err != nil {
				return nil, err
			}
			before, err := r.number("before")
			if err != nil {
				return nil, err
			}
			open, err := r.truth("open")
			if err != nil {
				return nil, err
			}
			state := store.State(r.query.Get("state"))
			if state != "" && !slices.Contains(store.States(), state) {
				return nil, &badRequestError{fmt.Sprintf("state=%s is none of %s", state, store.States())}
			}
			list, err := s.Jobs(ctx, store.JobFilter{Key: r.query.Get("key"), Open: open, State: state, Before: before, Limit: int(min(limit, mostRows))})
			return JobList{all(list)}, err
		}},
		{method: http.MethodGet, path: "/v1/jobs/{id}", permission: mayLook, summary: "One job", out: JobList{}, do: func(ctx context.Context, s Service, r *request) (any, error) {
			id, err := r.id()
			if err != nil {
				return nil, err
			}
			list, err := s.Jobs(ctx, store.JobFilter{ID: id})
			if err == nil && len(list) == 0 {
				err = fmt.Errorf("there is no job %d: %w", id, ErrNotFound)
			}
			return JobList{all(list)}, err
		}},
		{method: http.MethodGet, path: "/v1/imports", permission: mayLook, summary: "What happened to the destinations, the latest first", query: map[string]string{"key": key, "job": "only of this job", "limit": "at most so many"}, out: ImportList{}, do: func(ctx context.Context, s Service, r *request) (any, error) {
			job, err := r.number("job")
			if err != nil {
				return nil, err
			}
			limit, err := r.number("limit")
			if err != nil {
				return nil, err
			}
			if limit == 0 {
				limit = 100
			}
			list, err := s.Imports(ctx, r.query.Get("key"), job, int(min(limit, mostRows)))
			return ImportList{all(list)}, err
		}},
		{method: http.MethodGet, path: "/v1/events", permission: mayLook, summary: "The journal: every step of every job and every act of a person, oldest first. With follow the answer is one JSON object a line and does not end.", query: map[string]string{"after": "only those with a greater ID", "key": key, "job": "only of this job", "before": "only those with a smaller ID", "last": "only so many, the latest", "follow": "true: go on with those that come"}, out: EventList{}, do: events},
		{method: http.MethodPost, path: "/v1/start", permission: mayOperate, summary: "Queue jobs for keys", in: StartRequest{}, out: JobList{}, do: func(ctx context.Context, s Service, r *request) (any, error) {
			var in StartRequest
			if err := r.decode(&in); err != nil {
				return nil, err
			}
			list, err := s.Queue(ctx, r.actor, in)
			return JobList{all(list)}, err
		}},
		{method: http.MethodPost, path: "/v1/keys/{name}/pause", permission: mayOperate, summary: "Begin nothing more for the key", out: PauseAnswer{}, do: func(ctx context.Context, s Service, r *request) (any, error) {
			changed, err := s.Pause(ctx, r.actor, r.path("name"), false)
			return PauseAnswer{Unchanged: !changed}, err
		}},
		{method: http.MethodPost, path: "/v1/keys/{name}/resume", permission: mayOperate, summary: "Take a pause back", out: PauseAnswer{}, do: func(ctx context.Context, s Service, r *request) (any, error) {
			changed, err := s.Pause(ctx, r.actor, r.path("name"), true)
			return PauseAnswer{Unchanged: !changed}, err
		}},
		{method: http.MethodPost, path: "/v1/keys/{name}/retry", permission: mayOperate, summary: "The cause of the key's errors is mended: try again now", out: JobList{}, do: func(ctx context.Context, s Service, r *request) (any, error) {
			list, err := s.Retry(ctx, r.actor, r.path("name"))
			return JobList{all(list)}, err
		}},
		{method: http.MethodPost, path: "/v1/keys/{name}/revoke", permission: mayOperate, summary: "Delete the key's material from every destination, and import it no more", in: ReasonRequest{}, out: JobList{}, do: func(ctx context.Context, s Service, r *request) (any, error) {
			var in ReasonRequest
			if err := r.decode(&in); err != nil {
				return nil, err
			}
			if in.Confirm != r.path("name") {
				return nil, &badRequestError{"confirm is not the name of the key: nothing was revoked"}
			}
			j, err := s.Revoke(ctx, r.actor, r.path("name"), in.Reason)
			return JobList{[]store.Job{j}}, err
		}},
		{method: http.MethodPost, path: "/v1/keys/{name}/restore", permission: mayOperate, summary: "Take a revocation back", out: OK{}, do: func(ctx context.Context, s Service, r *request) (any, error) {
			return OK{}, s.Restore(ctx, r.actor, r.path("name"))
		}},
		{method: http.MethodPost, path: "/v1/keys/{name}/waive-backup", permission: mayOperate, summary: "Let the key be imported without a backup", in: ReasonRequest{}, out: OK{}, do: func(ctx context.Context, s Service, r *request) (any, error) {
			var in ReasonRequest
			if err := r.decode(&in); err != nil {
				return nil, err
			}
			return OK{}, s.Waive(ctx, r.actor, r.path("name"), in.Reason)
		}},
		{method: http.MethodPost, path: "/v1/jobs/{id}/retry", permission: mayOperate, summary: "Let a waiting job begin now", out: OK{}, do: func(ctx context.Context, s Service, r *request) (any, error) {
			id, err := r.id()
			if err != nil {
				return nil, err
			}
			return OK{}, s.RetryJob(ctx, r.actor, id)
		}},
		{method: http.MethodPost, path: "/v1/jobs/{id}/cancel", permission: mayOperate, summary: "End a job; a running one stops before its next step. One that deletes the material of a revoked key is not ended where it would be begun again at once", out: CancelAnswer{}, do: func(ctx context.Context, s Service, r *request) (any, error) {
			id, err := r.id()
			if err != nil {
				return nil, err
			}
			left, err := s.Cancel(ctx, r.actor, id)
			return CancelAnswer{Left: left}, err
		}},
		{method: http.MethodPost, path: "/v1/tokens/{name}/resume", permission: mayOperate, summary: "The cause is mended for which a token was parked: use it again, with one more login", out: OK{}, do: func(ctx context.Context, s Service, r *request) (any, error) {
			return OK{}, s.ResumeToken(ctx, r.actor, r.path("name"))
		}},
		{method: http.MethodPost, path: "/v1/reload", permission: mayOperate, summary: "Read the configuration again", out: OK{}, do: func(ctx context.Context, s Service, r *request) (any, error) {
			return OK{}, s.Reload(ctx, r.actor)
		}},
		{method: http.MethodPost, path: "/v1/backup", permission: mayOperate, summary: "Write a copy of the SQLite database to a file on the daemon's machine", in: BackupRequest{}, out: OK{}, do: func(ctx context.Context, s Service, r *request) (any, error) {
			var in BackupRequest
			if err := r.decode(&in); err != nil {
				return nil, err
			}
			return OK{}, s.Backup(ctx, r.actor, in.File)
		}},
		{method: http.MethodGet, path: "/v1/openapi.json", permission: mayLook, summary: "This document", out: map[string]any{}, do: func(context.Context, Service, *request) (any, error) {
			return OpenAPI()
		}},
	}
	return slices.Concat(list, approvalRoutes(), auditRoutes())
}

// all is a list that is [] in JSON when it is empty, not null.
func all[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

// mostRows is how many rows an answer has at most, whatever is asked for: each takes memory of the daemon.
const mostRows = 10000

func eventFilter(r *request) (f store.EventFilter, err error) {
	f.Key = r.query.Get("key")
	if f.After, err = r.number("after"); err != nil {
		return f, err
	}
	if f.Job, err = r.number("job"); err != nil {
		return f, err
	}
	if f.Before, err = r.number("before"); err != nil {
		return f, err
	}
	last, err := r.number("last")
	f.Last = int(min(last, mostRows))
	return f, err
}

func events(ctx context.Context, s Service, r *request) (any, error) {
	f, err := eventFilter(r)
	if err != nil {
		return nil, err
	}
	list, err := s.Events(ctx, f)
	return EventList{all(list)}, err
}

// follow sends the events that are there, and then those that come, until the caller is gone.
func follow(ctx context.Context, s Service, r *request, w io.Writer, flush func()) error {
	f, err := eventFilter(r)
	if err != nil {
		return err
	}
	changed, stop := s.Watch()
	defer stop()
	encoder := json.NewEncoder(w)
	for first := true; ; first = false {
		list, err := s.Events(ctx, f)
		if err != nil {
			return err
		}
		for _, e := range list {
			if err := encoder.Encode(e); err != nil {
				return err
			}
			f.After = e.ID
		}
		if first {
			f.Last = 0
		}
		flush()
		if len(list) > 0 {
			continue
		}
		if err := wait(ctx, changed); err != nil {
			return err
		}
	}
}

// Errors of a [Service] that decide about the HTTP status.
var (
	ErrNotFound = errors.New("not found")
	ErrRefused  = errors.New("refused")
)

type badRequestError struct{ message string }

func (e *badRequestError) Error() string { return e.message }
