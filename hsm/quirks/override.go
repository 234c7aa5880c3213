package quirks

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// NoFamily is the value of [Override.Family] for a token that no row of the table is to be applied to.
const NoFamily = "none"

// Override is what the configuration says in place of the table of HSM families. What is left out is as the table has it.
type Override struct {
	// Row of the table of HSM families that applies, whatever the token says of itself; none for no row.
	Family string `yaml:"family,omitempty" json:"family,omitempty"`
	// The vendor's own mechanisms for AES key wrap, which the probe tries beside the standard's: "0x80000171", or "0x80002109+iv" for one that gets the RFC 5649 initial value as its parameter.
	AESKeyWrap []Mechanism `yaml:"aes_key_wrap,omitempty" json:"aes_key_wrap,omitempty"`
	// Form of the PIN, which is checked before a login costs a try: any, user:password, or hex4-password (four hex digits and a password of at least 8 characters).
	PINFormat PINFormat `yaml:"pin_format,omitempty" json:"pin_format,omitempty"`
	// The PIN is typed at the device (a PED, a pinpad): no source of it is given.
	ProtectedPath *bool `yaml:"protected_authentication_path,omitempty" json:"protected_authentication_path,omitempty"`
	// The wrapping public key has to be a token object (CKA_TOKEN true). It is destroyed after use; what a crash left behind is swept when the token is opened next.
	TokenPublicKey *bool `yaml:"public_key_as_token_object,omitempty" json:"public_key_as_token_object,omitempty"`
	// More attributes of the wrapping public key: "CKA_ENCRYPT=true".
	PublicKeyAttributes []Attribute `yaml:"public_key_attributes,omitempty" json:"public_key_attributes,omitempty"`
	// Most sessions that are open at once, 2 to 1024. Default: 16, or what the token says if that is less.
	MaxSessions int `yaml:"max_sessions,omitempty" json:"max_sessions,omitempty"`
	// Open read-only sessions, for tokens that are write protected.
	ReadOnlySessions *bool `yaml:"read_only_sessions,omitempty" json:"read_only_sessions,omitempty"`
	// Lengths that the token answers are wrong, or cost a whole operation: give ample room at once.
	NoLengthQuery *bool `yaml:"no_length_query,omitempty" json:"no_length_query,omitempty"`
}

func (o Override) apply(q *Quirks) {
	set := func(to *bool, from *bool) {
		if from != nil {
			*to = *from
		}
	}
	if len(o.AESKeyWrap) > 0 {
		q.AESKeyWrap = slices.Clone(o.AESKeyWrap)
	}
	if o.PINFormat != "" {
		q.PIN = o.PINFormat
	}
	set(&q.ProtectedPath, o.ProtectedPath)
	set(&q.TokenPublicKey, o.TokenPublicKey)
	if len(o.PublicKeyAttributes) > 0 {
		q.PublicKeyAttributes = slices.Clone(o.PublicKeyAttributes)
	}
	if o.MaxSessions > 0 {
		q.MaxSessions = o.MaxSessions
	}
	set(&q.ReadOnlySessions, o.ReadOnlySessions)
	set(&q.NoLengthQuery, o.NoLengthQuery)
}

// NeedsNoPIN says that the configuration itself leaves the PIN to the device.
func (o Override) NeedsNoPIN() bool { return o.ProtectedPath != nil && *o.ProtectedPath }

// Bounds of [Override.MaxSessions]: one session keeps the login, one works.
const (
	LeastSessions = 2
	MostSessions  = 1024
)

// FamilyNames lists the values of [Override.Family].
func FamilyNames() []string {
	var out []string
	for _, f := range Families() {
		out = append(out, f.Name)
	}
	return append(out, NoFamily)
}

// Forms of the texts in the configuration, as regular expressions.
const (
	MechanismPattern = `^0x[89A-Fa-f][0-9A-Fa-f]{7}(\+iv)?$`
	AttributePattern = `^(CKA_PRIVATE|CKA_ENCRYPT|CKA_VERIFY|CKA_VERIFY_RECOVER|CKA_DERIVE|CKA_MODIFIABLE|CKA_COPYABLE|CKA_DESTROYABLE)=(true|false)$`
)

const ivSuffix = "+iv"

func (m Mechanism) text() string {
	s := fmt.Sprintf("0x%08X", m.Type)
	if m.IV {
		s += ivSuffix
	}
	return s
}

// MarshalText is the form of the configuration: "0x80000171", "0x80002109+iv".
func (m Mechanism) MarshalText() ([]byte, error) { return []byte(m.text()), nil }

// UnmarshalText reads a number of the vendor's range, 0x80000000 to 0xFFFFFFFF.
func (m *Mechanism) UnmarshalText(text []byte) error {
	digits, iv := strings.CutSuffix(string(text), ivSuffix)
	hex, ok := strings.CutPrefix(digits, "0x")
	n, err := strconv.ParseUint(hex, 16, 32)
	if !ok || err != nil || len(hex) != 8 || n < vendorDefined {
		return fmt.Errorf("%q is no mechanism of a vendor: write its number as 0x80000171, at or above 0x80000000, with +iv if it gets the RFC 5649 initial value as its parameter", text)
	}
	*m = Mechanism{Name: nameOf(uint(n)), Type: uint(n), IV: iv}
	return nil
}

// vendorDefined is CKM_VENDOR_DEFINED.
const vendorDefined = 0x80000000

// nameOf is the name of a mechanism that the table knows, or one made of its number.
func nameOf(number uint) string {
	for _, f := range Families() {
		for _, m := range f.Quirks.AESKeyWrap {
			if m.Type == number {
				return m.Name
			}
		}
	}
	return fmt.Sprintf("CKM_VENDOR_0x%08X", number)
}

// Attribute is a CK_BBOOL attribute of the wrapping public key.
type Attribute struct {
	Name  string // "CKA_ENCRYPT"
	Type  uint   // CK_ATTRIBUTE_TYPE
	Value bool
}

// attributeTypes are the attributes that may be given. Those that say what the key is for and how long it lives, CKA_WRAP, CKA_TOKEN and
// CKA_TRUSTED among them, are hsmbridge's own. Source of the numbers: PKCS#11 v2.40, header files.
func attributeTypes() map[string]uint {
	return map[string]uint{
		"CKA_PRIVATE": 0x02, "CKA_ENCRYPT": 0x104, "CKA_VERIFY": 0x10A, "CKA_VERIFY_RECOVER": 0x10B, "CKA_DERIVE": 0x10C,
		"CKA_MODIFIABLE": 0x170, "CKA_COPYABLE": 0x171, "CKA_DESTROYABLE": 0x172,
	}
}

func (a Attribute) text() string { return a.Name + "=" + strconv.FormatBool(a.Value) }

// MarshalText is the form of the configuration: "CKA_ENCRYPT=true".
func (a Attribute) MarshalText() ([]byte, error) { return []byte(a.text()), nil }

// UnmarshalText reads "CKA_ENCRYPT=true".
func (a *Attribute) UnmarshalText(text []byte) error {
	name, value, _ := strings.Cut(string(text), "=")
	number, ok := attributeTypes()[name]
	if !ok || value != "true" && value != "false" {
		return fmt.Errorf("%q is not NAME=true or NAME=false with one of CKA_PRIVATE, CKA_ENCRYPT, CKA_VERIFY, CKA_VERIFY_RECOVER, CKA_DERIVE, CKA_MODIFIABLE, CKA_COPYABLE, CKA_DESTROYABLE", text)
	}
	*a = Attribute{name, number, value == "true"}
	return nil
}

// PINFormat is the form of a token's PIN.
type PINFormat string

// The forms.
const (
	PINAny          PINFormat = "any"           // no form
	PINUserPassword PINFormat = "user:password" // AWS CloudHSM
	PINHex4Password PINFormat = "hex4-password" // YubiHSM 2: the ID of the authentication key, then its password; an @ before it where that key is asymmetric
)

// PINFormats lists the forms.
func PINFormats() []PINFormat { return []PINFormat{PINAny, PINUserPassword, PINHex4Password} }

const leastYubiHSMPassword = 8

// Check says what is wrong with the form of a PIN. The error never holds any part of the PIN, nor its length.
func (f PINFormat) Check(pin []byte) error {
	switch f {
	case PINUserPassword:
		i := slices.Index(pin, ':')
		switch {
		case i < 0:
			return errors.New("the PIN has to be user:password, and the one given has no colon")
		case i == 0 || i == len(pin)-1:
			return errors.New("the PIN has to be user:password, and the one given has nothing on one side of the colon")
		}
	case PINHex4Password:
		const digits = 4
		pin = bytes.TrimPrefix(pin, []byte("@"))
		isHex := func(b byte) bool { return strings.IndexByte("0123456789abcdefABCDEF", b) >= 0 }
		switch {
		case len(pin) < digits || slices.ContainsFunc(pin[:digits], func(b byte) bool { return !isHex(b) }):
			return errors.New("the PIN has to begin with the ID of the authentication key in four hex digits (0001...), and the one given does not")
		case len(pin) < digits+leastYubiHSMPassword:
			return fmt.Errorf("the PIN has to be four hex digits and a password of at least %d characters, and the one given is shorter", leastYubiHSMPassword)
		}
	case PINAny, "":
	}
	return nil
}
