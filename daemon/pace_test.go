package daemon

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"hsmbridge/daemon/store"
)

// bucket is how KMS counts: one request a second, none in reserve. Nobody sees from outside when a request arrives there.
type bucket struct {
	mu     sync.Mutex
	tokens float64
	at     time.Time
	passed int
	first  time.Time
	last   time.Time
}

func (b *bucket) take() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	if b.at.IsZero() {
		b.tokens, b.first = 1, now
	}
	b.tokens, b.at = min(1, b.tokens+now.Sub(b.at).Seconds()), now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	b.passed++
	b.last = now
	return true
}

// way is how long a request is under way to KMS, and its answer back.
type way struct {
	name     string
	there    func() time.Duration
	back     func() time.Duration
	slowdown float64              // that it may cost
	database func() time.Duration // how long its answers are under way; nil: no time
}

// Whatever the network does, no request comes too early; where it is steady, hardly any time is lost.
func TestPacesNeverTooEarly(t *testing.T) {
	ms := func(least, spread int) func() time.Duration {
		return func() time.Duration { return time.Duration(least*1000+rand.IntN(1+spread*1000)) * time.Microsecond } //nolint:gosec // a model of a network
	}
	seldom := func() time.Duration {
		if rand.IntN(20) == 0 { //nolint:gosec // a model of a network
			return 900 * time.Millisecond
		}
		return 5 * time.Millisecond
	}
	for _, w := range []way{
		{"near", ms(1, 1), ms(1, 1), 1.005, nil},
		{"far and steady", ms(40, 4), ms(40, 4), 1.03, nil},
		{"unsteady", ms(1, 200), ms(1, 200), 1.3, nil},
		{"held up now and then", seldom, ms(5, 0), 1.1, nil},
		{"longer than a step", ms(1200, 100), ms(1200, 100), 3, nil},
		{"database held up now and then", ms(1, 1), ms(1, 1), 1.2, seldom},
		{"database far and steady", ms(1, 1), ms(1, 1), 1.03, ms(20, 2)},
	} {
		for _, processes := range []int{1, 3} {
			t.Run(fmt.Sprintf("%s/%d", w.name, processes), func(t *testing.T) {
				path := filepath.Join(t.TempDir(), "x.db")
				synctest.Test(t, func(t *testing.T) { w.run(t, path, processes) })
			})
		}
	}
}

func (w way) run(t *testing.T, path string, processes int) {
	t.Helper()
	const requests = 300
	clock := func() time.Time {
		now := time.Now()
		if w.database != nil {
			time.Sleep(w.database())
		}
		return now
	}
	s, err := store.Open(t.Context(), store.Config{Path: path, Daemon: "one", NoSync: true, Clock: clock})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close() //nolint:errcheck // the end of the test
	var kms bucket
	var wg sync.WaitGroup
	var mu sync.Mutex
	left, early := requests, 0
	for range processes {
		p := &paces{store: s, lanes: map[string]*lane{}}
		for i := range 3 { // jobs of each
			wg.Go(func() {
				for n := 0; ; n++ {
					mu.Lock()
					left--
					over := left < 0
					mu.Unlock()
					if over {
						return
					}
					key := fmt.Sprint(i, n)
					if err := p.enter(t.Context(), "queue", key, 1, i == 2); err != nil {
						t.Error(err)
						return
					}
					time.Sleep(w.there())
					if !kms.take() {
						mu.Lock()
						early++
						mu.Unlock()
					}
					time.Sleep(w.back())
					if err := p.answered(t.Context(), "queue", key); err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
	wg.Wait()
	took := kms.last.Sub(kms.first).Seconds() / float64(kms.passed-1)
	t.Logf("%s: a request every %.4f s, %d too early", w.name, took, early)
	if early > 0 {
		t.Errorf("%d requests came too early", early)
	}
	if took > w.slowdown {
		t.Errorf("a request every %.3f s", took)
	}
}

// What is to be imported goes before proofs; whoever gives up lets the others in.
func TestPacesOrder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.db")
	synctest.Test(t, func(t *testing.T) {
		s, err := store.Open(t.Context(), store.Config{Path: path, Daemon: "one", NoSync: true, Clock: time.Now})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close() //nolint:errcheck // the end of the test
		p := &paces{store: s, lanes: map[string]*lane{}}
		var mu sync.Mutex
		var order []string
		var wg sync.WaitGroup
		ask := func(ctx context.Context, key string, proof bool) {
			wg.Go(func() {
				if err := p.enter(ctx, "queue", key, 1, proof); err != nil {
					return
				}
				mu.Lock()
				order = append(order, key)
				mu.Unlock()
				if err := p.answered(ctx, "queue", key); err != nil {
					t.Error(err)
				}
			})
			synctest.Wait()
		}
		ask(t.Context(), "first", false)
		ask(t.Context(), "at work", false) // it waits for its slot
		gone, cancel := context.WithCancel(t.Context())
		ask(t.Context(), "proof", true)
		ask(gone, "given up", false)
		ask(t.Context(), "import", false)
		cancel()
		wg.Wait()
		if got := fmt.Sprint(order); got != "[first at work import proof]" {
			t.Errorf("the order is %s", got)
		}
	})
}
