package hsm

import (
	"crypto/rsa"
	"fmt"
	"math/big"

	"github.com/miekg/pkcs11"

	"hsmbridge/hsm/quirks"
	"hsmbridge/hsm/wrapping"
)

// learn finds out which quirks apply to the token that was found.
func (t *Token) learn(c Config) error {
	t.library, t.moduleName = t.module.about(), c.Module
	t.quirks = quirks.For(quirks.Seen{
		Manufacturer: t.identity.Manufacturer, Model: t.identity.Model, Firmware: t.identity.Firmware,
		LibraryManufacturer: t.library.Manufacturer, Library: t.library.Description, Module: c.Module,
	}, c.Quirks)
	if t.quirks.ReadOnlySessions && t.quirks.ReadWriteNeeded {
		return &Error{
			Op: "open " + c.Name, ErrClass: ClassCaller, Cause: "the configuration asks for read-only sessions (quirks.read_only_sessions), which fail on this family of HSMs (" + t.quirks.Family + ")",
			Fix: "leave quirks.read_only_sessions out; no login was tried",
		}
	}
	if w := t.quirks.Warning(); w != "" {
		t.warnings = append(t.warnings, w)
	}
	return nil
}

// Quirks is how the token differs from the standard: from the table, or as the configuration says.
func (t *Token) Quirks() quirks.Quirks { return t.quirks }

// Library is what a module says of itself (CK_INFO).
type Library struct {
	Manufacturer string `json:"manufacturer"`
	Description  string `json:"description"`
	Version      string `json:"version"`
	Cryptoki     string `json:"cryptoki"` // the version of PKCS#11 that it follows
}

// Library is what the token's module says of itself.
func (t *Token) Library() Library { return t.library }

// about asks the module what it is. A module that does not say leaves everything empty.
func (m *module) about() Library {
	info, err := m.ctx.GetInfo()
	if err != nil {
		return Library{}
	}
	version := func(v pkcs11.Version) string { return fmt.Sprintf("%d.%d", v.Major, v.Minor) }
	return Library{trim(info.ManufacturerID), trim(info.LibraryDescription), version(info.LibraryVersion), version(info.CryptokiVersion)}
}

// candidates is the table of mechanisms for this token: the standard's, then its vendor's own.
func (t *Token) candidates(a wrapping.Algorithm) []wrapping.Mechanism {
	out := candidates(a)
	if a.TwoPart() {
		for _, m := range t.quirks.AESKeyWrap {
			out = append(out, m.Candidate())
		}
	}
	return out
}

// sessionFlags are those of C_OpenSession.
func (t *Token) sessionFlags() uint {
	if t.quirks.ReadOnlySessions {
		return pkcs11.CKF_SERIAL_SESSION
	}
	return pkcs11.CKF_SERIAL_SESSION | pkcs11.CKF_RW_SESSION
}

// checkPIN looks at the form of a PIN before it costs a try.
func (t *Token) checkPIN(pin []byte) error {
	if err := t.quirks.PIN.Check(pin); err != nil {
		return &Error{
			Op: "check the PIN of " + t.name, ErrClass: ClassToken, Cause: err.Error() + "; no login was tried",
			Fix: "correct the PIN; if this token has PINs of another form, set quirks.pin_format: any", Err: err, Mark: PINUnavailable,
		}
	}
	return nil
}

// publicTemplate is the wrapping public key as the token wants it: an object that can do nothing but wrap, and a session object unless
// the token takes none. The label is empty for session objects.
func (t *Token) publicTemplate(pub *rsa.PublicKey) (template attributes, label string, err error) {
	template = attributes{
		attr(pkcs11.CKA_CLASS, pkcs11.CKO_PUBLIC_KEY),
		attr(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_RSA),
		attr(pkcs11.CKA_TOKEN, t.quirks.TokenPublicKey), // tpm2-pkcs11 stores by default
		attr(pkcs11.CKA_WRAP, true),
		attr(pkcs11.CKA_MODULUS, pub.N.Bytes()),
		attr(pkcs11.CKA_PUBLIC_EXPONENT, big.NewInt(int64(pub.E)).Bytes()),
	}
	if t.quirks.TokenPublicKey {
		l, err := newLeftover()
		if err != nil {
			return nil, "", err
		}
		label = l.label()
		template = append(template, attr(pkcs11.CKA_LABEL, label))
	}
	for _, a := range t.quirks.PublicKeyAttributes {
		template = append(template, attr(a.Type, a.Value))
	}
	return template, label, nil
}

// room is the buffer for an output of n bytes. Where lengths that the token answers are wrong or costly, it is ample at once.
func (t *Token) room(n int) int {
	if t.quirks.NoLengthQuery {
		return max(n, aesRoom)
	}
	return n
}
