//go:build bulk

package fleet

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"hsmbridge/test/postgres"
)

// Ten thousand keys over twenty account-Regions, from one daemon on SQLite and from four on PostgreSQL, drawn into docs/bulk.svg.
func TestTenThousand(t *testing.T) {
	one := bulk{keys: 10000, places: 20, daemons: 1, short: true}
	four := bulk{keys: 10000, places: 20, daemons: 4, short: true, postgres: postgres.Shared(t)}
	lines := []line{{colour: "#0b62a4", name: "one daemon, SQLite"}, {colour: "#c8500a", dash: "6 6", name: "four daemons, PostgreSQL"}}
	for i, b := range []bulk{one, four} {
		lines[i].r = b.run(t)
		b.check(t, lines[i].r)
		if t.Failed() {
			return
		}
		if err := os.WriteFile("../../docs/bulk.svg", []byte(plot(b, lines[:i+1])), 0o600); err != nil { // the first is drawn also if there is no time for the second
			t.Fatal(err)
		}
	}
}

// line is what one bulk did, and how it is drawn.
type line struct {
	colour, dash, name string
	r                  report
}

// plot draws how many sets of parameters were fetched by when, beside the ideal.
func plot(b bulk, lines []line) string {
	const (
		width, height            = 720, 400
		left, right, top, bottom = 70, 20, 50, 50
	)
	ideal := float64(b.keys) / float64(b.places)
	x := func(seconds float64) float64 { return left + seconds/(ideal*1.04)*(width-left-right) }
	y := func(n float64) float64 { return height - bottom - n/float64(b.keys)*(height-top-bottom) }
	var s strings.Builder
	fmt.Fprintf(&s, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12" role="img">`+"\n", width, height)
	fmt.Fprintf(&s, "<title>%d keys over %d account-Regions: import parameters fetched over time</title>\n", b.keys, b.places)
	fmt.Fprintf(&s, `<rect width="%d" height="%d" fill="#fff"/>`+"\n", width, height)
	fmt.Fprintf(&s, `<text x="%d" y="20" font-size="14">%d keys over %d account-Regions at 1 set of import parameters a second each</text>`+"\n", left, b.keys, b.places)
	for i := range 6 {
		n, at := float64(b.keys)*float64(i)/5, ideal*float64(i)/5
		fmt.Fprintf(&s, `<line x1="%d" x2="%d" y1="%.1f" y2="%.1f" stroke="#ddd"/><text x="%d" y="%.1f" text-anchor="end">%.0f</text>`+"\n", left, width-right, y(n), y(n), left-6, y(n)+4, n)
		fmt.Fprintf(&s, `<text x="%.1f" y="%d" text-anchor="middle">%.0f s</text>`+"\n", x(at), height-bottom+18, at)
	}
	fmt.Fprintf(&s, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="#999" stroke-width="6" opacity="0.4"/>`+"\n", x(0), y(0), x(ideal), y(float64(b.keys)))
	for i, c := range lines {
		fmt.Fprintf(&s, `<polyline fill="none" stroke="%s" stroke-width="2" stroke-dasharray="%s" points="`, c.colour, c.dash)
		for n, q := range c.r.sent {
			if n%100 == 0 || n == len(c.r.sent)-1 {
				fmt.Fprintf(&s, "%.1f,%.1f ", x(q.at.Sub(c.r.sent[0].at).Seconds()), y(float64(n+1)))
			}
		}
		fmt.Fprintf(&s, `"/><text x="%d" y="%d" fill="%s">%s: %.1f s, %d throttled</text>`+"\n", left+12, top+16+18*i, c.colour, c.name, c.r.took.Round(100*time.Millisecond).Seconds(), c.r.throttled)
	}
	fmt.Fprintf(&s, `<text x="%d" y="%d" fill="#777">ideal, N / (q · R): %.0f s</text>`+"\n</svg>\n", left+12, top+16+36, ideal)
	return s.String()
}
