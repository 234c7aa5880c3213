package daemon

import (
	"context"
	"crypto/rsa"
	"sync"
	"sync/atomic"

	"hsmbridge/hsm/pkcs11uri"
	"hsmbridge/hsm/wrapping"
)

// tracked is a token whose calls are counted, and whose capabilities are probed once.
type tracked struct {
	Token
	busy atomic.Int32

	// Keys are made while nothing else is done: SoftHSM 2.6.1 then and now answers CKR_GENERAL_ERROR or CKR_TEMPLATE_INCONSISTENT to
	// C_GenerateKey when another session looks for objects at the same moment.
	alone sync.RWMutex

	mu     sync.Mutex
	probed map[wrapping.KeySpec]wrapping.Capabilities
}

// call notes a call while it runs.
func (t *tracked) call() (done func()) {
	t.alone.RLock()
	t.busy.Add(1)
	return func() { t.busy.Add(-1); t.alone.RUnlock() }
}

// exclusive notes a call that runs while no other does.
func (t *tracked) exclusive() (done func()) {
	t.alone.Lock()
	t.busy.Add(1)
	return func() { t.busy.Add(-1); t.alone.Unlock() }
}

// over tells whether the module's process is no more.
func (t *tracked) over() bool {
	select {
	case <-t.Ended():
		return true
	default:
		return false
	}
}

// Find finds a key.
func (t *tracked) Find(ctx context.Context, u pkcs11uri.URI) (wrapping.Key, error) {
	defer t.call()()
	return t.Token.Find(ctx, u)
}

// Keys lists all keys.
func (t *tracked) Keys(ctx context.Context) ([]wrapping.Key, error) {
	defer t.call()()
	return t.Token.Keys(ctx)
}

// Generate makes a key.
func (t *tracked) Generate(ctx context.Context, spec wrapping.KeySpec, label string, id []byte) (wrapping.Key, error) {
	defer t.exclusive()()
	return t.Token.Generate(ctx, spec, label, id)
}

// Probe tries what the token can do, once for each key spec as long as it is open.
func (t *tracked) Probe(ctx context.Context, specs ...wrapping.KeySpec) (wrapping.Capabilities, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(specs) == 1 {
		if c, ok := t.probed[specs[0]]; ok {
			return c, nil
		}
	}
	defer t.exclusive()()
	c, err := t.Token.Probe(ctx, specs...)
	if err == nil && len(specs) == 1 {
		if t.probed == nil {
			t.probed = map[wrapping.KeySpec]wrapping.Capabilities{}
		}
		t.probed[specs[0]] = c
	}
	return c, err
}

// Wrap wraps a key.
func (t *tracked) Wrap(ctx context.Context, key wrapping.Key, pub *rsa.PublicKey, plan wrapping.Plan) ([]byte, error) {
	defer t.call()()
	return t.Token.Wrap(ctx, key, pub, plan)
}

// GenerateSigning makes a signing key.
func (t *tracked) GenerateSigning(ctx context.Context, label string, id []byte) (wrapping.Key, error) {
	defer t.exclusive()()
	return t.Token.GenerateSigning(ctx, label, id)
}

// SignVerified signs.
func (t *tracked) SignVerified(ctx context.Context, key wrapping.Key, public, message []byte) ([]byte, error) {
	defer t.call()()
	return t.Token.SignVerified(ctx, key, public, message)
}

// PublicKey reads a public key.
func (t *tracked) PublicKey(ctx context.Context, key wrapping.Key) ([]byte, error) {
	defer t.call()()
	return t.Token.PublicKey(ctx, key)
}

// MAC computes a MAC.
func (t *tracked) MAC(ctx context.Context, key wrapping.Key, message []byte) ([]byte, error) {
	defer t.call()()
	return t.Token.MAC(ctx, key, message)
}

// CheckValue reads a check value.
func (t *tracked) CheckValue(ctx context.Context, key wrapping.Key) (string, error) {
	defer t.call()()
	return t.Token.CheckValue(ctx, key)
}
