package hsm

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/miekg/pkcs11"

	"hsmbridge/hsm/failure"
)

// The classes of errors; each decides what happens next. Source: package failure.
const (
	ClassCaller  = failure.ClassCaller
	ClassSession = failure.ClassSession
	ClassToken   = failure.ClassToken
	ClassLibrary = failure.ClassLibrary
)

// What [Error.CKR] gives where no call was made.
const (
	PINRefused     = failure.PINRefused
	PINUnavailable = failure.PINUnavailable
)

// Errors that callers tell apart.
var (
	ErrNotFound       = failure.ErrNotFound
	ErrAmbiguous      = failure.ErrAmbiguous
	ErrNoPublicHalf   = failure.ErrNoPublicHalf
	ErrExists         = failure.ErrExists
	ErrNotExportable  = failure.ErrNotExportable // the token was not asked
	ErrNoSuchToken    = failure.ErrNoSuchToken
	ErrAmbiguousToken = failure.ErrAmbiguousToken
	ErrParked         = failure.ErrParked // until a person has acted
	errClosed         = failure.ErrClosed
)

// Error is what went wrong in a token, translated. The type is that of a pure package, because errors also come from a module in
// another process.
type Error = failure.Error

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
		return &Error{Op: op, ErrClass: ClassLibrary, Cause: "the PKCS#11 module answered against the standard: " + err.Error(), Fix: "run this again, and report the module to its vendor", Err: err}
	}
	e := &Error{Op: op, Code: uint(code), Name: codeName(uint(code)), Err: err, ErrClass: ClassToken, Cause: "the token refused", Fix: "look at the HSM's own log, and for this code in the vendor's manual"}
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

// codeOf is the CKR code in err, 0 if there is none.
func codeOf(err error) uint {
	var got pkcs11.Error
	if errors.As(err, &got) {
		return uint(got)
	}
	return 0
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

// onlyCaller says that err, which may be several errors, tells nothing against the session in which it happened.
func onlyCaller(err error) bool {
	return err == nil || hasClass(err, ClassCaller) && !hasClass(err, ClassSession) && !hasClass(err, ClassToken) && !hasClass(err, ClassLibrary)
}

// hasClass says that err, or one of the errors that are joined in it, is of the class.
func hasClass(err error, class string) bool {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return slices.ContainsFunc(joined.Unwrap(), func(one error) bool { return hasClass(one, class) })
	}
	return err != nil && classOf(err) == class
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
