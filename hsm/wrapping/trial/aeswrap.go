package trial

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"fmt"
)

// semiblock is the unit of AES key wrap in bytes.
const semiblock = 8

// kwpPrefix is the constant half of the alternative initial value of RFC 5649, section 3. The other half is
// the length of the material in bytes, 32 bits, big-endian.
const kwpPrefix = 0xA65959A6

// kwIV is the default initial value of RFC 3394, 2.2.3.1.
const kwIV = 0xA6A6A6A6A6A6A6A6

// Scheme is a way of wrapping key material with an AES key, as found in a token's output.
type Scheme int

// The schemes. AWS KMS accepts SchemeKWP only.
const (
	SchemeUnknown  Scheme = iota // no decoding fits: the output is corrupt, or wrapped under another AES key
	SchemeKWP                    // RFC 5649
	SchemeKWPWrong               // the initial value of RFC 5649 with a length field or padding that contradicts the data
	SchemeKW                     // RFC 3394, no padding
	SchemeKWPad8                 // RFC 3394 over data padded by PKCS#7 to 8 bytes (NSS's CKM_AES_KEY_WRAP_PAD)
	SchemeKWPad16                // RFC 3394 over data padded by PKCS#7 to 16 bytes (openCryptoki's CKM_AES_KEY_WRAP_PAD)
	SchemeKWZeros                // RFC 3394 over data padded with zero bytes
)

// String describes the scheme.
func (s Scheme) String() string {
	switch s {
	case SchemeKWP:
		return "RFC 5649"
	case SchemeKWPWrong:
		return "RFC 5649 with a wrong length field or padding"
	case SchemeKW:
		return "RFC 3394 without padding"
	case SchemeKWPad8:
		return "RFC 3394 with PKCS#7 padding to 8 bytes"
	case SchemeKWPad16:
		return "RFC 3394 with PKCS#7 padding to 16 bytes"
	case SchemeKWZeros:
		return "RFC 3394 with zero padding"
	case SchemeUnknown:
	}
	return "no AES key wrap known"
}

// SchemeError says that key material is not wrapped by RFC 5649 but by something else.
type SchemeError struct{ Found Scheme }

// Error names the scheme that was found.
func (e *SchemeError) Error() string {
	if e.Found == SchemeUnknown {
		return "AES key wrap mismatch: neither RFC 5649 nor RFC 3394 fits: the token wrapped under another AES key, or its output is corrupt"
	}
	return fmt.Sprintf("AES key wrap mismatch: RFC 5649 was asked, the token used %s, which AWS KMS refuses", e.Found)
}

// AESWrapResult is what [OpenAESWrap] found.
type AESWrapResult struct {
	Scheme   Scheme
	Material []byte // without the padding that Scheme says; nil for SchemeUnknown and SchemeKWPWrong
	Padded   []byte // everything that was under the wrap, padding included; nil for SchemeUnknown
}

// OpenKWP unwraps ct by RFC 5649, section 4.2. kek is an AES key of 16, 24 or 32 bytes; ct has at least 16
// bytes and a multiple of 8. It is strict: for every ct that it accepts, wrapping the material again gives ct.
// When ct is no RFC 5649 output the error is a [*SchemeError] that says what it is.
func OpenKWP(kek, ct []byte) ([]byte, error) {
	block, err := newAESUnwrapper(kek, ct)
	if err != nil {
		return nil, err
	}
	r := openAESWrap(block, ct)
	if r.Scheme != SchemeKWP {
		return nil, &SchemeError{Found: r.Scheme}
	}
	return r.Material, nil
}

// OpenAESWrap unwraps ct by whichever AES key wrap fits. It fails only when kek or ct have no possible
// length; a ct that nothing fits is [SchemeUnknown].
//
// RFC 3394 says nothing of padding, so its variants are told apart by the data alone: the longest padding
// that fits is named. Material that itself ends like padding is then misread, as is PKCS#7 padding of 1 to 8
// bytes to a multiple of 16, which is reported as "to 8". A trial should wrap material whose length settles
// it: 37 bytes that do not end in zero give 3 bytes of padding to 8, and 11 bytes to 16.
func OpenAESWrap(kek, ct []byte) (AESWrapResult, error) {
	block, err := newAESUnwrapper(kek, ct)
	if err != nil {
		return AESWrapResult{}, err
	}
	return openAESWrap(block, ct), nil
}

// newAESUnwrapper checks the lengths that every AES key wrap shares.
func newAESUnwrapper(kek, ct []byte) (cipher.Block, error) {
	block, err := aes.NewCipher(kek)
	if err != nil {
		return nil, fmt.Errorf("AES key wrap: the wrapping AES key has %d bytes, not 16, 24 or 32", len(kek))
	}
	if len(ct) < 2*semiblock || len(ct)%semiblock != 0 {
		return nil, fmt.Errorf("AES key wrap: the output has %d bytes, not a multiple of 8 from 16 on", len(ct))
	}
	return block, nil
}

func openAESWrap(block cipher.Block, ct []byte) AESWrapResult {
	iv, data := unwrap(block, ct)
	if iv>>32 == kwpPrefix {
		if m, ok := unpadKWP(int64(iv&0xFFFFFFFF), data); ok {
			return AESWrapResult{Scheme: SchemeKWP, Material: m, Padded: data}
		}
		return AESWrapResult{Scheme: SchemeKWPWrong, Padded: data}
	}
	if iv != kwIV || len(ct) == 2*semiblock {
		return AESWrapResult{}
	}
	scheme, padding := guessPadding(data)
	return AESWrapResult{Scheme: scheme, Material: data[:len(data)-padding], Padded: data}
}

// unpadKWP checks the length field against the data (RFC 5649, section 3): 8(n-1) < length <= 8n, and every
// byte beyond it zero.
func unpadKWP(length int64, data []byte) ([]byte, bool) {
	n := int64(len(data))
	if length <= n-semiblock || length > n || !zero(data[length:]) {
		return nil, false
	}
	return data[:length], true
}

// guessPadding tells by what RFC 3394 data was padded, and the number of padding bytes.
func guessPadding(data []byte) (Scheme, int) {
	last := int(data[len(data)-1])
	pkcs7 := last > 0 && last <= 16 && last < len(data) &&
		bytes.Equal(data[len(data)-last:], bytes.Repeat([]byte{byte(last)}, last))
	switch {
	case pkcs7 && last <= semiblock:
		return SchemeKWPad8, last
	case pkcs7 && len(data)%aes.BlockSize == 0:
		return SchemeKWPad16, last
	case last == 0:
		zeros := len(data) - len(bytes.TrimRight(data, "\x00"))
		return SchemeKWZeros, min(zeros, aes.BlockSize-1)
	}
	return SchemeKW, 0
}

// unwrap is the inverse of W of RFC 3394, 2.2.2 (index based), and for a single semiblock of data the one AES
// block of RFC 5649, section 4.2. It returns the initial value, which the caller must check, and the data.
func unwrap(block cipher.Block, ct []byte) (iv uint64, data []byte) {
	var b [aes.BlockSize]byte
	if len(ct) == aes.BlockSize {
		block.Decrypt(b[:], ct)
		return binary.BigEndian.Uint64(b[:semiblock]), bytes.Clone(b[semiblock:])
	}
	copy(b[:], ct[:semiblock])
	data = bytes.Clone(ct[semiblock:])
	n := len(data) / semiblock
	for t := 6 * n; t > 0; t-- {
		r := data[(t-1)%n*semiblock:][:semiblock]
		binary.BigEndian.PutUint64(b[:], binary.BigEndian.Uint64(b[:])^uint64(t))
		copy(b[semiblock:], r)
		block.Decrypt(b[:], b[:])
		copy(r, b[semiblock:])
	}
	return binary.BigEndian.Uint64(b[:semiblock]), data
}
