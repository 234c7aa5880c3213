package trial

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"testing"

	"hsmbridge/hsm/wrapping"
)

// Every pair of hash and MGF1 hash that PKCS#11 can ask for, opened as either algorithm of AWS KMS.
func TestOpenOAEPEveryHash(t *testing.T) {
	k := newKey(t, wrapping.RSA2048)
	secret := random(32)
	for _, alg := range []wrapping.Algorithm{
		wrapping.OAEPSHA256, wrapping.OAEPSHA1, wrapping.RSAAESSHA256, wrapping.RSAAESSHA1,
	} {
		asked, err := oaepHash(alg)
		if err != nil {
			t.Fatal(err)
		}
		for _, hash := range oaepHashes() {
			for _, mgf := range oaepHashes() {
				for _, label := range []string{"", "hsmbridge"} {
					ct := encryptRaw(k, encodeOAEP(t, 256, hash, mgf, label, secret))
					got, err := k.OpenOAEP(alg, ct)
					if hash == asked && mgf == asked && label == "" {
						if err != nil || !bytes.Equal(got, secret) {
							t.Errorf("%s: OpenOAEP = %x, %v; want %x", alg, got, err, secret)
						}
						continue
					}
					want := MismatchError{AskedHash: asked, AskedMGF: asked, UsedHash: hash, UsedMGF: mgf, Label: label != ""}
					var mismatch *MismatchError
					if !errors.As(err, &mismatch) || *mismatch != want || got != nil {
						t.Errorf("%s, made with %v and MGF1-%v, label %q: OpenOAEP = %x, %v", alg, hash, mgf, label, got, err)
					}
				}
			}
		}
	}
}

// crypto/rsa and this package read the same ciphertexts, also where hash and MGF1 hash differ.
func TestDecodeOAEPAgainstStandardLibrary(t *testing.T) {
	for _, spec := range wrapping.WrappingKeySpecs() {
		standard, err := rsa.GenerateKey(rand.Reader, spec.Bits())
		if err != nil {
			t.Fatal(err)
		}
		own := &RSAKey{spec: spec, public: standard.PublicKey}
		for _, hash := range oaepHashes() {
			for _, mgf := range oaepHashes() {
				secret := random(32)
				em := encodeOAEP(t, spec.Bytes(), hash, mgf, "", secret)
				options := &rsa.OAEPOptions{Hash: hash, MGFHash: mgf}
				want, err := standard.Decrypt(nil, encryptRaw(own, em), options)
				if err != nil || !bytes.Equal(want, secret) {
					t.Fatalf("crypto/rsa refuses the encoder of these tests: %v", err)
				}
				if got, ok := decodeOAEP(em, hash, mgf); !ok || !bytes.Equal(got, secret) {
					t.Errorf("%s, %v, MGF1-%v: decodeOAEP = %x, %v", spec, hash, mgf, got, ok)
				}
			}
		}
	}
}

func TestOpenOAEPMessageLengths(t *testing.T) {
	k := newKey(t, wrapping.RSA2048)
	for _, n := range []int{0, 1, 32, 189, 190} { // 190 = 256 - 2*32 - 2: no padding byte is left
		secret := random(n)
		got, err := k.OpenOAEP(wrapping.OAEPSHA256, encryptRaw(k, encodeOAEP(t, 256, crypto.SHA256, crypto.SHA256, "", secret)))
		if err != nil || !bytes.Equal(got, secret) {
			t.Errorf("%d bytes: OpenOAEP = %x, %v", n, got, err)
		}
	}
}

// An OAEP message whose random bytes happen to look like PKCS#1 v1.5 must not be taken for it.
func TestOpenOAEPThatLooksLikePKCS1(t *testing.T) {
	k := newKey(t, wrapping.RSA2048)
	secret := random(32)
	for _, c := range []struct {
		alg  wrapping.Algorithm
		hash crypto.Hash
		want string // empty: opens
	}{
		{wrapping.OAEPSHA256, crypto.SHA256, ""},
		{wrapping.OAEPSHA256, crypto.SHA1, "hash mismatch: SHA-256 was asked, the token used SHA-1"},
		{wrapping.PKCS1v15, crypto.SHA1, "padding mismatch: PKCS#1 v1.5 was asked, the token used OAEP SHA-1 with MGF1-SHA-1"},
	} {
		em := encodeOAEP(t, 256, c.hash, c.hash, "", secret)
		for _, ok := decodePKCS1(em); !ok; _, ok = decodePKCS1(em) {
			em = encodeOAEP(t, 256, c.hash, c.hash, "", secret)
		}
		got, err := k.Open(c.alg, encryptRaw(k, em))
		if c.want == "" {
			if err != nil || !bytes.Equal(got, secret) {
				t.Errorf("%s: Open = %x, %v; want %x", c.alg, got, err, secret)
			}
			continue
		}
		if err == nil || err.Error() != c.want {
			t.Errorf("%s, made with %v: Open = %x, %v; want %s", c.alg, c.hash, got, err, c.want)
		}
	}
}

func TestOpenMessages(t *testing.T) {
	k := newKey(t, wrapping.RSA2048)
	secret := random(32)
	oaep := func(hash, mgf crypto.Hash, label string) []byte {
		return encryptRaw(k, encodeOAEP(t, 256, hash, mgf, label, secret))
	}
	pkcs1 := encryptRaw(k, append(append(append([]byte{0, 2}, nonZero(221)...), 0), secret...))
	raw := encryptRaw(k, append(make([]byte, 224), secret...))
	signature := encryptRaw(k, append(append(append([]byte{0, 1}, bytes.Repeat([]byte{0xFF}, 221)...), 0), secret...))
	shortPS := encryptRaw(k, append(append(append([]byte{0, 2}, nonZero(7)...), 0), random(246)...))
	noZero := encryptRaw(k, append([]byte{0, 2}, nonZero(254)...))
	flipped := encodeOAEP(t, 256, crypto.SHA256, crypto.SHA256, "", secret)
	flipped[1] = (flipped[1] | 4) ^ 8 // another seed, and never the 02 of PKCS#1 v1.5
	const (
		noOAEP  = "no OAEP decoding fits: the token encrypted something else, or under another key"
		noPKCS1 = "no PKCS#1 v1.5 decoding fits: the token encrypted something else, or under another key"
	)
	for _, c := range []struct {
		name string
		alg  wrapping.Algorithm
		ct   []byte
		want string
	}{
		{"SHA-1 in place of SHA-256", wrapping.OAEPSHA256, oaep(crypto.SHA1, crypto.SHA1, ""), "hash mismatch: SHA-256 was asked, the token used SHA-1"},
		{"MGF1 stays at SHA-1", wrapping.OAEPSHA256, oaep(crypto.SHA256, crypto.SHA1, ""), "MGF mismatch: OAEP SHA-256 with MGF1-SHA-1, which AWS KMS refuses"},
		{"another hash and another MGF1", wrapping.OAEPSHA256, oaep(crypto.SHA384, crypto.SHA1, ""), "hash mismatch: SHA-256 was asked, the token used OAEP SHA-384 with MGF1-SHA-1"},
		{"a label", wrapping.OAEPSHA1, oaep(crypto.SHA1, crypto.SHA1, "x"), "label mismatch: OAEP SHA-1 without a label was asked, the token used another label"},
		{"PKCS#1 v1.5", wrapping.OAEPSHA256, pkcs1, "padding mismatch: OAEP was asked, the token padded with PKCS#1 v1.5"},
		{"no padding", wrapping.OAEPSHA256, raw, "the token encrypted without padding (textbook RSA)"},
		{"a signature", wrapping.OAEPSHA256, signature, noOAEP},
		{"damaged", wrapping.OAEPSHA256, encryptRaw(k, flipped), noOAEP},
		{"too short", wrapping.OAEPSHA256, secret, "the output has 32 bytes, RSA encryption under RSA_2048 gives 256"},
		{"no OAEP in it", wrapping.PKCS1v15, oaep(crypto.SHA1, crypto.SHA1, ""), "padding mismatch: PKCS#1 v1.5 was asked, the token used OAEP SHA-1 with MGF1-SHA-1"},
		{"no padding", wrapping.PKCS1v15, raw, "the token encrypted without padding (textbook RSA)"},
		{"block type 1", wrapping.PKCS1v15, signature, noPKCS1},
		{"seven bytes of padding", wrapping.PKCS1v15, shortPS, noPKCS1},
		{"no end of the padding", wrapping.PKCS1v15, noZero, noPKCS1},
		{"neither algorithm", "SM2PKE", raw, `unknown wrapping algorithm "SM2PKE"`},
	} {
		t.Run(fmt.Sprintf("%s: %s", c.alg, c.name), func(t *testing.T) {
			m, err := k.Open(c.alg, c.ct)
			if err == nil || err.Error() != c.want {
				t.Errorf("Open = %x, %v; want %s", m, err, c.want)
			}
		})
	}
	if _, err := k.OpenOAEP(wrapping.PKCS1v15, pkcs1); err == nil || err.Error() != "RSAES_PKCS1_V1_5 does not use OAEP" {
		t.Errorf("OpenOAEP for PKCS#1 v1.5: %v", err)
	}
}

func TestOpenRSAAES(t *testing.T) {
	for _, spec := range wrapping.WrappingKeySpecs() {
		k := newKey(t, spec)
		for alg, hash := range map[wrapping.Algorithm]crypto.Hash{
			wrapping.RSAAESSHA256: crypto.SHA256, wrapping.RSAAESSHA1: crypto.SHA1,
		} {
			kek := random(32)
			part := encryptRaw(k, encodeOAEP(t, spec.Bytes(), hash, hash, "", kek))
			for _, n := range []int{1, 8, 37, 1218} {
				secret := random(n)
				gotKEK, got, err := k.OpenRSAAES(alg, append(bytes.Clone(part), wrapRFC5649(t, kek, secret)...))
				if err != nil || !bytes.Equal(gotKEK, kek) || !bytes.Equal(got, secret) {
					t.Errorf("%s %s %d bytes: OpenRSAAES = %x, %x, %v", spec, alg, n, gotKEK, got, err)
				}
			}
		}
	}
}

func TestOpenRSAAESRefuses(t *testing.T) {
	k := newKey(t, wrapping.RSA2048)
	kek, secret := random(32), random(37)
	part := func(hash crypto.Hash, kek []byte) []byte {
		return encryptRaw(k, encodeOAEP(t, 256, hash, hash, "", kek))
	}
	join := func(a, b []byte) []byte { return append(bytes.Clone(a), b...) }
	exact := wrapRFC5649(t, kek, secret)
	for _, c := range []struct {
		name string
		ct   []byte
		want string
	}{
		// SoftHSM 2.7's CKM_RSA_AES_KEY_WRAP answers CKR_OK to SHA-256 and does this.
		{"SHA-1 in place of SHA-256", join(part(crypto.SHA1, kek), exact), "RSA part: hash mismatch: SHA-256 was asked, the token used SHA-1"},
		{"AES part first", join(exact, part(crypto.SHA256, kek)), "the token put the AES part before the RSA part"},
		{"AES-128", join(part(crypto.SHA256, random(16)), exact), "RSA part: it holds 16 bytes, AWS KMS wants an AES-256 key (32 bytes)"},
		{"RSA part alone", part(crypto.SHA256, kek), "the output has 256 bytes, RSA_AES_KEY_WRAP_SHA_256 under RSA_2048 gives at least 272"},
		{"AES part cut", join(part(crypto.SHA256, kek), exact[:len(exact)-1]), "AES part: AES key wrap: the output has 47 bytes, not a multiple of 8 from 16 on"},
		{"PKCS#7 padding", join(part(crypto.SHA256, kek), wrapRFC3394(t, kek, kwIV, padPKCS7(secret, 8))), "AES part: AES key wrap mismatch: RFC 5649 was asked, the token used RFC 3394 with PKCS#7 padding to 8 bytes, which AWS KMS refuses"},
		{"another AES key", join(part(crypto.SHA256, random(32)), exact), "AES part: AES key wrap mismatch: neither RFC 5649 nor RFC 3394 fits: the token wrapped under another AES key, or its output is corrupt"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, m, err := k.OpenRSAAES(wrapping.RSAAESSHA256, c.ct)
			if err == nil || m != nil {
				t.Fatalf("OpenRSAAES = %x, %v", m, err)
			}
			if err.Error() != c.want {
				t.Errorf("OpenRSAAES: %v; want %s", err, c.want)
			}
		})
	}
}
