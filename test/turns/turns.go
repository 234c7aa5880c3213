// Package turns measures several ways of doing the same in alternating turns, so that what else the machine does meets all of them, and takes
// the middle of what it saw: one turn that was disturbed decides nothing.
package turns

import (
	"slices"
	"time"
)

// Turns are what was measured: for each way the time of each turn.
type Turns struct {
	ways  []func(n int) time.Duration
	times [][]time.Duration
}

// New takes the ways. Each does its work n times and says how long that took.
func New(ways ...func(n int) time.Duration) *Turns {
	return &Turns{ways: ways, times: make([][]time.Duration, len(ways))}
}

// Take has every way do its work n times. Every second time it begins with the last.
func (t *Turns) Take(n int) {
	backwards := len(t.times[0])%2 == 1
	for i := range t.ways {
		if backwards {
			i = len(t.ways) - 1 - i
		}
		t.times[i] = append(t.times[i], t.ways[i](n))
	}
}

// Middle is the median time of a way's turns.
func (t *Turns) Middle(way int) time.Duration {
	times := slices.Sorted(slices.Values(t.times[way]))
	return times[len(times)/2]
}

// Ratio is how much faster way a is than way b: the median over the turns, each of which is compared with itself. 1 is as fast, 0.5 takes twice
// the time.
func (t *Turns) Ratio(a, b int) float64 {
	ratios := make([]float64, len(t.times[a]))
	for i := range ratios {
		ratios[i] = t.times[b][i].Seconds() / t.times[a][i].Seconds()
	}
	slices.Sort(ratios)
	return ratios[len(ratios)/2]
}
