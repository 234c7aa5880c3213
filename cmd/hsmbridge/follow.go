package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"hsmbridge/daemon/control"
	"hsmbridge/daemon/importer"
	"hsmbridge/daemon/store"
)

// await shows what jobs do until each is over or has to wait, and prints how they ended.
func (a *app) await(ctx context.Context, c *control.Client, list []store.Job) error {
	ended := make([]store.Job, 0, len(list))
	for i, j := range list {
		j, err := a.follow(ctx, c, j.ID)
		if err != nil {
			return a.left(ctx, list[i:], err)
		}
		ended = append(ended, j)
	}
	return a.ended(ctx, c, ended)
}

// follow shows what a job does until it is over or has to wait.
func (a *app) follow(ctx context.Context, c *control.Client, id int64) (store.Job, error) {
	const poll = 200 * time.Millisecond
	after := int64(0)
	for {
		j := store.Job{ID: id}
		if err := a.progress(ctx, c, id, &after); err != nil {
			return j, err
		}
		now, err := c.Jobs(ctx, store.JobFilter{ID: id})
		if err != nil {
			return j, err
		}
		if j = now[0]; !j.State.Open() || j.State == store.Waiting {
			return j, nil
		}
		select {
		case <-ctx.Done():
			return j, ctx.Err()
		case <-time.After(poll):
		}
	}
}

// left says what becomes of jobs that nobody waits for any more.
func (a *app) left(ctx context.Context, list []store.Job, err error) error {
	var ids []string
	for _, j := range list {
		ids = append(ids, strconv.FormatInt(j.ID, 10))
	}
	jobs, was, it := "job "+ids[0], "was", "it"
	if len(ids) > 1 {
		jobs, was, it = "jobs "+few(ids), "were", "them"
	}
	if ctx.Err() != nil {
		fmt.Fprintf(a.err, "hsmbridge: the daemon goes on with %s; hsmbridge jobs shows %s\n", jobs, it)
		return shownInterrupt()
	}
	var refused *control.Error
	if errors.As(err, &refused) {
		return err
	}
	return fmt.Errorf("the daemon ended before %s %s done; its next start goes on with %s, hsmbridge jobs shows %s: %w", jobs, was, it, it, err)
}

// progress shows a job's new events to a person.
func (a *app) progress(ctx context.Context, c *control.Client, job int64, after *int64) error {
	if a.json || !isTerminal(a.err) {
		return nil
	}
	return c.Events(ctx, store.EventFilter{Job: job, After: *after}, false, func(e store.Event) error {
		*after = e.ID
		a.say(e.Key, e.Kind, printable(firstLine(e.Message)))
		return nil
	})
}

// ended prints jobs that are over or wait, and gives the exit code that they call for.
func (a *app) ended(ctx context.Context, c *control.Client, list []store.Job) error {
	var results []importer.Result
	var others []store.Job
	for _, j := range list {
		got, err := c.Imports(ctx, "", j.ID, 50)
		if err != nil {
			return err
		}
		last, err := lastResults(got)
		if err != nil {
			return err
		}
		told := j.State == store.Done && len(last) > 0
		for _, r := range last {
			switch {
			case r.Error == "", r.Error == j.Error:
				told = true
				results = append(results, r)
			case j.Error == "" && j.State != store.Done: // of an earlier attempt
			case j.Kind != store.KindImport:
				results = append(results, r)
			}
		}
		if !told || j.Kind != store.KindImport {
			others = append(others, j)
		}
	}
	if a.json {
		for _, r := range results {
			if err := writeJSON(a.out, r); err != nil {
				return err
			}
		}
	} else if len(results) > 0 {
		a.printResults(results)
	}
	if len(others) > 0 || a.json && len(results) == 0 {
		if err := a.printJobs(others); err != nil {
			return err
		}
	}
	return a.jobsCode(list)
}

// lastResults are the results of a job's last attempts, one for each destination; got begins with the latest.
func lastResults(got []store.Import) (last []importer.Result, err error) {
	seen := map[string]bool{}
	for _, i := range got {
		if seen[i.Destination] {
			continue
		}
		seen[i.Destination] = true
		r, err := resultOf(i)
		if err != nil {
			return nil, err
		}
		last = append(last, r)
	}
	slices.Reverse(last)
	return last, nil
}

// resultOf is the importer's result as it was kept.
func resultOf(i store.Import) (r importer.Result, err error) {
	b, err := json.Marshal(i.Details)
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	if err != nil {
		return r, fmt.Errorf("the daemon's answer cannot be read: %w", err)
	}
	return r, nil
}

// jobsCode is the exit code of jobs that were waited for.
func (a *app) jobsCode(list []store.Job) error {
	for _, j := range list {
		if j.State == store.Waiting && j.ErrorClass == control.ClassApproval {
			fmt.Fprintf(a.err, "hsmbridge: job %d goes on by itself when officers have approved it; hsmbridge requests shows what they have to sign\n", j.ID)
		} else if j.State == store.Waiting {
			fmt.Fprintf(a.err, "hsmbridge: job %d waits: the daemon tries it again at %s\n", j.ID, j.NotBefore.UTC().Format(time.RFC3339))
		}
	}
	return codeOfJobs(list)
}

// importByDaemon has the daemon import, as long as nothing is asked for that only a direct import does.
func (a *app) importByDaemon(ctx context.Context, c *control.Client, names []string, all bool, o importOptions, why string) error {
	if o.expires != nil || o.noProve {
		return usageError(errors.New("--expires and --no-prove are for imports without the daemon: change the configuration and run hsmbridge reload, or give --direct"))
	}
	if all == (len(names) > 0) {
		return usageError(errors.New("name keys, or give --all"))
	}
	if all && !o.renew {
		list, err := underWay(ctx, c, time.Now())
		if err != nil {
			return err
		}
		if len(list) > 0 {
			now, moving := time.Now(), 0
			for _, j := range list {
				if moves(j, now) {
					moving++
				}
			}
			fmt.Fprintf(a.err, "hsmbridge: of %d imports %d are under way still, which are shown here; run this again afterwards to have every key looked at\n", len(list), moving)
			return a.bulk(ctx, c, list)
		}
	}
	list, err := c.Start(ctx, control.StartRequest{Keys: names, All: all, Kind: store.KindImport, Renew: o.renew, Why: why})
	if err != nil {
		return err
	}
	if n := slices.IndexFunc(list, func(j store.Job) bool { return why != "" && j.Options.Why != why }); n >= 0 {
		j := list[n]
		fmt.Fprintf(a.err, "hsmbridge: job %d for %s had been asked for by %s already, and --why is not in its request; --renew asks anew, with it\n", j.ID, j.Key, j.RequestedBy)
	}
	if len(list) >= bulkFrom {
		if err := hurry(ctx, c, list); err != nil {
			return err
		}
		return a.bulk(ctx, c, list)
	}
	return a.awaitNow(ctx, c, list)
}

// awaitNow begins jobs at once that wait after a failure, and waits for all.
func (a *app) awaitNow(ctx context.Context, c *control.Client, list []store.Job) error {
	if err := hurry(ctx, c, list); err != nil {
		return err
	}
	return a.await(ctx, c, list)
}

// hurry begins jobs at once that wait after a failure.
func hurry(ctx context.Context, c *control.Client, list []store.Job) error {
	for _, j := range list {
		if j.State != store.Waiting {
			continue
		}
		var refused *control.Error
		if err := c.Job(ctx, "retry", j.ID); err != nil && !errors.As(err, &refused) { // refused: it has begun meanwhile
			return err
		}
	}
	return nil
}
