package hsm

import (
	"context"
	"fmt"
	"slices"

	"github.com/miekg/pkcs11"

	"hsmbridge/hsm/wrapping"
)

// MechanismInfo is what a token's list says of a mechanism that matters for wrapping. What it really does is
// for a probe to find out.
type MechanismInfo = wrapping.MechanismInfo

// Mechanisms is the token's list, reduced to the mechanisms that a probe tries; those that it does not list
// are there with Listed false.
func (t *Token) Mechanisms(ctx context.Context) ([]MechanismInfo, error) {
	return read(ctx, t, func(pkcs11.SessionHandle) ([]MechanismInfo, error) {
		list, err := t.module.ctx.GetMechanismList(t.slot)
		if err != nil {
			return nil, fault("C_GetMechanismList", err, about{what: t.name})
		}
		var out []MechanismInfo
		for _, a := range wrapping.Algorithms() {
			for _, m := range t.candidates(a) {
				if slices.ContainsFunc(out, func(i MechanismInfo) bool { return i.Type == m.Type }) {
					continue
				}
				i := MechanismInfo{Name: m.Name, Type: m.Type}
				i.Listed = slices.ContainsFunc(list, func(l *pkcs11.Mechanism) bool { return l.Mechanism == m.Type })
				info, err := t.module.ctx.GetMechanismInfo(t.slot, []*pkcs11.Mechanism{pkcs11.NewMechanism(m.Type, nil)})
				if i.Listed && err == nil {
					i.Wrap, i.Min, i.Max = info.Flags&pkcs11.CKF_WRAP != 0, info.MinKeySize, info.MaxKeySize
				}
				if err = fault("C_GetMechanismInfo", err, about{what: t.name}); !onlyCaller(err) {
					return nil, err
				}
				out = append(out, i)
			}
		}
		return out, nil
	})
}

// askWhetherItWraps gives the reason when no key can leave the token: it lists no mechanism with CKF_WRAP, and C_WrapKey is not there.
// Neither is believed alone: lists lie both ways.
func (t *Token) askWhetherItWraps() string {
	list, err := t.module.ctx.GetMechanismList(t.slot)
	if err != nil {
		return ""
	}
	for _, a := range wrapping.Algorithms() {
		for _, m := range t.candidates(a) {
			if !slices.ContainsFunc(list, func(l *pkcs11.Mechanism) bool { return l.Mechanism == m.Type }) {
				continue
			}
			info, err := t.module.ctx.GetMechanismInfo(t.slot, []*pkcs11.Mechanism{pkcs11.NewMechanism(m.Type, nil)})
			if err != nil || info.Flags&pkcs11.CKF_WRAP != 0 {
				return ""
			}
		}
	}
	if err := t.module.lib.hasWrap(uint(t.anchor)); !isCode(err, pkcs11.CKR_FUNCTION_NOT_SUPPORTED) {
		return ""
	}
	return "the token cannot wrap keys: it lists no mechanism that wraps, and C_WrapKey answers " + codeName(pkcs11.CKR_FUNCTION_NOT_SUPPORTED)
}

// refuseToWrap is an error on a token that cannot wrap.
func (t *Token) refuseToWrap(op string) error {
	if t.cannotWrap == "" {
		return nil
	}
	return &Error{
		Op: op, ErrClass: ClassCaller, Code: pkcs11.CKR_FUNCTION_NOT_SUPPORTED, Name: codeName(pkcs11.CKR_FUNCTION_NOT_SUPPORTED), Cause: t.cannotWrap,
		Fix: "keys for AWS KMS have to be made in an HSM that wraps; nothing was done", Err: ErrNotExportable,
	}
}

// SessionObjects counts the session objects that this process can see in the token: 0 when nothing was left behind.
func (t *Token) SessionObjects(ctx context.Context) (int, error) {
	return read(ctx, t, func(s pkcs11.SessionHandle) (int, error) {
		found, err := t.find(s, attributes{attr(pkcs11.CKA_TOKEN, false)}, 0)
		if err != nil {
			return 0, fmt.Errorf("count session objects: %w", err)
		}
		return len(found), nil
	})
}

// ListedMechanism is an entry of a token's list as the token gives it.
type ListedMechanism struct {
	Type     uint
	Flags    uint // CK_MECHANISM_INFO.flags
	Min, Max uint // key size, in bits or bytes as the mechanism has it
	Known    bool // the token says more than the number: flags and sizes
}

// MechanismList is the token's whole list, in its order.
func (t *Token) MechanismList(ctx context.Context) ([]ListedMechanism, error) {
	return read(ctx, t, func(pkcs11.SessionHandle) ([]ListedMechanism, error) {
		list, err := t.module.ctx.GetMechanismList(t.slot)
		if err != nil {
			return nil, fault("C_GetMechanismList", err, about{what: t.name})
		}
		var out []ListedMechanism
		for _, m := range list {
			l := ListedMechanism{Type: m.Mechanism}
			if info, err := t.module.ctx.GetMechanismInfo(t.slot, []*pkcs11.Mechanism{pkcs11.NewMechanism(m.Mechanism, nil)}); err == nil {
				l.Flags, l.Min, l.Max, l.Known = info.Flags, info.MinKeySize, info.MaxKeySize, true
			}
			out = append(out, l)
		}
		return out, nil
	})
}

// place is what the slot says of itself: its description often names a machine or a site.
func (t *Token) place(ctx context.Context) (description, manufacturer string, err error) {
	both, err := read(ctx, t, func(pkcs11.SessionHandle) ([2]string, error) {
		info, err := t.module.ctx.GetSlotInfo(t.slot)
		if err != nil {
			return [2]string{}, fault("C_GetSlotInfo", err, about{what: t.name})
		}
		return [2]string{trim(info.SlotDescription), trim(info.ManufacturerID)}, nil
	})
	return both[0], both[1], err
}
