package daemon

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"hsmbridge/configs"
	"hsmbridge/daemon/control"
	"hsmbridge/daemon/runner"
	"hsmbridge/daemon/schedule"
	"hsmbridge/daemon/store"
)

// tokenStates tells of all tokens of the configuration, without waiting for any.
func (d *Daemon) tokenStates() []control.Token {
	var out []control.Token
	for _, c := range d.config.Load().Tokens {
		t := control.Token{Name: c.Name, State: "closed"}
		if !d.config.Load().Reach(c.Name) {
			t.State = stateElsewhere
			out = append(out, t)
			continue
		}
		s := d.tokens.slot(c.Name)
		if !s.TryLock() {
			t.State = "opening"
			out = append(out, t)
			continue
		}
		switch {
		case s.parked != nil:
			t.State, t.Reason = "parked", s.parked.Reason
		case s.device != nil:
			t.State, t.Reason, t.Until = "opening", s.device.says(c.Name), s.device.until
		case s.resting.After(d.now()):
			t.State, t.Reason, t.Until = "resting", s.cause, s.resting
		case s.token != nil:
			id := s.token.Identity()
			t.State, t.Serial, t.Model, t.Firmware, t.Busy = "open", id.Serial, id.Model, id.Firmware, int(s.token.busy.Load())
		}
		t.PINTriesLow, t.Warnings = s.low, s.warned
		s.Unlock()
		out = append(out, t)
	}
	return out
}

// Status tells of the daemon at a glance.
func (d *Daemon) Status(ctx context.Context) (control.Status, error) {
	c := d.config.Load()
	kind, _ := c.DatabaseLocation()
	s := control.Status{
		Daemon: d.store.Daemon(), Version: d.o.Version, PID: pid(), Database: kind, Started: d.started, Now: d.now(), Jobs: map[string]int{}, Tokens: d.tokenStates(),
	}
	if r := d.lastReload.Load(); r != nil {
		s.Reload = *r
	}
	if err := d.readiness(ctx); err != nil {
		s.NotReady = err.Error()
	} else {
		s.Ready = true
	}
	known, jobs, err := d.glance(ctx)
	if err != nil {
		return s, err
	}
	s.Jobs = jobs
	s.Daemons = d.daemons(s.Tokens)
	if err := d.unserved(ctx, &s, c); err != nil {
		return s, err
	}
	if s.Audit, err = d.auditor.state(ctx); err != nil {
		return s, err
	}
	if s.Requests, err = d.store.OpenRequests(ctx); err != nil {
		return s, err
	}
	const most = 20
	if s.Running, err = d.store.Jobs(ctx, store.JobFilter{State: store.Running, Limit: most}); err != nil {
		return s, err
	}
	// Why a destination waits for a person is read for those alone.
	troubled, err := d.store.Troubled(ctx, mostPeople)
	if err != nil {
		return s, err
	}
	for _, t := range troubled {
		known.destinations[schedule.Target{Key: t.Key, Destination: t.Destination}] = t
	}
	open, err := d.deletions(ctx, known)
	if err != nil {
		return s, err
	}
	d.count(&s, c, known, open)
	return s, nil
}

// mostPeople is how much that waits for a person is told at once.
const mostPeople = 100

// count fills in what is known of keys and destinations.
func (d *Daemon) count(s *control.Status, c *configs.Config, known facts, open map[string]store.Job) {
	compiled := *d.keys.Load()
	for _, t := range s.Tokens {
		switch {
		case t.State == "parked":
			s.People = append(s.People, control.NeedsPerson{Token: t.Name, Message: t.Reason, Retry: "hsmbridge resume --token " + t.Name})
		case t.State == "opening" && !t.Until.IsZero():
			s.People = append(s.People, control.NeedsPerson{Token: t.Name, Message: t.Reason, Retry: "hsmbridge status"})
		}
	}
	s.Counts.Keys = len(c.Keys)
	for i, k := range c.Keys {
		whole := known.keys[k.Name]
		if whole.Paused() {
			s.Counts.Paused++
		}
		if whole.Revoked() {
			s.Counts.Revoked++
		}
		if whole.NeedsPerson && !toldOf(known, k, whole) {
			s.People = append(s.People, control.NeedsPerson{Key: k.Name, Code: whole.ErrorCode, Class: whole.ErrorClass, Message: whole.Error, Retry: goOn(whole.ErrorCode, k.Name), Approval: whole.ErrorCode == runner.CodeApproval})
		}
		for _, dest := range k.Destinations {
			x := known.destination(k.Name, dest.ARN)
			s.Counts.Destinations++
			switch {
			case x.Present:
				s.Counts.Ready++
				if whole.Revoked() {
					s.People = append(s.People, control.NeedsPerson{Key: k.Name, Destination: dest.ARN, Message: "the key is revoked, and when KMS was asked last it held the material: it is not deleted yet, see hsmbridge jobs " + k.Name, Retry: "hsmbridge retry " + k.Name})
				}
			case whole.Revoked():
			case x.Unseen():
				s.Counts.Unseen++
			default:
				s.Counts.Missing++
			}
			if x.NeedsPerson && !whole.Revoked() {
				s.People = append(s.People, control.NeedsPerson{Key: k.Name, Destination: dest.ARN, Code: x.ErrorCode, Class: x.ErrorClass, Message: cmp.Or(x.Error, "see hsmbridge status "+k.Name), Retry: goOn(x.ErrorCode, k.Name), Approval: x.ErrorCode == runner.CodeApproval})
			}
			if x.Present && !x.ValidTo.IsZero() && !whole.Revoked() {
				s.Counts.Expiring++
				at := compiled[i].Renewal(schedule.Target{Key: k.Name, Destination: dest.ARN}, schedule.State{ValidTo: x.ValidTo, Life: x.Life})
				s.Next = append(s.Next, control.Expiry{Key: k.Name, Destination: dest.ARN, ValidTo: x.ValidTo, Renewal: at})
				if len(s.Next) == manyNext {
					s.Next = soonest(s.Next)
				}
			}
		}
	}
	d.left(s, c, known, open)
	s.Next = soonest(s.Next)
	s.People = s.People[:min(len(s.People), mostPeople)]
}

// toldOf says that a destination of a key waits for a person by the same error, so that it need not be told of the key too.
func toldOf(known facts, k configs.Key, whole store.Key) bool {
	return !whole.Revoked() && slices.ContainsFunc(k.Destinations, func(dest configs.Destination) bool {
		x := known.destination(k.Name, dest.ARN)
		return x.NeedsPerson && x.Error == whole.Error && x.ErrorCode == whole.ErrorCode
	})
}

// manyNext is how many expiries are gathered before all but the first are forgotten.
const manyNext = 1000

// soonest are the few that expire first.
func soonest(list []control.Expiry) []control.Expiry {
	const most = 20
	slices.SortStableFunc(list, func(a, b control.Expiry) int { return a.ValidTo.Compare(b.ValidTo) })
	return list[:min(len(list), most)]
}

// glance is what is known, and the open jobs by state.
func (d *Daemon) glance(ctx context.Context) (known facts, jobs map[string]int, err error) {
	if known, err = d.known(ctx); err != nil {
		return known, nil, err
	}
	counts, err := d.store.CountJobs(ctx)
	jobs = make(map[string]int, len(counts))
	for state, n := range counts {
		jobs[string(state)] = n
	}
	return known, jobs, err
}

// Keys tells of one key, also its key materials, or of all.
func (d *Daemon) Keys(ctx context.Context, name string) ([]control.ManagedKey, error) {
	var at []int
	keys := d.config.Load().Keys
	for i := range keys {
		if name == "" || keys[i].Name == name {
			at = append(at, i)
		}
	}
	if name != "" && len(at) == 0 {
		k, ok, err := d.removed(ctx, name)
		switch {
		case err != nil:
			return nil, err
		case !ok:
			return nil, d.noKey(ctx, name)
		}
		return d.whole(ctx, []control.ManagedKey{k})
	}
	out, err := d.managed(ctx, at)
	if err == nil && name != "" {
		if out, err = d.whole(ctx, out); err != nil || len(out[0].Tokens) == 0 {
			return out, err
		}
		rows, rerr := d.store.Replicas(ctx, name)
		if k, ok := d.config.Load().Key(name); ok {
			out[0].Replicas = replicaStates(k, out[0].Materials, rows)
			d.withTokens(out[0].Replicas)
		}
		err = rerr
	}
	return out, err
}

// whole adds to a key what lists of keys leave out: its key materials, and of a revoked one the open job that deletes them from KMS.
func (d *Daemon) whole(ctx context.Context, k []control.ManagedKey) (_ []control.ManagedKey, err error) {
	if k[0].Materials, err = d.store.Materials(ctx, k[0].Name); err == nil && k[0].State.Revoked() {
		k[0].Deletion, err = d.deletion(ctx, k[0].Name)
	}
	return k, err
}

// noKey says that the configuration does not have a key; of one that is revoked, how it comes back.
func (d *Daemon) noKey(ctx context.Context, name string) error {
	known, err := d.store.KeysOf(ctx, name)
	if err != nil {
		return err
	}
	if k := known[name]; k.Revoked() {
		return fmt.Errorf("%s and is no longer in the configuration; nothing was done; to have it back put it into the configuration again, then hsmbridge reload, then hsmbridge restore %s: %w",
			k.WasRevoked(), name, control.ErrRefused)
	}
	var names []string
	for _, k := range d.config.Load().Keys {
		names = append(names, k.Name)
	}
	return fmt.Errorf("the daemon's configuration has no key %q%s; after a change of the file run hsmbridge reload: %w", name, meant(name, names), control.ErrNotFound)
}

// meant asks for the name that was probably meant.
func meant(name string, names []string) string {
	if m := configs.Meant(name, names); m != "" {
		return ": did you mean " + m + "?"
	}
	return ""
}

// key finds a managed key.
func (d *Daemon) key(ctx context.Context, name string) (configs.Key, error) {
	k, ok := d.config.Load().Key(name)
	if !ok {
		return k, d.noKey(ctx, name)
	}
	return k, nil
}

// revocable finds a key whose material may be in KMS, also one that the configuration has no more.
func (d *Daemon) revocable(ctx context.Context, name string) (configs.Key, error) {
	known, err := d.store.DestinationsOf(ctx, name)
	if err != nil {
		return configs.Key{}, err
	}
	k, ok := runner.Revocable(d.config.Load(), name, known)
	if !ok {
		return k, d.noKey(ctx, name)
	}
	return k, nil
}

// goOn is the command by which a person lets it go on.
func goOn(code, key string) string {
	if code == runner.CodeApproval {
		return "hsmbridge requests --key " + key
	}
	return "hsmbridge retry " + key
}
