package runner

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"hsmbridge/daemon/importer"
	"hsmbridge/daemon/store"
	"hsmbridge/kmsclient"
)

// action is what happens after a failure.
type action int

const (
	again   action = iota // the job is tried again after some time
	stop                  // the job has failed; a person has to change something
	rest                  // the token is left alone for a while, then opened anew; its jobs wait
	park                  // the token is left alone until a person says so
	replace               // the process of the token's module is ended and replaced, and the job tried again
)

// rule says what to do about a code. The times double with every attempt, from first to most.
type rule struct {
	codes       string // of AWS, of PKCS#11 or of hsmbridge itself, separated by spaces; empty: any
	class       string // empty: any
	do          action
	first, most time.Duration
	tries       int64 // then it is a failure for a person; 0: for ever
	person      bool  // a person should look, although it is tried again
}

// rules is the whole policy of retries: the first row that fits counts, the last fits everything. A PIN is never tried twice, a refusal
// never repeated; what may pass by itself is tried for ever, ever more seldom.
func rules() []rule {
	const s, m, h = time.Second, time.Minute, time.Hour
	return []rule{
		// The token and its PIN.
		{codes: "CKR_PIN_INCORRECT CKR_PIN_INVALID CKR_PIN_LEN_RANGE CKR_PIN_EXPIRED CKR_PIN_LOCKED CKR_PIN_TOO_WEAK CKR_USER_PIN_NOT_INITIALIZED CKR_USER_TYPE_INVALID CKR_USER_TOO_MANY_TYPES", do: park, person: true},
		{codes: codeUnsafe, do: park, person: true},                                                                        // what C_WrapKey gave may be a key in the clear, and was dropped; no other job is to find out
		{codes: codePIN + " " + CodeLogin, do: park, person: true},                                                         // hsmbridge's own refusal to log in
		{codes: CodeParked, do: again, first: 6 * h, most: 6 * h},                                                          // unparking lets its jobs begin at once
		{codes: CodeResting, do: again, first: m, most: m},                                                                 //
		{codes: CodeNotReached, do: again, first: m, most: 10 * m, person: true},                                           // a daemon that reaches it may come
		{codes: codeOtherReplica, do: again, first: 30 * s, most: 10 * m, person: true},                                    // not tried there again; another token may come back
		{codes: codeNotHere, do: again, first: 30 * s, most: 10 * m},                                                       // the key's own token may come back
		{codes: codePINSource, do: rest, first: 5 * m, most: 5 * m, person: true},                                          // no login was tried
		{codes: codeModuleDies, do: park, person: true},                                                                    // its process died again and again
		{codes: codesDied, do: again, first: 5 * s, most: 5 * m},                                                           // a hang or a crash: the process is replaced already
		{codes: "CKR_CRYPTOKI_NOT_INITIALIZED CKR_MUTEX_BAD CKR_MUTEX_NOT_LOCKED", do: replace, first: 5 * s, most: 5 * m}, // the module's state in its process is broken
		{codes: "CKR_HOST_MEMORY CKR_DEVICE_MEMORY CKR_SESSION_COUNT", do: again, first: 30 * s, most: 10 * m},             // too much at a time
		{codes: "CKR_GENERAL_ERROR CKR_FUNCTION_FAILED", do: again, first: 5 * s, most: 5 * m},                             // says nothing about what is wrong
		{class: "library", do: replace, first: 5 * s, most: 5 * m},
		{class: "token", do: rest, first: 30 * s, most: 5 * m}, // removed, restarting, unreachable
		{class: "session", do: again, first: 5 * s, most: 5 * m},

		// Officers. Their signatures, a rejection and the end of a request wake the job.
		{codes: CodeApproval, do: again, first: 6 * h, most: 6 * h, person: true},
		{codes: codeRequestClosed, do: again, first: s, most: m},
		{codes: codeRejected, do: stop},
		{codes: codeChanged, do: again, first: s, most: m},

		// The import.
		{codes: "ExpiredImportTokenException", do: again, first: s, most: m},                                       // parameters are fetched anew
		{codes: "InvalidImportTokenException", do: again, first: 30 * s, most: 10 * m, tries: 5},                   // a replica of KMS that lags behind
		{codes: "IncorrectKeyMaterialException InvalidCiphertextException " + codeMismatch, do: stop},              // never sent twice: the key or its wrapping is wrong
		{codes: codeNoBackup, do: again, first: 10 * m, most: 6 * h, person: true},                                 // the copy may come
		{codes: CodeNoReplica, do: again, first: m, most: 6 * h, person: true},                                     // a copy that is seen lets it begin at once
		{codes: CodeClock, do: again, first: m, most: 10 * m, person: true},                                        // the clock may be set right
		{codes: codePrimaryFirst, do: again, first: 5 * s, most: 10 * m},                                           // the job for the primary is under way
		{codes: codeRotating, do: again, first: 30 * s, most: 10 * m},                                              // asked for, and not yet shown
		{codes: "LimitExceededException UnsupportedOperationException ValidationException", do: stop},              // KMS says no
		{codes: "NotFoundException", class: "caller", do: again, first: m, most: 6 * h, person: true},              // eventually consistent, or deleted
		{codes: "KMSInvalidStateException ConflictException", do: again, first: 15 * s, most: 6 * h, person: true}, // eventually consistent, or scheduled for deletion
		{codes: "DisabledException KeyUnavailableException", do: again, first: m, most: 6 * h, person: true},

		// Permission: it comes back when somebody mends it.
		{codes: "AccessDeniedException AccessDenied NotAuthorized UnauthorizedOperation", do: again, first: 10 * m, most: 6 * h, person: true},
		{codes: "NoCredentials ExpiredTokenException ExpiredToken RequestExpired RequestTimeTooSkewed", do: again, first: m, most: h, person: true},
		{codes: "UnrecognizedClientException InvalidClientTokenId InvalidSignatureException SignatureDoesNotMatch", do: again, first: 10 * m, most: 6 * h, person: true},

		// KMS and the way to it.
		{codes: "ThrottlingException Throttling ThrottledException TooManyRequestsException RequestLimitExceeded SlowDown HeldBack", do: again, first: 5 * s, most: 10 * m},
		{codes: "TLSFailure NotKMS", do: again, first: m, most: h, person: true},
		{class: "kms", do: again, first: 10 * s, most: 15 * m},

		{class: "database", do: again, first: 5 * s, most: m}, // the journal comes first: nothing is done that cannot be written down
		{class: "caller", do: stop},
		{do: again, first: m, most: h, person: true},
	}
}

// Codes of hsmbridge itself.
const (
	codePIN       = "PINRefused"
	codePINSource = "PINUnavailable"
	codeUnsafe    = "UnsafeOutput" // of hsm/failure
	CodeParked    = "TokenParked"
	CodeLogin     = "LoginUnknown"
	CodeResting   = "TokenResting"
	codeMismatch  = "NotTheSameKey"
	codeNoBackup  = "NoBackup"
	codeOtherKey  = "OtherKey"

	CodeNotReached = "TokenNotReached"
	CodeNoReplica  = "NoReplica"
	codeNotHere    = "NotHere"

	codeOtherReplica = "OtherReplica"

	CodeClock    = "ClockSkew"
	codeRotating = "RotationPending"

	codePrimaryFirst = "PrimaryFirst"
	codeModuleDies   = "ModuleDies"
	codeOverdue      = "HSMCallTimeout" // of hsm/failure, as the next two
	codeLied         = "HSMProtocol"
	codesDied        = codeOverdue + " HSMProcessDied " + codeLied
)

// A module whose process died so often in so long a time is left alone: each new one logs in again.
const (
	maxDeaths = 3
	deathsIn  = 10 * time.Minute
)

// Died says that the error is the end of the process of a token's module.
func Died(err error) bool { return slices.Contains(strings.Fields(codesDied), codeOf(err)) }

// Overdue says that the process of a token's module was ended because a call did not come back in time.
func Overdue(err error) bool { return codeOf(err) == codeOverdue }

// Lied says that the process of a token's module was ended because it answered what it must not.
func Lied(err error) bool { return codeOf(err) == codeLied }

// DiesTooOften says that the processes of a token's module, which ended at these times, ended too often.
func DiesTooOften(deaths []time.Time, now time.Time) bool {
	recent := 0
	for _, at := range deaths {
		if now.Sub(at).Abs() < deathsIn {
			recent++
		}
	}
	return recent >= maxDeaths
}

// ModuleDies is the reason for which a token is parked then.
func ModuleDies(token string, times int, last error) error {
	return &Error{
		ErrCode: codeModuleDies, ErrClass: "token", Err: last,
		Message: fmt.Sprintf("the process of the module of token %s ended %d times within %s; look at the HSM, its module and the log; the last end", token, times, deathsIn),
	}
}

// Parks says that after this error the token is left alone until a person says so.
func Parks(err error) bool { return find(codeOf(err), importer.Class(err)).do == park }

// ParkCodes are the codes of jobs that wait until a person lets a token be used.
func ParkCodes() []string {
	codes := []string{CodeParked}
	for _, r := range rules() {
		if r.do == park {
			codes = append(codes, strings.Fields(r.codes)...)
		}
	}
	return codes
}

// WaitsForReplicas are the codes of jobs that wait for what a token holds.
func WaitsForReplicas() []string { return []string{CodeNoReplica, codeNotHere} }

// ParksHere says that a token with this code is left alone by the daemon that found out, and not by the others: the module of each has a process of its own.
func ParksHere(code string) bool { return code == codeModuleDies }

// ParksOpen says that a token which was parked with this code, by whichever daemon, is not used either by those that have it open: what the HSM does is to blame, and not
// a login.
func ParksOpen(code string) bool { return code == codeUnsafe }

// NeedsPerson says that after this error somebody has to mend something, although it is tried again.
func NeedsPerson(err error) bool { return find(codeOf(err), importer.Class(err)).person }

// LoginKnown says that the error of a login tells what became of it: the token answered, or was not asked.
func LoginKnown(err error) bool {
	code := codeOf(err)
	return strings.HasPrefix(code, "CKR_") || code == codePIN || code == codePINSource
}

// Rests says how long a token is left alone after this error, first.
func Rests(err error) time.Duration {
	return max(find(codeOf(err), importer.Class(err)).first, 5*time.Second)
}

// Action says in a word what the table has done about an error: "again", "stop", "rest", "park" or "replace".
func Action(err error) string {
	return [...]string{again: "again", stop: "stop", rest: "rest", park: "park", replace: "replace"}[find(codeOf(err), importer.Class(err)).do]
}

// Code is the code by which the table knows an error: of AWS, of PKCS#11 or of hsmbridge.
func Code(err error) string { return codeOf(err) }

// find gives the rule for an error.
func find(code, class string) rule {
	table := rules()
	i := slices.IndexFunc(table, func(r rule) bool {
		return (r.codes == "" || slices.Contains(strings.Fields(r.codes), code)) && (r.class == "" || r.class == class)
	})
	return table[i]
}

// delay is how long to wait after so many attempts.
func (r rule) delay(attempts int64) time.Duration {
	d := r.first
	for i := int64(1); i < attempts && d < r.most; i++ {
		d *= 2
	}
	return min(d, r.most)
}

// codeOf is the code by which an error is looked up.
func codeOf(err error) string {
	var coded interface{ Code() string }
	var ckr interface{ CKR() string }
	var pending *importer.RotationPendingError
	switch {
	case errors.As(err, &coded):
		return coded.Code()
	case errors.Is(err, importer.ErrNotSameKey):
		return codeMismatch
	case errors.As(err, &pending):
		return codeRotating
	case errors.As(err, &ckr) && ckr.CKR() != "":
		return ckr.CKR()
	}
	return kmsclient.Code(err)
}

// Error is a failure with a code and a class of the table.
type Error struct {
	ErrCode  string
	ErrClass string
	Message  string
	Waits    string // the request for approval that the job waits for
	Err      error
}

func (e *Error) Error() string {
	if e.Err != nil {
		return e.Message + ": " + e.Err.Error()
	}
	return e.Message
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

// Code is the code for the table.
func (e *Error) Code() string { return e.ErrCode }

// Class is the class for the table.
func (e *Error) Class() string { return e.ErrClass }

// verdict is what a failure means for a job.
type verdict struct {
	outcome store.Outcome
	do      action
	delay   time.Duration
}

// judge decides what happens after a failed attempt.
func (r *Runner) judge(ctx context.Context, j store.Job, err error) verdict {
	o := store.Outcome{State: store.Waiting, Error: err.Error(), ErrorClass: importer.Class(err), ErrorCode: codeOf(err), Message: err.Error()}
	var told *Error
	if errors.As(err, &told) {
		o.Waits = told.Waits
	}
	switch {
	case errors.Is(err, store.ErrRevoked), errors.Is(err, store.ErrCancelled):
		o.State, o.Error = store.Cancelled, ""
		return verdict{outcome: o, do: stop}
	case errors.Is(err, errStopping), ctx.Err() != nil && r.stopping():
		o.State, o.Error, o.ErrorClass, o.ErrorCode = store.Queued, "", "", ""
		o.Message = "handed back, because the daemon ends; what was done so far stays"
		return verdict{outcome: o, do: again}
	}
	row := find(o.ErrorCode, o.ErrorClass)
	if o.ErrorCode == "" && errors.Is(err, context.DeadlineExceeded) {
		row = rule{do: again, first: 30 * time.Second, most: 15 * time.Minute}
	}
	if j.Kind == store.KindRevoke && row.do == stop {
		row = rule{do: again, first: time.Minute, most: 10 * time.Minute, person: true} // what was revoked must go
	}
	o.NeedsPerson = row.person || row.do == stop
	if row.do == stop || row.tries > 0 && j.Attempts >= row.tries {
		o.State, o.NeedsPerson = store.Failed, true
		return verdict{outcome: o, do: stop}
	}
	v := verdict{do: row.do, delay: row.delay(j.Attempts)}
	wait := v.delay
	if row.do == park {
		wait = find(CodeParked, "").first
	}
	// Jobs that failed together are not tried together.
	wait += wait / 10 * time.Duration(j.ID%10) / 10
	o.NotBefore = r.Now().Add(wait)
	v.outcome = o
	return v
}
