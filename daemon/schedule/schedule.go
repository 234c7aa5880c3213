// Package schedule says what is due. It is pure: a time, the managed keys and what is known of them go in, jobs come out. The
// daemon asks it at its start and every minute.
package schedule

import (
	"cmp"
	"hash/fnv"
	"io"
	"slices"
	"time"
)

// Reason is why a job is due.
type Reason string

// The reasons, the most urgent first.
const (
	Revoked  Reason = "revoked"  // the key was revoked, and KMS has its material all the same
	Restore  Reason = "restore"  // KMS had the material and has it no more
	First    Reason = "first"    // the destination never got the material
	Renew    Reason = "renew"    // the material expires
	Changed  Reason = "changed"  // the configuration asks for another life than the material has
	Rotate   Reason = "rotate"   // new material is due
	Schedule Reason = "schedule" // the key's schedule says so
	Drill    Reason = "drill"    // it is long ago that the token's copy was proved to work
)

// urgency orders the reasons.
func (r Reason) urgency() int {
	return slices.Index([]Reason{Revoked, Restore, First, Renew, Changed, Rotate, Schedule, Drill}, r)
}

// Window says when a key may be renewed, rotated and drilled.
type Window interface {
	Contains(t time.Time) bool
	Next(t time.Time) time.Time // the beginning of the next opening, t itself inside of one
}

// Cron gives the next time of a schedule after t.
type Cron interface {
	Next(t time.Time) time.Time
}

// Key is what the planner has to know of a managed key's configuration.
type Key struct {
	Name         string
	Token        string
	Destinations []string
	Expires      time.Duration // life of the material in KMS; 0: for ever
	RenewBefore  time.Duration // how long before its end it is renewed
	RotateEvery  time.Duration // 0: never
	DrillEvery   time.Duration // 0: never
	Cron         Cron          // nil: none
	Window       Window        // nil: always open
}

// Target is one destination of one key.
type Target struct{ Key, Destination string }

// State is what is known of a target.
type State struct {
	Open        bool // a job for it is queued, running or waiting
	NeedsPerson bool // the last job ended with something that only a person can mend
	Present     bool // KMS was seen to hold the material
	ValidTo     time.Time
	Life        time.Duration // that was asked for at the last import
	First       time.Time     // the first time that KMS took it; zero: never, or not known
	Imported    time.Time     // the last time that KMS took the material; zero: never
	Drilled     time.Time
	Scheduled   time.Time // the last import by schedule
}

// KeyState is what is known of a key as a whole.
type KeyState struct {
	Open        bool // a job for the whole key is queued, running or waiting
	NeedsPerson bool
	Paused      bool
	Revoked     bool
	Rotated     time.Time
}

// History is all that is known. A target or key that is not in it is new.
type History struct {
	Targets map[Target]State
	Keys    map[string]KeyState
}

// Job is something that is due.
type Job struct {
	Target // Destination is empty for the key as a whole: Rotate and Revoked
	Token  string
	Reason Reason
	By     time.Time // when it should be done: the more urgent of two jobs with the same reason is earlier
}

// Due lists what has to be begun now, the most urgent first.
func Due(now time.Time, keys []Key, h History) []Job {
	var jobs []Job
	for i := range keys {
		k := &keys[i]
		whole := h.Keys[k.Name]
		if whole.Revoked {
			// Somebody imported it, or a request that was under way at the revocation arrived late.
			if slices.ContainsFunc(k.Destinations, func(d string) bool { return h.Targets[Target{k.Name, d}].Present }) {
				jobs = append(jobs, Job{Target{Key: k.Name}, "", Revoked, now})
			}
			continue
		}
		if whole.Paused {
			continue
		}
		all, first := true, time.Time{}
		for _, d := range k.Destinations {
			t := Target{k.Name, d}
			s, known := h.Targets[t]
			if !s.Present || s.Imported.IsZero() {
				all = false
			}
			if first.IsZero() || s.First.Before(first) {
				first = s.First
			}
			if s.Open || s.NeedsPerson {
				continue
			}
			if reason, by := k.due(now, t, s, known); reason != "" {
				jobs = append(jobs, Job{t, k.Token, reason, by})
			}
		}
		if at := k.rotation(whole, first); all && !at.IsZero() && !now.Before(at) && !whole.Open && !whole.NeedsPerson && k.open(now) {
			jobs = append(jobs, Job{Target{Key: k.Name}, k.Token, Rotate, at})
		}
	}
	slices.SortStableFunc(jobs, func(a, b Job) int {
		return cmp.Or(cmp.Compare(a.Reason.urgency(), b.Reason.urgency()), a.By.Compare(b.By))
	})
	return jobs
}

// due says why a target is due, if it is, and when it should have been done.
func (k *Key) due(now time.Time, t Target, s State, known bool) (Reason, time.Time) {
	switch {
	case !known || s.Imported.IsZero():
		return First, now
	case !s.Present, !s.ValidTo.IsZero() && !s.ValidTo.After(now):
		return Restore, s.ValidTo
	}
	if at := k.Renewal(t, s); !at.IsZero() && !now.Before(at) && (k.open(now) || k.cannotWait(now, s)) {
		return Renew, s.ValidTo
	}
	if !k.open(now) {
		return "", time.Time{}
	}
	if s.Life != k.Expires {
		return Changed, now
	}
	if k.Cron != nil {
		if at := k.Cron.Next(later(s.Scheduled, s.Imported)); !at.IsZero() && !now.Before(at) {
			return Schedule, at
		}
	}
	if k.DrillEvery > 0 {
		if at := early(later(s.Drilled, s.Imported).Add(k.DrillEvery), k.DrillEvery/10, t); !now.Before(at) {
			return Drill, at
		}
	}
	return "", time.Time{}
}

// Renewal is when the target's material is to be renewed; zero: never. It is up to a quarter of what is left of the life before
// RenewBefore, at most 30 days, another time for each target, so that what was imported on one day does not expire on one day.
func (k *Key) Renewal(t Target, s State) time.Time {
	if s.ValidTo.IsZero() {
		return time.Time{}
	}
	spread := min(max(0, s.Life-k.RenewBefore)/4, 30*24*time.Hour)
	return early(s.ValidTo.Add(-k.RenewBefore), spread, t)
}

// cannotWait says that the window opens too late: when half of RenewBefore is over.
func (k *Key) cannotWait(now time.Time, s State) bool {
	last := s.ValidTo.Add(-k.RenewBefore / 2)
	next := k.Window.Next(now)
	return next.IsZero() || next.After(last)
}

// rotation is when the key is to be rotated; zero: never. first is the oldest of its targets' first imports.
func (k *Key) rotation(whole KeyState, first time.Time) time.Time {
	if k.RotateEvery == 0 || first.IsZero() {
		return time.Time{}
	}
	base := whole.Rotated
	if base.IsZero() {
		base = first
	}
	return early(base.Add(k.RotateEvery), k.RotateEvery/10, Target{Key: k.Name})
}

func (k *Key) open(now time.Time) bool { return k.Window == nil || k.Window.Contains(now) }

// early moves a time by a part of spread that depends on the target alone.
func early(at time.Time, spread time.Duration, t Target) time.Time {
	const parts = 1 << 20
	h := fnv.New64a()
	_, _ = io.WriteString(h, t.Key)
	_, _ = h.Write([]byte{0})
	_, _ = io.WriteString(h, t.Destination)
	sum := h.Sum64() * 0x9e3779b97f4a7c15 // FNV alone does not spread names that differ at their end
	return at.Add(-time.Duration(float64(spread) * float64(sum>>44) / parts))
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
