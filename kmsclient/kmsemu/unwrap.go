package kmsemu

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	_ "crypto/sha1" //nolint:gosec // RSAES_OAEP_SHA_1 is what it is
	_ "crypto/sha256"
	"errors"
	"fmt"
	"sync"

	"github.com/tink-crypto/tink-go/v2/kwp/subtle"
)

var errUnwrap = errors.New("the ciphertext does not open")

// unwrap opens wrapped key material as KMS does.
func unwrap(private *rsa.PrivateKey, algorithm string, ct []byte) ([]byte, error) {
	hash := crypto.SHA256
	if algorithm == "RSAES_OAEP_SHA_1" || algorithm == "RSA_AES_KEY_WRAP_SHA_1" {
		hash = crypto.SHA1
	}
	switch algorithm {
	case "RSAES_PKCS1_V1_5":
		return rsa.DecryptPKCS1v15(nil, private, ct) //nolint:staticcheck // what the service took until 2023
	case "RSAES_OAEP_SHA_256", "RSAES_OAEP_SHA_1":
		return private.Decrypt(rand.Reader, ct, &rsa.OAEPOptions{Hash: hash})
	}
	n := private.Size()
	if len(ct) <= n {
		return nil, errUnwrap
	}
	aesKey, err := private.Decrypt(rand.Reader, ct[:n], &rsa.OAEPOptions{Hash: hash})
	if err != nil {
		return nil, err
	}
	if len(aesKey) != 32 {
		return nil, fmt.Errorf("%w: the AES key has %d bytes", errUnwrap, len(aesKey))
	}
	kwp, err := subtle.NewKWP(aesKey)
	if err != nil {
		return nil, err
	}
	return kwp.Unwrap(ct[n:])
}

// wrapperPool gives out wrapping keys. A fresh one for every set of parameters, as AWS gives; made of four
// primes, because that is ten times as fast and these keys protect nothing.
type wrapperPool struct {
	mu    sync.Mutex
	ready map[int]chan *rsa.PrivateKey
	fixed map[int]*rsa.PrivateKey
}

func newWrapperPool(fixed map[int]*rsa.PrivateKey) *wrapperPool {
	return &wrapperPool{ready: map[int]chan *rsa.PrivateKey{}, fixed: fixed}
}

// primes keeps generation of a key of this size well below a second.
func primes(bits int) int { return bits / 512 }

func newWrapper(bits int) (*rsa.PrivateKey, error) {
	return rsa.GenerateMultiPrimeKey(rand.Reader, primes(bits), bits) //nolint:staticcheck // see wrapperPool
}

// get takes a key that is ready, or makes one, and has the next made in the background.
func (p *wrapperPool) get(bits int) (*rsa.PrivateKey, error) {
	p.mu.Lock()
	if k := p.fixed[bits]; k != nil {
		p.mu.Unlock()
		return k, nil
	}
	ch, ok := p.ready[bits]
	if !ok {
		ch = make(chan *rsa.PrivateKey, 1)
		p.ready[bits] = ch
	}
	p.mu.Unlock()
	defer func() {
		go func() {
			if len(ch) == cap(ch) {
				return
			}
			if k, err := newWrapper(bits); err == nil {
				select {
				case ch <- k:
				default:
				}
			}
		}()
	}()
	select {
	case k := <-ch:
		return k, nil
	default:
		return newWrapper(bits)
	}
}
