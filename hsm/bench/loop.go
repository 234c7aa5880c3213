// Package bench measures wraps per second through hsm beside the same loop in C, on the same token in the same
// run. `make bench` runs it; the figures are ratios, for absolute ones differ from machine to machine.
package bench

/*
#cgo linux LDFLAGS: -ldl
#include <dlfcn.h>
#include <stdlib.h>

typedef unsigned long ck_ulong;
struct functions { unsigned char major, minor; void *f[68]; };
struct mechanism { ck_ulong type; void *parameter; ck_ulong length; };
struct oaep { ck_ulong hash, mgf, source; void *data; ck_ulong length; };

// loop is what a C programmer would write: C_WrapKey with CKM_RSA_PKCS_OAEP, n times, one call each.
static ck_ulong loop(const char *module, ck_ulong session, ck_ulong hash, ck_ulong mgf, ck_ulong wrapping, ck_ulong key, int n) {
	struct functions *fl = NULL;
	void *library = dlopen(module, RTLD_LAZY);
	if (library == NULL) return 0x30;
	ck_ulong (*get)(struct functions **) = (ck_ulong (*)(struct functions **))dlsym(library, "C_GetFunctionList");
	ck_ulong rv = get(&fl);
	if (rv != 0) return rv;
	ck_ulong (*wrap)(ck_ulong, struct mechanism *, ck_ulong, ck_ulong, unsigned char *, ck_ulong *) = fl->f[60];
	struct oaep parameter = { hash, mgf, 1, NULL, 0 };
	struct mechanism m = { 0x9, &parameter, sizeof parameter };
	unsigned char out[512];
	for (int i = 0; i < n && rv == 0; i++) {
		ck_ulong length = sizeof out;
		rv = wrap(session, &m, wrapping, key, out, &length);
	}
	dlclose(library);
	return rv;
}
*/
import "C"

import (
	"fmt"
	"unsafe"
)

// job is one C loop: handles in the token's own numbers.
type job struct {
	module              string
	session, hash       uint
	mgf                 uint
	wrappingKey, target uint
}

// run wraps n times in C.
func (j job) run(n int) error {
	module := C.CString(j.module)
	defer C.free(unsafe.Pointer(module))
	rv := C.loop(module, C.ck_ulong(j.session), C.ck_ulong(j.hash), C.ck_ulong(j.mgf), C.ck_ulong(j.wrappingKey), C.ck_ulong(j.target), C.int(n))
	if rv != 0 {
		return fmt.Errorf("C_WrapKey in C: 0x%X", uint(rv))
	}
	return nil
}
