// Package quirks is what is known of families of HSMs before one of them is asked: one table, [Families], of how each differs from the
// standard. A row is chosen by what the token and its module say of themselves ([Find]), and every part of it can be overridden in the
// configuration ([Override]).
//
// Nothing in the table is believed about wrapping: a vendor's mechanism is one more candidate of the probe, which decides by known answers.
//
// It is pure: no token, no file, no cgo.
package quirks

import (
	"cmp"
	"fmt"
	"strings"

	"hsmbridge/hsm/wrapping"
)

// Quirks is how a token differs from the standard. The zero value is a token that does not.
type Quirks struct {
	Family              string      // name of the row that they come from; empty: none
	AESKeyWrap          []Mechanism // the vendor's own numbers for AES key wrap, which the probe tries beside the standard's
	PIN                 PINFormat   // checked before a login costs a try
	ProtectedPath       bool        // the PIN is typed at the device (a PED, a pinpad): C_Login gets none, also without CKF_PROTECTED_AUTHENTICATION_PATH
	TokenPublicKey      bool        // a wrapping public key has to be a token object, which is destroyed after use and swept after a crash
	PublicKeyAttributes []Attribute // more attributes that the wrapping public key needs
	MaxSessions         int         // most sessions at once, also where the token says more or "infinite"; 0: as the token says
	ReadOnlySessions    bool        // sessions are opened read-only
	ReadWriteNeeded     bool        // read-only sessions fail
	NoLengthQuery       bool        // a length that the token answers is wrong, or costs a whole operation
	Network             bool        // the module itself opens network connections
	CannotWrap          string      // why it cannot wrap a key for AWS KMS at all; empty: it may
}

// Mechanism is a vendor's mechanism for AES key wrap (RFC 5649, or what the vendor calls so).
type Mechanism struct {
	Name string // the vendor's, "CKM_AES_KWP"
	Type uint   // CK_MECHANISM_TYPE, at or above CKM_VENDOR_DEFINED (0x80000000)
	IV   bool   // it gets the RFC 5649 initial value as its parameter, as CKM_AES_KEY_WRAP does
}

// Candidate is the mechanism as the probe tries it.
func (m Mechanism) Candidate() wrapping.Mechanism {
	form := wrapping.FormKWP
	if m.IV {
		form = wrapping.FormKWPIV
	}
	return wrapping.Mechanism{Name: m.Name, Type: m.Type, Form: form}
}

// Seen is what a token and its module say of themselves, trimmed. Before a module is loaded only Module is known.
type Seen struct {
	Manufacturer        string // CK_TOKEN_INFO.manufacturerID
	Model               string // CK_TOKEN_INFO.model
	Firmware            string // CK_TOKEN_INFO.firmwareVersion, "2.6"
	LibraryManufacturer string // CK_INFO.manufacturerID
	Library             string // CK_INFO.libraryDescription
	Module              string // file name of the module, with or without its path: a hint only
}

// Match is a set of words, all of which have to occur, in any case of letters. An empty one matches anything. Firmware is a prefix.
type Match struct {
	Manufacturer, Model, Firmware, LibraryManufacturer, Library, Module string
}

// hint says that the match looks at nothing but the name of the file.
func (m Match) hint() bool {
	return m.Manufacturer+m.Model+m.Firmware+m.LibraryManufacturer+m.Library == ""
}

func (m Match) matches(s Seen) bool {
	has := func(text, word string) bool { return strings.Contains(strings.ToLower(text), strings.ToLower(word)) }
	file := s.Module[strings.LastIndexByte(s.Module, '/')+1:]
	return has(s.Manufacturer, m.Manufacturer) && has(s.Model, m.Model) && has(s.LibraryManufacturer, m.LibraryManufacturer) &&
		has(s.Library, m.Library) && has(file, m.Module) && strings.HasPrefix(s.Firmware, m.Firmware)
}

// Find is the row of the table for a token. What the token and its library say comes first; the name of the module's file decides only
// where no row knows them. The first row that fits is taken.
func Find(s Seen) (Family, bool) {
	for _, hint := range []bool{false, true} {
		for _, f := range Families() {
			for _, m := range f.Match {
				if m.hint() == hint && m.matches(s) {
					return f, true
				}
			}
		}
	}
	return Family{}, false
}

// ByName is the row of that name.
func ByName(name string) (Family, bool) {
	for _, f := range Families() {
		if f.Name == name {
			return f, true
		}
	}
	return Family{}, false
}

// For is what applies to a token: its row of the table, or the one that the configuration names, with what the configuration overrides.
func For(s Seen, o Override) Quirks {
	var f Family
	switch o.Family {
	case "":
		f, _ = Find(s)
	case NoFamily:
	default:
		f, _ = ByName(o.Family)
	}
	q := f.Quirks
	q.Family = f.Name
	o.apply(&q)
	return q
}

// Applied names what applies, one text each, as reports and logs show it; empty for a token that follows the standard.
func (q Quirks) Applied() []string {
	out := []string{}
	add := func(given bool, text string) {
		if given {
			out = append(out, text)
		}
	}
	for _, m := range q.AESKeyWrap {
		out = append(out, "aes_key_wrap "+m.text()+" "+m.Name)
	}
	add(q.PIN != "" && q.PIN != PINAny, "pin_format "+string(q.PIN))
	add(q.ProtectedPath, "protected_authentication_path")
	add(q.TokenPublicKey, "public_key_as_token_object")
	for _, a := range q.PublicKeyAttributes {
		out = append(out, "public_key_attributes "+a.text())
	}
	add(q.MaxSessions > 0, fmt.Sprintf("max_sessions %d", q.MaxSessions))
	add(q.ReadOnlySessions, "read_only_sessions")
	add(q.ReadWriteNeeded, "read-write sessions needed")
	add(q.NoLengthQuery, "no_length_query")
	add(q.Network, "network")
	add(q.CannotWrap != "", "cannot wrap")
	return out
}

// Warning is what a person has to be told at the start; empty: nothing.
func (q Quirks) Warning() string {
	if q.CannotWrap == "" {
		return ""
	}
	f, _ := ByName(q.Family)
	return fmt.Sprintf("%s cannot wrap keys for AWS KMS: %s; hsmbridge probe shows what this token does (quirks.family: none, if it is another token)", cmp.Or(f.Title, "this token"), q.CannotWrap)
}
