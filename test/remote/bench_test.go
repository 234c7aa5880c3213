package remote

import (
	"context"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hsmbridge/hsm"
	"hsmbridge/hsm/pkcs11uri"
	"hsmbridge/hsm/remote"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/test/shim"
	"hsmbridge/test/softhsm"
)

// wrapper is a token, in this process or in another.
type wrapper interface {
	Find(ctx context.Context, u pkcs11uri.URI) (wrapping.Key, error)
}

// BenchmarkProcess wraps in this process and in one of the module's own, in turns of short slices, so that what else the machine does meets
// both: on SoftHSM2 as it is, and on a token that needs 1 ms for each C_WrapKey. It reports wraps per second of both, and what the other
// process costs of the throughput ("cost-%"; below zero is noise).
func BenchmarkProcess(b *testing.B) {
	m := shim.New(b, softhsm.New(b).Token)
	for _, delay := range []string{"0ms", "1ms"} {
		for _, callers := range []int{1, 16} {
			b.Run(fmt.Sprintf("delay=%s/callers=%d", delay, callers), func(b *testing.B) { benchProcess(b, m, delay, callers) })
		}
	}
}

func benchProcess(b *testing.B, m shim.Module, delay string, callers int) {
	b.Helper()
	m.Setenv(b)
	c := config(b, m.Token)
	here, err := hsm.Open(b.Context(), hsm.Config{Name: c.Name, Module: c.Module, URI: c.URI, Environment: c.Environment}, hsm.PINSource(pin(m.PIN)))
	if err != nil {
		b.Fatal(err)
	}
	defer here.Close() //nolint:errcheck // the figures stand
	label := fmt.Sprintf("%s-%d-%d", delay, callers, time.Now().UnixNano())
	if _, err := here.Generate(b.Context(), wrapping.SymmetricDefault, label, nil); err != nil {
		b.Fatal(err)
	}
	var starter remote.Starter
	there := open(b, &starter, c, m.PIN)
	find := func(t wrapper) wrapping.Key {
		k, err := t.Find(b.Context(), pkcs11uri.URI{Object: label})
		if err != nil {
			b.Fatal(err)
		}
		return k
	}
	keyHere, keyThere := find(here), find(there)
	plan, rsa := planAndKey(b)
	if delay != "0ms" {
		m.Script(b, "C_WrapKey: delay "+delay)
		defer m.Script(b)
	}
	run := func(n int, wrap func() error) time.Duration {
		begin := time.Now()
		var wg sync.WaitGroup
		for range callers {
			wg.Go(func() {
				for range n {
					if err := wrap(); err != nil {
						b.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		return time.Since(begin)
	}
	inHere := func() error { _, err := here.Wrap(b.Context(), keyHere, rsa.Public(), plan); return err }
	inThere := func() error { _, err := there.Wrap(b.Context(), keyThere, rsa.Public(), plan); return err }
	slice := max(1, 64/callers)
	run(slice, inHere)
	run(slice, inThere)
	// The time of the processors is less disturbed by what else the machine does than the clock on the wall.
	self, both := func() time.Duration { return cpu(b, os.Getpid()) }, func() time.Duration { return cpu(b, os.Getpid()) + cpu(b, there.PID()) }
	var a, z, cpuHere, cpuThere time.Duration
	wraps := 0
	for b.Loop() {
		begin := self()
		a += run(slice, inHere)
		cpuHere += self() - begin
		begin = both()
		z += run(slice, inThere)
		cpuThere += both() - begin
		wraps += slice * callers
	}
	b.ReportMetric(float64(cpuHere.Microseconds())/float64(wraps), "here-cpu-µs")
	b.ReportMetric(float64(cpuThere.Microseconds())/float64(wraps), "process-cpu-µs")
	b.ReportMetric(float64(wraps)/a.Seconds(), "here-wraps/s")
	b.ReportMetric(float64(wraps)/z.Seconds(), "process-wraps/s")
	b.ReportMetric(100*(1-float64(a)/float64(z)), "cost-%")
	b.ReportMetric(0, "ns/op") // an op is a slice of both
}

// cpu is the time that the processors have given to a process. Source: clock_getcpuclockid(3).
func cpu(b *testing.B, pid int) time.Duration {
	b.Helper()
	const processClock = 2 // CPUCLOCK_SCHED, of all threads
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|processClock), &ts); err != nil { //nolint:gosec // a clock's number
		b.Fatal(err)
	}
	return time.Duration(ts.Nano())
}
