package daemon

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"hsmbridge/daemon/runner"
	"hsmbridge/daemon/store"
	"hsmbridge/hsm/failure"
)

// toldError is an error in other words.
type toldError struct {
	text string
	err  error
}

func (e *toldError) Error() string { return e.text }

// Unwrap gives the error.
func (e *toldError) Unwrap() error { return e.err }

// inDaemon has an error of opening a token say how a daemon goes on.
func inDaemon(token string, err error) error {
	if text := failure.InDaemon(err.Error(), token); text != err.Error() {
		return &toldError{text, err}
	}
	return err
}

// unknownLogin is why a token is parked whose login nobody knows the end of.
func (ts *tokens) unknownLogin(p store.Parked) error {
	if c, ok := ts.config().Token(p.Token); ok && c.Quirks.NeedsNoPIN() {
		return &runner.Error{
			ErrCode: runner.CodeLogin, ErrClass: "token",
			Message: fmt.Sprintf("the process of daemon %s that logged in at the token's device at %s ended before it was written down how that went; it does not ask there again by itself, because that may have cost a try: have somebody with the PIN or the key there",
				p.Daemon, p.At.Format(time.RFC3339)),
		}
	}
	return &runner.Error{
		ErrCode: runner.CodeLogin, ErrClass: "token",
		Message: fmt.Sprintf("the process of daemon %s that gave the PIN to the token at %s ended before it was written down whether it was right; it is not given again by itself, because tokens lock: see that the PIN is right",
			p.Daemon, p.At.Format(time.RFC3339)),
	}
}

// alone waits until no other daemon logs in to the token: a wrong PIN costs one try, not one for each daemon.
func (ts *tokens) alone(ctx context.Context, name string, s *slot) (release func(), err error) {
	const step = 100 * time.Millisecond
	tries := 300
	if c, ok := ts.config().Token(name); ok && c.Quirks.NeedsNoPIN() {
		tries = 1 // at a device it takes as long as a person takes, and other tokens of this daemon wait for their turn meanwhile
	}
	for i := 1; ; i++ {
		l, err := ts.store.Lock(ctx, "login/"+name)
		switch {
		case errors.Is(err, store.ErrLocked) && i < tries:
		case errors.Is(err, store.ErrLocked):
			return nil, &runner.Error{ErrCode: runner.CodeResting, ErrClass: "token", Message: "another daemon logs in to token " + name + " just now", Err: err}
		case err != nil:
			return nil, err
		default:
			begun, err := ts.look(ctx, name, s)
			if err != nil {
				return nil, errors.Join(err, l.Release(ctx))
			}
			if begun != nil && s.parked == nil && !s.begun { // whoever began it is gone: this process has the lock now
				ts.park(ctx, name, s, ts.unknownLogin(*begun))
			}
			if s.parked != nil {
				return nil, errors.Join(ts.parkedError(name, s), l.Release(ctx))
			}
			return ts.holding(ctx, l), nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(step):
		}
	}
}

// holding renews a lease until release is called, which waits for its end.
func (ts *tokens) holding(ctx context.Context, l *store.Lease) (release func()) {
	ctx = context.WithoutCancel(ctx)
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(ts.store.LeaseTime() / 3)
		defer tick.Stop()
		for {
			select {
			case <-end:
				_ = l.Release(ctx) // what a failure leaves ends by itself
				return
			case <-tick.C:
				_ = l.Renew(ctx)
			}
		}
	}()
	return func() { close(end); <-ended }
}

// ended writes down that it is known how a login ended. What fails here is tried again when the token is used.
func (ts *tokens) ended(ctx context.Context, name string, s *slot) {
	if !s.begun {
		return
	}
	if err := ts.store.EndLogin(context.WithoutCancel(ctx), name); err != nil {
		ts.log.Warn("that a login ended could not be written down yet: if this process ends before it is, the token is parked", zap.String("token", name), zap.Error(err))
		return
	}
	s.begun = false
}
