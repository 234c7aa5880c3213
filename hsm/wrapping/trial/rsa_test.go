package trial

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1" //nolint:gosec // G505: RSAES_OAEP_SHA_1 is one of the algorithms under test
	"crypto/sha256"
	"math/big"
	"testing"

	"hsmbridge/hsm/wrapping"
)

// newKey makes a throwaway pair or ends the test.
func newKey(t testing.TB, spec wrapping.WrappingKeySpec) *RSAKey {
	t.Helper()
	k, err := NewRSAKey(spec)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// random returns n random bytes of which the last is not zero, nor shaped like padding.
func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	if n > 0 {
		b[n-1] |= 0x80
	}
	return b
}

func TestNewRSAKey(t *testing.T) {
	for _, spec := range wrapping.WrappingKeySpecs() {
		t.Run(string(spec), func(t *testing.T) {
			k := newKey(t, spec)
			if k.Spec() != spec {
				t.Errorf("Spec() = %s, want %s", k.Spec(), spec)
			}
			if got := k.Public().N.BitLen(); got != spec.Bits() {
				t.Errorf("modulus has %d bits, want %d", got, spec.Bits())
			}
			if k.Public().E != 65537 {
				t.Errorf("e = %d, want 65537", k.Public().E)
			}
			product := big.NewInt(1)
			for _, f := range k.crt {
				if !f.prime.ProbablyPrime(20) {
					t.Errorf("factor %v is not prime", f.prime)
				}
				product.Mul(product, f.prime)
			}
			if product.Cmp(k.Public().N) != 0 {
				t.Error("the modulus is not the product of its primes")
			}
			for range 5 {
				em := random(spec.Bytes())
				em[0] = 0
				c := new(big.Int).Exp(new(big.Int).SetBytes(em), big.NewInt(65537), k.Public().N)
				got, err := k.Raw(c.FillBytes(make([]byte, spec.Bytes())))
				if err != nil || !bytes.Equal(got, em) {
					t.Fatalf("Raw of the encryption of %x = %x, %v", em, got, err)
				}
			}
		})
	}
}

func TestNewRSAKeyUnknownSpec(t *testing.T) {
	if k, err := NewRSAKey("RSA_1024"); err == nil {
		t.Errorf("NewRSAKey(RSA_1024) = %v, want an error", k)
	}
}

func TestRawRefuses(t *testing.T) {
	k := newKey(t, wrapping.RSA2048)
	for name, ct := range map[string][]byte{
		"empty":       nil,
		"short":       make([]byte, 255),
		"long":        make([]byte, 257),
		"the modulus": k.Public().N.Bytes(),
		"all ones":    bytes.Repeat([]byte{0xFF}, 256),
	} {
		if em, err := k.Raw(ct); err == nil {
			t.Errorf("%s: Raw = %x, want an error", name, em)
		}
	}
}

// The standard library encrypts under the throwaway key as a token would.
func TestOpenAgainstStandardLibrary(t *testing.T) {
	for _, spec := range wrapping.WrappingKeySpecs() {
		k := newKey(t, spec)
		secret := random(32)
		encrypt := map[wrapping.Algorithm]func() ([]byte, error){
			wrapping.OAEPSHA256: func() ([]byte, error) {
				return rsa.EncryptOAEP(sha256.New(), rand.Reader, k.Public(), secret, nil)
			},
			wrapping.OAEPSHA1: func() ([]byte, error) {
				return rsa.EncryptOAEP(sha1.New(), rand.Reader, k.Public(), secret, nil) //nolint:gosec // G401: as above
			},
			wrapping.PKCS1v15: func() ([]byte, error) {
				return rsa.EncryptPKCS1v15(rand.Reader, k.Public(), secret) //nolint:staticcheck // SA1019: the algorithm under test
			},
		}
		for alg, f := range encrypt {
			ct, err := f()
			if err != nil {
				t.Fatal(err)
			}
			if v := k.Judge(alg, ct, Known(secret)); v != (Verdict{Outcome: wrapping.Exact, Length: 32}) {
				t.Errorf("%s %s: %+v", spec, alg, v)
			}
		}
	}
}
