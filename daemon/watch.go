package daemon

import (
	"context"
	"errors"
	"sync"
	"time"

	"go.uber.org/zap"

	"hsmbridge/configs"
	"hsmbridge/daemon/importer"
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
		mu   sync.Mutex
		seen []store.Seen
		wg   sync.WaitGroup
		down = map[string]bool{}
	)
	next := make(chan target)
	for range min(workers, len(list)) {
		wg.Go(func() {
			for t := range next {
				mu.Lock()
				skip := down[t.dest.Region()+t.dest.RoleARN]
				mu.Unlock()
				if skip {
					continue
				}
				s, err := d.look(ctx, t)
				d.progressed()
				mu.Lock()
				if err != nil {
					d.log.Warn("a KMS key could not be looked at", zap.String("key", t.key.Name), zap.String("destination", t.dest.ARN), zap.Error(err))
					down[t.dest.Region()+t.dest.RoleARN] = importer.Class(err) == kmsclient.ClassKMS
				} else {
					seen = append(seen, s)
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
	if len(seen) == 0 {
		return nil
	}
	_, err = d.store.See(ctx, seen) // what is out of date meanwhile is looked at again the next time
	return err
}

// look asks KMS about one key.
func (d *Daemon) look(ctx context.Context, t target) (store.Seen, error) {
	client, err := d.clients.client(ctx, t.dest)
	if err != nil {
		return store.Seen{}, err
	}
	since, err := d.store.LastEvent(ctx)
	if err != nil {
		return store.Seen{}, err
	}
	s := store.Seen{Key: t.key.Name, Destination: t.dest.ARN, Rotations: -1, Since: max(1, since)}
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

// see looks at a KMS key and writes down what it shows, again where the key's journal went on meanwhile.
func (d *Daemon) see(ctx context.Context, t target) error {
	for range 5 {
		seen, err := d.look(ctx, t)
		if err != nil {
			return err
		}
		late, err := d.store.See(ctx, []store.Seen{seen})
		if err != nil || len(late) == 0 {
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
