package daemon

import (
	"context"
	"math"
	"slices"

	"hsmbridge/configs"
	"hsmbridge/daemon/jobs"
	"hsmbridge/daemon/store"
	"hsmbridge/kmsclient"
)

// spread orders jobs so that all places (accounts and Regions) begin at once, in turn, and so that they do not all begin with the same key,
// whose jobs would wait for each other: the first place begins at the start of its list, the second one further on, and so forth.
func spread(list []store.Job) []store.Job {
	var names []string
	byPlace := map[string][]store.Job{}
	for _, j := range list {
		p := j.Place()
		if byPlace[p] == nil {
			names = append(names, p)
		}
		byPlace[p] = append(byPlace[p], j)
	}
	longest := 0
	for i, name := range names {
		own := byPlace[name]
		from := i * len(own) / len(names)
		byPlace[name] = slices.Concat(own[from:], own[:from])
		longest = max(longest, len(own))
	}
	out := make([]store.Job, 0, len(list))
	for i := range longest {
		for _, name := range names {
			if own := byPlace[name]; i < len(own) {
				out = append(out, own[i])
			}
		}
	}
	return out
}

// addJobs queues jobs in several transactions: others write in between, and the first ones begin while the last ones are still queued.
func (d *Daemon) addJobs(ctx context.Context, list []store.Job) (all []store.Job, err error) {
	const batch = 500
	for part := range slices.Chunk(spread(list), batch) {
		made, err := d.store.AddJobs(ctx, part, d.queue.Enqueue)
		if err != nil {
			return all, err
		}
		all = append(all, made...)
	}
	return all, nil
}

// places are the queues for the destinations of a configuration, and for open jobs of an earlier one.
func (d *Daemon) places(c *configs.Config, open []store.Job) []jobs.Place {
	seen := map[jobs.Place]bool{}
	var out []jobs.Place
	add := func(token, destination string) {
		arn, err := kmsclient.ParseARN(destination)
		p := jobs.Place{Token: token, Name: store.Job{Destination: destination}.Place()}
		if err != nil || seen[p] {
			return
		}
		seen[p] = true
		p.Workers = workers(d.clients.rate(paced, arn))
		out = append(out, p)
	}
	for _, k := range c.Keys {
		if set := k.TokenSet(); reaches(c, set) {
			for _, dest := range k.Destinations {
				add(set, dest.ARN)
			}
		}
	}
	for _, j := range open {
		if reaches(c, j.Token) {
			add(j.Token, j.Destination)
		}
	}
	return out
}

// workers is how many jobs of a place are under way at a time: one of them sends the next request for import parameters, the others are
// before it (four answers of KMS) or behind it (the wrap, and four more). With fewer the quota would not be used up; nor, where there is none
// to wait for, the HSM.
func workers(perSecond float64) int {
	const (
		fewest, most = 4, 16
		seconds      = 3 // that a job takes, at most, without its wait for the quota
	)
	return int(min(most, max(fewest, math.Ceil(perSecond*seconds))))
}
