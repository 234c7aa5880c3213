package hsm

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"

	"github.com/miekg/pkcs11"

	"hsmbridge/hsm/pkcs11uri"
	"hsmbridge/hsm/wrapping"
)

type attributes = []*pkcs11.Attribute

func attr(kind uint, value any) *pkcs11.Attribute { return pkcs11.NewAttribute(kind, value) }

// recipe is how a key of one spec is generated: the mechanism and what differs between the templates.
type recipe struct {
	mechanism uint
	secret    attributes // of a secret key; nil for pairs
	public    attributes
	private   attributes
}

// recipeFor is the table of what is generated. Every key may do what its KMS key does, so that data from KMS can be
// checked in the HSM; none may wrap.
func recipeFor(spec wrapping.KeySpec) (recipe, bool) {
	switch spec.Kind() {
	case wrapping.KindSymmetric:
		return recipe{mechanism: pkcs11.CKM_AES_KEY_GEN, secret: attributes{
			attr(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_AES), attr(pkcs11.CKA_VALUE_LEN, spec.MaterialBytes()),
			attr(pkcs11.CKA_ENCRYPT, true), attr(pkcs11.CKA_DECRYPT, true), attr(pkcs11.CKA_WRAP, false), attr(pkcs11.CKA_UNWRAP, false),
		}}, true
	case wrapping.KindHMAC:
		return recipe{mechanism: pkcs11.CKM_GENERIC_SECRET_KEY_GEN, secret: attributes{
			attr(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_GENERIC_SECRET), attr(pkcs11.CKA_VALUE_LEN, spec.MaterialBytes()),
			attr(pkcs11.CKA_SIGN, true), attr(pkcs11.CKA_VERIFY, true), attr(pkcs11.CKA_WRAP, false), attr(pkcs11.CKA_UNWRAP, false),
		}}, true
	case wrapping.KindRSA:
		bits := map[wrapping.KeySpec]int{wrapping.KeyRSA2048: 2048, wrapping.KeyRSA3072: 3072, wrapping.KeyRSA4096: 4096}[spec]
		return recipe{
			mechanism: pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN,
			public: attributes{
				attr(pkcs11.CKA_MODULUS_BITS, bits), attr(pkcs11.CKA_PUBLIC_EXPONENT, []byte{1, 0, 1}),
				attr(pkcs11.CKA_VERIFY, true), attr(pkcs11.CKA_ENCRYPT, true),
			},
			private: attributes{attr(pkcs11.CKA_SIGN, true), attr(pkcs11.CKA_DECRYPT, true), attr(pkcs11.CKA_UNWRAP, false)},
		}, true
	case wrapping.KindEC, wrapping.KindEd25519:
		for _, c := range curves() {
			if c.spec != spec {
				continue
			}
			mechanism := uint(pkcs11.CKM_EC_KEY_PAIR_GEN)
			if spec == wrapping.ECCEdwards25519 {
				mechanism = ckmECEdwardsKeyPairGen
			}
			return recipe{
				mechanism: mechanism,
				public:    attributes{attr(pkcs11.CKA_EC_PARAMS, c.params), attr(pkcs11.CKA_VERIFY, true)},
				private:   attributes{attr(pkcs11.CKA_SIGN, true)},
			}, true
		}
	case wrapping.KindRefused:
	}
	return recipe{}, false
}

// Generate makes a key that can be imported into KMS: stored in the token, private, sensitive, extractable.
// id is CKA_ID; nil makes a random one. What the token made is read back: if it is not what was asked for, it is
// destroyed and the difference reported. A label or an id that is taken is refused.
func (t *Token) Generate(ctx context.Context, spec wrapping.KeySpec, label string, id []byte) (wrapping.Key, error) {
	r, ok := recipeFor(spec)
	if !ok {
		return wrapping.Key{}, &Error{Op: "generate " + string(spec), ErrClass: ClassCaller, Cause: spec.WhyNot()}
	}
	if label == "" {
		return wrapping.Key{}, &Error{Op: "generate " + string(spec), ErrClass: ClassCaller, Cause: "the key needs a label", Fix: "give one (CKA_LABEL)"}
	}
	if len(id) == 0 {
		id = make([]byte, 16)
		if _, err := rand.Read(id); err != nil {
			return wrapping.Key{}, fmt.Errorf("make a random CKA_ID: %w", err)
		}
	}
	return with(ctx, t, func(s pkcs11.SessionHandle) (wrapping.Key, error) {
		for _, u := range []pkcs11uri.URI{{Object: label}, {ID: id}} {
			switch there, err := t.keys(s, u); {
			case err != nil:
				return wrapping.Key{}, err
			case len(there) > 0:
				return wrapping.Key{}, &Error{
					Op: "generate " + string(spec), ErrClass: ClassCaller, Cause: "the token already holds " + listKeys(there),
					Fix: "choose another label and id; hsmbridge never replaces a key", Err: ErrExists,
				}
			}
		}
		made, err := t.generate(s, r, attributes{
			attr(pkcs11.CKA_TOKEN, true), attr(pkcs11.CKA_LABEL, label), attr(pkcs11.CKA_ID, id),
		})
		if err != nil {
			return wrapping.Key{}, fault("generate "+string(spec), err, about{what: t.name, key: label})
		}
		key, err := t.readBack(s, made[0], spec)
		if err == nil {
			err = t.only(s, label)
		}
		if err != nil {
			for _, h := range made {
				err = errors.Join(err, t.destroy(s, h))
			}
			return wrapping.Key{}, err
		}
		return key, nil
	})
}

// only holds that no other process made a key of the label at the same moment: it may have ended since, and its key is the older one.
func (t *Token) only(s pkcs11.SessionHandle, label string) error {
	there, err := t.keys(s, pkcs11uri.URI{Object: label})
	if err != nil || len(there) < 2 {
		return err
	}
	return &Error{
		Op: "generate " + label, ErrClass: ClassSession, Cause: "another process made a key of this label at the same moment: " + listKeys(there),
		Fix: "the one that was made here was destroyed; run this again", Err: ErrExists,
	}
}

// generate calls the token. It gives the secret or private key first, then the public key of a pair.
func (t *Token) generate(s pkcs11.SessionHandle, r recipe, common attributes) ([]pkcs11.ObjectHandle, error) {
	mechanism := []*pkcs11.Mechanism{pkcs11.NewMechanism(r.mechanism, nil)}
	join := func(parts ...attributes) attributes {
		var out attributes
		for _, p := range parts {
			out = append(out, p...)
		}
		return out
	}
	guarded := attributes{attr(pkcs11.CKA_PRIVATE, true), attr(pkcs11.CKA_SENSITIVE, true), attr(pkcs11.CKA_EXTRACTABLE, true)}
	if r.secret != nil {
		h, err := t.module.ctx.GenerateKey(s, mechanism, join(common, guarded, r.secret, attributes{attr(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY)}))
		return []pkcs11.ObjectHandle{h}, err
	}
	public, private, err := t.module.ctx.GenerateKeyPair(s, mechanism,
		join(common, attributes{attr(pkcs11.CKA_PRIVATE, false)}, r.public), join(common, guarded, r.private))
	return []pkcs11.ObjectHandle{private, public}, err
}

// readBack reads what the token made and compares it with what was asked for.
func (t *Token) readBack(s pkcs11.SessionHandle, h pkcs11.ObjectHandle, spec wrapping.KeySpec) (wrapping.Key, error) {
	class := uint(pkcs11.CKO_PRIVATE_KEY)
	if spec.MaterialBytes() > 0 {
		class = pkcs11.CKO_SECRET_KEY
	}
	key, err := t.describe(s, h, class)
	if err != nil {
		return key, err
	}
	for _, c := range []struct {
		bad  bool
		what string
	}{
		{key.KeySpec != spec, fmt.Sprintf("a %s key of %d bits", key.KeyType, key.Bits)},
		{!key.Sensitive, "CKA_SENSITIVE=false"},
		{!key.Extractable, "CKA_EXTRACTABLE=false"},
		{key.WrapWithTrusted, "CKA_WRAP_WITH_TRUSTED=true"},
		{key.Wrap, "CKA_WRAP=true"},
	} {
		if c.bad {
			return key, &Error{
				Op: "generate " + string(spec), ErrClass: ClassToken, Cause: "the token made something else than was asked for: " + c.what,
				Fix: "the object was destroyed; look at the token's policy for generated keys",
			}
		}
	}
	return key, nil
}
