package importer_test

import (
	"context"
	"crypto"
	"crypto/aes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1" //nolint:gosec // RSAES_OAEP_SHA_1 is what it is
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"hash"
	"testing"

	"github.com/tink-crypto/tink-go/v2/kwp/subtle"

	"hsmbridge/hsm/pkcs11uri"
	"hsmbridge/hsm/wrapping"
)

// softToken is a token in Go: it has keys, wraps them for real and can be made to misbehave. The contract
// that real tokens pass is hsm/hsmtest; this one is for the steps around the token.
type softToken struct {
	keys    map[string]*softKey
	no      map[wrapping.Algorithm]string // algorithms that the trial fails, with the reason
	wraps   int
	wrapErr error
	swap    []byte // wrapped instead of the key: a token that wraps the wrong object
}

type softKey struct {
	spec     wrapping.KeySpec
	secret   []byte
	private  crypto.Signer
	blockers []string
}

func newToken() *softToken { return &softToken{keys: map[string]*softKey{}} }

func (s *softToken) Identity() wrapping.TokenIdentity {
	return wrapping.TokenIdentity{Label: "soft", Manufacturer: "test", Serial: "1"}
}

func (s *softToken) add(t testing.TB, label string, spec wrapping.KeySpec) *softKey {
	t.Helper()
	k, err := newKey(spec)
	if err != nil {
		t.Fatal(err)
	}
	s.keys[label] = k
	return k
}

func newKey(spec wrapping.KeySpec) (*softKey, error) {
	k := &softKey{spec: spec}
	var err error
	switch spec.Kind() {
	case wrapping.KindRSA:
		k.private, err = rsa.GenerateKey(rand.Reader, 2048)
	case wrapping.KindEC:
		k.private, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	default:
		k.secret = make([]byte, spec.MaterialBytes())
		_, err = rand.Read(k.secret)
	}
	return k, err
}

func (s *softToken) Find(_ context.Context, u pkcs11uri.URI) (wrapping.Key, error) {
	k, ok := s.keys[u.Object]
	if !ok {
		return wrapping.Key{}, fmt.Errorf("%w: %s", wrapping.ErrKeyNotFound, u.Object)
	}
	return wrapping.Key{Label: u.Object, KeyType: "CKK_TEST", KeySpec: k.spec, Extractable: true, Blockers: k.blockers}, nil
}

func (s *softToken) Generate(ctx context.Context, spec wrapping.KeySpec, label string, _ []byte) (wrapping.Key, error) {
	k, err := newKey(spec)
	if err != nil {
		return wrapping.Key{}, err
	}
	s.keys[label] = k
	return s.Find(ctx, pkcs11uri.URI{Object: label})
}

func (s *softToken) Probe(_ context.Context, specs ...wrapping.KeySpec) (wrapping.Capabilities, error) {
	c := wrapping.Capabilities{Token: s.Identity()}
	for _, spec := range specs {
		for _, a := range spec.Order() {
			for _, w := range wrapping.WrappingKeySpecs() {
				t := wrapping.Trial{KeySpec: spec, Algorithm: a, WrappingKeySpec: w, Mechanism: mechanism(a), Outcome: wrapping.Exact}
				if reason := s.no[a]; reason != "" {
					t.Outcome, t.Reason = wrapping.Failed, reason
				}
				c.Trials = append(c.Trials, t)
			}
		}
	}
	return c, nil
}

func mechanism(a wrapping.Algorithm) wrapping.Mechanism {
	switch {
	case a.TwoPart():
		return wrapping.Mechanism{Name: "CKM_AES_KEY_WRAP_KWP", Form: wrapping.FormKWP}
	case a == wrapping.PKCS1v15:
		return wrapping.Mechanism{Name: "CKM_RSA_PKCS", Form: wrapping.FormPKCS1}
	}
	return wrapping.Mechanism{Name: "CKM_RSA_PKCS_OAEP", Form: wrapping.FormOAEP}
}

func (s *softToken) Wrap(_ context.Context, key wrapping.Key, pub *rsa.PublicKey, plan wrapping.Plan) ([]byte, error) {
	s.wraps++
	if s.wrapErr != nil {
		return nil, s.wrapErr
	}
	material := s.swap
	if material == nil {
		var err error
		if material, err = s.keys[key.Label].material(); err != nil {
			return nil, err
		}
	}
	h := sha256.New()
	if plan.Algorithm == wrapping.OAEPSHA1 || plan.Algorithm == wrapping.RSAAESSHA1 {
		h = sha1.New() //nolint:gosec // see the import
	}
	if !plan.Algorithm.TwoPart() {
		return rsa.EncryptOAEP(h, rand.Reader, pub, material, nil)
	}
	kek := make([]byte, 32)
	if _, err := rand.Read(kek); err != nil {
		return nil, err
	}
	head, err := rsa.EncryptOAEP(h, rand.Reader, pub, kek, nil)
	if err != nil {
		return nil, err
	}
	kwp, err := subtle.NewKWP(kek)
	if err != nil {
		return nil, err
	}
	tail, err := kwp.Wrap(material)
	return append(head, tail...), err
}

func (k *softKey) material() ([]byte, error) {
	if k.private == nil {
		return k.secret, nil
	}
	return x509.MarshalPKCS8PrivateKey(k.private)
}

func (s *softToken) PublicKey(_ context.Context, key wrapping.Key) ([]byte, error) {
	return x509.MarshalPKIXPublicKey(s.keys[key.Label].private.Public())
}

func (s *softToken) MAC(_ context.Context, key wrapping.Key, message []byte) ([]byte, error) {
	k := s.keys[key.Label]
	h := map[wrapping.KeySpec]func() hash.Hash{
		wrapping.HMAC224: sha256.New224, wrapping.HMAC256: sha256.New, wrapping.HMAC384: sha512.New384, wrapping.HMAC512: sha512.New,
	}[k.spec]
	m := hmac.New(h, k.secret)
	m.Write(message)
	return m.Sum(nil), nil
}

func (s *softToken) CheckValue(_ context.Context, key wrapping.Key) (string, error) {
	k := s.keys[key.Label]
	if k.spec != wrapping.SymmetricDefault {
		return "", nil
	}
	block, err := aes.NewCipher(k.secret)
	if err != nil {
		return "", err
	}
	out := make([]byte, aes.BlockSize)
	block.Encrypt(out, out)
	return hex.EncodeToString(out[:3]), nil
}
