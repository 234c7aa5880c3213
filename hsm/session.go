package hsm

import (
	"context"
	"errors"
	"fmt"
	"time"

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
	return await(ctx, t.name, 0, func() (T, error) { return run(ctx, t, f) }, nil)
}

// grace is how long an operation of several steps, which notices the end of its context between them, has to end by itself.
const grace = 200 * time.Millisecond

// await runs f and gives up a little after ctx's end. late gets what f gives after that; nil drops it.
func await[T any](ctx context.Context, name string, grace time.Duration, f func() (T, error), late func(T)) (T, error) {
	if ctx.Done() == nil {
		return f()
	}
	type answer struct {
		v   T
		err error
	}
	done := make(chan answer)
	left := make(chan struct{})
	go func() {
		v, err := f()
		select {
		case done <- answer{v, err}:
		case <-left:
			if err == nil && late != nil {
				late(v)
			}
		}
	}()
	select {
	case a := <-done:
		return a.v, a.err
	case <-ctx.Done():
	}
	select {
	case a := <-done:
		return a.v, a.err
	case <-time.After(grace):
		close(left)
		var none T
		return none, givenUp(name, ctx.Err())
	}
}

// givenUp is the error of a call that was not waited for. One that is past its time may never come back, and only the end of the process ends it.
func givenUp(name string, why error) error {
	e := &Error{
		Op: "wait for " + name, ErrClass: ClassSession, Cause: "the token had not answered when this was ended; its call goes on in the background and what it gives is dropped",
		Fix: "run this again", Err: why,
	}
	if errors.Is(why, context.DeadlineExceeded) {
		e.ErrClass, e.Cause = ClassLibrary, "the token did not answer in time; its call goes on in the background and what it gives is dropped"
		e.Fix = "check the HSM and the connection to it; a call that never comes back ends with the process"
	}
	return e
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
			t.drop(s) // also ends what a panic or a lost call left in the session
		}
	}()
	v, err = f(s)
	if hasClass(err, ClassCaller) && codeOf(err) != 0 {
		// NSS 3.87 answers CKR_KEY_TYPE_INCONSISTENT to C_WrapKey when the login is gone: not the key is wrong then.
		if gone := t.loggedIn(s); isCode(gone, pkcs11.CKR_USER_NOT_LOGGED_IN) {
			err = gone
		}
	}
	sound = onlyCaller(err) && ctx.Err() == nil
	if hasClass(err, ClassSession) {
		t.dropIdle() // what ended this session has ended the others too, as a rule
	}
	return v, err
}

func (t *Token) take() (pkcs11.SessionHandle, error) {
	t.retryClosing()
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
	doubtful := t.doubtful[s]
	if !t.closed && !doubtful {
		t.idle = append(t.idle, s)
		t.mu.Unlock()
		return
	}
	t.mu.Unlock()
	t.drop(s)
}

// doubt has a session closed at the end of its operation instead of being used again: an object may be left in it.
func (t *Token) doubt(s pkcs11.SessionHandle) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.doubtful == nil {
		t.doubtful = map[pkcs11.SessionHandle]bool{}
	}
	t.doubtful[s] = true
}

// drop closes a session, and its objects with it. One that the token does not close is tried again before the next is opened, and
// when the token is closed.
func (t *Token) drop(s pkcs11.SessionHandle) {
	t.mu.Lock()
	delete(t.doubtful, s) // before the module may give the handle to another session
	t.mu.Unlock()
	err := t.module.ctx.CloseSession(s)
	t.mu.Lock()
	defer t.mu.Unlock()
	if err != nil && classOf(err) != ClassSession {
		t.unclosed = append(t.unclosed, s)
	}
}

func (t *Token) dropIdle() {
	t.mu.Lock()
	idle := t.idle
	t.idle = nil
	t.mu.Unlock()
	for _, s := range idle {
		t.drop(s)
	}
}

func (t *Token) retryClosing() {
	t.mu.Lock()
	again := t.unclosed
	t.unclosed = nil
	t.mu.Unlock()
	for _, s := range again {
		t.drop(s)
	}
}

// read is with for operations that leave the token as it was: a session that was lost is replaced, once. An error that also tells of the token, of an
// object that may be left in it, is not hidden by a second try.
func read[T any](ctx context.Context, t *Token, f func(s pkcs11.SessionHandle) (T, error)) (T, error) {
	v, err := with(ctx, t, f)
	if hasClass(err, ClassSession) && !hasClass(err, ClassToken) && ctx.Err() == nil {
		return with(ctx, t, f)
	}
	return v, err
}

// loggedIn holds that the user is logged in, on a token that wants a login. Without one, a token shows no private object: a key that is there
// would look as if it were not.
func (t *Token) loggedIn(s pkcs11.SessionHandle) error {
	if t.flags&pkcs11.CKF_LOGIN_REQUIRED == 0 {
		return nil
	}
	info, err := t.module.ctx.GetSessionInfo(s)
	switch {
	case isCode(err, pkcs11.CKR_FUNCTION_NOT_SUPPORTED):
		return nil
	case err != nil:
		return fault("C_GetSessionInfo", err, about{what: t.name})
	case info.State == pkcs11.CKS_RO_PUBLIC_SESSION || info.State == pkcs11.CKS_RW_PUBLIC_SESSION:
		return fault("C_GetSessionInfo", pkcs11.Error(pkcs11.CKR_USER_NOT_LOGGED_IN), about{what: t.name})
	}
	return nil
}
