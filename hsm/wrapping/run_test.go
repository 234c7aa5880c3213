package wrapping

import (
	"math/rand/v2"
	"testing"
)

func TestHasRun(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // the same each time
	for range 20_000 {
		b := make([]byte, random.IntN(60))
		for i := range b {
			b[i] = byte(random.UintN(2)) //nolint:gosec // 0 or 1: runs are frequent
		}
		best, run := 0, 0
		for i := range b {
			if i > 0 && b[i] == b[i-1] {
				run++
			} else {
				run = 1
			}
			best = max(best, run)
		}
		for n := 2; n < 16; n++ {
			if got := hasRun(b, n); got != (best >= n) {
				t.Fatalf("%d of the same in %v: %v, the longest run is %d", n, b, got, best)
			}
		}
	}
}
