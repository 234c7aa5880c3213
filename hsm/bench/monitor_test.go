package bench

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// BenchmarkMonitor shows what it is worth in [BenchmarkWrap] with several sessions that the thread with which Go's runtime watches the others, as often as every
// 20 µs, takes no processor from one that works. "ratio" is that of BenchmarkWrap, in a process of its own, "usual-ratio" the same where that thread has the
// policy that threads begin with.
func BenchmarkMonitor(b *testing.B) {
	for _, spec := range []string{"RSA_2048", "RSA_4096"} {
		for _, sessions := range []int{2, 4, 8, 16} {
			b.Run(fmt.Sprintf("%s/sessions=%d", spec, sessions), func(b *testing.B) {
				row := fmt.Sprintf("^BenchmarkWrap$/^%s$/^sessions=%d$", spec, sessions)
				var polite, usual []float64
				for b.Loop() {
					for range 3 { // at least, for a median
						polite = append(polite, ratioOf(b, row))
						usual = append(usual, ratioOf(b, row, usualMonitor+"=1"))
					}
				}
				b.ReportMetric(median(polite), "ratio")
				b.ReportMetric(median(usual), "usual-ratio")
				b.ReportMetric(0, "ns/op") // an op is three runs of both
			})
		}
	}
}

// usualMonitor in the environment of a process has it run with the policy for threads that they begin with.
const usualMonitor = "HSMBRIDGE_BENCH_USUAL_MONITOR"

// beUsual gives all threads of the process the usual policy: the monitor, which hsm made polite when it loaded the module, and those that it started since.
func beUsual(b *testing.B) {
	b.Helper()
	for changed := true; changed; {
		changed = false
		threads, err := os.ReadDir("/proc/self/task")
		if err != nil {
			b.Fatal(err)
		}
		for _, one := range threads {
			thread, err := strconv.Atoi(one.Name())
			if err != nil {
				b.Fatal(err)
			}
			attr, err := unix.SchedGetAttr(thread, 0)
			if err != nil || attr.Policy == unix.SCHED_NORMAL {
				continue // has ended, or is
			}
			attr.Policy, changed = unix.SCHED_NORMAL, true
			if err := unix.SchedSetAttr(thread, attr, 0); err != nil && !errors.Is(err, unix.ESRCH) {
				b.Fatal(err)
			}
		}
	}
}

func median(of []float64) float64 {
	slices.Sort(of)
	return of[len(of)/2]
}

// ratioOf runs a row of BenchmarkWrap once in a process of its own.
func ratioOf(b *testing.B, row string, environment ...string) float64 {
	b.Helper()
	c := exec.CommandContext(b.Context(), "/proc/self/exe", "-test.run=^$", "-test.bench="+row, "-test.benchtime=1x")
	c.Env = append(os.Environ(), environment...)
	out, err := c.CombinedOutput()
	if err != nil {
		b.Fatalf("%v: %s", err, out)
	}
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
