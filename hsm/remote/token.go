package remote

import (
	"context"
	"crypto/rsa"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"sync"
	"time"

	"hsmbridge/hsm/failure"
	"hsmbridge/hsm/pkcs11uri"
	"hsmbridge/hsm/remote/wire"
	"hsmbridge/hsm/report"
	"hsmbridge/hsm/wrapping"
)

// Token is an open token whose module lives in a process of its own. Its methods may be called by many goroutines; as many calls are carried
// out at once as the token has sessions, and as many again wait in the process. When the process is no more, every method gives an error that says why: open the token anew.
type Token struct {
	name    string
	timeout time.Duration
	conn    *wire.Conn
	pid     int
	epoch   uint64
	kill    func()

	hello  chan wire.Hello
	wants  chan wire.WantPIN
	opened chan answer
	ended  chan struct{} // closed when the process is no more
	reaped chan struct{} // closed when the kernel said how it ended

	private []string // of the configuration: what no report may hold

	isolation   []wire.Measure
	identity    wrapping.TokenIdentity
	warnings    []string
	pinTriesLow bool
	places      chan struct{} // one for each call that may be sent

	mu      sync.Mutex
	last    uint64
	calls   map[uint64]*call
	waiting []uint64 // sent, and no session is free for them yet
	begun   int      // calls that have one
	dead    *death

	closing bool
}

// ready keeps what the token said when it was opened.
func (t *Token) ready(id wrapping.TokenIdentity, warnings []string, low bool, sessions int) {
	t.identity, t.warnings, t.pinTriesLow = id, warnings, low
	t.places = make(chan struct{}, ahead*sessions)
}

// Identity is what the token says of itself.
func (t *Token) Identity() wrapping.TokenIdentity { return t.identity }

// Warnings is what a person should know about the token: a PIN of which few tries are left.
func (t *Token) Warnings() []string { return t.warnings }

// PINTriesLow says that the token showed, before the login, that a wrong PIN was given to it (CKF_USER_PIN_COUNT_LOW).
func (t *Token) PINTriesLow() bool { return t.pinTriesLow }

// PID is the number of the process that the module lives in.
func (t *Token) PID() int { return t.pid }

// Isolation says in one line what keeps the process alone.
func (t *Token) Isolation() string {
	var out []string
	for _, m := range t.isolation {
		out = append(out, m.Name+": "+m.State)
	}
	return strings.Join(out, "; ")
}

// Ended is closed when the process is no more, by itself or killed. [Token.Err] then says why.
func (t *Token) Ended() <-chan struct{} { return t.ended }

// Err is why the process is no more; nil while it lives, and after [Token.Close].
func (t *Token) Err() error {
	t.mu.Lock()
	d := t.dead
	t.mu.Unlock()
	if d == nil || d.mark == "" {
		return nil
	}
	return &failure.Error{Op: "use the module of " + t.name, ErrClass: failure.ClassSession, Cause: d.cause, Mark: d.mark}
}

// Replace kills the process: the module's state in it is broken.
func (t *Token) Replace(cause error) {
	t.end(death{mark: failure.ProcessDied, cause: "the process of the PKCS#11 module was killed, because the module's state in it is broken: " + cause.Error()})
}

// Close has the process close the token and end; one that does not is killed. It waits a while for calls that are under way.
func (t *Token) Close() error {
	t.mu.Lock()
	t.closing = true
	t.mu.Unlock()
	gone := make(chan struct{})
	timer := time.AfterFunc(limit(wire.OpClose, t.timeout), func() { close(gone) })
	defer timer.Stop()
	err := t.exchange(gone, func() error { return context.DeadlineExceeded }, wire.OpClose, nil, nil)
	t.mu.Lock()
	if t.dead != nil {
		err = nil // it ended on the way: what it had is gone with it
	}
	t.mu.Unlock()
	t.end(death{cause: failure.ErrClosed.Error()})
	const soon = time.Second
	select {
	case <-t.reaped:
	case <-time.After(soon): // the kernel has it in its hands
	}
	return err
}

// Mechanisms is the token's list, reduced to the mechanisms that a probe tries.
func (t *Token) Mechanisms(ctx context.Context) ([]wrapping.MechanismInfo, error) {
	var m wire.Mechanisms
	err := t.do(ctx, wire.OpMechanisms, nil, &m)
	return m.Mechanisms, err
}

// Keys lists every secret and private key that is stored in the token.
func (t *Token) Keys(ctx context.Context) ([]wrapping.Key, error) {
	var m wire.Keys
	if err := t.do(ctx, wire.OpKeys, nil, &m); err != nil {
		return nil, err
	}
	var out []wrapping.Key
	for _, k := range m.Keys {
		if err := t.checkKey(k.Key, pkcs11uri.URI{}); err != nil {
			return nil, err
		}
		k.Epoch = t.epoch
		out = append(out, k.Key)
	}
	return out, nil
}

// Report probes the token and gives what was found, without anything that names the token or its place: no label, serial number or slot
// description, and nothing of private. version is that of the program.
func (t *Token) Report(ctx context.Context, version string, private []string) (report.Report, error) {
	var d wire.Document
	if err := t.do(ctx, wire.OpReport, &wire.Report{Version: version, Private: append(private, t.private...)}, &d); err != nil {
		return report.Report{}, err
	}
	r, err := report.Parse(d.JSON)
	if err != nil {
		return r, t.violation(fmt.Errorf("%w: %w", wire.ErrMalformed, err))
	}
	return r, nil
}

// Find returns the one secret or private key stored in the token that the URI names. The error wraps [wrapping.ErrKeyNotFound] or
// [wrapping.ErrKeyAmbiguous] otherwise, and says what is there.
func (t *Token) Find(ctx context.Context, u pkcs11uri.URI) (wrapping.Key, error) {
	return t.key(ctx, wire.OpFind, &wire.Find{URI: u.String()}, u)
}

// Generate makes a key that can be imported into KMS. A label or an id that is taken is refused.
func (t *Token) Generate(ctx context.Context, spec wrapping.KeySpec, label string, id []byte) (wrapping.Key, error) {
	k, err := t.key(ctx, wire.OpGenerate, &wire.Generate{Spec: spec, Label: label, ID: id}, pkcs11uri.URI{Object: label, ID: id})
	if err == nil && k.KeySpec != spec {
		return wrapping.Key{}, t.violation(fmt.Errorf("%w: a %s key where %s was asked for", wire.ErrMalformed, k.KeySpec, spec))
	}
	return k, err
}

// GenerateSigning makes a key pair that does nothing but sign, and that never leaves the token.
func (t *Token) GenerateSigning(ctx context.Context, label string, id []byte) (wrapping.Key, error) {
	k, err := t.key(ctx, wire.OpGenerateSigning, &wire.Generate{Label: label, ID: id}, pkcs11uri.URI{Object: label, ID: id})
	if err == nil && k.Extractable {
		return wrapping.Key{}, t.violation(fmt.Errorf("%w: a signing key that may leave the token", wire.ErrMalformed))
	}
	return k, err
}

// key asks for one key, which has to be what the URI names.
func (t *Token) key(ctx context.Context, op wire.Op, m wire.Message, u pkcs11uri.URI) (wrapping.Key, error) {
	var k wire.Key
	if err := t.do(ctx, op, m, &k); err != nil {
		return wrapping.Key{}, err
	}
	if err := t.checkKey(k.Key, u); err != nil {
		return wrapping.Key{}, err
	}
	k.Epoch = t.epoch
	return k.Key, nil
}

// Probe proves what the token can do for these key specs, with throwaway keys.
func (t *Token) Probe(ctx context.Context, specs ...wrapping.KeySpec) (wrapping.Capabilities, error) {
	var m wire.Capabilities
	if err := t.do(ctx, wire.OpProbe, &wire.Specs{Specs: specs}, &m); err != nil {
		return wrapping.Capabilities{}, err
	}
	if err := t.checkCapabilities(m.Capabilities, specs); err != nil {
		return wrapping.Capabilities{}, err
	}
	return m.Capabilities, nil
}

// Wrap has the token wrap key under pub as the plan says and returns the ciphertext that KMS opens. What comes back is looked at here once
// more: output that is not a wrap goes nowhere.
func (t *Token) Wrap(ctx context.Context, key wrapping.Key, pub *rsa.PublicKey, plan wrapping.Plan) ([]byte, error) {
	if err := t.current(key); err != nil {
		return nil, err
	}
	if pub.Size() != plan.WrappingKeySpec.Bytes() || pub.E <= 0 {
		return nil, &failure.Error{Op: "wrap " + key.Label, ErrClass: failure.ClassCaller, Cause: fmt.Sprintf("the wrapping public key has %d bits and the plan says %s", pub.N.BitLen(), plan.WrappingKeySpec)}
	}
	var m wire.Bytes
	if err := t.do(ctx, wire.OpWrap, &wire.Wrap{Key: wire.Key{Key: key}, Modulus: pub.N.Bytes(), Exponent: uint64(pub.E), Plan: plan}, &m); err != nil {
		return nil, err
	}
	err := wrapping.CheckOutput(plan, m.Bytes)
	if err == nil && new(big.Int).SetBytes(m.Bytes[:pub.Size()]).Cmp(pub.N) >= 0 {
		err = errors.New("it is no number below the wrapping public key's modulus")
	}
	if err != nil {
		clear(m.Bytes)
		return nil, failure.Output(err)
	}
	return m.Bytes, nil
}

// PublicKey is the DER SubjectPublicKeyInfo (RFC 5280) of a private key's public half.
func (t *Token) PublicKey(ctx context.Context, key wrapping.Key) ([]byte, error) {
	if err := t.current(key); err != nil {
		return nil, err
	}
	var m wire.Bytes
	if err := t.do(ctx, wire.OpPublicKey, &wire.Key{Key: key}, &m); err != nil {
		return nil, err
	}
	return m.Bytes, t.checkPublicKey(m.Bytes)
}

// MAC is the HMAC of message under an HMAC key, computed in the token with the hash of the key's spec.
func (t *Token) MAC(ctx context.Context, key wrapping.Key, message []byte) ([]byte, error) {
	if err := t.current(key); err != nil {
		return nil, err
	}
	var m wire.Bytes
	if err := t.do(ctx, wire.OpMAC, &wire.Sign{Key: wire.Key{Key: key}, Message: message}, &m); err != nil {
		return nil, err
	}
	if want := key.KeySpec.MaterialBytes(); len(m.Bytes) != want { // an HMAC key of KMS is as long as its hash
		return nil, t.violation(fmt.Errorf("%w: a MAC of %d bytes where %d were asked for", wire.ErrMalformed, len(m.Bytes), want))
	}
	return m.Bytes, nil
}

// SignVerified signs message in the token and holds the signature against the public half, which is a DER SubjectPublicKeyInfo: RSA
// (RSASSA-PKCS1-v1_5) or ECDSA over SHA-256.
func (t *Token) SignVerified(ctx context.Context, key wrapping.Key, public, message []byte) ([]byte, error) {
	if err := t.current(key); err != nil {
		return nil, err
	}
	var m wire.Bytes
	if err := t.do(ctx, wire.OpSign, &wire.Sign{Key: wire.Key{Key: key}, Public: public, Message: message}, &m); err != nil {
		return nil, err
	}
	if !verifies(public, message, m.Bytes) {
		return nil, t.violation(fmt.Errorf("%w: a signature that does not verify", wire.ErrMalformed))
	}
	return m.Bytes, nil
}

// CheckValue is the key check value (KCV) of an AES key, six hexadecimal digits; empty for other keys, and where the token will not say.
func (t *Token) CheckValue(ctx context.Context, key wrapping.Key) (string, error) {
	if err := t.current(key); err != nil {
		return "", err
	}
	var m wire.Text
	if err := t.do(ctx, wire.OpCheckValue, &wire.Key{Key: key}, &m); err != nil {
		return "", err
	}
	return m.Text, t.checkCheckValue(m.Text)
}

// current says that the key was found over this connection.
func (t *Token) current(key wrapping.Key) error {
	if key.Epoch == t.epoch {
		return nil
	}
	return &failure.Error{Op: "use " + key.Label, ErrClass: failure.ClassSession, Cause: "the key was found over an earlier connection to the token", Fix: "look it up again"}
}
