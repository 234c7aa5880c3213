package wire

import (
	"encoding/binary"
	"fmt"
	"math"
)

// Message is the payload of a frame.
type Message interface{ fields(c *coder) }

// coder writes fields into b, or reads them from it: each message names its fields once, for both.
type coder struct {
	b       []byte
	reading bool
	err     error
}

// encode appends m to b.
func encode(b []byte, m Message) ([]byte, error) {
	c := coder{b: b}
	m.fields(&c)
	return c.b, c.err
}

// Encode gives the payload of a message. The error is that a field is longer than it may be.
func Encode(m Message) ([]byte, error) { return encode(nil, m) }

// Decode reads a payload into m, all of it and nothing else. The error wraps [ErrMalformed].
func Decode(b []byte, m Message) error {
	c := coder{b: b, reading: true}
	m.fields(&c)
	if c.err == nil && len(c.b) > 0 {
		c.fail("%d bytes too many", len(c.b))
	}
	return c.err
}

func (c *coder) fail(format string, args ...any) {
	if c.err == nil {
		c.err = fmt.Errorf("%w: %s", ErrMalformed, fmt.Sprintf(format, args...))
	}
}

// take gives the next n bytes that were received; nil after an error.
func (c *coder) take(n int) []byte {
	switch {
	case c.err != nil:
		return nil
	case len(c.b) < n:
		c.fail("%d bytes are missing", n-len(c.b))
		return nil
	}
	b := c.b[:n]
	c.b = c.b[n:]
	return b
}

// number is eight bytes, big endian.
func (c *coder) number(v *uint64) {
	if !c.reading {
		c.b = binary.BigEndian.AppendUint64(c.b, *v)
	} else if b := c.take(8); b != nil {
		*v = binary.BigEndian.Uint64(b)
	}
}

// handle is a CK_ULONG.
func (c *coder) handle(v *uint) {
	n := uint64(*v)
	c.number(&n)
	if n > math.MaxUint {
		c.fail("the number %d", n)
	}
	*v = uint(n)
}

// count is a number of things: bits, bytes, sessions.
func (c *coder) count(v *int) {
	const most = 1_000_000
	n := uint64(*v) //nolint:gosec // a negative one is refused below
	if c.reading {
		c.number(&n)
	}
	switch {
	case n > most:
		c.fail("the count %d, more than %d", n, most)
	case c.reading:
		*v = int(n)
	default:
		c.number(&n)
	}
}

// flag is one byte, 0 or 1.
func (c *coder) flag(v *bool) {
	if !c.reading {
		b := byte(0)
		if *v {
			b = 1
		}
		c.b = append(c.b, b)
	} else if b := c.take(1); b != nil {
		if b[0] > 1 {
			c.fail("the flag %d", b[0])
		}
		*v = b[0] == 1
	}
}

// bytes is a length of four bytes and so many bytes; none is nil.
func (c *coder) bytes(v *[]byte, most int) {
	n := c.length(len(*v), most)
	if !c.reading {
		if c.err == nil {
			c.b = append(c.b, *v...)
		}
		return
	}
	*v = nil
	if b := c.take(n); len(b) > 0 {
		*v = append([]byte(nil), b...)
	}
}

// text is like bytes. It need not be UTF-8: labels of objects are what they are.
func text[T ~string](c *coder, v *T, most int) {
	n := c.length(len(*v), most)
	if !c.reading {
		if c.err == nil {
			c.b = append(c.b, *v...)
		}
		return
	}
	*v = T(c.take(n))
}

// list is a length of four bytes and so many elements; none is nil.
func list[T any](c *coder, v *[]T, most int, each func(*T)) {
	n := c.length(len(*v), most)
	if !c.reading {
		for i := range *v {
			each(&(*v)[i])
		}
		return
	}
	*v = nil
	for range n {
		if c.err != nil {
			return
		}
		var one T
		each(&one)
		*v = append(*v, one)
	}
}

// length writes n, or reads one; it is at most most.
func (c *coder) length(n, most int) int {
	if !c.reading {
		c.b = binary.BigEndian.AppendUint32(c.b, uint32(n)) //nolint:gosec // checked here
	} else if b := c.take(4); b != nil {
		n = int(binary.BigEndian.Uint32(b))
	} else {
		return 0
	}
	if n > most {
		c.fail("a length of %d, more than %d", n, most)
		return 0
	}
	return n
}
