package fleet

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"hsmbridge/daemon/control"
	"hsmbridge/daemon/store"
	"hsmbridge/hsm/bench"
	"hsmbridge/hsm/hsmtest"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/hsm/wrapping/trial"
	"hsmbridge/kmsclient/kmsemu"
	"hsmbridge/test/shim"
)

// BenchmarkDevice has a daemon renew keys of an HSM that wraps one key at a time and needs 5 to 100 ms for it, with everything that an import is:
// the journal on disk, KMS, the proof. A loop in C that does nothing but wrap shows what the HSM can do. "ratio" is the daemon's share of that: 1 means
// that the HSM never waits for the daemon. The time is that from the first job's begin to the last one's end. AWS's quotas are lifted, and KMS takes
// processors of the same machine; so does SoftHSM, more for each key that the token holds, so there are not many, and each is renewed several times.
func BenchmarkDevice(b *testing.B) {
	for _, d := range []struct {
		busy   string
		rounds int
	}{{"5ms", 6}, {"10ms", 6}, {"20ms", 6}, {"50ms", 2}, {"100ms", 1}} {
		b.Run(d.busy, func(b *testing.B) { benchDevice(b, "C_WrapKey: busy "+d.busy, d.rounds) })
	}
}

func benchDevice(b *testing.B, rule string, rounds int) {
	b.Helper()
	w := newWorld(b, kmsemu.Options{})
	w.emu.Refuse("RSA_4096", "ValidationException") // KMS's own work is not what is measured
	w.emu.Refuse("RSA_3072", "ValidationException")
	m := shim.New(b, w.token.Token)
	w.token.Token = m.Token
	const keys = 80
	var names []string
	for i := range keys {
		names = append(names, fmt.Sprintf("key-%03d", i))
		w.key(names[i], wrapping.SymmetricDefault)
	}
	p := w.start("one", "")
	for range keys { // all have their first material
		if done := p.settled(); len(done) >= keys {
			break
		}
	}
	m.Script(b, rule)
	wraps := func() int { return m.Counters(b).Calls["C_WrapKey"] } // of the daemon's process, which writes what it has counted itself
	var through, inC, spent float64
	before := wraps()
	for b.Loop() {
		used := cpu(b, p)
		renewals := rounds * keys
		renew(b, p, names, rounds)
		all := wraps()
		made := all - before
		before = all
		jobs, err := p.client.Jobs(b.Context(), store.JobFilter{Limit: renewals})
		if err != nil {
			b.Fatal(err)
		}
		if bad := slices.IndexFunc(jobs, func(j store.Job) bool { return j.State != store.Done }); bad >= 0 || made != renewals {
			b.Fatalf("%d wraps for %d renewals; %+v", made, renewals, jobs[max(bad, 0)])
		}
		begun := slices.MinFunc(jobs, func(a, b store.Job) int { return a.Started.Compare(b.Started) }).Started
		ended := slices.MaxFunc(jobs, func(a, b store.Job) int { return a.Finished.Compare(b.Finished) }).Finished
		through += float64(made) / ended.Sub(begun).Seconds()
		spent += (cpu(b, p) - used).Seconds() * 1000 / float64(made)
		inC += wrapsInC(b, m, names[0], 100)
	}
	n := float64(b.N)
	b.ReportMetric(through/n, "daemon-wraps/s")
	b.ReportMetric(inC/n, "C-wraps/s")
	b.ReportMetric(through/inC, "ratio")
	b.ReportMetric(spent/n, "daemon-cpu-ms/wrap")
	b.ReportMetric(0, "ns/op")
}

// renew has every key renewed so many times, and waits for the end. A key has one job at a time: while those of one half of the keys are under way, those
// of the other half are there to be begun.
func renew(b *testing.B, p *process, names []string, rounds int) {
	b.Helper()
	half := len(names) / 2
	left := []int{rounds, rounds}
	for {
		jobs, err := p.client.Jobs(b.Context(), store.JobFilter{Open: true, Limit: len(names)})
		if err != nil {
			b.Fatal(err)
		}
		var open [2]bool
		for _, j := range jobs {
			open[slices.Index(names, j.Key)/half] = true
		}
		for i, keys := range [][]string{names[:half], names[half:]} {
			if open[i] || left[i] == 0 {
				continue
			}
			left[i]--
			if _, err := p.client.Start(b.Context(), control.StartRequest{Keys: keys, Kind: store.KindImport, Renew: true}); err != nil {
				b.Fatal(err)
			}
			open[i] = true
		}
		if open == [2]bool{} {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// wrapsInC is how many wraps a second the loop in C gets out of the token.
func wrapsInC(b *testing.B, m shim.Module, label string, wraps int) float64 {
	b.Helper()
	const sessions = 4
	hsmtest.Open(b, m.Token)
	key, err := trial.NewRSAKey(wrapping.RSA2048)
	if err != nil {
		b.Fatal(err)
	}
	loop, err := bench.NewLoop(m.Module, m.Label, sessions, key.Public(), label, bench.SHA1())
	if err != nil {
		b.Fatal(err)
	}
	took, err := loop.Run(wraps / sessions)
	if err != nil {
		b.Fatal(err)
	}
	if err := loop.Close(); err != nil {
		b.Fatal(err)
	}
	return float64(wraps) / took.Seconds()
}
