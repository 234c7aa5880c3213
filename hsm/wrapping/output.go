package wrapping

import (
	"bytes"
	"errors"
	"fmt"
)

// ErrUnsafeOutput means that what the token returned from C_WrapKey may hold key material in the clear or
// is not a wrap of the plan's algorithm. The bytes were dropped.
var ErrUnsafeOutput = errors.New("the token's wrapped output was dropped")

// ErrOtherLength means that the plan holds for material of one length only, and that the key has another one than the key of the probe. The
// bytes were dropped.
var ErrOtherLength = errors.New("the token was proved to wrap keys of this kind by this mechanism only where they have the length of the probe's, and this key has another")

// CheckOutput looks at the result of C_WrapKey before it may leave the process: it has a length
// that the plan's algorithm gives, and neither part has the shape of plaintext: DER of a private key, padding
// around a key, long runs of one byte. A good ciphertext fails by chance less than once in 2^24; it is then
// refused like any other.
// The error wraps [ErrUnsafeOutput] or [ErrOtherLength], and never shows the bytes.
func CheckOutput(p Plan, out []byte) error {
	n := p.WrappingKeySpec.Bytes()
	if n == 0 || len(out) < n {
		return fmt.Errorf("%w: %d bytes where %s under %s gives at least %d", ErrUnsafeOutput, len(out), p.Algorithm, p.WrappingKeySpec, n)
	}
	parts := [][]byte{out}
	var other error
	if p.Algorithm.TwoPart() {
		parts = [][]byte{out[:n], out[n:]}
		if other = checkAESPart(p, parts[1]); other != nil && !errors.Is(other, ErrOtherLength) {
			return other
		}
	} else if len(out) != n {
		return fmt.Errorf("%w: %d bytes where %s under %s gives %d", ErrUnsafeOutput, len(out), p.Algorithm, p.WrappingKeySpec, n)
	}
	if !p.Algorithm.TwoPart() && unencryptedPKCS1(out, p.Length) {
		return fmt.Errorf("%w: it is PKCS #1 v1.5 padding that was never encrypted", ErrUnsafeOutput)
	}
	for _, part := range parts {
		if shape := plaintextShape(part); shape != "" {
			return fmt.Errorf("%w: it has the shape of plaintext (%s)", ErrUnsafeOutput, shape)
		}
	}
	return other
}

// checkAESPart checks the length of an RFC 5649 output: the material rounded up to 8 bytes, and 8 more. The PKCS#8 of two keys of one curve may
// differ, with the public key or without, and so for EC keys the probe's length counts only where the mechanism was proved for it alone: where its
// initial value has the length in it (RFC 5649, section 3), and where it is a multiple of 8, for which no padding was seen.
func checkAESPart(p Plan, part []byte) error {
	wrapped := func(n int) int { return (n+7)/8*8 + 8 }
	least, most := pkcs8Range(p.KeySpec)
	if len(part)%8 != 0 || len(part) < wrapped(least) || len(part) > wrapped(most) {
		return fmt.Errorf("%w: the AES part has %d bytes where RFC 5649 gives %d to %d", ErrUnsafeOutput, len(part), wrapped(least), wrapped(most))
	}
	if p.Length > 0 && (p.Mechanism.Form == FormKWPIV || p.Length%8 == 0) && len(part) != wrapped(p.Length) {
		return fmt.Errorf("%w: the AES part has %d bytes and not %d", ErrOtherLength, len(part), wrapped(p.Length))
	}
	return nil
}

// pkcs8Range bounds the PKCS#8 length of a private key: of a two-prime RSA key nine modulus halves (n and d count twice) and DER around them
// (RSA_2048 keys have 1,190 to 1,220 bytes), of a key on a curve its scalar and DER, and with them the public point, the curve's name once more,
// and room.
func pkcs8Range(k KeySpec) (least, most int) {
	bits := map[KeySpec]int{KeyRSA2048: 2048, KeyRSA3072: 3072, KeyRSA4096: 4096}[k]
	if bits == 0 {
		n := map[KeySpec]int{ECCNISTP256: 32, ECCNISTP384: 48, ECCNISTP521: 66, ECCSECGP256K1: 32, ECCEdwards25519: 32}[k]
		return n + 16, 3*n + 128
	}
	core := 9 * bits / 16
	return core, core + 128
}

// plaintextShape names the shape of plaintext that b has, empty if none.
func plaintextShape(b []byte) string {
	switch {
	case derLength(b) == len(b):
		return "a DER SEQUENCE of exactly this length"
	case hasRun(b, 12):
		return "a long run of one byte"
	case bytes.Contains(b, pkcs8Prefix()):
		return "the head of a PKCS#8 private key"
	}
	return ""
}

// pkcs8Prefix is the DER of version 0 and the start of the AlgorithmIdentifier of rsaEncryption
// (1.2.840.113549.1.1.1) without lengths: 9 bytes of OID content and its header stand in every RSA PKCS#8.
func pkcs8Prefix() []byte {
	return []byte{0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01}
}

// derLength is the whole length of the DER SEQUENCE at the start of b, -1 if there is none.
// Trailing zero bytes are counted in, as SoftHSM 2.6.1 would append them.
func derLength(b []byte) int {
	if len(b) < 4 || b[0] != 0x30 {
		return -1
	}
	n, head := int(b[1]), 2
	if n >= 0x80 {
		octets := n & 0x7f
		if octets == 0 || octets > 3 || len(b) < 2+octets {
			return -1
		}
		n, head = 0, 2+octets
		for _, o := range b[2:head] {
			n = n<<8 | int(o)
		}
	}
	// The first element of a PKCS#8, SEC1 or PKCS#1 private key is a version of one byte.
	if len(b) < head+3 || b[head] != 0x02 || b[head+1] != 0x01 || b[head+2] > 2 {
		return -1
	}
	end := head + n
	if end > len(b) || len(b)-end > 7 || len(bytes.Trim(b[end:], "\x00")) > 0 {
		return -1
	}
	return len(b)
}

// unencryptedPKCS1 recognises 00 02 PS 00 M with M of n bytes (RFC 8017, 7.2.1, step 2).
func unencryptedPKCS1(b []byte, n int) bool {
	sep := len(b) - n - 1
	return n > 0 && sep > 2 && b[0] == 0 && b[1] == 2 && bytes.IndexByte(b[2:], 0) == sep-2
}

// hasRun says that n times the same byte stand in a row. It looks at the last pair of each window first: where that differs, which is so
// nearly always, no run of n lies over it, and the window goes on behind it.
func hasRun(b []byte, n int) bool {
	for start := 0; start+n <= len(b); {
		i := start + n - 1
		for i > start && b[i] == b[i-1] {
			i--
		}
		if i == start {
			return true
		}
		start = i
	}
	return false
}
