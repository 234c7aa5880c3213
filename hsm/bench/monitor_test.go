package bench

import (
	"fmt"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// BenchmarkMonitor shows what is lost in [BenchmarkWrap] with several sessions: Go's runtime has a thread that watches the others, as often as every 20 µs, and on
// a busy machine it takes the processor from one that holds SoftHSM's lock. "ratio" is that of BenchmarkWrap, in a process of its own; "seldom-ratio" is
// the same where the kernel wakes that thread every 2 ms at the most (PR_SET_TIMERSLACK). hsmbridge does not run like that: the slack is in every timer, also in
// those with which a library waits for its device.
func BenchmarkMonitor(b *testing.B) {
	for _, spec := range []string{"RSA_2048", "RSA_4096"} {
		for _, sessions := range []int{2, 4, 8, 16} {
			b.Run(fmt.Sprintf("%s/sessions=%d", spec, sessions), func(b *testing.B) {
				row := fmt.Sprintf("^BenchmarkWrap$/^%s$/^sessions=%d$", spec, sessions)
				var asIs, seldom []float64
				for b.Loop() {
					for range 3 { // at least, for a median
						asIs = append(asIs, ratioOf(b, row, 0))
						seldom = append(seldom, ratioOf(b, row, 2*time.Millisecond))
					}
				}
				b.ReportMetric(median(asIs), "ratio")
				b.ReportMetric(median(seldom), "seldom-ratio")
				b.ReportMetric(0, "ns/op") // an op is three runs of both
			})
		}
	}
}

func median(of []float64) float64 {
	slices.Sort(of)
	return of[len(of)/2]
}

// ratioOf runs a row of BenchmarkWrap once in a process of its own, the threads of which have this slack in their timers, 0: the usual one.
func ratioOf(b *testing.B, row string, slack time.Duration) float64 {
	b.Helper()
	done := make(chan []byte)
	failed := make(chan error, 1)
	go func() {
		runtime.LockOSThread()                                                                            // and never unlocked: the thread ends with its slack. A process has that of the thread that starts it.
		if err := unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(slack.Nanoseconds()), 0, 0, 0); err != nil { //nolint:gosec // nanoseconds, not below 0
			failed <- err
			return
		}
		out, err := exec.CommandContext(b.Context(), "/proc/self/exe", "-test.run=^$", "-test.bench="+row, "-test.benchtime=1x").CombinedOutput()
		if err != nil {
			failed <- fmt.Errorf("%w: %s", err, out)
			return
		}
		done <- out
	}()
	select {
	case err := <-failed:
		b.Fatal(err)
	case out := <-done:
		m := regexp.MustCompile(`([0-9.]+) ratio`).FindSubmatch(out)
		if m == nil {
			b.Fatalf("no ratio in %s", out)
		}
		ratio, err := strconv.ParseFloat(string(m[1]), 64)
		if err != nil {
			b.Fatal(err)
		}
		return ratio
	}
	return 0
}
