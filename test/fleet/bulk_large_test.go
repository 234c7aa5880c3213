//go:build bulk

package fleet

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"hsmbridge/test/postgres"
)

// drawing is where both are drawn.
const drawing = "../../docs/bulk.svg"

// Ten thousand keys over twenty account-Regions, from one daemon on SQLite and from four on PostgreSQL. Each draws its line into docs/bulk.svg.
func TestTenThousand(t *testing.T) {
	for i, l := range lines() {
		t.Run(strings.Fields(l.name)[0], func(t *testing.T) {
			b := bulk{keys: 10000, places: 20, daemons: 1, short: true}
			if i > 0 {
				b.daemons, b.postgres = 4, postgres.Shared(t)
			}
			r := b.run(t)
			b.check(t, r)
			if t.Failed() {
				return
			}
			old, err := os.ReadFile(drawing)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(drawing, []byte(plot(b, string(old), i, r)), 0o600); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// line is how a bulk is drawn.
type line struct{ colour, dash, name string }

func lines() []line {
	return []line{{colour: "#0b62a4", name: "one daemon, SQLite"}, {colour: "#c8500a", dash: "6 6", name: "four daemons, PostgreSQL"}}
}

// plot draws how many sets of parameters were fetched by when, beside the ideal: the n-th line anew, the others as they are in the old drawing.
func plot(b bulk, old string, n int, r report) string {
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
	for i, l := range lines() {
		if i != n {
			s.WriteString(regexp.MustCompile(`(?s)<g id="` + regexp.QuoteMeta(l.name) + `">.*?</g>\n`).FindString(old))
			continue
		}
		fmt.Fprintf(&s, `<g id="%s"><polyline fill="none" stroke="%s" stroke-width="2" stroke-dasharray="%s" points="`, l.name, l.colour, l.dash)
		for n, q := range r.sent {
			if n%100 == 0 || n == len(r.sent)-1 {
				fmt.Fprintf(&s, "%.1f,%.1f ", x(q.at.Sub(r.sent[0].at).Seconds()), y(float64(n+1)))
			}
		}
		fmt.Fprintf(&s, `"/><text x="%d" y="%d" fill="%s">%s: %.1f s, %d throttled</text></g>`+"\n", left+12, top+16+18*i, l.colour, l.name, r.took.Round(100*time.Millisecond).Seconds(), r.throttled)
	}
	fmt.Fprintf(&s, `<text x="%d" y="%d" fill="#777">ideal, N / (q · R): %.0f s</text>`+"\n</svg>\n", left+12, top+16+36, ideal)
	return s.String()
}
