// Package pkcs11uri reads and writes PKCS #11 URIs (RFC 7512): the names by which a configuration chooses a
// token or an object in it.
//
// It is stricter than the RFC where being lenient could choose another key than the one meant:
//   - an attribute that is not in RFC 7512, a vendor's own included, is refused in the path and in the query. Skipping one would
//     match more than was asked for;
//   - an attribute given twice is refused, and so is one with an empty value: it would look like one not given;
//   - pin-value and pin-source are refused: a PIN never stands in a configuration;
//   - text has to be UTF-8. Only "id" is bytes.
//
// It is pure: no token, no file.
package pkcs11uri

import (
	"bytes"
	"fmt"
	"strings"
)

// scheme starts every PKCS #11 URI. RFC 3986, 3.1: letters of either case.
const scheme = "pkcs11:"

// The values of [URI.Type] (RFC 7512, 2.3) and the CKA_CLASS that each stands for.
const (
	TypePublic    = "public"     // CKO_PUBLIC_KEY
	TypePrivate   = "private"    // CKO_PRIVATE_KEY
	TypeCert      = "cert"       // CKO_CERTIFICATE
	TypeSecretKey = "secret-key" // CKO_SECRET_KEY
	TypeData      = "data"       // CKO_DATA
)

// URI is a parsed PKCS #11 URI. Values are decoded. The zero value of a field means that the attribute was
// not given and matches anything; the zero URI is "pkcs11:".
//
// A URI made by hand round-trips through [URI.String] and [Parse] when its texts are UTF-8, Type and LibraryVersion have
// the form that Parse gives, and ID is nil rather than empty.
type URI struct {
	Token        string // token: CK_TOKEN_INFO.label
	Manufacturer string // manufacturer: CK_TOKEN_INFO.manufacturerID
	Serial       string // serial: CK_TOKEN_INFO.serialNumber
	Model        string // model: CK_TOKEN_INFO.model

	LibraryManufacturer string // library-manufacturer: CK_INFO.manufacturerID
	LibraryDescription  string // library-description: CK_INFO.libraryDescription
	LibraryVersion      string // library-version: CK_INFO.libraryVersion as "major.minor"; "3" is read as "3.0"

	Object string // object: CKA_LABEL
	Type   string // type: CKA_CLASS, one of the Type constants
	ID     []byte // id: CKA_ID, any bytes

	SlotDescription  string // slot-description: CK_SLOT_INFO.slotDescription
	SlotManufacturer string // slot-manufacturer: CK_SLOT_INFO.manufacturerID
	SlotID           *uint  // slot-id: CK_SLOT_ID

	ModuleName string // module-name: the module's file name without path and suffix
	ModulePath string // module-path: the module's file, or a folder that holds it
}

// String is the URI in its canonical form: attributes in the order of RFC 7512's section 2.3, percent-encoding only
// where it is needed, with upper-case digits, and all of the id percent-encoded as the RFC advises.
func (u URI) String() string {
	var path, query []string
	for _, a := range u.attributes() {
		if value := a.get(); value != "" {
			path = append(path, a.name+"="+encode(value, a))
		}
	}
	for _, a := range u.queryAttributes() {
		if value := a.get(); value != "" {
			query = append(query, a.name+"="+encode(value, a))
		}
	}
	s := scheme + strings.Join(path, ";")
	if len(query) > 0 {
		s += "?" + strings.Join(query, "&")
	}
	return s
}

// Equal says whether both URIs have the same attributes.
func (u URI) Equal(v URI) bool { return u.String() == v.String() }

// MatchesToken says whether a token with these CK_TOKEN_INFO values is one that the URI names. PKCS #11 pads its strings
// with blanks: pass them trimmed. Slot and library attributes are not looked at: see [URI.MatchesSlot] and [URI.MatchesLibrary].
func (u URI) MatchesToken(label, manufacturer, model, serial string) bool {
	return matches(u.Token, label) && matches(u.Manufacturer, manufacturer) && matches(u.Model, model) && matches(u.Serial, serial)
}

// MatchesSlot says whether a slot with this CK_SLOT_ID and these CK_SLOT_INFO values (trimmed) is one that the URI names.
func (u URI) MatchesSlot(id uint, description, manufacturer string) bool {
	return (u.SlotID == nil || *u.SlotID == id) && matches(u.SlotDescription, description) && matches(u.SlotManufacturer, manufacturer)
}

// MatchesLibrary says whether a module with these CK_INFO values (trimmed) is one that the URI names. The version
// is CK_INFO.libraryVersion.
func (u URI) MatchesLibrary(manufacturer, description string, major, minor byte) bool {
	return matches(u.LibraryManufacturer, manufacturer) && matches(u.LibraryDescription, description) &&
		matches(u.LibraryVersion, fmt.Sprintf("%d.%d", major, minor))
}

// MatchesObject says whether an object with this CKA_LABEL, CKA_ID and class (one of the Type constants)
// is one that the URI names.
func (u URI) MatchesObject(label string, id []byte, class string) bool {
	return matches(u.Object, label) && matches(u.Type, class) && (len(u.ID) == 0 || bytes.Equal(u.ID, id))
}

// matches compares one attribute: one that is not given matches anything (RFC 7512, 2.5).
func matches(wanted, actual string) bool { return wanted == "" || wanted == actual }

// HasTokenAttributes says whether the URI chooses among tokens: by token, slot or library.
func (u URI) HasTokenAttributes() bool {
	return u.Token+u.Manufacturer+u.Serial+u.Model+u.LibraryManufacturer+u.LibraryDescription+u.LibraryVersion+
		u.SlotDescription+u.SlotManufacturer != "" || u.SlotID != nil
}

// HasObjectAttributes says whether the URI chooses among objects: by object, type or id.
func (u URI) HasObjectAttributes() bool { return u.Object+u.Type != "" || len(u.ID) > 0 }

// HasModuleAttributes says whether the URI names a module: by module-name or module-path.
func (u URI) HasModuleAttributes() bool { return u.ModuleName+u.ModulePath != "" }

// MarshalText is [URI.String].
func (u URI) MarshalText() ([]byte, error) { return []byte(u.String()), nil }

// UnmarshalText is [Parse].
func (u *URI) UnmarshalText(text []byte) error {
	parsed, err := Parse(string(text))
	if err != nil {
		return err
	}
	*u = parsed
	return nil
}
