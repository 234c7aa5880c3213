package hsm

import (
	"bytes"
	"context"
	"crypto/rsa"
	"errors"
	"fmt"
	"math/big"

	"github.com/miekg/pkcs11"

	"hsmbridge/hsm/pkcs11uri"
	"hsmbridge/hsm/wrapping"
)

// WrapTrusted has the token wrap an object that may be wrapped only under a key that its security officer trusts (CKA_WRAP_WITH_TRUSTED;
// PKCS#11 v2.40, 4.9). A token has one login for all sessions of a process, so nothing else may be done with it meanwhile:
//
//	C_Logout, C_Login as SO, C_CreateObject with CKA_TRUSTED, C_Logout, C_Login as user, C_WrapKey, C_DestroyObject
//
// The wrapping public key is a session object: it goes with its session whatever happens, also with the process. A token that stores it all
// the same (YubiHSM 2 does, by its documents) keeps it when the process is killed: it has a label of its own, and the next call destroys
// what it finds under it. Each PIN is asked for
// once, and a refused one is never tried again. After an error the token may be logged out: close it.
//
// SoftHSM 2.6.1 does it. openCryptoki 3.8.1 and NSS 3.87 do not take CKA_TRUSTED: the one answers CKR_TEMPLATE_INCONSISTENT, the other has no
// security officer to log in.
func (t *Token) WrapTrusted(ctx context.Context, so, user PINSource, object pkcs11uri.URI, pub *rsa.PublicKey, plan wrapping.Plan) ([]byte, error) {
	if plan.Mechanism.Form == wrapping.FormKWP || plan.Mechanism.Form == wrapping.FormKWPIV {
		return nil, &Error{
			Op: "wrap under a trusted key", ErrClass: ClassCaller, Cause: "this token wraps for " + string(plan.Algorithm) + " in two calls, the first under an AES key that nobody has made CKA_TRUSTED",
			Fix: "a key that may be wrapped only under trusted keys (CKA_WRAP_WITH_TRUSTED) needs a token with CKM_RSA_AES_KEY_WRAP; nothing was wrapped",
		}
	}
	if t.quirks.TokenPublicKey {
		return nil, &Error{
			Op: "wrap under a trusted key", ErrClass: ClassCaller, Cause: "this token takes a wrapping public key only as a token object (quirks.public_key_as_token_object), and a trusted key must not outlive its session",
			Fix: "use another token for keys with CKA_WRAP_WITH_TRUSTED; nothing was wrapped",
		}
	}
	if err := t.refuseToWrap("wrap under a trusted key"); err != nil {
		return nil, err
	}
	if err := t.aloneWith(ctx); err != nil {
		return nil, err
	}
	return await(ctx, t.name, grace, func() ([]byte, error) {
		defer t.leave()
		return t.wrapTrusted(ctx, so, user, object, pub, plan)
	}, func(out []byte) { clear(out) })
}

func (t *Token) wrapTrusted(ctx context.Context, so, user PINSource, object pkcs11uri.URI, pub *rsa.PublicKey, plan wrapping.Plan) ([]byte, error) {
	s, err := t.openSession()
	if err != nil {
		return nil, err
	}
	defer t.drop(s) // takes along what may be left in it
	var out []byte
	err = t.trusted(ctx, s, so, user, pub, func(wk pkcs11.ObjectHandle) error {
		key, err := t.trustedOnly(s, object)
		if err != nil {
			return err
		}
		out, err = t.wrapUnder(s, wk, pub, key, plan)
		return err
	})
	if err != nil {
		clear(out)
		return nil, err
	}
	return out, nil
}

// aloneWith takes all sessions, so that nothing else uses the token.
func (t *Token) aloneWith(ctx context.Context) error {
	for i := range cap(t.sessions) {
		if err := t.begin(ctx); err != nil {
			for range i {
				t.end()
			}
			return err
		}
	}
	return nil
}

func (t *Token) leave() {
	for range cap(t.sessions) {
		t.end()
	}
}

// trusted loads pub as the security officer, runs f as the user, and destroys pub whatever happens.
func (t *Token) trusted(ctx context.Context, s pkcs11.SessionHandle, so, user PINSource, pub *rsa.PublicKey, f func(wk pkcs11.ObjectHandle) error) (err error) {
	t.module.login.Lock()
	defer t.module.login.Unlock()
	if err := t.logout(s); err != nil {
		return err
	}
	if err := t.loginAs(ctx, s, pkcs11.CKU_SO, so); err != nil {
		return err
	}
	if err := t.sweepTrusted(s); err != nil {
		return errors.Join(err, t.logout(s))
	}
	wk, err := t.module.ctx.CreateObject(s, []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_PUBLIC_KEY),
		pkcs11.NewAttribute(pkcs11.CKA_LABEL, trustedLabel),
		pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_RSA),
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false),
		pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, false), // so that the user sees it
		pkcs11.NewAttribute(pkcs11.CKA_TRUSTED, true),
		pkcs11.NewAttribute(pkcs11.CKA_WRAP, true),
		pkcs11.NewAttribute(pkcs11.CKA_MODULUS, pub.N.Bytes()),
		pkcs11.NewAttribute(pkcs11.CKA_PUBLIC_EXPONENT, big.NewInt(int64(pub.E)).Bytes()),
	})
	if err != nil {
		return errors.Join(t.notTrusted(s, "C_CreateObject", err), t.logout(s))
	}
	defer func() {
		if derr := t.destroy(s, wk); derr != nil && err == nil {
			err = derr
		}
	}()
	if err := t.isTrusted(s, wk); err != nil {
		return errors.Join(err, t.logout(s))
	}
	if err := t.logout(s); err != nil {
		return err
	}
	if err := t.loginAs(ctx, s, pkcs11.CKU_USER, user); err != nil {
		return err
	}
	if err := t.isTrusted(s, wk); err != nil { // some tokens drop all session objects at a logout
		return err
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("nothing was wrapped: %w", err)
	}
	return f(wk)
}

// trustedLabel is by what a wrapping public key is recognised that a killed process left in a token.
const trustedLabel = "hsmbridge ceremony, trusted for one wrap"

// sweepTrusted destroys what killed processes left, while the security officer is logged in.
func (t *Token) sweepTrusted(s pkcs11.SessionHandle) error {
	left, err := t.find(s, []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_PUBLIC_KEY), pkcs11.NewAttribute(pkcs11.CKA_LABEL, trustedLabel),
	}, 0)
	if err != nil {
		return err
	}
	for _, h := range left {
		if err := t.destroy(s, h); err != nil {
			return err
		}
	}
	return nil
}

// isTrusted reads back that the key is there and trusted: a token that ignores CKA_TRUSTED would only fail later.
func (t *Token) isTrusted(s pkcs11.SessionHandle, wk pkcs11.ObjectHandle) error {
	v, err := t.attribute(s, wk, pkcs11.CKA_TRUSTED)
	if err == nil && !bytes.Equal(v, []byte{1}) {
		return t.notTrusted(s, "C_GetAttributeValue", errors.New("the token took the key and does not show CKA_TRUSTED"))
	}
	if err != nil {
		return t.notTrusted(s, "C_GetAttributeValue", err)
	}
	return nil
}

// notTrusted is [Token.cannotTrust], unless the login is gone: tokens refuse CKA_TRUSTED of whoever is not the security officer with the same
// codes as of the security officer (SoftHSM 2.6.1: CKR_ATTRIBUTE_READ_ONLY), and only the session says who is logged in.
func (t *Token) notTrusted(s pkcs11.SessionHandle, call string, err error) error {
	refused := t.cannotTrust(call, err)
	if !hasClass(refused, ClassCaller) {
		return refused
	}
	switch lost := t.loggedIn(s); {
	case lost == nil:
		return refused
	case !isCode(lost, pkcs11.CKR_USER_NOT_LOGGED_IN): // the session cannot be asked
		return lost
	default:
		return &Error{
			Op: call, Code: pkcs11.CKR_USER_NOT_LOGGED_IN, Name: codeName(pkcs11.CKR_USER_NOT_LOGGED_IN), ErrClass: ClassToken,
			Cause: "the login was lost on the way: somebody else logged out of the token, or it was reset; nothing was wrapped",
			Fix:   "see that nothing else uses the token, and begin again: both PINs are asked for anew", Err: lost,
		}
	}
}

// cannotTrust is an error that says so, unless err is about something else: the connection, the device.
func (t *Token) cannotTrust(call string, err error) error {
	if class := classOf(err); class != "" && class != ClassCaller && !isCode(err, pkcs11.CKR_USER_NOT_LOGGED_IN) && !isCode(err, pkcs11.CKR_USER_TYPE_INVALID) { // with these some refuse it
		return fault(call, err, about{what: t.name, key: "the wrapping public key"})
	}
	return &Error{
		Op: call, ErrClass: ClassCaller, Cause: fmt.Sprintf("the token's security officer cannot make a wrapping key trusted (CKA_TRUSTED) over PKCS#11: %v; nothing was wrapped", err),
		Fix: "look into the vendor's manual for its own way to trust a wrapping key; without one, a key with CKA_WRAP_WITH_TRUSTED cannot go to KMS from this token", Err: err,
	}
}

// trustedOnly finds the object anew: a logout ends the handles of private objects.
func (t *Token) trustedOnly(s pkcs11.SessionHandle, object pkcs11uri.URI) (wrapping.Key, error) {
	keys, err := t.keys(s, object)
	switch {
	case err != nil:
		return wrapping.Key{}, err
	case len(keys) == 0:
		return wrapping.Key{}, t.notFound(s, object)
	case len(keys) > 1:
		return wrapping.Key{}, &Error{Op: "find " + object.String(), ErrClass: ClassCaller, Cause: "these key objects match: " + listKeys(keys), Fix: "name one by id, label and type together", Err: ErrAmbiguous}
	}
	key := keys[0]
	rest := key
	rest.WrapWithTrusted = false
	if rest.Blockers = blockers(rest); len(rest.Blockers) > 0 {
		return key, t.refuse(rest)
	}
	return key, nil
}

func (t *Token) logout(s pkcs11.SessionHandle) error {
	err := t.module.ctx.Logout(s)
	if err == nil || isCode(err, pkcs11.CKR_USER_NOT_LOGGED_IN) {
		return nil
	}
	return fault("C_Logout", err, about{what: t.name})
}

// loginAs logs in, once. The flags say before whether a try would be the last.
func (t *Token) loginAs(ctx context.Context, s pkcs11.SessionHandle, who uint, pin PINSource) error {
	name, locked, last := userName, uint(pkcs11.CKF_USER_PIN_LOCKED), uint(pkcs11.CKF_USER_PIN_FINAL_TRY)
	if who == pkcs11.CKU_SO {
		name, locked, last = officerName, pkcs11.CKF_SO_PIN_LOCKED, pkcs11.CKF_SO_PIN_FINAL_TRY
	}
	info, err := t.module.ctx.GetTokenInfo(t.slot)
	if err != nil {
		return fault("C_GetTokenInfo", err, about{what: t.name})
	}
	refuse := func(cause string) error {
		return &Error{Op: "C_Login as " + name, ErrClass: ClassToken, Cause: cause + "; no login was tried", Fix: "use the vendor's tool first", Err: ErrParked, Mark: PINRefused}
	}
	switch {
	case identityOf(info) != t.identity:
		return refuse("another token is in the slot now: " + describeToken(identityOf(info)))
	case info.Flags&locked != 0:
		return refuse("the PIN of the " + name + " is locked")
	case info.Flags&last != 0:
		return refuse("one try is left before the PIN of the " + name + " locks")
	}
	var secret []byte
	device := t.typedAtDevice(info)
	switch {
	case device:
		if err := t.tellDevice(ctx, name); err != nil {
			return err
		}
	case pin != nil:
		if secret, err = pin(ctx, t.identity); err != nil {
			return &Error{Op: "get the PIN of the " + name, ErrClass: ClassToken, Cause: "no login was tried: " + err.Error(), Err: err, Mark: PINUnavailable}
		}
		defer clear(secret)
		if err := t.checkPIN(secret); err != nil {
			return err
		}
	}
	switch err := t.module.lib.loginAs(uint(s), who, secret); {
	case who == pkcs11.CKU_SO && isCode(err, pkcs11.CKR_USER_TYPE_INVALID):
		return t.cannotTrust("C_Login as "+name, err) // it has none
	case err != nil && device && !pinUntouched(err):
		return t.refusedAtDevice("C_Login as "+name, err)
	case err != nil:
		return fault("C_Login as "+name, err, about{what: t.name})
	}
	return nil
}
