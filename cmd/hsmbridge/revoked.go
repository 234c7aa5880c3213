package main

import (
	"fmt"

	"hsmbridge/daemon/control"
	"hsmbridge/daemon/store"
)

// printRemoved tells of revoked keys that the configuration has no more.
func (a *app) printRemoved(s control.Status) {
	if len(s.Removed) == 0 {
		return
	}
	const most = 10
	rows := make([][]string, 0, most)
	for _, r := range s.Removed[:min(len(s.Removed), most)] {
		job := "-"
		if r.Job != 0 {
			job = fmt.Sprintf("%d, %s", r.Job, r.JobState)
		}
		rows = append(rows, []string{r.Name, r.RevokedAt.UTC().Format("2006-01-02 15:04"), r.RevokedBy, fmt.Sprintf("%d of %d", r.Present, r.Destinations), job})
	}
	fmt.Fprintln(a.out)
	table(a.out, []string{"REVOKED, NO LONGER CONFIGURED", "AT (UTC)", "BY", "KMS KEYS THAT HOLD IT", "JOB THAT DELETES IT"}, rows)
	if more := s.Counts.Removed - len(rows); more > 0 {
		fmt.Fprintf(a.out, "  and %d more (of one key: hsmbridge status NAME)\n", more)
	}
}

// deletion tells how far it is that the material of a revoked key is deleted from KMS. Empty: there is nothing to tell.
func deletion(k control.ManagedKey) string {
	held := 0
	for _, d := range k.Destinations {
		if d.Present {
			held++
		}
	}
	switch j := k.Deletion; {
	case j != nil && j.State == store.Waiting:
		return fmt.Sprintf("job %d waits, next try %s", j.ID, moment(j.NotBefore, false))
	case j != nil:
		return fmt.Sprintf("job %d is %s", j.ID, j.State)
	case k.State.Revoked() && held > 0:
		return fmt.Sprintf("not done: when KMS was asked last, %d of %d KMS keys held the material, and no job deletes it", held, len(k.Destinations))
	}
	return ""
}
