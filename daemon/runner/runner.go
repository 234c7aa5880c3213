// Package runner carries out one job: it takes the key's lock, does the work with the importer, writes every step down before the next
// begins, and decides by a table what a failure means. A job may be given to it more than once, and to several daemons: the lock, the
// journal and what KMS shows make it happen once.
package runner

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"

	"hsmbridge/configs"
	"hsmbridge/daemon/importer"
	"hsmbridge/daemon/store"
)

// Tokens opens tokens. Its errors have a code and a class of the table.
type Tokens interface {
	// Get gives an open token. Callers may use it at the same time.
	Get(ctx context.Context, name string) (importer.Token, error)
	// Rest closes a token, if it is still the one that Get gave, and leaves it alone until then: an error that comes late says nothing of one that was opened since.
	Rest(ctx context.Context, name string, used importer.Token, until time.Time, cause error)
	// Park closes a token and leaves it alone until a person says so.
	Park(ctx context.Context, name string, cause error)
	// Usable says that the daemon reaches a token and knows of no reason why it would not work. It returns at once.
	Usable(name string) bool
	// Replace ends the process of a token's module, whose state in it is broken, if it is still the one of the token that Get gave. The next Get starts another one.
	Replace(ctx context.Context, name string, used importer.Token, cause error)
}

// Observer is told what happens, for logs and metrics. Its methods return at once.
type Observer interface {
	Step(j store.Job, e importer.Event, since time.Duration)   // since the step before
	Finished(j store.Job, o store.Outcome, took time.Duration) // the outcome is written down next
	Written()                                                  // an outcome is written down: what is due may be something else
}

// Runner does jobs. It is safe for concurrent use.
type Runner struct {
	Store    *store.Store
	Config   func() *configs.Config
	Tokens   Tokens
	KMS      func(ctx context.Context, d configs.Destination) (importer.KMS, error)
	Enqueue  store.Enqueue
	Observer Observer
	Log      *zap.Logger
	Now      func() time.Time
	// Others says that another daemon, which is alive, can use one of these tokens; nil: there is none.
	Others func(ctx context.Context, tokens []string) bool
	// Wait is for tests with a clock of their own; nil: real time.
	Wait func(ctx context.Context, d time.Duration) error
	// AfterStep is called when a step is written down; for tests that end the process there. May be nil.
	AfterStep func(j store.Job, step string)

	once sync.Once
	end  chan struct{}
}

// attemptTime bounds one attempt of a job, whatever hangs.
const attemptTime = 15 * time.Minute

// errStopping stops a job between two steps, because the daemon ends.
var errStopping = errors.New("the daemon ends")

// Stop lets running jobs stop before their next step and hands them back.
func (r *Runner) Stop() {
	r.init()
	select {
	case <-r.end:
	default:
		close(r.end)
	}
}

func (r *Runner) init() { r.once.Do(func() { r.end = make(chan struct{}) }) }

func (r *Runner) stopping() bool {
	r.init()
	select {
	case <-r.end:
		return true
	default:
		return false
	}
}

// Work does one job, if it is still to be done. With again > 0 somebody else works on the key, and it is to be asked once more.
// An error means that the outcome could not be written down.
func (r *Runner) Work(ctx context.Context, id int64) (again time.Duration, err error) {
	r.init()
	if r.stopping() {
		return time.Second, nil
	}
	list, err := r.Store.Jobs(ctx, store.JobFilter{ID: id})
	if err != nil {
		return 0, err
	}
	if len(list) == 0 || list[0].State != store.Queued {
		return 0, nil
	}
	if others, err := r.leaves(ctx, list[0]); err != nil || others {
		return leaveTime, err
	}
	l, err := r.lock(ctx, list[0].Key)
	switch {
	case errors.Is(err, store.ErrLocked):
		return time.Second, nil
	case err != nil:
		return 0, err
	}
	j, err := r.Store.StartJob(ctx, l, id)
	if err != nil {
		if rerr := l.Release(context.WithoutCancel(ctx)); !errors.Is(err, store.ErrNotQueued) || rerr != nil {
			return 0, errors.Join(err, rerr)
		}
		return 0, nil
	}
	return 0, r.attempt(ctx, l, j)
}

// lock takes the key's lock, waiting some seconds for another job of the same key.
func (r *Runner) lock(ctx context.Context, key string) (*store.Lease, error) {
	const step, tries = 50 * time.Millisecond, 60
	for i := 1; ; i++ {
		l, err := r.Store.Lock(ctx, key)
		if !errors.Is(err, store.ErrLocked) || i == tries || r.stopping() {
			return l, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(step):
		}
	}
}

// attempt does a started job and writes its outcome down.
func (r *Runner) attempt(ctx context.Context, l *store.Lease, j store.Job) error {
	began := time.Now()
	work, cancel := context.WithTimeoutCause(ctx, attemptTime, fmt.Errorf("an attempt may take %s: %w", attemptTime, context.DeadlineExceeded))
	defer cancel()
	stopBeat := r.beat(work, l, cancel)
	t := &task{Runner: r, lease: l, job: j, last: began}
	o, err := t.do(work)
	stopBeat()
	if err != nil {
		imports, materials, seen := o.Imports, o.Materials, o.Seen // what was done stays, whatever failed then
		v := r.judge(work, j, err)
		o = v.outcome
		o.Imports, o.Materials, o.Seen = imports, materials, seen
		r.consequences(ctx, t, v, err)
		r.handOver(context.WithoutCancel(ctx), t, &v, err)
		o.State, o.NotBefore, o.NeedsPerson, o.Message = v.outcome.State, v.outcome.NotBefore, v.outcome.NeedsPerson, v.outcome.Message
	}
	if errors.Is(err, store.ErrLeaseLost) {
		r.Log.Warn("a job was taken over by another daemon", zap.Int64("job", j.ID), zap.String("key", j.Key))
		return nil // whoever has the lock now writes its outcome
	}
	r.Observer.Finished(j, o, time.Since(began))
	defer r.Observer.Written()
	if written, err := r.finish(context.WithoutCancel(ctx), l, j, o); !written || !o.NeedsPerson {
		return err
	}
	return r.forgive(context.WithoutCancel(ctx), t, o.ErrorCode)
}

// forgive forgets what an attempt ended with for which a person is needed, where the configuration is another one by now: whoever changed it has perhaps mended just
// that, and a reload forgets only what it finds. It is looked at after the outcome is written down, so that one of the two sees the other.
func (r *Runner) forgive(ctx context.Context, t *task, code string) error {
	c := r.Config()
	if k, ok := c.Key(t.job.Key); !ok || !t.differs(c, k) {
		return nil
	}
	if err := r.Store.ClearErrors(ctx, t.job.Key, r.Store.Daemon(), "the configuration has changed since the attempt began: its errors are forgotten"); err != nil {
		return err
	}
	if code == CodeApproval {
		return nil // officers, or the end of their request, let it begin
	}
	_, err := r.Store.Hurry(ctx, t.job.ID, r.Store.Daemon(), r.Enqueue) // it waits for hours perhaps, and nobody would know what for
	return err
}

// consequences are those for the token that was used. One that could not be opened has seen to it itself.
func (r *Runner) consequences(ctx context.Context, t *task, v verdict, err error) {
	ctx = context.WithoutCancel(ctx)
	switch {
	case t.on == "":
	case v.do == park:
		r.Tokens.Park(ctx, t.on, err)
	case v.do == rest && codeOf(err) != CodeResting:
		r.Tokens.Rest(ctx, t.on, t.used, r.Now().Add(v.delay), err)
	case v.do == replace:
		r.Tokens.Replace(ctx, t.on, t.used, err)
	}
}

// finish writes the outcome down, also when the database is away for a while. Where another daemon has taken the job over, it does not, and that is no error.
func (r *Runner) finish(ctx context.Context, l *store.Lease, j store.Job, o store.Outcome) (written bool, err error) {
	const tries = 6
	for i := 1; ; i++ {
		err := r.Store.FinishJob(ctx, l, j, o, r.Enqueue)
		switch {
		case err == nil:
			return true, nil
		case errors.Is(err, store.ErrLeaseLost):
			r.Log.Warn("the outcome of a job was not written down, because another daemon has taken it over", zap.Int64("job", j.ID), zap.String("key", j.Key))
			return false, nil
		case i == tries || r.stopping():
			return false, err // the lease ends, and the job is done again from what KMS shows
		}
		r.Log.Warn("the outcome of a job could not be written down yet", zap.Int64("job", j.ID), zap.Error(err))
		time.Sleep(time.Duration(i) * 500 * time.Millisecond)
	}
}

// beat renews the lease while a step takes long, and ends the work when the lease is lost.
func (r *Runner) beat(ctx context.Context, l *store.Lease, lost func()) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(r.Store.LeaseTime() / 3)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			if err := l.Renew(ctx); errors.Is(err, store.ErrLeaseLost) {
				lost()
				return
			}
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

// task is one attempt of one job.
type task struct {
	*Runner
	lease  *store.Lease
	job    store.Job
	config *configs.Config // by which the attempt began
	key    configs.Key     // of config
	last   time.Time
	mu     sync.Mutex

	on         string         // the token that is used; empty: none yet
	used       importer.Token // that token, as it was opened
	generation int64          // that is wrapped next
	want       string         // what tells its material; empty: not known
	is         string         // what the object that was wrapped tells, where want was not known
}

func (t *task) do(ctx context.Context) (store.Outcome, error) {
	c := t.Config()
	k, ok := c.Key(t.job.Key)
	if t.job.Kind == store.KindRevoke {
		known, err := t.Store.DestinationsOf(ctx, t.job.Key)
		if err != nil {
			return store.Outcome{}, unwritten(err)
		}
		k, ok = Revocable(c, t.job.Key, known)
	}
	if !ok {
		return store.Outcome{State: store.Cancelled, Message: "the key is no longer in the configuration"}, nil
	}
	t.config, t.key = c, k
	switch t.job.Kind {
	case store.KindImport:
		for _, d := range k.Destinations {
			if d.ARN == t.job.Destination {
				return t.importTo(ctx, c, k, d)
			}
		}
		return store.Outcome{State: store.Cancelled, Message: "the destination is no longer in the configuration"}, nil
	case store.KindRotate:
		return t.rotate(ctx, c, k)
	case store.KindRevoke:
		return t.revoke(ctx, k)
	case store.KindReconcile:
		return t.reconcile(ctx, k)
	}
	return store.Outcome{State: store.Failed, Message: fmt.Sprintf("no job is of kind %q", t.job.Kind)}, nil
}

// record writes a step down; its error stops the job before the next one.
func (t *task) record(ctx context.Context, e importer.Event) error {
	fields := make(map[string]string, len(e.Fields))
	for _, f := range e.Fields {
		fields[f.Name] = f.Value
	}
	if err := t.Store.Step(ctx, t.lease, t.job, store.Event{Kind: string(e.Step), Time: e.Time, Destination: e.Destination, Message: e.Message, Fields: fields, Sending: e.Step == importer.StepWrap, Imported: e.Imported}); err != nil {
		return unwritten(err)
	}
	t.mu.Lock()
	now := time.Now()
	t.Observer.Step(t.job, e, now.Sub(t.last))
	t.last = now
	t.mu.Unlock()
	if t.AfterStep != nil {
		t.AfterStep(t.job, string(e.Step))
	}
	if t.stopping() && e.Step != importer.StepOutcome {
		return errStopping
	}
	return nil
}

// unwritten gives what the database failed at its class.
func unwritten(err error) error {
	if err == nil || errors.Is(err, store.ErrLeaseLost) || errors.Is(err, store.ErrRevoked) || errors.Is(err, store.ErrCancelled) {
		return err
	}
	return &Error{ErrCode: "Database", ErrClass: "database", Message: "the journal could not be written", Err: err}
}

// importer is an importer that writes its steps into the journal.
func (t *task) importer(token importer.Token, k configs.Key) *importer.Importer {
	g := &gated{Token: token}
	return &importer.Importer{
		Token: g, Record: t.record, Now: t.Now, Wait: t.Wait,
		Authorize: func(ctx context.Context, a importer.Act) error { return t.authorize(ctx, g, a) },
		KMS: func(ctx context.Context, arn string) (importer.KMS, error) {
			for _, d := range k.Destinations {
				if d.ARN != arn {
					continue
				}
				kms, err := t.KMS(ctx, d)
				if err != nil || t.lease == nil {
					return kms, err
				}
				return fenced{
					KMS: kms, sure: func(ctx context.Context) error { return unwritten(t.lease.Sure(ctx)) }, renew: func(ctx context.Context) error { return unwritten(t.lease.Renew(ctx)) },
				}, nil
			}
			return nil, &Error{ErrCode: "NotConfigured", ErrClass: "caller", Message: arn + " is no destination of " + k.Name}
		},
		Chosen: func(ctx context.Context, validTo time.Time) error {
			if t.job.ValidTo.Equal(validTo) {
				return nil
			}
			t.job.ValidTo = validTo
			return unwritten(t.Store.ChooseExpiry(ctx, t.lease, t.job.ID, validTo))
		},
	}
}

// request is the import of one generation to one destination.
func (t *task) request(c *configs.Config, k configs.Key, d configs.Destination) importer.Request {
	return importer.Request{
		Name: k.Name, Object: k.URI, KeySpec: k.KeySpec, Destination: d.ARN, Expires: k.Expires.Duration(), Prove: k.Prove,
		Policy: c.Wrapping.Policy(d.Partition()), ValidTo: t.job.ValidTo,
	}
}
