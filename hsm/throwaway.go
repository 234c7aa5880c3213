package hsm

import (
	"bytes"
	"crypto/aes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"hash"

	"github.com/miekg/pkcs11"

	"hsmbridge/hsm/wrapping"
	"hsmbridge/hsm/wrapping/trial"
)

// throwaway generates a session key of the spec and a check that recognises it when it comes out of a wrap. A
// reason says why the token cannot make one.
func (p *prober) throwaway(spec wrapping.KeySpec) (key pkcs11.ObjectHandle, check trial.Check, reason string, err error) {
	r, _ := recipeFor(spec)
	made, err := p.generate(r)
	if reason, err = refusal(err); err != nil || reason != "" {
		return 0, nil, "no throwaway " + string(spec) + " key could be generated: " + reason, err
	}
	p.made = append(p.made, made...)
	switch spec.Kind() {
	case wrapping.KindSymmetric, wrapping.KindHMAC:
		check, err = p.secretCheck(made[0], spec)
	case wrapping.KindRSA, wrapping.KindEC, wrapping.KindEd25519:
		check, reason, err = p.pairCheck(made[1], spec)
	case wrapping.KindRefused:
	}
	return made[0], check, reason, err
}

// secretCheck recognises a secret by what the token computes with it: a block of AES or an HMAC. A token that
// computes neither is held to give the same secret in every trial.
func (p *prober) secretCheck(key pkcs11.ObjectHandle, spec wrapping.KeySpec) (trial.Check, error) {
	message := make([]byte, aes.BlockSize)
	if _, err := rand.Read(message); err != nil {
		return nil, err
	}
	var theirs []byte
	var err error
	if spec == wrapping.SymmetricDefault {
		theirs, err = p.t.encryptBlock(p.s, key, message)
	} else {
		theirs, err = p.t.signWith(p.s, key, hmacMechanism(spec), message, "a throwaway key")
	}
	if _, err = refusal(err); err != nil {
		return nil, err
	}
	n := spec.MaterialBytes()
	var first []byte
	return func(material []byte) (int, error) {
		if len(material) < n || len(bytes.Trim(material[n:], "\x00")) > 0 {
			return 0, trial.ErrOtherKey
		}
		secret := material[:n]
		switch {
		case theirs != nil && !bytes.Equal(theirs, compute(spec, secret, message)):
			return 0, trial.ErrOtherKey
		case theirs == nil && first != nil && !bytes.Equal(first, secret):
			return 0, trial.ErrOtherKey
		}
		first = bytes.Clone(secret)
		return len(material) - n, nil
	}, nil
}

// compute is in Go what the token was asked for.
func compute(spec wrapping.KeySpec, secret, message []byte) []byte {
	if spec == wrapping.SymmetricDefault {
		block, err := aes.NewCipher(secret)
		if err != nil {
			return nil
		}
		out := make([]byte, aes.BlockSize)
		block.Encrypt(out, message)
		return out
	}
	m := hmac.New(map[wrapping.KeySpec]func() hash.Hash{
		wrapping.HMAC224: sha256.New224, wrapping.HMAC256: sha256.New, wrapping.HMAC384: sha512.New384, wrapping.HMAC512: sha512.New,
	}[spec], secret)
	m.Write(message)
	return m.Sum(nil)
}

// pairCheck recognises a private key by its public half.
func (p *prober) pairCheck(public pkcs11.ObjectHandle, spec wrapping.KeySpec) (trial.Check, string, error) {
	r := &reader{t: p.t, s: p.s, o: public}
	want := trial.PublicKey{Spec: spec}
	if spec.Kind() == wrapping.KindRSA {
		want.Modulus = r.bytes(pkcs11.CKA_MODULUS)
		want.Exponent = r.bytes(pkcs11.CKA_PUBLIC_EXPONENT)
	} else {
		want.Point = ecPoint(r.bytes(pkcs11.CKA_EC_POINT), spec)
	}
	if r.err != nil {
		return nil, "", r.err
	}
	if len(want.Point) == 0 && len(want.Modulus) == 0 {
		return nil, "the token does not give the public half of the throwaway key", nil
	}
	return trial.KeyPair(want), "", nil
}
