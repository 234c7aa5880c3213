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
			for _, m := range candidates(a) {
				if slices.ContainsFunc(out, func(i MechanismInfo) bool { return i.Type == m.Type }) {
					continue
				}
				i := MechanismInfo{Name: m.Name, Type: m.Type}
				i.Listed = slices.ContainsFunc(list, func(l *pkcs11.Mechanism) bool { return l.Mechanism == m.Type })
				if info, err := t.module.ctx.GetMechanismInfo(t.slot, []*pkcs11.Mechanism{pkcs11.NewMechanism(m.Type, nil)}); i.Listed && err == nil {
					i.Wrap, i.Min, i.Max = info.Flags&pkcs11.CKF_WRAP != 0, info.MinKeySize, info.MaxKeySize
				}
				out = append(out, i)
			}
		}
		return out, nil
	})
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
