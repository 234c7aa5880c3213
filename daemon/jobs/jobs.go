// Package jobs is the durable queue: River on the daemon's own database. River carries the numbers of jobs to whoever can do them, once
// or more than once; what a job is and whether it is still to be done stands in the store. No type of River leaves this package.
package jobs

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver"
	"github.com/riverqueue/river/riverdriver/riverdatabasesql"
	"github.com/riverqueue/river/riverdriver/riversqlite"
	"github.com/riverqueue/river/rivermigrate"
	"github.com/riverqueue/river/rivertype"
	"go.uber.org/zap"
	"go.uber.org/zap/exp/zapslog"
	"go.uber.org/zap/zapcore"

	"hsmbridge/daemon/store"
)

// Config says who works on what.
type Config struct {
	DB       *sql.DB
	Postgres bool
	Daemon   string        // its name among those on the database
	Tokens   []string      // whose jobs this daemon does, as [store.Job.Token] has them; jobs that need no token are for every daemon
	Places   []Place       // of destinations: each has a queue of its own, so that none waits behind another's
	Workers  int           // jobs of one queue at a time; 0: 4
	Poll     time.Duration // how often the queue is looked at; 0: half a second
	// Work does a job by its number. With again > 0 it is to be given the job once more after that time; an error means that not even
	// the outcome could be written down, and the job comes back after some seconds.
	Work func(ctx context.Context, id int64) (again time.Duration, err error)
	Log  *zap.Logger
}

// Place is a queue: the jobs of a token for destinations in one account and Region. With an empty Name those for keys as a whole.
type Place struct {
	Token, Name string // Name as [store.Job.Place] gives it
	Workers     int    // jobs at a time; 0: those of the configuration
}

// Queue is the queue.
type Queue struct {
	client  *river.Client[*sql.Tx]
	config  Config
	workers int

	mu    sync.RWMutex
	known map[string]bool // River's names of queues that are served
}

// args is what River keeps of a job.
type args struct {
	ID int64 `json:"id"`
}

// Kind is River's name for all jobs; what they are stands in the store.
func (args) Kind() string { return "hsmbridge" }

type worker struct {
	river.WorkerDefaults[args]
	work func(ctx context.Context, id int64) (time.Duration, error)
}

// Work does a job.
func (w *worker) Work(ctx context.Context, j *river.Job[args]) error {
	again, err := w.work(ctx, j.Args.ID)
	switch {
	case err != nil:
		return err
	case again > 0:
		return river.JobSnooze(again)
	}
	return nil
}

// Timeout is none: the work itself knows how long each of its steps may take.
func (*worker) Timeout(*river.Job[args]) time.Duration { return -1 }

// soon brings a job back whose outcome could not be written down.
type soon struct{}

// NextRetry is in five seconds.
func (soon) NextRetry(*rivertype.JobRow) time.Time { return time.Now().Add(5 * time.Second) }

// New makes the queue and brings its tables up to date.
func New(ctx context.Context, c Config) (*Queue, error) {
	var driver riverdriver.Driver[*sql.Tx] = riversqlite.New(c.DB)
	if c.Postgres {
		driver = riverdatabasesql.New(c.DB)
	}
	logger := slog.New(zapslog.NewHandler(c.Log.WithOptions(zap.IncreaseLevel(zapcore.WarnLevel)).Core()))
	migrator, err := rivermigrate.New(driver, &rivermigrate.Config{Logger: logger})
	if err != nil {
		return nil, fmt.Errorf("queue: %w", err)
	}
	if _, err := migrator.Migrate(ctx, rivermigrate.DirectionUp, nil); err != nil {
		return nil, fmt.Errorf("bring the queue's tables up to date: %w", err)
	}
	q := &Queue{config: c, workers: c.Workers, known: map[string]bool{}}
	if q.workers == 0 {
		q.workers = 4
	}
	workers := river.NewWorkers()
	river.AddWorker(workers, &worker{work: c.Work})
	queues := map[string]river.QueueConfig{queueName("", ""): {MaxWorkers: q.workers}}
	for _, token := range c.Tokens {
		queues[queueName(token, "")] = river.QueueConfig{MaxWorkers: q.workers}
	}
	for _, p := range c.Places {
		queues[queueName(p.Token, p.Name)] = river.QueueConfig{MaxWorkers: q.atATime(p)}
	}
	for name := range queues {
		q.known[name] = true
	}
	if c.Poll == 0 {
		// Every queue is looked at by itself; together they ask the database 40 times a second at most.
		c.Poll = max(500*time.Millisecond, time.Duration(len(queues))*25*time.Millisecond)
	}
	q.client, err = river.NewClient(driver, &river.Config{
		ID: c.Daemon, Logger: logger, Queues: queues, Workers: workers,
		MaxAttempts: 1000, RetryPolicy: soon{}, JobTimeout: -1, RescueStuckJobsAfter: 20 * time.Minute, // the store reclaims much earlier
		FetchPollInterval: c.Poll, FetchCooldown: min(c.Poll, 50*time.Millisecond), PollOnly: true,
		CompletedJobRetentionPeriod: time.Hour, CancelledJobRetentionPeriod: time.Hour, DiscardedJobRetentionPeriod: 24 * time.Hour, // the store has them as long as retention says
	})
	if err != nil {
		return nil, fmt.Errorf("queue: %w", err)
	}
	return q, nil
}

func (q *Queue) atATime(p Place) int {
	if p.Workers > 0 {
		return p.Workers
	}
	return q.workers
}

// queueName is River's name for the jobs of a token in a place, whose own names River would not take.
func queueName(token, place string) string {
	if token == "" {
		return "kms"
	}
	sum := sha256.Sum256([]byte(token))
	name := "token_" + hex.EncodeToString(sum[:8])
	if place != "" {
		at := sha256.Sum256([]byte(place))
		name += "_" + hex.EncodeToString(at[:8])
	}
	return name
}

// queueOf is River's name for the queue of a job. A place that nobody has named has the queue of its token.
func (q *Queue) queueOf(j store.Job) string {
	q.mu.RLock()
	defer q.mu.RUnlock()
	if name := queueName(j.Token, j.Place()); q.known[name] {
		return name
	}
	return queueName(j.Token, "")
}

// Recover gives back to the queue what an earlier process of this daemon had taken out of it and not ended, which River would do after its
// RescueStuckJobsAfter. It is for the start: on SQLite there is one daemon, on PostgreSQL its name tells.
func (q *Queue) Recover(ctx context.Context) error {
	query, args := "UPDATE river_job SET state = 'available' WHERE state = 'running'", []any{}
	if q.config.Postgres {
		query, args = query+" AND attempted_by[array_upper(attempted_by, 1)] = $1", []any{q.config.Daemon}
	}
	if _, err := q.config.DB.ExecContext(ctx, query, args...); err != nil {
		return fmt.Errorf("queue: %w", err)
	}
	return nil
}

// Pending is how many jobs are in the queue and not taken out, or only just now: such a one is about to begin.
func (q *Queue) Pending(ctx context.Context) (n int, err error) {
	now := "datetime('now', '-10 seconds')"
	if q.config.Postgres {
		now = "now() - interval '10 seconds'"
	}
	if err := q.config.DB.QueryRowContext(ctx, "SELECT count(*) FROM river_job WHERE state IN ('available', 'pending', 'retryable', 'scheduled') OR (state = 'running' AND attempted_at > "+now+")").Scan(&n); err != nil {
		return 0, fmt.Errorf("queue: %w", err)
	}
	return n, nil
}

// Start begins to work. Stop ends it; ctx is not for that.
func (q *Queue) Start(ctx context.Context) error {
	if err := q.client.Start(context.WithoutCancel(ctx)); err != nil {
		return fmt.Errorf("start the queue: %w", err)
	}
	return nil
}

// Stop takes no new jobs and waits for those that run; at ctx's end they are cancelled.
func (q *Queue) Stop(ctx context.Context) error {
	if err := q.client.Stop(ctx); err == nil {
		return nil
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if err := q.client.StopAndCancel(last); err != nil {
		return fmt.Errorf("stop the queue: %w", err)
	}
	return nil
}

// Serve takes the jobs of one more token, or of one more place of it.
func (q *Queue) Serve(p Place) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	name := queueName(p.Token, p.Name)
	if q.known[name] {
		return nil
	}
	if err := q.client.Queues().Add(name, river.QueueConfig{MaxWorkers: q.atATime(p)}); err != nil {
		return fmt.Errorf("queue: %w", err)
	}
	q.known[name] = true
	return nil
}

// Enqueue puts jobs into the queue with the transaction that makes them.
func (q *Queue) Enqueue(ctx context.Context, tx *sql.Tx, list []store.Job) error {
	const batch = 500
	params := make([]river.InsertManyParams, 0, min(len(list), batch))
	for i, j := range list {
		params = append(params, river.InsertManyParams{Args: args{j.ID}, InsertOpts: &river.InsertOpts{Queue: q.queueOf(j), Priority: priority(j)}})
		if len(params) == batch || i == len(list)-1 {
			if _, err := q.client.InsertManyTx(ctx, tx, params); err != nil {
				return fmt.Errorf("queue: %w", err)
			}
			params = params[:0]
		}
	}
	return nil
}

// priority is 1, the highest, to 4.
func priority(j store.Job) int {
	switch {
	case j.Kind == store.KindRevoke:
		return 1
	case j.RequestedBy != "planner" || j.Reason == "restore":
		return 2
	case j.Reason == "first" || j.Reason == "renew":
		return 3
	}
	return 4
}
