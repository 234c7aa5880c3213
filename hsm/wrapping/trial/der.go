package trial

import (
	"errors"
	"fmt"
	"math/big"
)

// The identifier octets (X.690, 8.1.2) that occur in private keys.
const (
	tagInteger     = 0x02
	tagBitString   = 0x03
	tagOctetString = 0x04
	tagNull        = 0x05
	tagOID         = 0x06
	tagSequence    = 0x30
	tagContext0    = 0xA0 // [0], constructed
	tagContext1    = 0xA1 // [1], constructed: explicit
	tagPrimitive1  = 0x81 // [1], primitive: implicit BIT STRING
)

// der reads DER (X.690, section 10) from its front. It exists beside encoding/asn1 because that ignores
// elements which follow the last known one inside a SEQUENCE, and a strict reader must not.
//
// The first mistake is kept in err, and everything read after it is empty: a caller reads a whole structure
// and asks once, with end.
type der struct {
	rest []byte
	err  error
}

// peek tells whether the next element has the tag.
func (d *der) peek(tag byte) bool { return d.err == nil && len(d.rest) > 0 && d.rest[0] == tag }

// element reads one element with the tag and returns its content. what names it in errors.
func (d *der) element(tag byte, what string) []byte {
	if d.err != nil {
		return nil
	}
	content, rest, err := splitElement(d.rest, tag)
	if err != nil {
		d.err = fmt.Errorf("%s: %w", what, err)
		return nil
	}
	d.rest = rest
	return content
}

// sequence reads a constructed element and returns a reader of its content.
func (d *der) sequence(tag byte, what string) *der {
	content := d.element(tag, what)
	return &der{rest: content, err: d.err}
}

// integer reads an INTEGER that is not negative.
func (d *der) integer(what string) *big.Int {
	b := d.element(tagInteger, what)
	switch {
	case d.err != nil:
	case len(b) == 0:
		d.err = fmt.Errorf("%s: empty INTEGER", what)
	case b[0] >= 0x80:
		d.err = fmt.Errorf("%s: negative INTEGER", what)
	case len(b) > 1 && b[0] == 0 && b[1] < 0x80:
		d.err = fmt.Errorf("%s: INTEGER with superfluous leading zeros", what)
	}
	return new(big.Int).SetBytes(b)
}

// bits reads a BIT STRING of whole bytes.
func (d *der) bits(tag byte, what string) []byte {
	b := d.element(tag, what)
	if d.err != nil {
		return nil
	}
	if len(b) == 0 || b[0] != 0 {
		d.err = fmt.Errorf("%s: BIT STRING not of whole bytes", what)
		return nil
	}
	return b[1:]
}

// end says what was wrong with the structure, bytes after its last element included.
func (d *der) end(what string) error {
	if d.err == nil && len(d.rest) > 0 {
		return fmt.Errorf("%s: %d bytes after its last element", what, len(d.rest))
	}
	return d.err
}

var errTruncated = errors.New("ends before its length says")

// splitElement splits b after its first element, which must have the tag and a definite, minimal length.
func splitElement(b []byte, tag byte) (content, rest []byte, err error) {
	if len(b) < 2 {
		return nil, nil, errTruncated
	}
	if b[0] != tag {
		return nil, nil, fmt.Errorf("tag %#02x where %#02x belongs", b[0], tag)
	}
	length, b := int(b[1]), b[2:]
	if length >= 0x80 {
		octets := length - 0x80
		// Two length octets are 64 KiB, more than any key here.
		if octets < 1 || octets > 2 {
			return nil, nil, fmt.Errorf("length octet %#02x: not DER, or too long for a key", length)
		}
		if len(b) < octets {
			return nil, nil, errTruncated
		}
		length = 0
		for _, x := range b[:octets] {
			length = length<<8 | int(x)
		}
		if length < 0x80 || length>>(8*(octets-1)) == 0 {
			return nil, nil, errors.New("length not in its shortest form")
		}
		b = b[octets:]
	}
	if len(b) < length {
		return nil, nil, errTruncated
	}
	return b[:length], b[length:], nil
}
