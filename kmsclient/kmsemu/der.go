package kmsemu

import (
	"encoding/asn1"
	"slices"
)

// elements are the members of a DER SEQUENCE that fills der.
func elements(der []byte) ([]asn1.RawValue, error) {
	var outer asn1.RawValue
	rest, err := asn1.Unmarshal(der, &outer)
	switch {
	case err != nil:
		return nil, err
	case len(rest) > 0 || !is(outer, asn1.ClassUniversal, asn1.TagSequence, true):
		return nil, errMaterial
	}
	var out []asn1.RawValue
	for rest = outer.Bytes; len(rest) > 0; {
		var e asn1.RawValue
		if rest, err = asn1.Unmarshal(rest, &e); err != nil {
			return nil, err
		}
		out = append(out, e)
	}
	return out, nil
}

func is(v asn1.RawValue, class, tag int, compound bool) bool {
	return v.Class == class && v.Tag == tag && v.IsCompound == compound
}

// isInteger says whether v is the INTEGER n, which is 0 to 127.
func isInteger(v asn1.RawValue, n byte) bool {
	return is(v, asn1.ClassUniversal, asn1.TagInteger, false) && len(v.Bytes) == 1 && v.Bytes[0] == n
}

// sequence is a DER SEQUENCE of members in DER, shorter than 128 bytes together.
func sequence(members ...[]byte) []byte {
	body := slices.Concat(members...)
	return append([]byte{asn1.TagSequence | 0x20, byte(len(body))}, body...) //nolint:gosec // algorithm identifiers are short
}
