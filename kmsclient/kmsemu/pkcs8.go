package kmsemu

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"

	"github.com/decred/dcrd/dcrec/secp256k1/v4"
)

var errMaterial = errors.New("not key material of this key spec")

// lengths are the exact lengths of raw secrets.
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
	var outer asn1.RawValue
	rest, err := asn1.Unmarshal(b, &outer)
	switch {
	case err != nil:
		return nil, err
	case len(rest) > 0 && !lenient:
		return nil, fmt.Errorf("%w: %d bytes follow the PKCS#8", errMaterial, len(rest))
	}
	b = b[:len(b)-len(rest)]
	_, err = parsePrivate(spec, b)
	return b, err
}

// private is a parsed private key.
type private struct {
	rsa  *rsa.PrivateKey
	ec   *ecdsa.PrivateKey
	ed   ed25519.PrivateKey
	k256 *secp256k1.PrivateKey
}

func oidSecp256k1() asn1.ObjectIdentifier { return asn1.ObjectIdentifier{1, 3, 132, 0, 10} }
func oidEC() asn1.ObjectIdentifier        { return asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1} }

// parsePrivate reads a PKCS#8 of exactly this spec.
func parsePrivate(spec string, der []byte) (private, error) {
	if spec == "ECC_SECG_P256K1" {
		k, err := parseSecp256k1(der)
		return private{k256: k}, err
	}
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return private{}, err
	}
	bits := map[string]int{"RSA_2048": 2048, "RSA_3072": 3072, "RSA_4096": 4096}[spec]
	curves := map[string]elliptic.Curve{"ECC_NIST_P256": elliptic.P256(), "ECC_NIST_P384": elliptic.P384(), "ECC_NIST_P521": elliptic.P521()}
	switch k := parsed.(type) {
	case *rsa.PrivateKey:
		if bits != 0 && k.N.BitLen() == bits && k.Validate() == nil {
			return private{rsa: k}, nil
		}
	case *ecdsa.PrivateKey:
		if curves[spec] == k.Curve {
			return private{ec: k}, checkPoint(k, der)
		}
	case ed25519.PrivateKey:
		if spec == "ECC_NIST_EDWARDS25519" {
			return private{ed: k}, nil
		}
	}
	return private{}, fmt.Errorf("%w: a %T", errMaterial, parsed)
}

// pkcs8 is PrivateKeyInfo (RFC 5208, 5).
type pkcs8 struct {
	Version   int
	Algorithm struct {
		Algorithm  asn1.ObjectIdentifier
		Parameters asn1.RawValue `asn1:"optional"`
	}
	Key        []byte
	Attributes asn1.RawValue `asn1:"optional,tag:0"`
}

// ecPrivate is ECPrivateKey (RFC 5915).
type ecPrivate struct {
	Version    int
	Key        []byte
	Parameters asn1.ObjectIdentifier `asn1:"optional,explicit,tag:0"`
	Public     asn1.BitString        `asn1:"optional,explicit,tag:1"`
}

func parseECPrivate(der []byte) (pkcs8, ecPrivate, error) {
	var p pkcs8
	var e ecPrivate
	if rest, err := asn1.Unmarshal(der, &p); err != nil || len(rest) > 0 {
		return p, e, errMaterial
	}
	if rest, err := asn1.Unmarshal(p.Key, &e); err != nil || len(rest) > 0 {
		return p, e, errMaterial
	}
	return p, e, nil
}

// checkPoint holds a public point that the key carries against its scalar.
func checkPoint(k *ecdsa.PrivateKey, der []byte) error {
	_, e, err := parseECPrivate(der)
	if err != nil || len(e.Public.Bytes) == 0 {
		return err
	}
	pub, err := k.ECDH()
	if err != nil {
		return err
	}
	if !bytes.Equal(pub.PublicKey().Bytes(), e.Public.Bytes) {
		return fmt.Errorf("%w: its public point is not that of the scalar", errMaterial)
	}
	return nil
}

func parseSecp256k1(der []byte) (*secp256k1.PrivateKey, error) {
	p, e, err := parseECPrivate(der)
	if err != nil {
		return nil, err
	}
	var curve asn1.ObjectIdentifier
	if _, err := asn1.Unmarshal(p.Algorithm.Parameters.FullBytes, &curve); err != nil || !p.Algorithm.Algorithm.Equal(oidEC()) || !curve.Equal(oidSecp256k1()) {
		return nil, errMaterial
	}
	var scalar secp256k1.ModNScalar
	if len(e.Key) != 32 || scalar.SetByteSlice(e.Key) || scalar.IsZero() {
		return nil, errMaterial
	}
	k := secp256k1.NewPrivateKey(&scalar)
	if len(e.Public.Bytes) > 0 && !bytes.Equal(e.Public.Bytes, k.PubKey().SerializeUncompressed()) {
		return nil, fmt.Errorf("%w: its public point is not that of the scalar", errMaterial)
	}
	return k, nil
}

// privateIdentity is the public half of a private key: what two encodings of one key have in common.
func privateIdentity(spec string, der []byte) ([]byte, error) {
	if _, secret := lengths()[spec]; secret {
		return nil, errMaterial
	}
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
	type algorithm struct{ Algorithm, Parameters asn1.ObjectIdentifier }
	point := p.k256.PubKey().SerializeUncompressed()
	return asn1.Marshal(struct {
		Algorithm algorithm
		Key       asn1.BitString
	}{algorithm{oidEC(), oidSecp256k1()}, asn1.BitString{Bytes: point, BitLength: 8 * len(point)}})
}

// generate makes material for keys of origin AWS_KMS.
func generate(spec string) ([]byte, error) {
	if n, ok := lengths()[spec]; ok {
		b := make([]byte, n)
		_, err := rand.Read(b)
		return b, err
	}
	var k any
	var err error
	switch spec {
	case "RSA_2048", "RSA_3072", "RSA_4096":
		k, err = rsa.GenerateKey(rand.Reader, map[string]int{"RSA_2048": 2048, "RSA_3072": 3072, "RSA_4096": 4096}[spec])
	case "ECC_NIST_EDWARDS25519":
		_, k, err = ed25519.GenerateKey(rand.Reader)
	case "ECC_SECG_P256K1":
		return generateSecp256k1()
	default:
		k, err = ecdsa.GenerateKey(map[string]elliptic.Curve{"ECC_NIST_P256": elliptic.P256(), "ECC_NIST_P384": elliptic.P384(), "ECC_NIST_P521": elliptic.P521()}[spec], rand.Reader)
	}
	if err != nil {
		return nil, err
	}
	return x509.MarshalPKCS8PrivateKey(k)
}

func generateSecp256k1() ([]byte, error) {
	k, err := secp256k1.GeneratePrivateKey()
	if err != nil {
		return nil, err
	}
	inner, err := asn1.Marshal(ecPrivate{Version: 1, Key: k.Serialize()})
	if err != nil {
		return nil, err
	}
	curve, err := asn1.Marshal(oidSecp256k1())
	if err != nil {
		return nil, err
	}
	var p pkcs8
	p.Algorithm.Algorithm, p.Algorithm.Parameters, p.Key = oidEC(), asn1.RawValue{FullBytes: curve}, inner
	return asn1.Marshal(p)
}
