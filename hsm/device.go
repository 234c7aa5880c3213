package hsm

import (
	"context"
	"errors"
	"fmt"

	"github.com/miekg/pkcs11"

	"hsmbridge/hsm/failure"
	"hsmbridge/hsm/wrapping"
)

// AtDevice is told that the token is about to ask for a PIN at the device itself (a PED, a PIN pad, a card reader), immediately before the
// C_Login that waits for it. who is the user or the security officer. With an error no login is tried.
type AtDevice func(ctx context.Context, token wrapping.TokenIdentity, who string) error

// Who logs in, in messages.
const (
	userName    = "user"
	officerName = "security officer"
)

// typedAtDevice says that C_Login gets no PIN: the token says so, or the configuration does.
func (t *Token) typedAtDevice(info pkcs11.TokenInfo) bool {
	return info.Flags&pkcs11.CKF_PROTECTED_AUTHENTICATION_PATH != 0 || t.quirks.ProtectedPath
}

// tellDevice says that a login at the device comes next.
func (t *Token) tellDevice(ctx context.Context, who string) error {
	if t.atDevice != nil {
		if err := t.atDevice(ctx, t.identity, who); err != nil {
			return &Error{Op: "log in at the device of " + t.name, ErrClass: ClassToken, Cause: "no login was tried: " + err.Error(), Err: err, Mark: PINUnavailable}
		}
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("log in to %s: %w; no login was tried", t.name, err)
	}
	return nil
}

// refusedAtDevice is a login at the device that did not succeed, by whatever code: tokens answer a wrong PIN, a key that was not put in, a person who
// pressed cancel and nobody at all in many ways, and each may have cost a try.
func (t *Token) refusedAtDevice(op string, err error) error {
	e := &Error{
		Op: op, ErrClass: ClassToken, Err: err, Mark: PINRefused,
		Cause: "nobody was logged in at the device: a wrong PIN, a key that was not put in, a cancelled prompt, or nobody there in time. It does not ask there again by itself, because that may have cost a try",
		Fix:   "have somebody with the PIN or the key at the device, then " + failure.AnewAtDevice,
	}
	var code pkcs11.Error
	if errors.As(err, &code) {
		e.Code, e.Name = uint(code), codeName(uint(code))
	}
	return e
}
