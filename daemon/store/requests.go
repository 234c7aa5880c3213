package store

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"time"
)

// RequestState is where a request for approval is.
type RequestState string

// The states of a request. The first two are open.
const (
	RequestOpen      RequestState = "open"
	RequestApproved  RequestState = "approved"
	RequestUsed      RequestState = "used"
	RequestRejected  RequestState = "rejected"
	RequestWithdrawn RequestState = "withdrawn"
	RequestExpired   RequestState = "expired"
)

// Request is something that officers are asked to approve. Text is what they sign and what counts; the rest is there to find it.
type Request struct {
	ID          int64        `json:"-"`
	Name        string       `json:"name"` // the random one in the text
	Purpose     string       `json:"purpose"`
	Key         string       `json:"key"`
	Destination string       `json:"destination,omitempty"`
	Plan        string       `json:"plan,omitempty"` // SHA-256 of the plan
	Job         int64        `json:"job,omitempty"`  // that waits for it
	Text        string       `json:"text"`
	State       RequestState `json:"state"`
	AskedBy     string       `json:"asked_by"`
	Created     time.Time    `json:"created"`
	ValidUntil  time.Time    `json:"valid_until"`
	Allowed     time.Time    `json:"allowed,omitzero"` // something was done by it
	Ended       time.Time    `json:"ended,omitzero"`
	Reason      string       `json:"reason,omitempty"` // why it ended
}

// Open says that the request can still be signed or used.
func (r Request) Open() bool { return r.State == RequestOpen || r.State == RequestApproved }

func (r Request) digest() string { return fmt.Sprintf("%x", sha256.Sum256([]byte(r.Text))) }

// decided is the event that a request got another state.
func (r Request) decided(kind, actor, officers, reason, message string) Event {
	return Event{
		Kind: kind, Actor: actor, Key: r.Key, Destination: r.Destination, Job: r.Job, Message: message,
		Fields: map[string]string{"request": r.Name, "sha256": r.digest(), "officers": officers, "reason": reason},
	}
}

// Signature is what an officer handed in.
type Signature struct {
	Officer   string    `json:"officer"`
	Key       string    `json:"key"` // SHA-256 fingerprint
	Signature string    `json:"signature"`
	At        time.Time `json:"at"`
	HandedBy  string    `json:"handed_by"`
}

const selectRequests = `SELECT id, name, purpose, key_name, destination, plan, job_id, text, state, asked_by, created_at, valid_until, allowed_at, ended_at, reason FROM requests`

func scanRequest(scan func(...any) error) (Request, error) {
	var r Request
	var created, valid, allowed, ended int64
	err := scan(&r.ID, &r.Name, &r.Purpose, &r.Key, &r.Destination, &r.Plan, &r.Job, &r.Text, &r.State, &r.AskedBy, &created, &valid, &allowed, &ended, &r.Reason)
	r.Created, r.ValidUntil, r.Allowed, r.Ended = stamp(created), stamp(valid), stamp(allowed), stamp(ended)
	return r, err
}

// standingApproval is the purpose of a request that lets a key be imported later.
const standingApproval = "standing"

// AddRequest keeps a new request, with its whole text in the audit log. With a lease it belongs to a running job, which has to hold it. It
// gives [ErrRevoked] for what would let a revoked key be imported once it is restored: who revokes a key ends all its requests.
func (s *Store) AddRequest(ctx context.Context, l *Lease, r Request, message string) error {
	return s.noted(ctx, func(tx *Tx) error {
		if l != nil {
			if err := tx.hold(ctx, l); err != nil {
				return err
			}
			if err := tx.goesOn(ctx, r.Job); err != nil {
				return err // nobody is asked to sign for a job that is over
			}
		}
		if r.Purpose == standingApproval {
			var revoked int
			if err := tx.QueryRowContext(ctx, tx.s.rebind("SELECT count(*) FROM keys WHERE name = ? AND revoked_at <> 0"), r.Key).Scan(&revoked); err != nil {
				return fmt.Errorf("database: %w", err)
			}
			if revoked > 0 {
				return ErrRevoked
			}
		}
		if _, err := tx.exec(ctx, `INSERT INTO requests (name, purpose, key_name, destination, plan, job_id, text, state, asked_by, created_at, valid_until)
			VALUES (?, ?, ?, ?, ?, ?, ?, 'open', ?, ?, ?)`,
			r.Name, r.Purpose, r.Key, r.Destination, r.Plan, r.Job, r.Text, r.AskedBy, micros(r.Created), micros(r.ValidUntil)); err != nil {
			return err
		}
		return tx.event(ctx, Event{
			Kind: "request", Actor: r.AskedBy, Key: r.Key, Destination: r.Destination, Job: r.Job, Message: message,
			Fields: map[string]string{
				"request": r.Name, "purpose": r.Purpose, "sha256": r.digest(), "valid_until": r.ValidUntil.UTC().Format(time.RFC3339), "text": r.Text,
			},
		})
	})
}

// RequestFilter says which requests are wanted.
type RequestFilter struct {
	Name             string
	Key, Destination string
	Job              int64
	Open             bool
	Limit            int // 0: 1000
}

// Requests lists requests, the latest first.
func (s *Store) Requests(ctx context.Context, f RequestFilter) ([]Request, error) {
	where, args := []string{"1 = 1"}, []any{}
	for _, c := range []struct {
		column string
		value  any
		given  bool
	}{{"name", f.Name, f.Name != ""}, {"key_name", f.Key, f.Key != ""}, {"destination", f.Destination, f.Destination != ""}, {"job_id", f.Job, f.Job != 0}} {
		if c.given {
			where, args = append(where, c.column+" = ?"), append(args, c.value)
		}
	}
	if f.Open {
		where = append(where, "state IN ('open', 'approved')")
	}
	if f.Limit == 0 {
		f.Limit = 1000
	}
	return query(ctx, s, s.read, scanRequest, selectRequests+" WHERE "+strings.Join(where, " AND ")+" ORDER BY id DESC LIMIT ?", append(args, f.Limit)...)
}

// OpenRequests counts the requests that wait for signatures.
func (s *Store) OpenRequests(ctx context.Context) (n int, err error) {
	if err := s.read.QueryRowContext(ctx, "SELECT count(*) FROM requests WHERE state = 'open'").Scan(&n); err != nil {
		return 0, fmt.Errorf("database: %w", err)
	}
	return n, nil
}

// Signatures lists what was handed in for a request, the first first.
func (s *Store) Signatures(ctx context.Context, request int64) ([]Signature, error) {
	return signatures(ctx, s, s.read, request)
}

func signatures(ctx context.Context, s *Store, q querier, request int64) ([]Signature, error) {
	return query(ctx, s, q, func(scan func(...any) error) (Signature, error) {
		var g Signature
		var at int64
		err := scan(&g.Officer, &g.Key, &g.Signature, &at, &g.HandedBy)
		g.At = stamp(at)
		return g, err
	}, "SELECT officer, ssh_key, signature, at, handed_by FROM signatures WHERE request_id = ? ORDER BY id", request)
}

// Errors of requests.
var (
	ErrNoRequest     = errors.New("there is no such request")
	ErrRequestClosed = errors.New("the request is closed")
)

// Judged is what the signatures of a request are worth together.
type Judged struct {
	Approved bool
	Officers string // whose signatures count, separated by commas
}

// Sign keeps an officer's signature that counts, with the event e. judge then sees all signatures of the request, in the same transaction,
// and says whether they are enough; then the job that waits is queued.
func (s *Store) Sign(ctx context.Context, name string, g Signature, e Event, judge func(all []Signature) (Judged, error), enqueue Enqueue) (r Request, err error) {
	err = s.noted(ctx, func(tx *Tx) error {
		if r, err = tx.openRequest(ctx, name); err != nil {
			return err
		}
		n, err := tx.exec(ctx, "INSERT INTO signatures (request_id, officer, ssh_key, signature, at, handed_by) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (request_id, ssh_key) DO UPDATE SET signature = excluded.signature, at = excluded.at, handed_by = excluded.handed_by WHERE signatures.signature <> excluded.signature",
			r.ID, g.Officer, g.Key, g.Signature, micros(s.now()), g.HandedBy)
		if err != nil {
			return err
		}
		if n > 0 {
			e.Key, e.Destination, e.Job = r.Key, r.Destination, r.Job
			if err := tx.event(ctx, e); err != nil {
				return err
			}
		}
		all, err := signatures(ctx, s, tx, r.ID)
		if err != nil {
			return err
		}
		j, err := judge(all)
		if err != nil || !j.Approved || r.State == RequestApproved {
			return err
		}
		if _, err := tx.exec(ctx, "UPDATE requests SET state = 'approved' WHERE id = ?", r.ID); err != nil {
			return err
		}
		r.State = RequestApproved
		if err := tx.event(ctx, r.decided("approved", e.Actor, j.Officers, "", "approved by "+j.Officers)); err != nil {
			return err
		}
		return tx.hurry(ctx, r.Job, enqueue)
	})
	return r, err
}

// openRequest reads a request that is open. In a transaction of noted, nobody else can change it.
func (tx *Tx) openRequest(ctx context.Context, name string) (Request, error) {
	list, err := query(ctx, tx.s, tx, scanRequest, selectRequests+" WHERE name = ?", name)
	switch {
	case err != nil:
		return Request{}, err
	case len(list) == 0:
		return Request{}, ErrNoRequest
	case !list[0].Open():
		return list[0], ErrRequestClosed
	}
	return list[0], nil
}

// hurry queues a job that waits.
func (tx *Tx) hurry(ctx context.Context, job int64, enqueue Enqueue) error {
	list, err := query(ctx, tx.s, tx, scanJob, selectJobs+" WHERE state = 'waiting' AND id = ?", job)
	if err != nil || len(list) == 0 {
		return err
	}
	_, err = tx.requeue(ctx, list, enqueue)
	return err
}

// EndRequest closes an open request: rejected by an officer (with the event of the signature), withdrawn by whoever asked, or used. The job
// that waits looks at once.
func (s *Store) EndRequest(ctx context.Context, name string, state RequestState, actor, reason string, signed *Event, enqueue Enqueue) (r Request, err error) {
	err = s.noted(ctx, func(tx *Tx) error {
		if r, err = tx.openRequest(ctx, name); err != nil {
			return err
		}
		if signed != nil {
			signed.Key, signed.Destination, signed.Job = r.Key, r.Destination, r.Job
			if err := tx.event(ctx, *signed); err != nil {
				return err
			}
		}
		if err := tx.endRequest(ctx, &r, state, actor, reason); err != nil {
			return err
		}
		return tx.hurry(ctx, r.Job, enqueue)
	})
	return r, err
}

func (tx *Tx) endRequest(ctx context.Context, r *Request, state RequestState, actor, reason string) error {
	r.State, r.Reason, r.Ended = state, reason, tx.s.now()
	if _, err := tx.exec(ctx, "UPDATE requests SET state = ?, reason = ?, ended_at = ? WHERE id = ?", state, reason, micros(r.Ended), r.ID); err != nil {
		return err
	}
	message := string(state)
	if reason != "" {
		message += ": " + reason
	}
	return tx.event(ctx, r.decided(string(state), actor, "", reason, message))
}

// Allow writes down, immediately before a wrap, that officers approved it: a step of the job, with the event e.
func (s *Store) Allow(ctx context.Context, l *Lease, j Job, request int64, e Event) error {
	return s.noted(ctx, func(tx *Tx) error {
		if err := tx.hold(ctx, l); err != nil {
			return err
		}
		n, err := tx.exec(ctx, "UPDATE requests SET allowed_at = CASE WHEN allowed_at = 0 THEN ? ELSE allowed_at END WHERE id = ? AND state IN ('open', 'approved')", micros(s.now()), request)
		if err != nil {
			return err
		}
		if n == 0 {
			return ErrRequestClosed // rejected or withdrawn since it was read
		}
		return tx.step(ctx, j, e)
	})
}

// endRequests closes the requests of a job that is over. What was done by one stays told as used.
func (tx *Tx) endRequests(ctx context.Context, job int64, actor, why string) error {
	list, err := query(ctx, tx.s, tx, scanRequest, selectRequests+" WHERE job_id = ? AND state IN ('open', 'approved') ORDER BY id", job)
	if err != nil {
		return err
	}
	for _, r := range list {
		state, reason := RequestWithdrawn, why
		if !r.Allowed.IsZero() {
			state, reason = RequestUsed, ""
		}
		if err := tx.endRequest(ctx, &r, state, actor, reason); err != nil {
			return err
		}
	}
	return nil
}

// endRequestsOf closes all requests of a key.
func (tx *Tx) endRequestsOf(ctx context.Context, key, actor, why string) error {
	list, err := query(ctx, tx.s, tx, scanRequest, selectRequests+" WHERE key_name = ? AND state IN ('open', 'approved') ORDER BY id", key)
	if err != nil {
		return err
	}
	for _, r := range list {
		if err := tx.endRequest(ctx, &r, RequestWithdrawn, actor, why); err != nil {
			return err
		}
	}
	return nil
}

// ExpireRequests closes requests whose time is over, and lets their jobs ask again.
func (s *Store) ExpireRequests(ctx context.Context, enqueue Enqueue) (n int, err error) {
	due := " WHERE state IN ('open', 'approved') AND valid_until <= ? ORDER BY id LIMIT 500"
	list, err := query(ctx, s, s.read, scanRequest, selectRequests+due, micros(s.now()))
	if err != nil || len(list) == 0 {
		return 0, err // no transaction each minute for nothing
	}
	err = s.noted(ctx, func(tx *Tx) error {
		if list, err = query(ctx, s, tx, scanRequest, selectRequests+due, micros(s.now())); err != nil {
			return err
		}
		n = len(list)
		for _, r := range list {
			if err := tx.endRequest(ctx, &r, RequestExpired, s.daemon, ""); err != nil {
				return err
			}
			if err := tx.hurry(ctx, r.Job, enqueue); err != nil {
				return err
			}
		}
		return nil
	})
	return n, err
}
