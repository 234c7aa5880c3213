package configs

import (
	"bytes"
	"encoding"
	"math"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"
)

// texts are the values of the configuration that have a text of their own.
func texts() map[string]func() interface {
	encoding.TextMarshaler
	encoding.TextUnmarshaler
} {
	type value = interface {
		encoding.TextMarshaler
		encoding.TextUnmarshaler
	}
	return map[string]func() value{
		"duration":    func() value { return new(Duration) },
		"timeout":     func() value { return new(Timeout) },
		"rate":        func() value { return new(Rate) },
		"destination": func() value { return new(Destination) },
	}
}

// FuzzTexts holds that what is taken as a duration, a timeout, a rate or a destination is written so that it is read as the same again, in one
// form; and that no length of time is negative and no rate infinite.
func FuzzTexts(f *testing.F) {
	for _, s := range []string{
		"90d", "1d12h", "8760h", "never", "99999d99999h99999m", "0d", "2m", "120s", "9999m", "1/s", "0.25/s", "30/m", "100/h", "0.000001/h", "999999.999999/s",
		"arn:aws:kms:eu-central-1:111122223333:key/1", "arn:aws-us-gov:kms:us-gov-west-1:111122223333:key/mrk-0", "arn:aws:kms:eu-central-1:111122223333:alias/a", "a:b:c:d:e:f:g",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for name, empty := range texts() {
			v := empty()
			if err := v.UnmarshalText([]byte(s)); err != nil {
				if err.Error() == "" {
					t.Errorf("%s: %q is refused without a reason", name, s)
				}
				continue
			}
			text, err := v.MarshalText()
			if err != nil {
				t.Fatalf("%s %q: %v", name, s, err)
			}
			again := empty()
			if err := again.UnmarshalText(text); err != nil {
				t.Fatalf("%s: %q is written as %q, which is not read: %v", name, s, text, err)
			}
			if once, err := again.MarshalText(); err != nil || !bytes.Equal(once, text) {
				t.Errorf("%s: %q is written as %q and then as %q (%v)", name, s, text, once, err)
			}
			if !reflect.DeepEqual(v, again) {
				t.Errorf("%s: %q is written as %q, which is another", name, s, text)
			}
			switch v := v.(type) {
			case *Duration:
				if *v < 0 || *v == Never && s != "never" {
					t.Errorf("%q is %s", s, time.Duration(*v))
				}
			case *Timeout:
				if *v < 0 {
					t.Errorf("%q is %s", s, time.Duration(*v))
				}
			case *Rate:
				if r := v.PerSecond(); !(r > 0) || math.IsInf(r, 0) {
					t.Errorf("%q is %v a second", s, r)
				}
			case *Destination:
				if string(text) != s || len(v.Account()) != 12 || v.Region() == "" || v.KeyID() == "" || strings.ContainsAny(v.KeyID(), ":/\n") {
					t.Errorf("%q: region %q, account %q, key %q", s, v.Region(), v.Account(), v.KeyID())
				}
			}
		}
	})
}

// moments are those from which schedules and windows are asked: the days on which clocks change, and others.
func moment(n int64) time.Time {
	begin := time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)
	const span = 20 * 365 * 24 * 3600
	return begin.Add(time.Duration(((n%span)+span)%span) * time.Second)
}

// FuzzSchedule holds that the times of every schedule that is taken go on, forwards, and that none is left out: asked from anywhere between two
// of them, the next is the same.
func FuzzSchedule(f *testing.F) {
	f.Add("0 3 1 * *", "Europe/Berlin", int64(7516800))
	f.Add("*/5 * * * 1-5", "", int64(1))
	f.Add("30 2 29 2 *", "America/New_York", int64(0))
	f.Add("0 0 31 * 7", "Australia/Lord_Howe", int64(86399))
	f.Add("TZ=UTC 0 3 1 * *", "", int64(0))
	f.Add("@every 1s", "", int64(0))
	f.Add("0 0 30 2 *", "", int64(0))
	f.Fuzz(func(t *testing.T, text, zone string, n int64) {
		s, err := Schedule{Cron: text, TimeZone: zone}.Parse()
		if err != nil {
			if err.Error() == "" {
				t.Error("refused without a reason")
			}
			return
		}
		from := moment(n)
		first := s.Next(from)
		if first.IsZero() || !first.After(from) {
			t.Fatalf("%q in %q: after %s comes %s", text, zone, from, first)
		}
		half := from.Add(first.Sub(from) / 2)
		if again := s.Next(half); !again.Equal(first) {
			t.Errorf("%q in %q: after %s comes %s, and after %s comes %s", text, zone, from, first, half, again)
		}
		if second := s.Next(first); !second.After(first) {
			t.Errorf("%q in %q: after %s comes %s", text, zone, first, second)
		}
	})
}

// FuzzWindow holds a window against the clock on the wall, in time zones whose clocks do not change; in all others that it opens, at the
// beginning of an opening, and that it does not open before.
func FuzzWindow(f *testing.F) {
	f.Add("mon tue", "22:00", "06:00", "Europe/Berlin", int64(7516800))
	f.Add("", "00:00", "24:00", "", int64(0))
	f.Add("sun", "02:30", "02:45", "America/New_York", int64(5918400))
	f.Add("sat", "23:59", "00:00", "Pacific/Apia", int64(1))
	f.Add("fri", "24:00", "01:00", "", int64(1))
	f.Fuzz(func(t *testing.T, days, from, to, zone string, n int64) {
		w := Window{Days: strings.Fields(days), From: from, To: to, TimeZone: zone}
		o, err := w.Parse()
		if err != nil || w.IsZero() {
			return
		}
		at := moment(n)
		next := o.Next(at)
		if next.Before(at) || next.Sub(at) > 15*day {
			t.Fatalf("%+v: at %s it opens %s", w, at, next)
		}
		if !o.Contains(next) || o.Contains(at) != next.Equal(at) {
			t.Errorf("%+v: at %s it opens %s, when it is not open", w, at, next)
		}
		if next.After(at) && (o.Contains(next.Add(-time.Second)) || !o.Next(at.Add(next.Sub(at)/2)).Equal(next)) {
			t.Errorf("%+v: at %s it opens %s, and before", w, at, next)
		}
		if !regexp.MustCompile(`^(UTC|Etc/GMT[+-]\d+|Asia/(Kolkata|Tokyo|Dubai)|)$`).MatchString(zone) {
			return
		}
		if got, want := o.Contains(at), onTheWall(w, at.In(o.zone)); got != want {
			t.Errorf("%+v is open at %s: %t", w, at.In(o.zone), got)
		}
	})
}

// onTheWall says whether a window is open by what a clock and a calendar on the wall show.
func onTheWall(w Window, at time.Time) bool {
	opens := func(day time.Time) bool {
		name := strings.ToLower(day.Weekday().String()[:3])
		for _, d := range w.Days {
			if d == name {
				return true
			}
		}
		return len(w.Days) == 0
	}
	now := at.Format("15:04")
	if w.From < w.To {
		return opens(at) && w.From <= now && now < w.To
	}
	return opens(at) && w.From <= now || opens(at.AddDate(0, 0, -1)) && now < w.To
}
