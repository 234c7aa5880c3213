package main

import (
	"context"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"time"

	"hsmbridge/daemon/control"
	"hsmbridge/daemon/store"
)

// bulkFrom is the number of destinations from which on an import is shown as a whole, and not destination by destination.
const bulkFrom = 21

// underWay are the imports of a bulk of which the daemon still has some to do, those that are done among them; none if there is no such bulk. Asking
// for all again would only prove once more what is done.
func underWay(ctx context.Context, c *control.Client, now time.Time) ([]store.Job, error) {
	open, err := c.Jobs(ctx, store.JobFilter{Open: true, Limit: maxJobs})
	if err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(open, func(j store.Job) bool { return ofBulk(j) && moves(j, now) }) {
		return nil, nil
	}
	all, err := c.Jobs(ctx, store.JobFilter{Limit: maxJobs})
	if err != nil {
		return nil, err
	}
	return bulkOf(all, now), nil
}

// ofBulk says that a job may be one of many that somebody, or the daemon's start, asked for at once.
func ofBulk(j store.Job) bool {
	return j.Kind == store.KindImport && slices.Contains([]string{"first", "restore", "asked for"}, j.Reason)
}

// bulkOf are the jobs that were made together with one that is still to be done, of the oldest such one on; none if they are few.
func bulkOf(all []store.Job, now time.Time) []store.Job {
	const together = 10 * time.Second // the jobs of one request are made in one transaction, those of a daemon's start in several
	var from time.Time
	for _, j := range all {
		if ofBulk(j) && moves(j, now) && (from.IsZero() || j.Created.Before(from)) {
			from = j.Created
		}
	}
	mine := slices.DeleteFunc(slices.Clone(all), func(j store.Job) bool { return !ofBulk(j) || j.Created.Before(from.Add(-together)) })
	if from.IsZero() || len(mine) < bulkFrom {
		return nil
	}
	return mine
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
	p := progress{out: a.err, all: len(mine), began: time.Now(), shown: !a.json, live: isTerminal(a.err)}
	every := time.Second + time.Duration(len(mine))*time.Second/2500 // the list of open jobs is long at first
	for {
		open, err := c.Jobs(ctx, store.JobFilter{Open: true, Limit: maxJobs})
		if err != nil {
			p.end()
			return a.leftBulk(ctx, p.all-p.done-p.failed, err)
		}
		failed, err := c.Jobs(ctx, store.JobFilter{State: store.Failed, Limit: len(mine)})
		if err != nil {
			p.end()
			return a.leftBulk(ctx, p.all-p.done-p.failed, err)
		}
		failed = slices.DeleteFunc(failed, func(j store.Job) bool { return !mine[j.ID] })
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
		p.failed = len(failed)
		p.show(now, p.all-moving-stuck-len(failed), stuck)
		if moving == 0 {
			break
		}
		select {
		case <-ctx.Done():
			p.end()
			return a.leftBulk(ctx, p.all-p.done-p.failed, ctx.Err())
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

// progress is the line that a person sees while many imports are done: on a terminal it changes, elsewhere a new one comes now and then.
type progress struct {
	out   io.Writer
	all   int
	began time.Time
	shown bool
	live  bool // on a terminal

	said    time.Time // when the last line was written, elsewhere
	done    int
	failed  int
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
	const often = 30 * time.Second
	if !p.live {
		if now.Sub(p.began) > often && now.Sub(p.said) > often { // what is soon done needs no lines
			fmt.Fprintln(p.out, "hsmbridge:", line)
			p.said = now
		}
		return
	}
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
		if left := p.all - done - stuck - p.failed; left > 0 {
			line += ", " + (time.Duration(float64(left)/rate) * time.Second).Round(time.Second).String() + " left"
		}
	}
	if p.failed > 0 {
		line += fmt.Sprintf("; %d failed", p.failed)
	}
	if stuck > 0 {
		line += fmt.Sprintf("; %d wait for a person or for long", stuck)
	}
	return line
}

// end leaves the line as it is.
func (p *progress) end() {
	if p.width > 0 {
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
	fmt.Fprintf(a.out, "%d of %d destinations are done, in %s", byState[store.Done], len(list), took.Round(time.Second))
	if n := byState[store.Failed]; n > 0 {
		fmt.Fprintf(a.out, "; %d failed", n)
	}
	if n := byState[store.Waiting] + byState[store.Queued] + byState[store.Running]; n > 0 {
		fmt.Fprintf(a.out, "; the daemon goes on with %d", n)
	}
	if n := byState[store.Cancelled]; n > 0 {
		fmt.Fprintf(a.out, "; %d were cancelled", n)
	}
	fmt.Fprintln(a.out)
	if n := s.Counts.Paused + s.Counts.Revoked; n > 0 {
		fmt.Fprintf(a.out, "left out: %s paused, %d revoked\n", counted(s.Counts.Paused, "key"), s.Counts.Revoked)
	}
	a.people(people)
	return codeOfJobs(list)
}

// people prints what needs a person, each cause once.
func (a *app) people(list []control.NeedsPerson) {
	if len(list) == 0 {
		return
	}
	type group struct {
		message     string // of the first
		names, then []string
	}
	groups := map[string]*group{}
	var causes []*group // in the list's order
	for _, n := range list {
		cause := sameCause(n)
		g := groups[cause]
		if g == nil {
			g = &group{message: n.Message}
			groups[cause] = g
			causes = append(causes, g)
		}
		g.names = append(g.names, strings.TrimSpace(dash(n.Key+n.Token)+" "+n.Destination))
		g.then = append(g.then, n.Retry)
	}
	fmt.Fprintf(a.out, "\nwhat needs a person:\n")
	for _, g := range causes {
		for _, line := range slices.Compact(g.names) {
			fmt.Fprintf(a.out, "%s\n", printable(line))
		}
		for line := range strings.Lines(g.message) {
			wrapped(a.out, "  ", "    ", line)
		}
		slices.Sort(g.then)
		for _, line := range slices.Compact(g.then) {
			fmt.Fprintf(a.out, "  then: %s\n", printable(line))
		}
	}
}

// sameCause is a message without what differs from key to key: names, ARNs, and the IDs of keys and requests.
func sameCause(n control.NeedsPerson) string {
	cause := n.Message
	for _, name := range []string{n.Destination, n.Key} {
		if name != "" {
			cause = strings.ReplaceAll(cause, name, "KEY")
		}
	}
	return uuids.ReplaceAllString(cause, "ID")
}

var uuids = regexp.MustCompile(`(mrk-[0-9a-f]{32}|[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})`)

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
