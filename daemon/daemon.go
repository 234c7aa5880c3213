// Package daemon is the service beside the HSM: it wires the store, the queue, the planner, the tokens, the KMS clients and the control API
// together, and is their life cycle. It needs no cgo: whoever starts it says how a token is opened.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"hsmbridge/configs"
	"hsmbridge/daemon/control"
	"hsmbridge/daemon/jobs"
	"hsmbridge/daemon/metrics"
	"hsmbridge/daemon/runner"
	"hsmbridge/daemon/schedule"
	"hsmbridge/daemon/store"
	"hsmbridge/kmsclient"
)

// Options say what a daemon works with.
type Options struct {
	Config     *configs.Config
	Load       func() (*configs.Config, error) // reads the configuration again; nil: it cannot be reloaded
	OpenToken  OpenToken
	Log        *zap.Logger
	Version    string
	Control    net.Listener       // a socket that systemd opened; nil: the daemon makes it
	Notify     func(state string) // tells systemd; may be nil. Source: sd_notify(3)
	WatchdogIn time.Duration      // systemd wants a sign of life this often; 0: never

	// For tests.
	Now       func() time.Time
	Wait      func(ctx context.Context, d time.Duration) error
	AfterStep func(j store.Job, step string)
	Lease     time.Duration
	Clock     func() time.Time // in place of the database's
	HTTP      *http.Client     // to KMS
	NoSync    bool
	Poll      time.Duration
	Stuck     time.Duration // without progress for so long the daemon gives systemd no signs of life; 0: ten minutes
	Manual    bool          // nobody calls Tick but the test
}

// Daemon is the service.
type Daemon struct {
	o       Options
	log     *zap.Logger
	now     func() time.Time
	store   *store.Store
	queue   *jobs.Queue
	runner  *runner.Runner
	tokens  *tokens
	clients *clients
	metrics *metrics.Metrics
	auditor *auditor

	refusals refusals
	sites    sites

	config atomic.Pointer[configs.Config]
	keys   atomic.Pointer[[]schedule.Key]

	started    time.Time
	began      time.Time // by the clock that counts
	ready      atomic.Bool
	kick       chan struct{}
	progress   atomic.Int64 // when the loop last came around: time since the start
	lastReload atomic.Pointer[string]
	reloading  sync.Mutex
}

// LoadQuickly loads a configuration without collecting garbage in between: that of ten thousand keys leaves some 200 MiB behind, for a moment.
func LoadQuickly(load func() (*configs.Config, error)) (*configs.Config, error) {
	defer debug.SetGCPercent(debug.SetGCPercent(400))
	return load()
}

// New opens the database and makes everything ready to run. It opens no token and calls nobody.
func New(ctx context.Context, o Options) (*Daemon, error) {
	d := &Daemon{o: o, log: o.Log, now: o.Now, started: time.Now(), kick: make(chan struct{}, 1)}
	if d.now == nil {
		d.now = time.Now
	}
	d.began = d.now()
	keys, err := compile(o.Config)
	if err != nil {
		return nil, err
	}
	d.config.Store(o.Config)
	d.keys.Store(&keys)
	c := store.Config{Daemon: o.Config.DaemonName(), Now: d.now, Lease: o.Lease, Clock: o.Clock, NoSync: o.NoSync}
	switch kind, location := o.Config.DatabaseLocation(); kind {
	case "postgres":
		c.Postgres = location
	default:
		c.Path = location
	}
	if d.store, err = store.Open(ctx, c); err != nil {
		return nil, err
	}
	if err := d.wire(ctx); err != nil {
		return nil, errors.Join(err, d.store.Close())
	}
	return d, nil
}

// wire makes the parts and gives them each other.
func (d *Daemon) wire(ctx context.Context) error {
	d.metrics = metrics.New(d.o.Version, d.snapshot)
	d.metrics.Reloaded(true, d.now())
	d.clients = &clients{
		http: d.o.HTTP, paces: newPaces(d.store),
		config: d.config.Load, store: d.store, log: d.log, now: d.now, made: map[place]*kms{},
		calls: func(c kmsclient.Call) { d.metrics.Call(c.Operation, c.Code) },
	}
	d.tokens = &tokens{open: d.o.OpenToken, config: d.config.Load, store: d.store, log: d.log, now: d.now, began: d.metrics.ProcessBegan, gone: d.metrics.ProcessEnded, byName: map[string]*slot{}}
	if err := d.tokens.load(ctx); err != nil {
		return err
	}
	d.auditor = &auditor{store: d.store, tokens: d.tokens, config: d.config.Load, log: d.log, now: d.now, stdout: func(line []byte) error {
		_, err := os.Stdout.Write(append(line, '\n'))
		return err //nolint:wrapcheck // it names what failed
	}}
	d.store.Require(d.auditor.required)
	d.clients.keeper = &keeper{store: d.store, key: d.auditor.key, config: d.config.Load, log: d.log, now: d.now, mine: map[string]kept{}}
	d.runner = &runner.Runner{
		Store: d.store, Config: d.config.Load, Tokens: d.tokens, KMS: d.clients.client, Observer: observer{d}, Log: d.log, Now: d.now, Wait: d.o.Wait,
		AfterStep: d.o.AfterStep, Others: d.others,
	}
	left, err := d.store.OpenPlaces(ctx)
	if err != nil {
		return err
	}
	err = d.store.Exclusively(ctx, func() (err error) {
		d.queue, err = jobs.New(ctx, jobs.Config{
			DB: d.store.DB(), Postgres: d.store.Postgres(), Daemon: d.store.Daemon(), Tokens: sets(d.config.Load()), Places: d.places(d.config.Load(), left), Poll: d.o.Poll, Work: d.runner.Work, Log: d.log,
		})
		return err
	})
	if err != nil {
		return err
	}
	d.runner.Enqueue = d.queue.Enqueue
	return nil
}

// Run runs the daemon until ctx ends, then finishes the steps under way, hands the rest back and closes everything.
func (d *Daemon) Run(ctx context.Context) error {
	stop, err := d.Start(ctx)
	if err != nil {
		return errors.Join(err, d.store.Close())
	}
	<-ctx.Done()
	return stop()
}

// stopTime is how long the steps under way may take at the end.
const stopTime = 45 * time.Second

// Start begins: sockets, the queue, the loops. The function that it gives ends all of it.
func (d *Daemon) Start(ctx context.Context) (stop func() error, err error) {
	servers, err := d.listen(ctx)
	if err != nil {
		return nil, err
	}
	if err := d.queue.Recover(ctx); err != nil {
		return nil, err
	}
	// Nothing begins that is not in the log.
	start := store.Event{Kind: "start", Message: "started, version " + d.o.Version, Fields: configuration(d.config.Load(), d.o.Version)}
	if err := d.store.AddEvent(ctx, start); err != nil {
		return nil, err
	}
	own, err := d.store.Reclaim(ctx, true, d.queue.Enqueue)
	if err != nil {
		return nil, err
	}
	for _, j := range own {
		d.log.Warn("a job that an earlier process left is done again", zap.Int64("job", j.ID), zap.String("key", j.Key), zap.String("destination", j.Destination))
	}
	if err := d.queue.Start(ctx); err != nil {
		return nil, err
	}
	loops, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	if !d.o.Manual {
		wg.Go(func() { d.loop(loops) })
		wg.Go(func() { d.auditor.run(loops) })
		wg.Go(func() { d.retain(loops) })
		wg.Go(func() { d.watchSites(loops) })
	}
	wg.Go(func() { d.watchdog(loops) })
	if !d.o.Manual {
		wg.Go(func() { d.tokens.askAtStart(loops) })
	}
	d.ready.Store(true)
	d.notify("READY=1\nSTATUS=running")
	go debug.FreeOSMemory() // what loading left behind
	d.log.Info("ready", zap.String("daemon", d.store.Daemon()), zap.Int("keys", len(d.config.Load().Keys)), zap.Duration("took", time.Since(d.started)))
	return func() error {
		d.ready.Store(false)
		d.notify("STOPPING=1\nSTATUS=finishing the steps under way")
		d.log.Info("ending: the steps under way are finished")
		d.tokens.devices.stop()
		d.runner.Stop()
		cancel()
		end, done := context.WithTimeout(context.WithoutCancel(ctx), stopTime)
		defer done()
		errs := []error{d.queue.Stop(end)}
		wg.Wait()
		for _, s := range servers {
			quick, done := context.WithTimeout(end, time.Second)
			if err := s.Shutdown(quick); err != nil {
				_ = s.Close() // somebody follows the events
			}
			done()
		}
		if err := d.store.Leave(end); err != nil {
			d.log.Warn("the others will see that this daemon is gone, and not that it ended in good order", zap.Error(err))
		}
		if err := d.store.AddEvent(end, store.Event{Kind: "stop", Message: "ended"}); err != nil {
			d.log.Warn("the end could not be written down", zap.Error(err))
		}
		if !d.o.Manual {
			d.auditor.last(end)
		}
		errs = append(errs, d.tokens.close(), d.store.Close())
		return errors.Join(errs...)
	}, nil
}

// listen serves the control socket, and metrics and health.
func (d *Daemon) listen(ctx context.Context) ([]*http.Server, error) {
	l := d.o.Control
	if l == nil {
		var err error
		if l, err = control.Listen(ctx, d.config.Load().ControlSocket()); err != nil {
			return nil, err
		}
	}
	pages, err := d.pages()
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	s := &control.Server{Service: d, Operators: func() []string { return d.config.Load().Control.Operators }, Log: d.log, Pages: pages}
	servers := []*http.Server{s.Serve(l)}
	ws, err := d.listenWeb(ctx, pages)
	if err != nil {
		return nil, errors.Join(err, servers[0].Close())
	}
	if ws != nil {
		servers = append(servers, ws)
	}
	address := d.config.Load().MetricsListen()
	if address == "" {
		return servers, nil
	}
	ml, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("metrics: %w; set metrics.listen to another address, or to none", err), closeAll(servers))
	}
	srv := &http.Server{Handler: d.health(), ReadHeaderTimeout: 10 * time.Second, ErrorLog: zap.NewStdLog(d.log.Named("metrics"))}
	go func() {
		if err := srv.Serve(ml); !errors.Is(err, http.ErrServerClosed) {
			d.log.Error("metrics are not served any more", zap.Error(err))
		}
	}()
	return append(servers, srv), nil
}

func closeAll(servers []*http.Server) error {
	var errs []error
	for _, s := range servers {
		errs = append(errs, s.Close())
	}
	return errors.Join(errs...)
}

// How often things are done.
const (
	tickEvery = time.Minute
	wakeEvery = 5 * time.Second
)

// loop calls Tick every minute and when something has happened, and wakes waiting jobs in between.
func (d *Daemon) loop(ctx context.Context) {
	jump := newJumps(d.now)
	next := time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		d.progressed()
		kicked := false
		select {
		case <-ctx.Done():
			return
		case <-d.kick:
			kicked = true
		case <-timer.C:
		}
		if by := jump.look(); by != 0 {
			d.log.Warn("the clock was set", zap.Duration("by", by))
			if err := d.store.AddEvent(ctx, store.Event{Kind: "clock", Message: fmt.Sprintf("the clock was set by %s; what is due is decided anew", by.Round(time.Second))}); err != nil {
				d.log.Warn("database", zap.Error(err))
			}
			kicked = true
		}
		var err error
		if kicked || !time.Now().Before(next) {
			next = time.Now().Add(tickEvery)
			err = d.Tick(ctx)
		} else {
			err = d.wake(ctx)
		}
		if err != nil && ctx.Err() == nil {
			d.log.Error("what is due could not be worked out; it is tried again", zap.Error(err))
		}
		timer.Reset(d.beatEvery())
	}
}

// nudge makes the loop look at once.
func (d *Daemon) nudge() {
	select {
	case d.kick <- struct{}{}:
	default:
	}
}

func (d *Daemon) notify(state string) {
	if d.o.Notify != nil {
		d.o.Notify(state)
	}
}

// Store is the daemon's database, for tests.
func (d *Daemon) Store() *store.Store { return d.store }

// jumps tells when the wall clock was set, by the clock that only counts.
type jumps struct {
	now  func() time.Time
	wall time.Time
	mono time.Time
}

func newJumps(now func() time.Time) *jumps { return &jumps{now, now().Round(0), time.Now()} }

// look gives by how much the clock was set since the last look; 0: not by much.
func (j *jumps) look() time.Duration {
	const small = 30 * time.Second
	wall, mono := j.now().Round(0), time.Now()
	by := wall.Sub(j.wall) - mono.Sub(j.mono)
	j.wall, j.mono = wall, mono
	if by.Abs() < small {
		return 0
	}
	return by
}

// Reload reads the configuration again. A bad one is refused and the old one kept.
func (d *Daemon) Reload(ctx context.Context, actor string) error {
	d.reloading.Lock()
	defer d.reloading.Unlock()
	d.notify(fmt.Sprintf("RELOADING=1\nMONOTONIC_USEC=%d", monotonic()))
	defer d.notify("READY=1")
	err := d.reload(ctx, actor)
	d.metrics.Reloaded(err == nil, d.now())
	message := ""
	if err != nil {
		message = strings.TrimSuffix(err.Error(), ": "+control.ErrRefused.Error())
		d.log.Error("the configuration was not taken, the old one stays", zap.String("error", message))
		if aerr := d.store.AddEvent(ctx, store.Event{Kind: "reload", Actor: actor, Message: "the configuration was refused: " + message}); aerr != nil {
			d.log.Warn("database", zap.Error(aerr))
		}
	}
	d.lastReload.Store(&message)
	return err
}

func (d *Daemon) reload(ctx context.Context, actor string) error {
	if d.o.Load == nil {
		return fmt.Errorf("this daemon cannot read its configuration again: %w", control.ErrRefused)
	}
	c, err := d.o.Load()
	if err != nil {
		return fmt.Errorf("%w: %w", err, control.ErrRefused)
	}
	old := d.config.Load()
	if what := needsRestart(old, c); what != "" {
		return fmt.Errorf("%s has changed, which takes a restart (systemctl restart hsmbridge); nothing was changed: %w", what, control.ErrRefused)
	}
	keys, err := compile(c)
	if err != nil {
		return err
	}
	if err := d.auditor.reaches(ctx, old, c); err != nil {
		return fmt.Errorf("%w; nothing was changed: %w", err, control.ErrRefused)
	}
	for _, set := range sets(c) {
		if err := d.queue.Serve(jobs.Place{Token: set}); err != nil {
			return err
		}
	}
	for _, p := range d.places(c, nil) {
		if err := d.queue.Serve(p); err != nil {
			return err
		}
	}
	message := fmt.Sprintf("the configuration was read again; keys: %d, tokens: %d", len(c.Keys), len(c.Tokens))
	if old.Policies() != c.Policies() {
		message += "; who has to approve what has changed"
	}
	if err := d.store.AddEvent(ctx, store.Event{Kind: "reload", Actor: actor, Message: message, Fields: configuration(c, d.o.Version)}); err != nil {
		return err // it does not count before it is in the log
	}
	d.config.Store(c)
	d.keys.Store(&keys)
	d.clients.forget()
	d.tokens.drop()
	d.tokens.askAnew(ctx)
	if err := errors.Join(d.forgive(ctx, old, c, actor), d.unwanted(ctx, c, actor)); err != nil {
		return err
	}
	d.log.Info("the configuration was read again", zap.Int("keys", len(c.Keys)), zap.Int("tokens", len(c.Tokens)))
	d.nudge()
	return nil
}

// monotonic is CLOCK_MONOTONIC in microseconds, which systemd wants of a reload. Source: sd_notify(3).
func monotonic() int64 { return monotonicNow() / 1000 }

// pid is this process, for the status.
func pid() int { return os.Getpid() }
