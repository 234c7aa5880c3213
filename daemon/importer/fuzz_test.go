package importer

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"math/big"
	"testing"
)

// spkis are public keys of every kind, made of numbers that are nobody's keys.
func spkis(tb testing.TB) [][]byte {
	tb.Helper()
	point := func(c elliptic.Curve) *ecdsa.PublicKey {
		k, err := ecdsa.ParseRawPrivateKey(c, append(make([]byte, (c.Params().BitSize+7)/8-1), 1)) // the generator
		if err != nil {
			tb.Fatal(err)
		}
		return &k.PublicKey
	}
	n := new(big.Int).Lsh(big.NewInt(1), 2047)
	var out [][]byte
	for _, k := range []any{
		point(elliptic.P256()), point(elliptic.P384()), point(elliptic.P521()), &rsa.PublicKey{N: n.Add(n, big.NewInt(1)), E: 65537}, ed25519.PublicKey(make([]byte, ed25519.PublicKeySize)),
	} {
		der, err := x509.MarshalPKIXPublicKey(k)
		if err != nil {
			tb.Fatal(err)
		}
		out = append(out, der)
	}
	return out
}

// FuzzSamePublicKey holds the comparison of what KMS and the token say against the standard library: same bytes are the same key where they are a
// key, it does not matter which is asked first, and keys that are the same have one encoding.
func FuzzSamePublicKey(f *testing.F) {
	list := spkis(f)
	for i, der := range list {
		f.Add(der, der)
		f.Add(der, list[(i+1)%len(list)])
		f.Add(der, append(bytes.Clone(der), 0))
	}
	f.Add([]byte{}, []byte{})
	f.Fuzz(func(t *testing.T, a, b []byte) {
		same := samePublicKey(a, b)
		if same != samePublicKey(b, a) {
			t.Errorf("%x and %x are the same in one order", a, b)
		}
		ka, err := x509.ParsePKIXPublicKey(a)
		if err != nil {
			if same || samePublicKey(a, a) {
				t.Errorf("%x is no public key, and is called the same as another", a)
			}
			return
		}
		if !same {
			return
		}
		kb, err := x509.ParsePKIXPublicKey(b)
		if err != nil {
			t.Fatalf("%x is no public key, and is called the same as %x", b, a)
		}
		ca, errA := x509.MarshalPKIXPublicKey(ka)
		cb, errB := x509.MarshalPKIXPublicKey(kb)
		if errA != nil || errB != nil || !bytes.Equal(ca, cb) {
			t.Errorf("%x and %x are called the same key", a, b)
		}
	})
}

// FuzzVerifySignature holds that nothing that was not signed verifies: neither a public key nor a signature that comes from elsewhere makes the proof
// say yes, but for keys that the test itself cannot tell from a signer's.
func FuzzVerifySignature(f *testing.F) {
	private, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), bytes.Repeat([]byte{7}, 32))
	if err != nil {
		f.Fatal(err)
	}
	message := []byte("a message of the proof")
	sum := sha256.Sum256(message)
	signature, err := private.Sign(nil, sum[:], crypto.SHA256) // RFC 6979
	if err != nil {
		f.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(&private.PublicKey)
	if err != nil {
		f.Fatal(err)
	}
	for _, der := range spkis(f) {
		f.Add(der, message, signature)
	}
	f.Add(public, message, signature)
	f.Add(public, message, append(bytes.Clone(signature), 0))
	f.Fuzz(func(t *testing.T, der, m, sig []byte) {
		if ok, err := verifySignature(der, m, sig); ok && err != nil {
			t.Errorf("yes, and %v", err)
		}
		if ok, err := verifySignature(public, m, sig); err != nil || ok && !bytes.Equal(m, message) {
			t.Errorf("%x over %q verifies: %t, %v", sig, m, ok, err)
		}
	})
}
