package configs

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/robfig/cron/v3"
)

// Parse reads the schedule. Its times are in the schedule's time zone.
func (s Schedule) Parse() (cron.Schedule, error) {
	zone, err := location(s.TimeZone)
	if err != nil {
		return nil, err
	}
	return parseCron(s.Cron, zone)
}

func parseCron(text string, zone *time.Location) (cron.Schedule, error) {
	const example = `minute, hour, day of the month, month, day of the week, as in "0 3 1 * *"`
	switch {
	case strings.Contains(text, "TZ="):
		return nil, errors.New("the time zone stands in time_zone: leave TZ= out")
	case strings.HasPrefix(text, "@"):
		return nil, fmt.Errorf("%q is not five fields: write %s", text, example)
	}
	if n := len(strings.Fields(text)); n != 5 {
		return nil, fmt.Errorf("%q has %d fields and not five: write %s", text, n, example)
	}
	schedule, err := cron.ParseStandard(text)
	if err != nil {
		return nil, fmt.Errorf("%q: %w; write %s", text, err, example)
	}
	if spec, ok := schedule.(*cron.SpecSchedule); ok {
		spec.Location = zone
	}
	if schedule.Next(time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)).IsZero() {
		return nil, fmt.Errorf("%q never comes: there is no such day", text)
	}
	return schedule, nil
}

// location finds a time zone; without a name it is UTC.
func location(name string) (*time.Location, error) {
	const example = "write a name of the IANA database such as Europe/Berlin, or leave it out for UTC"
	if strings.EqualFold(name, "local") {
		return nil, fmt.Errorf("%q is another time on every machine: %s", name, example)
	}
	zone, err := time.LoadLocation(name)
	if err != nil {
		return nil, fmt.Errorf("there is no time zone %q: %s", name, example)
	}
	return zone, nil
}

// OpenWindow is a [Window] that can be asked. The zero OpenWindow is always open.
type OpenWindow struct {
	days     [7]bool // by time.Weekday
	from, to int     // minutes from the midnight with which the day begins; to is more than from
	zone     *time.Location
}

const dayMinutes = 24 * 60

// Parse reads the window; the zero window is always open.
func (w Window) Parse() (OpenWindow, error) {
	if w.IsZero() {
		return OpenWindow{}, nil
	}
	var o OpenWindow
	for _, name := range w.Days {
		i := slices.Index(weekdays(), name)
		if i < 0 {
			return OpenWindow{}, fmt.Errorf("%q is no day of the week: write mon, tue, wed, thu, fri, sat or sun", name)
		}
		o.days[i] = true
	}
	if len(w.Days) == 0 {
		o.days = [7]bool{true, true, true, true, true, true, true}
	}
	var err error
	if o.from, err = clock(w.From); err != nil {
		return OpenWindow{}, err
	}
	if o.to, err = clock(w.To); err != nil {
		return OpenWindow{}, err
	}
	switch {
	case o.from == dayMinutes:
		return OpenWindow{}, errors.New("a window does not begin at the end of a day: write 00:00, and the day that follows")
	case o.from == o.to:
		return OpenWindow{}, errors.New(`from and to are the same time: write from "00:00" to "24:00" for the whole day`)
	case o.to < o.from:
		o.to += dayMinutes
	}
	if o.zone, err = location(w.TimeZone); err != nil {
		return OpenWindow{}, err
	}
	return o, nil
}

// weekdays is in the order of [time.Weekday].
func weekdays() []string { return []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"} }

const clockPattern = `^(([01]\d|2[0-3]):[0-5]\d|24:00)$`

var clockForm = regexp.MustCompile(clockPattern)

// clock reads a time of day in minutes.
func clock(text string) (int, error) {
	if !clockForm.MatchString(text) {
		return 0, fmt.Errorf(`%q is not a time of day: write HH:MM from "00:00" to "24:00"`, text)
	}
	digit := func(i int) int { return int(text[i] - '0') }
	return (digit(0)*10+digit(1))*60 + digit(3)*10 + digit(4), nil
}

// Contains says whether the window is open at t.
func (o OpenWindow) Contains(t time.Time) bool { return o.Next(t).Equal(t) }

// Next is the beginning of the next opening at or after t; t itself if the window is open then. It is in t's time zone.
//
// Where clocks are put back, a time that comes twice is the first of the two. Where they are put forward, a time that is
// skipped is the first instant after the gap; a window that lies in the gap opens there, and stays open for its length.
func (o OpenWindow) Next(t time.Time) time.Time {
	if o.zone == nil {
		return t
	}
	y, m, d := t.In(o.zone).Date()
	// An opening that began two days ago at most may last until t; a day of the week comes again within seven days, and the
	// day may be one that a time zone has skipped altogether.
	for i := -2; i <= 2*7; i++ {
		if !o.days[time.Date(y, m, d+i, 0, 0, 0, 0, time.UTC).Weekday()] {
			continue
		}
		from, to := atClock(y, m, d+i, o.from, o.zone), atClock(y, m, d+i, o.to, o.zone)
		if !from.Before(to) {
			to = from.Add(time.Duration(o.to-o.from) * time.Minute)
		}
		switch {
		case !t.Before(to):
		case t.Before(from):
			return from.In(t.Location())
		default:
			return t
		}
	}
	return t // not reached: every window has a day
}

// atClock is the first instant at which the clocks of a zone show so many minutes after the beginning of a day, or more.
func atClock(year int, month time.Month, dayOfMonth, minutes int, zone *time.Location) time.Time {
	wall := time.Date(year, month, dayOfMonth, 0, minutes, 0, 0, time.UTC)
	// Go through the periods of constant offset, from one that begins before any zone shows that time.
	for in := wall.Add(-2 * day).In(zone); ; {
		start, end := in.ZoneBounds()
		_, offset := in.Zone()
		at := wall.Add(-time.Duration(offset) * time.Second).In(zone)
		switch {
		case !start.IsZero() && at.Before(start):
			return start // the clocks jumped over it
		case end.IsZero() || at.Before(end):
			return at
		}
		in = end
	}
}
