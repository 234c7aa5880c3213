package hsm

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/miekg/pkcs11"

	"hsmbridge/hsm/pkcs11uri"
	"hsmbridge/hsm/wrapping"
)

// GenerateSigning makes a key pair that does nothing but sign, and that never leaves the token: P-256, or RSA-3072 in a token without
// elliptic curves. id is CKA_ID; nil makes a random one. A label that is taken is refused ([ErrExists]).
func (t *Token) GenerateSigning(ctx context.Context, label string, id []byte) (wrapping.Key, error) {
	k, err := newKeyNamed(label, id)
	if err != nil {
		return wrapping.Key{}, err
	}
	return with(ctx, t, func(s pkcs11.SessionHandle) (wrapping.Key, error) {
		there, err := t.keys(s, pkcs11uri.URI{Object: label})
		switch {
		case err != nil:
			return wrapping.Key{}, err
		case len(there) > 0 || label == "":
			return wrapping.Key{}, &Error{Op: "generate a signing key", ErrClass: ClassCaller, Cause: "the token already holds " + listKeys(there), Fix: "choose another label", Err: ErrExists}
		}
		both := k.attributes()
		private := append(attributes{
			attr(pkcs11.CKA_PRIVATE, true), attr(pkcs11.CKA_SENSITIVE, true), attr(pkcs11.CKA_EXTRACTABLE, false), attr(pkcs11.CKA_SIGN, true),
		}, both...)
		var made []pkcs11.ObjectHandle
		for _, form := range []struct {
			mechanism uint
			public    attributes
		}{
			{pkcs11.CKM_EC_KEY_PAIR_GEN, attributes{attr(pkcs11.CKA_EC_PARAMS, curves()[0].params)}},
			{pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN, attributes{attr(pkcs11.CKA_MODULUS_BITS, 3072), attr(pkcs11.CKA_PUBLIC_EXPONENT, []byte{1, 0, 1})}},
		} {
			public := append(append(attributes{attr(pkcs11.CKA_PRIVATE, false), attr(pkcs11.CKA_VERIFY, true)}, both...), form.public...)
			var pub, priv pkcs11.ObjectHandle
			pub, priv, err = t.module.ctx.GenerateKeyPair(s, []*pkcs11.Mechanism{pkcs11.NewMechanism(form.mechanism, nil)}, public, private)
			if err == nil {
				made = []pkcs11.ObjectHandle{priv, pub}
				break
			}
			if !isCode(err, pkcs11.CKR_MECHANISM_INVALID) {
				break
			}
		}
		if err != nil {
			err = fault("C_GenerateKeyPair", err, about{what: t.name, key: label})
			return wrapping.Key{}, errors.Join(err, t.discardUnseen(k, err))
		}
		key, err := t.describe(s, made[0], pkcs11.CKO_PRIVATE_KEY)
		if err == nil && (key.Extractable || !key.Sensitive) {
			err = &Error{Op: "generate a signing key", ErrClass: ClassToken, Cause: "the token made one that could leave it", Fix: "it was destroyed; look at the token's policy for generated keys"}
		}
		if err == nil {
			err = t.only(s, label)
		}
		if err != nil {
			return wrapping.Key{}, errors.Join(err, t.discard(s, made, k))
		}
		return key, nil
	})
}

// SignVerified signs message as [Token.Sign] does and holds the signature against the public half before it gives it back: RSA
// (RSASSA-PKCS1-v1_5) or ECDSA over SHA-256. public is the DER SubjectPublicKeyInfo, as [Token.PublicKey] gives it.
func (t *Token) SignVerified(ctx context.Context, key wrapping.Key, public, message []byte) ([]byte, error) {
	sig, err := t.Sign(ctx, key, message)
	if err != nil {
		return nil, err
	}
	parsed, err := x509.ParsePKIXPublicKey(public)
	if err != nil {
		return nil, fmt.Errorf("the public half of %q cannot be read: %w", key.Label, err)
	}
	sum := sha256.Sum256(message)
	ok := false
	switch p := parsed.(type) {
	case *ecdsa.PublicKey:
		ok = ecdsa.VerifyASN1(p, sum[:], sig)
	case *rsa.PublicKey:
		ok = rsa.VerifyPKCS1v15(p, crypto.SHA256, sum[:], sig) == nil
	}
	if !ok {
		return nil, &Error{Op: "C_Sign", ErrClass: ClassToken, Cause: fmt.Sprintf("what the token signed with %q does not verify under its public half", key.Label), Fix: "check the key pair in the token: do both objects belong together?"}
	}
	return sig, nil
}
