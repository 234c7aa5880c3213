package daemon

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"

	"hsmbridge/daemon/store"
)

const (
	retainFirst = time.Minute // after the start, which has other things to do
	retainEvery = 24 * time.Hour
	retainBatch = 1000                  // jobs looked at in one transaction
	retainPause = 20 * time.Millisecond // between two, for the others who write
	retention   = "retention/jobs"      // the lock: no key has such a name
)

// retain deletes old jobs once a day.
func (d *Daemon) retain(ctx context.Context) {
	timer := time.NewTimer(retainFirst)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		if err := d.Retain(ctx); err != nil && ctx.Err() == nil {
			d.log.Error("old jobs could not be deleted; it is tried again tomorrow, and nothing else waits for it", zap.Error(err))
		}
		timer.Reset(retainEvery)
	}
}

// Retain deletes jobs that ended longer ago than the configuration keeps them, as [store.Store.DropJobs] says. Of several daemons one does it
// at a time; a kill in the middle leaves the rest to the next pass.
func (d *Daemon) Retain(ctx context.Context) (err error) {
	keep := d.config.Load().JobRetention()
	if keep == 0 {
		return nil
	}
	l, err := d.store.Lock(ctx, retention)
	if errors.Is(err, store.ErrLocked) {
		return nil // another daemon does it
	}
	if err != nil {
		return err
	}
	defer func() {
		if rerr := l.Release(context.WithoutCancel(ctx)); rerr != nil && !errors.Is(rerr, store.ErrLeaseLost) {
			err = errors.Join(err, rerr)
		}
	}()
	began, before := time.Now(), d.now().Add(-keep)
	var all store.Dropped
	defer func() {
		if all.Jobs > 0 {
			d.log.Info("jobs that ended long ago were deleted", zap.Int64("jobs", all.Jobs), zap.Int64("imports", all.Imports), zap.Time("before", before), zap.Duration("took", time.Since(began)))
		}
	}()
	for more := true; more; {
		batch, err := d.store.DropJobs(ctx, l, before, all.Until, retainBatch)
		if errors.Is(err, store.ErrLeaseLost) {
			return nil // this process was frozen, and another daemon goes on
		}
		if err != nil {
			return err
		}
		d.metrics.Deleted("jobs", batch.Jobs)
		d.metrics.Deleted("imports", batch.Imports)
		all.Jobs, all.Imports, all.Until, more = all.Jobs+batch.Jobs, all.Imports+batch.Imports, batch.Until, batch.More
		if !more {
			break
		}
		select {
		case <-ctx.Done():
			return nil // the rest is done the next time
		case <-time.After(retainPause):
		}
	}
	return nil
}
