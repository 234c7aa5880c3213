// Package hsm is the only part of hsmbridge that talks to a PKCS#11 module: it opens a token, finds and
// generates keys, proves by trial what the token can do, and has it wrap keys. It never asks a token for a
// secret attribute: no function here can return key material in the clear.
package hsm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/pkcs11"

	"hsmbridge/hsm/failure"
	"hsmbridge/hsm/pkcs11uri"
	"hsmbridge/hsm/quirks"
	"hsmbridge/hsm/wrapping"
)

// Config says which token to open and how its module is loaded.
type Config struct {
	Name        string            // in messages
	Module      string            // path of the PKCS#11 library
	Parameters  string            // CK_C_INITIALIZE_ARGS.pReserved; NSS: configdir='sql:/dir'
	Environment map[string]string // set before C_Initialize
	URI         pkcs11uri.URI     // must match exactly one initialised token
	MaxSessions int               // open at once; 0: 16, or what the token says if that is less
	Quirks      quirks.Override   // in place of what is known of the token's family
	LoginAgain  bool              // a person says that the cause of an earlier refusal is mended: one more login is tried
	AtDevice    AtDevice          `json:"-"` // is told before a login whose PIN is typed at the device; nil: nobody is
}

// PINSource gives the user's PIN. It is called once, and the bytes are overwritten after C_Login. A token whose PIN is typed at the device needs none.
type PINSource func(ctx context.Context, token wrapping.TokenIdentity) ([]byte, error)

const (
	defaultSessions = 16
	closeTimeout    = 5 * time.Second
)

// Token is an open token with its user logged in. Its methods may be called by many goroutines; each call
// has a session of its own while it runs.
type Token struct {
	name     string
	module   *module
	slot     uint
	identity wrapping.TokenIdentity
	flags    uint
	epoch    uint64
	warnings []string
	library  Library

	moduleName string // as the configuration has it
	quirks     quirks.Quirks

	atDevice    AtDevice
	pinTriesLow bool
	cannotWrap  string // why no key can leave this token at all; empty: a probe finds out

	sessions chan struct{} // one place for each session that may be open
	mu       sync.Mutex
	idle     []pkcs11.SessionHandle
	doubtful map[pkcs11.SessionHandle]bool  // not to be used again
	unclosed []pkcs11.SessionHandle         // the token would not close them
	anchor   pkcs11.SessionHandle           // keeps the login while no other session is open
	stored   map[string]pkcs11.ObjectHandle // token objects that are to be destroyed, by label; 0: the handle is not known
	singly   map[attributeList]bool         // what it does not answer in one call
	closed   bool
	running  sync.WaitGroup
}

var epochs atomic.Uint64 //nolint:gochecknoglobals // counts connections in the process, so that handles of one are never used in another

// Open loads the module, finds the one token that the URI names and logs its user in. C_Login is called once
// and never again for a token whose PIN was refused, in the life of the process.
//
// It gives up at ctx's end, also while a call hangs; what such a call still opens is closed.
func Open(ctx context.Context, c Config, pin PINSource) (*Token, error) {
	return await(ctx, c.Name, grace, func() (*Token, error) { return openNow(ctx, c, pin) }, func(t *Token) { _ = t.Close() })
}

func openNow(ctx context.Context, c Config, pin PINSource) (*Token, error) {
	m, err := acquire(c)
	if err != nil {
		return nil, err
	}
	t := &Token{name: c.Name, module: m, epoch: epochs.Add(1), atDevice: c.AtDevice}
	if err := t.open(ctx, c, pin); err != nil {
		if t.anchor != 0 {
			_ = m.ctx.CloseSession(t.anchor)
		}
		return nil, errors.Join(err, m.release())
	}
	return t, nil
}

func (t *Token) open(ctx context.Context, c Config, pin PINSource) error {
	info, err := t.findSlot(c)
	if err != nil {
		return err
	}
	t.flags = info.Flags
	if err := t.learn(c); err != nil {
		return err
	}
	n := c.MaxSessions
	if n <= 0 {
		n = defaultSessions
	}
	// One session stays open to keep the login. 0 is "effectively infinite", all ones is "unavailable".
	if most := int(info.MaxRwSessionCount); most > 1 && most-1 < n {
		n = most - 1
	}
	if most := t.quirks.MaxSessions; most > 1 && most-1 < n {
		n = most - 1
	}
	t.sessions = make(chan struct{}, n)
	if t.anchor, err = t.openSession(); err != nil {
		return err
	}
	if err := t.login(ctx, pin, c.LoginAgain); err != nil {
		return err
	}
	t.sweep(t.anchor)
	if t.cannotWrap = t.askWhetherItWraps(); t.cannotWrap != "" {
		t.warnings = append(t.warnings, t.cannotWrap+"; no key can go from it to AWS KMS")
	}
	return nil
}

// findSlot finds the one token that the URI names.
func (t *Token) findSlot(c Config) (pkcs11.TokenInfo, error) {
	slots, err := t.module.ctx.GetSlotList(true)
	if err != nil {
		return pkcs11.TokenInfo{}, fault("C_GetSlotList", err, about{what: c.Name})
	}
	var found []pkcs11.TokenInfo
	var there []string
	var unread error
	for _, slot := range slots {
		info, err := t.module.ctx.GetTokenInfo(slot)
		if err != nil && !isCode(err, pkcs11.CKR_TOKEN_NOT_PRESENT) && !isCode(err, pkcs11.CKR_TOKEN_NOT_RECOGNIZED) && !isCode(err, pkcs11.CKR_SLOT_ID_INVALID) {
			unread = fault("C_GetTokenInfo", err, about{what: c.Name})
		}
		if err != nil || info.Flags&pkcs11.CKF_TOKEN_INITIALIZED == 0 {
			continue // no token in the slot, or nothing on it
		}
		id := identityOf(info)
		there = append(there, describeToken(id))
		if !c.URI.MatchesToken(id.Label, id.Manufacturer, id.Model, id.Serial) || !t.matchesPlace(c.URI, slot) {
			continue
		}
		found = append(found, info)
		t.slot, t.identity = slot, id
	}
	if len(found) == 1 {
		return found[0], nil
	}
	if len(found) == 0 && unread != nil {
		return pkcs11.TokenInfo{}, unread // it may be the one
	}
	e := &Error{Op: "find the token " + c.Name, ErrClass: ClassToken, Cause: "no token matches " + c.URI.String(), Err: ErrNoSuchToken}
	if len(found) > 1 {
		e.ErrClass, e.Err = ClassCaller, ErrAmbiguousToken
		e.Cause = fmt.Sprintf("%d tokens match %s", len(found), c.URI.String())
	}
	e.Fix = "there are: " + strings.Join(there, "; ") + "; name one by token and serial"
	if len(there) == 0 {
		e.Fix = "the module shows no initialised token: check that the HSM is connected and that the module finds its configuration (tokens[].environment)"
	}
	return pkcs11.TokenInfo{}, e
}

// matchesPlace holds the slot and library attributes of the URI, where it has any.
func (t *Token) matchesPlace(u pkcs11uri.URI, slot uint) bool {
	if u.SlotID != nil || u.SlotDescription != "" || u.SlotManufacturer != "" {
		info, err := t.module.ctx.GetSlotInfo(slot)
		if err != nil || !u.MatchesSlot(slot, trim(info.SlotDescription), trim(info.ManufacturerID)) {
			return false
		}
	}
	if u.LibraryManufacturer != "" || u.LibraryDescription != "" || u.LibraryVersion != "" {
		info, err := t.module.ctx.GetInfo()
		if err != nil || !u.MatchesLibrary(trim(info.ManufacturerID), trim(info.LibraryDescription), info.LibraryVersion.Major, info.LibraryVersion.Minor) {
			return false
		}
	}
	return true
}

// trim takes the padding of a PKCS#11 string away.
func trim(s string) string { return strings.TrimRight(s, " \x00") }

func describeToken(id wrapping.TokenIdentity) string {
	return fmt.Sprintf("token=%q serial=%q model=%q", id.Label, id.Serial, id.Model)
}

func identityOf(i pkcs11.TokenInfo) wrapping.TokenIdentity {
	version := func(v pkcs11.Version) string { return fmt.Sprintf("%d.%d", v.Major, v.Minor) }
	return wrapping.TokenIdentity{
		Label: trim(i.Label), Manufacturer: trim(i.ManufacturerID), Model: trim(i.Model), Serial: trim(i.SerialNumber),
		Hardware: version(i.HardwareVersion), Firmware: version(i.FirmwareVersion),
	}
}

// Identity is what the token says of itself.
func (t *Token) Identity() wrapping.TokenIdentity { return t.identity }

// Warnings is what a person should know about the token: a PIN of which few tries are left, or that it cannot wrap keys.
func (t *Token) Warnings() []string { return t.warnings }

// Epoch is the number of this connection: keys that were found over it have it.
func (t *Token) Epoch() uint64 { return t.epoch }

// Sessions is how many operations can be under way at once.
func (t *Token) Sessions() int { return cap(t.sessions) }

// PINTriesLow says that the token showed, before the login, that a wrong PIN was given to it (CKF_USER_PIN_COUNT_LOW).
func (t *Token) PINTriesLow() bool { return t.pinTriesLow }

// Close closes every session and gives the module back. It waits a while for operations that are still running.
// Nothing is logged out: the login belongs to the token, and other sessions of this process may need it.
func (t *Token) Close() error {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return nil
	}
	t.closed = true
	idle := slices.Concat(t.idle, t.unclosed)
	t.idle, t.unclosed = nil, nil
	t.mu.Unlock()
	ended := make(chan struct{})
	go func() { t.running.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(closeTimeout):
		return &Error{
			Op: "close " + t.name, ErrClass: ClassLibrary, Cause: "a call to the token has not come back; the module was left as it is",
			Fix: "end this process; the HSM drops its sessions and their objects then",
		}
	}
	errs := []error{t.sweepOwn(t.anchor)}
	for _, s := range append(idle, t.anchor) {
		if err := t.module.ctx.CloseSession(s); err != nil && classOf(err) != ClassSession {
			errs = append(errs, fault("C_CloseSession", err, about{what: t.name}))
		}
	}
	return errors.Join(append(errs, t.module.release())...)
}

// login logs the user in, once.
func (t *Token) login(ctx context.Context, pin PINSource, again bool) error {
	t.module.login.Lock()
	defer t.module.login.Unlock()
	key := describeToken(t.identity) + t.module.parameters
	parked := func(cause, fix string, err error) error {
		return &Error{Op: "C_Login", ErrClass: ClassToken, Cause: cause, Fix: fix, Err: err, Mark: PINRefused}
	}
	if again {
		delete(t.module.refused, key)
	}
	if err := t.module.refused[key]; err != nil {
		return parked("the login to this token was refused before; it is not tried again, because tokens lock",
			"correct the PIN, then "+failure.Anew, err)
	}
	info, err := t.module.ctx.GetTokenInfo(t.slot)
	if err != nil {
		return fault("C_GetTokenInfo", err, about{what: t.name})
	}
	switch {
	case identityOf(info) != t.identity:
		return parked("another token is in the slot now: "+describeToken(identityOf(info))+"; no login was tried", "put the right one back, then "+failure.Anew, ErrParked)
	case info.Flags&pkcs11.CKF_LOGIN_REQUIRED == 0:
		return nil
	case info.Flags&pkcs11.CKF_USER_PIN_LOCKED != 0:
		return parked("the user PIN of the token is locked (CKF_USER_PIN_LOCKED); no login was tried", "the security officer has to unlock it (C_InitPIN, or the vendor's tool)", ErrParked)
	case info.Flags&pkcs11.CKF_USER_PIN_FINAL_TRY != 0:
		return parked("one try is left before the token locks (CKF_USER_PIN_FINAL_TRY); no login was tried",
			"check the PIN, log in once by hand with the vendor's tool, which resets the counter, then run hsmbridge again", ErrParked)
	case info.Flags&pkcs11.CKF_USER_PIN_INITIALIZED == 0:
		return parked("the token has no user PIN yet (CKF_USER_PIN_INITIALIZED is not set); no login was tried", "the security officer has to set it (C_InitPIN, or the vendor's tool)", ErrParked)
	case info.Flags&pkcs11.CKF_USER_PIN_TO_BE_CHANGED != 0:
		return parked("the user PIN has to be changed before first use (CKF_USER_PIN_TO_BE_CHANGED); no login was tried", "change it with the vendor's tool", ErrParked)
	}
	if info.Flags&pkcs11.CKF_USER_PIN_COUNT_LOW != 0 {
		t.pinTriesLow = true
		t.warnings = append(t.warnings, "a wrong PIN was given to this token before, few tries are left (CKF_USER_PIN_COUNT_LOW)")
	}
	var secret []byte
	device := t.typedAtDevice(info)
	switch {
	case device:
		if err := t.tellDevice(ctx, userName); err != nil {
			return err
		}
	case pin != nil:
		if secret, err = pin(ctx, t.identity); err != nil {
			return &Error{Op: "get the PIN of " + t.name, ErrClass: ClassToken, Cause: "no login was tried: " + err.Error(), Err: err, Mark: PINUnavailable}
		}
		defer clear(secret)
		if err := t.checkPIN(secret); err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("log in to %s: %w; no login was tried", t.name, err)
		}
	}
	err = t.module.lib.login(uint(t.anchor), secret)
	if err == nil || isCode(err, pkcs11.CKR_USER_ALREADY_LOGGED_IN) {
		return nil
	}
	if !pinUntouched(err) {
		t.module.refused[key] = err // whatever it was: it may have cost a try
		if device {
			return t.refusedAtDevice("C_Login", err)
		}
	}
	return fault("C_Login", err, about{what: t.name})
}

// pinUntouched says that a C_Login failed before the token looked at the PIN. Of every other answer, a device error among them, the
// standard does not say so.
func pinUntouched(err error) bool {
	for _, code := range []uint{
		pkcs11.CKR_SESSION_HANDLE_INVALID, pkcs11.CKR_SESSION_CLOSED, pkcs11.CKR_TOKEN_NOT_PRESENT, pkcs11.CKR_SLOT_ID_INVALID,
		pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED, pkcs11.CKR_USER_ANOTHER_ALREADY_LOGGED_IN, pkcs11.CKR_HOST_MEMORY,
	} {
		if isCode(err, code) {
			return true
		}
	}
	return false
}
