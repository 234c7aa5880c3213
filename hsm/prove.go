package hsm

import (
	"bytes"
	"context"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"

	"github.com/miekg/pkcs11"

	"hsmbridge/hsm/wrapping"
)

// PublicKey is the DER SubjectPublicKeyInfo (RFC 5280) of a private key's public half: from the private
// object's own public attributes, or from the one public key object with the same CKA_ID. [ErrNoPublicHalf] when there is none.
func (t *Token) PublicKey(ctx context.Context, key wrapping.Key) ([]byte, error) {
	return read(ctx, t, func(s pkcs11.SessionHandle) ([]byte, error) {
		if err := t.current(key); err != nil {
			return nil, err
		}
		objects := []pkcs11.ObjectHandle{pkcs11.ObjectHandle(key.Handle)}
		if len(key.ID) > 0 {
			public, err := t.find(s, attributes{attr(pkcs11.CKA_CLASS, pkcs11.CKO_PUBLIC_KEY), attr(pkcs11.CKA_ID, key.ID)}, 2)
			if err != nil {
				return nil, err
			}
			if len(public) == 1 {
				objects = append(objects, public[0])
			}
		}
		for _, o := range objects {
			r := &reader{t: t, s: s, o: o}
			der, err := publicKeyInfo(r, key.KeySpec)
			if err := errors.Join(err, r.err); err != nil {
				return nil, err
			}
			if der != nil {
				return der, nil
			}
		}
		return nil, fmt.Errorf("%q: %w", key.Label, ErrNoPublicHalf)
	})
}

// current says that the key's handle belongs to this connection.
func (t *Token) current(key wrapping.Key) error {
	if key.Epoch == t.epoch {
		return nil
	}
	return &Error{Op: "use " + key.Label, ErrClass: ClassSession, Cause: "the key was found over an earlier connection to the token", Fix: "look it up again"}
}

// publicKeyInfo makes the SubjectPublicKeyInfo from an object's attributes; nil when it does not have them.
func publicKeyInfo(r *reader, spec wrapping.KeySpec) ([]byte, error) {
	switch spec.Kind() {
	case wrapping.KindRSA:
		n, e := r.bytes(pkcs11.CKA_MODULUS), new(big.Int).SetBytes(r.bytes(pkcs11.CKA_PUBLIC_EXPONENT))
		if len(n) == 0 || e.Sign() == 0 || !e.IsInt64() {
			return nil, nil
		}
		return x509.MarshalPKIXPublicKey(&rsa.PublicKey{N: new(big.Int).SetBytes(n), E: int(e.Int64())})
	case wrapping.KindEC, wrapping.KindEd25519:
		point := ecPoint(r.bytes(pkcs11.CKA_EC_POINT), spec)
		if point == nil {
			return nil, nil
		}
		return ecPublicKeyInfo(point, spec)
	case wrapping.KindSymmetric, wrapping.KindHMAC, wrapping.KindRefused:
	}
	return nil, nil
}

// ecPoint is the raw point of CKA_EC_POINT, which the standard wraps in an OCTET STRING and some tokens do not; nil
// if it is neither.
func ecPoint(b []byte, spec wrapping.KeySpec) []byte {
	want := map[wrapping.KeySpec]int{
		wrapping.ECCNISTP256: 65, wrapping.ECCNISTP384: 97, wrapping.ECCNISTP521: 133, wrapping.ECCSECGP256K1: 65, wrapping.ECCEdwards25519: 32,
	}[spec]
	if len(b) == want {
		return b
	}
	var inner []byte
	if rest, err := asn1.Unmarshal(b, &inner); err == nil && len(rest) == 0 && len(inner) == want {
		return inner
	}
	return nil
}

// ecPublicKeyInfo encodes a point with its curve's object identifiers (RFC 5480, RFC 8410).
func ecPublicKeyInfo(point []byte, spec wrapping.KeySpec) ([]byte, error) {
	alg := pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1}}
	for _, c := range curves() {
		if c.spec == spec && spec != wrapping.ECCEdwards25519 {
			alg.Parameters = asn1.RawValue{FullBytes: c.params}
		}
	}
	if spec == wrapping.ECCEdwards25519 {
		alg.Algorithm = asn1.ObjectIdentifier{1, 3, 101, 112}
	}
	return asn1.Marshal(struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}{alg, asn1.BitString{Bytes: point, BitLength: 8 * len(point)}})
}

// MAC is the HMAC of message under an HMAC key, computed in the token with the hash of the key's spec.
func (t *Token) MAC(ctx context.Context, key wrapping.Key, message []byte) ([]byte, error) {
	mechanism := hmacMechanism(key.KeySpec)
	if mechanism == 0 {
		return nil, &Error{Op: "C_Sign", ErrClass: ClassCaller, Cause: fmt.Sprintf("%q is a %s key, which makes no HMAC", key.Label, key.KeySpec)}
	}
	mac, err := t.sign(ctx, key, mechanism, message)
	if n := len(compute(key.KeySpec, nil, nil)); err == nil && len(mac) != n {
		return nil, &Error{Op: "C_Sign", ErrClass: ClassToken, Cause: fmt.Sprintf("the token gave an HMAC of %d bytes where %s has %d; it was dropped", len(mac), key.KeySpec, n), Fix: "look at the HSM's own log; do not use this token for imports until it is understood"}
	}
	return mac, err
}

func hmacMechanism(spec wrapping.KeySpec) uint {
	return map[wrapping.KeySpec]uint{
		wrapping.HMAC224: pkcs11.CKM_SHA224_HMAC, wrapping.HMAC256: pkcs11.CKM_SHA256_HMAC,
		wrapping.HMAC384: pkcs11.CKM_SHA384_HMAC, wrapping.HMAC512: pkcs11.CKM_SHA512_HMAC,
	}[spec]
}

// Sign signs message with a private key: RSASSA-PKCS1-v1_5 with SHA-256, ECDSA over SHA-256 (DER), or EdDSA. It
// shows that the token has the private key.
func (t *Token) Sign(ctx context.Context, key wrapping.Key, message []byte) ([]byte, error) {
	switch key.KeySpec.Kind() {
	case wrapping.KindRSA:
		sig, err := t.sign(ctx, key, pkcs11.CKM_SHA256_RSA_PKCS, message)
		if isCode(err, pkcs11.CKR_MECHANISM_INVALID) { // openCryptoki's soft token
			sum := sha256.Sum256(message)
			return t.sign(ctx, key, pkcs11.CKM_RSA_PKCS, append(bytes.Clone(digestInfoSHA256), sum[:]...))
		}
		return sig, err
	case wrapping.KindEd25519:
		return t.sign(ctx, key, ckmEdDSA, message)
	case wrapping.KindEC:
		raw, err := t.sign(ctx, key, pkcs11.CKM_ECDSA_SHA256, message)
		if isCode(err, pkcs11.CKR_MECHANISM_INVALID) { // SoftHSM 2.6.1 signs digests only
			sum := sha256.Sum256(message)
			raw, err = t.sign(ctx, key, pkcs11.CKM_ECDSA, sum[:])
		}
		if err != nil || len(raw)%2 != 0 {
			return nil, errors.Join(err, badLength(raw))
		}
		half := len(raw) / 2
		return asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(raw[:half]), new(big.Int).SetBytes(raw[half:])})
	case wrapping.KindSymmetric, wrapping.KindHMAC, wrapping.KindRefused:
	}
	return nil, &Error{Op: "C_Sign", ErrClass: ClassCaller, Cause: fmt.Sprintf("%q is a %s key, which does not sign", key.Label, key.KeySpec)}
}

// digestInfoSHA256 comes before a SHA-256 in the DigestInfo that PKCS #1 v1.5 signs. Source: RFC 8017, section 9.2, note 1.
var digestInfoSHA256 = []byte{0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05, 0x00, 0x04, 0x20} //nolint:gochecknoglobals // a constant

func badLength(raw []byte) error {
	if len(raw)%2 == 0 {
		return nil
	}
	return fmt.Errorf("an ECDSA signature of %d bytes", len(raw))
}

func (t *Token) sign(ctx context.Context, key wrapping.Key, mechanism uint, message []byte) ([]byte, error) {
	return read(ctx, t, func(s pkcs11.SessionHandle) ([]byte, error) {
		if err := t.current(key); err != nil {
			return nil, err
		}
		return t.signWith(s, pkcs11.ObjectHandle(key.Handle), mechanism, message, key.Label)
	})
}

func (t *Token) signWith(s pkcs11.SessionHandle, h pkcs11.ObjectHandle, mechanism uint, message []byte, label string) ([]byte, error) {
	a := about{what: t.name, key: label}
	if err := t.module.ctx.SignInit(s, []*pkcs11.Mechanism{pkcs11.NewMechanism(mechanism, nil)}, h); err != nil {
		return nil, fault("C_SignInit", err, a)
	}
	sig, err := t.module.lib.sign(uint(s), message)
	return sig, fault("C_Sign", err, a)
}

// CheckValue is the key check value (KCV): the first three bytes, in hex, of a block of zeros encrypted with an
// AES key (PKCS#11 v2.40, 2.8.1, CKA_CHECK_VALUE). It is empty for other keys, and where the token will not say.
func (t *Token) CheckValue(ctx context.Context, key wrapping.Key) (string, error) {
	if key.KeySpec != wrapping.SymmetricDefault {
		return "", nil
	}
	return read(ctx, t, func(s pkcs11.SessionHandle) (string, error) {
		if err := t.current(key); err != nil {
			return "", err
		}
		block, err := t.encryptBlock(s, pkcs11.ObjectHandle(key.Handle), make([]byte, 16))
		switch {
		case err == nil && len(block) == 16:
			return hex.EncodeToString(block[:3]), nil
		case err != nil && classOf(err) != ClassCaller:
			return "", err
		}
		kcv, err := t.attribute(s, pkcs11.ObjectHandle(key.Handle), pkcs11.CKA_CHECK_VALUE)
		return hex.EncodeToString(kcv), err
	})
}

// encryptBlock encrypts one block with an AES key, by ECB or by CBC with a zero initial value, which is the same.
func (t *Token) encryptBlock(s pkcs11.SessionHandle, h pkcs11.ObjectHandle, block []byte) (out []byte, err error) {
	for _, m := range []*pkcs11.Mechanism{
		pkcs11.NewMechanism(pkcs11.CKM_AES_ECB, nil),
		pkcs11.NewMechanism(pkcs11.CKM_AES_CBC, make([]byte, 16)),
	} {
		call := "C_EncryptInit"
		if err = t.module.ctx.EncryptInit(s, []*pkcs11.Mechanism{m}, h); err == nil {
			call = "C_Encrypt"
			if out, err = t.module.lib.encrypt(uint(s), block); err == nil {
				return out, nil
			}
		}
		if err = fault(call, err, about{what: t.name}); classOf(err) != ClassCaller {
			break // it says nothing about the mechanism
		}
	}
	return nil, err
}
