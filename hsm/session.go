package hsm

import (
	"context"
	"fmt"

	"github.com/miekg/pkcs11"
)

func (t *Token) openSession() (pkcs11.SessionHandle, error) {
	s, err := t.module.ctx.OpenSession(t.slot, t.sessionFlags())
	if err != nil {
		return 0, fault("C_OpenSession", err, about{what: t.name})
	}
	return s, nil
}

// with runs f on a session that nobody else has meanwhile. It gives up at ctx's end, also while f is in a C
// call, which cannot be cancelled: f then ends by itself in the background and its session is closed.
func with[T any](ctx context.Context, t *Token, f func(s pkcs11.SessionHandle) (T, error)) (T, error) {
	var none T
	if err := ctx.Err(); err != nil {
		return none, err
	}
	if err := t.begin(ctx); err != nil {
		return none, err
	}
	if ctx.Done() == nil {
		return run(ctx, t, f)
	}
	type answer struct {
		v   T
		err error
	}
	done := make(chan answer, 1)
	go func() {
		v, err := run(ctx, t, f)
		done <- answer{v, err}
	}()
	select {
	case a := <-done:
		return a.v, a.err
	case <-ctx.Done():
		return none, &Error{
			Op: "wait for " + t.name, ErrClass: ClassSession, Cause: "the token did not answer in time; its call goes on in the background and what it gives is dropped",
			Fix: "check the HSM and the connection to it, then run this again", Err: ctx.Err(),
		}
	}
}

// begin waits for a place among the sessions; end gives it back. Between them the module is not finalised.
func (t *Token) begin(ctx context.Context) error {
	select {
	case t.sessions <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("wait for a session of %s: %w", t.name, ctx.Err())
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		<-t.sessions
		return &Error{Op: "use " + t.name, ErrClass: ClassSession, Cause: errClosed.Error(), Fix: "run this again: the token is opened anew", Err: errClosed}
	}
	t.running.Add(1)
	return nil
}

func (t *Token) end() {
	<-t.sessions
	t.running.Done()
}

// run takes a session, runs f on it and gives it back, or closes it when it is of no more use.
func run[T any](ctx context.Context, t *Token, f func(s pkcs11.SessionHandle) (T, error)) (v T, err error) {
	defer t.end()
	s, err := t.take()
	if err != nil {
		return v, err
	}
	sound := false
	defer func() {
		if sound {
			t.giveBack(s)
		} else {
			_ = t.module.ctx.CloseSession(s) // also ends what a panic or a lost call left in the session
		}
	}()
	v, err = f(s)
	sound = (err == nil || classOf(err) == ClassCaller) && ctx.Err() == nil
	return v, err
}

func (t *Token) take() (pkcs11.SessionHandle, error) {
	t.mu.Lock()
	if n := len(t.idle); n > 0 {
		s := t.idle[n-1]
		t.idle = t.idle[:n-1]
		t.mu.Unlock()
		return s, nil
	}
	t.mu.Unlock()
	return t.openSession()
}

func (t *Token) giveBack(s pkcs11.SessionHandle) {
	t.mu.Lock()
	if !t.closed {
		t.idle = append(t.idle, s)
		t.mu.Unlock()
		return
	}
	t.mu.Unlock()
	_ = t.module.ctx.CloseSession(s)
}

// read is with for operations that change nothing: a session that was lost is replaced, once.
func read[T any](ctx context.Context, t *Token, f func(s pkcs11.SessionHandle) (T, error)) (T, error) {
	v, err := with(ctx, t, f)
	if err != nil && classOf(err) == ClassSession && ctx.Err() == nil {
		return with(ctx, t, f)
	}
	return v, err
}
