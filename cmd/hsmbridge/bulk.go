package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"hsmbridge/daemon/control"
	"hsmbridge/daemon/store"
)

// bulkFrom is the number of destinations from which on an import is shown as a whole, and not destination by destination.
const bulkFrom = 21

// underWay are the imports of a bulk that the daemon still has to do; none if there are few. Asking for all again would only prove once more
// what is done.
func underWay(ctx context.Context, c *control.Client, now time.Time) ([]store.Job, error) {
	open, err := c.Jobs(ctx, store.JobFilter{Open: true, Limit: maxJobs})
	if err != nil {
		return nil, err
	}
	mine := slices.DeleteFunc(open, func(j store.Job) bool {
		return j.Kind != store.KindImport || !slices.Contains([]string{"first", "restore", "asked for"}, j.Reason) || !moves(j, now)
	})
	if len(mine) < bulkFrom {
		return nil, nil
	}
	return mine, nil
}

// maxJobs is more than any fleet has at a time.
const maxJobs = 1 << 20

// moves says that a job is worth waiting for: it is queued, runs, or is tried again in a moment.
func moves(j store.Job, now time.Time) bool {
	const moment = 2 * time.Minute
	switch j.State {
	case store.Queued, store.Running:
		return true
	case store.Waiting:
		return j.ErrorClass != control.ClassApproval && j.NotBefore.Before(now.Add(moment))
	case store.Done, store.Failed, store.Cancelled:
	}
	return false
}

// bulk waits for many imports, shows how far they are, and ends with what needs a person. The daemon does them, whether somebody waits or not.
func (a *app) bulk(ctx context.Context, c *control.Client, list []store.Job) error {
	mine := map[int64]bool{}
	for _, j := range list {
		mine[j.ID] = true
	}
	p := progress{out: a.err, all: len(mine), began: time.Now(), shown: !a.json && isTerminal(a.err)}
	every := time.Second + time.Duration(len(mine))*time.Second/2500 // the list of open jobs is long at first
	for {
		open, err := c.Jobs(ctx, store.JobFilter{Open: true, Limit: maxJobs})
		if err != nil {
			p.end()
			return a.leftBulk(ctx, p.all-p.done, err)
		}
		moving, stuck := 0, 0
		now := time.Now()
		for _, j := range open {
			switch {
			case !mine[j.ID]:
			case moves(j, now):
				moving++
			default:
				stuck++
			}
		}
		p.show(now, p.all-moving-stuck, stuck)
		if moving == 0 {
			break
		}
		select {
		case <-ctx.Done():
			p.end()
			return a.leftBulk(ctx, p.all-p.done, ctx.Err())
		case <-time.After(every):
		}
	}
	p.end()
	all, err := c.Jobs(ctx, store.JobFilter{Limit: maxJobs})
	if err != nil {
		return err
	}
	all = slices.DeleteFunc(all, func(j store.Job) bool { return !mine[j.ID] })
	slices.Reverse(all) // the oldest first, as they were asked for
	if a.json {
		return a.ended(ctx, c, all)
	}
	return a.summary(ctx, c, all, time.Since(p.began))
}

// leftBulk says what becomes of imports that nobody waits for any more.
func (a *app) leftBulk(ctx context.Context, open int, err error) error {
	if ctx.Err() != nil {
		fmt.Fprintf(a.err, "hsmbridge: the daemon goes on with %d imports; hsmbridge import --all shows them again\n", open)
		return shownInterrupt()
	}
	return fmt.Errorf("the daemon ended, or does not answer any more; its next start goes on with the imports, and hsmbridge import --all shows them: %w", err)
}

// progress is the line that a person sees while many imports are done.
type progress struct {
	out   io.Writer
	all   int
	began time.Time
	shown bool

	done    int
	samples []sample
	width   int // of what stands there
}

type sample struct {
	at   time.Time
	done int
}

// show writes the line anew. The rate is that of the last minute.
func (p *progress) show(now time.Time, done, stuck int) {
	const window = time.Minute
	p.done = done
	p.samples = append(p.samples, sample{now, done})
	for len(p.samples) > 2 && now.Sub(p.samples[0].at) > window {
		p.samples = p.samples[1:]
	}
	if !p.shown {
		return
	}
	line := p.line(done, stuck)
	fmt.Fprintf(p.out, "\r%s%s", line, strings.Repeat(" ", max(0, p.width-len(line))))
	p.width = len(line)
}

func (p *progress) line(done, stuck int) string {
	line := fmt.Sprintf("%d of %d destinations (%d %%)", done, p.all, 100*done/max(1, p.all))
	first := p.samples[0]
	last := p.samples[len(p.samples)-1]
	if took := last.at.Sub(first.at).Seconds(); took > 0 && last.done > first.done {
		rate := float64(last.done-first.done) / took
		line += fmt.Sprintf(", %.1f a second", rate)
		if left := p.all - done - stuck; left > 0 {
			line += ", " + (time.Duration(float64(left)/rate) * time.Second).Round(time.Second).String() + " left"
		}
	}
	if stuck > 0 {
		line += fmt.Sprintf("; %d wait for a person or for long", stuck)
	}
	return line
}

// end leaves the line as it is.
func (p *progress) end() {
	if p.shown && p.width > 0 {
		fmt.Fprintln(p.out)
	}
}

// summary prints how many imports ended how, and each that needs a person.
func (a *app) summary(ctx context.Context, c *control.Client, list []store.Job, took time.Duration) error {
	byState := map[store.State]int{}
	mine := map[[2]string]bool{}
	for _, j := range list {
		byState[j.State]++
		if j.State != store.Done {
			mine[[2]string{j.Key, j.Destination}] = true
		}
	}
	s, err := c.Status(ctx)
	if err != nil {
		return err
	}
	people := slices.DeleteFunc(s.People, func(n control.NeedsPerson) bool {
		return !mine[[2]string{n.Key, n.Destination}] && !mine[[2]string{n.Key, ""}] && (n.Token == "" || byState[store.Done] == len(list))
	})
	fmt.Fprintf(a.out, "%d of %d destinations hold their key, in %s", byState[store.Done], len(list), took.Round(time.Second))
	if n := byState[store.Waiting] + byState[store.Queued] + byState[store.Running]; n > 0 {
		fmt.Fprintf(a.out, "; the daemon goes on with %d", n)
	}
	if n := byState[store.Cancelled]; n > 0 {
		fmt.Fprintf(a.out, "; %d were cancelled", n)
	}
	fmt.Fprintln(a.out)
	if n := s.Counts.Paused + s.Counts.Revoked; n > 0 {
		fmt.Fprintf(a.out, "%d keys are paused and %d revoked: they were left out\n", s.Counts.Paused, s.Counts.Revoked)
	}
	if len(people) > 0 {
		fmt.Fprintf(a.out, "\nwhat needs a person:\n")
		var rows [][]string
		for _, n := range people {
			rows = append(rows, []string{dash(n.Key + n.Token), dash(n.Destination), cut(printable(firstLine(n.Message)), width), n.Retry})
		}
		table(a.out, []string{"KEY", "DESTINATION", "WHY", "THEN"}, rows)
	}
	return codeOfJobs(list)
}

// codeOfJobs is the exit code of jobs that were waited for.
func codeOfJobs(list []store.Job) error {
	bad, code := 0, exitDone
	for _, j := range list {
		if j.State == store.Done {
			continue
		}
		bad++
		if c := classCode(j.ErrorClass); code == exitDone || c == code {
			code = c
		} else {
			code = exitUnexpected
		}
	}
	switch {
	case bad == 0:
		return nil
	case bad < len(list):
		code = exitPartly
	}
	return &exitError{code, errShown}
}
