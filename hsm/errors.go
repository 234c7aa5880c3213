package hsm

import (
	"errors"
	"fmt"
	"strings"

	"github.com/miekg/pkcs11"

	"hsmbridge/hsm/wrapping"
)

// The classes of errors; each decides what happens next.
const (
	ClassCaller  = "caller"  // this key or this request: stop and explain
	ClassSession = "session" // the session or its handles are gone: open another
	ClassToken   = "token"   // the token needs a person or time: park it
	ClassLibrary = "library" // the module's state in this process is broken: replace the process
)

// Errors that callers tell apart; Find's are those of the wrapping package.
var (
	ErrNotFound     = wrapping.ErrKeyNotFound
	ErrAmbiguous    = wrapping.ErrKeyAmbiguous
	ErrNoPublicHalf = errors.New("the token has no public half of this key")
	errClosed       = errors.New("the token was closed")
)

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

	mark string // what CKR gives when no PKCS#11 call was made
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

// CKR is the name of the PKCS#11 return value, "CKR_PIN_INCORRECT"; when hsmbridge itself refused to log in it is [PINRefused], when there
// was no PIN to log in with [PINUnavailable], and otherwise empty.
func (e *Error) CKR() string {
	if e.mark != "" {
		return e.mark
	}
	name, _, _ := strings.Cut(e.Name, " ")
	return name
}

// What [Error.CKR] gives where no call was made.
const (
	PINRefused     = "PINRefused"
	PINUnavailable = "PINUnavailable"
)

// about is what an operation was about, for messages.
type about struct{ what, key string }

// fault translates what a PKCS#11 call answered. It gives nil for nil.
func fault(op string, err error, a about) error {
	if err == nil {
		return nil
	}
	var code pkcs11.Error
	if !errors.As(err, &code) {
		var done *Error
		if errors.As(err, &done) {
			return err
		}
		return &Error{Op: op, ErrClass: ClassLibrary, Cause: "the PKCS#11 module answered against the standard: " + err.Error(), Err: err}
	}
	e := &Error{Op: op, Code: uint(code), Name: codeName(uint(code)), Err: err, ErrClass: ClassToken, Cause: "the token refused"}
	for _, row := range translations() {
		if row.code == uint(code) && (row.op == "" || row.op == op) {
			e.ErrClass, e.Cause, e.Fix = row.class, fill(row.cause, a), fill(row.fix, a)
			break
		}
	}
	return e
}

func fill(s string, a about) string {
	key, what := a.key, a.what
	if key == "" {
		key = "the key"
	}
	if what == "" {
		what = "the token"
	}
	return strings.NewReplacer("{key}", key, "{token}", what).Replace(s)
}

func isCode(err error, code uint) bool {
	var got pkcs11.Error
	return errors.As(err, &got) && uint(got) == code
}

// classOf is the class of err, empty if it has none.
func classOf(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.ErrClass
	}
	var code pkcs11.Error
	if errors.As(err, &code) {
		return classOf(fault("", err, about{}))
	}
	return ""
}

// codeName is the name of a CK_RV with its number: "CKR_ARGUMENTS_BAD (0x7)".
func codeName(code uint) string {
	s := pkcs11.Error(code).Error() // "pkcs11: 0x7: CKR_ARGUMENTS_BAD"
	name := s[strings.LastIndex(s, " ")+1:]
	if !strings.HasPrefix(name, "CKR_") {
		name = "CKR_?"
		if code >= pkcs11.CKR_VENDOR_DEFINED {
			name = "CKR_VENDOR_DEFINED"
		}
	}
	return fmt.Sprintf("%s (0x%X)", name, code)
}
