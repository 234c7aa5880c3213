package daemon

import (
	"context"
	"fmt"
	"slices"
	"time"

	"go.uber.org/zap"

	"hsmbridge/configs"
	"hsmbridge/daemon/runner"
	"hsmbridge/daemon/schedule"
	"hsmbridge/daemon/store"
)

func oldest(list []target, most int) []target {
	slices.SortFunc(list, func(a, b target) int { return a.seen.Compare(b.seen) })
	return list[:min(len(list), most)]
}

// compile makes the planner's view of the configuration. The configuration was checked, so an error is a mistake of ours.
func compile(c *configs.Config) ([]schedule.Key, error) {
	keys := make([]schedule.Key, len(c.Keys))
	for i, k := range c.Keys {
		s := schedule.Key{
			Name: k.Name, Token: k.TokenSet(), Expires: k.Expires.Duration(), RenewBefore: k.Renewal(),
			RotateEvery: k.RotateEvery.Duration(), DrillEvery: k.DrillEvery.Duration(),
		}
		for _, d := range k.Destinations {
			s.Destinations = append(s.Destinations, d.ARN)
		}
		if !k.Schedule.IsZero() {
			cron, err := k.Schedule.Parse()
			if err != nil {
				return nil, fmt.Errorf("schedule of %s: %w", k.Name, err)
			}
			s.Cron = cron
		}
		if !k.Window.IsZero() {
			window, err := k.Window.Parse()
			if err != nil {
				return nil, fmt.Errorf("window of %s: %w", k.Name, err)
			}
			s.Window = window
		}
		keys[i] = s
	}
	return keys, nil
}

// history is what the database knows, for the planner.
func (d *Daemon) history(ctx context.Context) (schedule.History, error) {
	h := schedule.History{Targets: map[schedule.Target]schedule.State{}, Keys: map[string]schedule.KeyState{}}
	destinations, err := d.store.Times(ctx)
	if err != nil {
		return h, err
	}
	for _, s := range destinations {
		h.Targets[schedule.Target{Key: s.Key, Destination: s.Destination}] = schedule.State{
			NeedsPerson: s.NeedsPerson, Present: s.Present, ValidTo: s.ValidTo, Life: s.Life, First: s.FirstAt, Imported: s.SettledAt, Drilled: s.DrilledAt, Scheduled: s.ScheduledAt,
		}
	}
	keys, err := d.store.Keys(ctx)
	if err != nil {
		return h, err
	}
	for name, k := range keys {
		h.Keys[name] = schedule.KeyState{NeedsPerson: k.NeedsPerson, Paused: k.Paused(), Revoked: k.Revoked(), Rotated: k.RotatedAt}
	}
	open, err := d.store.OpenJobs(ctx)
	for _, j := range open {
		if j.Destination == "" {
			s := h.Keys[j.Key]
			s.Open = s.Open || j.Kind == store.KindRotate
			h.Keys[j.Key] = s
			continue
		}
		t := schedule.Target{Key: j.Key, Destination: j.Destination}
		s := h.Targets[t]
		s.Open = true
		h.Targets[t] = s
	}
	return h, err
}

// plan asks the planner what is due and queues it.
func (d *Daemon) plan(ctx context.Context) error {
	began := time.Now()
	since, err := d.store.LastEvent(ctx) // before everything else is read
	if err != nil {
		return err
	}
	h, err := d.history(ctx)
	if err != nil {
		return err
	}
	due := schedule.Due(d.now(), *d.keys.Load(), h)
	jobs := make([]store.Job, len(due))
	for i, j := range due {
		jobs[i] = store.Job{Key: j.Key, Destination: j.Destination, Kind: store.KindImport, Reason: string(j.Reason), Token: j.Token, RequestedBy: planner, Since: max(1, since)}
		switch j.Reason { //nolint:exhaustive // all others are imports
		case schedule.Rotate:
			jobs[i].Kind = store.KindRotate
		case schedule.Revoked:
			jobs[i].Kind = store.KindRevoke
		}
	}
	made, err := d.addJobs(ctx, jobs)
	if err != nil {
		return err
	}
	d.metrics.Planned(time.Since(began), d.now())
	if len(made) > 0 {
		d.log.Info("jobs are due", zap.Int("jobs", len(made)), zap.Duration("took", time.Since(began)))
	}
	return nil
}

// planner is who asks for the jobs of the planner.
const planner = "planner"

// Tick does what is done every minute: waiting jobs whose time has come, jobs of daemons that are gone, a look at KMS, and the planner.
func (d *Daemon) Tick(ctx context.Context) error {
	if err := d.wake(ctx); err != nil {
		return err
	}
	if err := d.watch(ctx); err != nil {
		return err
	}
	d.metrics.Watched(d.now())
	if _, err := d.store.DropExpiredParameters(ctx); err != nil {
		return err
	}
	return d.plan(ctx)
}

// wake gives a sign of life, and queues waiting jobs whose time has come, and jobs of daemons that are gone.
func (d *Daemon) wake(ctx context.Context) error {
	if err := d.beat(ctx); err != nil {
		return err
	}
	if _, err := d.store.ExpireRequests(ctx, d.queue.Enqueue); err != nil {
		return err
	}
	if err := d.carryOut(ctx); err != nil {
		return err
	}
	if _, err := d.store.Wake(ctx, runner.ParkCodes(), d.queue.Enqueue); err != nil {
		return err
	}
	lost, err := d.store.Reclaim(ctx, false, d.queue.Enqueue)
	for _, j := range lost {
		d.log.Warn("a job of a daemon that is gone is done again", zap.Int64("job", j.ID), zap.String("key", j.Key), zap.String("daemon", j.Daemon))
	}
	if err != nil {
		return err
	}
	pending, err := d.queue.Pending(ctx)
	if err != nil {
		return err
	}
	n, err := d.store.Orphans(ctx, pending, d.store.LeaseTime(), d.queue.Enqueue)
	if n > 0 {
		d.log.Warn("jobs that somebody took and did not begin are queued again", zap.Int("jobs", n))
	}
	return err
}
