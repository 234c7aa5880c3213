package schedule

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

const day = 24 * time.Hour

func at(s string) time.Time {
	t, err := time.Parse("2006-01-02 15:04", s)
	if err != nil {
		panic(err)
	}
	return t
}

// nights is a window from 01:00 to 04:00 in UTC.
type nights struct{}

func (nights) Contains(t time.Time) bool { return t.Hour() >= 1 && t.Hour() < 4 }

func (n nights) Next(t time.Time) time.Time {
	if n.Contains(t) {
		return t
	}
	next := time.Date(t.Year(), t.Month(), t.Day(), 1, 0, 0, 0, time.UTC)
	if next.Before(t) {
		next = next.AddDate(0, 0, 1)
	}
	return next
}

// never opens.
type closed struct{}

func (closed) Contains(time.Time) bool    { return false }
func (closed) Next(t time.Time) time.Time { return t.Add(30 * day) }

// monthly is 03:00 on the first of a month.
type monthly struct{}

func (monthly) Next(t time.Time) time.Time {
	next := time.Date(t.Year(), t.Month(), 1, 3, 0, 0, 0, time.UTC)
	if !next.After(t) {
		next = next.AddDate(0, 1, 0)
	}
	return next
}

func TestDue(t *testing.T) {
	now := at("2027-03-10 12:00")
	held := State{Present: true, ValidTo: now.Add(80 * day), Life: 90 * day, First: now.Add(-10 * day), Imported: now.Add(-10 * day), Drilled: now.Add(-10 * day)}
	with := func(change func(*State)) *State { s := held; change(&s); return &s }
	for _, tc := range []struct {
		name  string
		key   Key
		whole KeyState
		state *State
		want  []Reason
	}{
		{name: "new", state: nil, want: []Reason{First}},
		{name: "known and never imported", state: &State{Present: true, ValidTo: now.Add(day)}, want: []Reason{First}},
		{name: "held", state: &held},
		{name: "gone", state: with(func(s *State) { s.Present = false }), want: []Reason{Restore}},
		{name: "gone, outside of the window", key: Key{Window: closed{}}, state: with(func(s *State) { s.Present = false }), want: []Reason{Restore}},
		{name: "expired and not yet seen", state: with(func(s *State) { s.ValidTo = now }), want: []Reason{Restore}},
		{name: "expires soon", state: with(func(s *State) { s.ValidTo = now.Add(29 * day) }), want: []Reason{Renew}},
		{name: "expires soon, a job is open", state: with(func(s *State) { s.ValidTo, s.Open = now.Add(29*day), true })},
		{name: "expires soon, a person is needed", state: with(func(s *State) { s.ValidTo, s.NeedsPerson = now.Add(29*day), true })},
		{name: "expires soon, paused", whole: KeyState{Paused: true}, state: with(func(s *State) { s.ValidTo = now.Add(29 * day) })},
		{name: "gone, revoked", whole: KeyState{Revoked: true}, state: with(func(s *State) { s.Present = false })},
		{name: "revoked, and there", whole: KeyState{Revoked: true}, state: &held, want: []Reason{Revoked}},
		{name: "revoked, paused, and there", whole: KeyState{Revoked: true, Paused: true}, state: &held, want: []Reason{Revoked}},
		{name: "new, paused", whole: KeyState{Paused: true}},
		{name: "expires soon, the window opens in time", key: Key{Window: nights{}}, state: with(func(s *State) { s.ValidTo = now.Add(29 * day) })},
		{name: "expires soon, the window opens too late", key: Key{Window: closed{}}, state: with(func(s *State) { s.ValidTo = now.Add(29 * day) }), want: []Reason{Renew}},
		{name: "never expires", key: Key{Expires: -1}, state: with(func(s *State) { s.ValidTo, s.Life = time.Time{}, 0 })},
		{name: "another life is asked for", state: with(func(s *State) { s.Life = 60 * day }), want: []Reason{Changed}},
		{name: "another life is asked for, outside of the window", key: Key{Window: nights{}}, state: with(func(s *State) { s.Life = 60 * day })},
		{name: "scheduled and not yet", key: Key{Cron: monthly{}}, state: with(func(s *State) { s.Imported = at("2027-03-01 03:00") })},
		{name: "scheduled", key: Key{Cron: monthly{}}, state: with(func(s *State) { s.Imported = at("2027-02-28 03:00") }), want: []Reason{Schedule}},
		{name: "scheduled, after months without a daemon: once", key: Key{Cron: monthly{}}, state: with(func(s *State) { s.Imported = at("2026-10-28 03:00") }), want: []Reason{Schedule}},
		{name: "scheduled and done", key: Key{Cron: monthly{}}, state: with(func(s *State) { s.Imported, s.Scheduled = at("2027-02-28 03:00"), at("2027-03-01 03:00") })},
		{name: "drilled lately", key: Key{DrillEvery: 30 * day}, state: &held},
		{name: "drill", key: Key{DrillEvery: 10 * day}, state: &held, want: []Reason{Drill}},
		{name: "rotation not yet", key: Key{RotateEvery: 30 * day}, state: &held},
		{name: "rotation", key: Key{RotateEvery: 10 * day}, state: &held, want: []Reason{Rotate}},
		{name: "rotated lately", key: Key{RotateEvery: 10 * day}, whole: KeyState{Rotated: now.Add(-day)}, state: &held},
		{name: "rotation, renewed lately", key: Key{RotateEvery: 10 * day}, state: with(func(s *State) { s.Imported = now.Add(-time.Hour) }), want: []Reason{Rotate}},
		{name: "rotation, a person is needed", key: Key{RotateEvery: 10 * day}, whole: KeyState{NeedsPerson: true}, state: &held},
		{name: "a rotation that needs a person stops no renewal", key: Key{RotateEvery: 10 * day}, whole: KeyState{NeedsPerson: true}, state: with(func(s *State) { s.ValidTo = now.Add(29 * day) }), want: []Reason{Renew}},
		{name: "rotation waits for material", key: Key{RotateEvery: 10 * day}, state: with(func(s *State) { s.Present = false }), want: []Reason{Restore}},
		{name: "the clock was set back", state: with(func(s *State) { s.ValidTo, s.Imported = now.Add(400*day), now.Add(300*day) })},
	} {
		t.Run(tc.name, func(t *testing.T) {
			k := tc.key
			k.Name, k.Token, k.Destinations = "payments", "hsm", []string{"arn"}
			if k.Expires == 0 {
				k.Expires, k.RenewBefore = 90*day, 30*day
			} else {
				k.Expires = max(0, k.Expires) // -1: never
			}
			h := History{Keys: map[string]KeyState{"payments": tc.whole}, Targets: map[Target]State{}}
			if tc.state != nil {
				h.Targets[Target{"payments", "arn"}] = *tc.state
			}
			var got []Reason
			for _, j := range Due(now, []Key{k}, h) {
				got = append(got, j.Reason)
				if whole := j.Reason == Rotate || j.Reason == Revoked; whole != (j.Destination == "") || (j.Token != "hsm") != (j.Reason == Revoked) {
					t.Errorf("job %+v", j)
				}
			}
			if !slices.Equal(got, tc.want) {
				t.Errorf("due is %v, want %v", got, tc.want)
			}
		})
	}
}

// What was imported on one day is renewed on many days, and never later than asked for.
func TestRenewalsAreSpread(t *testing.T) {
	imported := at("2027-01-01 00:00")
	perDay := map[int]int{}
	const keys = 10000
	for i := range keys {
		k := Key{Name: fmt.Sprintf("key-%05d", i), Expires: 90 * day, RenewBefore: 30 * day}
		s := State{Present: true, Imported: imported, ValidTo: imported.Add(90 * day), Life: 90 * day}
		when := k.Renewal(Target{k.Name, "arn"}, s)
		if last := imported.Add(60 * day); when.After(last) || when.Before(last.Add(-15*day)) {
			t.Fatalf("%s is renewed on %s", k.Name, when)
		}
		perDay[int(when.Sub(imported)/day)]++
	}
	if len(perDay) < 15 {
		t.Errorf("renewals fall on %d days", len(perDay))
	}
	for d, n := range perDay {
		if n > keys/12 {
			t.Errorf("%d of %d renewals fall on day %d", n, keys, d)
		}
	}
}

func TestUrgentFirst(t *testing.T) {
	now := at("2027-03-10 12:00")
	state := func(validTo time.Duration, present bool) State {
		return State{Present: present, ValidTo: now.Add(validTo), Life: 90 * day, Imported: now.Add(-60 * day)}
	}
	keys := []Key{{Name: "k", Destinations: []string{"new", "soon", "sooner", "gone"}, Expires: 90 * day, RenewBefore: 30 * day}}
	h := History{Targets: map[Target]State{{"k", "soon"}: state(9*day, true), {"k", "sooner"}: state(5*day, true), {"k", "gone"}: state(80*day, false)}}
	var got []string
	for _, j := range Due(now, keys, h) {
		got = append(got, j.Destination)
	}
	if want := []string{"gone", "new", "sooner", "soon"}; !slices.Equal(got, want) {
		t.Errorf("the order is %v, want %v", got, want)
	}
}

// fleet is n keys with a tenth of them due.
func fleet(n int, now time.Time) ([]Key, History) {
	keys := make([]Key, n)
	h := History{Keys: map[string]KeyState{}, Targets: make(map[Target]State, n)}
	for i := range keys {
		name := fmt.Sprintf("key-%06d", i)
		keys[i] = Key{Name: name, Token: "hsm", Destinations: []string{"arn:" + name}, Expires: 90 * day, RenewBefore: 30 * day, RotateEvery: 365 * day, DrillEvery: 180 * day, Window: nights{}, Cron: monthly{}}
		h.Targets[Target{name, "arn:" + name}] = State{
			Present: true, Life: 90 * day, ValidTo: now.Add(time.Duration(i%90) * day), First: now.Add(-400 * day), Imported: now.Add(time.Duration(i%90-90) * day),
		}
	}
	return keys, h
}

func BenchmarkDue100000(b *testing.B) {
	now := at("2027-03-10 02:00")
	keys, h := fleet(100000, now)
	b.ReportAllocs()
	for b.Loop() {
		if len(Due(now, keys, h)) == 0 {
			b.Fatal("nothing is due")
		}
	}
}
