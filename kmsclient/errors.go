package kmsclient

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
)

// The classes of errors: what they decide.
const (
	ClassCaller = "caller" // this key, this request or this configuration: stop and explain; again gives the same answer
	ClassKMS    = "kms"    // KMS or the way to it: Retryable says whether the same request is worth sending again
)

// Error is every failure of this package that is not an [UntrustedParametersError]. It holds no
// credentials, no import token and no encrypted key material.
type Error struct {
	Op      string // the KMS operation, "ImportKeyMaterial"; "configuration" for errors of [New]
	KeyARN  string // as asked for; may be empty
	Code    string // KMS's error code, or one of this package's for what is not an answer of KMS: see the table
	Message string // what KMS said, or what the network did; one line; may be empty
	Cause   string // what happened
	Fix     string // what to do next

	RequestID string // empty if KMS did not answer
	Status    int    // HTTP status; 0 if there was no answer

	Retryable      bool // the same request may succeed later, and sending it again does no harm
	OutcomeUnknown bool // KMS may have done what was asked for: read back before asking again

	Err error // what the network, TLS, the context or the configuration said; nil for answers of KMS
}

// Error says what was asked for, what happened and what to do:
//
//	operation on key-id: CODE: cause (what KMS said); fix (request id)
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Op)
	if e.KeyARN != "" {
		b.WriteString(" on " + keyID(e.KeyARN))
	}
	for _, s := range []string{e.Code, e.Cause} {
		if s != "" {
			b.WriteString(": " + s)
		}
	}
	if e.Message != "" {
		fmt.Fprintf(&b, " (%s)", e.Message)
	}
	if e.Fix != "" {
		b.WriteString("; " + e.Fix)
	}
	if e.OutcomeUnknown {
		b.WriteString("; whether KMS did it all the same is not known: look at the key (DescribeKey) before asking again")
	}
	if e.RequestID != "" {
		fmt.Fprintf(&b, " (request %s)", e.RequestID)
	}
	return b.String()
}

// Unwrap gives the cause outside KMS, such as context.Canceled.
func (e *Error) Unwrap() error { return e.Err }

// Class is [ClassCaller] or [ClassKMS].
func (e *Error) Class() string {
	return lookUp(operation(e.Op), diagnosis{code: e.Code, status: e.Status}).class
}

// Code is the code of the [Error] in err's chain, such as "ExpiredImportTokenException"; empty if there is none.
func Code(err error) string {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code
	}
	return ""
}

// OutcomeUnknown says that err is a failure after which KMS may have done what was asked for: the request
// was on its way, and no answer came that rules it out. Only calls that change something have it.
func OutcomeUnknown(err error) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && e.OutcomeUnknown
}

// IsUnsupportedOperation says that the endpoint has no such operation, or not for this key: older
// partitions and KMS-compatible servers lack newer ones. For ListKeyRotations that includes a server which
// does not know the parameter IncludeKeyMaterial.
func IsUnsupportedOperation(err error) bool {
	e, ok := errors.AsType[*Error](err)
	switch {
	case !ok:
		return false
	case e.Code == "UnsupportedOperationException", slices.Contains(strings.Fields(codesNoSuch), e.Code):
		return true
	case slices.Contains(strings.Fields(codesInvalid), e.Code):
		return e.Op == string(opListKeyRotations)
	case e.Status == http.StatusNotFound:
		return e.Code == codeNotKMS // KMS's own NotFoundException is about the key
	}
	return e.Status == http.StatusNotImplemented
}

// newError explains a failed call. sent says that KMS may have got the request.
func newError(op operation, key string, err error, sent bool) *Error {
	d := diagnose(err)
	r := lookUp(op, d)
	e := &Error{
		Op: string(op), KeyARN: key, Code: d.code, Message: safe(d.message),
		RequestID: oneLine(d.requestID), Status: d.status, Err: d.err,
	}
	e.explain(r)
	e.OutcomeUnknown = op.changes() && sent && !refused(d)
	e.Retryable = r.retryable && !e.OutcomeUnknown
	return e
}

// localError is a refusal of this package, before anything was sent.
func localError(op operation, key, code, message string) *Error {
	e := &Error{Op: string(op), KeyARN: key, Code: code, Message: message}
	e.explain(lookUp(op, diagnosis{code: code}))
	return e
}

// configError is an error of [New].
func configError(code, message string, err error) *Error {
	e := localError("configuration", "", code, message)
	e.Err = err
	return e
}

// explain takes cause and fix from the table and puts the particulars of the call into them.
func (e *Error) explain(r row) {
	a, err := ParseARN(e.KeyARN)
	if err != nil {
		a = ARN{Region: "the called Region", Account: "the caller's account"}
	}
	fill := strings.NewReplacer("{op}", e.Op, "{region}", a.Region, "{account}", a.Account)
	e.Cause, e.Fix = fill.Replace(r.cause), fill.Replace(r.fix)
}

// refused says that KMS certainly did not do what was asked for: it said no, or that it was too busy.
func refused(d diagnosis) bool {
	if slices.Contains(strings.Fields(codesBusy), d.code) {
		return true
	}
	return d.code != codeNotKMS && http.StatusBadRequest <= d.status && d.status < http.StatusInternalServerError
}

// keyID shortens a key ARN to its key ID, and leaves anything else as it is.
func keyID(arn string) string {
	if a, err := ParseARN(arn); err == nil {
		return a.KeyID
	}
	return oneLine(arn)
}
