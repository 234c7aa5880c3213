package remote

import (
	"context"
	"crypto/rsa"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hsmbridge/hsm"
	"hsmbridge/hsm/bench"
	"hsmbridge/hsm/pkcs11uri"
	"hsmbridge/hsm/remote"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/test/shim"
	"hsmbridge/test/softhsm"
	"hsmbridge/test/turns"
)

// wrapper is a token, in this process or in another.
type wrapper interface {
	Find(ctx context.Context, u pkcs11uri.URI) (wrapping.Key, error)
	Wrap(ctx context.Context, key wrapping.Key, pub *rsa.PublicKey, plan wrapping.Plan) ([]byte, error)
}

// BenchmarkProcess wraps an AES-256 key in three ways, in turns: as a daemon does in the module's own process, in this process, and in C. The first two do with
// every wrap what an import does: the key's attributes are read again, the public key is loaded, the output is checked, the public key is destroyed.
// The C loop does nothing but wrap, with a public key that stays loaded, on as many sessions as there are callers.
//
// The tokens are SoftHSM2 as it is; one that waits 1 ms in each C_WrapKey, in all sessions at once; and devices that wrap one key at a time and need 1 ms
// or 20 ms for it, which is what bounds a real one.
//
// "cost-%" is what the module's process costs of the throughput, "ratio" the throughput through that process as a share of the C loop's: medians over
// the turns.
func BenchmarkProcess(b *testing.B) {
	m := shim.New(b, softhsm.New(b).Token)
	for _, device := range []struct {
		name, rule string
		wraps      int // of a turn: some tenths of a second, so that what a turn begins with is no part of what is measured
	}{
		{"softhsm2", "", 640}, {"delay=1ms", "C_WrapKey: delay 1ms", 640}, {"busy=1ms", "C_WrapKey: busy 1ms", 640}, {"busy=20ms", "C_WrapKey: busy 20ms", 64},
	} {
		for _, callers := range []int{1, 4, 16} {
			b.Run(fmt.Sprintf("%s/callers=%d", device.name, callers), func(b *testing.B) { benchProcess(b, m, device.rule, callers, device.wraps/callers) })
		}
	}
}

func benchProcess(b *testing.B, m shim.Module, rule string, callers, slice int) {
	b.Helper()
	m.Setenv(b)
	m.Script(b)
	c := config(b, m.Token)
	here, err := hsm.Open(b.Context(), hsm.Config{Name: c.Name, Module: c.Module, URI: c.URI, Environment: c.Environment}, hsm.PINSource(pin(m.PIN)))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := here.Close(); err != nil {
			b.Error(err)
		}
	})
	label := fmt.Sprintf("k%d", time.Now().UnixNano())
	if _, err := here.Generate(b.Context(), wrapping.SymmetricDefault, label, nil); err != nil {
		b.Fatal(err)
	}
	var starter remote.Starter
	there := open(b, &starter, c, m.PIN)
	plan, key := planAndKey(b)
	loop, err := bench.NewLoop(m.Module, m.Label, callers, key.Public(), label, bench.SHA1())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := loop.Close(); err != nil {
			b.Error(err)
		}
	})
	if rule != "" {
		m.Script(b, rule)
		b.Cleanup(func() { m.Script(b) })
	}
	self, both := func() time.Duration { return cpu(b, os.Getpid()) }, func() time.Duration { return cpu(b, os.Getpid()) + cpu(b, there.PID()) }
	var cpuThere, cpuHere, cpuLoop time.Duration
	t := turns.New(
		through(b, there, label, callers, key.Public(), plan, both, &cpuThere),
		through(b, here, label, callers, key.Public(), plan, self, &cpuHere),
		func(n int) time.Duration {
			begin := self()
			took, err := loop.Run(n)
			if err != nil {
				b.Fatal(err)
			}
			cpuLoop += self() - begin
			return took
		},
	)
	t.Take(slice)
	cpuThere, cpuHere, cpuLoop = 0, 0, 0
	n := 0
	for ; b.Loop(); n++ {
		t.Take(slice)
	}
	all := float64(slice * callers)
	b.ReportMetric(all/t.Middle(0).Seconds(), "process-wraps/s")
	b.ReportMetric(all/t.Middle(1).Seconds(), "here-wraps/s")
	b.ReportMetric(all/t.Middle(2).Seconds(), "C-wraps/s")
	b.ReportMetric(t.Ratio(0, 2), "ratio")
	b.ReportMetric(100*(1-t.Ratio(0, 1)), "cost-%")
	// The time of the processors is less disturbed by what else the machine does than the clock on the wall.
	perWrap := func(d time.Duration) float64 { return float64(d.Microseconds()) / all / float64(n) }
	b.ReportMetric(perWrap(cpuThere), "process-cpu-µs")
	b.ReportMetric(perWrap(cpuHere), "here-cpu-µs")
	b.ReportMetric(perWrap(cpuLoop), "C-cpu-µs")
	b.ReportMetric(0, "ns/op") // an op is a turn of all three
}

// through has the callers wrap all at once, and counts the processors' time.
func through(b *testing.B, tok wrapper, label string, callers int, pub *rsa.PublicKey, plan wrapping.Plan, processors func() time.Duration, spent *time.Duration) func(n int) time.Duration {
	b.Helper()
	key, err := tok.Find(b.Context(), pkcs11uri.URI{Object: label})
	if err != nil {
		b.Fatal(err)
	}
	return func(n int) time.Duration {
		begin, clock := processors(), time.Now()
		var wg sync.WaitGroup
		for range callers {
			wg.Go(func() {
				for range n {
					if _, err := tok.Wrap(b.Context(), key, pub, plan); err != nil {
						b.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		took := time.Since(clock)
		*spent += processors() - begin
		return took
	}
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
