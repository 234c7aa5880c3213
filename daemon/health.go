package daemon

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"net/http"
	"time"

	"go.uber.org/zap"

	"hsmbridge/daemon/importer"
	"hsmbridge/daemon/metrics"
	"hsmbridge/daemon/store"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/kmsclient"
)

// Limits of what counts as alive.
const (
	stuckAfter   = 10 * time.Minute // without progress
	plannerStale = 10 * time.Minute // since the planner's last pass
)

// progressed notes that the daemon's own loop goes on. A module that hangs does not stop it: that one's process is replaced.
func (d *Daemon) progressed() { d.progress.Store(int64(time.Since(d.started))) }

// alive says what is wrong with the process itself: only a new one helps.
func (d *Daemon) alive() error {
	last := time.Duration(d.progress.Load())
	if idle := time.Since(d.started) - last; !d.o.Manual && idle > cmp.Or(d.o.Stuck, stuckAfter) {
		return fmt.Errorf("the daemon has made no progress for %s", idle.Round(time.Millisecond))
	}
	return nil
}

// readiness says why the daemon cannot do its work just now; nil: it can.
func (d *Daemon) readiness(ctx context.Context) error {
	switch {
	case !d.ready.Load():
		return fmt.Errorf("the daemon starts or ends")
	case d.alive() != nil:
		return d.alive()
	}
	if err := d.store.Ping(ctx); err != nil {
		return err
	}
	if last := d.metrics.LastPlan(); !d.o.Manual && time.Since(d.started) > plannerStale && time.Since(last).Abs() > plannerStale {
		return fmt.Errorf("the planner's last pass was at %s", last.UTC().Format(time.RFC3339))
	}
	return nil
}

// health serves /livez, /readyz and /metrics.
func (d *Daemon) health() http.Handler {
	mux := http.NewServeMux()
	answer := func(check func(context.Context) error) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
			defer cancel()
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
			if err := check(ctx); err != nil {
				w.WriteHeader(http.StatusServiceUnavailable)
				fmt.Fprintln(w, err)
				return
			}
			fmt.Fprintln(w, "ok")
		}
	}
	mux.HandleFunc("GET /livez", answer(func(context.Context) error { return d.alive() }))
	mux.HandleFunc("GET /readyz", answer(d.readiness))
	mux.Handle("GET /metrics", d.metrics.Handler())
	return mux
}

// watchdog gives systemd signs of life as long as the daemon itself makes progress. Without them systemd replaces the process.
// Source: sd_watchdog_enabled(3).
func (d *Daemon) watchdog(ctx context.Context) {
	if d.o.WatchdogIn == 0 {
		return
	}
	tick := time.NewTicker(d.o.WatchdogIn / 3)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := d.alive(); err != nil {
			d.log.Error("no sign of life is given to systemd, which therefore replaces the process", zap.Error(err))
			continue
		}
		d.notify("WATCHDOG=1")
	}
}

// snapshot is what Prometheus gets at a scrape.
func (d *Daemon) snapshot(ctx context.Context) (metrics.Snapshot, error) {
	s := metrics.Snapshot{Jobs: map[string]int{}, NeedPerson: map[string]bool{}, ClockSkew: d.clients.skews()}
	known, jobs, err := d.glance(ctx)
	if err != nil {
		return s, err
	}
	s.Jobs = jobs
	now := d.now()
	for _, k := range d.config.Load().Keys {
		s.NeedPerson[k.Name] = known.keys[k.Name].NeedsPerson
		for _, dest := range k.Destinations {
			x := known.destination(k.Name, dest.ARN)
			s.NeedPerson[k.Name] = s.NeedPerson[k.Name] || x.NeedsPerson
			if x.Unseen() {
				if !known.keys[k.Name].Revoked() {
					s.Unseen = append(s.Unseen, metrics.Destination{Key: k.Name, Destination: dest.ARN})
				}
				continue
			}
			m := metrics.Destination{Key: k.Name, Destination: dest.ARN, Ready: x.Present, Expiry: math.Inf(1), RotationsLeft: math.NaN(), SinceDrill: math.NaN()}
			switch {
			case !x.Present:
				m.Expiry = 0
			case !x.ValidTo.IsZero():
				m.Expiry = x.ValidTo.Sub(now).Seconds()
			}
			if k.KeySpec.Kind() == wrapping.KindSymmetric {
				m.RotationsLeft = float64(kmsclient.MaxRotations - x.Rotations)
			}
			if !x.DrilledAt.IsZero() {
				m.SinceDrill = now.Sub(x.DrilledAt).Seconds()
			}
			s.Destinations = append(s.Destinations, m)
		}
	}
	a, err := d.auditor.state(ctx)
	if err != nil {
		return s, err
	}
	s.Audit = metrics.Audit{Records: float64(a.Records), Unsigned: math.NaN(), CheckpointAge: math.NaN(), Behind: map[string]float64{}}
	if a.Signs {
		s.Audit.Unsigned = float64(a.Records - a.Signed)
	}
	if !a.SignedAt.IsZero() {
		s.Audit.CheckpointAge = now.Sub(a.SignedAt).Seconds()
	}
	for _, x := range a.Exports {
		s.Audit.Behind[x.To] = float64(x.Behind)
	}
	if s.Requests, err = d.store.OpenRequests(ctx); err != nil {
		return s, err
	}
	for _, t := range d.tokenStates() {
		if t.State == stateElsewhere {
			continue // its own daemon tells of it
		}
		s.Tokens = append(s.Tokens, metrics.Token{Name: t.Name, Up: t.State != "resting" && t.State != "parked", Parked: t.State == "parked", TriesLow: t.PINTriesLow, Sessions: t.Busy})
	}
	return s, nil
}

// observer writes the log and counts.
type observer struct{ d *Daemon }

// Step logs a step: one line, with the job's number as what belongs together.
func (o observer) Step(j store.Job, e importer.Event, since time.Duration) {
	fields := []zap.Field{
		zap.Int64("job", j.ID), zap.String("key", j.Key), zap.String("destination", e.Destination), zap.String("step", string(e.Step)), zap.Duration("took", since),
	}
	for _, f := range e.Fields {
		fields = append(fields, zap.String(f.Name, f.Value))
	}
	o.d.log.Info(e.Message, fields...)
	o.d.metrics.Step(string(e.Step), since)
}

// Finished logs how an attempt ended.
func (o observer) Finished(j store.Job, out store.Outcome, took time.Duration) {
	for _, i := range out.Imports {
		o.d.metrics.Import(i.Result, string(j.Kind))
	}
	fields := []zap.Field{
		zap.Int64("job", j.ID), zap.String("key", j.Key), zap.String("destination", j.Destination), zap.String("kind", string(j.Kind)), zap.String("reason", j.Reason),
		zap.String("state", string(out.State)), zap.Int64("attempt", j.Attempts), zap.Duration("took", took),
	}
	if !out.NotBefore.IsZero() {
		fields = append(fields, zap.Time("not_before", out.NotBefore))
	}
	if out.Error == "" {
		o.d.log.Info("job: "+out.Message, fields...)
	} else {
		o.d.log.Error("job: "+out.Message, append(fields, zap.String("error_class", out.ErrorClass), zap.String("error_code", out.ErrorCode), zap.Bool("needs_person", out.NeedsPerson))...)
	}
}

// Written has the planner look: before the outcome was written down it would have seen the job still open.
func (o observer) Written() { o.d.nudge() }
