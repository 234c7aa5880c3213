package importer

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"fmt"

	"hsmbridge/hsm/wrapping"
)

// signingAlgorithm is the KMS signing algorithm that is used to prove a key of this spec.
// Source: AWS KMS API Reference, Sign, SigningAlgorithm.
func signingAlgorithm(k wrapping.KeySpec) string {
	return map[wrapping.KeySpec]string{
		wrapping.KeyRSA2048:      "RSASSA_PKCS1_V1_5_SHA_256",
		wrapping.KeyRSA3072:      "RSASSA_PKCS1_V1_5_SHA_256",
		wrapping.KeyRSA4096:      "RSASSA_PKCS1_V1_5_SHA_256",
		wrapping.ECCNISTP256:     "ECDSA_SHA_256",
		wrapping.ECCNISTP384:     "ECDSA_SHA_384",
		wrapping.ECCNISTP521:     "ECDSA_SHA_512",
		wrapping.ECCSECGP256K1:   "ECDSA_SHA_256",
		wrapping.ECCEdwards25519: "ED25519_SHA_512",
	}[k]
}

// samePublicKey compares two DER SubjectPublicKeyInfo by the key that they hold: encoders differ in optional
// parameters. Curves that the standard library does not know are the same only byte for byte.
func samePublicKey(a, b []byte) bool {
	ka, errA := x509.ParsePKIXPublicKey(a)
	kb, errB := x509.ParsePKIXPublicKey(b)
	if errA != nil || errB != nil {
		return false
	}
	eq, ok := ka.(interface{ Equal(x crypto.PublicKey) bool })
	return ok && eq.Equal(kb)
}

// verifySignature verifies what KMS signed with [signingAlgorithm]. The error says why it cannot be judged.
func verifySignature(public, message, sig []byte) (bool, error) {
	key, err := x509.ParsePKIXPublicKey(public)
	if err != nil {
		return false, fmt.Errorf("the signature was not verified: %w", err)
	}
	switch k := key.(type) {
	case *rsa.PublicKey:
		sum := sha256.Sum256(message)
		return rsa.VerifyPKCS1v15(k, crypto.SHA256, sum[:], sig) == nil, nil
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(k, ecDigest(k.Curve.Params().BitSize, message), sig), nil
	case ed25519.PublicKey:
		return ed25519.Verify(k, message, sig), nil
	}
	return false, fmt.Errorf("the signature was not verified: a %T", key)
}

func ecDigest(bits int, message []byte) []byte {
	switch bits {
	case 384:
		sum := sha512.Sum384(message)
		return sum[:]
	case 521:
		sum := sha512.Sum512(message)
		return sum[:]
	}
	sum := sha256.Sum256(message)
	return sum[:]
}
