package daemon

import (
	"context"
	"errors"
	"sync"
	"time"

	"go.uber.org/zap"

	"hsmbridge/configs"
	"hsmbridge/daemon/importer"
	"hsmbridge/daemon/runner"
	"hsmbridge/daemon/schedule"
	"hsmbridge/daemon/store"
	"hsmbridge/kmsclient"
)

// target is a destination with its key.
type target struct {
	key  configs.Key
	dest configs.Destination
	seen time.Time
}

// watch looks at the KMS keys that were not looked at for a while, the longest first, and writes down what KMS shows: material that was
// deleted or has expired behind our back is due again. It gives up a Region that does not answer until the next time.
func (d *Daemon) watch(ctx context.Context) error {
	const most, workers = 200, 8
	list, err := d.unseen(ctx, most)
	if err != nil || len(list) == 0 {
		return err
	}
	var (
		mu     sync.Mutex
		wg     sync.WaitGroup
		down   = map[string]bool{}
		failed error // of the database: nothing more is looked at
	)
	next := make(chan target)
	for range min(workers, len(list)) {
		wg.Go(func() {
			for t := range next {
				mu.Lock()
				skip := failed != nil || down[t.dest.Region()+t.dest.RoleARN]
				mu.Unlock()
				if skip {
					continue
				}
				_, err := d.see(ctx, t) // what comes too late is looked at again the next time
				d.progressed()
				if err == nil {
					continue
				}
				mu.Lock()
				if class := importer.Class(err); class == "database" {
					failed = err
				} else {
					d.log.Warn("a KMS key could not be looked at", zap.String("key", t.key.Name), zap.String("destination", t.dest.ARN), zap.Error(err))
					down[t.dest.Region()+t.dest.RoleARN] = class == kmsclient.ClassKMS
				}
				mu.Unlock()
			}
		})
	}
	for _, t := range list {
		next <- t
	}
	close(next)
	wg.Wait()
	return failed
}

// see looks at a KMS key and writes down at once what it shows. late says that its journal went on meanwhile, and that nothing was written down.
func (d *Daemon) see(ctx context.Context, t target) (late bool, err error) {
	database := func(err error) error {
		if err == nil {
			return nil
		}
		return &runner.Error{ErrCode: "Database", ErrClass: "database", Message: "what KMS shows could not be written down", Err: err}
	}
	since, err := d.store.LastEvent(ctx)
	if err != nil {
		return false, database(err)
	}
	s, err := d.look(ctx, t)
	if err != nil {
		return false, err
	}
	s.Since = max(1, since)
	list, err := d.store.See(ctx, []store.Seen{s})
	return len(list) > 0, database(err)
}

// look asks KMS about one key.
func (d *Daemon) look(ctx context.Context, t target) (store.Seen, error) {
	client, err := d.clients.client(ctx, t.dest)
	if err != nil {
		return store.Seen{}, err
	}
	s := store.Seen{Key: t.key.Name, Destination: t.dest.ARN, Rotations: -1}
	info, err := client.DescribeKey(ctx, t.dest.ARN)
	switch code := kmsclient.Code(err); {
	case code == "NotFoundException":
		s.State = "NotFound"
		return s, nil
	case err != nil:
		return s, err
	}
	s.State, s.MaterialID = info.State, info.CurrentKeyMaterialID
	if s.Present = info.Origin == "EXTERNAL" && (info.State == "Enabled" || info.State == "Disabled"); s.Present {
		s.ValidTo = info.ValidTo
	}
	return s, nil
}

// mustSee is see, again where the journal went on meanwhile.
func (d *Daemon) mustSee(ctx context.Context, t target) error {
	for range 5 {
		if late, err := d.see(ctx, t); err != nil || !late {
			return err
		}
	}
	return errors.New("its jobs go on all the time")
}

// unseen lists the destinations that are to be looked at, at most so many.
func (d *Daemon) unseen(ctx context.Context, most int) ([]target, error) {
	known, err := d.store.Times(ctx)
	if err != nil {
		return nil, err
	}
	last := make(map[schedule.Target]store.Destination, len(known))
	for _, k := range known {
		last[schedule.Target{Key: k.Key, Destination: k.Destination}] = k
	}
	c := d.config.Load()
	before := d.now().Add(-c.KMS.Watch())
	var list []target
	for _, k := range c.Keys {
		for _, dest := range k.Destinations {
			s := last[schedule.Target{Key: k.Name, Destination: dest.ARN}]
			// What nobody has seen yet is left to the import at first. A time in the future was noted under a wrong clock.
			sent := !s.SettledAt.IsZero() || !s.TriedAt.IsZero()
			if (sent || s.SeenAt.IsZero() && d.began.Before(before)) && (s.SeenAt.Before(before) || s.SeenAt.After(d.now().Add(time.Minute))) {
				list = append(list, target{k, dest, s.SeenAt})
			}
		}
	}
	return oldest(list, most), nil
}
