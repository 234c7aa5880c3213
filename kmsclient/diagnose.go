package kmsclient

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"unicode"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

// Codes of this package, for failures that are not answers of KMS.
const (
	codeCanceled      = "Canceled"
	codeNoCredentials = "NoCredentials"
	codeTimeout       = "Timeout"
	codeDNS           = "DNSFailure"
	codeTLS           = "TLSFailure"
	codeRefused       = "ConnectionRefused"
	codeUnreachable   = "Unreachable"
	codeCut           = "ConnectionCut"
	codeNotKMS        = "NotKMS"             // an answer that is not KMS's
	codeUnavailable   = "ServiceUnavailable" // the same with a status of 500 or more
	codeHeldBack      = "HeldBack"           // Config.Limit refused
	codeFailed        = "RequestFailed"      // anything else
)

// diagnosis is what can be told from an error of the SDK.
type diagnosis struct {
	code, message, requestID string
	status                   int
	err                      error // see [Error]
}

// diagnose reads an error of the SDK: an answer of KMS, or what went wrong on the way.
func diagnose(err error) diagnosis {
	var d diagnosis
	if e, ok := errors.AsType[*credentialsError](err); ok && !is[*smithy.CanceledError](err) {
		// What STS or another service says is about the credentials, not about the KMS key.
		d.code, d.err, d.message = codeNoCredentials, e.err, e.err.Error()
		if answer, ok := errors.AsType[smithy.APIError](e.err); ok {
			d.message = answer.ErrorCode() + ": " + answer.ErrorMessage()
		}
		return d
	}
	if r, ok := errors.AsType[*awshttp.ResponseError](err); ok {
		d.requestID = r.ServiceRequestID()
	}
	if r, ok := errors.AsType[*smithyhttp.ResponseError](err); ok {
		d.status = r.HTTPStatusCode()
	}
	if answer, ok := errors.AsType[smithy.APIError](err); ok {
		const unknown = "UnknownError" // the SDK's word for a code or a message that is not there
		if d.code = cleanCode(answer.ErrorCode()); d.code != "" && d.code != unknown {
			if d.message = answer.ErrorMessage(); d.message == unknown {
				d.message = ""
			}
			return d
		}
		return d.notKMS("HTTP " + strconv.Itoa(d.status) + " without an error code")
	}
	d.code, d.err = transportCode(err), cause(err)
	d.message = d.err.Error()
	if d.code == codeNotKMS {
		if d.status >= 300 {
			return d.notKMS("HTTP " + strconv.Itoa(d.status) + " and not JSON")
		}
		return d.notKMS(d.message)
	}
	return d
}

// notKMS is the diagnosis of an answer that KMS itself would not give.
func (d diagnosis) notKMS(message string) diagnosis {
	d.code, d.message = codeNotKMS, message
	if d.status >= http.StatusInternalServerError {
		d.code = codeUnavailable
	}
	return d
}

// transportCode finds the code for a failure without an answer of KMS. The order matters: a cancelled call
// fails on the network too, and a name that cannot be resolved is also a failed dial.
func transportCode(err error) string {
	switch {
	case is[*smithy.CanceledError](err), is[*aws.RequestCanceledError](err), errors.Is(err, context.Canceled):
		return codeCanceled
	case is[*limitError](err):
		return codeHeldBack
	case is[*credentialsError](err):
		return codeNoCredentials
	case is[*net.DNSError](err):
		return codeDNS
	case isTimeout(err):
		return codeTimeout
	case isTLS(err):
		return codeTLS
	case errors.Is(err, syscall.ECONNREFUSED):
		return codeRefused
	case isDial(err):
		return codeUnreachable
	case is[*notKMSError](err), is[*http.MaxBytesError](err):
		return codeNotKMS
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE),
		is[*smithyhttp.RequestSendError](err):
		return codeCut
	case is[*smithy.DeserializationError](err), is[*smithyhttp.ResponseError](err):
		return codeNotKMS
	}
	return codeFailed
}

func is[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.Is(err, context.DeadlineExceeded) || errors.As(err, &t) && t.Timeout()
}

func isTLS(err error) bool {
	return is[*tls.CertificateVerificationError](err) || is[tls.RecordHeaderError](err) || is[tls.AlertError](err) ||
		is[x509.UnknownAuthorityError](err) || is[x509.HostnameError](err) || is[x509.CertificateInvalidError](err) ||
		errors.Is(err, http.ErrSchemeMismatch) || isRemoteTLS(err)
}

// isRemoteTLS recognises an alert that the other side sent, which crypto/tls wraps in a net.OpError.
func isRemoteTLS(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "remote error"
}

func isDial(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && (op.Op == "dial" || op.Op == "proxyconnect")
}

// cause leaves out what the SDK wraps around the real reason.
func cause(err error) error {
	if e, ok := errors.AsType[*smithy.CanceledError](err); ok {
		return e.Err
	}
	if e, ok := errors.AsType[*aws.RequestCanceledError](err); ok {
		return e.Err
	}
	if e, ok := errors.AsType[*credentialsError](err); ok {
		return e.err
	}
	if e, ok := errors.AsType[*limitError](err); ok {
		return e.err
	}
	if e, ok := errors.AsType[*url.Error](err); ok {
		return e.Err
	}
	if e, ok := errors.AsType[*smithy.DeserializationError](err); ok && e.Err != nil {
		return e.Err
	}
	return err
}

// cleanCode strips a namespace before "#" and an address behind ":", both of which AWS JSON 1.1 allows.
func cleanCode(code string) string {
	code, _, _ = strings.Cut(code, ":")
	code = code[strings.LastIndexByte(code, '#')+1:]
	return strings.Map(func(r rune) rune {
		if r == '_' || r == '.' || r == '-' || r < unicode.MaxASCII && (unicode.IsLetter(r) || unicode.IsDigit(r)) {
			return r
		}
		return -1
	}, code[:min(len(code), 100)])
}

const maxMessage = 400

// oneLine is the first line of a text, printable and bounded: what others say goes into our messages and
// logs only like this.
func oneLine(s string) string {
	s = strings.TrimSpace(s)
	if i := strings.IndexAny(s, "\r\n"); i >= 0 {
		s = s[:i]
	}
	s = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return -1
	}, strings.ToValidUTF8(s, ""))
	if len(s) > maxMessage {
		s = strings.ToValidUTF8(s[:maxMessage], "") + "..."
	}
	return s
}

// safe is oneLine without what a service may echo of the request: signature errors show headers, and
// validation errors show values, which can be an import token or encrypted key material.
func safe(message string) string {
	lower := strings.ToLower(message)
	for _, echo := range []string{"authorization", "credential=", "signature=", "security-token", "canonical"} {
		if strings.Contains(lower, echo) {
			return ""
		}
	}
	const longest = 100 // a key material ID has 64 characters
	isData := func(r rune) bool {
		return r == '+' || r == '/' || r == '=' || r < unicode.MaxASCII && (unicode.IsLetter(r) || unicode.IsDigit(r))
	}
	var b strings.Builder
	for rest := message; rest != ""; {
		n := strings.IndexFunc(rest, func(r rune) bool { return !isData(r) })
		if n < 0 {
			n = len(rest)
		}
		if n > longest {
			b.WriteString("[" + strconv.Itoa(n) + " characters]")
		} else {
			b.WriteString(rest[:n])
		}
		rest = rest[n:]
		end := strings.IndexFunc(rest, isData)
		if end < 0 {
			end = len(rest)
		}
		b.WriteString(rest[:end])
		rest = rest[end:]
	}
	return oneLine(b.String())
}
