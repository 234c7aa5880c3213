package hsm

/*
#cgo noescape hb_get
#cgo nocallback hb_get
#cgo noescape hb_get_all
#cgo nocallback hb_get_all
#cgo noescape hb_out
#cgo nocallback hb_out
#cgo noescape hb_find
#cgo nocallback hb_find

typedef unsigned long ck_ulong;

struct attribute { ck_ulong type; void *value; ck_ulong length; };
struct reply { ck_ulong rv, length; };

// hb_get asks for one attribute.
static struct reply hb_get(void *f, ck_ulong session, ck_ulong object, ck_ulong type, void *out, ck_ulong size) {
	struct attribute a = { type, out, size };
	ck_ulong rv = ((ck_ulong (*)(ck_ulong, ck_ulong, struct attribute *, ck_ulong))f)(session, object, &a, 1);
	return (struct reply){ rv, a.length };
}

enum { MOST_ATTRIBUTES = 16 };

// hb_get_all asks for n attributes at once. The value of each goes into its part of values, the length of which is in lengths, and so is the answer's.
static ck_ulong hb_get_all(void *f, ck_ulong session, ck_ulong object, ck_ulong *types, ck_ulong *lengths, ck_ulong n, unsigned char *values) {
	struct attribute a[MOST_ATTRIBUTES];
	if (n > MOST_ATTRIBUTES) return 0x7; // CKR_ARGUMENTS_BAD
	for (ck_ulong i = 0; i < n; values += lengths[i++])
		a[i] = (struct attribute){ types[i], values, lengths[i] };
	ck_ulong rv = ((ck_ulong (*)(ck_ulong, ck_ulong, struct attribute *, ck_ulong))f)(session, object, a, n);
	for (ck_ulong i = 0; i < n; i++)
		lengths[i] = a[i].length;
	return rv;
}

// hb_out calls C_Sign or C_Encrypt, which look alike.
static struct reply hb_out(void *f, ck_ulong session, void *in, ck_ulong length, void *out, ck_ulong size) {
	struct reply r = { 0, size };
	r.rv = ((ck_ulong (*)(ck_ulong, void *, ck_ulong, void *, ck_ulong *))f)(session, in, length, out, &r.length);
	return r;
}

static struct reply hb_find(void *f, ck_ulong session, ck_ulong *out, ck_ulong most) {
	struct reply r = { 0, 0 };
	r.rv = ((ck_ulong (*)(ck_ulong, ck_ulong *, ck_ulong, ck_ulong *))f)(session, out, most, &r.length);
	return r;
}
*/
import "C"

import (
	"fmt"
	"unsafe"

	"github.com/miekg/pkcs11"
)

// Places in CK_FUNCTION_LIST (PKCS#11 v2.40, section 3.6).
const (
	placeGetAttributeValue = 24
	placeFindObjects       = 27
	placeEncrypt           = 30
	placeSign              = 43
)

// These calls are our own because a module's word about a length is not to be believed: miekg/pkcs11 asks for the length first, makes room
// for it, and reads as many bytes as the second answer says. A module that says too little fails there, one that says too much has
// the process read memory that is not its own. Here a call has ample room, a length beyond it is an error, and what fits costs one call.
const (
	ampleRoom = 1024    // the modulus of an RSA-8192 key, the longest signature
	mostRoom  = 1 << 20 // that a module gets if it asks for more
)

// getAttribute is the value of one attribute.
func (l *library) getAttribute(session, object, kind uint) ([]byte, error) {
	f := l.list.f[placeGetAttributeValue]
	out := make([]byte, ampleRoom)
	ask := func(p unsafe.Pointer, size int) C.struct_reply {
		return C.hb_get(f, C.ck_ulong(session), C.ck_ulong(object), C.ck_ulong(kind), p, C.ck_ulong(size))
	}
	r := ask(unsafe.Pointer(&out[0]), len(out))
	if r.rv == pkcs11.CKR_BUFFER_TOO_SMALL { // NSS 3.87 says so of a CK_ULONG in a token unless the room is that of a CK_ULONG
		if r = ask(nil, 0); r.rv == 0 {
			if r.length > mostRoom {
				return nil, badAnswer("C_GetAttributeValue", r.length, mostRoom)
			}
			out = make([]byte, max(r.length, 1))
			r = ask(unsafe.Pointer(&out[0]), int(r.length))
		}
	}
	if r.rv == 0 && r.length == ^C.ck_ulong(0) {
		return nil, nil // CK_UNAVAILABLE_INFORMATION
	}
	return filled("C_GetAttributeValue", r, out)
}

// getAttributes asks for the values of several attributes in one call; rooms are the most bytes that each may have. A value is nil where
// the token says that it is not available. An error is of the whole call.
func (l *library) getAttributes(session, object uint, kinds []uint, rooms []int) ([][]byte, error) {
	var types, lengths [C.MOST_ATTRIBUTES]C.ck_ulong
	if len(kinds) == 0 || len(kinds) > len(types) {
		return nil, pkcs11.Error(pkcs11.CKR_ARGUMENTS_BAD)
	}
	all := 0
	for i, kind := range kinds {
		types[i], lengths[i] = C.ck_ulong(kind), C.ck_ulong(rooms[i])
		all += rooms[i]
	}
	out := make([]byte, all)
	rv := C.hb_get_all(l.list.f[placeGetAttributeValue], C.ck_ulong(session), C.ck_ulong(object), &types[0], &lengths[0], C.ck_ulong(len(kinds)), (*C.uchar)(unsafe.Pointer(&out[0])))
	if rv != 0 {
		return nil, ckError(rv)
	}
	values := make([][]byte, len(kinds))
	for i, room := range rooms {
		value := out[:room:room]
		out = out[room:]
		switch n := lengths[i]; {
		case n == ^C.ck_ulong(0): // CK_UNAVAILABLE_INFORMATION
		case n > C.ck_ulong(room):
			return nil, badAnswer("C_GetAttributeValue", n, room)
		default:
			values[i] = value[:n:n]
		}
	}
	return values, nil
}

// sign is C_Sign; encrypt is C_Encrypt.
func (l *library) sign(session uint, message []byte) ([]byte, error) {
	return l.output("C_Sign", placeSign, session, message)
}

func (l *library) encrypt(session uint, plain []byte) ([]byte, error) {
	return l.output("C_Encrypt", placeEncrypt, session, plain)
}

func (l *library) output(name string, place int, session uint, in []byte) ([]byte, error) {
	f := l.list.f[place]
	var p unsafe.Pointer
	if len(in) > 0 {
		p = unsafe.Pointer(&in[0])
	}
	out := make([]byte, ampleRoom+len(in))
	ask := func() C.struct_reply {
		return C.hb_out(f, C.ck_ulong(session), p, C.ck_ulong(len(in)), unsafe.Pointer(&out[0]), C.ck_ulong(len(out)))
	}
	r := ask()
	if r.rv == pkcs11.CKR_BUFFER_TOO_SMALL && int(r.length) > len(out) && r.length <= mostRoom { // the operation is still active
		out = make([]byte, r.length)
		r = ask()
	}
	return filled(name, r, out)
}

// findSome gives the next handles of a search, at most 64; none when it is over.
func (l *library) findSome(session uint) ([]pkcs11.ObjectHandle, error) {
	var handles [64]C.ck_ulong
	r := C.hb_find(l.list.f[placeFindObjects], C.ck_ulong(session), &handles[0], C.ck_ulong(len(handles)))
	if r.rv != 0 {
		return nil, ckError(r.rv)
	}
	if r.length > C.ck_ulong(len(handles)) {
		return nil, badAnswer("C_FindObjects", r.length, len(handles))
	}
	found := make([]pkcs11.ObjectHandle, r.length)
	for i := range found {
		found[i] = pkcs11.ObjectHandle(handles[i])
	}
	return found, nil
}

// filled is what a call left in out.
func filled(name string, r C.struct_reply, out []byte) ([]byte, error) {
	if r.rv != 0 {
		return nil, ckError(r.rv)
	}
	if r.length > C.ck_ulong(len(out)) {
		return nil, badAnswer(name, r.length, len(out))
	}
	return out[:r.length:r.length], nil
}

// badAnswer is of no CKR, so that it becomes an error of the library: a module that is wrong about its own memory is not used further.
func badAnswer(name string, length C.ck_ulong, room int) error {
	return fmt.Errorf("%s answered CKR_OK and a length of %d where there is room for %d", name, length, room)
}
