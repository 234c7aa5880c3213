package daemon

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"hsmbridge/configs"
	"hsmbridge/daemon/importer"
	"hsmbridge/daemon/runner"
	"hsmbridge/hsm/failure"
	"hsmbridge/hsm/wrapping"
)

// atDevice is a login whose PIN a person types at the device of the token.
type atDevice struct {
	id    wrapping.TokenIdentity
	since time.Time // zero: the login has not begun, another token asks at its device
	until time.Time
}

// devices are the logins at devices. Nobody waits for one: it takes as long as a person takes.
type devices struct {
	turn    sync.Mutex // one at a time: tokens may share a device, and a person sees one prompt
	running sync.WaitGroup

	mu     sync.Mutex
	ending bool
	cancel map[*slot]context.CancelFunc
}

// add notes a login that ends with the daemon. False: the daemon ends.
func (d *devices) add(s *slot, cancel context.CancelFunc) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ending {
		return false
	}
	if d.cancel == nil {
		d.cancel = map[*slot]context.CancelFunc{}
	}
	d.cancel[s] = cancel
	d.running.Add(1)
	return true
}

func (d *devices) done(s *slot) {
	d.mu.Lock()
	delete(d.cancel, s)
	d.mu.Unlock()
	d.running.Done()
}

// stop lets no login at a device begin any more, and gives up those under way.
func (d *devices) stop() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ending = true
	for _, cancel := range d.cancel {
		cancel()
	}
}

// end waits in addition until it is written down what became of them.
func (d *devices) end() {
	d.stop()
	d.running.Wait()
}

// login opens a token. The slot is locked. When the token asks for its PIN at its device, whoever wanted it is told so at once, and the opening goes on.
func (ts *tokens) login(ctx context.Context, name string, s *slot, c configs.Token, release func()) (importer.Token, error) {
	type outcome struct {
		token *tracked
		err   error
	}
	own, cancel := context.WithCancel(context.WithoutCancel(ctx))
	follow := context.AfterFunc(ctx, cancel)
	done, asks := make(chan outcome, 1), make(chan error, 1)
	go func() {
		at, again := false, false
		defer func() {
			if again { // nobody logs in any more
				ts.askNow(context.WithoutCancel(ctx), name)
			}
		}()
		defer release()
		defer cancel()
		l := Login{Again: s.again, Begin: func(ctx context.Context) error {
			err := ts.store.BeginLogin(ctx, name)
			s.begun = s.begun || err == nil
			return err
		}}
		l.AtDevice = func(ctx context.Context, id wrapping.TokenIdentity, wait time.Duration) error {
			if s.asked {
				return askedBefore(name, s)
			}
			if !ts.devices.add(s, cancel) {
				return &runner.Error{ErrCode: runner.CodeResting, ErrClass: "token", Message: "the daemon ends"}
			}
			at, s.device = true, &atDevice{id: id}
			s.trouble.Store(true) // other tokens of its keys may serve meanwhile
			follow()
			asks <- ts.asks(name, s)
			ts.devices.turn.Lock()
			return ts.beginAtDevice(ctx, name, s, c, wait)
		}
		token, err := ts.open(own, c, l)
		if !at {
			t, err := ts.opened(ctx, name, s, c, token, err)
			done <- outcome{t, err}
			return
		}
		ts.devices.turn.Unlock()
		defer ts.devices.done(s)
		s.Lock()
		defer s.Unlock()
		s.device = nil
		if err != nil && s.parked != nil && !s.begun {
			return // somebody parked it before it asked
		}
		if _, err := ts.opened(context.WithoutCancel(ctx), name, s, c, token, err); err != nil {
			return // it was logged
		}
		if s.parked != nil || !ts.config().Reach(name) {
			s.trouble.Store(s.parked != nil)
			ts.shut(s, name)
		}
		if again = s.changed(ts.config(), name); again { // while it asked
			ts.forget(s, name)
		}
	}()
	select {
	case o := <-done:
		follow()
		if o.err != nil {
			return nil, o.err
		}
		return o.token, nil
	case err := <-asks:
		return nil, err
	}
}

// beginAtDevice writes down that a login at a device begins, and calls for somebody.
func (ts *tokens) beginAtDevice(ctx context.Context, name string, s *slot, c configs.Token, wait time.Duration) error {
	s.Lock()
	defer s.Unlock()
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case s.parked != nil:
		return ts.parkedError(name, s)
	}
	if err := ts.store.BeginLogin(ctx, name); err != nil {
		return err
	}
	s.begun, s.asked = true, true
	s.device.since = ts.now()
	s.device.until = s.device.since.Add(wait)
	fields := []zap.Field{
		zap.String("token", name), zap.String("label", s.device.id.Label), zap.String("serial", s.device.id.Serial), zap.Duration("waits", wait), zap.Time("until", s.device.until),
	}
	if !c.Quirks.NeedsNoPIN() {
		fields = append(fields, zap.String("note", "the token says so itself (CKF_PROTECTED_AUTHENTICATION_PATH): the PIN that the configuration gives is not used"))
	}
	ts.log.Warn("the token asks for its PIN at its own device: somebody has to type it there, or put the key in", fields...)
	return nil
}

// askedBefore is why a token does not ask at its device: somebody has to be there.
func askedBefore(name string, s *slot) error {
	message := fmt.Sprintf("the PIN of token %s is typed at its device, and the login there is over; it does not ask again by itself, because nobody may be there, and that may cost a try: have somebody with the PIN or the key there", name)
	if s.cause != "" {
		message += "; why the login is over: " + s.cause
	}
	return &runner.Error{ErrCode: failure.PINRefused, ErrClass: "token", Message: message}
}

// asks tells jobs that a token waits for a person at its device.
func (ts *tokens) asks(name string, s *slot) error {
	return &runner.Error{ErrCode: runner.CodeResting, ErrClass: "token", Message: "token " + name + " " + s.device.says(name)}
}

// says is what a person has to do.
func (a *atDevice) says(name string) string {
	if a.since.IsZero() {
		return "is opened, and its PIN is typed at its own device, which is asked for next"
	}
	return fmt.Sprintf("asks for its PIN at its own device (label %q, serial %q) since %s: type it there, or put the key in, before %s, and it goes on by itself; when nobody does, it is left alone until hsmbridge resume --token %s",
		a.id.Label, a.id.Serial, a.since.UTC().Format(time.TimeOnly), a.until.UTC().Format(time.TimeOnly+" UTC"), name)
}

// askNow lets a token whose PIN is typed at its device ask for it now: a person has just said so and is there.
func (ts *tokens) askNow(ctx context.Context, name string) {
	if c, ok := ts.config().Token(name); ok && c.Quirks.NeedsNoPIN() {
		_, _ = ts.Get(ctx, name) // it writes down and logs what becomes of it
	}
}

// askAtStart opens the tokens whose PIN is typed at their device while whoever started the daemon is there, and not when there is something to do. One at which
// another daemon has its turn is asked when that is over.
func (ts *tokens) askAtStart(ctx context.Context) {
	const again = 15 * time.Second
	for waits := ts.config().Reached(); len(waits) > 0; {
		waits = slices.DeleteFunc(waits, func(name string) bool {
			ts.askNow(ctx, name)
			c, ok := ts.config().Token(name)
			return !ok || !c.Quirks.NeedsNoPIN() || ts.hasAsked(name)
		})
		if len(waits) == 0 {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(again):
		}
	}
}

// hasAsked says that nobody has to be asked any more at the start.
func (ts *tokens) hasAsked(name string) bool {
	s := ts.slot(name)
	s.Lock()
	defer s.Unlock()
	return s.asked || s.token != nil || s.device != nil || s.parked != nil
}

// askAnew lets tokens whose configuration has changed ask at their device again: who has changed it is there, and otherwise they would be parked at their next use.
func (ts *tokens) askAnew(ctx context.Context) {
	for _, name := range ts.config().Reached() {
		s := ts.slot(name)
		s.Lock()
		changed := s.changed(ts.config(), name)
		if changed {
			ts.forget(s, name)
		}
		s.Unlock()
		if changed {
			ts.askNow(context.WithoutCancel(ctx), name)
		}
	}
}

// changed says that the token is open by another configuration than that of now, and that its PIN is typed at its device. The slot is locked.
func (s *slot) changed(c *configs.Config, name string) bool {
	now, ok := c.Token(name)
	return ok && now.Quirks.NeedsNoPIN() && s.token != nil && !reflect.DeepEqual(s.config, now)
}

// forget closes a token whose configuration has changed, and lets it ask at its device again. The slot is locked.
func (ts *tokens) forget(s *slot, name string) {
	s.asked, s.cause = false, "the configuration of the token has changed"
	ts.shut(s, name)
}

// keepsLogin says that a token whose PIN was typed at its device stays open although it is left alone for a while: the error may pass, and another login takes a
// person. The slot is locked.
func (s *slot) keepsLogin(cause error) bool {
	gone := []string{"CKR_USER_NOT_LOGGED_IN", "CKR_TOKEN_NOT_PRESENT", "CKR_TOKEN_NOT_RECOGNIZED", "CKR_DEVICE_REMOVED", "CKR_SLOT_ID_INVALID"}
	return s.asked && s.token != nil && !s.token.over() && !slices.Contains(gone, runner.Code(cause))
}
