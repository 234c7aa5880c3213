package configs

import (
	"testing"
	"time"
)

const clockLayout = "2006-01-02 15:04:05 -0700"

func at(t *testing.T, text string) time.Time {
	t.Helper()
	when, err := time.Parse(clockLayout, text)
	if err != nil {
		t.Fatal(err)
	}
	return when
}

// TestWindow asks for the next opening. 2026-03-29 is the Sunday on which Berlin goes from 02:00 +0100 to 03:00 +0200,
// 2026-10-25 the one on which it goes from 03:00 +0200 back to 02:00 +0100.
func TestWindow(t *testing.T) {
	const berlin = "Europe/Berlin"
	night := Window{Days: []string{"sat"}, From: "22:00", To: "04:00", TimeZone: berlin}
	gap := Window{From: "02:15", To: "02:45", TimeZone: berlin}
	wholeGap := Window{From: "02:00", To: "03:00", TimeZone: berlin}
	intoGap := Window{From: "01:00", To: "02:30", TimeZone: berlin}
	outOfGap := Window{From: "02:30", To: "03:10", TimeZone: berlin}
	overlap := Window{From: "02:15", To: "02:45", TimeZone: berlin}
	overOverlap := Window{From: "02:30", To: "03:30", TimeZone: berlin}
	const open = "open"
	for _, tt := range []struct {
		name, at, want string
		window         Window
	}{
		{"UTC, before", "2026-01-05 08:59:59 +0000", "2026-01-05 09:00:00 +0000", Window{From: "09:00", To: "17:00"}},
		{"UTC, begins", "2026-01-05 09:00:00 +0000", open, Window{From: "09:00", To: "17:00"}},
		{"UTC, last second", "2026-01-05 16:59:59 +0000", open, Window{From: "09:00", To: "17:00"}},
		{"UTC, ended", "2026-01-05 17:00:00 +0000", "2026-01-06 09:00:00 +0000", Window{From: "09:00", To: "17:00"}},
		{"only Mondays", "2026-01-05 17:00:00 +0000", "2026-01-12 09:00:00 +0000", Window{Days: []string{"mon"}, From: "09:00", To: "17:00"}},
		{"whole day", "2026-01-06 00:00:00 +0000", open, Window{From: "00:00", To: "24:00"}},
		{"whole Monday, Tuesday", "2026-01-06 00:00:00 +0000", "2026-01-12 00:00:00 +0000", Window{Days: []string{"mon"}, From: "00:00", To: "24:00"}},
		{"to midnight", "2026-01-05 23:59:59 +0000", open, Window{Days: []string{"mon"}, From: "22:00", To: "00:00"}},
		{"to midnight, ended", "2026-01-06 00:00:00 +0000", "2026-01-12 22:00:00 +0000", Window{Days: []string{"mon"}, From: "22:00", To: "00:00"}},
		{"almost a day", "2026-01-06 08:58:59 +0000", open, Window{From: "09:00", To: "08:59"}},
		{"almost a day, the minute between", "2026-01-06 08:59:00 +0000", "2026-01-06 09:00:00 +0000", Window{From: "09:00", To: "08:59"}},
		{"another zone", "2026-01-04 15:00:00 +0000", open, Window{Days: []string{"mon"}, From: "00:00", To: "01:00", TimeZone: "Asia/Tokyo"}},

		{"night, before", "2026-03-28 20:59:59 +0000", "2026-03-28 21:00:00 +0000", night},
		{"night, over the change", "2026-03-29 01:30:00 +0000", open, night},
		{"night, 03:59:59 in summer", "2026-03-29 01:59:59 +0000", open, night},
		{"night, 04:00 in summer", "2026-03-29 02:00:00 +0000", "2026-04-04 20:00:00 +0000", night},
		{"autumn night, 02:30 the second time", "2026-10-25 01:30:00 +0000", open, night},
		{"autumn night, 03:59:59", "2026-10-25 02:59:59 +0000", open, night},
		{"autumn night, ended", "2026-10-25 03:00:00 +0000", "2026-10-31 21:00:00 +0000", night},

		{"in the gap, before", "2026-03-29 00:59:59 +0000", "2026-03-29 01:00:00 +0000", gap},
		{"in the gap, opens after it", "2026-03-29 01:00:00 +0000", open, gap},
		{"in the gap, keeps its length", "2026-03-29 01:29:59 +0000", open, gap},
		{"in the gap, ended", "2026-03-29 01:30:00 +0000", "2026-03-30 00:15:00 +0000", gap},
		{"the whole gap", "2026-03-29 01:59:59 +0000", open, wholeGap},
		{"the whole gap, ended", "2026-03-29 02:00:00 +0000", "2026-03-30 00:00:00 +0000", wholeGap},
		{"into the gap", "2026-03-29 00:59:59 +0000", open, intoGap},
		{"into the gap, ended", "2026-03-29 01:00:00 +0000", "2026-03-29 23:00:00 +0000", intoGap},
		{"out of the gap", "2026-03-29 00:30:00 +0000", "2026-03-29 01:00:00 +0000", outOfGap},
		{"out of the gap, open", "2026-03-29 01:09:59 +0000", open, outOfGap},
		{"out of the gap, ended", "2026-03-29 01:10:00 +0000", "2026-03-30 00:30:00 +0000", outOfGap},

		{"twice, the first", "2026-10-25 00:15:00 +0000", open, overlap},
		{"twice, the first ended", "2026-10-25 00:45:00 +0000", "2026-10-26 01:15:00 +0000", overlap},
		{"twice, not the second", "2026-10-25 01:15:00 +0000", "2026-10-26 01:15:00 +0000", overlap},
		{"out of the hour that comes twice", "2026-10-25 01:45:00 +0000", open, overOverlap},
		{"out of the hour that comes twice, ended", "2026-10-25 02:30:00 +0000", "2026-10-26 01:30:00 +0000", overOverlap},

		// Samoa had no 30 December 2011.
		{"a day that is skipped", "2011-12-30 09:00:00 +0000", "2011-12-30 10:00:00 +0000", Window{Days: []string{"fri"}, From: "09:00", To: "10:00", TimeZone: "Pacific/Apia"}},
		{"always", "2026-01-05 08:59:59 +0000", open, Window{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w, err := tt.window.Parse()
			if err != nil {
				t.Fatal(err)
			}
			now := at(t, tt.at)
			want := now
			if tt.want != open {
				want = at(t, tt.want)
			}
			if got := w.Next(now); !got.Equal(want) {
				t.Errorf("Next = %s, want %s", got.UTC(), want)
			}
			if got := w.Contains(now); got != (tt.want == open) {
				t.Errorf("Contains = %v", got)
			}
			if !w.Contains(w.Next(now)) {
				t.Error("not open at its next opening")
			}
		})
	}
}

// TestWindowOpensEachDay goes through a year of quarters of an hour: a window opens on each of its days, once.
func TestWindowOpensEachDay(t *testing.T) {
	for _, window := range []Window{
		{From: "02:15", To: "02:45", TimeZone: "Europe/Berlin"},
		{From: "02:00", To: "03:00", TimeZone: "Europe/Berlin"},
		{From: "23:30", To: "00:30", TimeZone: "Africa/Cairo"}, // the clocks change at midnight
		{From: "22:00", To: "04:00", TimeZone: "Australia/Lord_Howe"},
	} {
		w, err := window.Parse()
		if err != nil {
			t.Fatal(err)
		}
		openings, was := 0, false
		end := at(t, "2027-01-01 18:00:00 +0000")
		for now := at(t, "2026-01-01 18:00:00 +0000"); now.Before(end); now = now.Add(15 * time.Minute) {
			is := w.Contains(now)
			if is && !was {
				openings++
			}
			was = is
		}
		if openings != 365 {
			t.Errorf("%+v opens %d times in a year", window, openings)
		}
	}
}

func TestWindowRefuses(t *testing.T) {
	for _, w := range []Window{
		{From: "1:00", To: "02:00"},
		{From: "01:00", To: "02:60"},
		{From: "01:00"},
		{From: "24:00", To: "02:00"},
		{From: "01:00", To: "01:00"},
		{From: "01:00", To: "02:00", Days: []string{"Mon"}},
		{From: "01:00", To: "02:00", TimeZone: "Local"},
		{From: "01:00", To: "02:00", TimeZone: "../etc/passwd"},
	} {
		if o, err := w.Parse(); err == nil {
			t.Errorf("%+v gives %+v", w, o)
		}
	}
}

func TestSchedule(t *testing.T) {
	for _, tt := range []struct {
		schedule Schedule
		at, want string
	}{
		{Schedule{Cron: "0 3 1 * *"}, "2026-03-15 00:00:00 +0000", "2026-04-01 03:00:00 +0000"},
		{Schedule{Cron: "0 3 1 * *", TimeZone: "Europe/Berlin"}, "2026-03-15 00:00:00 +0000", "2026-04-01 01:00:00 +0000"},
		{Schedule{Cron: "30 4 * * sun", TimeZone: "America/New_York"}, "2026-01-05 00:00:00 +0000", "2026-01-11 09:30:00 +0000"},
		{Schedule{Cron: "0 0 29 2 *"}, "2026-01-01 00:00:00 +0000", "2028-02-29 00:00:00 +0000"},
	} {
		s, err := tt.schedule.Parse()
		if err != nil {
			t.Errorf("%+v: %v", tt.schedule, err)
			continue
		}
		if got := s.Next(at(t, tt.at)); !got.Equal(at(t, tt.want)) {
			t.Errorf("%+v after %s: %s", tt.schedule, tt.at, got)
		}
	}
	for _, s := range []Schedule{
		{},
		{Cron: "* * * *"},
		{Cron: "* * * * * *"},
		{Cron: "@every 1h"},
		{Cron: "TZ=UTC * * * * *"},
		{Cron: "TZ=UTC"},
		{Cron: "* * * * 8"},
		{Cron: "0 0 30 2 *"},
		{Cron: "* * * * *", TimeZone: "local"},
		{Cron: "* * * * *", TimeZone: "Nowhere/Land"},
		{Cron: "*/0 * * * *"},
	} {
		if _, err := s.Parse(); err == nil {
			t.Errorf("%+v is taken", s)
		}
	}
}
