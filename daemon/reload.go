package daemon

import (
	"context"
	"reflect"

	"golang.org/x/sys/unix"

	"hsmbridge/configs"
	"hsmbridge/daemon/runner"
)

// needsRestart names the first setting that a running daemon cannot change; empty: all can be taken.
func needsRestart(old, c *configs.Config) string {
	oldKind, oldPlace := old.DatabaseLocation()
	kind, place := c.DatabaseLocation()
	switch {
	case old.DaemonName() != c.DaemonName():
		return "name"
	case oldKind != kind || oldPlace != place:
		return "database"
	case old.ControlSocket() != c.ControlSocket():
		return "control.socket"
	case old.MetricsListen() != c.MetricsListen():
		return "metrics.listen"
	case old.Log != c.Log:
		return "log"
	}
	// A module is loaded once in a process, with one environment.
	for _, t := range c.Tokens {
		for _, o := range old.Tokens {
			if t.Module == o.Module && (t.ModuleParameters != o.ModuleParameters || !reflect.DeepEqual(t.Environment, o.Environment)) {
				return "environment or module_parameters of token " + t.Name
			}
		}
	}
	return ""
}

// forgive lets the planner begin anew with keys whose configuration has changed: what a person was asked for may be just that.
func (d *Daemon) forgive(ctx context.Context, old, c *configs.Config, actor string) error {
	general := !reflect.DeepEqual(old.KMS, c.KMS) || !reflect.DeepEqual(old.Wrapping, c.Wrapping)
	failed, err := d.needPerson(ctx)
	if err != nil {
		return err
	}
	for _, k := range c.Keys {
		if !failed[k.Name] {
			continue
		}
		if o, ok := old.Key(k.Name); ok && !general && reflect.DeepEqual(o, k) {
			continue
		}
		// Officers may sign what they read still: their signatures, or the end of their request, let those jobs begin.
		if err := d.startOver(ctx, actor, k.Name, "the configuration has changed: its errors are forgotten", runner.CodeApproval); err != nil {
			return err
		}
	}
	return nil
}

// needPerson are the keys that wait for a person.
func (d *Daemon) needPerson(ctx context.Context) (map[string]bool, error) {
	out := map[string]bool{}
	destinations, err := d.store.Times(ctx)
	if err != nil {
		return nil, err
	}
	for _, s := range destinations {
		out[s.Key] = out[s.Key] || s.NeedsPerson
	}
	keys, err := d.store.Keys(ctx)
	for name, k := range keys {
		out[name] = out[name] || k.NeedsPerson
	}
	return out, err
}

func monotonicNow() int64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		return 0
	}
	return t.Nano()
}
