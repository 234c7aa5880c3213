package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Kind is what a job does.
type Kind string

// The kinds of jobs.
const (
	KindImport    Kind = "import"    // one destination gets the key's material: for the first time, again, or back
	KindRotate    Kind = "rotate"    // new material in the token becomes the current one of the KMS keys
	KindRevoke    Kind = "revoke"    // the material is deleted from every destination
	KindReconcile Kind = "reconcile" // what KMS and the token hold is written down again
)

// State is where a job is.
type State string

// The states of a job. The first three are open: there is one open job of a kind for a key and destination.
const (
	Queued    State = "queued"
	Running   State = "running"
	Waiting   State = "waiting" // for its next attempt, at NotBefore
	Done      State = "done"
	Failed    State = "failed"
	Cancelled State = "cancelled"
)

// States lists them.
func States() []State { return []State{Queued, Running, Waiting, Done, Failed, Cancelled} }

// Open says that the job is not over.
func (s State) Open() bool { return s == Queued || s == Running || s == Waiting }

// Options are what a person asked for beyond the configuration.
type Options struct {
	Renew bool   `json:"renew,omitempty"` // import also what KMS holds with the life asked for
	Why   string `json:"why,omitempty"`   // for the officers who are asked to approve it
}

// Job is something to do for a managed key.
type Job struct {
	ID          int64     `json:"id"`
	Key         string    `json:"key"`
	Destination string    `json:"destination,omitempty"` // empty: the key as a whole
	Kind        Kind      `json:"kind"`
	Reason      string    `json:"reason"`
	Token       string    `json:"token,omitempty"` // which daemons can do it: those that reach it, or one of those that stand here with commas in between; empty: all
	Options     Options   `json:"options,omitzero"`
	RequestedBy string    `json:"requested_by"`
	State       State     `json:"state"`
	Attempts    int64     `json:"attempts"`
	Created     time.Time `json:"created"`
	NotBefore   time.Time `json:"not_before,omitzero"`
	Started     time.Time `json:"started,omitzero"`
	Finished    time.Time `json:"finished,omitzero"`
	ValidTo     time.Time `json:"-"` // the expiry that the first attempt chose, so that a repeated one changes nothing
	Daemon      string    `json:"daemon,omitempty"`
	Error       string    `json:"error,omitempty"`
	ErrorClass  string    `json:"error_class,omitempty"`
	ErrorCode   string    `json:"error_code,omitempty"`

	// Since is the last event that whoever asks knew of (see [Store.LastEvent]): if a job of the key has ended since then, or it was paused
	// or revoked or its revocation taken back, what was known is out of date, and the job is not made. 0: it is made in any case. Of a job that was begun it is the last event before that.
	Since int64 `json:"-"`
}

// otherAsker is why a request is withdrawn that names another person as the one who asks.
const otherAsker = "a renewal was asked for: officers are asked again, by whoever asked for it"

// Enqueue puts jobs into the queue, inside the transaction that makes them.
type Enqueue func(ctx context.Context, tx *sql.Tx, jobs []Job) error

// AddJobs makes jobs and queues them, in one transaction. For a job of which one is open already, that one is given back.
func (s *Store) AddJobs(ctx context.Context, jobs []Job, enqueue Enqueue) (all []Job, err error) {
	err = s.noted(ctx, func(tx *Tx) error {
		var added []Job
		all = all[:0]
		for _, j := range jobs {
			id, isNew, err := tx.addJob(ctx, &j, enqueue)
			if err != nil {
				return err
			}
			if id == 0 {
				continue
			}
			j.ID = id
			all = append(all, j)
			if isNew {
				added = append(added, j)
			}
		}
		if len(added) == 0 {
			return nil
		}
		return enqueue(ctx, tx.Tx, added)
	})
	return all, err
}

func (tx *Tx) addJob(ctx context.Context, j *Job, enqueue Enqueue) (id int64, isNew bool, err error) {
	options, err := json.Marshal(j.Options)
	if err != nil {
		return 0, false, fmt.Errorf("database: %w", err)
	}
	if ended, err := tx.since(ctx, j.Key, j.Since, "kind IN ('finished', 'pause', 'revoke', 'restore')"); err != nil || ended > 0 {
		return 0, false, err
	}
	j.State, j.Created = Queued, tx.s.now()
	err = tx.QueryRowContext(ctx, tx.s.rebind(`INSERT INTO jobs (key_name, destination, kind, reason, token, options, requested_by, state, created_at, queued_at)
		VALUES (?, ?, ?, ?, ?, ?, ?, 'queued', ?, {{clock}}) ON CONFLICT DO NOTHING RETURNING id`),
		j.Key, j.Destination, j.Kind, j.Reason, j.Token, string(options), j.RequestedBy, micros(j.Created)).Scan(&id)
	switch {
	case err == nil:
		return id, true, tx.event(ctx, Event{
			Kind: "queued", Actor: j.RequestedBy, Key: j.Key, Destination: j.Destination, Job: id, Message: fmt.Sprintf("%s: %s", j.Kind, j.Reason),
		})
	case !errors.Is(err, sql.ErrNoRows):
		return 0, false, fmt.Errorf("database: %w", err)
	}
	list, err := query(ctx, tx.s, tx, scanJob, selectJobs+` WHERE key_name = ? AND destination = ? AND kind = ? AND state IN ('queued', 'running', 'waiting')`,
		j.Key, j.Destination, j.Kind)
	if err != nil {
		return 0, false, err
	}
	if len(list) == 0 {
		return 0, false, errors.New("database: a job could neither be made nor found")
	}
	if found := list[0]; j.Options.Renew && !found.Options.Renew { // what is asked for now goes further
		if j.Options.Why == "" {
			j.Options.Why = found.Options.Why
		}
		if options, err = json.Marshal(j.Options); err != nil {
			return 0, false, fmt.Errorf("database: %w", err)
		}
		// Whoever asked for more has asked for it, and does not count as one who approves it.
		if _, err := tx.exec(ctx, "UPDATE jobs SET options = ?, requested_by = ? WHERE id = ?", string(options), j.RequestedBy, found.ID); err != nil {
			return 0, false, err
		}
		if err := tx.endRequests(ctx, found.ID, j.RequestedBy, otherAsker); err != nil {
			return 0, false, err
		}
		if err := tx.hurry(ctx, found.ID, enqueue); err != nil { // it waits for what was asked for before
			return 0, false, err
		}
		if list, err = query(ctx, tx.s, tx, scanJob, selectJobs+" WHERE id = ?", found.ID); err != nil {
			return 0, false, err
		}
	}
	*j = list[0]
	return j.ID, false, nil
}

const selectJobs = `SELECT id, key_name, destination, kind, reason, token, options, requested_by, state, attempts, created_at, not_before, started_at, finished_at,
	valid_to, daemon, error, error_class, error_code FROM jobs`

func scanJob(scan func(...any) error) (Job, error) {
	var j Job
	var options string
	var created, notBefore, started, finished, validTo int64
	err := scan(&j.ID, &j.Key, &j.Destination, &j.Kind, &j.Reason, &j.Token, &options, &j.RequestedBy, &j.State, &j.Attempts, &created, &notBefore, &started, &finished,
		&validTo, &j.Daemon, &j.Error, &j.ErrorClass, &j.ErrorCode)
	if err == nil {
		err = json.Unmarshal([]byte(options), &j.Options)
	}
	j.Created, j.NotBefore, j.Started, j.Finished, j.ValidTo = stamp(created), stamp(notBefore), stamp(started), stamp(finished), stamp(validTo)
	return j, err
}

// JobFilter says which jobs are wanted.
type JobFilter struct {
	ID     int64
	Key    string
	Kind   Kind  // only these; empty: all
	Open   bool  // only open ones
	State  State // only these; empty: all
	Before int64 // only those with a smaller ID; 0: all
	Limit  int   // 0: 1000
}

// Jobs lists jobs, the latest first.
func (s *Store) Jobs(ctx context.Context, f JobFilter) ([]Job, error) {
	where, args := []string{"1 = 1"}, []any{}
	if f.ID != 0 {
		where, args = append(where, "id = ?"), append(args, f.ID)
	}
	if f.Key != "" {
		where, args = append(where, "key_name = ?"), append(args, f.Key)
	}
	if f.Kind != "" {
		where, args = append(where, "kind = ?"), append(args, f.Kind)
	}
	if f.Open {
		where = append(where, "state IN ('queued', 'running', 'waiting')")
	}
	if f.State != "" {
		where, args = append(where, "state = ?"), append(args, f.State)
	}
	if f.Before != 0 {
		where, args = append(where, "id < ?"), append(args, f.Before)
	}
	if f.Limit == 0 {
		f.Limit = 1000
	}
	return query(ctx, s, s.read, scanJob, selectJobs+" WHERE "+strings.Join(where, " AND ")+" ORDER BY id DESC LIMIT ?", append(args, f.Limit)...)
}

// OpenJob is as much of an open job as the planner needs.
type OpenJob struct {
	Key, Destination string
	Kind             Kind
}

// OpenJobs lists all open jobs.
func (s *Store) OpenJobs(ctx context.Context) ([]OpenJob, error) {
	return query(ctx, s, s.read, func(scan func(...any) error) (OpenJob, error) {
		var j OpenJob
		err := scan(&j.Key, &j.Destination, &j.Kind)
		return j, err
	}, "SELECT key_name, destination, kind FROM jobs WHERE state IN ('queued', 'running', 'waiting')")
}

// ErrNotQueued says that a job is not there to be done: it is over, was cancelled, or somebody else does it.
var ErrNotQueued = errors.New("the job is not queued")

// StartJob begins an attempt of a queued job, or gives [ErrNotQueued].
func (s *Store) StartJob(ctx context.Context, l *Lease, id int64) (j Job, err error) {
	var over error
	err = s.Tx(ctx, func(tx *Tx) error {
		if err := tx.hold(ctx, l); err != nil {
			return err
		}
		// A job of a paused key waits until the key is resumed.
		if _, err := tx.exec(ctx, "UPDATE jobs SET state = 'waiting', not_before = ? WHERE id = ? AND state = 'queued' AND kind IN ('import', 'rotate') AND NOT ("+notPaused+")", micros(s.now()), id); err != nil {
			return err
		}
		n, err := tx.exec(ctx, "UPDATE jobs SET state = 'running', attempts = attempts + 1, started_at = ?, daemon = ? WHERE id = ? AND state = 'queued'", micros(s.now()), s.daemon, id)
		if err != nil {
			return err
		}
		if n == 0 {
			over = ErrNotQueued // and what was changed stays
			return nil
		}
		list, err := query(ctx, s, tx, scanJob, selectJobs+" WHERE id = ?", id)
		if err != nil {
			return err
		}
		j = list[0]
		j.Since, err = tx.lastEvent(ctx)
		return err
	})
	return j, errors.Join(err, over)
}

// Errors by which a step tells a job to stop.
var (
	ErrRevoked   = errors.New("the key was revoked; nothing more is imported until it is restored (hsmbridge restore)")
	ErrCancelled = errors.New("the job was cancelled")
)

// Step writes down a step of a running job, before the next one begins. Its errors stop the job: [ErrLeaseLost], [ErrRevoked], [ErrCancelled].
func (s *Store) Step(ctx context.Context, l *Lease, j Job, e Event) error {
	return l.renewing(func() error {
		return s.noted(ctx, func(tx *Tx) error {
			if err := tx.hold(ctx, l); err != nil {
				return err
			}
			return tx.step(ctx, j, e)
		})
	})
}

func (tx *Tx) step(ctx context.Context, j Job, e Event) error {
	e.Job, e.Key = j.ID, j.Key
	if err := tx.event(ctx, e); err != nil {
		return err
	}
	if e.Kind == "outcome" || e.Kind == "import" || e.Kind == "deleted" {
		return nil // what was done is written down in any case
	}
	return tx.goesOn(ctx, j.ID)
}

// goesOn says why a running job is to stop, if it is.
func (tx *Tx) goesOn(ctx context.Context, job int64) error {
	n, err := tx.standing(ctx, job)
	switch {
	case err != nil:
		return err
	case n.revoked:
		return ErrRevoked
	case n.state == Cancelled:
		return ErrCancelled
	case n.state != Running:
		return ErrLeaseLost // it was queued again, because this process seemed to be gone
	}
	return nil
}

// standing is what counts of a job that somebody else may have changed since it began.
type standing struct {
	state       State
	revoked     bool // its key was, and it would import
	options     Options
	requestedBy string
}

func (tx *Tx) standing(ctx context.Context, job int64) (n standing, err error) {
	var kind Kind
	var options string
	var revoked int64
	err = tx.QueryRowContext(ctx, tx.s.rebind("SELECT state, kind, options, requested_by, coalesce((SELECT revoked_at FROM keys WHERE name = jobs.key_name), 0) FROM jobs WHERE id = ?"), job).Scan(&n.state, &kind, &options, &n.requestedBy, &revoked)
	if err == nil {
		err = json.Unmarshal([]byte(options), &n.options)
	}
	if err != nil {
		return n, fmt.Errorf("database: %w", err)
	}
	n.revoked = revoked != 0 && (kind == KindImport || kind == KindRotate)
	return n, nil
}

// ChooseExpiry keeps the expiry that a job's first attempt chose.
func (s *Store) ChooseExpiry(ctx context.Context, l *Lease, id int64, validTo time.Time) error {
	return s.Tx(ctx, func(tx *Tx) error {
		if err := tx.hold(ctx, l); err != nil {
			return err
		}
		_, err := tx.exec(ctx, "UPDATE jobs SET valid_to = ? WHERE id = ?", micros(validTo), id)
		return err
	})
}

// Cancel ends a job that is not yet over; a running one stops before its next step.
func (s *Store) Cancel(ctx context.Context, id int64, actor string) (found bool, err error) {
	err = s.noted(ctx, func(tx *Tx) error {
		list, err := query(ctx, s, tx, scanJob, selectJobs+" WHERE id = ? AND state IN ('queued', 'running', 'waiting')", id)
		if err != nil || len(list) == 0 {
			return err
		}
		found = true
		return tx.cancel(ctx, list[0], actor, "cancelled")
	})
	return found, err
}

func (tx *Tx) cancel(ctx context.Context, j Job, actor, why string) error {
	if _, err := tx.exec(ctx, "UPDATE jobs SET state = 'cancelled', finished_at = ? WHERE id = ?", micros(tx.s.now()), j.ID); err != nil {
		return err
	}
	if err := tx.endRequests(ctx, j.ID, actor, "the job was cancelled: "+why); err != nil {
		return err
	}
	return tx.event(ctx, Event{Kind: "cancelled", Actor: actor, Key: j.Key, Destination: j.Destination, Job: j.ID, Message: why})
}

// CountJobs counts the open jobs by state.
func (s *Store) CountJobs(ctx context.Context) (map[State]int, error) {
	type row struct {
		state State
		n     int
	}
	rows, err := query(ctx, s, s.read, func(scan func(...any) error) (row, error) {
		var r row
		err := scan(&r.state, &r.n)
		return r, err
	},
		"SELECT state, count(*) FROM jobs WHERE state IN ('queued', 'running', 'waiting') GROUP BY state")
	out := map[State]int{Queued: 0, Running: 0, Waiting: 0}
	for _, r := range rows {
		out[r.state] = r.n
	}
	return out, err
}
