package wire

import (
	"context"
	"errors"

	"hsmbridge/hsm/failure"
	"hsmbridge/hsm/wrapping"
)

// Failure is an error on its way.
type Failure struct {
	Text      string // the whole message
	Told      bool   // a [failure.Error] is in the chain: the fields below are its own
	Op        string
	Code      uint
	Name      string
	Class     string
	Cause     string
	Fix       string
	Mark      string
	Reason    string   // what the error was made from
	Sentinels []string // names of the table below
}

func (m *Failure) fields(c *coder) {
	text(c, &m.Text, maxText)
	c.flag(&m.Told)
	text(c, &m.Op, maxText)
	c.handle(&m.Code)
	text(c, &m.Name, maxName)
	text(c, &m.Class, maxName)
	text(c, &m.Cause, maxText)
	text(c, &m.Fix, maxText)
	text(c, &m.Mark, maxName)
	text(c, &m.Reason, maxText)
	list(c, &m.Sentinels, maxFew, func(s *string) { text(c, s, maxName) })
}

// sentinels are the errors that callers tell apart, by the name under which they travel.
func sentinels() []struct {
	name string
	err  error
} {
	return []struct {
		name string
		err  error
	}{
		{"not found", failure.ErrNotFound},
		{"ambiguous", failure.ErrAmbiguous},
		{"no public half", failure.ErrNoPublicHalf},
		{"exists", failure.ErrExists},
		{"not exportable", failure.ErrNotExportable},
		{"no such token", failure.ErrNoSuchToken},
		{"ambiguous token", failure.ErrAmbiguousToken},
		{"parked", failure.ErrParked},
		{"closed", failure.ErrClosed},
		{"unsafe output", wrapping.ErrUnsafeOutput},
		{"other length", wrapping.ErrOtherLength},
		{"cancelled", context.Canceled},
		{"deadline", context.DeadlineExceeded},
	}
}

// FailureOf makes an error ready to travel.
func FailureOf(err error) *Failure {
	f := &Failure{Text: cut(err.Error(), maxText)}
	for _, s := range sentinels() {
		if errors.Is(err, s.err) {
			f.Sentinels = append(f.Sentinels, s.name)
		}
	}
	var e *failure.Error
	if !errors.As(err, &e) {
		return f
	}
	f.Told, f.Code = true, e.Code
	f.Op, f.Cause, f.Fix = cut(e.Op, maxText), cut(e.Cause, maxText), cut(e.Fix, maxText)
	f.Name, f.Class, f.Mark = cut(e.Name, maxName), cut(e.ErrClass, maxName), cut(e.Mark, maxName)
	if e.Err != nil {
		f.Reason = cut(e.Err.Error(), maxText)
	}
	return f
}

func cut(s string, most int) string { return s[:min(len(s), most)] }

// Err is the error as it was: the same text, the same [failure.Error] in its chain, and the same answers of errors.Is for what callers
// tell apart. The PKCS#11 call's own error type stays behind.
func (m *Failure) Err() error {
	var is []error
	for _, s := range sentinels() {
		for _, name := range m.Sentinels {
			if name == s.name {
				is = append(is, s.err)
			}
		}
	}
	if !m.Told {
		return &carried{text: m.Text, is: is}
	}
	e := &failure.Error{Op: m.Op, Code: m.Code, Name: m.Name, ErrClass: m.Class, Cause: m.Cause, Fix: m.Fix, Mark: m.Mark}
	if m.Reason != "" || len(is) > 0 {
		e.Err = &carried{text: m.Reason, is: is}
	}
	if text := e.Error(); text != m.Text {
		return &carried{text: m.Text, is: []error{e}}
	}
	return e
}

// carried is an error that came from the other process.
type carried struct {
	text string
	is   []error
}

func (e *carried) Error() string   { return e.text }
func (e *carried) Unwrap() []error { return e.is }
