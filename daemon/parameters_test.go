package daemon

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"testing"
	"time"

	"go.uber.org/zap"

	"hsmbridge/configs"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/kmsclient"
)

// signs is a token that signs.
type signs struct {
	Token
	key *ecdsa.PrivateKey
}

// SignVerified signs.
func (s signs) SignVerified(_ context.Context, _ wrapping.Key, _, message []byte) ([]byte, error) {
	sum := sha256.Sum256(message)
	return ecdsa.SignASN1(rand.Reader, s.key, sum[:])
}

// Import parameters are used once, also where one daemon fetched them and another one, which took its job over, used them: the first does not find them in its
// memory a second time.
func TestParametersThatAnotherDaemonUsed(t *testing.T) {
	now := time.Now()
	d := still(t, fleet(t, t.TempDir()+"/hsmbridge.db", 1, false), func() time.Time { return now })
	defer d.store.Close() //nolint:errcheck // the test is over
	c := *d.config.Load()
	c.Audit.Token = "hsm"
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(&private.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	of := func() *keeper {
		return &keeper{
			store: d.store, config: func() *configs.Config { return &c }, log: zap.NewNop(), now: func() time.Time { return now }, mine: map[string]kept{},
			key: func(context.Context) (signingToken, wrapping.Key, []byte, error) {
				return signs{key: private}, wrapping.Key{}, public, nil
			},
		}
	}
	wrapper, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&wrapper.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	one, two := of(), of()
	fetched := func(token string) kmsclient.ImportParameters {
		return kmsclient.ImportParameters{KeyARN: arn(0, 0), Algorithm: "RSAES_OAEP_SHA_256", WrappingKeySpec: "RSA_2048", PublicKeyDER: der, ImportToken: []byte(token), ValidTo: now.Add(24 * time.Hour)}
	}
	take := func(k *keeper, want string) {
		t.Helper()
		if p, _ := k.take(t.Context(), arn(0, 0), "RSAES_OAEP_SHA_256", "RSA_2048", ""); string(p.ImportToken) != want {
			t.Errorf("it takes %q, want %q", p.ImportToken, want)
		}
	}
	use := func(k *keeper, token string) {
		t.Helper()
		if err := k.use(t.Context(), []byte(token)); err != nil {
			t.Fatal(err)
		}
	}
	one.keep(t.Context(), fetched("first"), "")
	take(one, "first") // and then its process is frozen
	take(two, "first")
	use(two, "first")
	take(one, "")
	two.keep(t.Context(), fetched("second"), "")
	take(one, "second")
	use(two, "second")
	take(one, "")
	// Without a key that signs they are in one memory only, and stay there.
	c.Audit.Token = ""
	one.keep(t.Context(), fetched("third"), "")
	take(one, "third")
	take(two, "")
}
