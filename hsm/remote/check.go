package remote

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"fmt"
	"slices"

	"hsmbridge/hsm/pkcs11uri"
	"hsmbridge/hsm/remote/wire"
	"hsmbridge/hsm/wrapping"
)

// checkKey holds a key against what it was asked for by, and against itself.
func (t *Token) checkKey(k wrapping.Key, u pkcs11uri.URI) error {
	class := map[string]string{"CKO_SECRET_KEY": pkcs11uri.TypeSecretKey, "CKO_PRIVATE_KEY": pkcs11uri.TypePrivate}[k.Class]
	var wrong string
	switch {
	case class == "":
		wrong = "an object of another class"
	case u.Type != "" && u.Type != class, u.Object != "" && u.Object != k.Label, len(u.ID) > 0 && !bytes.Equal(u.ID, k.ID):
		wrong = "another key than was asked for"
	case k.KeySpec != "" && !slices.Contains(wrapping.KeySpecs(), k.KeySpec):
		wrong = "a key spec that is none"
	case len(k.Blockers) == 0 && (!k.Extractable || k.WrapWithTrusted || k.KeySpec == ""):
		wrong = "a key that may not leave the token, without the reason"
	default:
		return nil
	}
	return t.violation(fmt.Errorf("%w: %s", wire.ErrMalformed, wrong))
}

// checkCapabilities holds a probe's result against what was asked for.
func (t *Token) checkCapabilities(c wrapping.Capabilities, specs []wrapping.KeySpec) error {
	asked := map[wrapping.KeySpec]bool{}
	for _, s := range specs {
		asked[s.Representative()] = true
	}
	wrong := ""
	if c.Token != t.identity {
		wrong = "the probe of another token"
	}
	for _, x := range c.Trials {
		switch {
		case !asked[x.KeySpec], !slices.Contains(wrapping.Algorithms(), x.Algorithm), x.WrappingKeySpec.Bits() == 0:
			wrong = "a trial that was not asked for"
		case x.Outcome != wrapping.Exact && x.Outcome != wrapping.Padded && x.Outcome != wrapping.Failed:
			wrong = "a trial without an outcome"
		}
	}
	if wrong == "" {
		return nil
	}
	return t.violation(fmt.Errorf("%w: %s", wire.ErrMalformed, wrong))
}

// checkPublicKey holds that b is one DER SubjectPublicKeyInfo (RFC 5280).
func (t *Token) checkPublicKey(b []byte) error {
	var info struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	if rest, err := asn1.Unmarshal(b, &info); err != nil || len(rest) > 0 {
		return t.violation(fmt.Errorf("%w: a public key that is none", wire.ErrMalformed))
	}
	return nil
}

func (t *Token) checkCheckValue(v string) error {
	if b, err := hex.DecodeString(v); err != nil || len(b) > 16 {
		return t.violation(fmt.Errorf("%w: a check value that is none", wire.ErrMalformed))
	}
	return nil
}

// verifies tells whether a signature over SHA-256 is right.
func verifies(public, message, sig []byte) bool {
	parsed, err := x509.ParsePKIXPublicKey(public)
	if err != nil {
		return false
	}
	sum := sha256.Sum256(message)
	switch p := parsed.(type) {
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(p, sum[:], sig)
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(p, crypto.SHA256, sum[:], sig) == nil
	}
	return false
}
