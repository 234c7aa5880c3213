package wrapping

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Policy is what the configuration allows.
type Policy struct {
	Algorithms       []Algorithm // restrict or reorder; empty means AWS's order
	AllowPKCS1v15    bool        // wrapping.allow_pkcs1_v1_5
	AllowPaddedPKCS8 bool        // wrapping.allow_padded_pkcs8
	Partition        string      // of the destination: aws, aws-cn, aws-us-gov ...; empty means aws
}

// Plan is one way to wrap one kind of key on one token that KMS can open.
type Plan struct {
	KeySpec         KeySpec
	Algorithm       Algorithm
	WrappingKeySpec WrappingKeySpec
	Mechanism       Mechanism
	Length          int  // bytes of key material that the token wraps; 0 when they differ from key to key
	Padded          bool // zero bytes may follow the PKCS#8 (wrapping.allow_padded_pkcs8)
}

// Refusal is one candidate that was passed over.
type Refusal struct {
	Algorithm       Algorithm       `json:"algorithm"`
	WrappingKeySpec WrappingKeySpec `json:"wrapping_key_spec,omitempty"` // empty: all of them
	Mechanism       string          `json:"mechanism,omitempty"`         // empty: whatever the mechanism
	Rule            Rule            `json:"rule"`
	Reason          string          `json:"reason"`
}

// String is the refusal as one line for a person.
func (r Refusal) String() string {
	var b strings.Builder
	b.WriteString(string(r.Algorithm))
	if r.WrappingKeySpec != "" {
		fmt.Fprintf(&b, " under %s", r.WrappingKeySpec)
	}
	if r.Mechanism != "" {
		fmt.Fprintf(&b, " by %s", r.Mechanism)
	}
	return b.String() + ": " + r.Reason
}

// Selection is the result of [Select]: the plans, best first, and everything that was passed over.
type Selection struct {
	KeySpec KeySpec
	Plans   []Plan
	Refused []Refusal

	order []Algorithm // in which the algorithms were looked at
}

// Select returns the plans for a key of the given spec on a token with capabilities c, in the order in
// which they are to be tried: AWS's order of algorithms (or the policy's), under each the longest wrapping
// key first; plans that leave zero bytes behind the PKCS#8 come last. It is a pure function: the same
// arguments give the same selection.
func Select(spec KeySpec, c Capabilities, p Policy) Selection {
	s := Selection{KeySpec: spec}
	m := materialOf(spec)
	if m.no != "" {
		s.Refused = []Refusal{{Rule: RuleMaterial, Reason: m.no}}
		return s
	}
	trials := c.trialsFor(spec)
	var padded []Plan
	s.order = candidates(m, p)
	for _, a := range s.order {
		if r, no := refuseAlgorithm(a, m, p, trials); no {
			s.Refused = append(s.Refused, r)
			continue
		}
		var refused []Refusal
		for _, w := range WrappingKeySpecs() {
			plan, no := selectMechanism(spec, a, w, trials, p)
			refused = append(refused, no...)
			switch {
			case plan == nil:
			case plan.Padded:
				padded = append(padded, *plan)
			default:
				s.Plans = append(s.Plans, *plan)
			}
		}
		s.Refused = append(s.Refused, merge(refused)...)
	}
	s.Plans = append(s.Plans, padded...)
	return s
}

// candidates is the order in which algorithms are looked at: the policy's, then what the policy leaves out
// in AWS's order, so that every algorithm ends as a plan or as a refusal.
func candidates(m material, p Policy) []Algorithm {
	out := slices.Clone(p.Algorithms)
	for _, a := range m.order {
		if !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

// refuseAlgorithm applies the rules that do not depend on the wrapping key spec.
func refuseAlgorithm(a Algorithm, m material, p Policy, trials []Trial) (Refusal, bool) {
	no := func(rule Rule, format string, args ...any) (Refusal, bool) {
		return Refusal{Algorithm: a, Rule: rule, Reason: fmt.Sprintf(format, args...)}, true
	}
	switch {
	case !slices.Contains(m.order, a):
		return no(RuleAWSOrder, "AWS KMS does not offer it for %s keys", m.kind)
	case len(p.Algorithms) > 0 && !slices.Contains(p.Algorithms, a):
		return no(RuleConfigured, "wrapping.algorithms leaves it out")
	case a.TwoPart() && p.Partition == "aws-cn":
		return no(RulePartition, "the China Regions do not have RSA_AES_KEY_WRAP")
	case a == PKCS1v15 && !p.AllowPKCS1v15 && anyUsable(a, trials):
		return no(RulePKCS1, "the token can do it, but AWS KMS has refused it since 10 October 2023; "+
			"for a KMS-compatible endpoint that takes it set wrapping.allow_pkcs1_v1_5: true")
	case a == PKCS1v15 && !p.AllowPKCS1v15:
		return no(RulePKCS1, "off: AWS KMS has refused it since 10 October 2023 (wrapping.allow_pkcs1_v1_5)")
	}
	return Refusal{}, false
}

func anyUsable(a Algorithm, trials []Trial) bool {
	return slices.ContainsFunc(trials, func(t Trial) bool { return t.Algorithm == a && t.Outcome == Exact })
}

// selectMechanism applies the rules for one algorithm under one wrapping key spec. It returns the best
// plan, or nil and the reasons, one for each mechanism.
func selectMechanism(spec KeySpec, a Algorithm, w WrappingKeySpec, trials []Trial, p Policy) (*Plan, []Refusal) {
	refuse := func(mech string, rule Rule, format string, args ...any) Refusal {
		return Refusal{Algorithm: a, WrappingKeySpec: w, Mechanism: mech, Rule: rule, Reason: fmt.Sprintf(format, args...)}
	}
	length := materialLength(spec, trials)
	if spec == ECCNISTP521 && w == RSA2048 && !a.TwoPart() {
		return nil, []Refusal{refuse("", RuleKMS, "AWS KMS does not take ECC_NIST_P521 keys directly under RSA_2048")}
	}
	if room := a.Room(w); room >= 0 && length > room {
		return nil, []Refusal{refuse("", RuleRoom, "the key takes %d bytes and there is room for %d", length, room)}
	}

	var best *Plan
	var refused []Refusal
	for _, t := range trials {
		if t.Algorithm != a || t.WrappingKeySpec != w {
			continue
		}
		rule, reason := judge(spec, t, p, length)
		if reason != "" {
			refused = append(refused, refuse(t.Mechanism.String(), rule, "%s", reason))
			continue
		}
		plan := Plan{KeySpec: spec, Algorithm: a, WrappingKeySpec: w, Mechanism: t.Mechanism, Length: length, Padded: t.Outcome == Padded}
		if best == nil || better(plan, *best) {
			best = &plan
		}
	}
	switch {
	case best != nil:
		return best, nil
	case len(refused) == 0:
		return nil, []Refusal{refuse("", RuleToken, "was not tried on this token")}
	}
	return nil, refused
}

// merge says once what holds for every wrapping key spec, and once what holds for every mechanism.
func merge(refused []Refusal) []Refusal {
	bySpec := func(r Refusal) Refusal { r.WrappingKeySpec = ""; return r }
	byMechanism := func(r Refusal) Refusal { r.Mechanism = ""; return r }
	mechanisms := make(map[string]bool)
	for _, r := range refused {
		mechanisms[r.Mechanism] = true
	}
	return mergeBy(mergeBy(refused, bySpec, len(WrappingKeySpecs())), byMechanism, len(mechanisms))
}

// mergeBy replaces all refusals that are the same but for one field by the general one, where all of them are there.
func mergeBy(refused []Refusal, general func(Refusal) Refusal, all int) []Refusal {
	count := make(map[Refusal]int)
	for _, r := range refused {
		count[general(r)]++
	}
	var out []Refusal
	for _, r := range refused {
		switch g := general(r); {
		case all < 2 || count[g] < all:
			out = append(out, r)
		case !slices.Contains(out, g):
			out = append(out, g)
		}
	}
	return out
}

// judge says why a trial does not carry a plan; an empty reason means that it does.
func judge(spec KeySpec, t Trial, p Policy, length int) (Rule, string) {
	switch {
	case t.Outcome == Failed:
		return RuleToken, t.Reason
	case t.Outcome == Padded && !p.AllowPaddedPKCS8:
		return RulePadded, t.Reason + "; whether AWS KMS takes that is unknown (wrapping.allow_padded_pkcs8: true tries it)"
	case t.Mechanism.Form == FormKWPIV && length == 0:
		return RuleToken, fmt.Sprintf("it needs the exact length in advance, which differs from one %s key to the next", spec.Kind())
	}
	return "", ""
}

// better prefers exact over padded and one call over two; among equals the first trial stands.
func better(a, b Plan) bool {
	if a.Padded != b.Padded {
		return b.Padded
	}
	return formRank(a.Mechanism.Form) < formRank(b.Mechanism.Form)
}

func formRank(f Form) int {
	return slices.Index([]Form{FormOAEP, FormPKCS1, FormNative, FormKWP, FormKWPIV}, f)
}

// materialLength is the number of bytes that the token wraps for a key of this spec: fixed for secrets, that of the probe's key for a curve, whose
// PKCS#8 a token makes alike for the keys that it generates; 0 (unknown) for RSA, whose DER differs from key to key.
func materialLength(spec KeySpec, trials []Trial) int {
	switch m := materialOf(spec); {
	case m.bytes > 0:
		return m.bytes
	case m.kind == KindRSA:
		return 0
	}
	for _, t := range trials {
		if t.Outcome != Failed && t.Length > 0 {
			return t.Length
		}
	}
	return 0
}

func (c Capabilities) trialsFor(spec KeySpec) []Trial {
	want := spec.Representative()
	var out []Trial
	for _, t := range c.Trials {
		if t.KeySpec == want {
			out = append(out, t)
		}
	}
	return out
}

// ErrKeyNotFound and ErrKeyAmbiguous are how a token answers when not exactly one key object matches.
var (
	ErrKeyNotFound  = errors.New("no such key object in the token")
	ErrKeyAmbiguous = errors.New("more than one key object matches")
)

// NoPlanError says that no algorithm is left, and why each was passed over.
type NoPlanError struct {
	KeySpec KeySpec
	Refused []Refusal
}

// Error lists every rule and why it was passed over, one a line.
func (e *NoPlanError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "no wrapping algorithm is left for keys of spec %s on this token:", e.KeySpec)
	for _, r := range e.Refused {
		b.WriteString("\n  ")
		b.WriteString(r.String())
	}
	return b.String()
}

// Class says who has to act (see the error classes of hsm): the request cannot be carried out as it is.
func (e *NoPlanError) Class() string { return "caller" }

// Err is nil when there is a plan, and a [*NoPlanError] otherwise.
func (s Selection) Err() error {
	if len(s.Plans) > 0 {
		return nil
	}
	return &NoPlanError{KeySpec: s.KeySpec, Refused: s.Refused}
}

// PassedOver lists the refusals of the candidates that AWS's order or the policy's puts before the plan: why
// each better one was refused.
func (s Selection) PassedOver(p Plan) []Refusal {
	before := func(order []Algorithm, a Algorithm) bool {
		i := slices.Index(order, a)
		return i >= 0 && i < slices.Index(order, p.Algorithm)
	}
	var out []Refusal
	for _, r := range s.Refused {
		longer := r.Algorithm == p.Algorithm && (r.WrappingKeySpec == "" || r.WrappingKeySpec.Bits() > p.WrappingKeySpec.Bits())
		if longer || before(s.order, r.Algorithm) || before(s.KeySpec.Order(), r.Algorithm) {
			out = append(out, r)
		}
	}
	return out
}
