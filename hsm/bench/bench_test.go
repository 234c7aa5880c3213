package bench

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync"
	"testing"
	"time"

	"hsmbridge/hsm"
	"hsmbridge/hsm/hsmtest"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/hsm/wrapping/trial"
	"hsmbridge/test/shim"
	"hsmbridge/test/softhsm"
	"hsmbridge/test/turns"
)

// plan is what SoftHSM2 can do with an AES key.
func plan(spec wrapping.WrappingKeySpec) wrapping.Plan {
	return wrapping.Plan{
		KeySpec: wrapping.SymmetricDefault, Algorithm: wrapping.OAEPSHA1, WrappingKeySpec: spec, Length: 32,
		Mechanism: wrapping.Mechanism{Name: "CKM_RSA_PKCS_OAEP", Type: 9, Form: wrapping.FormOAEP},
	}
}

// loaded are wrapping keys, each on a session of its own, with the same public key.
func loaded(tb testing.TB, h *hsm.Token, n int, spec wrapping.WrappingKeySpec) (keys []*hsm.WrappingKey, rsa *trial.RSAKey) {
	tb.Helper()
	rsa, err := trial.NewRSAKey(spec)
	if err != nil {
		tb.Fatal(err)
	}
	for range n {
		wk, err := h.LoadWrappingKey(tb.Context(), rsa.Public())
		if err != nil {
			tb.Fatal(err)
		}
		keys = append(keys, wk)
		tb.Cleanup(func() {
			if err := wk.Close(); err != nil {
				tb.Error(err)
			}
		})
	}
	return keys, rsa
}

// BenchmarkSession opens sixteen sessions, each with a public key of 4096 bits loaded, and reports what each costs in memory: of the process, with what the
// module keeps, and of it what Go has. It is the first, before the module has room that others left.
func BenchmarkSession(b *testing.B) {
	const sessions = 16
	h := hsmtest.Open(b, softhsm.New(b, "bench").Token)
	var resident, heap float64
	n := 0
	for ; b.Loop(); n++ {
		rsa, err := trial.NewRSAKey(wrapping.RSA4096)
		if err != nil {
			b.Fatal(err)
		}
		beforeAll, beforeHeap := memory(b)
		var keys []*hsm.WrappingKey
		for range sessions {
			wk, err := h.LoadWrappingKey(b.Context(), rsa.Public())
			if err != nil {
				b.Fatal(err)
			}
			keys = append(keys, wk)
		}
		afterAll, afterHeap := memory(b)
		resident, heap = max(resident, afterAll-beforeAll), max(heap, afterHeap-beforeHeap)
		for _, wk := range keys {
			if err := wk.Close(); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(resident/sessions, "B/session")
	b.ReportMetric(heap/sessions, "Go-B/session")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkWrap wraps an AES-256 key on SoftHSM2 through hsm and in C, on as many sessions each with its public key loaded, in turns. "ratio" is
// the median over the turns; 1 is as fast as C.
func BenchmarkWrap(b *testing.B) {
	tok := softhsm.New(b, "bench").Token
	h := hsmtest.Open(b, tok)
	if os.Getenv(usualMonitor) != "" {
		beUsual(b)
	}
	key, err := h.Generate(b.Context(), wrapping.SymmetricDefault, "bench", nil)
	if err != nil {
		b.Fatal(err)
	}
	for _, spec := range []wrapping.WrappingKeySpec{wrapping.RSA2048, wrapping.RSA4096} {
		for _, sessions := range []int{1, 2, 4, 8, 16} {
			b.Run(fmt.Sprintf("%s/sessions=%d", spec, sessions), func(b *testing.B) {
				keys, rsa := loaded(b, h, sessions, spec)
				c, err := NewLoop(tok.Module, tok.Label, sessions, rsa.Public(), "bench", SHA1())
				if err != nil {
					b.Fatal(err)
				}
				b.Cleanup(func() {
					if err := c.Close(); err != nil {
						b.Error(err)
					}
				})
				inC := func(wraps int) time.Duration {
					took, err := c.Run(wraps)
					if err != nil {
						b.Fatal(err)
					}
					return took
				}
				var before, after runtime.MemStats
				var allocated, size uint64
				inGo := func(wraps int) time.Duration {
					runtime.ReadMemStats(&before)
					begin := time.Now()
					var wg sync.WaitGroup
					for _, wk := range keys {
						wg.Go(func() {
							for range wraps {
								if _, err := wk.Wrap(b.Context(), key, plan(spec)); err != nil {
									b.Error(err)
									return
								}
							}
						})
					}
					wg.Wait()
					took := time.Since(begin)
					runtime.ReadMemStats(&after)
					allocated, size = allocated+after.Mallocs-before.Mallocs, size+after.TotalAlloc-before.TotalAlloc
					return took
				}
				t := turns.New(inGo, inC)
				slice := 6400 / sessions // some tenths of a second: the start of threads and goroutines is no part of what is measured
				t.Take(slice)
				allocated, size = 0, 0
				n := 0
				for b.Loop() {
					for range 5 { // at least, for a median
						t.Take(slice)
						n++
					}
				}
				all := float64(slice * sessions)
				b.ReportMetric(all/t.Middle(0).Seconds(), "wraps/s")
				b.ReportMetric(all/t.Middle(1).Seconds(), "C-wraps/s")
				b.ReportMetric(t.Ratio(0, 1), "ratio")
				b.ReportMetric(float64(allocated)/all/float64(n), "allocs/wrap")
				b.ReportMetric(float64(size)/all/float64(n), "B/wrap")
				b.ReportMetric(0, "ns/op") // an op is five turns of both
			})
		}
	}
}

// BenchmarkPipe shows what a process of its own costs at the least on this machine: the same wait of 1 ms in C here, and in C at the other end of a socket pair.
// "cost-%" is what of the throughput is lost: the way through the kernel, twice.
func BenchmarkPipe(b *testing.B) {
	const wait = time.Millisecond
	for _, callers := range []int{1, 4, 16} {
		b.Run(fmt.Sprintf("wait=%s/callers=%d", wait, callers), func(b *testing.B) {
			ask := func(processes bool) func(int) time.Duration {
				p, err := NewPipe(callers, wait, processes)
				if err != nil {
					b.Fatal(err)
				}
				b.Cleanup(p.Close)
				return func(calls int) time.Duration {
					took, err := p.Run(calls)
					if err != nil {
						b.Fatal(err)
					}
					return took
				}
			}
			const calls = 200
			t := turns.New(ask(true), ask(false))
			for b.Loop() {
				t.Take(calls)
			}
			all := float64(calls * callers)
			b.ReportMetric(all/t.Middle(0).Seconds(), "process-calls/s")
			b.ReportMetric(all/t.Middle(1).Seconds(), "here-calls/s")
			b.ReportMetric(100*(1-t.Ratio(0, 1)), "cost-%")
			b.ReportMetric(0, "ns/op") // an op is a turn of both
		})
	}
}

// memory is what the process has in memory, and what of it Go has on its heap, in bytes.
func memory(b *testing.B) (resident, heap float64) {
	b.Helper()
	runtime.GC()
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		b.Fatal(err)
	}
	pages, err := strconv.Atoi(string(bytes.Fields(text)[1]))
	if err != nil {
		b.Fatal(err)
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(pages * os.Getpagesize()), float64(m.HeapAlloc)
}

// TestLoadedOnce shows what many wraps under one public key ask of the token: the key is loaded once, and each wrap is one call.
func TestLoadedOnce(t *testing.T) {
	m := shim.New(t, softhsm.New(t, "bench").Token)
	h := hsmtest.Open(t, m.Token)
	key, err := h.Generate(t.Context(), wrapping.SymmetricDefault, "bench", nil)
	if err != nil {
		t.Fatal(err)
	}
	before := m.Counters(t).Calls
	keys, _ := loaded(t, h, 1, wrapping.RSA2048)
	const wraps = 50
	for range wraps {
		if _, err := keys[0].Wrap(t.Context(), key, plan(wrapping.RSA2048)); err != nil {
			t.Fatal(err)
		}
	}
	for name, n := range m.Counters(t).Calls {
		want := map[string]int{"C_CreateObject": 1, "C_WrapKey": wraps}[name]
		if made := n - before[name]; made != want && name != "C_OpenSession" {
			t.Errorf("%d calls of %s, want %d", made, name, want)
		}
	}
}
