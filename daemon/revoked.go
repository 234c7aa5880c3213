package daemon

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"hsmbridge/configs"
	"hsmbridge/daemon/control"
	"hsmbridge/daemon/runner"
	"hsmbridge/daemon/store"
)

// deletions are the open jobs that delete material from KMS, by key. Where no key is revoked nobody looks.
func (d *Daemon) deletions(ctx context.Context, known facts) (map[string]store.Job, error) {
	out := map[string]store.Job{}
	if len(known.revoked()) == 0 {
		return out, nil
	}
	const most = 10000
	list, err := d.store.Jobs(ctx, store.JobFilter{Kind: store.KindRevoke, Open: true, Limit: most})
	for _, j := range list {
		out[j.Key] = j
	}
	return out, err
}

// revoked are the keys that are revoked, also those that the configuration has no more.
func (f facts) revoked() []store.Key {
	var out []store.Key
	for _, k := range f.keys {
		if k.Revoked() {
			out = append(out, k)
		}
	}
	return out
}

// mostRemoved is how many revoked keys that the configuration has no more are told of at once.
const mostRemoved = 20

// left tells of revoked keys what the configuration does not show: of the keys that it has no more, and of KMS keys that it has no more and that held
// material when they were asked last.
func (d *Daemon) left(s *control.Status, c *configs.Config, known facts, open map[string]store.Job) {
	revoked := known.revoked()
	if len(revoked) == 0 {
		return
	}
	fed, configured := map[string]bool{}, map[string]bool{}
	for i := range c.Keys {
		configured[c.Keys[i].Name] = true
		for _, dest := range c.Keys[i].Destinations {
			fed[dest.ARN] = true
		}
	}
	rows := map[string][]store.Destination{}
	for _, x := range known.destinations {
		if known.keys[x.Key].Revoked() && !fed[x.Destination] {
			rows[x.Key] = append(rows[x.Key], x)
		}
	}
	for _, k := range revoked {
		r := control.RemovedKey{Name: k.Name, RevokedAt: k.RevokedAt, RevokedBy: k.RevokedBy, RevokedReason: k.RevokedReason, Job: open[k.Name].ID, JobState: open[k.Name].State}
		slices.SortFunc(rows[k.Name], func(a, b store.Destination) int { return cmp.Compare(a.Destination, b.Destination) })
		for _, x := range rows[k.Name] {
			if x.SettledAt.IsZero() && x.TriedAt.IsZero() && !x.Present {
				continue // nothing ever went there
			}
			r.Destinations++
			if !x.Present {
				continue
			}
			r.Present++
			n := control.NeedsPerson{Key: k.Name, Destination: x.Destination, Retry: "hsmbridge retry " + k.Name}
			n.Message = "the key is revoked and no longer in the configuration, "
			if configured[k.Name] {
				n.Message = "the key is revoked, this KMS key is no longer in its configuration, "
			}
			n.Message += "and when KMS was asked last it held the material: it is not deleted yet, "
			if r.Job != 0 {
				n.Message += "see hsmbridge jobs " + k.Name
			} else {
				n.Message, n.Retry = n.Message+"no job does it, and the daemon begins none by itself; revoke it once more", again(k.Name)
			}
			s.People = append(s.People, n)
		}
		if configured[k.Name] {
			continue
		}
		if k.NeedsPerson && r.Job != 0 {
			s.People = append(s.People, control.NeedsPerson{Key: k.Name, Code: k.ErrorCode, Class: k.ErrorClass, Message: k.Error, Retry: goOn(k.ErrorCode, k.Name)})
		}
		s.Counts.Removed++
		s.Removed = append(s.Removed, r)
	}
	slices.SortFunc(s.Removed, func(a, b control.RemovedKey) int {
		return cmp.Or(cmp.Compare(min(b.Present, 1), min(a.Present, 1)), cmp.Compare(min(b.Job, 1), min(a.Job, 1)), b.RevokedAt.Compare(a.RevokedAt), cmp.Compare(a.Name, b.Name))
	})
	s.Removed = s.Removed[:min(len(s.Removed), mostRemoved)]
}

// again is the command that begins a revocation once more where nothing else does.
func again(key string) string { return "hsmbridge revoke " + key + " --reason WHY" }

// removed tells of a revoked key that the configuration has no more; ok is false where it is not revoked.
func (d *Daemon) removed(ctx context.Context, name string) (k control.ManagedKey, ok bool, err error) {
	known, err := d.knownOf(ctx, []string{name})
	if err != nil || !known.keys[name].Revoked() {
		return k, false, err
	}
	k = control.ManagedKey{Name: name, State: known.keys[name], Removed: true, Destinations: []store.Destination{}, Renewals: []time.Time{}}
	rows, err := d.store.DestinationsOf(ctx, name)
	if err != nil {
		return k, false, err
	}
	left, _ := runner.Revocable(d.config.Load(), name, rows)
	for _, dest := range left.Destinations {
		k.Destinations = append(k.Destinations, known.destination(name, dest.ARN))
		k.Renewals = append(k.Renewals, time.Time{})
	}
	return k, true, nil
}

// deletion is the open job that deletes a key's material from KMS; nil: there is none.
func (d *Daemon) deletion(ctx context.Context, key string) (*store.Job, error) {
	list, err := d.store.Jobs(ctx, store.JobFilter{Key: key, Kind: store.KindRevoke, Open: true})
	if err != nil || len(list) == 0 {
		return nil, err
	}
	return &list[0], nil
}

// holding says which KMS keys held material of a key when they were asked last: of those that its configuration names, where the planner begins a revocation again,
// and of those that the configuration names no more.
func (d *Daemon) holding(ctx context.Context, name string) (own, others []string, err error) {
	rows, err := d.store.DestinationsOf(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	c := d.config.Load()
	k, _ := c.Key(name)
	all, _ := runner.Revocable(c, name, rows)
	for i, dest := range all.Destinations {
		switch {
		case !slices.ContainsFunc(rows, func(x store.Destination) bool { return x.Destination == dest.ARN && x.Present }):
		case i < len(k.Destinations):
			own = append(own, dest.ARN)
		default:
			others = append(others, dest.ARN)
		}
	}
	return own, others, nil
}

// retriable refuses what a retry would not help: a revoked key of which nothing is to be deleted, or nothing would be, and of which nobody is waited for. No import
// follows where it is let through: the planner makes none of a revoked key.
func (d *Daemon) retriable(ctx context.Context, name string) error {
	_, unknown := d.key(ctx, name)
	known, err := d.knownOf(ctx, []string{name})
	if err != nil {
		return err
	}
	k := known.keys[name]
	if !k.Revoked() {
		return unknown
	}
	deletion, err := d.deletion(ctx, name)
	if err != nil || deletion != nil {
		return err // it begins now
	}
	own, others, err := d.holding(ctx, name)
	switch {
	case err != nil, len(own) > 0: // the planner begins the deletion
		return err
	case unknown == nil && known.needsPerson(name): // its errors are forgotten, and nothing else is done
		return nil
	case len(others) > 0:
		return fmt.Errorf("%s, and no job deletes what KMS held of it when it was asked last in KMS keys that the configuration does not name any more; %s begins that again; nothing was tried: %w",
			k.WasRevoked(), again(name), control.ErrRefused)
	case unknown != nil:
		return fmt.Errorf("%s and is no longer in the configuration; there is nothing to try again: %w", k.WasRevoked(), control.ErrRefused)
	}
	return fmt.Errorf("%s: nothing is imported for it, and nothing was tried; hsmbridge restore %s takes the revocation back, and the key is imported into KMS again: %w",
		k.WasRevoked(), name, control.ErrRefused)
}

// needsPerson says that a key, or one of its destinations, waits for a person.
func (f facts) needsPerson(key string) bool {
	for _, x := range f.destinations {
		if x.Key == key && x.NeedsPerson {
			return true
		}
	}
	return f.keys[key].NeedsPerson
}

// cancellable refuses to end a job that would be begun again at once, and says what is left when another one is ended that deletes key material.
func (d *Daemon) cancellable(ctx context.Context, id int64) (left string, err error) {
	list, err := d.store.Jobs(ctx, store.JobFilter{ID: id, Kind: store.KindRevoke, Open: true})
	if err != nil || len(list) == 0 {
		return "", err
	}
	name := list[0].Key
	own, others, err := d.holding(ctx, name)
	switch {
	case err != nil:
		return "", err
	case len(own) > 0:
		return "", fmt.Errorf("job %d deletes the material of %s, which is revoked: cancelled, it would be begun again at once, because KMS held the material when it was asked last; "+
			"to have the key back run hsmbridge restore %s, which also ends this job when it waits for its next try: %w", id, name, name, control.ErrRefused)
	}
	left = fmt.Sprintf("%s stays revoked and is not imported, and KMS may hold its material still. ", name)
	if _, unknown := d.key(ctx, name); unknown == nil {
		left += fmt.Sprintf("The daemon looks at its KMS keys every %s, and begins the deletion again where one holds it", configs.Duration(d.config.Load().KMS.Watch()))
		if len(others) == 0 {
			return left, nil
		}
		left += ". "
	}
	held := "when KMS was asked last, none was seen to hold it"
	if len(others) > 0 {
		held = fmt.Sprintf("when KMS was asked last, %d held it", len(others))
	}
	return left + fmt.Sprintf("Nobody looks at KMS keys that are no longer in the configuration (%s), and nothing begins their deletion again but %s", held, again(name)), nil
}
