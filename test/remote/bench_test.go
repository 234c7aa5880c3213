package remote

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

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
	var a, z time.Duration
	wraps := 0
	for b.Loop() {
		a += run(slice, inHere)
		z += run(slice, inThere)
		wraps += slice * callers
	}
	b.ReportMetric(float64(wraps)/a.Seconds(), "here-wraps/s")
	b.ReportMetric(float64(wraps)/z.Seconds(), "process-wraps/s")
	b.ReportMetric(100*(1-float64(a)/float64(z)), "cost-%")
	b.ReportMetric(0, "ns/op") // an op is a slice of both
}
