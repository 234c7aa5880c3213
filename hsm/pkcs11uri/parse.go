package pkcs11uri

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Error says what is wrong with a PKCS #11 URI, and where. It never shows the value of an attribute that holds a PIN.
type Error struct {
	Offset int    // in bytes from the start of the URI; its length where something is missing at the end
	Reason string // what is wrong and what to write instead
}

// Error gives the reason and the offset in one line.
func (e *Error) Error() string {
	return fmt.Sprintf("PKCS #11 URI, byte %d: %s", e.Offset, e.Reason)
}

func errorf(offset int, format string, args ...any) *Error {
	return &Error{Offset: offset, Reason: fmt.Sprintf(format, args...)}
}

// Parse reads a PKCS #11 URI. The error is an [*Error].
func Parse(s string) (URI, error) {
	var u URI
	if len(s) < len(scheme) || !strings.EqualFold(s[:len(scheme)], scheme) {
		return URI{}, errorf(0, "it has to start with %q", scheme)
	}
	path, query, hasQuery := strings.Cut(s[len(scheme):], "?")
	if err := parseAttributes(path, ';', len(scheme), u.attributes(), u.queryAttributes()); err != nil {
		return URI{}, err
	}
	if hasQuery {
		if err := parseAttributes(query, '&', len(scheme)+len(path)+1, u.queryAttributes(), u.attributes()); err != nil {
			return URI{}, err
		}
	}
	return u, nil
}

// parseAttributes reads one component of the URI, which starts at offset: the known attributes between separators.
// The attributes of the other component are there for advice only.
func parseAttributes(component string, separator byte, offset int, known, other []attribute) error {
	if component == "" {
		return nil
	}
	seen := make(map[string]bool)
	for part := range strings.SplitSeq(component, string(separator)) {
		name, value, ok := strings.Cut(part, "=")
		switch {
		case part == "":
			return errorf(offset, "an attribute is missing beside %q", separator)
		case !ok:
			return errorf(offset, "%q has no value: write %s=VALUE", name, name)
		}
		a, err := find(name, offset, known, other)
		if err != nil {
			return err
		}
		if seen[name] {
			return errorf(offset, "%s is given twice", name)
		}
		seen[name] = true
		at := offset + len(name) + 1
		if value == "" {
			return errorf(at, "%s has an empty value: leave the attribute out to match any", name)
		}
		decoded, err := decode(value, at, a)
		if err != nil {
			return err
		}
		if err := a.set(decoded); err != nil {
			return errorf(at, "%s: %v", name, err)
		}
		offset += len(part) + 1
	}
	return nil
}

// find looks an attribute up by name, which starts at offset.
func find(name string, offset int, known, other []attribute) (attribute, error) {
	named := func(a attribute) bool { return a.name == name }
	if i := slices.IndexFunc(known, named); i >= 0 {
		return known[i], nil
	}
	if reason := refused(name); reason != "" {
		return attribute{}, errorf(offset, "%s", reason)
	}
	if i := slices.IndexFunc(other, named); i >= 0 {
		if other[i].query {
			return attribute{}, errorf(offset, "%s belongs into the query: write it after a '?'", name)
		}
		return attribute{}, errorf(offset, "%s belongs into the path: write it before the '?'", name)
	}
	if strings.HasPrefix(name, "x-") {
		return attribute{}, errorf(offset, "%q is a vendor's attribute, which hsmbridge cannot match: leave it out", name)
	}
	for _, a := range slices.Concat(known, other) {
		if near(name, a.name) {
			return attribute{}, errorf(offset, "there is no attribute %q: did you mean %s?", name, a.name)
		}
	}
	return attribute{}, errorf(offset, "there is no attribute %q: RFC 7512 has %s", name, names(known))
}

// refused says why an attribute is refused, and what to use instead; empty for any other name.
func refused(name string) string {
	const instead = ": use pin_file, pin_command, pin_prompt or pin_credential of the token"
	switch name = strings.ToLower(name); {
	case name == "label":
		return `there is no attribute "label": write token=LABEL for a token, object=LABEL for an object`
	case name == "pin-source":
		return "pin-source is refused, because where a PIN comes from is not part of a name" + instead
	case strings.HasPrefix(name, "pin"):
		return name + " is refused, because a PIN never stands in a configuration" + instead
	}
	return ""
}

func names(known []attribute) string {
	list := make([]string, len(known))
	for i, a := range known {
		list[i] = a.name
	}
	return strings.Join(list, ", ")
}

// near says whether a name is a slip of the finger away from a known one: they share a beginning or an end, and without it
// at most two characters are left of either. Case, and '_' for '-', do not count.
func near(name, known string) bool {
	a, b := strings.ReplaceAll(strings.ToLower(name), "_", "-"), known
	for a != "" && b != "" && a[0] == b[0] {
		a, b = a[1:], b[1:]
	}
	for a != "" && b != "" && a[len(a)-1] == b[len(b)-1] {
		a, b = a[:len(a)-1], b[:len(b)-1]
	}
	return len(a) <= 2 && len(b) <= 2 && len(b) < len(known)
}

// decode resolves the percent-encoding of a value, which starts at offset, and checks its characters.
func decode(value string, offset int, a attribute) (string, error) {
	var b strings.Builder
	for i := 0; i < len(value); i++ {
		c := value[i]
		switch {
		case c == '%':
			octet, err := strconv.ParseUint(value[i+1:min(i+3, len(value))], 16, 8)
			if err != nil || i+2 >= len(value) {
				return "", errorf(offset+i, "'%%' has to be followed by two hexadecimal digits; the character itself is %%25")
			}
			b.WriteByte(byte(octet))
			i += 2
		case allowed(c, a.query):
			b.WriteByte(c)
		default:
			r, size := utf8.DecodeRuneInString(value[i:])
			if r == utf8.RuneError && size == 1 {
				return "", errorf(offset+i, "byte 0x%02X may not stand here: write %%%02X", c, c)
			}
			return "", errorf(offset+i, "%q may not stand here: write %s", r, percent(value[i:i+size]))
		}
	}
	decoded := b.String()
	if !a.binary && !utf8.ValidString(decoded) {
		return "", errorf(offset, "%s is not UTF-8 once decoded; only id may hold any bytes", a.name)
	}
	return decoded, nil
}

// allowed says whether c stands for itself in a value: RFC 3986's unreserved characters and what RFC 7512
// calls pk11-path-res-avail and pk11-query-res-avail.
func allowed(c byte, query bool) bool {
	switch {
	case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		return true
	case strings.IndexByte("-._~:[]@!$'()*+,=", c) >= 0:
		return true
	case query:
		return strings.IndexByte("/?|", c) >= 0
	}
	return c == '&'
}

// encode percent-encodes the characters of a value that need it, all of them in a binary one.
func encode(value string, a attribute) string {
	if a.binary {
		return percent(value)
	}
	var b strings.Builder
	for i := range len(value) {
		if allowed(value[i], a.query) {
			b.WriteByte(value[i])
		} else {
			b.WriteString(percent(value[i : i+1]))
		}
	}
	return b.String()
}

func percent(s string) string {
	var b strings.Builder
	for i := range len(s) {
		fmt.Fprintf(&b, "%%%02X", s[i])
	}
	return b.String()
}
