package pkcs11uri

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// attribute is one attribute of a URI: its name and how its decoded value is read from and written to the [URI].
type attribute struct {
	name   string
	query  bool // it stands in the query, not in the path
	binary bool // its value is bytes, not UTF-8
	get    func() string
	set    func(string) error
}

// attributes lists the path attributes of RFC 7512, 2.3, in its order.
func (u *URI) attributes() []attribute {
	return []attribute{
		text("token", &u.Token),
		text("manufacturer", &u.Manufacturer),
		text("serial", &u.Serial),
		text("model", &u.Model),
		text("library-manufacturer", &u.LibraryManufacturer),
		{name: "library-version", get: func() string { return u.LibraryVersion }, set: u.setLibraryVersion},
		text("library-description", &u.LibraryDescription),
		text("object", &u.Object),
		{name: "type", get: func() string { return u.Type }, set: u.setType},
		{name: "id", binary: true, get: func() string { return string(u.ID) }, set: func(s string) error { u.ID = []byte(s); return nil }},
		text("slot-description", &u.SlotDescription),
		text("slot-manufacturer", &u.SlotManufacturer),
		{name: "slot-id", get: u.slotID, set: u.setSlotID},
	}
}

// queryAttributes lists the query attributes of RFC 7512, 2.3, without those that concern a PIN.
func (u *URI) queryAttributes() []attribute {
	return []attribute{
		file("module-name", &u.ModuleName),
		file("module-path", &u.ModulePath),
	}
}

func text(name string, field *string) attribute {
	return attribute{
		name: name,
		get:  func() string { return *field },
		set:  func(s string) error { *field = s; return nil },
	}
}

func file(name string, field *string) attribute {
	a := text(name, field)
	a.query = true
	a.set = func(s string) error {
		if strings.ContainsRune(s, 0) {
			return errors.New("a file name cannot hold a zero byte")
		}
		*field = s
		return nil
	}
	return a
}

func (u *URI) setType(s string) error {
	types := []string{TypePublic, TypePrivate, TypeCert, TypeSecretKey, TypeData}
	if !slices.Contains(types, s) {
		hint := ""
		if s == "secret" {
			hint = ": did you mean secret-key?"
		}
		return fmt.Errorf("%q is none of %s%s", s, strings.Join(types, ", "), hint)
	}
	u.Type = s
	return nil
}

// setLibraryVersion takes "major" and "major.minor", each a CK_BYTE of CK_VERSION.
func (u *URI) setLibraryVersion(s string) error {
	major, minor, ok := strings.Cut(s, ".")
	if !ok {
		minor = "0"
	}
	a, errMajor := strconv.ParseUint(major, 10, 8)
	b, errMinor := strconv.ParseUint(minor, 10, 8)
	if errMajor != nil || errMinor != nil {
		return fmt.Errorf("%q is not a version: write MAJOR or MAJOR.MINOR, each from 0 to 255", s)
	}
	u.LibraryVersion = fmt.Sprintf("%d.%d", a, b)
	return nil
}

func (u *URI) slotID() string {
	if u.SlotID == nil {
		return ""
	}
	return strconv.FormatUint(uint64(*u.SlotID), 10)
}

func (u *URI) setSlotID(s string) error {
	n, err := strconv.ParseUint(s, 10, strconv.IntSize)
	if err != nil {
		return fmt.Errorf("%q is not a slot number: write it in decimal digits", s)
	}
	id := uint(n)
	u.SlotID = &id
	return nil
}
