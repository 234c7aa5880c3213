package configs

import (
	"slices"
	"time"

	"hsmbridge/hsm/wrapping"
)

// renewal checks what the daemon does to a key by itself: renew_before, rotate_every and drill_every.
func (v validator) renewal(path string, k *Key) {
	if at := path + ".renew_before"; v.ok(at) {
		switch expires := path + ".expires"; {
		case k.RenewBefore == Never:
			v.problem(at, "never would let the material expire: leave renew_before out for a third of expires, or write expires: never")
		case v.ok(expires) && k.Expires == Never:
			v.problem(at, "the material never expires, so nothing is renewed before that: leave renew_before out, or import at fixed times by schedule")
		case v.ok(expires) && k.RenewBefore >= k.Expires:
			v.problem(at, "%s is not less than expires (%s): the material would be imported again all the time; a third of expires is usual", k.RenewBefore, k.Expires)
		}
	}
	if at := path + ".rotate_every"; v.ok(at) && k.RotateEvery != Never {
		switch spec := path + ".key_spec"; {
		case v.ok(spec) && k.KeySpec.WhyNot() == "" && k.KeySpec != wrapping.SymmetricDefault:
			v.problem(at, "a KMS key of %s holds one key material for ever, only SYMMETRIC_DEFAULT is rotated: leave rotate_every out, and make a new KMS key for a new key", k.KeySpec)
		case k.RotateEvery.Duration() < day:
			v.problem(at, "%s is less than 1d: each rotation leaves one more key in the token and one more material in KMS", k.RotateEvery)
		case v.ok(path+".uri") && (k.URI.Object == "" || len(k.URI.ID) > 0):
			v.problem(at, "new keys are made as LABEL.2, LABEL.3 and so on, each with an ID of its own: name the key in uri by object=LABEL and without id")
		}
	}
	if at := path + ".drill_every"; v.ok(at) && k.DrillEvery != Never && k.DrillEvery.Duration() < day {
		v.problem(at, "%s is less than 1d: a drill is an import, and the quota of AWS KMS is for the imports that are needed", k.DrillEvery)
	}
}

func (v validator) schedule(path string, s Schedule) {
	v.timeZone(path+".time_zone", s.TimeZone)
	if at := path + ".cron"; v.ok(at) {
		err, seen := v.times["cron "+s.Cron]
		if !seen {
			_, err = parseCron(s.Cron, time.UTC)
			v.times["cron "+s.Cron] = err
		}
		if err != nil {
			v.problem(at, "%v", err)
		}
	}
}

// timeZone checks the name of a time zone. Many keys have the same, which is looked up once.
func (v validator) timeZone(path, name string) {
	if !v.ok(path) {
		return
	}
	err, seen := v.times["zone "+name]
	if !seen {
		_, err = location(name)
		v.times["zone "+name] = err
	}
	if err != nil {
		v.problem(path, "%v", err)
	}
}

func (v validator) window(path string, w Window) {
	v.timeZone(path+".time_zone", w.TimeZone)
	for i, name := range w.Days {
		at := element(path+".days", i)
		switch {
		case !v.ok(at):
		case !slices.Contains(weekdays(), name):
			v.problem(at, "%q is no day of the week: write mon, tue, wed, thu, fri, sat or sun", name)
		case slices.Contains(w.Days[:i], name):
			v.problem(at, "%s is listed twice", name)
		}
		if i == maxProblems {
			return // every further one is a mistake too
		}
	}
	good := true
	for _, end := range []struct{ at, text string }{{path + ".from", w.From}, {path + ".to", w.To}} {
		if !v.ok(end.at) {
			good = false
			continue
		}
		if _, err := clock(end.text); err != nil {
			v.problem(end.at, "%v", err)
			good = false
		}
	}
	if !good {
		return
	}
	if _, err := (Window{From: w.From, To: w.To}).Parse(); err != nil {
		at := path + ".to"
		if w.From == "24:00" {
			at = path + ".from"
		}
		v.problem(at, "%v", err)
	}
}
