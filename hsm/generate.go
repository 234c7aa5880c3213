package hsm

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"

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
	if err := t.refuseToWrap("generate " + string(spec)); err != nil {
		return wrapping.Key{}, err
	}
	k, err := newKeyNamed(label, id)
	if err != nil {
		return wrapping.Key{}, err
	}
	return with(ctx, t, func(s pkcs11.SessionHandle) (wrapping.Key, error) {
		for _, u := range []pkcs11uri.URI{{Object: label}, {ID: k.id}} {
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
		made, err := t.generate(s, r, k.attributes())
		if err != nil {
			err = fault("generate "+string(spec), err, about{what: t.name, key: label})
			return wrapping.Key{}, errors.Join(err, t.discardUnseen(k, err))
		}
		key, err := t.readBack(s, made[0], spec)
		if err == nil {
			err = t.only(s, label)
		}
		if err != nil {
			return wrapping.Key{}, errors.Join(err, t.discard(s, made, k))
		}
		return key, nil
	})
}

// newKey names the objects of a key that is to be stored.
type newKey struct {
	label string
	id    []byte
	drawn bool // the id is random: no other process makes an object with it
}

// newKeyNamed draws an id unless there is one.
func newKeyNamed(label string, id []byte) (newKey, error) {
	k := newKey{label: label, id: id, drawn: len(id) == 0}
	if k.drawn {
		k.id = make([]byte, 16)
		if _, err := rand.Read(k.id); err != nil {
			return k, fmt.Errorf("make a random CKA_ID: %w", err)
		}
	}
	return k, nil
}

func (k newKey) attributes() attributes {
	return attributes{attr(pkcs11.CKA_TOKEN, true), attr(pkcs11.CKA_LABEL, k.label), attr(pkcs11.CKA_ID, k.id)}
}

// mostObjects is how many a key has: a pair has two.
const mostObjects = 2

// discard destroys a key that was just stored and is not as it should be. Unlike session objects, a stored one does not go with its session: where that
// fails, it is looked for on another.
func (t *Token) discard(s pkcs11.SessionHandle, made []pkcs11.ObjectHandle, k newKey) error {
	var failed error
	for _, h := range made {
		failed = errors.Join(failed, t.module.ctx.DestroyObject(s, h))
	}
	if failed == nil {
		return nil
	}
	t.doubt(s)
	if failed = t.discardElsewhere(made, k); failed == nil {
		return nil
	}
	return k.stays("was made, is not as it should be", failed)
}

// discardUnseen looks for a key whose making failed with err: the token may have made it all the same.
func (t *Token) discardUnseen(k newKey, err error) error {
	if onlyCaller(err) {
		return nil // the token refused
	}
	if failed := t.discardElsewhere(nil, k); failed != nil && !neverBegun(err) {
		return k.stays("may have been made", failed)
	}
	return nil
}

func (k newKey) stays(what string, err error) error {
	return &Error{
		Op: "destroy the new key", ErrClass: ClassToken, Cause: fmt.Sprintf("object=%q id=%x %s, and may still be in the token: %v", k.label, k.id, what, err),
		Fix: "look at it with hsmbridge keys list, and destroy it with the vendor's tool; hsmbridge has used it for nothing", Err: err,
	}
}

// discardElsewhere destroys what is left of a new key, made being the handles that the token gave for it. Where the id is not of this process alone, an
// object of another handle may be another's: it is left, and reported.
func (t *Token) discardElsewhere(made []pkcs11.ObjectHandle, k newKey) error {
	s, err := t.openSession()
	if err != nil {
		return err
	}
	defer t.drop(s)
	left, err := t.find(s, k.attributes(), 0)
	if err == nil {
		err = t.loggedIn(s) // or private objects would not be seen
	}
	if err != nil {
		return err
	}
	if k.drawn && len(left) > mostObjects {
		return fmt.Errorf("there are %d objects of this label and id", len(left))
	}
	unsure := 0
	for _, h := range left {
		if !k.drawn && !slices.Contains(made, h) {
			unsure++
			continue
		}
		if err := t.module.ctx.DestroyObject(s, h); err != nil {
			return fault("C_DestroyObject", err, about{what: t.name, key: k.label})
		}
	}
	if unsure > 0 {
		return fmt.Errorf("of %d objects of this label and id it cannot be told whether this process made them; they were not touched", unsure)
	}
	return nil
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
