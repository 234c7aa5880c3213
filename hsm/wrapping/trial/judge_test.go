package trial

import (
	"bytes"
	"crypto"
	"testing"

	"hsmbridge/hsm/wrapping"
)

func TestJudgeSecret(t *testing.T) {
	k := newKey(t, wrapping.RSA2048)
	secret, kek := random(37), random(32)
	oaep := func(m []byte) []byte { return encryptRaw(k, encodeOAEP(t, 256, crypto.SHA256, crypto.SHA256, "", m)) }
	rsaAES := func(aes []byte) []byte { return append(oaep(kek), aes...) }
	zeros := append(bytes.Clone(secret), 0, 0, 0)
	for _, c := range []struct {
		name string
		alg  wrapping.Algorithm
		ct   []byte
		want Verdict
	}{
		{"OAEP", wrapping.OAEPSHA256, oaep(secret), Verdict{wrapping.Exact, "", 37}},
		{"RSA_AES", wrapping.RSAAESSHA256, rsaAES(wrapRFC5649(t, kek, secret)), Verdict{wrapping.Exact, "", 37}},
		{
			"SoftHSM 2.6.1's padding", wrapping.RSAAESSHA256, rsaAES(wrapRFC5649(t, kek, zeros)),
			Verdict{wrapping.Padded, "3 zero bytes that are not part of it follow the key", 40},
		},
		{
			"another key", wrapping.OAEPSHA256, oaep(random(37)),
			Verdict{wrapping.Failed, "another key came out than went in", 37},
		},
		{
			"a shorter key", wrapping.OAEPSHA256, oaep(secret[:36]),
			Verdict{wrapping.Failed, "another key came out than went in: 37 bytes in, 36 bytes out", 36},
		},
		{
			"the key and more", wrapping.OAEPSHA256, oaep(append(bytes.Clone(secret), 1)),
			Verdict{wrapping.Failed, "another key came out than went in: 37 bytes in, 38 bytes out", 38},
		},
		{
			"nothing encrypted", wrapping.OAEPSHA256, secret,
			Verdict{wrapping.Failed, "the token answered with the key itself, not encrypted", 0},
		},
		{
			"nothing encrypted, in a full buffer", wrapping.OAEPSHA256, append(bytes.Clone(secret), make([]byte, 256-37)...),
			Verdict{wrapping.Failed, "the token answered with the key itself, not encrypted", 0},
		},
		{
			"nothing at all", wrapping.OAEPSHA256, nil,
			Verdict{wrapping.Failed, "the output has 0 bytes, RSA encryption under RSA_2048 gives 256", 0},
		},
		{
			"the hash not asked for", wrapping.OAEPSHA1, oaep(secret),
			Verdict{wrapping.Failed, "hash mismatch: SHA-1 was asked, the token used SHA-256", 0},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := k.Judge(c.alg, c.ct, Known(secret)); got != c.want {
				t.Errorf("Judge = %+v, want %+v", got, c.want)
			}
		})
	}
}

func TestJudgeKeyPair(t *testing.T) {
	k := newKey(t, wrapping.RSA4096)
	der := marshalEC(t, wrapping.ECCSECGP256K1, nil)
	public, _, err := ParsePrivate(der, wrapping.ECCSECGP256K1)
	if err != nil {
		t.Fatal(err)
	}
	other := marshalEC(t, wrapping.ECCSECGP256K1, func(_ *privateKeyInfo, key *ecPrivateKey) { key.PrivateKey[31] = 9 })
	kek := random(32)
	wrap := func(m []byte) []byte {
		part := encryptRaw(k, encodeOAEP(t, 512, crypto.SHA1, crypto.SHA1, "", kek))
		return append(part, wrapRFC5649(t, kek, m)...)
	}
	for _, c := range []struct {
		name string
		ct   []byte
		want Verdict
	}{
		{"exact", wrap(der), Verdict{wrapping.Exact, "", len(der)}},
		{"padded", wrap(append(bytes.Clone(der), 0, 0)), Verdict{wrapping.Padded, "2 zero bytes that are not part of it follow the key", len(der) + 2}},
		{"another key", wrap(other), Verdict{wrapping.Failed, "another key came out than went in: the public halves differ", len(der)}},
		{"other bytes behind", wrap(append(bytes.Clone(der), 7)), Verdict{wrapping.Failed, "bytes that are not zero follow the PKCS#8 structure: 1 bytes", len(der) + 1}},
		{"the scalar only", wrap(random(32)), Verdict{wrapping.Failed, "", 32}},
		{"nothing encrypted", der, Verdict{wrapping.Failed, "the token answered with the key itself, not encrypted", 0}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := k.Judge(wrapping.RSAAESSHA1, c.ct, KeyPair(public))
			if c.want.Reason == "" {
				got.Reason = "" // depends on the random bytes
			}
			if got != c.want {
				t.Errorf("Judge = %+v, want %+v", got, c.want)
			}
		})
	}
}
