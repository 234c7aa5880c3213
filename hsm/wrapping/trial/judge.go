package trial

import (
	"bytes"
	"errors"
	"fmt"

	"hsmbridge/hsm/wrapping"
)

// Verdict is the result half of a [wrapping.Trial].
type Verdict struct {
	Outcome wrapping.Outcome
	Reason  string // empty when Outcome is Exact
	Length  int    // bytes of key material that came out, padding included; 0 when nothing did
}

// Check compares the key material that came out of a trial with the throwaway key that went in. It returns
// the number of zero bytes that follow the key and do not belong to it. [RSAKey.Judge] calls it for the token's
// raw output too, which must fail.
type Check func(material []byte) (padding int, err error)

// ErrOtherKey says that a key came out, but not the throwaway key that went in.
var ErrOtherKey = errors.New("another key came out than went in")

// Known is the check for a throwaway secret whose bytes are known, because the probe created it from them.
func Known(secret []byte) Check {
	return func(material []byte) (int, error) {
		rest, ok := bytes.CutPrefix(material, secret)
		switch {
		case ok && zero(rest):
			return len(rest), nil
		case len(material) != len(secret):
			return 0, fmt.Errorf("%w: %d bytes in, %d bytes out", ErrOtherKey, len(secret), len(material))
		}
		return 0, ErrOtherKey
	}
}

// Judge opens ct, the output of one C_WrapKey (for composed forms, of both, concatenated) that was asked for
// alg, and compares what comes out.
//
// The outcome is Exact only for what AWS KMS accepts: the asked padding and hash, RFC 5649 where an AES key
// wrap is involved, and the throwaway key byte for byte. It is Padded when nothing but zero bytes follow the
// key, and Failed otherwise; the reason then says what the token did.
//
// One Exact private key does not make a mechanism exact: SoftHSM 2.6.1 pads to a multiple of 8, and an RSA
// PKCS#8 has such a length by chance. A [Known] secret whose length is no multiple of 8 settles it.
func (k *RSAKey) Judge(alg wrapping.Algorithm, ct []byte, check Check) Verdict {
	if _, err := check(ct); err == nil {
		return Verdict{Outcome: wrapping.Failed, Reason: "the token answered with the key itself, not encrypted"}
	}
	material, err := k.Open(alg, ct)
	if err != nil {
		return Verdict{Outcome: wrapping.Failed, Reason: err.Error()}
	}
	v := Verdict{Outcome: wrapping.Exact, Length: len(material)}
	padding, err := check(material)
	switch {
	case err != nil:
		v.Outcome, v.Reason = wrapping.Failed, err.Error()
	case padding > 0:
		v.Outcome, v.Reason = wrapping.Padded, fmt.Sprintf("%d zero bytes that are not part of it follow the key", padding)
	}
	return v
}
