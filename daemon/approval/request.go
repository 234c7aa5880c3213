// Package approval is dual control: the text that officers sign, their SSH signatures, and the policy by which signatures become an
// approval. It is pure: no clock, no file, no network. The same code decides in the daemon and in the HSM room.
//
// What is approved is a [Request]: one text that says everything that will be done. Officers read it and sign exactly its bytes, with
// ssh-keygen -Y sign -n hsmbridge-approval or through an agent. [Policy.Decide] is the function to read.
package approval

import (
	"bytes"
	"crypto/sha256"
	"encoding/base32"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Purpose is what a request asks for.
type Purpose string

// The purposes.
const (
	Import   Purpose = "import"       // wrap one key for one destination and import it, once
	Standing Purpose = "standing"     // import the same material into one destination again, as often as it is due, until a date
	Revoke   Purpose = "revoke"       // delete a key's material from all its destinations
	Waive    Purpose = "waive-backup" // import a key although no second token holds a copy
)

// what is the sentence that an officer signs. It is part of the text.
func (p Purpose) what() string {
	switch p {
	case Import:
		return "Whoever signs this text lets hsmbridge have the HSM wrap this key for this destination, once, as it says below."
	case Standing:
		return "Whoever signs this text lets hsmbridge have the HSM wrap this same key material for this destination again and again, until the date below."
	case Revoke:
		return "Whoever signs this text lets hsmbridge delete this key's material from all its KMS keys. What they encrypted cannot be read until it is imported again."
	case Waive:
		return "Whoever signs this text lets hsmbridge import this key although no second token holds a copy of it. If the token is lost, the key is lost."
	}
	return ""
}

// Request is what officers approve. Its text is canonical: [Parse] takes exactly the bytes that [Request.Text] gives.
// Times are UTC in whole seconds. A field that does not apply is empty and has no line.
type Request struct {
	ID         string // random, as [NewID] makes it
	Purpose    Purpose
	AskedBy    string // user name; it does not count as an approval of an officer of that name
	AskedAt    time.Time
	ValidUntil time.Time
	Why        string

	Key      string // the managed key
	KeySpec  string
	HSM      string // manufacturer and model
	Serial   string // of the token
	Token    string // its label
	Firmware string
	Object   string // PKCS#11 URI of the key object
	Material string // what tells the material: "check value 1A2B3C", "public key SHA-256 ..."

	Destination   string // key ARN
	Endpoint      string // of KMS, when it is not AWS's own
	Action        string // import, restore, reimport
	Algorithm     string // wrapping algorithm, the only one allowed
	WrappingSpec  string // wrapping key spec, the only one allowed
	Mechanism     string // PKCS#11
	ImportType    string
	KeyMaterialID string
	Expires       string // of the material in KMS: a duration from the import on, or never
	Proof         string
	Plan          string // SHA-256 of the plan, hexadecimal

	// Of a request that is carried to the HSM: until when KMS takes what is wrapped, and the public keys. A second one, for
	// another wrap of the same key, is there for the proof.
	ParametersValidTo time.Time
	WrappingKeys      [][]byte // DER SubjectPublicKeyInfo
}

const (
	header  = "hsmbridge request for approval, version 1"
	pemType = "PUBLIC KEY"
	column  = 22 // where values begin

	maxText  = 64 << 10 // bytes
	maxValue = 700      // bytes
	maxKeys  = 2

	blank = '\u2800' // of Braille: a letter that looks like a space
)

// NewID is a random name for a request: 80 bits as 7K3M-9QXA-0B2C-D4EF.
func NewID(random io.Reader) (string, error) {
	b := make([]byte, 10)
	if _, err := io.ReadFull(random, b); err != nil {
		return "", fmt.Errorf("name a request: %w", err)
	}
	return grouped(b), nil
}

// Short is the beginning of a SHA-256, short enough to be read aloud: 80 bits as 7K3M-9QXA-0B2C-D4EF, in Crockford's base 32
// (no I, L, O, U).
func Short(sum []byte) string { return grouped(sum[:min(len(sum), 10)]) }

func grouped(b []byte) string {
	s := base32.NewEncoding("0123456789ABCDEFGHJKMNPQRSTVWXYZ").WithPadding(base32.NoPadding).EncodeToString(b)
	var groups []string
	for len(s) > 4 {
		groups, s = append(groups, s[:4]), s[4:]
	}
	return strings.Join(append(groups, s), "-")
}

// Fingerprint is the SHA-256 of a DER SubjectPublicKeyInfo, hexadecimal, as it is shown everywhere.
func Fingerprint(der []byte) string {
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:])
}

// Digest is the SHA-256 of a text: what its signatures are over, in the end.
func Digest(text []byte) []byte {
	sum := sha256.Sum256(text)
	return sum[:]
}

// Field is one line of a request: what an officer reads.
type Field struct{ Name, Value string }

// line is one field of the text: its name and where its value is. One of text and at is set.
type line struct {
	name     string
	text     *string
	at       *time.Time
	required bool
}

// lines is the form of the text, in order.
func (r *Request) lines() []line {
	purpose := (*string)(&r.Purpose)
	return []line{
		{name: "request", text: &r.ID, required: true},
		{name: "purpose", text: purpose, required: true},
		{name: "asked by", text: &r.AskedBy, required: true},
		{name: "asked at", at: &r.AskedAt, required: true},
		{name: "valid until", at: &r.ValidUntil, required: true},
		{name: "why", text: &r.Why},
		{name: "key", text: &r.Key, required: true},
		{name: "key spec", text: &r.KeySpec},
		{name: "HSM", text: &r.HSM},
		{name: "HSM serial", text: &r.Serial},
		{name: "HSM firmware", text: &r.Firmware},
		{name: "token", text: &r.Token},
		{name: "object", text: &r.Object},
		{name: "material", text: &r.Material},
		{name: "destination", text: &r.Destination},
		{name: "KMS endpoint", text: &r.Endpoint},
		{name: "action", text: &r.Action},
		{name: "wrapping algorithm", text: &r.Algorithm},
		{name: "wrapping key spec", text: &r.WrappingSpec},
		{name: "mechanism", text: &r.Mechanism},
		{name: "import type", text: &r.ImportType},
		{name: "key material ID", text: &r.KeyMaterialID},
		{name: "expires", text: &r.Expires},
		{name: "proof", text: &r.Proof},
		{name: "plan", text: &r.Plan},
		{name: "parameters until", at: &r.ParametersValidTo},
	}
}

// Fields are the lines of the text that say something.
func (r Request) Fields() []Field {
	var out []Field
	for _, l := range r.lines() {
		if v := l.value(); v != "" {
			out = append(out, Field{l.name, v})
		}
	}
	for i, der := range r.WrappingKeys {
		out = append(out, Field{keyName(i), Fingerprint(der)})
	}
	return out
}

func keyName(i int) string {
	if i == 0 {
		return "wrapping key SHA-256"
	}
	return "proof key SHA-256"
}

func (l line) value() string {
	switch {
	case l.text != nil:
		return *l.text
	case l.at.IsZero():
		return ""
	}
	return l.at.UTC().Format(time.RFC3339)
}

// Text is the canonical text. Values are one line each; what cannot stand in a line is an error.
func (r Request) Text() ([]byte, error) {
	var b bytes.Buffer
	what := r.Purpose.what()
	if what == "" {
		return nil, fmt.Errorf("%q is no purpose of a request", string(r.Purpose))
	}
	fmt.Fprintf(&b, "%s\n\n%s\n\n", header, what)
	for _, l := range r.lines() {
		v := l.value()
		if v == "" && l.required {
			return nil, fmt.Errorf("a request needs a value for %q", l.name)
		}
		if err := oneLine(v); err != nil {
			return nil, fmt.Errorf("%s: %w", l.name, err)
		}
		if l.at != nil && !l.at.Equal(l.at.Truncate(time.Second)) {
			return nil, fmt.Errorf("%s: times are in whole seconds", l.name)
		}
		if v != "" {
			fmt.Fprintf(&b, "%-*s%s\n", column, l.name+":", v)
		}
	}
	if len(r.WrappingKeys) > maxKeys {
		return nil, fmt.Errorf("a request has at most %d wrapping keys", maxKeys)
	}
	for i, der := range r.WrappingKeys {
		fmt.Fprintf(&b, "%-*s%s\n", column, keyName(i)+":", Fingerprint(der))
	}
	for _, der := range r.WrappingKeys {
		b.WriteByte('\n')
		if err := pem.Encode(&b, &pem.Block{Type: pemType, Bytes: der}); err != nil {
			return nil, fmt.Errorf("write a public key: %w", err)
		}
	}
	if b.Len() > maxText {
		return nil, fmt.Errorf("the text has %d bytes and may have %d", b.Len(), maxText)
	}
	return b.Bytes(), nil
}

// OneLine makes of a text what can stand in a request: characters that a person does not see, or that move others about, become '_'.
func OneLine(s string) string {
	s = strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) || unicode.In(r, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector) || r == blank {
			return '_'
		}
		return r
	}, strings.ToValidUTF8(s, "_"))
	s = strings.TrimSpace(s)
	for len(s) > maxValue {
		_, n := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-n]
	}
	return strings.TrimSpace(s)
}

func oneLine(v string) error {
	if v != OneLine(v) {
		return fmt.Errorf("%q has characters that cannot be shown in one line", v[:min(len(v), 80)])
	}
	return nil
}

// FormatError says why a text is not a request, with the line in which it goes wrong.
type FormatError struct {
	Line   int
	Reason string
}

func (e *FormatError) Error() string {
	return fmt.Sprintf("this is not a request for approval as hsmbridge writes it: line %d: %s", e.Line, e.Reason)
}

// Parse reads a text, strictly: it takes exactly what [Request.Text] writes, to the byte. The error is a [*FormatError].
func Parse(text []byte) (Request, error) {
	var r Request
	if len(text) > maxText {
		return r, &FormatError{1, fmt.Sprintf("the file has %d bytes, and a request has at most %d", len(text), maxText)}
	}
	p := parser{rest: string(text)}
	if got := p.next(); got != header {
		return r, &FormatError{1, fmt.Sprintf("it does not begin with %q", header)}
	}
	p.next()
	p.next() // the sentence is compared in the end
	p.next()
	lines := r.lines()
	for at := 0; p.rest != "" && !strings.HasPrefix(p.rest, "\n"); {
		name, value, ok := strings.Cut(p.next(), ":")
		value = strings.TrimLeft(value, " ")
		if !ok {
			return r, p.fail("it has no name and value")
		}
		if name == keyName(0) || name == keyName(1) {
			at = len(lines)
			continue // compared in the end
		}
		for at < len(lines) && lines[at].name != name {
			at++
		}
		if at == len(lines) {
			return r, p.fail(fmt.Sprintf("%q is unknown here, or stands there twice or in the wrong place", name[:min(len(name), 40)]))
		}
		if err := lines[at].set(value); err != nil {
			return r, p.fail(err.Error())
		}
		if r.Purpose != "" && r.Purpose.what() == "" {
			return r, p.fail(fmt.Sprintf("%q is no purpose of a request", value))
		}
		at++
	}
	for p.rest != "" {
		p.next()
		block, rest := pem.Decode([]byte(p.rest))
		if block == nil || block.Type != pemType || len(r.WrappingKeys) == maxKeys {
			p.line++
			return r, p.fail("only public keys in PEM may follow")
		}
		r.WrappingKeys = append(r.WrappingKeys, block.Bytes)
		p.line += strings.Count(p.rest[:len(p.rest)-len(rest)], "\n")
		p.rest = string(rest)
	}
	again, err := r.Text()
	if err != nil {
		return Request{}, p.fail(err.Error())
	}
	if !bytes.Equal(again, text) {
		return Request{}, &FormatError{firstDifference(again, text), "it is not written as hsmbridge writes it: somebody edited it, or a mail program changed it"}
	}
	return r, nil
}

type parser struct {
	rest string
	line int
}

func (p *parser) next() string {
	s, rest, _ := strings.Cut(p.rest, "\n")
	p.rest = rest
	p.line++
	return s
}

func (p *parser) fail(reason string) error { return &FormatError{p.line, reason} }

func (l line) set(value string) error {
	if err := oneLine(value); err != nil {
		return fmt.Errorf("%s: %w", l.name, err)
	}
	if l.text != nil {
		*l.text = value
		return nil
	}
	t, err := time.Parse(time.RFC3339, value)
	if err != nil {
		return fmt.Errorf("%s is not a time such as 2030-01-31T12:00:00Z", l.name)
	}
	if t.Nanosecond() != 0 {
		return fmt.Errorf("%s: times are in whole seconds", l.name)
	}
	*l.at = t.UTC()
	return nil
}

// firstDifference is the number of the first line that differs.
func firstDifference(a, b []byte) int {
	x, y := strings.Split(string(a), "\n"), strings.Split(string(b), "\n")
	for i := range min(len(x), len(y)) {
		if x[i] != y[i] {
			return i + 1
		}
	}
	return min(len(x), len(y))
}

// Class is "caller": the file has to be another one.
func (e *FormatError) Class() string { return "caller" }
