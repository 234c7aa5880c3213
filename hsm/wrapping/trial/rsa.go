package trial

import (
	"crypto/rand"
	"crypto/rsa"
	"fmt"
	"iter"
	"math/big"
	"slices"
	"sync"

	"hsmbridge/hsm/wrapping"
)

const (
	// primeBits is the length of the prime factors of a throwaway modulus: sixteen of them in one of 4096 bits, which are found
	// some thousand times faster than two of half its length.
	primeBits = 256

	// lowestTopByte is the least first byte of a prime: (0xF6/256)^16 > 1/2, so the product of sixteen such primes, or fewer, always has
	// the full modulus length.
	lowestTopByte = 0xF6

	// exponent is the public exponent of every AWS KMS wrapping public key.
	exponent = 65537
)

// RSAKey is a throwaway RSA key pair in the place of an AWS KMS wrapping key. A token sees only the public
// half, which cannot be told from one of AWS's: same modulus length, same exponent.
//
// The modulus is the product of primes of 256 bits (RFC 8017, 3.2 "multi-prime RSA") so that a pair of 4096 bits
// takes milliseconds to make and not seconds. Such a modulus is weaker than its length says. This is sound because the key protects nothing: what is wrapped under it
// is a session key made for the probe and destroyed after it. For the same reason the private operation
// may use math/big, which is not constant time.
type RSAKey struct {
	spec   wrapping.WrappingKeySpec
	public rsa.PublicKey
	crt    []crtFactor
}

// crtFactor is one prime of the modulus with what the Chinese remainder theorem needs of it.
type crtFactor struct {
	prime    *big.Int // p
	exponent *big.Int // e^-1 mod (p - 1)
	weight   *big.Int // (n/p) * ((n/p)^-1 mod p): 1 modulo p, 0 modulo every other prime
}

// NewRSAKey makes a throwaway key pair of the spec's length with e = 65537. It fails for an unknown spec.
func NewRSAKey(spec wrapping.WrappingKeySpec) (*RSAKey, error) {
	bits := spec.Bits()
	if bits == 0 {
		return nil, fmt.Errorf("throwaway wrapping key: unknown wrapping key spec %q", spec)
	}
	e := big.NewInt(exponent)
	k := &RSAKey{spec: spec, public: rsa.PublicKey{N: big.NewInt(1), E: exponent}}
	for len(k.crt) < bits/primeBits {
		p, err := newPrime()
		if err != nil {
			return nil, fmt.Errorf("throwaway wrapping key: %w", err)
		}
		d := new(big.Int).ModInverse(e, new(big.Int).Sub(p, big.NewInt(1)))
		repeated := new(big.Int).Mod(k.public.N, p).Sign() == 0
		if d == nil || repeated {
			continue
		}
		k.crt = append(k.crt, crtFactor{prime: p, exponent: d})
		k.public.N.Mul(k.public.N, p)
	}
	for i := range k.crt {
		f := &k.crt[i]
		others := new(big.Int).Div(k.public.N, f.prime)
		f.weight = new(big.Int).ModInverse(others, f.prime)
		f.weight.Mul(f.weight, others)
	}
	return k, nil
}

// newPrime finds a prime of primeBits bits whose first byte is at least lowestTopByte: the first after a random number.
func newPrime() (*big.Int, error) {
	b := make([]byte, primeBits/8)
	for {
		if _, err := rand.Read(b); err != nil {
			return nil, err
		}
		b[0] = lowestTopByte + b[0]%(0x100-lowestTopByte)
		b[len(b)-1] |= 1
		for p := range afterSieve(new(big.Int).SetBytes(b)) {
			// A Baillie-PSW test is ample for random candidates, and a composite that slipped through would show as a failed trial,
			// not as a wrong success.
			if p.ProbablyPrime(0) {
				if p.BitLen() == primeBits {
					return p, nil
				}
				break
			}
		}
	}
}

// afterSieve are the next odd numbers from an odd one on that no small prime divides. Each is overwritten by the next.
func afterSieve(from *big.Int) iter.Seq[*big.Int] {
	const reach = 2048 // some ten times as far as a prime of this length is away
	return func(yield func(*big.Int) bool) {
		var composite [reach]bool
		small, rest := new(big.Int), new(big.Int)
		for _, q := range smallPrimes() {
			r := rest.Mod(from, small.SetInt64(q)).Int64()
			for i := (q - r) % q; i < reach; i += q {
				composite[i] = true
			}
		}
		next := new(big.Int)
		for i := int64(0); i < reach; i += 2 {
			if !composite[i] && !yield(next.Add(from, small.SetInt64(i))) {
				return
			}
		}
	}
}

// smallPrimes are the odd primes below 1000.
var smallPrimes = sync.OnceValue(func() (list []int64) { //nolint:gochecknoglobals // computed once
	for n := int64(3); n < 1000; n += 2 {
		if !slices.ContainsFunc(list, func(q int64) bool { return n%q == 0 }) {
			list = append(list, n)
		}
	}
	return list
})

// Public is the public half: the key to load into the token. The caller must not change it.
func (k *RSAKey) Public() *rsa.PublicKey { return &k.public }

// Spec is the wrapping key spec that the pair was made for.
func (k *RSAKey) Spec() wrapping.WrappingKeySpec { return k.spec }

// Raw is RSADP (RFC 8017, 5.1.2) followed by I2OSP: it returns the encoded message of modulus length, with
// its padding. ct must have exactly the modulus length and represent a number below the modulus.
func (k *RSAKey) Raw(ct []byte) ([]byte, error) {
	size := k.spec.Bytes()
	if len(ct) != size {
		return nil, fmt.Errorf("the output has %d bytes, RSA encryption under %s gives %d", len(ct), k.spec, size)
	}
	c := new(big.Int).SetBytes(ct)
	if c.Cmp(k.public.N) >= 0 {
		return nil, fmt.Errorf("the output is no RSA ciphertext: it is not below the modulus of the %s wrapping key", k.spec)
	}
	m := new(big.Int)
	for _, f := range k.crt {
		part := new(big.Int).Mod(c, f.prime)
		part.Exp(part, f.exponent, f.prime)
		m.Add(m, part.Mul(part, f.weight))
	}
	return m.Mod(m, k.public.N).FillBytes(make([]byte, size)), nil
}
