package hsm

import (
	"fmt"

	"github.com/miekg/pkcs11"

	"hsmbridge/hsm/wrapping"
	"hsmbridge/hsm/wrapping/trial"
)

// oddBytes is a length that is no multiple of 8 and that no padding scheme leaves alone.
const oddBytes = 37

// oddPart is one way to wrap keys of any length: tokens treat secrets and private keys differently.
type oddPart struct {
	mechanism uint
	pair      bool
}

// oddLength is for an RSA key that came out of a composed wrap exactly. Only a mechanism that also gives keys back exactly whose length
// is no multiple of 8, secrets and private keys, is exact for keys whose length is not known in advance: SoftHSM 2.6.1 pads the others,
// NSS 3.87 takes secrets only when CKM_AES_KEY_WRAP has an initial value.
func (p *prober) oddLength(tr wrapping.Trial, passed trial.Verdict) (trial.Verdict, error) {
	v, err := p.once(oddPart{tr.Mechanism.Type, false}, func() (trial.Verdict, error) { return p.oddSecret(tr.Mechanism) })
	what := fmt.Sprintf("a secret of %d bytes", oddBytes)
	if err == nil && v.Outcome == wrapping.Exact && passed.Length%8 == 0 {
		v, err = p.once(oddPart{tr.Mechanism.Type, true}, func() (trial.Verdict, error) { return p.oddPair(tr) })
		what = "another " + string(tr.KeySpec) + " key"
	}
	switch {
	case err != nil:
		return v, err
	case v.Outcome == wrapping.Exact:
		return passed, nil
	}
	return trial.Verdict{Outcome: v.Outcome, Reason: fmt.Sprintf("it is exact only for some lengths: %s: %s", what, v.Reason), Length: passed.Length}, nil
}

// once keeps what f gives, unless it is an error.
func (p *prober) once(part oddPart, f func() (trial.Verdict, error)) (trial.Verdict, error) {
	if v, ok := p.odd[part]; ok {
		return v, nil
	}
	v, err := f()
	if err == nil {
		p.odd[part] = v
	}
	return v, err
}

// oddSecret wraps a secret of odd length, whose bytes are learnt by wrapping it straight under OAEP first.
func (p *prober) oddSecret(m wrapping.Mechanism) (trial.Verdict, error) {
	made, err := p.generate(recipe{mechanism: pkcs11.CKM_GENERIC_SECRET_KEY_GEN, secret: attributes{
		attr(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_GENERIC_SECRET), attr(pkcs11.CKA_VALUE_LEN, oddBytes),
	}})
	if reason, err := refusal(err); err != nil || reason != "" {
		return trial.Verdict{Outcome: wrapping.Failed, Reason: reason}, err
	}
	p.made = append(p.made, made...)
	for k, head := range p.rsaParts {
		if head.reason != "" {
			continue
		}
		direct := map[wrapping.Algorithm]wrapping.Algorithm{wrapping.RSAAESSHA256: wrapping.OAEPSHA256, wrapping.RSAAESSHA1: wrapping.OAEPSHA1}[k.algorithm]
		r := p.rsa[k.spec]
		ct, err := twice(func() ([]byte, error) {
			return p.t.wrapOnce(p.s, oaepCall(pkcs11.CKM_RSA_PKCS_OAEP, oaepForm, direct), r.handle, made[0], k.spec.Bytes())
		})
		if reason, err := refusal(err); err != nil {
			return trial.Verdict{}, err
		} else if reason != "" {
			continue
		}
		secret, err := r.key.OpenOAEP(direct, ct)
		if err != nil || len(secret) != oddBytes {
			continue
		}
		tail, err := twice(func() ([]byte, error) { return p.t.wrapAES(p.s, p.kekKey, made[0], m, oddBytes) })
		if reason, err := refusal(err); err != nil || reason != "" {
			return trial.Verdict{Outcome: wrapping.Failed, Reason: reason}, err
		}
		return r.key.Judge(k.algorithm, append(append([]byte(nil), head.bytes...), tail...), trial.Known(secret)), nil
	}
	return trial.Verdict{Outcome: wrapping.Failed, Reason: "its content could not be learnt"}, nil
}

// oddPairs is how many pairs are made at most until one has another length: of eight, one in 10,000 probes meets none.
const oddPairs = 8

// oddPair wraps other pairs until one has a PKCS#8 whose length is no multiple of 8, or does not come out.
func (p *prober) oddPair(tr wrapping.Trial) (trial.Verdict, error) {
	head := p.rsaParts[rsaPart{tr.Algorithm, tr.WrappingKeySpec}]
	for range oddPairs {
		key, check, reason, err := p.throwaway(tr.KeySpec)
		if err != nil || reason != "" {
			return trial.Verdict{Outcome: wrapping.Failed, Reason: reason}, err
		}
		tail, err := twice(func() ([]byte, error) { return p.wrapAES(tr.Mechanism, key) })
		if reason, err := refusal(err); err != nil || reason != "" {
			return trial.Verdict{Outcome: wrapping.Failed, Reason: reason}, err
		}
		v := p.rsa[tr.WrappingKeySpec].key.Judge(tr.Algorithm, append(append([]byte(nil), head.bytes...), tail...), check)
		if v.Outcome != wrapping.Exact || v.Length%8 != 0 {
			return v, nil
		}
	}
	return trial.Verdict{Outcome: wrapping.Failed, Reason: "every pair that was made has a PKCS#8 of a multiple of 8 bytes"}, nil
}
