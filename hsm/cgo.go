package hsm

/*
#cgo linux LDFLAGS: -ldl
#cgo noescape hb_wrap
#cgo nocallback hb_wrap
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned long ck_ulong;

// CK_FUNCTION_LIST: a version, then the functions in the order of PKCS#11 v2.40, section 3.6.
struct functions {
	unsigned char major, minor;
	void *f[68];
};
enum { C_LOGIN = 18, C_WRAPKEY = 60 };

struct mechanism { ck_ulong type; void *parameter; ck_ulong length; };
struct oaep { ck_ulong hash, mgf, source; void *data; ck_ulong length; };
struct rsa_aes { ck_ulong bits; struct oaep *oaep; };
struct answer { ck_ulong rv, length; };

enum { FORM_PLAIN, FORM_OAEP, FORM_RSA_AES, FORM_BYTES };

// hb_open loads the module, or takes another reference to it. It gives the module's C_GetFunctionList without calling it, or NULL
// and the reason.
static void *hb_open(const char *path, void **library, char **reason) {
	*reason = NULL;
	*library = dlopen(path, RTLD_LAZY);
	if (*library == NULL) {
		*reason = strdup(dlerror());
		return NULL;
	}
	void *get = dlsym(*library, "C_GetFunctionList");
	if (get == NULL) {
		*reason = strdup("it has no C_GetFunctionList");
	}
	return get;
}

// hb_ask calls C_GetFunctionList for its answer only.
static ck_ulong hb_ask(void *get) {
	struct functions *list = NULL;
	return ((ck_ulong (*)(struct functions **))get)(&list);
}

// What miekg/pkcs11 keeps of a module: the handle that dlopen gave, and the function list that it calls.
struct theirs { void *library; struct functions *list; };

static void hb_close(void *library) { dlclose(library); }

static ck_ulong hb_login(struct functions *fl, ck_ulong session, ck_ulong user, unsigned char *pin, ck_ulong length) {
	ck_ulong (*login)(ck_ulong, ck_ulong, unsigned char *, ck_ulong) = fl->f[C_LOGIN];
	return login(session, user, pin, length);
}

// hb_wrap calls C_WrapKey once. The parameter is built here, on the C stack, so that no pointer to Go memory is in it.
static struct answer hb_wrap(struct functions *fl, ck_ulong session, ck_ulong type, int form, ck_ulong hash, ck_ulong mgf,
		void *bytes, ck_ulong nbytes, ck_ulong wrapping, ck_ulong key, unsigned char *out, ck_ulong size) {
	struct oaep oaep = { hash, mgf, 1, NULL, 0 }; // CKZ_DATA_SPECIFIED, empty label
	struct rsa_aes rsa_aes = { 256, &oaep };
	struct mechanism m = { type, NULL, 0 };
	struct answer a = { 0, size };
	ck_ulong (*wrap)(ck_ulong, struct mechanism *, ck_ulong, ck_ulong, unsigned char *, ck_ulong *) = fl->f[C_WRAPKEY];
	switch (form) {
	case FORM_OAEP: m.parameter = &oaep; m.length = sizeof oaep; break;
	case FORM_RSA_AES: m.parameter = &rsa_aes; m.length = sizeof rsa_aes; break;
	case FORM_BYTES: m.parameter = bytes; m.length = nbytes; break;
	}
	a.rv = wrap(session, &m, wrapping, key, out, &a.length);
	return a;
}
*/
import "C"

import (
	"errors"
	"fmt"
	"reflect"
	"unsafe"

	"github.com/miekg/pkcs11"
)

// library is the module's function list for the two calls that miekg/pkcs11 does not make as they are needed:
// C_WrapKey once with an ample buffer, and C_Login without a Go string of the PIN.
type library struct {
	handle unsafe.Pointer
	get    unsafe.Pointer // C_GetFunctionList
	list   *C.struct_functions
	kept   []*C.char
}

// openLibrary loads the module at path. It says why it cannot be loaded, which miekg/pkcs11 does not.
func openLibrary(path string) (*library, error) {
	cpath := C.CString(path)
	defer C.free(unsafe.Pointer(cpath))
	var l library
	var reason *C.char
	if l.get = C.hb_open(cpath, &l.handle, &reason); l.get != nil {
		return &l, nil
	}
	defer l.close()
	defer C.free(unsafe.Pointer(reason))
	return nil, errors.New(C.GoString(reason))
}

// share takes the function list that ctx calls. The modules of p11-kit make a new list at each C_GetFunctionList, with a state of its
// own: what one list has initialised is not initialised for another. miekg/pkcs11 keeps its list to itself; that the layout is
// what it is taken for shows in its handle, which is that of the same dlopen.
func (l *library) share(ctx *pkcs11.Ctx) error {
	field := reflect.ValueOf(ctx).Elem().FieldByName("ctx")
	if field.Kind() != reflect.Pointer || field.IsNil() {
		return errors.New("this version of miekg/pkcs11 keeps its function list elsewhere")
	}
	theirs := (*C.struct_theirs)(field.UnsafePointer())
	switch {
	case theirs.library != l.handle:
		return errors.New("miekg/pkcs11 has loaded another library")
	case theirs.list != nil:
		l.list = theirs.list
		return nil
	}
	// It ignores what the call answers.
	if err := ckError(C.hb_ask(l.get)); err != nil {
		return fmt.Errorf("C_GetFunctionList: %w", err)
	}
	return errors.New("C_GetFunctionList gave no function list")
}

// keep makes a C string that lives as long as the library.
func (l *library) keep(s string) unsafe.Pointer {
	c := C.CString(s)
	l.kept = append(l.kept, c)
	return unsafe.Pointer(c)
}

func (l *library) close() {
	for _, c := range l.kept {
		C.free(unsafe.Pointer(c))
	}
	if l.handle != nil {
		C.hb_close(l.handle)
	}
}

// login calls C_Login as CKU_USER. A nil PIN leaves it to the token's protected authentication path.
func (l *library) login(session uint, pin []byte) error {
	return l.loginAs(session, pkcs11.CKU_USER, pin)
}

// loginAs is the same for a user type: CKU_USER or CKU_SO.
func (l *library) loginAs(session, who uint, pin []byte) error {
	var p *C.uchar
	if len(pin) > 0 {
		p = (*C.uchar)(unsafe.Pointer(&pin[0]))
	}
	return ckError(C.hb_login(l.list, C.ck_ulong(session), C.ck_ulong(who), p, C.ck_ulong(len(pin))))
}

// parameterForm says how the mechanism's parameter is laid out.
type parameterForm int

const (
	plainForm  parameterForm = C.FORM_PLAIN   // none
	oaepForm   parameterForm = C.FORM_OAEP    // CK_RSA_PKCS_OAEP_PARAMS
	rsaAESForm parameterForm = C.FORM_RSA_AES // CK_RSA_AES_KEY_WRAP_PARAMS
	bytesForm  parameterForm = C.FORM_BYTES   // an initial value
)

// wrapCall is everything that one C_WrapKey needs.
type wrapCall struct {
	mechanism uint
	form      parameterForm
	hash, mgf uint   // of oaepForm and rsaAESForm
	bytes     []byte // of bytesForm
}

// wrap calls C_WrapKey once and gives how many bytes of out it filled. Tokens say the length that they need
// in the answer to CKR_BUFFER_TOO_SMALL; it is returned with that error.
func (l *library) wrap(session uint, c wrapCall, wrappingKey, key uint, out []byte) (int, error) {
	var extra unsafe.Pointer
	if len(c.bytes) > 0 {
		extra = unsafe.Pointer(&c.bytes[0])
	}
	a := C.hb_wrap(l.list, C.ck_ulong(session), C.ck_ulong(c.mechanism), C.int(c.form), C.ck_ulong(c.hash), C.ck_ulong(c.mgf),
		extra, C.ck_ulong(len(c.bytes)), C.ck_ulong(wrappingKey), C.ck_ulong(key),
		(*C.uchar)(unsafe.Pointer(&out[0])), C.ck_ulong(len(out)))
	n := int(a.length)
	if a.rv == 0 && (n < 0 || n > len(out)) {
		return 0, fmt.Errorf("C_WrapKey answered CKR_OK and a length of %d bytes in a buffer of %d", n, len(out))
	}
	return n, ckError(a.rv)
}

func ckError(rv C.ck_ulong) error {
	if rv == 0 {
		return nil
	}
	return pkcs11.Error(rv)
}
