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

// Enqueue puts jobs into the queue, inside the transaction that makes them.
type Enqueue func(ctx context.Context, tx *sql.Tx, jobs []Job) error

// AddJobs makes jobs and queues them, in one transaction. For a job of which one is open already, that one is given back.
func (s *Store) AddJobs(ctx context.Context, jobs []Job, enqueue Enqueue) (all []Job, err error) {
	err = s.noted(ctx, func(tx *Tx) error {
		var added []Job
		all = all[:0]
		for _, j := range jobs {
			id, isNew, err := tx.addJob(ctx, &j)
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

func (tx *Tx) addJob(ctx context.Context, j *Job) (id int64, isNew bool, err error) {
	options, err := json.Marshal(j.Options)
	if err != nil {
		return 0, false, fmt.Errorf("database: %w", err)
	}
	if ended, err := tx.since(ctx, j.Key, j.Since, "finished", "pause", "revoke", "restore"); err != nil || ended > 0 {
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
		list[0].Options, list[0].RequestedBy = j.Options, j.RequestedBy
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
	state   State
	revoked bool // its key was, and it would import
	options Options
}

func (tx *Tx) standing(ctx context.Context, job int64) (n standing, err error) {
	var kind Kind
	var options string
	var revoked int64
	err = tx.QueryRowContext(ctx, tx.s.rebind("SELECT state, kind, options, coalesce((SELECT revoked_at FROM keys WHERE name = jobs.key_name), 0) FROM jobs WHERE id = ?"), job).Scan(&n.state, &kind, &options, &revoked)
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

// tooFar is longer than any job waits: a time that lies further ahead was written under a wrong clock.
const tooFar = 8 * time.Hour

const notPaused = "NOT EXISTS (SELECT 1 FROM keys WHERE keys.name = jobs.key_name AND keys.paused_at <> 0)"

// Wake queues waiting jobs whose time has come, and those that failed with one of the codes parks when no token is parked any more: a
// person may have said so in the moment in which the job began to wait.
func (s *Store) Wake(ctx context.Context, parks []string, enqueue Enqueue) (n int, err error) {
	args := []any{micros(s.now()), micros(s.now().Add(tooFar))}
	for _, code := range parks {
		args = append(args, code)
	}
	unparked := "(error_code IN ('-'" + strings.Repeat(", ?", len(parks)) + ") AND NOT EXISTS (SELECT 1 FROM parked) AND NOT EXISTS (SELECT 1 FROM parked_here))"
	err = s.Tx(ctx, func(tx *Tx) error {
		list, err := query(ctx, s, tx, scanJob, selectJobs+" WHERE state = 'waiting' AND (not_before <= ? OR not_before > ? OR "+unparked+") AND (kind = 'revoke' OR "+notPaused+") ORDER BY not_before LIMIT 500", args...)
		if err != nil || len(list) == 0 {
			return err
		}
		n = len(list)
		_, err = tx.requeue(ctx, list, enqueue)
		return err
	})
	return n, err
}

// Hurry lets a waiting job begin now, and gives false if there is none.
func (s *Store) Hurry(ctx context.Context, id int64, actor string, enqueue Enqueue) (found bool, err error) {
	err = s.noted(ctx, func(tx *Tx) error {
		list, err := query(ctx, s, tx, scanJob, selectJobs+" WHERE state = 'waiting' AND id = ?", id)
		if err != nil || len(list) == 0 {
			return err
		}
		found = true
		if err := tx.event(ctx, Event{Kind: "retry", Actor: actor, Key: list[0].Key, Destination: list[0].Destination, Job: id, Message: "asked to try again now"}); err != nil {
			return err
		}
		_, err = tx.requeue(ctx, list, enqueue)
		return err
	})
	return found, err
}

// HurryToken lets the jobs begin now that wait for a token, also those that other tokens can do as well.
func (s *Store) HurryToken(ctx context.Context, token string, enqueue Enqueue) (n int, err error) {
	err = s.Tx(ctx, func(tx *Tx) error {
		list, err := query(ctx, s, tx, scanJob, selectJobs+" WHERE state = 'waiting' AND ',' || token || ',' LIKE ? AND error_class IN ('token', 'session', 'library')", "%,"+token+",%")
		if err != nil || len(list) == 0 {
			return err
		}
		n = len(list)
		_, err = tx.requeue(ctx, list, enqueue)
		return err
	})
	return n, err
}

// Reclaim queues running jobs again whose daemon is gone: with own, those that this daemon's earlier life left behind, which is for
// its start; without, those whose lease has ended.
func (s *Store) Reclaim(ctx context.Context, own bool, enqueue Enqueue) (list []Job, err error) {
	err = s.Tx(ctx, func(tx *Tx) error {
		condition, args := "NOT EXISTS (SELECT 1 FROM locks WHERE locks.name = jobs.key_name AND locks.owner = jobs.daemon AND locks.until >= {{clock}})", []any{}
		if own {
			if err := tx.eventsInOrder(ctx); err != nil {
				return err
			}
			if _, err := tx.exec(ctx, "UPDATE locks SET until = 0, owner = '' WHERE owner = ?", s.daemon); err != nil {
				return err
			}
			condition, args = "daemon = ?", []any{s.daemon}
		}
		list, err = query(ctx, s, tx, scanJob, selectJobs+" WHERE state = 'running' AND "+condition, args...)
		if err != nil || len(list) == 0 {
			return err
		}
		if err := tx.eventsInOrder(ctx); err != nil { // not for nothing in each minute
			return err
		}
		if list, err = tx.requeue(ctx, list, enqueue); err != nil {
			return err
		}
		for _, j := range list {
			// Whoever has it still and was only slow is told so: its fence is not the last one any more.
			if _, err := tx.exec(ctx, "UPDATE locks SET until = 0, owner = '', fence = fence + 1 WHERE name = ? AND owner = ? AND until < {{clock}}", j.Key, j.Daemon); err != nil {
				return err
			}
			e := Event{Kind: "reclaimed", Key: j.Key, Destination: j.Destination, Job: j.ID, Message: fmt.Sprintf("%s ended in the middle of the job; it is done again from what KMS shows", j.Daemon)}
			if err := tx.event(ctx, e); err != nil {
				return err
			}
		}
		return nil
	})
	return list, err
}

// Orphans queues jobs again that the queue has lost: somebody took them out of it and ended, or was frozen, before the job began. pending
// is how many the queue has; while it has all, nothing is done. A job that is queued twice is done once.
func (s *Store) Orphans(ctx context.Context, pending int, after time.Duration, enqueue Enqueue) (n int, err error) {
	err = s.Tx(ctx, func(tx *Tx) error {
		var queued int
		if err := tx.QueryRowContext(ctx, "SELECT count(*) FROM jobs WHERE state = 'queued'").Scan(&queued); err != nil {
			return fmt.Errorf("database: %w", err)
		}
		if queued <= pending {
			return nil
		}
		list, err := query(ctx, s, tx, scanJob, selectJobs+" WHERE state = 'queued' AND queued_at < {{clock}} - ? ORDER BY queued_at LIMIT 500", after.Microseconds())
		if err != nil || len(list) == 0 {
			return err
		}
		n = len(list)
		_, err = tx.requeue(ctx, list, enqueue)
		return err
	})
	return n, err
}

// requeue queues jobs again that are still as they were read, and gives those: another daemon may have been faster.
func (tx *Tx) requeue(ctx context.Context, list []Job, enqueue Enqueue) (mine []Job, err error) {
	for _, j := range list {
		n, err := tx.exec(ctx, "UPDATE jobs SET state = 'queued', not_before = 0, queued_at = {{clock}} WHERE id = ? AND state = ? AND attempts = ?", j.ID, j.State, j.Attempts)
		if err != nil {
			return nil, err
		}
		if n > 0 {
			mine = append(mine, j)
		}
	}
	if len(mine) == 0 {
		return nil, nil
	}
	return mine, enqueue(ctx, tx.Tx, mine)
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
