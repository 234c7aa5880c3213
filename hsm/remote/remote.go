// Package remote opens tokens whose PKCS#11 module lives in a process of its own. A call into a vendor's library cannot be cancelled, and one
// that crashes takes its process along: here that is a process that does nothing else. A call past its deadline is given up, the process
// is killed, and whoever called opens the token anew.
//
// The PIN is handed over and forgotten. No answer is believed before it was looked at. It needs no cgo.
package remote

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"hsmbridge/hsm/failure"
	"hsmbridge/hsm/pkcs11uri"
	"hsmbridge/hsm/quirks"
	"hsmbridge/hsm/remote/wire"
	"hsmbridge/hsm/wrapping"
)

// Config says which token to open and how its module's process is started.
type Config struct {
	Name        string            // in messages, and in the process's argv
	Module      string            // path of the PKCS#11 library
	Parameters  string            // CK_C_INITIALIZE_ARGS.pReserved; NSS: configdir='sql:/dir'
	Environment map[string]string // of the process, beside the few variables that every process needs
	URI         pkcs11uri.URI     // must match exactly one initialised token
	Quirks      quirks.Override   // of the token, where the table of families is wrong
	LoginAgain  bool              // a person says that the cause of an earlier refusal is mended: one more login is tried
	Network     bool              // the module reaches its HSM over the network
	CallTimeout time.Duration     // 0: [DefaultCallTimeout]
	AtDevice    AtDevice          // is told before a login whose PIN is typed at the device; nil: nobody is
	DeviceTime  time.Duration     // how long that login may take; 0: [DefaultDeviceTime], or the call timeout where that is more
}

// AtDevice is told that a token is about to ask for its PIN at the device itself (a PED, a PIN pad, a card reader), and how long it is waited for a
// person there, immediately before the login begins. With an error no login is tried.
type AtDevice func(ctx context.Context, token wrapping.TokenIdentity, wait time.Duration) error

// DefaultDeviceTime is how long a person has for a login at the device. Devices give up earlier, most within two minutes: their own answer is better
// than a login that was cut off, whose outcome nobody knows.
const DefaultDeviceTime = 5 * time.Minute

// DefaultCallTimeout is how long a call to the module may take. Generating a key, probing, and opening may take longer: see limit.
const DefaultCallTimeout = 30 * time.Second

// PINSource gives the user's PIN. It is called once at most, and the bytes are overwritten when the module's process has them. Nil: the PIN is typed at
// the device.
type PINSource func(ctx context.Context, token wrapping.TokenIdentity) ([]byte, error)

// Starter starts the processes. It remembers for all of them which logins were refused: a process that replaces another does not try again.
// The zero value is ready.
type Starter struct {
	mu      sync.Mutex
	refused map[string]error
	epochs  uint64
}

// limit is how long an operation may take: a multiple of the token's call timeout.
func limit(op wire.Op, timeout time.Duration) time.Duration {
	switch op {
	case wire.OpProbe, wire.OpReport: // some two hundred calls to the module
		return 10 * timeout
	case wire.OpGenerate, wire.OpGenerateSigning: // RSA pairs take a device long
		return 4 * timeout
	case wire.OpKeys: // all objects, attribute by attribute
		return 4 * timeout
	case wire.OpClose:
		return min(timeout, 10*time.Second)
	default:
		return timeout
	}
}

// opening is how long loading the module, finding the token and logging in may take, each.
func opening(timeout time.Duration) time.Duration { return max(timeout, DefaultCallTimeout) }

// Open starts a process, has it load the module and find the one token that the URI names, and logs the user in. A login whose outcome is not
// known, because the process died on the way, counts as refused: it may have cost a try. A login at the device is given up when ctx is cancelled, and
// then counts as refused too; a deadline of ctx does not end it.
func (s *Starter) Open(ctx context.Context, c Config, pin PINSource) (*Token, error) {
	place := strings.Join([]string{c.Module, c.Parameters, c.URI.String()}, "\x00")
	if err := s.mayLogIn(place, c.LoginAgain); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	c.CallTimeout = cmp.Or(c.CallTimeout, DefaultCallTimeout)
	c.DeviceTime = cmp.Or(c.DeviceTime, max(DefaultDeviceTime, c.CallTimeout))
	t, err := start(c)
	if err != nil {
		return nil, &failure.Error{Op: "start the process of the module of " + c.Name, ErrClass: failure.ClassToken, Cause: err.Error(), Mark: failure.ProcessDied, Err: err}
	}
	s.mu.Lock()
	s.epochs++
	t.epoch = s.epochs
	s.mu.Unlock()
	h := &handover{s: s, t: t, c: c, source: pin, place: place}
	if err := h.run(ctx); err != nil {
		t.end(death{cause: "it was not opened"})
		return nil, withHint(c, err)
	}
	return t, nil
}

// mayLogIn refuses the login where one was refused before.
func (s *Starter) mayLogIn(key string, again bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if again {
		delete(s.refused, key)
	}
	err := s.refused[key]
	if err == nil {
		return nil
	}
	return &failure.Error{
		Op: "C_Login", ErrClass: failure.ClassToken, Cause: "the login to this token was refused before; it is not tried again, because tokens lock",
		Fix: "correct the PIN, then " + failure.Anew, Err: err, Mark: failure.PINRefused,
	}
}

// refuse remembers that a login was refused.
func (s *Starter) refuse(err error, keys ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refused == nil {
		s.refused = map[string]error{}
	}
	for _, k := range keys {
		if k != "" {
			s.refused[k] = err
		}
	}
}

// handover is one opening: the conversation until the token is open.
type handover struct {
	s      *Starter
	t      *Token
	c      Config
	source PINSource
	place  string // the token by its configuration
	token  string // and by what it says of itself
	handed bool   // the PIN, or leave to ask for it at the device
	device bool   // it is typed at the device
}

func (h *handover) run(ctx context.Context) error {
	err := h.talk(ctx)
	var e *failure.Error
	switch {
	case err == nil:
	case h.device && (!errors.As(err, &e) || noOutcome(e)):
		why := err.Error()
		if e != nil {
			why = e.Cause
		}
		err = &failure.Error{
			Op: "C_Login", ErrClass: failure.ClassToken, Mark: failure.PINRefused, Err: err,
			Cause: "the token asked for the PIN at its device, and what became of that is not known: " + why + ". It does not ask there again by itself, because that may have cost a try",
			Fix:   "look at the device, and have somebody with the PIN or the key there; then " + failure.AnewAtDevice,
		}
		h.s.refuse(err, h.place, h.token)
	case errors.As(err, &e) && e.Op == "C_Login" && (e.Mark == "" || h.device):
		h.s.refuse(err, h.place, h.token) // whatever it was: it may have cost a try
	case h.handed && (e == nil || noOutcome(e)):
		err = &failure.Error{
			Op: "C_Login", ErrClass: failure.ClassToken, Mark: failure.PINRefused, Err: err,
			Cause: "the PIN was handed to the module, and whether the token took it is not known: " + err.Error() + ". It is not tried again, because it may have cost a try",
			Fix:   "look at the token with the vendor's tool, then " + failure.Anew,
		}
		h.s.refuse(err, h.place, h.token)
	}
	return err
}

// noOutcome says that the process ended before it said what became of the login.
func noOutcome(e *failure.Error) bool {
	return e.CKR() == failure.CallTimeout || e.CKR() == failure.ProcessDied || e.CKR() == failure.Protocol
}

func (h *handover) talk(ctx context.Context) error {
	const long = time.Hour * 24
	limit := opening(h.c.CallTimeout)
	timer := time.NewTimer(limit)
	defer timer.Stop()
	what := "start"
	gone := ctx.Done()
	for {
		select {
		case hello := <-h.t.hello:
			if hello.Version != wire.Version {
				return h.t.violation(fmt.Errorf("%w: version %d", wire.ErrMalformed, hello.Version))
			}
			h.t.isolation = hello.Isolation
			what = "open"
			timer.Reset(limit)
			override, err := json.Marshal(h.c.Quirks)
			if err != nil {
				return fmt.Errorf("tell the module's process of the token's quirks: %w", err)
			}
			open := &wire.Open{Name: h.c.Name, Module: h.c.Module, Parameters: h.c.Parameters, URI: h.c.URI.String(), Quirks: string(override), LoginAgain: h.c.LoginAgain}
			if err := h.t.conn.Send(wire.KindOpen, 0, 0, open); err != nil {
				h.t.broken(err)
			}
		case want := <-h.t.wants:
			timer.Reset(long) // a person may have to type
			if err := h.hand(ctx, want); err != nil {
				return err
			}
			what = "C_Login"
			if h.device {
				limit = h.c.DeviceTime // a person has to come to the device
			} else {
				gone = nil // the PIN cannot be taken back any more: the outcome is waited for
			}
			timer.Reset(limit)
		case o := <-h.t.opened:
			return h.end(o)
		case <-h.t.ended:
			select {
			case o := <-h.t.opened: // it said why, and ended
				return h.end(o)
			default:
			}
			return h.t.lost(what)
		case <-gone:
			switch {
			case h.device && errors.Is(ctx.Err(), context.DeadlineExceeded):
				gone = nil // whoever waits has no more time; the person at the device has
				continue
			case h.device:
				return fmt.Errorf("it was not waited for any more: %w", ctx.Err())
			}
			return fmt.Errorf("open %s: %w", h.c.Name, ctx.Err())
		case <-timer.C:
			if h.device {
				return h.t.nobodyCame(limit)
			}
			return h.t.overdue(what, limit)
		}
	}
}

// hand hands the PIN over, straight from the bytes of its source, which are overwritten then; or lets the token ask for it at its device. The error is
// that it must not be.
func (h *handover) hand(ctx context.Context, want wire.WantPIN) error {
	token := want.Token
	if h.handed || h.token != "" {
		return h.t.violation(fmt.Errorf("%w: the PIN was asked for twice", wire.ErrMalformed))
	}
	h.token = strings.Join([]string{h.c.Module, h.c.Parameters, token.Label, token.Serial, token.Model}, "\x00")
	if err := h.s.mayLogIn(h.token, h.c.LoginAgain); err != nil {
		return err
	}
	if want.AtDevice {
		return h.letAsk(ctx, token)
	}
	if h.source == nil {
		return &failure.Error{Op: "get the PIN of " + h.c.Name, ErrClass: failure.ClassToken, Cause: "no login was tried: there is no source for it", Mark: failure.PINUnavailable}
	}
	pin, err := h.source(ctx, token)
	defer clear(pin)
	if err == nil {
		err = ctx.Err()
	}
	if err == nil && (len(pin) == 0 || len(pin) > wire.MaxPIN) {
		err = fmt.Errorf("a PIN of %d bytes", len(pin))
	}
	if err != nil {
		return &failure.Error{Op: "get the PIN of " + h.c.Name, ErrClass: failure.ClassToken, Cause: "no login was tried: " + err.Error(), Err: err, Mark: failure.PINUnavailable}
	}
	h.handed = true
	if err := h.t.conn.SendPIN(pin); err != nil {
		h.t.broken(err)
	}
	return nil
}

// letAsk lets the token ask for the PIN at its device.
func (h *handover) letAsk(ctx context.Context, token wrapping.TokenIdentity) error {
	var err error
	if h.c.AtDevice != nil {
		err = h.c.AtDevice(ctx, token, h.c.DeviceTime)
	}
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return &failure.Error{Op: "log in at the device of " + h.c.Name, ErrClass: failure.ClassToken, Cause: "no login was tried: " + err.Error(), Err: err, Mark: failure.PINUnavailable}
	}
	h.handed, h.device = true, true
	if err := h.t.conn.Send(wire.KindLogIn, 0, 0, nil); err != nil {
		h.t.broken(err)
	}
	return nil
}

// end reads how the opening ended.
func (h *handover) end(o answer) error {
	if o.failed {
		return h.t.failure(o.payload)
	}
	var m wire.Opened
	err := wire.Decode(o.payload, &m)
	switch {
	case err != nil:
		return h.t.violation(err)
	case m.Sessions < 1:
		return h.t.violation(fmt.Errorf("%w: %d sessions", wire.ErrMalformed, m.Sessions))
	case !h.c.URI.MatchesToken(m.Token.Label, m.Token.Manufacturer, m.Token.Model, m.Token.Serial):
		return h.t.violation(fmt.Errorf("%w: the token %q", wire.ErrMalformed, m.Token.Label))
	}
	const most = 64 // sessions
	h.t.ready(m.Token, m.Warnings, m.PINTriesLow, min(m.Sessions, most))
	return nil
}

// withHint adds to what there is to do that the module was kept away from the network, where that may be the cause.
func withHint(c Config, err error) error {
	e, ok := err.(*failure.Error) //nolint:errorlint // only the outermost one is shown as it is
	if !ok || c.Network {
		return err
	}
	unreached := []string{
		"CKR_GENERAL_ERROR", "CKR_FUNCTION_FAILED", "CKR_DEVICE_ERROR", "CKR_DEVICE_REMOVED", "CKR_TOKEN_NOT_PRESENT", "CKR_SLOT_ID_INVALID", "CKR_FUNCTION_CANCELED",
		"CKR_VENDOR_DEFINED", failure.CallTimeout, failure.ProcessDied,
	}
	if !slices.Contains(unreached, e.CKR()) && (!errors.Is(e, failure.ErrNoSuchToken) || strings.HasPrefix(e.Fix, "there are:")) {
		return err
	}
	const hint = "if the HSM is reached over the network, set tokens[].network: allowed"
	if e.Fix != "" {
		e.Fix += "; "
	}
	e.Fix += hint
	return e
}
