package trial

import (
	"bytes"
	"crypto"
	_ "crypto/sha1"   //nolint:gosec // G505: registers SHA-1, which RSAES_OAEP_SHA_1 asks for
	_ "crypto/sha256" // registers SHA-224 and SHA-256
	_ "crypto/sha512" // registers SHA-384 and SHA-512
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"

	"hsmbridge/hsm/wrapping"
)

// minPS is the least number of padding bytes by which a structure is recognised with certainty: the least
// that RFC 8017, 7.2.2 allows PKCS#1 v1.5, and enough to make a match by accident a matter of 2^-64.
const minPS = 8

var (
	// ErrPKCS1v15 says that OAEP was asked and PKCS#1 v1.5 encryption came out.
	ErrPKCS1v15 = errors.New("padding mismatch: OAEP was asked, the token padded with PKCS#1 v1.5")

	// ErrUnpadded says that the key was encrypted with RSA without any padding (CKM_RSA_X_509).
	ErrUnpadded = errors.New("the token encrypted without padding (textbook RSA)")

	// ErrNoOAEP says that no OAEP decoding fits: not with any hash, any MGF1 hash, and not with a label.
	ErrNoOAEP = errors.New("no OAEP decoding fits: the token encrypted something else, or under another key")

	// ErrNoPKCS1 says that neither PKCS#1 v1.5 nor any OAEP decoding fits.
	ErrNoPKCS1 = errors.New("no PKCS#1 v1.5 decoding fits: the token encrypted something else, or under another key")
)

// MismatchError says that a token used OAEP with other parameters than it was asked for, and answered
// CKR_OK all the same. AWS KMS refuses such output.
type MismatchError struct {
	AskedHash crypto.Hash // the hash of RSAES-OAEP that was asked; 0 when PKCS#1 v1.5 was asked
	AskedMGF  crypto.Hash // the hash of MGF1 that was asked; 0 when PKCS#1 v1.5 was asked
	UsedHash  crypto.Hash // the hash of RSAES-OAEP that the token used
	UsedMGF   crypto.Hash // the hash of MGF1 that the token used
	Label     bool        // the token used a label, or a hash unknown here of UsedHash's length
}

// Error names what was asked and what the token did.
func (e *MismatchError) Error() string {
	switch {
	case e.AskedHash == 0:
		return fmt.Sprintf("padding mismatch: PKCS#1 v1.5 was asked, the token used OAEP %s with MGF1-%s", e.UsedHash, e.UsedMGF)
	case e.AskedHash != e.UsedHash && e.UsedHash == e.UsedMGF:
		return fmt.Sprintf("hash mismatch: %s was asked, the token used %s", e.AskedHash, e.UsedHash)
	case e.AskedHash != e.UsedHash:
		return fmt.Sprintf("hash mismatch: %s was asked, the token used OAEP %s with MGF1-%s", e.AskedHash, e.UsedHash, e.UsedMGF)
	case e.AskedMGF != e.UsedMGF:
		return fmt.Sprintf("MGF mismatch: OAEP %s with MGF1-%s, which AWS KMS refuses", e.UsedHash, e.UsedMGF)
	default:
		return fmt.Sprintf("label mismatch: OAEP %s without a label was asked, the token used another label", e.UsedHash)
	}
}

// oaepHashes are the hashes that PKCS#11 2.40 gives CKM_RSA_PKCS_OAEP. hashAlg and mgf are chosen
// independently of each other there.
func oaepHashes() []crypto.Hash {
	return []crypto.Hash{crypto.SHA1, crypto.SHA224, crypto.SHA256, crypto.SHA384, crypto.SHA512}
}

// oaepHash is the hash that an algorithm uses for OAEP and, AWS KMS knows no other way, for MGF1.
func oaepHash(alg wrapping.Algorithm) (crypto.Hash, error) {
	switch alg {
	case wrapping.OAEPSHA256, wrapping.RSAAESSHA256:
		return crypto.SHA256, nil
	case wrapping.OAEPSHA1, wrapping.RSAAESSHA1:
		return crypto.SHA1, nil
	case wrapping.PKCS1v15:
	}
	return 0, fmt.Errorf("%s does not use OAEP", alg)
}

// OpenOAEP decrypts ct, one block of modulus length, with the OAEP parameters of alg (for RSA_AES_KEY_WRAP_*
// those of its RSA part) and an empty label, by RFC 8017, 7.1.2.
//
// When that fails, every other pair of hash and MGF1 hash is tried, and the error says what the token did:
// [*MismatchError], [ErrPKCS1v15], [ErrUnpadded], or else [ErrNoOAEP].
func (k *RSAKey) OpenOAEP(alg wrapping.Algorithm, ct []byte) ([]byte, error) {
	asked, err := oaepHash(alg)
	if err != nil {
		return nil, err
	}
	em, err := k.Raw(ct)
	if err != nil {
		return nil, err
	}
	if m, ok := decodeOAEP(em, asked, asked); ok {
		return m, nil
	}
	// PKCS#1 v1.5 comes last: it has so little structure that one OAEP message in a few hundred looks like it.
	if mismatch := diagnoseOAEP(em); mismatch != nil {
		mismatch.AskedHash, mismatch.AskedMGF = asked, asked
		return nil, mismatch
	}
	if unpadded(em) {
		return nil, ErrUnpadded
	}
	if _, ok := decodePKCS1(em); ok {
		return nil, ErrPKCS1v15
	}
	return nil, ErrNoOAEP
}

// OpenPKCS1 decrypts ct, one block of modulus length, by RFC 8017, 7.2.2 (block type 2, at least 8 bytes of
// padding). The error says what the token did instead: [*MismatchError] for OAEP, also where its encoded message
// happens to begin like PKCS#1 v1.5, [ErrUnpadded], or else [ErrNoPKCS1].
func (k *RSAKey) OpenPKCS1(ct []byte) ([]byte, error) {
	em, err := k.Raw(ct)
	if err != nil {
		return nil, err
	}
	if mismatch := diagnoseOAEP(em); mismatch != nil {
		return nil, mismatch
	}
	if m, ok := decodePKCS1(em); ok {
		return m, nil
	}
	if unpadded(em) {
		return nil, ErrUnpadded
	}
	return nil, ErrNoPKCS1
}

// diagnoseOAEP finds the OAEP parameters with which em was made, nil if none fit. An exact fit with an empty
// label is looked for first, then the shape that any label leaves. A fit by accident has a chance of 2^-160
// and 2^-64 at most.
func diagnoseOAEP(em []byte) *MismatchError {
	for _, hash := range oaepHashes() {
		for _, mgf := range oaepHashes() {
			if _, ok := decodeOAEP(em, hash, mgf); ok {
				return &MismatchError{UsedHash: hash, UsedMGF: mgf}
			}
		}
	}
	for _, hash := range oaepHashes() {
		for _, mgf := range oaepHashes() {
			_, rest, ok := unmaskOAEP(em, hash, mgf)
			if ps := bytes.IndexByte(rest, 1); ok && ps >= minPS && zero(rest[:ps]) {
				return &MismatchError{UsedHash: hash, UsedMGF: mgf, Label: true}
			}
		}
	}
	return nil
}

// decodeOAEP is EME-OAEP decoding (RFC 8017, 7.1.2, step 3) with an empty label.
func decodeOAEP(em []byte, hash, mgf crypto.Hash) ([]byte, bool) {
	lHash, rest, ok := unmaskOAEP(em, hash, mgf)
	if !ok || !bytes.Equal(lHash, hash.New().Sum(nil)) {
		return nil, false
	}
	ps := bytes.IndexByte(rest, 1)
	if ps < 0 || !zero(rest[:ps]) {
		return nil, false
	}
	return rest[ps+1:], true
}

// unmaskOAEP takes the masks off em = 00 || maskedSeed || maskedDB and returns lHash' and what follows it in
// DB: PS || 01 || M. It answers false when em cannot have been made with this hash.
func unmaskOAEP(em []byte, hash, mgf crypto.Hash) (lHash, rest []byte, ok bool) {
	size := hash.Size()
	if len(em) < 2*size+2 || em[0] != 0 {
		return nil, nil, false
	}
	seed, db := bytes.Clone(em[1:1+size]), bytes.Clone(em[1+size:])
	xorMGF1(seed, db, mgf)
	xorMGF1(db, seed, mgf)
	return db[:size], db[size:], true
}

// xorMGF1 masks dst with MGF1 of seed (RFC 8017, B.2.1).
func xorMGF1(dst, seed []byte, mgf crypto.Hash) {
	h := mgf.New()
	for counter := uint32(0); len(dst) > 0; counter++ {
		h.Reset()
		h.Write(seed)
		h.Write(binary.BigEndian.AppendUint32(nil, counter))
		dst = dst[subtle.XORBytes(dst, dst, h.Sum(nil)):]
	}
}

// decodePKCS1 is EME-PKCS1-v1_5 decoding (RFC 8017, 7.2.2, step 3): 00 02 || PS without zeros || 00 || M.
func decodePKCS1(em []byte) ([]byte, bool) {
	if len(em) < 2+minPS+1 || em[0] != 0 || em[1] != 2 {
		return nil, false
	}
	ps := bytes.IndexByte(em[2:], 0)
	if ps < minPS {
		return nil, false
	}
	return em[2+ps+1:], true
}

// unpadded recognises a number that is far shorter than the modulus, which only textbook RSA encrypts.
func unpadded(em []byte) bool { return len(em) > minPS && zero(em[:minPS]) }

// zero tells whether b holds zero bytes only.
func zero(b []byte) bool {
	for _, x := range b {
		if x != 0 {
			return false
		}
	}
	return true
}
