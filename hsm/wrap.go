package hsm

import (
	"bytes"
	"context"
	"crypto/rsa"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/miekg/pkcs11"

	"hsmbridge/hsm/failure"
	"hsmbridge/hsm/wrapping"
)

// Wrap has the token wrap key under pub as the plan says and returns the ciphertext that KMS opens. On one
// session it loads pub as a session object, wraps, and destroys every object that it made, whatever happens.
// hsmbridge itself refuses keys that may not leave, and drops an output that fails [wrapping.CheckOutput].
func (t *Token) Wrap(ctx context.Context, key wrapping.Key, pub *rsa.PublicKey, plan wrapping.Plan) ([]byte, error) {
	return read(ctx, t, func(s pkcs11.SessionHandle) (out []byte, err error) {
		if err := t.mayLeave(s, key); err != nil {
			return nil, err
		}
		wk, err := t.loadPublic(s, pub)
		if err != nil {
			return nil, err
		}
		defer func() {
			if derr := t.destroy(s, wk); derr != nil {
				clear(out)
				out, err = nil, errors.Join(err, derr)
			}
		}()
		return t.wrapUnder(s, wk, pub, key, plan)
	})
}

// WrappingKey is a wrapping public key that stays loaded for many wraps. It has one session of its own and
// serves one goroutine at a time.
type WrappingKey struct {
	t      *Token
	s      pkcs11.SessionHandle
	handle pkcs11.ObjectHandle
	pub    *rsa.PublicKey
	broken bool      // the session is not to be used again
	aside  time.Time // when it last stepped aside
}

// LoadWrappingKey loads pub for many wraps. Close destroys it and gives its session back.
func (t *Token) LoadWrappingKey(ctx context.Context, pub *rsa.PublicKey) (*WrappingKey, error) {
	if err := t.begin(ctx); err != nil {
		return nil, err
	}
	return await(ctx, t.name, 0, func() (*WrappingKey, error) {
		w, err := t.loadWrappingKey(pub)
		if hasClass(err, ClassSession) && !hasClass(err, ClassToken) { // see read
			t.dropIdle()
			w, err = t.loadWrappingKey(pub)
		}
		if err != nil {
			t.end()
			return nil, err
		}
		return w, nil
	}, func(w *WrappingKey) { _ = w.Close() })
}

func (t *Token) loadWrappingKey(pub *rsa.PublicKey) (*WrappingKey, error) {
	s, err := t.take()
	if err != nil {
		return nil, err
	}
	h, err := t.loadPublic(s, pub)
	if err != nil {
		t.drop(s)
		return nil, err
	}
	return &WrappingKey{t: t, s: s, handle: h, pub: pub}, nil
}

// Wrap wraps key as the plan says. See [Token.Wrap]; whether the key may leave is the caller's to have asked
// the token with Find, since the attributes are not read again for every wrap. It waits for the token as long as that takes, and so does Close:
// to hand each wrap to another goroutine, which could be left behind, would cost what a WrappingKey is there to save.
func (w *WrappingKey) Wrap(ctx context.Context, key wrapping.Key, plan wrapping.Plan) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := w.t.current(key); err != nil {
		return nil, err
	}
	if err := w.t.refuse(key); err != nil {
		return nil, err
	}
	w.stepAside()
	out, err := w.t.wrapUnder(w.s, w.handle, w.pub, key, plan)
	w.broken = w.broken || !onlyCaller(err)
	return out, err
}

// stepAside lets other goroutines have a turn every few milliseconds. One that has made nothing but short calls for 10 ms counts as one that hangs in a
// call: Go's scheduler takes its place away and from then on watches all others every 20 µs, which costs two sessions a quarter of their wraps
// (BenchmarkWrap).
func (w *WrappingKey) stepAside() {
	const often = 4 * time.Millisecond
	if now := time.Now(); now.Sub(w.aside) > often {
		runtime.Gosched()
		w.aside = now
	}
}

// Close destroys the public key in the token. A session that failed is closed, and the key goes with it.
func (w *WrappingKey) Close() error {
	defer w.t.end()
	err := w.t.destroy(w.s, w.handle)
	if w.broken {
		w.t.drop(w.s)
	} else {
		w.t.giveBack(w.s)
	}
	return err
}

// mayLeave reads the attributes that forbid a wrap anew: what the key said when it was found may be old.
func (t *Token) mayLeave(s pkcs11.SessionHandle, key wrapping.Key) error {
	if key.Epoch != t.epoch {
		return &Error{Op: "wrap " + key.Label, ErrClass: ClassSession, Cause: "the key was found over an earlier connection to the token", Fix: "look it up again"}
	}
	now, err := t.again(s, key)
	switch {
	case err != nil:
		return err
	case now.Label != key.Label || !bytes.Equal(now.ID, key.ID) || now.KeySpec != key.KeySpec:
		return &Error{
			Op: "wrap " + key.Label, ErrClass: ClassSession, Fix: "look it up again",
			Cause: fmt.Sprintf("its handle now belongs to another object (%q, %s); nothing was wrapped", now.Label, now.KeyType),
		}
	}
	return t.refuse(now)
}

func (t *Token) refuse(key wrapping.Key) error {
	if len(key.Blockers) == 0 {
		return nil
	}
	if err := t.refuseToWrap(fmt.Sprintf("wrap %q", key.Label)); err != nil {
		return err
	}
	e := &Error{Op: fmt.Sprintf("wrap %q", key.Label), ErrClass: ClassCaller, Cause: key.Blockers[0], Err: ErrNotExportable}
	if !key.Extractable {
		e.Code, e.Name = pkcs11.CKR_KEY_UNEXTRACTABLE, "CKR_KEY_UNEXTRACTABLE"
	}
	return e
}

// loadPublic makes the public key an object in the token that can do nothing but wrap: see publicTemplate.
func (t *Token) loadPublic(s pkcs11.SessionHandle, pub *rsa.PublicKey) (pkcs11.ObjectHandle, error) {
	template, label, err := t.publicTemplate(pub)
	if err != nil {
		return 0, err
	}
	if label != "" {
		t.keepTrack(label, 0) // before it is there: the answer may be lost
	}
	h, err := t.module.ctx.CreateObject(s, template)
	err = fault("C_CreateObject", err, about{what: t.name, key: "the wrapping public key"})
	switch {
	case label == "":
	case err == nil:
		t.keepTrack(label, h)
	default:
		err = errors.Join(err, t.unmake(label, err))
	}
	return h, err
}

func (t *Token) destroy(s pkcs11.SessionHandle, h pkcs11.ObjectHandle) error {
	if label, ok := t.storedLabel(h); ok {
		return t.destroyStored(s, h, label)
	}
	err := t.module.ctx.DestroyObject(s, h)
	if err != nil {
		t.doubt(s)
	}
	if isCode(err, pkcs11.CKR_SESSION_HANDLE_INVALID) || isCode(err, pkcs11.CKR_SESSION_CLOSED) || isCode(err, pkcs11.CKR_OBJECT_HANDLE_INVALID) {
		return nil // the session took its objects along, or will when it is closed
	}
	err = fault("C_DestroyObject", err, about{what: t.name, key: "a session object"})
	var e *Error
	if errors.As(err, &e) && e.ErrClass == ClassCaller {
		e.ErrClass = ClassToken // it says nothing about the key that was to be wrapped
	}
	return err
}

// wrapUnder wraps key under the loaded public key and checks what came out.
func (t *Token) wrapUnder(s pkcs11.SessionHandle, wk pkcs11.ObjectHandle, pub *rsa.PublicKey, key wrapping.Key, plan wrapping.Plan) ([]byte, error) {
	if pub.Size() != plan.WrappingKeySpec.Bytes() {
		return nil, &Error{Op: "wrap " + key.Label, ErrClass: ClassCaller, Cause: fmt.Sprintf("the wrapping public key has %d bits and the plan says %s", pub.N.BitLen(), plan.WrappingKeySpec)}
	}
	out, err := t.wrapRaw(s, wk, pkcs11.ObjectHandle(key.Handle), plan)
	if err != nil {
		return nil, fault("C_WrapKey", err, about{what: t.name, key: fmt.Sprintf("%q", key.Label)})
	}
	if err := wrapping.CheckOutput(plan, out); err != nil {
		clear(out)
		return nil, failure.Output(err)
	}
	return out, nil
}

// wrapRaw does the plan's one or two C_WrapKey calls.
func (t *Token) wrapRaw(s pkcs11.SessionHandle, wk, key pkcs11.ObjectHandle, plan wrapping.Plan) ([]byte, error) {
	m, n := plan.Mechanism, plan.WrappingKeySpec.Bytes()
	switch m.Form {
	case wrapping.FormOAEP:
		return t.wrapOnce(s, oaepCall(m.Type, oaepForm, plan.Algorithm), wk, key, n)
	case wrapping.FormPKCS1:
		return t.wrapOnce(s, wrapCall{mechanism: m.Type}, wk, key, n)
	case wrapping.FormNative:
		return t.wrapOnce(s, oaepCall(m.Type, rsaAESForm, plan.Algorithm), wk, key, n+aesRoom)
	case wrapping.FormKWP, wrapping.FormKWPIV:
		return t.compose(s, wk, key, plan)
	}
	return nil, fmt.Errorf("the plan's mechanism form %q is not known", m.Form)
}

// aesRoom is more than the RFC 5649 wrap of any key that KMS takes: a PKCS#8 of RSA-4096 has about 2,400 bytes.
const aesRoom = 8192

// compose does RSA_AES_KEY_WRAP in two calls inside the token: an ephemeral AES-256 session key wraps the key,
// and is itself wrapped with OAEP. RSA part first, as CKM_RSA_AES_KEY_WRAP gives it (PKCS#11 v2.40, 2.1.21).
func (t *Token) compose(s pkcs11.SessionHandle, wk, key pkcs11.ObjectHandle, plan wrapping.Plan) (out []byte, err error) {
	kek, err := t.ephemeralKEK(s)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, t.destroy(s, kek)) }()
	aesPart, err := t.wrapAES(s, kek, key, plan.Mechanism, plan.Length)
	if err != nil {
		return nil, err
	}
	rsaPart, err := t.wrapOnce(s, oaepCall(pkcs11.CKM_RSA_PKCS_OAEP, oaepForm, plan.Algorithm), wk, kek, plan.WrappingKeySpec.Bytes())
	if err != nil {
		return nil, err
	}
	return append(rsaPart, aesPart...), nil
}

// ephemeralKEK generates the AES-256 key of one composed wrap. It must be extractable, to go under the RSA key.
func (t *Token) ephemeralKEK(s pkcs11.SessionHandle) (pkcs11.ObjectHandle, error) {
	h, err := t.module.ctx.GenerateKey(s, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_KEY_GEN, nil)}, []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY),
		pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_AES),
		pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, 32),
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false),
		pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, true),
		pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, true),
		pkcs11.NewAttribute(pkcs11.CKA_WRAP, true),
		pkcs11.NewAttribute(pkcs11.CKA_UNWRAP, false),
		pkcs11.NewAttribute(pkcs11.CKA_ENCRYPT, false),
		pkcs11.NewAttribute(pkcs11.CKA_DECRYPT, false),
	})
	return h, fault("C_GenerateKey", err, about{what: t.name, key: "the ephemeral AES key"})
}

// wrapAES wraps key under the AES key kek; length is the exact length of the material for forms that need it.
func (t *Token) wrapAES(s pkcs11.SessionHandle, kek, key pkcs11.ObjectHandle, m wrapping.Mechanism, length int) ([]byte, error) {
	call := wrapCall{mechanism: m.Type}
	if m.Form == wrapping.FormKWPIV {
		if length <= 0 {
			return nil, fmt.Errorf("%s with an RFC 5649 initial value needs the exact length of the key", m.Name)
		}
		call.form, call.bytes = bytesForm, alternativeIV(length)
	}
	return t.wrapOnce(s, call, kek, key, aesRoom)
}

// alternativeIV is the Alternative Initial Value of RFC 5649, section 3.
func alternativeIV(length int) []byte {
	return binary.BigEndian.AppendUint32([]byte{0xA6, 0x59, 0x59, 0xA6}, uint32(length)) //nolint:gosec // a key's length
}

func oaepCall(mechanism uint, form parameterForm, a wrapping.Algorithm) wrapCall {
	c := wrapCall{mechanism: mechanism, form: form, hash: pkcs11.CKM_SHA256, mgf: pkcs11.CKG_MGF1_SHA256}
	if a == wrapping.OAEPSHA1 || a == wrapping.RSAAESSHA1 {
		c.hash, c.mgf = pkcs11.CKM_SHA_1, pkcs11.CKG_MGF1_SHA1
	}
	return c
}

// wrapOnce is one C_WrapKey with room bytes of buffer. A length query first would cost a whole wrap on some
// tokens and gives too little on others (NSS with CKM_AES_KEY_WRAP_KWP). A token that wants more room says
// how much, and gets it once.
func (t *Token) wrapOnce(s pkcs11.SessionHandle, c wrapCall, wk, key pkcs11.ObjectHandle, room int) ([]byte, error) {
	room = t.room(room)
	out := make([]byte, room)
	n, err := t.module.lib.wrap(uint(s), c, uint(wk), uint(key), out)
	if isCode(err, pkcs11.CKR_BUFFER_TOO_SMALL) {
		if t.quirks.NoLengthQuery {
			n = 0 // what it says is wrong
		}
		out = make([]byte, max(2*room, min(n, 1<<20)))
		n, err = t.module.lib.wrap(uint(s), c, uint(wk), uint(key), out)
	}
	if err != nil {
		return nil, err
	}
	return out[:n:n], nil
}
