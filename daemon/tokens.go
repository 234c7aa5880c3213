package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"hsmbridge/configs"
	"hsmbridge/daemon/control"
	"hsmbridge/daemon/importer"
	"hsmbridge/daemon/metrics"
	"hsmbridge/daemon/runner"
	"hsmbridge/daemon/store"
	"hsmbridge/hsm/wrapping"
)

// Token is an open token, whose PKCS#11 module lives in a process of its own. [hsmbridge/hsm/remote.Token] has these methods.
type Token interface {
	signingToken
	Keys(ctx context.Context) ([]wrapping.Key, error)
	Warnings() []string
	PINTriesLow() bool
	PID() int
	Isolation() string      // what keeps the process alone
	Ended() <-chan struct{} // closed when the process is no more
	Err() error             // why; nil: it was closed
	Replace(cause error)    // ends the process
	Close() error
}

// Login is what whoever opens a token has to know.
type Login struct {
	Again bool                            // a person has mended the cause of an earlier refusal
	Begin func(ctx context.Context) error // to be called immediately before the PIN is given to the token; with an error it is not given

	// In place of Begin where the PIN is typed at the device: to be called immediately before the token asks for it there, and how long it is waited for.
	AtDevice func(ctx context.Context, id wrapping.TokenIdentity, wait time.Duration) error
}

// OpenToken opens a token and logs in, once.
type OpenToken func(ctx context.Context, t configs.Token, l Login) (Token, error)

// tokens keeps the tokens open and leaves those alone that are parked or resting.
type tokens struct {
	open   OpenToken
	config func() *configs.Config
	store  *store.Store
	log    *zap.Logger
	now    func() time.Time
	began  func(token string)         // a process of its module began
	gone   func(token, reason string) // it is no more: why, in the words of daemon/metrics

	opening sync.Mutex // one login at a time in the whole process, but for those at a device
	devices devices

	mu     sync.Mutex
	byName map[string]*slot
}

// slot is what is known of a token.
type slot struct {
	sync.Mutex
	token   *tracked // nil: not open
	config  configs.Token
	resting time.Time
	cause   string
	code    string // of cause, where it rests and somebody has to mend something; else empty
	parked  *store.Parked
	again   bool // the next login may follow a refused one
	low     bool
	begun   bool // it stands in the database that a login is under way

	device *atDevice // the token is being opened, and its PIN is typed at its device; nil: no
	asked  bool      // it asked there since a person said so last, or since the start: it does not ask again by itself

	trouble atomic.Bool // it was parked, rests, or was not opened since: see Usable

	unwritten bool        // it does not stand in the database that the token is parked
	warned    []string    // of the open token: what a person should know of it and of its keys
	deaths    []time.Time // of the processes of its module
	replaced  bool        // the process was killed because the module's state in it is broken
}

func (ts *tokens) slot(name string) *slot {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	s := ts.byName[name]
	if s == nil {
		s = &slot{}
		ts.byName[name] = s
	}
	return s
}

// load reads which tokens are parked, by an earlier life of this daemon or by another one.
func (ts *tokens) load(ctx context.Context) error {
	parked, err := ts.store.ParkedTokens(ctx)
	for name, p := range parked {
		s := ts.slot(name)
		switch {
		case p.Code != store.LoginBegun:
			s.parked = &p
			s.trouble.Store(true)
		case p.Daemon == ts.store.Daemon():
			ts.park(ctx, name, s, ts.unknownLogin(p))
		}
	}
	return err
}

// look reads again whether a token is parked: another daemon may have parked it, or a person may have told another daemon to use it again.
// begun is a login that somebody has begun and of which nobody has written down how it ended.
func (ts *tokens) look(ctx context.Context, name string, s *slot) (begun *store.Parked, err error) {
	if s.unwritten && s.parked != nil {
		if err := ts.write(ctx, *s.parked); err != nil {
			return nil, err
		}
		s.unwritten = false
	}
	parked, err := ts.store.ParkedTokens(ctx)
	if err != nil {
		return nil, err
	}
	p, ok := parked[name]
	if ok && p.Code == store.LoginBegun {
		begun, ok = &p, false
	}
	switch {
	case ok:
		s.parked = &p
		s.trouble.Store(true)
	case s.parked != nil:
		s.parked, s.again, s.asked = nil, true, false
	}
	return begun, nil
}

// Get gives an open token.
func (ts *tokens) Get(ctx context.Context, name string) (importer.Token, error) {
	s := ts.slot(name)
	s.Lock()
	defer s.Unlock()
	if s.token != nil && s.token.over() {
		s.token = nil // its end is looked into by whoever waits for it
	}
	c, ok := ts.config().Token(name)
	if ok && (s.parked != nil || s.token == nil) {
		if _, err := ts.look(ctx, name, s); err != nil {
			return nil, err
		}
	}
	if s.device == nil && !s.unwritten { // no login is under way, and one that parked the token is written down
		ts.ended(ctx, name, s)
	}
	switch {
	case ok && !ts.config().Reach(name):
		return nil, &runner.Error{ErrCode: runner.CodeNotReached, ErrClass: "token", Message: fmt.Sprintf("daemon %s does not reach token %s (reaches:)", ts.store.Daemon(), name)}
	case !ok:
		return nil, &runner.Error{ErrCode: "NotConfigured", ErrClass: "caller", Message: "the configuration has no token " + name}
	case s.parked != nil:
		return nil, ts.parkedError(name, s)
	case s.device != nil:
		return nil, ts.asks(name, s)
	case s.resting.After(ts.now()):
		return nil, &runner.Error{ErrCode: cmp.Or(s.code, runner.CodeResting), ErrClass: "token", Message: fmt.Sprintf("token %s is left alone until %s (%s)", name, s.resting.Format(time.RFC3339), s.cause)}
	case s.token != nil && reflect.DeepEqual(s.config, c):
		return s.token, nil
	case s.token != nil:
		ts.shut(s, name) // it is configured otherwise now
	}
	ts.opening.Lock()
	defer ts.opening.Unlock()
	release, err := ts.alone(ctx, name, s)
	if err != nil {
		return nil, err
	}
	ts.began(name)
	return ts.login(ctx, name, s, c, release)
}

// opened keeps a token that was opened, or looks into why it was not.
func (ts *tokens) opened(ctx context.Context, name string, s *slot, c configs.Token, token Token, err error) (*tracked, error) {
	if err != nil {
		return nil, ts.failed(ctx, name, s, err)
	}
	ts.ended(ctx, name, s)
	s.again, s.low, s.config, s.cause = false, token.PINTriesLow(), c, ""
	s.trouble.Store(false)
	s.token = &tracked{Token: token}
	go ts.attend(context.WithoutCancel(ctx), name, s, s.token)
	id := token.Identity()
	ts.log.Info("token opened", zap.String("token", name), zap.String("serial", id.Serial), zap.String("model", id.Model), zap.String("firmware", id.Firmware))
	ts.log.Info("its module has a process of its own", zap.String("token", name), zap.Int("pid", token.PID()), zap.String("isolation", token.Isolation()))
	s.warned = token.Warnings()
	for _, w := range s.warned {
		ts.log.Warn(w, zap.String("token", name))
	}
	go ts.inspect(context.WithoutCancel(ctx), name, s, s.token)
	return s.token, nil
}

// inspect looks at all keys of a token that was just opened, and says which of them could leave it past the configuration. Nobody waits for it.
func (ts *tokens) inspect(ctx context.Context, name string, s *slot, t *tracked) {
	keys, err := t.Keys(ctx) // it has a deadline of its own
	s.Lock()
	defer s.Unlock()
	if s.token != t {
		return // it was closed meanwhile
	}
	if err != nil {
		ts.log.Warn("the keys of the token could not be looked through", zap.String("token", name), zap.Error(err))
		return
	}
	found := ts.config().ExposureWarnings(name, keys)
	for _, w := range found {
		ts.log.Warn(w, zap.String("token", name))
	}
	s.warned = append(slices.Clone(s.warned), found...)
}

func (ts *tokens) parkedError(name string, s *slot) error {
	return &runner.Error{
		ErrCode: runner.CodeParked, ErrClass: "token",
		Message: fmt.Sprintf("token %s is parked since %s (%s); mend the cause, then run hsmbridge resume --token %s", name, s.parked.At.Format(time.RFC3339), s.parked.Reason, name),
	}
}

// failed parks a token that could not be opened, or lets it rest, as the table of retries says.
func (ts *tokens) failed(ctx context.Context, name string, s *slot, err error) error {
	err = inDaemon(name, err)
	if s.begun && !runner.LoginKnown(err) {
		err = &runner.Error{ErrCode: runner.CodeLogin, ErrClass: "token", Message: "the PIN was given to token " + name + ", and it is not known what became of it; it is not given again by itself, because tokens lock", Err: err}
		ts.park(ctx, name, s, err)
		return err
	}
	defer func() {
		if !s.unwritten { // else the next process has to find that a login was begun
			ts.ended(ctx, name, s)
		}
	}()
	if importer.Class(err) == "caller" || importer.Class(err) == "" { // of opening it, not of a key
		err = &runner.Error{ErrCode: "TokenUnavailable", ErrClass: "token", Message: "token " + name + " cannot be opened", Err: err}
	}
	if runner.Parks(err) {
		ts.park(ctx, name, s, err)
		return err
	}
	if runner.Died(err) && ts.died(ctx, name, s, err) {
		return ts.parkedError(name, s)
	}
	rest := runner.Rests(err)
	s.rest(ts.now().Add(rest), err)
	ts.log.Warn("token cannot be opened", zap.String("token", name), zap.Duration("next_try_in", rest), zap.Error(err))
	return err
}

// attend waits for the end of a token's process. The next who wants the token opens it anew, in another process.
func (ts *tokens) attend(ctx context.Context, name string, s *slot, t *tracked) {
	<-t.Ended()
	cause := t.Err()
	if cause == nil {
		ts.gone(name, metrics.EndClosed)
		return
	}
	s.Lock()
	defer s.Unlock()
	if s.token == t {
		s.token = nil
	}
	ts.died(ctx, name, s, cause)
}

// died notes that the process of a token's module is no more, and parks a token of which that is said too often.
func (ts *tokens) died(ctx context.Context, name string, s *slot, cause error) (parked bool) {
	now := ts.now()
	s.cause = cause.Error()
	s.deaths = append(s.deaths, now)
	reason := metrics.EndCrash
	switch {
	case s.replaced:
		reason = metrics.EndReplaced
	case runner.Overdue(cause):
		reason = metrics.EndDeadline
	case runner.Lied(cause):
		reason = metrics.EndProtocol
	}
	s.replaced = false
	ts.gone(name, reason)
	ts.log.Error("the process of a token's module is no more; the next call starts another one", zap.String("token", name), zap.String("reason", reason), zap.Error(cause))
	if s.parked != nil || !runner.DiesTooOften(s.deaths, now) {
		return false
	}
	ts.park(ctx, name, s, runner.ModuleDies(name, len(s.deaths), cause))
	s.deaths = nil
	return true
}

// is says that the slot's token is the one that somebody used. The slot is locked.
func (s *slot) is(used importer.Token) bool { return s.token != nil && importer.Token(s.token) == used }

// Replace ends the process of a token's module, whose state in it is broken, if it is still that of the token that was used.
func (ts *tokens) Replace(_ context.Context, name string, used importer.Token, cause error) {
	s := ts.slot(name)
	s.Lock()
	defer s.Unlock()
	if s.is(used) && !s.token.over() {
		s.replaced = true
		s.token.Replace(cause)
	}
}

// Rest closes a token and leaves it alone until then. Where it was opened anew since it was used, or is being opened at its device, the error says nothing of it:
// it would cost another login, for which a person has to come.
func (ts *tokens) Rest(_ context.Context, name string, used importer.Token, until time.Time, cause error) {
	s := ts.slot(name)
	s.Lock()
	defer s.Unlock()
	if s.resting.After(ts.now()) || s.parked != nil || s.device != nil || s.token != nil && !s.is(used) {
		return
	}
	s.rest(until, cause)
	ts.log.Warn("token is left alone for a while", zap.String("token", name), zap.Time("until", until), zap.Error(cause))
	if !s.keepsLogin(cause) {
		ts.shut(s, name)
	}
}

// rest leaves the slot's token alone until then.
func (s *slot) rest(until time.Time, cause error) {
	s.resting, s.cause, s.code = until, cause.Error(), ""
	if runner.NeedsPerson(cause) {
		s.code = runner.Code(cause)
	}
	s.trouble.Store(true)
}

// rouse lets a token be used at once that only rests: a person says that the cause is mended.
func (ts *tokens) rouse(name string) {
	s := ts.slot(name)
	if !s.TryLock() {
		return // it is being opened
	}
	defer s.Unlock()
	if s.parked == nil && s.resting.After(ts.now()) {
		s.resting, s.cause, s.code = time.Time{}, "", ""
	}
}

// Park closes a token and leaves it alone until a person says so.
func (ts *tokens) Park(ctx context.Context, name string, cause error) {
	s := ts.slot(name)
	s.Lock()
	defer s.Unlock()
	if s.parked == nil {
		ts.park(ctx, name, s, cause)
	}
}

func (ts *tokens) park(ctx context.Context, name string, s *slot, cause error) {
	p := store.Parked{Token: name, At: ts.now(), Code: runner.Code(cause), Reason: cause.Error()}
	s.parked = &p
	s.trouble.Store(true)
	ts.log.Error("token is parked until a person acts", zap.String("token", name), zap.Error(cause))
	if err := ts.write(context.WithoutCancel(ctx), p); err != nil {
		s.unwritten = true
		ts.log.Error("that a token is parked could not be written down yet", zap.String("token", name), zap.Error(err))
	}
	ts.shut(s, name)
}

// unpark lets a token be used again, with one more login.
func (ts *tokens) unpark(ctx context.Context, name, actor string) error {
	s := ts.slot(name)
	s.Lock()
	defer s.Unlock()
	if _, err := ts.look(ctx, name, s); err != nil {
		return err
	}
	found, err := ts.store.Unpark(ctx, name, actor, "asked to use the token again")
	switch {
	case err != nil:
		return err
	case !found && !s.resting.After(ts.now()) && (!s.asked || s.token != nil || s.device != nil):
		return fmt.Errorf("token %s is not parked: %w", name, control.ErrRefused)
	}
	if s.asked && s.device == nil {
		ts.shut(s, name) // it is there still if it only rested: somebody wants another login
	}
	s.parked, s.resting, s.cause, s.code, s.again, s.asked, s.deaths = nil, time.Time{}, "", "", found, s.asked && s.device != nil, nil
	s.trouble.Store(false)
	return nil
}

// shut closes a slot's token. Closing may take until the module's process is killed, so nobody waits for it.
func (ts *tokens) shut(s *slot, name string) {
	t := s.token
	s.token, s.warned = nil, nil
	if t == nil {
		return
	}
	go func() {
		if err := t.Close(); err != nil {
			ts.log.Warn("closing a token", zap.String("token", name), zap.Error(err))
		}
	}()
}

// close closes all tokens, at the end.
func (ts *tokens) close() error {
	ts.devices.end()
	ts.mu.Lock()
	all := maps.Clone(ts.byName)
	ts.mu.Unlock()
	var errs []error
	for _, s := range all {
		s.Lock()
		if s.token != nil {
			errs = append(errs, s.token.Close())
			s.token = nil
		}
		s.Unlock()
	}
	return errors.Join(errs...)
}

// drop closes tokens that the configuration has no more, or that this daemon does not reach any more.
func (ts *tokens) drop() {
	ts.mu.Lock()
	all := maps.Clone(ts.byName)
	ts.mu.Unlock()
	for name, s := range all {
		if ts.config().Reach(name) {
			continue
		}
		s.Lock()
		ts.shut(s, name)
		s.Unlock()
	}
}
