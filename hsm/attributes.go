package hsm

import (
	"encoding/binary"
	"fmt"

	"github.com/miekg/pkcs11"
)

// attribute reads one attribute. The value is nil when the token does not give it.
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
	t    *Token
	s    pkcs11.SessionHandle
	o    pkcs11.ObjectHandle
	have map[uint][]byte // what fetch has read
	err  error
}

// fetch reads several attributes in one call: to an HSM on the network each call is a journey. It is a matter of time only. A token that does
// not know one of them, or that finds the room for one wrong, may answer for none: then nothing was read here, each attribute is asked
// for by itself when it is needed, and of objects of this kind (a CKK) the token is not asked for several again.
func (r *reader) fetch(kind int, attributes ...uint) {
	list := attributeList{kind: kind, n: len(attributes)}
	if r.err != nil || !r.t.answersSeveral(list) {
		return
	}
	rooms := make([]int, len(attributes))
	for i, a := range attributes {
		rooms[i] = roomOf(a)
	}
	values, err := r.t.module.lib.getAttributes(uint(r.s), uint(r.o), attributes, rooms)
	if err == nil {
		r.have = make(map[uint][]byte, len(attributes))
		for i, a := range attributes {
			r.have[a] = values[i]
		}
		return
	}
	for _, code := range []uint{
		pkcs11.CKR_ATTRIBUTE_TYPE_INVALID, pkcs11.CKR_ATTRIBUTE_SENSITIVE, pkcs11.CKR_ATTRIBUTE_VALUE_INVALID, pkcs11.CKR_BUFFER_TOO_SMALL, pkcs11.CKR_ARGUMENTS_BAD,
	} {
		if isCode(err, code) {
			r.t.answersNone(list)
			return
		}
	}
	r.err = fault("C_GetAttributeValue", err, about{what: r.t.name})
}

// attributeList names a list of attributes that is read at once: those of one kind of object, of a certain number.
type attributeList struct{ kind, n int }

func (t *Token) answersSeveral(l attributeList) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return !t.singly[l]
}

func (t *Token) answersNone(l attributeList) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.singly == nil {
		t.singly = map[attributeList]bool{}
	}
	t.singly[l] = true
}

// roomOf is how many bytes an attribute's value may have when it is read together with others.
func roomOf(attribute uint) int {
	const ulong, flag = 8, 1
	switch attribute {
	case pkcs11.CKA_KEY_TYPE, pkcs11.CKA_VALUE_LEN:
		return ulong
	case pkcs11.CKA_LABEL, pkcs11.CKA_ID, pkcs11.CKA_MODULUS, pkcs11.CKA_EC_PARAMS:
		return ampleRoom
	default:
		return flag
	}
}

func (r *reader) bytes(kind uint) []byte {
	if r.err != nil {
		return nil
	}
	if v, ok := r.have[kind]; ok {
		return v
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
