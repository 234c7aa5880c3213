package approval

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Policy says whose signatures make an approval.
type Policy struct {
	Officers                []Officer
	Threshold               int // so many different people
	RequireHardware         bool
	RequireUserVerification bool // the authenticator asked for its PIN or a fingerprint
}

// Reason is why a signature does not count.
type Reason string

// The reasons.
const (
	NotASignature  Reason = "not-a-signature"
	WrongNamespace Reason = "wrong-namespace"
	OtherText      Reason = "other-request"
	NotAnOfficer   Reason = "not-an-officer"
	OutOfTime      Reason = "key-not-valid"
	NoHardware     Reason = "no-hardware-key"
	NoTouch        Reason = "no-touch"
	NoVerification Reason = "no-user-verification"
	Requester      Reason = "requester"
	SamePerson     Reason = "same-person"
	RequestExpired Reason = "request-expired"
	RequestNotYet  Reason = "request-of-the-future"
	NotEnough      Reason = "not-enough"
	officersTooFew        = "the officers are fewer than the threshold"
	maxClock              = 5 * time.Minute // what the clocks of two machines may differ
)

// Verdict is what a signature is worth.
type Verdict struct {
	Officer  string `json:"officer,omitempty"` // empty: nobody's
	Key      string `json:"key,omitempty"`     // SHA-256 fingerprint of the SSH key
	Hardware bool   `json:"hardware,omitempty"`
	Present  bool   `json:"user_presence,omitempty"`
	Verified bool   `json:"user_verification,omitempty"`
	Counts   bool   `json:"counts"`
	Reason   Reason `json:"reason,omitempty"` // why it does not count
	Message  string `json:"message,omitempty"`
}

// Decision is what signatures are worth together.
type Decision struct {
	Request   Request   `json:"-"`
	Need      int       `json:"need"`
	Have      int       `json:"have"` // different people whose signatures count
	Verdicts  []Verdict `json:"signatures"`
	Approved  bool      `json:"approved"`
	Reason    Reason    `json:"reason,omitempty"`
	Message   string    `json:"message,omitempty"` // why it is not approved, and what to do
	Remaining []string  `json:"remaining,omitempty"`
}

// People are the officers whose signatures count.
func (d Decision) People() []string {
	var out []string
	for _, v := range d.Verdicts {
		if v.Counts {
			out = append(out, v.Officer)
		}
	}
	return out
}

// NotApprovedError says why something is not approved.
type NotApprovedError struct{ Decision Decision }

func (e *NotApprovedError) Error() string {
	return fmt.Sprintf("request %s for %s is not approved: %s", e.Decision.Request.ID, e.Decision.Request.Key, e.Decision.Message)
}

// Class is "caller": people have to act.
func (e *NotApprovedError) Class() string { return "caller" }

// Code names the reason, for tables.
func (e *NotApprovedError) Code() string { return "NotApproved" }

// Err is nil when it is approved, else a [*NotApprovedError].
func (d Decision) Err() error {
	if d.Approved {
		return nil
	}
	return &NotApprovedError{d}
}

// Decide says whether the signatures approve the request of this text now. Each is checked: form, namespace, officer, the time in which
// the officer's key is valid, hardware flags, and that it is over exactly these bytes. Two keys of one person count once, and the
// person who asked does not count. The error says that the text is no request at all.
func (p Policy) Decide(text []byte, signatures [][]byte, now time.Time) (Decision, error) {
	r, err := Parse(text)
	if err != nil {
		return Decision{}, err
	}
	d := Decision{Request: r, Need: p.Threshold}
	seen := map[string]bool{}
	for _, s := range signatures {
		v := p.judge(r, text, Namespace, s, now)
		who := strings.ToLower(v.Officer)
		if v.Counts && seen[who] {
			v.Counts, v.Reason, v.Message = false, SamePerson, v.Officer+" has signed already: two keys of one person count once"
		}
		if v.Counts {
			seen[who] = true
			d.Have++
		}
		d.Verdicts = append(d.Verdicts, v)
	}
	for _, o := range p.Officers {
		if !seen[strings.ToLower(o.Name)] && !o.is(r.AskedBy) && p.able(o, now) {
			d.Remaining = append(d.Remaining, o.Name)
		}
	}
	switch {
	case p.Threshold < 1:
		d.Reason, d.Message = NotEnough, "the policy has no threshold"
	case !now.Before(r.ValidUntil):
		d.Reason, d.Message = RequestExpired, fmt.Sprintf("it was valid until %s, and it is %s now: ask again, and have it signed again", stamp(r.ValidUntil), stamp(now))
	case r.AskedAt.After(now.Add(maxClock)):
		d.Reason, d.Message = RequestNotYet, fmt.Sprintf("it was asked for at %s, and it is only %s now: set the clock of this machine, or of the one that made it", stamp(r.AskedAt), stamp(now))
	case d.Have < p.Threshold:
		d.Reason, d.Message = NotEnough, d.tooFew()
	default:
		d.Approved = true
	}
	return d, nil
}

// able says whether an officer has a key that could count now.
func (p Policy) able(o Officer, now time.Time) bool {
	return slices.ContainsFunc(o.Keys, func(k Key) bool {
		return k.counts(now) && (k.Hardware() || !p.RequireHardware && !p.RequireUserVerification)
	})
}

func (d Decision) tooFew() string {
	s := fmt.Sprintf("%d of %d approvals", d.Have, d.Need)
	for _, v := range d.Verdicts {
		if !v.Counts {
			s += "; one does not count: " + v.Message
		}
	}
	if len(d.Remaining) == 0 || d.Have+len(d.Remaining) < d.Need {
		return s + "; " + officersTooFew + ", whoever asked left out"
	}
	return s + "; still to be asked: " + strings.Join(d.Remaining, ", ")
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// judge says what one signature over a text about a request is worth.
func (p Policy) judge(r Request, text []byte, namespace string, armored []byte, now time.Time) Verdict {
	s, err := ParseSignature(armored)
	if err != nil {
		return Verdict{Reason: NotASignature, Message: err.Error()}
	}
	v := Verdict{Key: s.SHA256(), Hardware: hardware(s.Key)}
	flags := s.flags()
	v.Present, v.Verified = flags&flagPresent != 0, flags&flagVerified != 0
	no := func(reason Reason, format string, args ...any) Verdict {
		v.Reason, v.Message = reason, fmt.Sprintf(format, args...)
		return v
	}
	officer, key, err := p.owner(s)
	if err != nil {
		return no(NotAnOfficer, "%v", err)
	}
	who := officer.Name
	switch {
	case s.Namespace != namespace:
		return no(WrongNamespace, "the signature of %s is for the namespace %q and not for %q: sign with ssh-keygen -Y sign -n %s", who, OneLine(s.Namespace), namespace, namespace)
	case hardware(s.Key) && !v.Present:
		return no(NoTouch, "the authenticator of %s was not touched for this signature", who)
	case !s.over(text):
		return no(OtherText, "the signature of %s is over another text: another request, or a file that was changed on the way", who)
	}
	v.Officer = who
	switch {
	case !key.From.IsZero() && now.Before(key.From):
		return no(OutOfTime, "the key of %s counts from %s on", who, stamp(key.From))
	case !key.Until.IsZero() && !now.Before(key.Until):
		return no(OutOfTime, "the key of %s counted until %s", who, stamp(key.Until))
	case (p.RequireHardware || p.RequireUserVerification) && !v.Hardware:
		return no(NoHardware, "%s signed with a key in a file, and a hardware key (sk-ssh-ed25519, sk-ecdsa) is required", who)
	case p.RequireUserVerification && !v.Verified:
		return no(NoVerification, "the authenticator of %s did not ask for its PIN or a fingerprint, which is required: make the key with ssh-keygen -O verify-required", who)
	case officer.is(r.AskedBy):
		return no(Requester, "%s asked for it, and whoever asks does not count", who)
	}
	v.Counts = true
	return v
}

// owner finds whose key made a signature. A key of two people is nobody's: it would count for one where the other one asked.
func (p Policy) owner(s Signature) (owner Officer, key Key, err error) {
	raw := s.Key.Marshal()
	for _, o := range p.Officers {
		i := slices.IndexFunc(o.Keys, func(k Key) bool { return bytes.Equal(k.Marshal(), raw) })
		switch {
		case i < 0 || strings.EqualFold(owner.Name, o.Name):
		case owner.Keys != nil:
			return owner, key, fmt.Errorf("the key %s is listed for %s and for %s: one key belongs to one person", s.SHA256(), owner.Name, o.Name)
		default:
			owner, key = o, o.Keys[i]
		}
	}
	if owner.Keys == nil {
		return owner, key, fmt.Errorf("the key %s is no officer's", s.SHA256())
	}
	return owner, key, nil
}

// RejectionText is what an officer signs, in the namespace [RejectionNamespace], to say no to the request of a text.
func RejectionText(text []byte, why string) ([]byte, error) {
	r, err := Parse(text)
	if err != nil {
		return nil, err
	}
	return fmt.Appendf(nil, "hsmbridge rejection, version 1\n\nrequest: %s\nSHA-256: %x\nwhy: %s\n", r.ID, Digest(text), OneLine(why)), nil
}

// Rejected says who of the officers rejected the request of a text. The requester may, and so may an expired key be used: no is always safe.
func (p Policy) Rejected(text []byte, why string, armored []byte) (Verdict, error) {
	said, err := RejectionText(text, why)
	if err != nil {
		return Verdict{}, err
	}
	s, err := ParseSignature(armored)
	if err != nil {
		return Verdict{Reason: NotASignature, Message: err.Error()}, nil //nolint:nilerr // that it does not count is the answer
	}
	v := Verdict{Key: s.SHA256(), Hardware: hardware(s.Key)}
	officer, _, err := p.owner(s)
	switch {
	case err != nil:
		v.Reason, v.Message = NotAnOfficer, err.Error()
	case s.Namespace != RejectionNamespace:
		v.Reason, v.Message = WrongNamespace, fmt.Sprintf("the signature of %s is for the namespace %q and not for %q", officer.Name, OneLine(s.Namespace), RejectionNamespace)
	case !s.over(said):
		v.Reason, v.Message = OtherText, fmt.Sprintf("the signature of %s is over another text", officer.Name)
	default:
		v.Officer, v.Counts = officer.Name, true
	}
	return v, nil
}

// Difference is a field in which a request differs from an earlier one.
type Difference struct{ Name, Before, Now string }

// Differences says what is different from an earlier request, for people. What differs every time (names, times, keys of KMS) is left out.
func Differences(before, now Request) []Difference {
	always := []string{"request", "asked at", "valid until", "plan", "parameters until", keyName(0), keyName(1)}
	old := map[string]string{}
	for _, f := range before.Fields() {
		old[f.Name] = f.Value
	}
	var out []Difference
	for _, f := range now.Fields() {
		if !slices.Contains(always, f.Name) && old[f.Name] != f.Value {
			out = append(out, Difference{f.Name, old[f.Name], f.Value})
		}
		delete(old, f.Name)
	}
	for _, f := range before.Fields() {
		if v, gone := old[f.Name]; gone && !slices.Contains(always, f.Name) {
			out = append(out, Difference{f.Name, v, ""})
		}
	}
	return out
}
