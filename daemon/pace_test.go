package daemon

import (
	"context"
	"errors"
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

// site is a daemon somewhere: how long a request is under way to KMS, its answer back, and an answer of the database.
type site struct{ there, back, database func() time.Duration }

// distant is a database whose answers are under way for a while.
type distant struct {
	*store.Store
	way func() time.Duration
}

func (d distant) Claim(ctx context.Context, name string, by store.Sender, step time.Duration) (store.Turn, time.Duration, error) {
	turn, wait, err := d.Store.Claim(ctx, name, by, step)
	time.Sleep(d.way())
	return turn, wait, err
}

func (d distant) Renew(ctx context.Context, t store.Turn) (store.Turn, error) {
	t, err := d.Store.Renew(ctx, t)
	time.Sleep(d.way())
	return t, err
}

func (d distant) Answered(ctx context.Context, t store.Turn, late, usual time.Duration) error {
	time.Sleep(d.way())
	return d.Store.Answered(ctx, t, late, usual)
}

// between is a time between least and least and spread more, in ms.
func between(least, spread int) func() time.Duration {
	return func() time.Duration { return time.Duration(least*1000+rand.IntN(1+spread*1000)) * time.Microsecond } //nolint:gosec // a model of a network
}

// seldom is long once in twenty times.
func seldom(long, usual time.Duration) func() time.Duration {
	return func() time.Duration {
		if rand.IntN(20) == 0 { //nolint:gosec // a model of a network
			return long
		}
		return usual
	}
}

// Whatever the network and the database do, no request comes too early; where they are steady, hardly any time is lost.
func TestPacesNeverTooEarly(t *testing.T) {
	const ms = time.Millisecond
	at := between(0, 0) // once
	near, far := site{between(1, 1), between(1, 1), at}, site{between(40, 4), between(40, 4), at}
	unsteady := site{between(1, 200), between(1, 200), at}
	heldUp, longHeldUp := site{seldom(900*ms, 5*ms), between(5, 0), at}, site{seldom(2300*ms, 5*ms), between(5, 0), at}
	long := site{between(1200, 100), between(1200, 100), at}
	slow, slower := site{between(1, 1), between(1, 1), seldom(900*ms, 0)}, site{between(1, 1), between(1, 1), seldom(2200*ms, 0)}
	all := site{seldom(900*ms, 5*ms), between(5, 0), seldom(900*ms, 0)}
	away := site{between(1, 1), between(1, 1), between(25, 1)}
	for _, c := range []struct {
		name     string
		sites    []site
		slowdown float64 // that it may cost
	}{
		{"near", []site{near}, 1.005},
		{"near, three", []site{near, near, near}, 1.01},
		{"far and steady", []site{far}, 1.03},
		{"far and steady, three", []site{far, far, far}, 1.05},
		{"unsteady", []site{unsteady}, 1.3},
		{"unsteady, three", []site{unsteady, unsteady, unsteady}, 1.3},
		{"held up now and then", []site{heldUp}, 1.1},
		{"held up now and then, three", []site{heldUp, heldUp, heldUp}, 1.1},
		{"held up for long", []site{longHeldUp}, 1.3},
		{"held up for long, three", []site{longHeldUp, longHeldUp, longHeldUp}, 1.3},
		{"longer than a step", []site{long}, 3},
		{"longer than a step, three", []site{long, long, long}, 3},
		{"database held up now and then", []site{slow}, 1.3},
		{"database held up now and then, three", []site{slow, slow, slow}, 1.3},
		{"database held up for long, three", []site{slower, slower, slower}, 1.7},
		{"everything held up, three", []site{all, all, all}, 1.5},
		{"database far and steady", []site{away}, 1.03},
		{"database far from one", []site{away, near}, 1.05},
		{"one far from KMS, one near", []site{far, near}, 1.1},
		{"one far from KMS, one far from the database, two near", []site{far, away, near, near}, 1.1},
	} {
		t.Run(c.name, func(t *testing.T) {
			simulated(t, func(t *testing.T, s *store.Store) {
				t.Helper()
				took, turns := visit(t, s, c.sites)
				if took > c.slowdown {
					t.Errorf("a request every %.3f s", took)
				}
				for i, n := range turns {
					if c.slowdown < 3 && n < requests/len(c.sites)/4 {
						t.Errorf("site %d had %d of %d turns", i, n, requests)
					}
				}
			})
		})
	}
}

const requests = 300

// visit has daemons at sites send as much as they can: how long a request takes them together, and how many each sent.
func visit(t *testing.T, s *store.Store, sites []site) (seconds float64, turns []int) {
	t.Helper()
	var kms bucket
	var wg sync.WaitGroup
	var mu sync.Mutex
	left, early := requests, 0
	turns = make([]int, len(sites))
	for which, at := range sites {
		p := newPaces(distant{s, at.database})
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
					time.Sleep(at.there())
					came := kms.take()
					mu.Lock()
					turns[which]++
					if !came {
						early++
					}
					mu.Unlock()
					time.Sleep(at.back())
					if err := p.answered(t.Context(), "queue", key, true); err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
	wg.Wait()
	seconds = kms.last.Sub(kms.first).Seconds() / float64(kms.passed-1)
	t.Logf("a request every %.4f s, %d too early; turns %v", seconds, early, turns)
	if early > 0 {
		t.Errorf("%d requests came too early", early)
	}
	return seconds, turns
}

// What is to be imported goes before proofs; whoever gives up lets the others in.
func TestPacesOrder(t *testing.T) {
	simulated(t, func(t *testing.T, s *store.Store) {
		t.Helper()
		p := newPaces(s)
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
				if err := p.answered(ctx, "queue", key, true); err != nil {
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

// forgetful is a database that answers cannot be written to.
type forgetful struct{ *store.Store }

func (forgetful) Answered(context.Context, store.Turn, time.Duration, time.Duration) error {
	return errors.New("the database is away")
}

// simulated runs a test in simulated time, with a database.
func simulated(t *testing.T, f func(*testing.T, *store.Store)) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "x.db")
	synctest.Test(t, func(t *testing.T) {
		s, err := store.Open(t.Context(), store.Config{Path: path, Daemon: "one", NoSync: true, Clock: time.Now})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
		f(t, s)
	})
}

// enter waits for a turn, and says when it came.
func enter(t *testing.T, p *paces, key string) time.Time {
	t.Helper()
	if err := p.enter(t.Context(), "queue", key, 1, false); err != nil {
		t.Fatal(err)
	}
	return time.Now()
}

// answer says that the request is answered.
func answer(t *testing.T, p *paces, key string, came bool) {
	t.Helper()
	if err := p.answered(t.Context(), "queue", key, came); err != nil {
		t.Error(err)
	}
}

// How late a request was counts in this process, also when it could not be written down.
func TestPacesAnswerNotWritten(t *testing.T) {
	simulated(t, func(t *testing.T, s *store.Store) {
		t.Helper()
		p := newPaces(forgetful{s})
		enter(t, p, "a")
		time.Sleep(3200 * time.Millisecond)
		arrived := time.Now()
		for _, key := range []string{"a", "b"} {
			if err := p.answered(t.Context(), "queue", key, true); err == nil {
				t.Error("no error")
			}
			if key == "a" {
				if gap := enter(t, p, "b").Sub(arrived); gap < time.Second {
					t.Errorf("the next request went %s after one arrived", gap)
				}
			}
		}
	})
}

// A request that this side gave up may still arrive. One that was not sent leaves its turn to the next.
func TestPacesGivenUp(t *testing.T) {
	simulated(t, func(t *testing.T, s *store.Store) {
		t.Helper()
		p := newPaces(s)
		sent := enter(t, p, "a")
		time.Sleep(50 * time.Millisecond)
		answer(t, p, "a", false)
		next := enter(t, p, "b")
		if gap := next.Sub(sent); gap < 2*time.Second {
			t.Errorf("the next request went %s after one that was given up", gap)
		}
		p.dropped(t.Context(), "queue", "b")
		if gap := enter(t, p, "c").Sub(next); gap > 10*time.Millisecond {
			t.Errorf("the next request went %s after one that was not sent", gap)
		}
		answer(t, p, "c", true)
	})
}

// A turn lasts as long as its request, and a little longer when its daemon was killed.
func TestPacesKept(t *testing.T) {
	simulated(t, func(t *testing.T, s *store.Store) {
		t.Helper()
		one, two := newPaces(s), newPaces(s)
		began := enter(t, one, "a")
		got := make(chan time.Duration, 1)
		go func() { got <- enter(t, two, "b").Sub(began) }()
		time.Sleep(10 * time.Second)
		select {
		case after := <-got:
			t.Fatalf("another daemon had a turn after %s", after)
		default:
		}
		one.lanes["queue"].held.end() // as the end of its process does
		if after := <-got; after < 10*time.Second || after > 15*time.Second {
			t.Errorf("the other one had its turn after %s", after)
		}
		answer(t, two, "b", true)
	})
}

// A turn that was lost before its request was sent is not used: another daemon may have the next.
func TestPacesLost(t *testing.T) {
	simulated(t, func(t *testing.T, s *store.Store) {
		t.Helper()
		slow, quick := newPaces(distant{s, func() time.Duration { return 5 * time.Second }}), newPaces(s)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- slow.enter(ctx, "queue", "a", 1, false) }()
		time.Sleep(time.Second) // the claim is made, and its answer under way
		enter(t, quick, "b")
		time.Sleep(time.Minute)
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("both had a turn: %v", err)
		}
		answer(t, quick, "b", true)
	})
}
