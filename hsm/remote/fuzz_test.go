package remote

import (
	"bytes"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"math/big"
	"testing"

	"hsmbridge/hsm/failure"
	"hsmbridge/hsm/pkcs11uri"
	"hsmbridge/hsm/remote/wire"
	"hsmbridge/hsm/wrapping"
)

// FuzzAnswer is a process that keeps to the frames and answers each call with any payload. What is believed is what was asked for: a wrap that is
// one, the key of that name, a MAC of that length, a signature that verifies. Everything else is an error of the token with its class.
func FuzzAnswer(f *testing.F) {
	good := wrapping.Key{Label: "k", Class: "CKO_SECRET_KEY", KeyType: "CKK_AES", KeySpec: wrapping.SymmetricDefault, Extractable: true}
	payload := func(m wire.Message) []byte { return frame(f, wire.KindAnswer, 1, m)[14:] }
	wrapped := append([]byte{0x40}, bytes.Repeat([]byte{0xfe, 0x17, 0x9a}, 85)...)
	ec, err := hex.DecodeString("3059301306072a8648ce3d020106082a8648ce3d030107034200046b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c2964fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5") // the generator of P-256
	if err != nil {
		f.Fatal(err)
	}
	const calls = 11
	for which, m := range []wire.Message{
		&wire.Mechanisms{Mechanisms: []wrapping.MechanismInfo{{Name: "CKM_RSA_PKCS_OAEP"}}}, &wire.Capabilities{}, &wire.Keys{Keys: []wire.Key{{Key: good}}}, &wire.Key{Key: good}, &wire.Key{Key: good},
		&wire.Key{Key: wrapping.Key{Label: "k", Class: "CKO_PRIVATE_KEY", Blockers: []string{"signs"}}}, &wire.Bytes{Bytes: wrapped}, &wire.Bytes{Bytes: ec}, &wire.Bytes{Bytes: make([]byte, 32)}, &wire.Bytes{Bytes: make([]byte, 70)}, &wire.Text{Text: "0a1b2c"},
	} {
		f.Add(uint8(which), false, payload(m))
		f.Add(uint8(which), false, []byte{})
	}
	f.Add(uint8(6), false, payload(&wire.Bytes{Bytes: make([]byte, 256)}))
	f.Add(uint8(6), true, payload(wire.FailureOf(&failure.Error{Op: "C_WrapKey", Name: "CKR_KEY_UNEXTRACTABLE", ErrClass: failure.ClassCaller})))
	f.Fuzz(func(t *testing.T, which uint8, failed bool, payload []byte) {
		kind := wire.KindAnswer
		if failed {
			kind = wire.KindFailed
		}
		b := binary.BigEndian.AppendUint32(nil, uint32(len(payload))) //nolint:gosec // far below
		b = append(b, byte(kind), 0, 0, 0, 0, 0, 0, 0, 0, 1)
		tok := converse(t, true, append(b, payload...))
		ctx := t.Context()
		var err error
		wrong := false
		switch which % calls {
		case 0:
			_, err = tok.Mechanisms(ctx)
		case 1:
			var c wrapping.Capabilities
			c, err = tok.Probe(ctx, wrapping.HMAC256)
			wrong = c.Token != tok.identity
		case 2:
			_, err = tok.Keys(ctx)
		case 3:
			var k wrapping.Key
			k, err = tok.Find(ctx, pkcs11uri.URI{Object: "k", Type: pkcs11uri.TypeSecretKey})
			wrong = k.Label != "k" || k.Class != "CKO_SECRET_KEY" || len(k.Blockers) == 0 && !k.Extractable
		case 4:
			var k wrapping.Key
			k, err = tok.Generate(ctx, wrapping.SymmetricDefault, "k", []byte{1})
			wrong = k.KeySpec != wrapping.SymmetricDefault || !bytes.Equal(k.ID, []byte{1})
		case 5:
			var k wrapping.Key
			k, err = tok.GenerateSigning(ctx, "k", nil)
			wrong = k.Extractable || k.Label != "k"
		case 6:
			var out []byte
			out, err = tok.Wrap(ctx, good, publicKey(), plan())
			wrong = len(out) != 256 || new(big.Int).SetBytes(out).Cmp(publicKey().N) >= 0
			if err != nil && out != nil {
				t.Errorf("a wrap that was refused leaves: %x", out)
			}
		case 7:
			_, err = tok.PublicKey(ctx, good)
		case 8:
			var out []byte
			out, err = tok.MAC(ctx, wrapping.Key{KeySpec: wrapping.HMAC256}, nil)
			wrong = len(out) != 32
		case 9:
			if _, perr := x509.ParsePKIXPublicKey(ec); perr != nil {
				t.Fatal(perr)
			}
			_, err = tok.SignVerified(ctx, good, ec, []byte("a message that nobody signed"))
			wrong = true
		case 10:
			var v string
			v, err = tok.CheckValue(ctx, good)
			_, herr := hex.DecodeString(v)
			wrong = herr != nil
		}
		var e *failure.Error
		switch {
		case err == nil && (wrong || failed):
			t.Errorf("call %d, failed %t: %x is believed", which%calls, failed, payload)
		case err != nil && (!errors.As(err, &e) || e.Error() == ""):
			t.Errorf("call %d: %v is no error of a token", which%calls, err)
		}
	})
}
