package kmsemu

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"

	"github.com/decred/dcrd/dcrec/secp256k1/v4"
)

// generate makes material for keys of origin AWS_KMS: raw bytes, or a PKCS#8.
func generate(spec string) ([]byte, error) {
	if n, ok := lengths()[spec]; ok {
		b := make([]byte, n)
		_, err := rand.Read(b)
		return b, err
	}
	var k any
	var err error
	switch f := forms()[spec]; {
	case f.bits != 0:
		k, err = rsa.GenerateKey(rand.Reader, f.bits)
	case f.curve != nil:
		k, err = ecdsa.GenerateKey(f.curve, rand.Reader)
	case spec == "ECC_SECG_P256K1":
		return generateSecp256k1()
	default:
		_, k, err = ed25519.GenerateKey(rand.Reader)
	}
	if err != nil {
		return nil, err
	}
	return x509.MarshalPKCS8PrivateKey(k)
}

// generateSecp256k1 writes the smallest PKCS#8 there is: without the public point.
func generateSecp256k1() ([]byte, error) {
	k, err := secp256k1.GeneratePrivateKey()
	if err != nil {
		return nil, err
	}
	inner, err := asn1.Marshal(struct {
		Version int
		Key     []byte
	}{1, k.Serialize()})
	if err != nil {
		return nil, err
	}
	f := forms()["ECC_SECG_P256K1"]
	return asn1.Marshal(struct {
		Version   int
		Algorithm asn1.RawValue
		Key       []byte
	}{0, asn1.RawValue{FullBytes: sequence(f.algorithm, f.parameters)}, inner})
}
