package daemon

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"hsmbridge/configs"
	"hsmbridge/daemon/approval"
	"hsmbridge/daemon/control"
	"hsmbridge/daemon/schedule"
	"hsmbridge/daemon/store"
	"hsmbridge/hsm/wrapping"
)

var _ control.Service = (*Daemon)(nil)

// facts is what the database knows, by name.
type facts struct {
	keys         map[string]store.Key
	destinations map[schedule.Target]store.Destination
}

func (f facts) destination(key, arn string) store.Destination {
	d, ok := f.destinations[schedule.Target{Key: key, Destination: arn}]
	if !ok {
		return store.Destination{Key: key, Destination: arn}
	}
	return d
}

// known is what the database knows of all keys, as far as it is needed for counts.
func (d *Daemon) known(ctx context.Context) (f facts, err error) {
	if f.keys, err = d.store.Keys(ctx); err != nil {
		return f, err
	}
	list, err := d.store.Times(ctx)
	f.add(list)
	return f, err
}

// knownOf is all that the database knows of some keys.
func (d *Daemon) knownOf(ctx context.Context, names []string) (f facts, err error) {
	if f.keys, err = d.store.KeysOf(ctx, names...); err != nil {
		return f, err
	}
	list, err := d.store.DestinationsOf(ctx, names...)
	f.add(list)
	return f, err
}

func (f *facts) add(list []store.Destination) {
	f.destinations = make(map[schedule.Target]store.Destination, len(list))
	for _, s := range list {
		f.destinations[schedule.Target{Key: s.Key, Destination: s.Destination}] = s
	}
}

// Jobs lists jobs.
func (d *Daemon) Jobs(ctx context.Context, f store.JobFilter) ([]store.Job, error) {
	return d.store.Jobs(ctx, f)
}

// Imports lists what happened to destinations.
func (d *Daemon) Imports(ctx context.Context, key string, job int64, limit int) ([]store.Import, error) {
	return d.store.Imports(ctx, key, job, limit)
}

// Events lists the journal.
func (d *Daemon) Events(ctx context.Context, f store.EventFilter) ([]store.Event, error) {
	return d.store.Events(ctx, f)
}

// Watch tells of new events.
func (d *Daemon) Watch() (changed <-chan struct{}, stop func()) { return d.store.Watch() }

// Queue queues jobs that a person asks for.
func (d *Daemon) Queue(ctx context.Context, actor string, r control.StartRequest) ([]store.Job, error) {
	names := r.Keys
	if r.All {
		names = nil
		for _, k := range d.config.Load().Keys {
			names = append(names, k.Name)
		}
	}
	switch {
	case len(names) == 0:
		return nil, fmt.Errorf("no key is named: %w", control.ErrRefused)
	case (r.Renew || r.Drill) && r.Kind != store.KindImport:
		return nil, fmt.Errorf("renew and drill are of imports, and this is kind %q; nothing was queued: %w", r.Kind, control.ErrRefused)
	}
	if err := short("why", r.Why); err != nil {
		return nil, err
	}
	whole, err := d.store.Keys(ctx)
	if err != nil {
		return nil, err
	}
	var list []store.Job
	for _, name := range names {
		k, err := d.key(ctx, name)
		if err != nil {
			return nil, err
		}
		if why := whole[name].Barred(); why != "" && r.Kind != store.KindReconcile {
			if r.All {
				continue // the others are done all the same
			}
			return nil, fmt.Errorf("%s; nothing was queued: %w", why, control.ErrRefused)
		}
		j := store.Job{Key: name, Kind: r.Kind, Token: k.TokenSet(), RequestedBy: actor, Reason: "asked for", Options: store.Options{Renew: r.Renew || r.Drill, Why: r.Why}}
		if r.Drill {
			j.Reason = string(schedule.Drill)
		}
		switch r.Kind {
		case store.KindRotate, store.KindReconcile:
			if r.Kind == store.KindRotate && k.KeySpec.Kind() != wrapping.KindSymmetric {
				if r.All {
					continue
				}
				return nil, fmt.Errorf("%s cannot be rotated: a KMS key of spec %s holds one key material for ever; create a new KMS key; nothing was queued: %w", name, k.KeySpec, control.ErrRefused)
			}
			list = append(list, j)
		case store.KindImport:
			for _, dest := range k.Destinations {
				j.Destination = dest.ARN
				list = append(list, j)
			}
		default:
			return nil, fmt.Errorf("kind %q is neither import, rotate nor reconcile: %w", r.Kind, control.ErrRefused)
		}
	}
	return d.addJobs(ctx, list)
}

// short refuses a text of a person that is too long to be shown wherever it is.
func short(what, text string) error {
	const most = 1000
	if n := utf8.RuneCountInString(text); n > most {
		return fmt.Errorf("%s has %d characters, and %d are the most; nothing was done: %w", what, n, most, control.ErrRefused)
	}
	return nil
}

// Pause begins nothing more for a key, or takes that back. Changed is false where it was so already.
func (d *Daemon) Pause(ctx context.Context, actor, key string, resume bool) (changed bool, err error) {
	if _, err := d.key(ctx, key); err != nil {
		return false, err
	}
	defer d.nudge()
	return d.store.Pause(ctx, key, actor, resume)
}

// ResumeToken uses a parked token again.
func (d *Daemon) ResumeToken(ctx context.Context, actor, token string) error {
	if _, ok := d.config.Load().Token(token); !ok {
		var names []string
		for _, t := range d.config.Load().Tokens {
			names = append(names, t.Name)
		}
		return fmt.Errorf("the daemon's configuration has no token %q%s: %w", token, meant(token, names), control.ErrNotFound)
	}
	if err := d.tokens.unpark(ctx, token, actor); err != nil {
		return err
	}
	_, err := d.store.HurryToken(ctx, token, d.queue.Enqueue)
	d.nudge()
	d.tokens.askNow(context.WithoutCancel(ctx), token)
	return err
}

// Retry forgets a key's errors and begins its open jobs now; the planner makes new ones. Of a revoked key there is only the deletion to be tried again.
func (d *Daemon) Retry(ctx context.Context, actor, key string) ([]store.Job, error) {
	if err := d.retriable(ctx, key); err != nil {
		return nil, err
	}
	return d.retry(ctx, actor, key)
}

func (d *Daemon) retry(ctx context.Context, actor, key string) ([]store.Job, error) {
	d.rouse(key)
	if err := d.startOver(ctx, actor, key, "the cause is said to be mended: its errors are forgotten", ""); err != nil {
		return nil, err
	}
	if err := d.plan(ctx); err != nil {
		return nil, err
	}
	return d.store.Jobs(ctx, store.JobFilter{Key: key, Open: true})
}

// rouse ends the rest of what a key needs, tokens and KMS: who asks for it now does not wait for what was found out before. A parked token stays parked.
func (d *Daemon) rouse(key string) {
	d.clients.rouse()
	c := d.config.Load()
	if k, ok := c.Key(key); ok {
		for _, name := range configs.TokensIn(k.TokenSet()) {
			if c.Reach(name) {
				d.tokens.rouse(name)
			}
		}
	}
}

// startOver forgets a key's errors and begins its waiting jobs now, but for those with a code: without its errors nobody would know what they wait for.
func (d *Daemon) startOver(ctx context.Context, actor, key, why, but string) error {
	if err := d.store.ClearErrors(ctx, key, actor, why); err != nil {
		return err
	}
	open, err := d.store.Jobs(ctx, store.JobFilter{Key: key, Open: true})
	if err != nil {
		return err
	}
	for _, j := range open {
		if but != "" && j.ErrorCode == but {
			continue
		}
		if _, err := d.store.Hurry(ctx, j.ID, actor, d.queue.Enqueue); err != nil {
			return err
		}
	}
	return nil
}

// RetryJob lets a waiting job begin now.
func (d *Daemon) RetryJob(ctx context.Context, actor string, id int64) error {
	list, err := d.store.Jobs(ctx, store.JobFilter{ID: id})
	if err != nil {
		return err
	}
	for _, j := range list {
		d.rouse(j.Key)
	}
	found, err := d.store.Hurry(ctx, id, actor, d.queue.Enqueue)
	if err == nil && !found {
		err = d.noSuchJob(ctx, id, "waits")
	}
	return err
}

func (d *Daemon) noSuchJob(ctx context.Context, id int64, what string) error {
	list, err := d.store.Jobs(ctx, store.JobFilter{ID: id})
	switch {
	case err != nil:
		return err
	case len(list) == 0:
		return fmt.Errorf("there is no job %d: %w", id, control.ErrNotFound)
	}
	return fmt.Errorf("job %d is %s: only one that %s can be told so: %w", id, list[0].State, what, control.ErrRefused)
}

// Cancel ends a job, and says what is left when it was one that deletes key material.
func (d *Daemon) Cancel(ctx context.Context, actor string, id int64) (left string, err error) {
	if left, err = d.cancellable(ctx, id); err != nil {
		return "", err
	}
	found, err := d.store.Cancel(ctx, id, actor)
	if err == nil && !found {
		err = d.noSuchJob(ctx, id, "is open")
	}
	return left, err
}

// Revoke deletes a key's material from every destination.
func (d *Daemon) Revoke(ctx context.Context, actor, key, reason string) (store.Job, error) {
	if strings.TrimSpace(reason) == "" {
		return store.Job{}, fmt.Errorf("a revocation needs a reason; nothing was revoked: %w", control.ErrRefused)
	}
	if err := short("reason", reason); err != nil {
		return store.Job{}, err
	}
	k, err := d.revocable(ctx, key)
	if err != nil {
		return store.Job{}, err
	}
	if _, needed := d.config.Load().ApprovalFor(k); needed {
		return store.Job{}, d.ask(ctx, approval.Revoke, actor, key, reason)
	}
	return d.store.Revoke(ctx, key, actor, reason, "", d.queue.Enqueue)
}

// Restore takes a revocation back.
func (d *Daemon) Restore(ctx context.Context, actor, key string) error {
	if _, err := d.key(ctx, key); err != nil {
		return err
	}
	changed, deletes, err := d.store.Restore(ctx, key, actor)
	switch {
	case err != nil:
		return err
	case deletes != 0:
		return fmt.Errorf("the revocation of %s (job %d) is under way; give this command again when it is done, or waits for its next try (hsmbridge jobs %s): %w", key, deletes, key, control.ErrRefused)
	case !changed:
		return fmt.Errorf("%s is not revoked; nothing was changed: %w", key, control.ErrRefused)
	}
	d.nudge()
	return nil
}

// Waive lets a key be imported without a backup.
func (d *Daemon) Waive(ctx context.Context, actor, key, reason string) error {
	k, err := d.key(ctx, key)
	switch {
	case err != nil:
		return err
	case k.Backup.Token == "":
		return fmt.Errorf("%s asks for no backup (keys[].backup), so there is nothing to waive: %w", key, control.ErrRefused)
	case strings.TrimSpace(reason) == "":
		return fmt.Errorf("a waiver needs a reason; nothing was waived: %w", control.ErrRefused)
	}
	if err := short("reason", reason); err != nil {
		return err
	}
	if _, needed := d.config.Load().ApprovalFor(k); needed {
		return d.ask(ctx, approval.Waive, actor, key, reason)
	}
	if err := d.store.Waive(ctx, key, actor, reason, ""); err != nil {
		return err
	}
	_, err = d.retry(ctx, actor, key)
	return err
}

// Backup writes a copy of the database.
func (d *Daemon) Backup(ctx context.Context, actor, file string) error {
	err := d.store.Backup(ctx, file)
	if errors.Is(err, store.ErrNoBackup) {
		return fmt.Errorf("%w: %w", err, control.ErrRefused)
	}
	if err != nil {
		return err
	}
	return d.store.AddEvent(ctx, store.Event{Kind: "database-backup", Actor: actor, Message: "the database was copied to " + file})
}
