package web

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"hsmbridge/daemon/approval"
	"hsmbridge/daemon/control"
	"hsmbridge/daemon/store"
	"hsmbridge/hsm/wrapping"
)

// formError is that a form or an address cannot be read.
type formError struct{ message string }

func (e *formError) Error() string { return e.message }

const (
	fewEvents  = 15
	pageEvents = 100
	pageKeys   = 50
	someJobs   = 20
	someAsked  = 50
	someCopies = 50
)

// overview is the first page: what expires when, what waits for a person, what runs, what happened last.
func (s *Server) overview(r *http.Request) (view, error) {
	ctx := r.Context()
	st, err := s.Service.Status(ctx)
	if err != nil {
		return view{}, err
	}
	asked, err := s.Service.Requests(ctx, "", false, someAsked)
	if err != nil {
		return view{}, err
	}
	recent, err := s.Service.Events(ctx, store.EventFilter{Last: fewEvents})
	if err != nil {
		return view{}, err
	}
	at, never, err := s.Service.Expiries(ctx)
	if err != nil {
		return view{}, err
	}
	slices.Reverse(recent)
	return view{Title: "Overview", Section: "overview", Refresh: true, Status: st, Data: struct {
		Asked    []control.Request
		Faults   []control.NeedsPerson
		Recent   []store.Event
		Timeline timeline
	}{waiting(asked), faults(st.People), recent, newTimeline(s.now(), at, never)}}, nil
}

// waiting are the requests that still need signatures.
func waiting(list []control.Request) []control.Request {
	var out []control.Request
	for _, q := range list {
		if q.State == store.RequestOpen {
			out = append(out, q)
		}
	}
	return out
}

// faults are what waits for a person and is no request.
func faults(list []control.NeedsPerson) []control.NeedsPerson {
	return slices.DeleteFunc(slices.Clone(list), func(n control.NeedsPerson) bool { return n.Approval })
}

func (s *Server) keys(r *http.Request) (view, error) {
	after, search := r.URL.Query().Get("after"), strings.TrimSpace(r.URL.Query().Get("search"))
	list, more, err := s.Service.KeyPage(r.Context(), after, search, pageKeys)
	if err != nil {
		return view{}, err
	}
	next := ""
	if more {
		next = list[len(list)-1].Name
	}
	return view{Title: "Keys", Section: "keys", Data: struct {
		Keys                []control.ManagedKey
		After, Next, Search string
	}{list, after, next, search}}, nil
}

func (s *Server) key(r *http.Request) (view, error) {
	name := r.PathValue("name")
	list, err := s.Service.Keys(r.Context(), name)
	if err != nil {
		return view{}, err
	}
	if len(list) == 0 {
		return view{}, fmt.Errorf("there is no key %q: %w", name, control.ErrNotFound)
	}
	jobs, err := s.Service.Jobs(r.Context(), store.JobFilter{Key: name, Limit: someJobs})
	if err != nil {
		return view{}, err
	}
	recent, err := s.Service.Events(r.Context(), store.EventFilter{Key: name, Last: fewEvents})
	if err != nil {
		return view{}, err
	}
	slices.Reverse(recent)
	return view{Title: "Key " + name, Section: "keys", Refresh: true, Data: struct {
		Key    control.ManagedKey
		Jobs   []store.Job
		Recent []store.Event
	}{list[0], jobs, recent}}, nil
}

func (s *Server) requests(r *http.Request) (view, error) {
	list, err := s.Service.Requests(r.Context(), "", true, someAsked)
	if err != nil {
		return view{}, err
	}
	return view{Title: "Requests", Section: "requests", Refresh: true, Data: struct{ Requests []control.Request }{list}}, nil
}

// asked is the page of one request.
type asked struct {
	Request    control.Request
	Sentence   string // what signing it lets hsmbridge do
	Fields     []field
	Said, Bad  string // what became of a signature
	Signature  string // that was handed in, to be corrected
	Reason     string
	Namespace  string
	Rejections string // namespace
}

// field is one line of a request, and what it was last time where that is different.
type field struct {
	Name, Value, Before string
	Different           bool
}

func (s *Server) request(r *http.Request) (view, error) {
	q, err := s.Service.Request(r.Context(), r.PathValue("name"))
	if err != nil {
		return view{}, err
	}
	return requestView(q)
}

func requestView(q control.Request) (view, error) {
	parsed, err := approval.Parse([]byte(q.Text))
	if err != nil {
		return view{}, err
	}
	before := map[string]approval.Difference{}
	for _, d := range q.Differences {
		before[d.Name] = d
	}
	a := asked{Request: q, Namespace: approval.Namespace, Rejections: approval.RejectionNamespace}
	if parts := strings.SplitN(q.Text, "\n\n", 3); len(parts) > 1 {
		a.Sentence = parts[1]
	}
	for _, f := range parsed.Fields() {
		d, ok := before[f.Name]
		a.Fields = append(a.Fields, field{f.Name, f.Value, d.Before, ok})
	}
	return view{Title: "Request " + q.Name, Section: "requests", Data: a}, nil
}

// sign hands an officer's signature in.
func (s *Server) sign(r *http.Request) (view, error) {
	return s.handIn(r, func(name, signature, _ string) (control.Request, string, error) {
		q, err := s.Service.Approve(r.Context(), s.actor(r.Context()), name, signature)
		return q, "The signature counts.", err
	})
}

// reject hands an officer's signed no in.
func (s *Server) reject(r *http.Request) (view, error) {
	return s.handIn(r, func(name, signature, reason string) (control.Request, string, error) {
		q, err := s.Service.Reject(r.Context(), s.actor(r.Context()), name, reason, signature)
		return q, "The request is rejected.", err
	})
}

func (s *Server) handIn(r *http.Request, do func(name, signature, reason string) (control.Request, string, error)) (view, error) {
	if err := r.ParseForm(); err != nil {
		return view{}, &formError{"the form cannot be read: " + err.Error()}
	}
	name, signature, reason := r.PathValue("name"), strings.TrimSpace(r.PostFormValue("signature")), strings.TrimSpace(r.PostFormValue("reason"))
	signature = strings.ReplaceAll(signature, "\r\n", "\n") + "\n" // browsers send lines so
	q, said, err := do(name, signature, reason)
	bad := ""
	if errors.Is(err, control.ErrRefused) {
		bad, said = plain(err), ""
		q, err = s.Service.Request(r.Context(), name)
	}
	if err != nil {
		return view{}, err
	}
	v, err := requestView(q)
	if a, ok := v.Data.(asked); ok {
		a.Said, a.Bad = said, bad
		if bad != "" {
			a.Signature, a.Reason = strings.TrimSpace(signature), reason
		}
		v.Data = a
	}
	return v, err
}

// proved is a row of a token's table: one kind of key.
type proved struct {
	KeySpec wrapping.KeySpec
	Trials  []wrapping.Trial
	Chosen  string
}

func (s *Server) token(r *http.Request) (view, error) {
	name := r.PathValue("name")
	st, err := s.Service.Status(r.Context())
	if err != nil {
		return view{}, err
	}
	i := slices.IndexFunc(st.Tokens, func(t control.Token) bool { return t.Name == name })
	if i < 0 {
		return view{}, fmt.Errorf("there is no token %q: %w", name, control.ErrNotFound)
	}
	caps, err := s.Service.Capabilities(r.Context(), name)
	if err != nil {
		return view{}, err
	}
	var rows []proved
	for spec, c := range caps {
		row := proved{KeySpec: spec, Trials: c.Trials}
		if plans := wrapping.Select(spec, c, wrapping.Policy{}).Plans; len(plans) > 0 {
			row.Chosen = string(plans[0].Algorithm) + " with " + plans[0].Mechanism.String()
		}
		rows = append(rows, row)
	}
	slices.SortFunc(rows, func(a, b proved) int { return strings.Compare(string(a.KeySpec), string(b.KeySpec)) })
	copies, total, err := s.Service.Copies(r.Context(), name, someCopies)
	if err != nil {
		return view{}, err
	}
	return view{Title: "Token " + name, Section: "tokens", Status: st, Data: struct {
		Token  control.Token
		Proved []proved
		Copies []control.Replica
		Total  int
	}{st.Tokens[i], rows, copies, total}}, nil
}

func (s *Server) events(r *http.Request) (view, error) {
	f := store.EventFilter{Last: pageEvents, Key: r.URL.Query().Get("key")}
	if before := r.URL.Query().Get("before"); before != "" {
		n, err := strconv.ParseInt(before, 10, 64)
		if err != nil || n < 1 {
			return view{}, &formError{"before is not the number of a record"}
		}
		f.Before = n
	}
	list, err := s.Service.Events(r.Context(), f)
	if err != nil {
		return view{}, err
	}
	slices.Reverse(list)
	var older int64
	if len(list) == pageEvents {
		older = list[len(list)-1].ID
	}
	return view{Title: "Events", Section: "events", Data: struct {
		Events []store.Event
		Older  int64
		Key    string
	}{list, older, f.Key}}, nil
}
