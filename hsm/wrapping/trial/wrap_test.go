package trial

import (
	"bytes"
	"crypto"
	"crypto/aes"
	"crypto/rand"
	"encoding/binary"
	"math/big"
	"testing"
)

// The encoders here are written from the RFCs and share no code with the decoders, so that one mistake
// cannot hide in both.

// wrapRFC3394 is the index-free wrapping of RFC 3394, 2.2.1, with the initial value given.
func wrapRFC3394(t testing.TB, kek []byte, iv uint64, data []byte) []byte {
	t.Helper()
	block, err := aes.NewCipher(kek)
	if err != nil {
		t.Fatal(err)
	}
	if len(data) < 16 || len(data)%8 != 0 {
		t.Fatalf("RFC 3394 wraps two semiblocks or more, not %d bytes", len(data))
	}
	r := bytes.Clone(data)
	a := binary.BigEndian.AppendUint64(nil, iv)
	step := uint64(0)
	for range 6 {
		for i := 0; i < len(r); i += 8 {
			step++
			b := append(bytes.Clone(a), r[i:i+8]...)
			block.Encrypt(b, b)
			binary.BigEndian.PutUint64(a, binary.BigEndian.Uint64(b)^step)
			copy(r[i:], b[8:])
		}
	}
	return append(a, r...)
}

// wrapRFC5649 is RFC 5649, 4.1.
func wrapRFC5649(t testing.TB, kek, data []byte) []byte {
	t.Helper()
	return wrapRFC5649Length(t, kek, data, len(data))
}

// wrapRFC5649Length is the same with any length field.
func wrapRFC5649Length(t testing.TB, kek, data []byte, length int) []byte {
	t.Helper()
	padded := append(bytes.Clone(data), make([]byte, (8-len(data)%8)%8)...)
	iv := uint64(0xA65959A6)<<32 | uint64(uint32(length)) //nolint:gosec // G115: tests choose small lengths
	if len(padded) > 8 {
		return wrapRFC3394(t, kek, iv, padded)
	}
	block, err := aes.NewCipher(kek)
	if err != nil {
		t.Fatal(err)
	}
	b := append(binary.BigEndian.AppendUint64(nil, iv), padded...)
	block.Encrypt(b, b)
	return b
}

// padPKCS7 pads to a multiple of size.
func padPKCS7(data []byte, size int) []byte {
	n := size - len(data)%size
	return append(bytes.Clone(data), bytes.Repeat([]byte{byte(n)}, n)...) //nolint:gosec // G115: n is at most 16
}

// mgf1 is RFC 8017, B.2.1.
func mgf1(hash crypto.Hash, seed []byte, length int) []byte {
	var mask []byte
	for c := byte(0); len(mask) < length; c++ {
		h := hash.New()
		h.Write(seed)
		h.Write([]byte{0, 0, 0, c})
		mask = h.Sum(mask)
	}
	return mask[:length]
}

func xor(a, b []byte) []byte {
	c := make([]byte, len(a))
	for i := range a {
		c[i] = a[i] ^ b[i]
	}
	return c
}

// encodeOAEP is EME-OAEP encoding (RFC 8017, 7.1.1, step 2) with any pair of hashes and any label.
func encodeOAEP(t testing.TB, size int, hash, mgf crypto.Hash, label string, m []byte) []byte {
	t.Helper()
	h := hash.New()
	h.Write([]byte(label))
	room := size - 2*hash.Size() - 2 - len(m)
	if room < 0 {
		t.Fatalf("%d bytes do not fit OAEP %s in %d bytes", len(m), hash, size)
	}
	db := append(h.Sum(nil), make([]byte, room)...)
	db = append(append(db, 1), m...)
	seed := random(hash.Size())
	maskedDB := xor(db, mgf1(mgf, seed, len(db)))
	maskedSeed := xor(seed, mgf1(mgf, maskedDB, len(seed)))
	return append(append([]byte{0}, maskedSeed...), maskedDB...)
}

// encryptRaw is RSAEP (RFC 8017, 5.1.1).
func encryptRaw(k *RSAKey, em []byte) []byte {
	m := new(big.Int).SetBytes(em)
	return m.Exp(m, big.NewInt(int64(k.Public().E)), k.Public().N).FillBytes(make([]byte, k.Spec().Bytes()))
}

// nonZero returns n random bytes without a zero, as PKCS#1 v1.5 pads with.
func nonZero(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	for i := range b {
		b[i] |= 1
	}
	return b
}
