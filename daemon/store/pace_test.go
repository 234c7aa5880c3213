package store

import (
	"slices"
	"sync"
	"testing"
	"time"
)

// take claims a turn, waiting for it.
func take(t *testing.T, s *Store, name string, step time.Duration) Turn {
	t.Helper()
	for {
		turn, wait, err := s.Claim(t.Context(), name, Sender{Name: "x"}, step)
		if err != nil {
			t.Error(err)
			return turn
		}
		if wait == 0 {
			return turn
		}
		time.Sleep(wait)
	}
}

// Several who send: the slots are at least a step apart, whoever gets them, and no more than that when nobody is late.
func TestClaim(t *testing.T) {
	both(t, func(t *testing.T, open func(string, time.Duration) *Store, _ *clock) {
		const (
			step    = 80 * time.Millisecond
			senders = 4
			each    = 4
		)
		s := one(open)
		var mu sync.Mutex
		var slots []int64
		var wg sync.WaitGroup
		for range senders {
			wg.Go(func() {
				for range each {
					turn := take(t, s, "queue", step)
					mu.Lock()
					slots = append(slots, turn.slot)
					mu.Unlock()
					time.Sleep(time.Until(turn.Slot))
					if err := s.Answered(t.Context(), turn, 0, 0); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		slices.Sort(slots)
		if len(slots) != senders*each {
			t.Fatalf("%d turns", len(slots))
		}
		for i, at := range slots[1:] {
			if gap := at - slots[i]; gap < step.Microseconds() {
				t.Errorf("turns %d and %d are %d µs apart", i, i+1, gap)
			}
		}
	})
}

// How late a request was moves the next one; a turn that nobody answers for is lost after a second step; one that was not used is there again.
func TestClaimLate(t *testing.T) {
	both(t, func(t *testing.T, open func(string, time.Duration) *Store, _ *clock) {
		const step = 400 * time.Millisecond
		s := one(open)
		first := take(t, s, "queue", step)
		if _, wait, err := s.Claim(t.Context(), "queue", Sender{Name: "x"}, step); err != nil || wait <= 0 || wait > step {
			t.Errorf("while a request is under way: wait %s, %v", wait, err)
		}
		if err := s.Answered(t.Context(), first, step/2, 0); err != nil {
			t.Fatal(err)
		}
		second := take(t, s, "queue", step)
		if gap := second.slot - first.slot; gap < (step + step/2).Microseconds() {
			t.Errorf("after a late request the next one is %d µs later", gap)
		}
		if err := s.Unused(t.Context(), second); err != nil {
			t.Fatal(err)
		}
		third, wait, err := s.Claim(t.Context(), "queue", Sender{Name: "x"}, step)
		if err != nil || wait != 0 {
			t.Fatalf("a turn that was given back is not there again: wait %s, %v", wait, err)
		}
		if third.slot < second.slot || third.slot > max(second.slot, time.Now().UnixMicro()) {
			t.Errorf("a turn that was given back comes %d µs later", third.slot-second.slot)
		}
		fourth := take(t, s, "queue", step) // nobody says what became of the third
		if gap := fourth.slot - third.slot; gap < 2*step.Microseconds() {
			t.Errorf("after a turn that nobody answers for, the next one is %d µs later", gap)
		}
		if err := s.Answered(t.Context(), third, 0, 0); err != nil { // too late: it changes nothing
			t.Fatal(err)
		}
		if turn, wait, err := s.Claim(t.Context(), "queue", Sender{Name: "x"}, step); err != nil || wait == 0 {
			t.Errorf("an answer that came too late lets %+v go at once, %v", turn, err)
		}
	})
}

// Parameters are kept once for each kind, go when they are used, and end.
func TestParameters(t *testing.T) {
	both(t, func(t *testing.T, open func(string, time.Duration) *Store, c *clock) {
		s := one(open)
		p := Parameters{
			Destination: "arn", Algorithm: "a", WrappingKeySpec: "s", PublicKey: []byte{1, 2}, ImportToken: []byte{3}, RequestID: "r",
			Fetched: c.Now().UTC().Truncate(time.Microsecond), ValidTo: c.Now().Add(time.Hour).UTC().Truncate(time.Microsecond), Signature: []byte{4},
		}
		get := func(endpoint string) (Parameters, bool) {
			t.Helper()
			got, found, err := s.KeptParameters(t.Context(), "arn", "a", "s", endpoint)
			if err != nil {
				t.Fatal(err)
			}
			return got, found
		}
		for _, token := range []byte{3, 5} {
			p.ImportToken = []byte{token}
			if err := s.KeepParameters(t.Context(), p); err != nil {
				t.Fatal(err)
			}
		}
		got, found := get("")
		if !found || got.ImportToken[0] != 5 || !got.ValidTo.Equal(p.ValidTo) || !got.Fetched.Equal(p.Fetched) || got.Signature[0] != 4 || got.PublicKey[1] != 2 {
			t.Errorf("kept: %+v, %v", got, found)
		}
		if _, found := get("http://127.0.0.1:1"); found {
			t.Error("those of another endpoint are given")
		}
		if err := s.UseParameters(t.Context(), got); err != nil {
			t.Fatal(err)
		}
		if _, found := get(""); found {
			t.Error("there after their use")
		}
		p.ValidTo = c.Now()
		if err := s.KeepParameters(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		if n, err := s.DropExpiredParameters(t.Context()); n != 1 || err != nil {
			t.Errorf("%d expired ones went, %v", n, err)
		}
	})
}
