package hsm

import (
	"encoding/binary"
	"fmt"

	"github.com/miekg/pkcs11"
)

// attribute reads one attribute. Attributes are read one at a time: a token that does not know one of several
// answers for none of them. The value is nil when the token does not give it.
func (t *Token) attribute(s pkcs11.SessionHandle, o pkcs11.ObjectHandle, kind uint) ([]byte, error) {
	v, err := t.module.lib.getAttribute(uint(s), uint(o), kind)
	switch {
	case err == nil:
		return v, nil
	case isCode(err, pkcs11.CKR_ATTRIBUTE_TYPE_INVALID), isCode(err, pkcs11.CKR_ATTRIBUTE_SENSITIVE), isCode(err, pkcs11.CKR_ATTRIBUTE_VALUE_INVALID):
		return nil, nil
	}
	return nil, fault("C_GetAttributeValue", err, about{what: t.name})
}

// reader reads attributes of one object and keeps the first error.
type reader struct {
	t   *Token
	s   pkcs11.SessionHandle
	o   pkcs11.ObjectHandle
	err error
}

func (r *reader) bytes(kind uint) []byte {
	if r.err != nil {
		return nil
	}
	v, err := r.t.attribute(r.s, r.o, kind)
	r.err = err
	return v
}

func (r *reader) text(kind uint) string { return string(r.bytes(kind)) }

// boolean is a CK_BBOOL; false when the token does not give it.
func (r *reader) boolean(kind uint) bool {
	v := r.bytes(kind)
	return len(v) == 1 && v[0] != 0
}

// ulong is a CK_ULONG; -1 when the token does not give it (or gives CK_UNAVAILABLE_INFORMATION).
func (r *reader) ulong(kind uint) int { return ulongOf(r.bytes(kind)) }

func ulongOf(v []byte) int {
	if len(v) == 8 {
		return int(binary.NativeEndian.Uint64(v)) //nolint:gosec // all ones, "unavailable", becomes -1
	}
	return -1
}

// mostFound is more objects than any token holds: a search that goes on after them would never end.
const mostFound = 1 << 20

// find lists the objects that the template matches, at most limit of them (0: all).
func (t *Token) find(s pkcs11.SessionHandle, template []*pkcs11.Attribute, limit int) (found []pkcs11.ObjectHandle, err error) {
	if err := t.module.ctx.FindObjectsInit(s, template); err != nil {
		return nil, fault("C_FindObjectsInit", err, about{what: t.name})
	}
	defer func() {
		if ferr := t.module.ctx.FindObjectsFinal(s); ferr != nil && err == nil {
			err = fault("C_FindObjectsFinal", ferr, about{what: t.name})
		}
	}()
	for limit == 0 || len(found) < limit {
		// Some tokens answer with fewer than are left: only an empty answer ends the list.
		some, err := t.module.lib.findSome(uint(s))
		if err != nil {
			return nil, fault("C_FindObjects", err, about{what: t.name})
		}
		if len(some) == 0 {
			break
		}
		if found = append(found, some...); len(found) > mostFound {
			return nil, fault("C_FindObjects", fmt.Errorf("a search did not end after %d objects", mostFound), about{what: t.name})
		}
	}
	return found, nil
}
