package main

import (
	"bytes"
	"fmt"
	"slices"
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
	p := progress{out: &out, all: 1000, began: began, shown: true, live: true}
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

// Where nobody's terminal is, a line comes every half minute.
func TestProgressInALog(t *testing.T) {
	var out strings.Builder
	began := time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
	p := progress{out: &out, all: 100, began: began, shown: true}
	for second := range 100 {
		p.show(began.Add(time.Duration(second)*time.Second), second, 0)
	}
	p.end()
	want := "hsmbridge: 31 of 100 destinations (31 %), 1.0 a second, 1m9s left\nhsmbridge: 62 of 100 destinations (62 %), 1.0 a second, 38s left\nhsmbridge: 93 of 100 destinations (93 %), 1.0 a second, 7s left\n"
	if out.String() != want {
		t.Errorf("%q\nwant %q", out.String(), want)
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

// Whoever comes back to a bulk sees all of it, also when few of its imports are left; what is done by schedule is none.
func TestBulkOf(t *testing.T) {
	now := time.Date(2027, 3, 1, 12, 0, 0, 0, time.UTC)
	made := func(n int, reason string, at time.Time, state store.State) (list []store.Job) {
		for range n {
			list = append(list, store.Job{Kind: store.KindImport, Reason: reason, Created: at, State: state})
		}
		return list
	}
	began := now.Add(-5 * time.Minute)
	for _, tt := range []struct {
		name string
		jobs []store.Job
		want int
	}{
		{"three are left", slices.Concat(made(3, "asked for", began, store.Queued), made(297, "asked for", began, store.Done)), 300},
		{"and one failed", slices.Concat(made(3, "asked for", began, store.Running), made(1, "asked for", began, store.Failed), made(26, "asked for", began, store.Done)), 30},
		{"a bulk of yesterday", slices.Concat(made(2, "asked for", began, store.Queued), made(300, "asked for", began.Add(-24*time.Hour), store.Done)), 0},
		{"all is done", made(300, "asked for", began, store.Done), 0},
		{"by schedule", made(300, "renewal", began, store.Queued), 0},
	} {
		if got := bulkOf(tt.jobs, now); len(got) != tt.want {
			t.Errorf("%s: %d, want %d", tt.name, len(got), tt.want)
		}
	}
}

func TestPeopleByCause(t *testing.T) {
	var out bytes.Buffer
	a := &app{out: &out}
	var list []control.NeedsPerson
	for i, key := range []string{"sig-1", "sig-2"} {
		uuid := fmt.Sprintf("1234abcd-12ab-34cd-56ef-1234567890a%d", i)
		list = append(list, control.NeedsPerson{Key: key, Destination: "arn:" + key, Message: key + " was not imported (request " + uuid + "):\n  no algorithm is left", Retry: "hsmbridge retry " + key})
	}
	a.people(append(list, control.NeedsPerson{Token: "hsm", Message: "the PIN was refused", Retry: "hsmbridge retry --token hsm"}))
	want := `
what needs a person:
sig-1 arn:sig-1
sig-2 arn:sig-2
  sig-1 was not imported (request 1234abcd-12ab-34cd-56ef-1234567890a0):
  no algorithm is left
  then: hsmbridge retry sig-1
  then: hsmbridge retry sig-2
hsm
  the PIN was refused
  then: hsmbridge retry --token hsm
`
	if got := out.String(); got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
}
