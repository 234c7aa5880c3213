package hsm

import (
	"context"
	"errors"
	"fmt"

	"github.com/miekg/pkcs11"

	"hsmbridge/hsm/wrapping"
	"hsmbridge/hsm/wrapping/trial"
)

// candidates is the table of mechanisms that a probe tries for an algorithm, best first.
func candidates(a wrapping.Algorithm) []wrapping.Mechanism {
	switch {
	case a == wrapping.PKCS1v15:
		return []wrapping.Mechanism{{Name: "CKM_RSA_PKCS", Type: pkcs11.CKM_RSA_PKCS, Form: wrapping.FormPKCS1}}
	case !a.TwoPart():
		return []wrapping.Mechanism{{Name: "CKM_RSA_PKCS_OAEP", Type: pkcs11.CKM_RSA_PKCS_OAEP, Form: wrapping.FormOAEP}}
	}
	return []wrapping.Mechanism{
		{Name: "CKM_RSA_AES_KEY_WRAP", Type: pkcs11.CKM_RSA_AES_KEY_WRAP, Form: wrapping.FormNative},
		{Name: "CKM_AES_KEY_WRAP_KWP", Type: ckmAESKeyWrapKWP, Form: wrapping.FormKWP},            // RFC 5649 by the standard
		{Name: "CKM_AES_KEY_WRAP_PAD", Type: pkcs11.CKM_AES_KEY_WRAP_PAD, Form: wrapping.FormKWP}, // RFC 5649 on some tokens only
		{Name: "CKM_AES_KEY_WRAP", Type: pkcs11.CKM_AES_KEY_WRAP, Form: wrapping.FormKWPIV},       // RFC 5649 with its IV given
	}
}

// Probe proves what the token can do for these key specs: throwaway session keys of each are wrapped with every
// mechanism under throwaway RSA keys of every wrapping key spec, decrypted outside the token and compared.
// RSA specs are represented by RSA_2048. No key that is stored in the token is touched, and nothing is left behind.
// An error means that the token could not be asked; what it cannot do is in the trials.
func (t *Token) Probe(ctx context.Context, specs ...wrapping.KeySpec) (wrapping.Capabilities, error) {
	return read(ctx, t, func(s pkcs11.SessionHandle) (c wrapping.Capabilities, err error) {
		p := &prober{
			t: t, s: s,
			rsa:      map[wrapping.WrappingKeySpec]*throwawayRSA{},
			rsaParts: map[rsaPart]output{},
			aesParts: map[aesPart]output{},
			odd:      map[oddPart]trial.Verdict{},
		}
		defer func() { err = errors.Join(err, p.destroyAll()) }()
		c.Token = t.identity
		if t.cannotWrap == "" {
			if err := p.loadRSA(); err != nil {
				return c, err
			}
		}
		seen := map[wrapping.KeySpec]bool{}
		for _, spec := range specs {
			if spec = spec.Representative(); seen[spec] || spec.Kind() == wrapping.KindRefused {
				continue
			}
			seen[spec] = true
			trials, err := p.trials(ctx, spec)
			if err != nil {
				return c, err
			}
			c.Trials = append(c.Trials, trials...)
		}
		return c, nil
	})
}

// prober is the state of one probe; everything it made in the token is in made.
type prober struct {
	t    *Token
	s    pkcs11.SessionHandle
	made []pkcs11.ObjectHandle

	rsa      map[wrapping.WrappingKeySpec]*throwawayRSA
	kek      *output // the AES key of composed trials; nil until it is made
	kekKey   pkcs11.ObjectHandle
	odd      map[oddPart]trial.Verdict // what became of keys of odd length
	rsaParts map[rsaPart]output
	aesParts map[aesPart]output
}

type throwawayRSA struct {
	key    *trial.RSAKey
	handle pkcs11.ObjectHandle
	reason string // why the token did not take it
}

type rsaPart struct {
	algorithm wrapping.Algorithm
	spec      wrapping.WrappingKeySpec
}

type aesPart struct {
	spec      wrapping.KeySpec
	mechanism uint
}

// output is what a C_WrapKey gave, or why it gave nothing.
type output struct {
	bytes  []byte
	reason string
}

func (p *prober) destroyAll() error {
	var errs []error
	for _, h := range p.made {
		errs = append(errs, p.t.destroy(p.s, h))
	}
	return errors.Join(errs...)
}

// loadRSA makes the throwaway wrapping keys and loads their public halves.
func (p *prober) loadRSA() error {
	for _, w := range wrapping.WrappingKeySpecs() {
		key, err := trial.NewRSAKey(w)
		if err != nil {
			return fmt.Errorf("make a throwaway %s key: %w", w, err)
		}
		r := &throwawayRSA{key: key}
		r.handle, err = making(p, func() (pkcs11.ObjectHandle, error) { return p.t.loadPublic(p.s, key.Public()) })
		if r.reason, err = refusal(err); err != nil {
			return err
		}
		if r.reason == "" {
			p.made = append(p.made, r.handle)
		}
		p.rsa[w] = r
	}
	return nil
}

// refusal splits an error into a reason, which belongs into a trial, and an error that ends the probe. A passing fault must not select a weaker
// algorithm, so nothing is a refusal but an answer that is about what was asked for, and one that says nothing and came twice.
func refusal(err error) (string, error) {
	if err == nil {
		return "", nil
	}
	var e *Error
	if !errors.As(err, &e) {
		err = fault("C_WrapKey", err, about{})
	}
	if !errors.As(err, &e) || e.Code == 0 || !onlyCaller(err) && !unclear(err) && e.Code != pkcs11.CKR_BUFFER_TOO_SMALL { // wrapOnce has given it more room
		return "", err
	}
	return e.Name + ": " + e.Cause, nil
}

// unclear says that an answer does not say what is wrong. Some tokens answer so to what they do not have, and then do it again.
func unclear(err error) bool {
	return isCode(err, pkcs11.CKR_GENERAL_ERROR) || isCode(err, pkcs11.CKR_FUNCTION_FAILED) || classOf(err) == ClassToken && codeOf(err) >= pkcs11.CKR_VENDOR_DEFINED
}

// twice asks again where an answer is unclear: it may have been a passing fault.
func twice[T any](ask func() (T, error)) (T, error) {
	v, err := ask()
	if unclear(err) {
		return ask()
	}
	return v, err
}

// making is twice for a call that makes an object. One that failed may have made it all the same: it goes with the session, which is closed
// after the probe.
func making[T any](p *prober, ask func() (T, error)) (T, error) {
	return twice(func() (T, error) {
		v, err := ask()
		if !onlyCaller(err) {
			p.t.doubt(p.s)
		}
		return v, err
	})
}

// generate makes a session key.
func (p *prober) generate(r recipe) ([]pkcs11.ObjectHandle, error) {
	made, err := making(p, func() ([]pkcs11.ObjectHandle, error) {
		return p.t.generate(p.s, r, attributes{attr(pkcs11.CKA_TOKEN, false)})
	})
	return made, fault("generate a throwaway key", err, about{what: p.t.name, key: "a throwaway key"})
}

// trials tries every algorithm, mechanism and wrapping key spec for one key spec.
func (p *prober) trials(ctx context.Context, spec wrapping.KeySpec) ([]wrapping.Trial, error) {
	var key pkcs11.ObjectHandle
	var check trial.Check
	reason := p.t.cannotWrap
	if reason == "" {
		var err error
		if key, check, reason, err = p.throwaway(spec); err != nil {
			return nil, err
		}
	}
	var out []wrapping.Trial
	for _, a := range spec.Order() {
		for _, m := range p.t.candidates(a) {
			for _, w := range wrapping.WrappingKeySpecs() {
				if err := ctx.Err(); err != nil {
					return nil, err
				}
				tr := wrapping.Trial{KeySpec: spec, Algorithm: a, WrappingKeySpec: w, Mechanism: m, Outcome: wrapping.Failed, Reason: reason}
				if reason == "" {
					v, err := p.try(tr, key, check)
					if err != nil {
						return nil, err
					}
					tr.Outcome, tr.Reason, tr.Length = v.Outcome, v.Reason, v.Length
				}
				out = append(out, tr)
			}
		}
	}
	return out, nil
}

// try is one trial.
func (p *prober) try(tr wrapping.Trial, key pkcs11.ObjectHandle, check trial.Check) (trial.Verdict, error) {
	r := p.rsa[tr.WrappingKeySpec]
	if r.reason != "" {
		return trial.Verdict{Outcome: wrapping.Failed, Reason: "the wrapping public key was not taken: " + r.reason}, nil
	}
	var ct output
	var err error
	switch tr.Mechanism.Form {
	case wrapping.FormKWP, wrapping.FormKWPIV:
		ct, err = p.composed(tr, key)
	default:
		plan := wrapping.Plan{Algorithm: tr.Algorithm, WrappingKeySpec: tr.WrappingKeySpec, Mechanism: tr.Mechanism}
		var b []byte
		b, err = twice(func() ([]byte, error) { return p.t.wrapRaw(p.s, r.handle, key, plan) })
		ct.bytes = b
		ct.reason, err = refusal(err)
	}
	if err != nil || ct.reason != "" {
		return trial.Verdict{Outcome: wrapping.Failed, Reason: ct.reason}, err
	}
	v := r.key.Judge(tr.Algorithm, ct.bytes, check)
	if composed := tr.Mechanism.Form == wrapping.FormKWP || tr.Mechanism.Form == wrapping.FormKWPIV; composed && tr.KeySpec.Kind() == wrapping.KindRSA && v.Outcome == wrapping.Exact {
		// The length of an RSA key's PKCS#8 differs from key to key: this one may be exact by luck.
		return p.oddLength(tr, v)
	}
	return v, nil
}

// composed is a two-part trial: the RSA part holds the AES key, the AES part the throwaway key. Both are made
// once and combined.
func (p *prober) composed(tr wrapping.Trial, key pkcs11.ObjectHandle) (output, error) {
	if err := p.makeKEK(); err != nil || p.kek.reason != "" {
		return *p.kek, err
	}
	head, err := p.rsaPart(tr.Algorithm, tr.WrappingKeySpec)
	if err != nil || head.reason != "" {
		return head, err
	}
	tail, err := p.aesPart(tr.KeySpec, tr.Mechanism, key)
	if err != nil || tail.reason != "" {
		return tail, err
	}
	return output{bytes: append(append([]byte(nil), head.bytes...), tail.bytes...)}, nil
}

func (p *prober) makeKEK() error {
	if p.kek != nil {
		return nil
	}
	h, err := making(p, func() (pkcs11.ObjectHandle, error) { return p.t.ephemeralKEK(p.s) })
	p.kek = &output{}
	if p.kek.reason, err = refusal(err); err != nil {
		return err
	}
	if p.kek.reason == "" {
		p.kekKey = h
		p.made = append(p.made, h)
	} else {
		p.kek.reason = "no AES-256 session key could be generated: " + p.kek.reason
	}
	return nil
}

func (p *prober) rsaPart(a wrapping.Algorithm, w wrapping.WrappingKeySpec) (output, error) {
	k := rsaPart{a, w}
	if o, ok := p.rsaParts[k]; ok {
		return o, nil
	}
	b, err := twice(func() ([]byte, error) {
		return p.t.wrapOnce(p.s, oaepCall(pkcs11.CKM_RSA_PKCS_OAEP, oaepForm, a), p.rsa[w].handle, p.kekKey, w.Bytes())
	})
	reason, err := refusal(err)
	if reason != "" {
		reason = "CKM_RSA_PKCS_OAEP: " + reason
	}
	p.rsaParts[k] = output{b, reason}
	return p.rsaParts[k], err
}

func (p *prober) aesPart(spec wrapping.KeySpec, m wrapping.Mechanism, key pkcs11.ObjectHandle) (output, error) {
	k := aesPart{spec, m.Type}
	if o, ok := p.aesParts[k]; ok {
		return o, nil
	}
	b, err := twice(func() ([]byte, error) { return p.wrapAES(m, key) })
	reason, err := refusal(err)
	p.aesParts[k] = output{b, reason}
	return p.aesParts[k], err
}

// wrapAES wraps key under the KEK. A mechanism that is given the RFC 5649 initial value needs the exact length:
// the first answer tells it to 8 bytes, and the one among them under which the material opens is it.
func (p *prober) wrapAES(m wrapping.Mechanism, key pkcs11.ObjectHandle) ([]byte, error) {
	if m.Form != wrapping.FormKWPIV {
		return p.t.wrapAES(p.s, p.kekKey, key, m, 0)
	}
	b, err := p.t.wrapAES(p.s, p.kekKey, key, m, 8)
	if err != nil {
		return nil, err
	}
	top := len(b) - 8
	for n := top; n > top-8 && n > 0; n-- {
		if b, err = p.t.wrapAES(p.s, p.kekKey, key, m, n); err != nil {
			return nil, err
		}
		if p.opens(b, n) {
			return b, nil
		}
	}
	return b, nil
}

// opens says that the AES part opens to n bytes that are a whole DER element or, for n a secret's length, a secret.
func (p *prober) opens(aesPart []byte, n int) bool {
	for k, head := range p.rsaParts {
		if head.reason != "" {
			continue
		}
		_, material, err := p.rsa[k.spec].key.OpenRSAAES(k.algorithm, append(append([]byte(nil), head.bytes...), aesPart...))
		return err == nil && len(material) == n && derWhole(material)
	}
	return false
}

// derWhole says that b is exactly one DER SEQUENCE.
func derWhole(b []byte) bool {
	if len(b) < 2 || b[0] != 0x30 {
		return false
	}
	n, head := int(b[1]), 2
	if n >= 0x80 {
		head += n & 0x7f
		if len(b) < head {
			return false
		}
		n = 0
		for _, o := range b[2:head] {
			n = n<<8 | int(o)
		}
	}
	return head+n == len(b)
}
