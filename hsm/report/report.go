// Package report is what a probe found on a token, in a form that a user can give away: no label, no serial number, no path, nothing that
// names a site. A profile and a test case are made from it: [Report.Capabilities] is enough for wrapping.Select to choose.
//
// It is pure: no token, no file.
package report

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"hsmbridge/hsm/quirks"
	"hsmbridge/hsm/wrapping"
)

// Version is the version of the format. A reader refuses any other.
const Version = 1

// maxBytes is the largest report that is read: some 20 times the longest.
const maxBytes = 4 << 20

// Report is one report. Its text form is JSON with one line for each field and each element of a list: see [Report.Encode].
type Report struct {
	Version    int         `json:"version"`
	Hsmbridge  string      `json:"hsmbridge"` // version of the program
	OS         string      `json:"os"`
	Arch       string      `json:"arch"`
	Module     string      `json:"module"` // file name of a module that the table of families knows; empty for any other
	Library    Library     `json:"library"`
	Token      Token       `json:"token"`
	Family     string      `json:"family"` // row of the table of families; empty: none
	Quirks     []string    `json:"quirks"` // that were applied
	Mechanisms []Mechanism `json:"mechanisms"`
	Trials     []Trial     `json:"trials"`
}

// Library is CK_INFO.
type Library struct {
	Manufacturer string `json:"manufacturer"`
	Description  string `json:"description"`
	Version      string `json:"version"`
	Cryptoki     string `json:"cryptoki"`
}

// Token is CK_TOKEN_INFO without what names one token: its label and its serial number.
type Token struct {
	Manufacturer string `json:"manufacturer"`
	Model        string `json:"model"`
	Hardware     string `json:"hardware_version"`
	Firmware     string `json:"firmware_version"`
}

// Mechanism is an entry of the token's list.
type Mechanism struct {
	Type  string `json:"type"`  // CK_MECHANISM_TYPE, "0x00001054"
	Flags string `json:"flags"` // CK_MECHANISM_INFO.flags, "0x00060000"; empty when the token does not say
	Min   uint   `json:"min_size"`
	Max   uint   `json:"max_size"`
}

// Trial is a known-answer trial.
type Trial struct {
	KeySpec         wrapping.KeySpec         `json:"key_spec"`
	Algorithm       wrapping.Algorithm       `json:"wrapping_algorithm"`
	WrappingKeySpec wrapping.WrappingKeySpec `json:"wrapping_key_spec"`
	Mechanism       string                   `json:"mechanism"`
	Type            string                   `json:"type"`
	Form            wrapping.Form            `json:"form"`
	Outcome         wrapping.Outcome         `json:"outcome"`
	CKR             string                   `json:"ckr,omitempty"` // the code in Reason, "CKR_MECHANISM_INVALID"
	Reason          string                   `json:"reason,omitempty"`
	Length          int                      `json:"length"`
}

// Number is the form of a CK_ULONG in a report.
func Number(n uint) string { return fmt.Sprintf("0x%08X", n) }

// New makes a report of what was found. Private is everything that must not appear: the token's label and serial number, the slot's
// description, names, paths and addresses of the configuration. It is taken out of every text that a token or a vendor wrote.
func New(r Report, caps wrapping.Capabilities, q quirks.Quirks, private []string) Report {
	r.Version = Version
	r.Token = Token{caps.Token.Manufacturer, caps.Token.Model, caps.Token.Hardware, caps.Token.Firmware}
	r.Family, r.Quirks = q.Family, q.Applied()
	r.Module = knownModule(r.Module)
	clean := redactor(append(slices.Clone(private), caps.Token.Label, caps.Token.Serial))
	for _, text := range []*string{
		&r.Library.Manufacturer, &r.Library.Description, &r.Library.Version, &r.Library.Cryptoki,
		&r.Token.Manufacturer, &r.Token.Model, &r.Token.Hardware, &r.Token.Firmware,
	} {
		*text = clean(*text)
	}
	ckr := regexp.MustCompile(`\bCKR_[A-Z0-9_?]+`)
	for _, t := range caps.Trials {
		r.Trials = append(r.Trials, Trial{
			KeySpec: t.KeySpec, Algorithm: t.Algorithm, WrappingKeySpec: t.WrappingKeySpec, Mechanism: t.Mechanism.Name, Type: Number(t.Mechanism.Type),
			Form: t.Mechanism.Form, Outcome: t.Outcome, CKR: ckr.FindString(t.Reason), Reason: clean(t.Reason), Length: t.Length,
		})
	}
	return r
}

// knownModule is the file's name if the table knows it: a name that somebody gave to a copy may say where it is used.
func knownModule(path string) string {
	name := path[strings.LastIndexByte(path, '/')+1:]
	f, ok := quirks.Find(quirks.Seen{Module: name})
	if !ok {
		return ""
	}
	for _, m := range f.Match {
		if m.Module != "" && regexp.MustCompile(`(?i)^(lib)?`+regexp.QuoteMeta(strings.TrimPrefix(m.Module, "lib"))+`(_?(32|64|R[0-9]))?\.so(\.[0-9]+)*$`).MatchString(name) {
			return name
		}
	}
	return ""
}

const redacted = "[redacted]"

// redactor takes private texts out of another, in any case of letters. One of one or two characters is taken out only where it is
// the whole text: it would be found in any word.
func redactor(private []string) func(string) string {
	private = slices.DeleteFunc(private, func(p string) bool { return strings.TrimSpace(p) == "" })
	slices.SortFunc(private, func(a, b string) int { return len(b) - len(a) }) // the longest first: one may hold another
	return func(text string) string {
		for _, p := range private {
			if strings.EqualFold(text, p) {
				return redacted
			}
			if len(p) > 2 {
				text = regexp.MustCompile(`(?i)`+regexp.QuoteMeta(p)).ReplaceAllLiteralString(text, redacted)
			}
		}
		return text
	}
}

// Encode is the report's text. Equal reports have equal texts.
func (r Report) Encode() ([]byte, error) {
	var b bytes.Buffer
	b.WriteString("{\n")
	line := func(indent, name string, v any, last bool) error {
		text, err := json.Marshal(v)
		if err != nil {
			return err
		}
		b.WriteString(indent)
		if name != "" {
			fmt.Fprintf(&b, "%q: ", name)
		}
		b.Write(text)
		if !last {
			b.WriteByte(',')
		}
		b.WriteByte('\n')
		return nil
	}
	var errs []error
	for _, f := range []struct {
		name string
		v    any
	}{
		{"version", r.Version}, {"hsmbridge", r.Hsmbridge}, {"os", r.OS}, {"arch", r.Arch}, {"module", r.Module}, {"library", r.Library}, {"token", r.Token}, {"family", r.Family},
	} {
		errs = append(errs, line("  ", f.name, f.v, false))
	}
	list := func(name string, n int, element func(i int) any, last bool) {
		fmt.Fprintf(&b, "  %q: [", name)
		if n > 0 {
			b.WriteByte('\n')
			for i := range n {
				errs = append(errs, line("    ", "", element(i), i == n-1))
			}
			b.WriteString("  ")
		}
		b.WriteByte(']')
		if !last {
			b.WriteByte(',')
		}
		b.WriteByte('\n')
	}
	list("quirks", len(r.Quirks), func(i int) any { return r.Quirks[i] }, false)
	list("mechanisms", len(r.Mechanisms), func(i int) any { return r.Mechanisms[i] }, false)
	list("trials", len(r.Trials), func(i int) any { return r.Trials[i] }, true)
	b.WriteString("}\n")
	return b.Bytes(), errors.Join(errs...)
}

// Parse reads a report, and nothing but what [Report.Encode] writes: byte for byte.
func Parse(text []byte) (Report, error) {
	var r Report
	if len(text) > maxBytes {
		return r, errors.New("larger than 4 MiB: this is no report of hsmbridge probe")
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		return Report{}, fmt.Errorf("read the report: %w", err)
	}
	if r.Version != Version {
		return Report{}, fmt.Errorf("the report has version %d, and this hsmbridge reads version %d", r.Version, Version)
	}
	if err := r.check(); err != nil {
		return Report{}, err
	}
	again, err := r.Encode()
	if err != nil {
		return Report{}, err
	}
	if !bytes.Equal(again, text) {
		return Report{}, errors.New("the report is not as hsmbridge probe --report wrote it: it was changed or reformatted")
	}
	return r, nil
}

// check holds the fields that have a form.
func (r Report) check() error {
	number := regexp.MustCompile(`^0x[0-9A-F]{8,16}$`)
	for _, m := range r.Mechanisms {
		if !number.MatchString(m.Type) || m.Flags != "" && !number.MatchString(m.Flags) {
			return fmt.Errorf("the report has a mechanism %q with flags %q", m.Type, m.Flags)
		}
	}
	for _, t := range r.Trials {
		switch {
		case !slices.Contains(wrapping.KeySpecs(), t.KeySpec), !slices.Contains(wrapping.Algorithms(), t.Algorithm), !slices.Contains(wrapping.WrappingKeySpecs(), t.WrappingKeySpec):
			return fmt.Errorf("the report has a trial of %q with %q under %q", t.KeySpec, t.Algorithm, t.WrappingKeySpec)
		case !number.MatchString(t.Type), !slices.Contains([]wrapping.Form{wrapping.FormOAEP, wrapping.FormPKCS1, wrapping.FormNative, wrapping.FormKWP, wrapping.FormKWPIV}, t.Form):
			return fmt.Errorf("the report has a trial of the mechanism %q in the form %q", t.Type, t.Form)
		case !slices.Contains([]wrapping.Outcome{wrapping.Exact, wrapping.Padded, wrapping.Failed}, t.Outcome), t.Length < 0:
			return fmt.Errorf("the report has a trial with the outcome %q and the length %d", t.Outcome, t.Length)
		}
	}
	return nil
}

// Seen is what the token said of itself, by which its row of the table of families is found.
func (r Report) Seen() quirks.Seen {
	return quirks.Seen{
		Manufacturer: r.Token.Manufacturer, Model: r.Token.Model, Firmware: r.Token.Firmware,
		LibraryManufacturer: r.Library.Manufacturer, Library: r.Library.Description, Module: r.Module,
	}
}

// Capabilities is what the trials proved, for wrapping.Select.
func (r Report) Capabilities() wrapping.Capabilities {
	c := wrapping.Capabilities{Token: wrapping.TokenIdentity{Manufacturer: r.Token.Manufacturer, Model: r.Token.Model, Hardware: r.Token.Hardware, Firmware: r.Token.Firmware}}
	for _, t := range r.Trials {
		n, _ := strconv.ParseUint(t.Type, 0, 64) // held by check
		c.Trials = append(c.Trials, wrapping.Trial{
			KeySpec: t.KeySpec, Algorithm: t.Algorithm, WrappingKeySpec: t.WrappingKeySpec, Outcome: t.Outcome, Reason: t.Reason, Length: t.Length,
			Mechanism: wrapping.Mechanism{Name: t.Mechanism, Type: uint(n), Form: t.Form},
		})
	}
	return c
}
