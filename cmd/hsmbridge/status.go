package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"hsmbridge/daemon/control"
	"hsmbridge/daemon/store"
)

func (a *app) statusCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "status [NAME]", Short: "What expires when, what is running, what waits for a person",
		Long: "One screen: what expires when, what is running, what waits for a person. With the name of a key: its destinations and key materials.",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.daemon()
			if err != nil {
				return err
			}
			if len(args) == 1 {
				return a.keyStatus(cmd.Context(), c, args[0])
			}
			s, err := c.Status(cmd.Context())
			if err != nil {
				return err
			}
			if a.json {
				return writeJSON(a.out, s)
			}
			a.printStatus(s)
			return nil
		},
	}
	return a.jsonFlag(c, "print JSON")
}

func (a *app) printStatus(s control.Status) {
	state := "ready"
	if !s.Ready {
		state = "NOT READY: " + s.NotReady
	}
	fmt.Fprintf(a.out, "%s %s, %s, up %s, %s\n", s.Daemon, s.Version, state, span(s.Now.Sub(s.Started)), s.Database)
	n := s.Counts
	missing, why := strconv.Itoa(n.Missing), ""
	if n.Unseen > 0 {
		missing += fmt.Sprintf(", not looked at yet: %d", n.Unseen)
	}
	if s.Jobs["waiting"] > 0 {
		why = " (hsmbridge jobs --open says what for)"
	}
	paused := strconv.Itoa(n.Paused)
	if n.Removed > 0 {
		paused += fmt.Sprintf(", revoked and no longer in the configuration: %d", n.Removed)
	}
	fmt.Fprintf(a.out, "keys: %d, revoked: %d, paused: %s; destinations: %d, material there: %d, missing: %s; jobs running: %d, queued: %d, waiting: %d%s\n",
		n.Keys, n.Revoked, paused, n.Destinations, n.Ready, missing, s.Jobs["running"], s.Jobs["queued"], s.Jobs["waiting"], why)
	a.printAudit(s)
	if s.Reload != "" {
		wrapped(a.out, "! ", "  ", "the last reload was refused, the configuration before it is in use: "+firstLine(s.Reload))
	}
	a.printPeople(s.People)
	fmt.Fprintln(a.out)
	rows := make([][]string, 0, len(s.Tokens))
	for _, t := range s.Tokens {
		note := ""
		switch {
		case t.State == "resting":
			note = "left alone until " + t.Until.UTC().Format(time.RFC3339)
		case t.State == "elsewhere":
			note = "not reached from here"
		case t.State == "closed":
			note = "opened when there is something to do with it"
		case t.PINTriesLow:
			note = "few PIN tries were left when it was opened"
		}
		rows = append(rows, []string{t.Name, t.State, dash(t.Model), dash(t.Serial), note})
	}
	table(a.out, []string{"TOKEN", "STATE", "MODEL", "SERIAL", ""}, rows)
	for _, t := range s.Tokens {
		if t.State == "resting" {
			wrapped(a.out, "  "+t.Name+": ", "    ", t.Reason)
		}
		for _, w := range t.Warnings {
			wrapped(a.out, "  "+t.Name+": ", "    ", printable(w))
		}
	}
	a.printDaemons(s)
	a.printRemoved(s)
	if len(s.Running) > 0 {
		fmt.Fprintln(a.out)
		rows = rows[:0]
		for _, j := range s.Running {
			rows = append(rows, []string{strconv.FormatInt(j.ID, 10), j.Key, string(j.Kind), j.Reason, dash(j.Destination), span(s.Now.Sub(j.Started))})
		}
		table(a.out, []string{"RUNNING", "KEY", "KIND", "REASON", "DESTINATION", "SINCE"}, rows)
	}
	if len(s.Next) > 0 {
		fmt.Fprintln(a.out)
		rows = rows[:0]
		const most = 10
		for _, e := range s.Next[:min(len(s.Next), most)] {
			rows = append(rows, []string{e.Key, e.ValidTo.UTC().Format("2006-01-02 15:04"), "in " + span(e.ValidTo.Sub(s.Now)), "in " + span(e.Renewal.Sub(s.Now)), e.Destination})
		}
		table(a.out, []string{"EXPIRES NEXT", "AT (UTC)", "", "RENEWAL", "DESTINATION"}, rows)
		if more := n.Expiring - len(rows); more > 0 {
			fmt.Fprintf(a.out, "  and %d later (of one key: hsmbridge status NAME)\n", more)
		}
	}
}

// printAudit tells of the audit log and of what officers are asked for.
func (a *app) printAudit(s control.Status) {
	log := s.Audit
	line := "audit log: " + counted(int(log.Records), "record")
	switch {
	case !log.Signs:
		line += ", not signed (audit.token)"
	case log.SignedAt.IsZero():
		line += ", not signed yet"
	default:
		line += fmt.Sprintf(", signed up to %d %s ago", log.Signed, span(s.Now.Sub(log.SignedAt)))
	}
	if s.Requests > 0 {
		line += fmt.Sprintf("; requests for approval: %d (hsmbridge requests)", s.Requests)
	}
	fmt.Fprintln(a.out, line)
	if log.Problem != "" {
		wrapped(a.out, "! ", "  ", "the audit log could not be signed: "+firstLine(log.Problem))
	}
	for _, x := range log.Exports {
		if x.Problem != "" {
			wrapped(a.out, "! ", "  ", fmt.Sprintf("the audit log could not be copied to %s, %d records are not there: %s", x.To, x.Behind, firstLine(x.Problem)))
		}
	}
}

// span is a duration as people say it.
func span(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d < 0:
		return "0s"
	case d >= 2*day:
		return fmt.Sprintf("%dd", d/day)
	case d >= 2*time.Hour:
		return fmt.Sprintf("%dh", d/time.Hour)
	case d >= 2*time.Minute:
		return fmt.Sprintf("%dm", d/time.Minute)
	}
	return fmt.Sprintf("%ds", d/time.Second)
}

func (a *app) keyStatus(ctx context.Context, c *control.Client, name string) error {
	list, err := c.Keys(ctx, name)
	if err != nil {
		return err
	}
	k := list[0]
	if a.json {
		return writeJSON(a.out, k)
	}
	a.printKey(k)
	return nil
}

func (a *app) printKey(k control.ManagedKey) {
	where := "token " + k.Token
	if len(k.Tokens) > 1 {
		where = "tokens " + strings.Join(k.Tokens, ", ")
	}
	if k.Removed {
		fmt.Fprintf(a.out, "%s, revoked and no longer in the configuration\n", k.Name)
	} else {
		fmt.Fprintf(a.out, "%s, %s in %s, expires %s\n", k.Name, k.KeySpec, where, k.Expires)
	}
	for _, line := range [][2]string{
		{"paused", since(k.State.PausedAt, k.State.PausedBy, "")},
		{"revoked", since(k.State.RevokedAt, k.State.RevokedBy, k.State.RevokedReason)},
		{"deletion", deletion(k)},
		{"waived", prefixed("backup, ", since(k.State.WaivedAt, k.State.WaivedBy, k.State.WaivedReason))},
		{"rotated", moment(k.State.RotatedAt, false)},
		{"error", k.State.Error},
	} {
		if line[1] != "" {
			wrappedLines(a.out, fmt.Sprintf("  %-12s ", line[0]), "               ", line[1], 0, "")
		}
	}
	for i, d := range k.Destinations {
		fmt.Fprintf(a.out, "\n%s\n", d.Destination)
		for _, line := range [][2]string{
			{"KMS key", dash(d.State)},
			{"material ID", d.MaterialID},
			{"expires", moment(d.ValidTo, d.Present)},
			{"renewal", moment(k.Renewals[i], false)},
			{"imported", moment(d.ImportedAt, false)},
			{"first seen", firstSeen(d.FirstSeenAt)},
			{"proof", d.Proof},
			{"last drill", moment(d.DrilledAt, false)},
			{"seen", moment(d.SeenAt, false)},
			{"error", d.Error},
		} {
			if line[1] != "" {
				wrappedLines(a.out, fmt.Sprintf("  %-12s ", line[0]), "               ", line[1], 0, "")
			}
		}
	}
	if len(k.Materials) > 0 {
		fmt.Fprintln(a.out)
		var rows [][]string
		for _, m := range k.Materials {
			rows = append(rows, []string{strconv.FormatInt(m.Generation, 10), m.Object, dash(m.CheckValue), moment(m.Current, false)})
		}
		table(a.out, []string{"GENERATION", "OBJECT", "CHECK VALUE", "IN USE SINCE"}, rows)
	}
	a.printReplicas(k.Replicas)
}

// since tells of an act of a person; empty: there was none.
func since(at time.Time, by, reason string) string {
	if at.IsZero() {
		return ""
	}
	s := moment(at, false) + " by " + by
	if reason != "" {
		s += ": " + reason
	}
	return s
}

// firstSeen tells of material that KMS was found to hold, and that no import here is known to have put there.
func firstSeen(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return moment(t, false) + ", KMS held it already; the journal has no import that KMS confirmed"
}

func moment(t time.Time, never bool) string {
	switch {
	case !t.IsZero():
		return t.UTC().Format(time.RFC3339)
	case never:
		return "never"
	}
	return ""
}

func (a *app) jobsCommand() *cobra.Command {
	var f store.JobFilter
	c := &cobra.Command{
		Use: "jobs [NAME]", Short: "List jobs, the latest first",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.daemon()
			if err != nil {
				return err
			}
			if len(args) == 1 {
				f.Key = args[0]
			}
			list, err := c.Jobs(cmd.Context(), f)
			if err != nil {
				return err
			}
			if len(list) > 0 || a.json {
				return a.printJobs(list)
			}
			err = a.none(cmd.Context(), c, f.Key, "no jobs")
			var answer *control.Error
			if meant := meantCommand(cmd, f.Key); meant != "" && errors.As(err, &answer) && answer.Status == http.StatusNotFound {
				return &exitError{exitUsage, fmt.Errorf("there is no key %q, and no command%s", f.Key, meant)}
			}
			return err
		},
	}
	c.Flags().BoolVar(&f.Open, "open", false, "only those that are queued, running or waiting")
	c.Flags().IntVar(&f.Limit, "limit", 50, "at most so many")
	c.Flags().Int64Var(&f.Before, "before", 0, "only those before this `number`: the page behind the last one shown")
	cancel := &cobra.Command{
		Use: "cancel NUMBER...", Short: "End jobs; a running one stops before its next step", Args: cobra.MinimumNArgs(1),
		Long: `End jobs. A running one stops before its next step, and what is due is queued again. A job that deletes the material of a revoked key is not
ended while KMS holds that, because it would be begun again at once: to have the key back, run hsmbridge restore.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.eachSays(args, func(c *control.Client, n string) (string, error) {
				id, err := strconv.ParseInt(n, 10, 64)
				if err != nil {
					return "", usageError(fmt.Errorf("%q is not the number of a job", n))
				}
				left, err := c.Cancel(cmd.Context(), id)
				return "cancelled" + prefixed("; ", left), err
			})
		},
	}
	cancel.Flags().StringVar(&a.socket, "socket", "", "the daemon's control `socket`, in place of the configuration's")
	c.AddCommand(cancel)
	return a.jsonFlag(c, "print one JSON object per job, each on a line")
}

// none says that there is nothing to show; a key that the daemon does not know is an error.
func (a *app) none(ctx context.Context, c *control.Client, key, what string) error {
	if key != "" {
		if _, err := c.Keys(ctx, key); err != nil {
			return err
		}
	}
	fmt.Fprintln(a.out, what)
	return nil
}

func (a *app) printJobs(list []store.Job) error {
	if a.json {
		for _, j := range list {
			if err := writeJSON(a.out, j); err != nil {
				return err
			}
		}
		return nil
	}
	rows := make([][]string, 0, len(list))
	for _, j := range list {
		when := j.Created
		if !j.Finished.IsZero() {
			when = j.Finished
		}
		rows = append(rows, []string{strconv.FormatInt(j.ID, 10), j.Key, string(j.Kind), j.Reason, string(j.State), strconv.FormatInt(j.Attempts, 10), when.UTC().Format("2006-01-02 15:04:05"), j.RequestedBy})
	}
	table(a.out, []string{"JOB", "KEY", "KIND", "REASON", "STATE", "ATTEMPTS", "AT (UTC)", "BY"}, rows)
	most := 0 // of one key all is told
	if slices.ContainsFunc(list, func(j store.Job) bool { return j.Key != list[0].Key }) {
		most = fewLines
	}
	for _, j := range list {
		if j.Error == "" || j.State == store.Cancelled {
			continue
		}
		first := fmt.Sprintf("%d: ", j.ID)
		switch j.State {
		case store.Waiting:
			first += "next try " + j.NotBefore.UTC().Format(time.RFC3339) + ": "
		case store.Running, store.Queued:
			first += "the attempt before: "
		case store.Done, store.Failed, store.Cancelled:
		}
		fmt.Fprintln(a.out)
		wrappedLines(a.out, first, "  ", j.Error, most, "hsmbridge jobs "+j.Key)
	}
	return nil
}

func (a *app) eventsCommand() *cobra.Command {
	var f store.EventFilter
	var follow bool
	c := &cobra.Command{
		Use: "events", Short: "The journal: every step of every job and every act of a person",
		Example: "  hsmbridge events --follow\n  hsmbridge events --job 4711 --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.daemon()
			if err != nil {
				return err
			}
			found := false
			err = c.Events(cmd.Context(), f, follow, func(e store.Event) error {
				found = true
				if a.json {
					return writeJSON(a.out, e)
				}
				a.printEvent(e)
				return nil
			})
			switch {
			case follow && cmd.Context().Err() != nil:
				return shownInterrupt() // that is how it ends
			case err == nil && !found && !a.json:
				return a.none(cmd.Context(), c, f.Key, "no events")
			}
			return err
		},
	}
	fl := c.Flags()
	fl.BoolVarP(&follow, "follow", "f", false, "go on with those that come, until interrupted")
	fl.StringVar(&f.Key, "key", "", "only those of this key")
	fl.Int64Var(&f.Job, "job", 0, "only those of this job")
	fl.Int64Var(&f.After, "after", 0, "only those with a greater ID")
	fl.IntVar(&f.Last, "last", 50, "at most so many, the latest; 0: from the first on, 1000 at a time")
	return a.jsonFlag(c, "print one JSON object per event, each on a line")
}

func (a *app) printEvent(e store.Event) {
	what := e.Key
	if e.Job != 0 {
		what += fmt.Sprintf(" #%d", e.Job)
	}
	fmt.Fprintf(a.out, "%s  %-12s %-20s %s", e.Time.UTC().Format("2006-01-02 15:04:05"), e.Kind, strings.TrimSpace(what), printable(firstLine(e.Message)))
	if !slices.Contains([]string{"", e.Key}, e.Actor) && !strings.HasPrefix(e.Kind, "finished") {
		fmt.Fprintf(a.out, "  (%s)", e.Actor)
	}
	fmt.Fprintln(a.out)
}
