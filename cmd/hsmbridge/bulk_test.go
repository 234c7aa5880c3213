package main

import (
	"strings"
	"testing"
	"time"

	"hsmbridge/daemon/control"
	"hsmbridge/daemon/store"
)

// The line tells the rate of the last minute and the time that is left, once both are known.
func TestProgressLine(t *testing.T) {
	var out strings.Builder
	began := time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
	p := progress{out: &out, all: 1000, began: began, shown: true}
	for _, step := range []struct {
		after       time.Duration
		done, stuck int
		want        string
	}{
		{0, 0, 0, "0 of 1000 destinations (0 %)"},
		{10 * time.Second, 200, 0, "200 of 1000 destinations (20 %), 20.0 a second, 40s left"},
		{2 * time.Minute, 220, 2, "220 of 1000 destinations (22 %), 0.2 a second, 1h11m19s left; 2 wait for a person or for long"},
		{3 * time.Minute, 998, 2, "998 of 1000 destinations (99 %), 13.0 a second; 2 wait for a person or for long"},
	} {
		out.Reset()
		p.show(began.Add(step.after), step.done, step.stuck)
		if got := strings.TrimSpace(out.String()); got != step.want {
			t.Errorf("after %s: %q, want %q", step.after, got, step.want)
		}
	}
	p.end()
	if !strings.HasSuffix(out.String(), "\n") {
		t.Error("the line does not end")
	}
}

// What waits for officers, or for hours, is not waited for.
func TestMoves(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		job  store.Job
		want bool
	}{
		{store.Job{State: store.Queued}, true},
		{store.Job{State: store.Running}, true},
		{store.Job{State: store.Waiting, NotBefore: now.Add(time.Minute)}, true},
		{store.Job{State: store.Waiting, NotBefore: now.Add(time.Hour)}, false},
		{store.Job{State: store.Waiting, NotBefore: now, ErrorClass: control.ClassApproval}, false},
		{store.Job{State: store.Done}, false},
		{store.Job{State: store.Failed}, false},
	} {
		if got := moves(c.job, now); got != c.want {
			t.Errorf("%+v moves: %v", c.job, got)
		}
	}
}
