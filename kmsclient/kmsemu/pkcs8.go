package kmsemu

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"

	"github.com/decred/dcrd/dcrec/secp256k1/v4"
)

var errMaterial = errors.New("not key material of this key spec")

// lengths are the exact lengths of raw secrets, in bytes.
func lengths() map[string]int {
	return map[string]int{"SYMMETRIC_DEFAULT": 32, "HMAC_224": 28, "HMAC_256": 32, "HMAC_384": 48, "HMAC_512": 64}
}

// checkMaterial holds decrypted material to the key spec; lenient cuts off what follows a PKCS#8.
func checkMaterial(spec string, b []byte, lenient bool) ([]byte, error) {
	if n, ok := lengths()[spec]; ok {
		if len(b) != n {
			return nil, fmt.Errorf("%w: %d bytes", errMaterial, len(b))
		}
		return b, nil
	}
	if lenient {
		var outer asn1.RawValue
		if rest, err := asn1.Unmarshal(b, &outer); err == nil {
			b = b[:len(b)-len(rest)]
		}
	}
	_, err := parsePrivate(spec, b)
	return b, err
}

// private is a parsed private key; exactly one member is set.
type private struct {
	rsa  *rsa.PrivateKey
	ec   *ecdsa.PrivateKey
	ed   ed25519.PrivateKey
	k256 *secp256k1.PrivateKey
}

// object is an object identifier as it stands in DER, tag and length included.
type object []byte

func oidRSA() object { return object{6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1} } // rsaEncryption 1.2.840.113549.1.1.1
func oidEC() object  { return object{6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1} }          // id-ecPublicKey 1.2.840.10045.2.1
func oidEd() object  { return object{6, 3, 0x2b, 0x65, 0x70} }                            // id-Ed25519 1.3.101.112

// form is how the private keys of one spec are written.
type form struct {
	algorithm  object
	parameters []byte // of the AlgorithmIdentifier, in DER; nil for none
	bits       int    // RSA: of the modulus
	curve      elliptic.Curve
}

// forms are the private keys that can be imported. The curve of secp256k1 is not in the standard library.
func forms() map[string]form {
	null := []byte{5, 0}
	return map[string]form{
		"RSA_2048":              {oidRSA(), null, 2048, nil},
		"RSA_3072":              {oidRSA(), null, 3072, nil},
		"RSA_4096":              {oidRSA(), null, 4096, nil},
		"ECC_NIST_P256":         {oidEC(), object{6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7}, 0, elliptic.P256()}, // 1.2.840.10045.3.1.7
		"ECC_NIST_P384":         {oidEC(), object{6, 5, 0x2b, 0x81, 4, 0, 34}, 0, elliptic.P384()},                  // 1.3.132.0.34
		"ECC_NIST_P521":         {oidEC(), object{6, 5, 0x2b, 0x81, 4, 0, 35}, 0, elliptic.P521()},                  // 1.3.132.0.35
		"ECC_SECG_P256K1":       {oidEC(), object{6, 5, 0x2b, 0x81, 4, 0, 10}, 0, nil},                              // 1.3.132.0.10
		"ECC_NIST_EDWARDS25519": {oidEd(), nil, 0, nil},
	}
}

// parsePrivate reads a PKCS#8 of exactly this spec: nothing more, nothing less, nothing behind.
//
// x509.ParsePKCS8PrivateKey is not strict enough: it takes members that nobody knows at the end of a SEQUENCE,
// explicit curve parameters beside a named curve, and an AlgorithmIdentifier of RSA with any parameters.
func parsePrivate(spec string, der []byte) (private, error) {
	f, ok := forms()[spec]
	if !ok {
		return private{}, fmt.Errorf("%w: %s is no private key", errMaterial, spec)
	}
	key, public, err := openPKCS8(f, der)
	if err != nil {
		return private{}, err
	}
	switch {
	case f.bits != 0:
		return parseRSA(key, f.bits)
	case bytes.Equal(f.algorithm, oidEC()):
		return parseEC(f, key, public)
	}
	return parseEd25519(key, public)
}

// openPKCS8 takes a PrivateKeyInfo (RFC 5208, 5) or OneAsymmetricKey (RFC 5958, 2) apart: the private key, and the
// public key if the second form carries it.
func openPKCS8(f form, der []byte) (key, public []byte, err error) {
	outer, err := elements(der)
	if err != nil || len(outer) < 3 || len(outer) > 5 {
		return nil, nil, fmt.Errorf("%w: no PKCS#8", errMaterial)
	}
	version, rest := outer[0], outer[3:]
	if !isInteger(version, 0) && !isInteger(version, 1) {
		return nil, nil, fmt.Errorf("%w: PKCS#8 of another version", errMaterial)
	}
	if !bytes.Equal(outer[1].FullBytes, sequence(f.algorithm, f.parameters)) {
		return nil, nil, fmt.Errorf("%w: another algorithm or curve", errMaterial)
	}
	if !is(outer[2], asn1.ClassUniversal, asn1.TagOctetString, false) {
		return nil, nil, fmt.Errorf("%w: no private key in the PKCS#8", errMaterial)
	}
	if len(rest) > 0 && is(rest[0], asn1.ClassContextSpecific, 0, true) { // attributes
		rest = rest[1:]
	}
	if len(rest) > 0 && isInteger(version, 1) && is(rest[0], asn1.ClassContextSpecific, 1, false) { // publicKey, BIT STRING
		if len(rest[0].Bytes) < 2 || rest[0].Bytes[0] != 0 {
			return nil, nil, fmt.Errorf("%w: no public key in the PKCS#8", errMaterial)
		}
		public, rest = rest[0].Bytes[1:], rest[1:]
	}
	if len(rest) > 0 {
		return nil, nil, fmt.Errorf("%w: more members than a PKCS#8 has", errMaterial)
	}
	return outer[2].Bytes, public, nil
}

// parseRSA reads an RSAPrivateKey (RFC 8017, A.1.2) of two primes and checks that its numbers belong together.
func parseRSA(der []byte, bits int) (private, error) {
	inner, err := elements(der)
	if err != nil || len(inner) != 9 || !isInteger(inner[0], 0) {
		return private{}, fmt.Errorf("%w: no RSAPrivateKey of two primes", errMaterial)
	}
	k, err := x509.ParsePKCS1PrivateKey(der)
	switch {
	case err != nil:
		return private{}, fmt.Errorf("%w: %w", errMaterial, err)
	case k.N.BitLen() != bits:
		return private{}, fmt.Errorf("%w: a modulus of %d bits", errMaterial, k.N.BitLen())
	}
	if err := k.Validate(); err != nil {
		return private{}, fmt.Errorf("%w: %w", errMaterial, err)
	}
	return private{rsa: k}, nil
}

// parseEC reads an ECPrivateKey (RFC 5915, 3). Its curve may be named again and its public point may be there; both
// must then be the right ones. The scalar may be shorter than the curve asks for: some tokens strip leading zeros.
func parseEC(f form, der, public []byte) (private, error) {
	inner, err := elements(der)
	if err != nil || len(inner) < 2 || len(inner) > 4 || !isInteger(inner[0], 1) || !is(inner[1], asn1.ClassUniversal, asn1.TagOctetString, false) {
		return private{}, fmt.Errorf("%w: no ECPrivateKey", errMaterial)
	}
	rest := inner[2:]
	if len(rest) > 0 && is(rest[0], asn1.ClassContextSpecific, 0, true) {
		if !bytes.Equal(rest[0].Bytes, f.parameters) {
			return private{}, fmt.Errorf("%w: another curve in the ECPrivateKey", errMaterial)
		}
		rest = rest[1:]
	}
	points := [][]byte{}
	if public != nil {
		points = append(points, public)
	}
	if len(rest) > 0 && is(rest[0], asn1.ClassContextSpecific, 1, true) {
		var point asn1.BitString
		if tail, err := asn1.Unmarshal(rest[0].Bytes, &point); err != nil || len(tail) > 0 || point.BitLength != 8*len(point.Bytes) {
			return private{}, fmt.Errorf("%w: no public point in the ECPrivateKey", errMaterial)
		}
		points, rest = append(points, point.Bytes), rest[1:]
	}
	if len(rest) > 0 {
		return private{}, fmt.Errorf("%w: more members than an ECPrivateKey has", errMaterial)
	}
	p, want, err := scalar(f.curve, inner[1].Bytes)
	if err != nil {
		return private{}, err
	}
	for _, point := range points {
		if !bytes.Equal(point, want) {
			return private{}, fmt.Errorf("%w: its public point is not that of the scalar", errMaterial)
		}
	}
	return p, nil
}

// scalar makes a key of a scalar, and its uncompressed public point; a nil curve is secp256k1.
func scalar(curve elliptic.Curve, b []byte) (private, []byte, error) {
	size := 32
	if curve != nil {
		size = (curve.Params().BitSize + 7) / 8
	}
	if len(b) > size {
		return private{}, nil, fmt.Errorf("%w: a scalar of %d bytes", errMaterial, len(b))
	}
	padded := append(make([]byte, size-len(b)), b...)
	if curve != nil {
		k, err := ecdsa.ParseRawPrivateKey(curve, padded)
		if err != nil {
			return private{}, nil, fmt.Errorf("%w: %w", errMaterial, err)
		}
		point, err := k.PublicKey.Bytes()
		return private{ec: k}, point, err
	}
	var s secp256k1.ModNScalar
	if s.SetByteSlice(padded) || s.IsZero() {
		return private{}, nil, fmt.Errorf("%w: no scalar of secp256k1", errMaterial)
	}
	k := secp256k1.NewPrivateKey(&s)
	return private{k256: k}, k.PubKey().SerializeUncompressed(), nil
}

// parseEd25519 reads a CurvePrivateKey (RFC 8410, 7): an OCTET STRING of the seed.
func parseEd25519(der, public []byte) (private, error) {
	var seed []byte
	if rest, err := asn1.Unmarshal(der, &seed); err != nil || len(rest) > 0 || len(seed) != ed25519.SeedSize {
		return private{}, fmt.Errorf("%w: no CurvePrivateKey", errMaterial)
	}
	k := ed25519.NewKeyFromSeed(seed)
	if public != nil && !bytes.Equal(public, k[ed25519.SeedSize:]) {
		return private{}, fmt.Errorf("%w: its public key is not that of the seed", errMaterial)
	}
	return private{ed: k}, nil
}

// privateIdentity is the public half of a private key: what two encodings of one key have in common.
func privateIdentity(spec string, der []byte) ([]byte, error) {
	p, err := parsePrivate(spec, der)
	if err != nil {
		return nil, err
	}
	return p.public()
}

// public is the DER SubjectPublicKeyInfo.
func (p private) public() ([]byte, error) {
	switch {
	case p.rsa != nil:
		return x509.MarshalPKIXPublicKey(&p.rsa.PublicKey)
	case p.ec != nil:
		return x509.MarshalPKIXPublicKey(&p.ec.PublicKey)
	case p.ed != nil:
		return x509.MarshalPKIXPublicKey(p.ed.Public())
	}
	f := forms()["ECC_SECG_P256K1"]
	point := p.k256.PubKey().SerializeUncompressed()
	return asn1.Marshal(struct {
		Algorithm asn1.RawValue
		Key       asn1.BitString
	}{asn1.RawValue{FullBytes: sequence(f.algorithm, f.parameters)}, asn1.BitString{Bytes: point, BitLength: 8 * len(point)}})
}
