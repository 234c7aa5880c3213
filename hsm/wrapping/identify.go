package wrapping

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
)

// Identifying is what a token can tell of a key without giving it out.
type Identifying interface {
	PublicKey(ctx context.Context, key Key) ([]byte, error)
	MAC(ctx context.Context, key Key, message []byte) ([]byte, error)
	CheckValue(ctx context.Context, key Key) (string, error)
}

// Identify says which key an object is, so that people can compare it, to the letter the same in the HSM room and in the daemon: "check value
// 1a2b3c", "public key SHA-256 ...", or "HMAC of a fixed message ..." with its first 16 bytes; empty: the token does not tell. Errors are the token's.
func Identify(ctx context.Context, t Identifying, key Key, spec KeySpec) (string, error) {
	switch spec.Kind() {
	case KindHMAC:
		const enough = 16 // bytes
		mac, err := t.MAC(ctx, key, []byte("hsmbridge: which key is this?"))
		if err != nil || len(mac) < enough {
			return "", err
		}
		return "HMAC of a fixed message " + hex.EncodeToString(mac[:enough]), nil
	case KindRSA, KindEC, KindEd25519:
		public, err := t.PublicKey(ctx, key)
		if err != nil {
			return "", err
		}
		sum := sha256.Sum256(public)
		return "public key SHA-256 " + hex.EncodeToString(sum[:]), nil
	case KindSymmetric, KindRefused:
	}
	kcv, err := t.CheckValue(ctx, key)
	if err != nil || kcv == "" {
		return "", err
	}
	return ByCheckValue(kcv), nil
}

// ByCheckValue is what [Identify] says of a key with this check value.
func ByCheckValue(kcv string) string { return "check value " + kcv }
