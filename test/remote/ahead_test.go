package remote

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"testing"
	"time"

	"hsmbridge/hsm/failure"
	"hsmbridge/hsm/quirks"
	"hsmbridge/hsm/remote"
	"hsmbridge/test/shim"
)

// oneSession opens a token that carries out one call at a time.
func oneSession(tb testing.TB, m shim.Module, timeout time.Duration) *remote.Token {
	tb.Helper()
	c := config(tb, m.Token)
	c.Quirks, c.CallTimeout = quirks.Override{MaxSessions: 2}, timeout // one of them keeps the login
	var starter remote.Starter
	return open(tb, &starter, c, m.PIN)
}

// TestAhead shows calls that wait in the module's process for a session. One that nobody waits for any more is not begun; the time of the others counts
// from when they are, so that none is past its deadline because it waited.
func TestAhead(t *testing.T) {
	t.Parallel()
	const delay, timeout = 3 * time.Second, 5 * time.Second // two take longer than one may, and one has 2 s to spare
	slow := func(t *testing.T) (wrap func(ctx context.Context) error, wraps func() int) {
		t.Helper()
		m := faulty(t)
		tok := oneSession(t, m, timeout)
		key, plan, rsa := generated(t, tok)
		m.Script(t, fmt.Sprintf("C_WrapKey: delay %dms", delay.Milliseconds()))
		before := m.Counters(t).Calls["C_WrapKey"]
		return func(ctx context.Context) error { _, err := tok.Wrap(ctx, key, rsa.Public(), plan); return err },
			func() int { return m.Counters(t).Calls["C_WrapKey"] - before }
	}
	t.Run("two", func(t *testing.T) {
		t.Parallel()
		wrap, _ := slow(t)
		var wg sync.WaitGroup
		for range 2 { // together they take longer than one may
			wg.Go(func() {
				if err := wrap(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	})
	t.Run("one that was given up", func(t *testing.T) {
		t.Parallel()
		wrap, wraps := slow(t)
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := wrap(t.Context()); err != nil {
				t.Error(err)
			}
		})
		until(t, "a wrap", func() bool { return wraps() > 0 })
		ctx, cancel := context.WithTimeout(t.Context(), delay/10)
		defer cancel()
		if err := wrap(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a caller that gave up: %v", err)
		}
		wg.Wait()
		if err := wrap(t.Context()); err != nil {
			t.Error(err)
		}
		if n := wraps(); n != 2 {
			t.Errorf("%d wraps, and 2 callers waited for theirs", n)
		}
	})
	t.Run("one that hangs", func(t *testing.T) {
		t.Parallel()
		m := faulty(t)
		tok := oneSession(t, m, timeout)
		key, plan, rsa := generated(t, tok)
		m.Script(t, "C_WrapKey: hang times 1")
		errs := make(chan error, 2)
		for range 2 {
			go func() { _, err := tok.Wrap(t.Context(), key, rsa.Public(), plan); errs <- err }()
		}
		for range 2 {
			var e *failure.Error
			if err := <-errs; !errors.As(err, &e) || e.CKR() != failure.CallTimeout && e.CKR() != failure.ProcessDied {
				t.Errorf("with one that hangs: %v", err)
			}
		}
	})
}

// TestCallsOfAWrap shows what a wrap through the module's process asks of the token: its attributes once, the public key in, the wrap, the public key
// out. An import wraps once under each set of import parameters, so that the public key is loaded once for each.
func TestCallsOfAWrap(t *testing.T) {
	m := faulty(t)
	var starter remote.Starter
	tok := open(t, &starter, config(t, m.Token), m.PIN)
	key, plan, rsa := generated(t, tok)
	calls := func(f func()) map[string]int {
		before := m.Counters(t).Calls
		f()
		made := map[string]int{}
		for name, n := range m.Counters(t).Calls {
			if n > before[name] {
				made[name] = n - before[name]
			}
		}
		return made
	}
	wrap := func() {
		if _, err := tok.Wrap(t.Context(), key, rsa.Public(), plan); err != nil {
			t.Error(err)
		}
	}
	wrap() // opens a session
	want := map[string]int{"C_GetAttributeValue": 1, "C_CreateObject": 1, "C_WrapKey": 1, "C_DestroyObject": 1}
	if got := calls(wrap); !maps.Equal(got, want) {
		t.Errorf("a wrap: %v, want %v", got, want)
	}
}
