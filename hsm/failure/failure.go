// Package failure is what goes wrong in a token, in words and in a class that decides what happens next. It is pure: package hsm
// makes such errors from what a PKCS#11 module answered, package hsm/remote from what a module's process sent, and both look the same.
package failure

import (
	"errors"
	"strings"

	"hsmbridge/hsm/wrapping"
)

// The classes of errors; each decides what happens next.
const (
	ClassCaller  = "caller"  // this key or this request: stop and explain
	ClassSession = "session" // the session or its handles are gone: open another
	ClassToken   = "token"   // the token needs a person or time: park it
	ClassLibrary = "library" // the module's state in its process is broken: replace the process
)

// What [Error.CKR] gives where no CKR code does.
const (
	PINRefused     = "PINRefused"     // hsmbridge itself refused to log in
	PINUnavailable = "PINUnavailable" // there was no PIN to log in with
	CallTimeout    = "HSMCallTimeout" // a call to the module did not come back in time; its process was killed
	ProcessDied    = "HSMProcessDied" // the module's process is gone
	Protocol       = "HSMProtocol"    // the module's process sent what it must not; it was killed
	UnsafeOutput   = "UnsafeOutput"   // what C_WrapKey gave may be plaintext; it was dropped
)

// Errors that callers tell apart.
var (
	ErrNotFound       = wrapping.ErrKeyNotFound
	ErrAmbiguous      = wrapping.ErrKeyAmbiguous
	ErrNoPublicHalf   = errors.New("the token has no public half of this key")
	ErrExists         = errors.New("a key with this label or id exists")
	ErrNotExportable  = errors.New("the key's attributes do not let it leave the token")
	ErrNoSuchToken    = errors.New("no such token")
	ErrAmbiguousToken = errors.New("more than one token matches")
	ErrParked         = errors.New("the token is parked")
	ErrClosed         = errors.New("the token was closed")
)

// How it goes on after a login that is not tried again, as the end of an error's Fix: after the words of a command, which was one process, those of a daemon.
const (
	Anew         = "start hsmbridge anew; a daemon goes on with hsmbridge resume --token"
	AnewAtDevice = "start hsmbridge anew; a daemon asks once more with hsmbridge resume --token"
)

// InDaemon is an error's text as it is read where a daemon says it: it is not started anew.
func InDaemon(text, token string) string {
	resume := "run hsmbridge resume --token " + token
	return strings.NewReplacer(Anew, resume, AnewAtDevice, resume).Replace(text)
}

// Error is what went wrong in a token, translated: the CKR code by name, its class, the cause in words and
// what to do next.
type Error struct {
	Op       string // "C_WrapKey", or what was being done
	Code     uint   // CK_RV; 0 when hsmbridge itself refused
	Name     string // "CKR_..."
	ErrClass string
	Cause    string
	Fix      string
	Err      error
	Mark     string // one of the constants above, when no CKR code says it
}

// Output is what an error of [wrapping.CheckOutput] means: for the token, or for this key only.
func Output(err error) *Error {
	if errors.Is(err, wrapping.ErrOtherLength) {
		return &Error{Op: "C_WrapKey", ErrClass: ClassCaller, Cause: err.Error(), Fix: "import a key that the token generated itself, or from a token that makes the whole wrap", Err: err}
	}
	return &Error{Op: "C_WrapKey", ErrClass: ClassToken, Cause: err.Error(), Fix: "run `hsmbridge probe`; do not use this token for imports until it is understood", Err: err, Mark: UnsafeOutput}
}

// Error gives operation, code, cause and fix in one sentence.
func (e *Error) Error() string {
	var parts []string
	for _, s := range []string{e.Op, e.Name, e.Cause} {
		if s != "" {
			parts = append(parts, s)
		}
	}
	s := strings.Join(parts, ": ")
	if e.Cause == "" && e.Err != nil {
		s += ": " + e.Err.Error()
	}
	if e.Fix != "" {
		s += "; " + e.Fix
	}
	return s
}

// Unwrap gives what the error was made from.
func (e *Error) Unwrap() error { return e.Err }

// Class is one of the Class constants.
func (e *Error) Class() string { return e.ErrClass }

// CKR is the name of the PKCS#11 return value, "CKR_PIN_INCORRECT", or the error's mark where it has one: [PINRefused] and the like.
// Otherwise it is empty.
func (e *Error) CKR() string {
	if e.Mark != "" {
		return e.Mark
	}
	name, _, _ := strings.Cut(e.Name, " ")
	return name
}
