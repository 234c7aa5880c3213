package hsm

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/miekg/pkcs11"

	"hsmbridge/hsm/pkcs11uri"
	"hsmbridge/hsm/wrapping"
)

// Names that miekg/pkcs11 does not have. Source: PKCS#11 v3.0, header files.
const (
	ckkECEdwards           = 0x40
	ckmECEdwardsKeyPairGen = 0x1055
	ckmEdDSA               = 0x1057
	ckmAESKeyWrapKWP       = 0x210B
)

// curve is a named curve as tokens write it in CKA_EC_PARAMS.
type curve struct {
	spec   wrapping.KeySpec
	name   string
	bits   int
	params []byte // DER of the object identifier, what this package gives to tokens
	also   []byte // another form that tokens answer with
}

// curves is the table of curves. Sources: RFC 5480, SEC 2, RFC 8410, PKCS#11 v3.0 section 2.3.7.
func curves() []curve {
	return []curve{
		{wrapping.ECCNISTP256, "P-256", 256, []byte{0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07}, nil},
		{wrapping.ECCNISTP384, "P-384", 384, []byte{0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22}, nil},
		{wrapping.ECCNISTP521, "P-521", 521, []byte{0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x23}, nil},
		{wrapping.ECCSECGP256K1, "secp256k1", 256, []byte{0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x0a}, nil},
		{wrapping.ECCEdwards25519, "Ed25519", 256, append([]byte{0x13, 0x0c}, "edwards25519"...), []byte{0x06, 0x03, 0x2b, 0x65, 0x70}},
	}
}

func curveByParams(params []byte) (curve, bool) {
	for _, c := range curves() {
		if bytes.Equal(params, c.params) || c.also != nil && bytes.Equal(params, c.also) {
			return c, true
		}
	}
	return curve{}, false
}

// Keys lists every secret and private key that is stored in the token, with what KMS would take it for and
// why it cannot be imported.
func (t *Token) Keys(ctx context.Context) ([]wrapping.Key, error) {
	return read(ctx, t, func(s pkcs11.SessionHandle) ([]wrapping.Key, error) {
		return t.keys(s, pkcs11uri.URI{})
	})
}

// Find returns the one secret or private key stored in the token that the URI names. The error wraps
// [ErrNotFound] or [ErrAmbiguous] otherwise, and says what is there.
func (t *Token) Find(ctx context.Context, u pkcs11uri.URI) (wrapping.Key, error) {
	return read(ctx, t, func(s pkcs11.SessionHandle) (wrapping.Key, error) {
		keys, err := t.keys(s, u)
		if err != nil {
			return wrapping.Key{}, err
		}
		switch len(keys) {
		case 1:
			return keys[0], nil
		case 0:
			return wrapping.Key{}, t.notFound(s, u)
		}
		return wrapping.Key{}, &Error{
			Op: "find " + u.String(), ErrClass: ClassCaller, Cause: "these key objects match: " + listKeys(keys),
			Fix: "name one by id, label and type together; objects that are the same in all three have to be told apart in the HSM first", Err: ErrAmbiguous,
		}
	})
}

func (t *Token) notFound(s pkcs11.SessionHandle, u pkcs11uri.URI) error {
	e := &Error{Op: "find " + u.String(), ErrClass: ClassCaller, Cause: "the token " + t.identity.Label + " holds no such key", Err: ErrNotFound}
	e.Fix = "correct the key's uri, or have the key made: generate: if-missing in the configuration, or hsmbridge keys generate"
	if stored, err := t.matching(s, pkcs11uri.URI{}); err == nil {
		// To read the attributes of thousands of keys takes a token minutes.
		if some, err := t.describeAll(s, stored[:min(len(stored), mostListed)]); err == nil {
			e.Cause += "; it holds: " + listSome(some, len(stored))
		}
	}
	return e
}

// mostListed is how many keys an error names.
const mostListed = 12

func listKeys(keys []wrapping.Key) string { return listSome(keys, len(keys)) }

// listSome names keys, which are all, or some of all.
func listSome(keys []wrapping.Key, all int) string {
	if all == 0 {
		return "no keys"
	}
	keys = slices.Clone(keys)
	slices.SortFunc(keys, func(a, b wrapping.Key) int { return strings.Compare(a.Label, b.Label) })
	keys = keys[:min(len(keys), mostListed)]
	var out []string
	for _, k := range keys {
		out = append(out, fmt.Sprintf("object=%q id=%s %s", k.Label, hex.EncodeToString(k.ID), k.KeyType))
	}
	if all > len(keys) {
		out = append(out, fmt.Sprintf("and %d more", all-len(keys)))
	}
	return strings.Join(out, ", ")
}

// keys lists the stored secret and private keys that the URI's object attributes name.
func (t *Token) keys(s pkcs11.SessionHandle, u pkcs11uri.URI) ([]wrapping.Key, error) {
	stored, err := t.matching(s, u)
	if err != nil {
		return nil, err
	}
	return t.describeAll(s, stored)
}

// storedKey is a key object that was found and not yet read.
type storedKey struct {
	handle pkcs11.ObjectHandle
	class  uint
}

// matching finds what keys lists.
func (t *Token) matching(s pkcs11.SessionHandle, u pkcs11uri.URI) (out []storedKey, _ error) {
	for _, class := range []uint{pkcs11.CKO_SECRET_KEY, pkcs11.CKO_PRIVATE_KEY} {
		if u.Type == "secret-key" && class != pkcs11.CKO_SECRET_KEY || u.Type == "private" && class != pkcs11.CKO_PRIVATE_KEY {
			continue
		}
		template := []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_CLASS, class), pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true)}
		if u.Object != "" {
			template = append(template, pkcs11.NewAttribute(pkcs11.CKA_LABEL, u.Object))
		}
		if len(u.ID) > 0 {
			template = append(template, pkcs11.NewAttribute(pkcs11.CKA_ID, u.ID))
		}
		handles, err := t.find(s, template, 0)
		if err != nil {
			return nil, err
		}
		for _, h := range handles {
			out = append(out, storedKey{h, class})
		}
	}
	return out, nil
}

// describeAll reads key objects that were found while the user was logged in.
func (t *Token) describeAll(s pkcs11.SessionHandle, stored []storedKey) ([]wrapping.Key, error) {
	var out []wrapping.Key
	for _, f := range stored {
		k, err := t.describe(s, f.handle, f.class)
		if err != nil {
			return nil, err
		}
		out = append(out, k)
	}
	return out, t.loggedIn(s)
}

// describe reads what hsmbridge needs to know of a key object; no secret attribute is asked for.
func (t *Token) describe(s pkcs11.SessionHandle, h pkcs11.ObjectHandle, class uint) (wrapping.Key, error) {
	r := &reader{t: t, s: s, o: h}
	keyType := r.ulong(pkcs11.CKA_KEY_TYPE)
	r.fetch(keyType, append(
		standing(keyType), pkcs11.CKA_SENSITIVE, pkcs11.CKA_LOCAL, pkcs11.CKA_DECRYPT, pkcs11.CKA_SIGN, pkcs11.CKA_WRAP)...)
	k := t.identify(r, class, keyType)
	k.Sensitive = r.boolean(pkcs11.CKA_SENSITIVE)
	k.Local = r.boolean(pkcs11.CKA_LOCAL)
	k.Decrypt = r.boolean(pkcs11.CKA_DECRYPT)
	k.Sign = r.boolean(pkcs11.CKA_SIGN)
	k.Wrap = r.boolean(pkcs11.CKA_WRAP)
	return k, r.err
}

// again reads anew what decides whether a key that was described earlier may leave the token: which key it is, and what forbids a wrap.
func (t *Token) again(s pkcs11.SessionHandle, k wrapping.Key) (wrapping.Key, error) {
	class := uint(pkcs11.CKO_SECRET_KEY)
	if k.Class == "CKO_PRIVATE_KEY" {
		class = pkcs11.CKO_PRIVATE_KEY
	}
	r := &reader{t: t, s: s, o: pkcs11.ObjectHandle(k.Handle)}
	keyType := keyTypeOf(k.KeyType)
	r.fetch(keyType, append(standing(keyType), pkcs11.CKA_KEY_TYPE)...)
	now := t.identify(r, class, r.ulong(pkcs11.CKA_KEY_TYPE))
	return now, r.err
}

// standing are the attributes that identify needs of a key of the type.
func standing(keyType int) []uint {
	size := uint(pkcs11.CKA_VALUE_LEN)
	switch keyType {
	case pkcs11.CKK_RSA:
		size = pkcs11.CKA_MODULUS
	case pkcs11.CKK_EC, ckkECEdwards:
		size = pkcs11.CKA_EC_PARAMS
	}
	return []uint{pkcs11.CKA_LABEL, pkcs11.CKA_ID, size, pkcs11.CKA_EXTRACTABLE, pkcs11.CKA_WRAP_WITH_TRUSTED}
}

// identify reads which key an object is, and whether it may leave the token.
func (t *Token) identify(r *reader, class uint, keyType int) wrapping.Key {
	k := wrapping.Key{Class: "CKO_SECRET_KEY", Handle: uint(r.o), Epoch: t.epoch, KeyType: keyTypeName(keyType)}
	if class == pkcs11.CKO_PRIVATE_KEY {
		k.Class = "CKO_PRIVATE_KEY"
	}
	k.Label, k.ID = r.text(pkcs11.CKA_LABEL), r.bytes(pkcs11.CKA_ID)
	switch keyType {
	case pkcs11.CKK_RSA:
		k.Bits = bitLen(r.bytes(pkcs11.CKA_MODULUS))
	case pkcs11.CKK_EC, ckkECEdwards:
		if c, ok := curveByParams(r.bytes(pkcs11.CKA_EC_PARAMS)); ok {
			k.Curve, k.Bits = c.name, c.bits
		}
	default:
		if n := r.ulong(pkcs11.CKA_VALUE_LEN); n > 0 {
			k.Bits = 8 * n
		}
	}
	k.KeySpec = keySpecOf(keyType, k.Bits, k.Curve)
	k.Extractable = r.boolean(pkcs11.CKA_EXTRACTABLE)
	k.WrapWithTrusted = r.boolean(pkcs11.CKA_WRAP_WITH_TRUSTED)
	k.Blockers = t.blockers(k)
	return k
}

// blockers says why a key of this token cannot be imported.
func (t *Token) blockers(k wrapping.Key) []string {
	if t.cannotWrap != "" {
		return []string{t.cannotWrap}
	}
	return blockers(k)
}

// keyType is a CKK and its name.
type keyType struct {
	number int
	name   string
}

// keyTypes are the types that KMS could take, and some that people have.
func keyTypes() [13]keyType {
	return [13]keyType{
		{pkcs11.CKK_AES, "CKK_AES"},
		{pkcs11.CKK_GENERIC_SECRET, "CKK_GENERIC_SECRET"},
		{pkcs11.CKK_RSA, "CKK_RSA"},
		{pkcs11.CKK_EC, "CKK_EC"},
		{ckkECEdwards, "CKK_EC_EDWARDS"},
		{pkcs11.CKK_DES2, "CKK_DES2"},
		{pkcs11.CKK_DES3, "CKK_DES3"},
		{pkcs11.CKK_DH, "CKK_DH"},
		{pkcs11.CKK_DSA, "CKK_DSA"},
		{pkcs11.CKK_SHA224_HMAC, "CKK_SHA224_HMAC"},
		{pkcs11.CKK_SHA256_HMAC, "CKK_SHA256_HMAC"},
		{pkcs11.CKK_SHA384_HMAC, "CKK_SHA384_HMAC"},
		{pkcs11.CKK_SHA512_HMAC, "CKK_SHA512_HMAC"},
	}
}

// keyTypeName is the CKK name of a type, and the number of one that has no name here.
func keyTypeName(number int) string {
	for _, k := range keyTypes() {
		if k.number == number {
			return k.name
		}
	}
	return fmt.Sprintf("CKK_0x%X", number)
}

// keyTypeOf is the type of a name; -1 for one that has none.
func keyTypeOf(name string) int {
	for _, k := range keyTypes() {
		if k.name == name {
			return k.number
		}
	}
	return -1
}

// keySpecOf is the KMS key spec that an object fits; empty if none.
func keySpecOf(keyType, bits int, curveName string) wrapping.KeySpec {
	switch keyType {
	case pkcs11.CKK_AES:
		return map[int]wrapping.KeySpec{256: wrapping.SymmetricDefault}[bits]
	case pkcs11.CKK_GENERIC_SECRET, pkcs11.CKK_SHA224_HMAC, pkcs11.CKK_SHA256_HMAC, pkcs11.CKK_SHA384_HMAC, pkcs11.CKK_SHA512_HMAC:
		return map[int]wrapping.KeySpec{224: wrapping.HMAC224, 256: wrapping.HMAC256, 384: wrapping.HMAC384, 512: wrapping.HMAC512}[bits]
	case pkcs11.CKK_RSA:
		return map[int]wrapping.KeySpec{2048: wrapping.KeyRSA2048, 3072: wrapping.KeyRSA3072, 4096: wrapping.KeyRSA4096}[bits]
	case pkcs11.CKK_EC, ckkECEdwards:
		for _, c := range curves() {
			if c.name == curveName {
				return c.spec
			}
		}
	}
	return ""
}

// blockers says why a key cannot be imported into KMS. Some tokens (NSS) would wrap keys that they must not,
// so hsmbridge refuses by itself.
func blockers(k wrapping.Key) []string {
	var out []string
	if !k.Extractable {
		out = append(out, "CKA_EXTRACTABLE is false: it can never leave this token; generate a new key for KMS with `hsmbridge keys generate`")
	}
	if k.WrapWithTrusted {
		out = append(out, "CKA_WRAP_WITH_TRUSTED is true: it may be wrapped only under a key that the security officer has made CKA_TRUSTED, which a ceremony does (hsmceremony wrap --trusted)")
	}
	if k.KeySpec == "" {
		size := "of unknown size"
		if k.Bits > 0 {
			size = fmt.Sprintf("of %d bits", k.Bits)
		}
		out = append(out, fmt.Sprintf("AWS KMS has no key spec for a %s key %s", k.KeyType, size))
	}
	return out
}

func bitLen(b []byte) int {
	b = bytes.TrimLeft(b, "\x00")
	if len(b) == 0 {
		return 0
	}
	n := 8 * (len(b) - 1)
	for top := b[0]; top > 0; top >>= 1 {
		n++
	}
	return n
}
