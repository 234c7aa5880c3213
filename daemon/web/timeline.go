package web

import (
	"fmt"
	"html/template"
	"strings"
	"time"
)

// timeline is how many destinations expire in which month.
type timeline struct {
	Months  []month
	Past    int // expired already
	Later   int // after the last month
	Never   int
	Width   int
	Height  int
	Summary string // the same in words
}

// month is one bar.
type month struct {
	Label   string
	Long    string
	Count   int
	X, Y, H int // of the bar, in the drawing's own units
	Text    int // where its label is
}

const (
	months    = 13 // this one and a year
	barWidth  = 44
	barGap    = 12
	barHeight = 110
	barTop    = 18
	barFoot   = 20
)

// newTimeline counts expiries by month, from the month of now on.
func newTimeline(now time.Time, at []time.Time, never int) timeline {
	now = now.UTC()
	first := time.Date(now.Year(), now.Month(), 1, 0, 0, 0, 0, time.UTC)
	t := timeline{Never: never, Width: months * (barWidth + barGap), Height: barTop + barHeight + barFoot}
	t.Months = make([]month, months)
	for _, when := range at {
		when = when.UTC()
		i := (when.Year()-first.Year())*12 + int(when.Month()) - int(first.Month())
		switch {
		case when.Before(now):
			t.Past++
		case i >= months:
			t.Later++
		default:
			t.Months[i].Count++
		}
	}
	most := 1
	for _, m := range t.Months {
		most = max(most, m.Count)
	}
	var words []string
	for i := range t.Months {
		m := &t.Months[i]
		begin := first.AddDate(0, i, 0)
		m.Label, m.Long = begin.Format("Jan"), begin.Format("January 2006")
		m.X = i * (barWidth + barGap)
		m.Text = m.X + barWidth/2
		m.H = m.Count * barHeight / most
		if m.Count > 0 {
			m.H = max(m.H, 2)
			words = append(words, fmt.Sprintf("%s: %d", m.Long, m.Count))
		}
		m.Y = barTop + barHeight - m.H
		if i == 0 || begin.Month() == time.January {
			m.Label = begin.Format("Jan 06")
		}
	}
	t.Summary = "nothing expires in the next twelve months"
	if len(words) > 0 {
		t.Summary = strings.Join(words, ", ")
	}
	return t
}

// functions are what templates may call.
func functions() template.FuncMap {
	return template.FuncMap{
		"moment": func(t time.Time) string {
			if t.IsZero() {
				return "–"
			}
			return t.UTC().Format("2006-01-02 15:04")
		},
		"iso":  func(t time.Time) string { return t.UTC().Format(time.RFC3339) },
		"span": span,
		"short": func(arn string) string {
			if i := strings.LastIndexByte(arn, '/'); i >= 0 {
				return "…" + arn[i:]
			}
			return arn
		},
		"add": func(a, b int) int { return a + b },
	}
}

// span is a length of time in its largest unit, from now on or ago.
func span(now, t time.Time) string {
	if t.IsZero() {
		return ""
	}
	d := t.Sub(now)
	form := "in %s"
	if d < 0 {
		d, form = -d, "%s ago"
	}
	const day = 24 * time.Hour
	switch {
	case d >= 2*day:
		return fmt.Sprintf(form, fmt.Sprintf("%d days", d/day))
	case d >= 2*time.Hour:
		return fmt.Sprintf(form, fmt.Sprintf("%d hours", d/time.Hour))
	case d >= 2*time.Minute:
		return fmt.Sprintf(form, fmt.Sprintf("%d minutes", d/time.Minute))
	}
	return fmt.Sprintf(form, fmt.Sprintf("%d seconds", d/time.Second))
}
