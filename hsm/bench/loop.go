package bench

/*
#cgo linux LDFLAGS: -ldl -lpthread
#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned long ck_ulong;
struct functions { unsigned char major, minor; void *f[68]; };
struct mechanism { ck_ulong type; void *parameter; ck_ulong length; };
struct oaep { ck_ulong hash, mgf, source; void *data; ck_ulong length; };
struct attribute { ck_ulong type; void *value; ck_ulong length; };

// Places in CK_FUNCTION_LIST (PKCS#11 v2.40, section 3.6).
enum { C_GetSlotList = 4, C_GetTokenInfo = 6, C_OpenSession = 12, C_CloseSession = 13, C_CreateObject = 20,
	C_FindObjectsInit = 26, C_FindObjects = 27, C_FindObjectsFinal = 28, C_WrapKey = 60 };

enum { MOST_SESSIONS = 64 };

struct worker {
	struct functions *fl;
	ck_ulong session, wrapping, key, hash, mgf, rv;
	int wraps;
};

struct loop {
	void *library;
	struct functions *fl;
	int n;
	struct worker w[MOST_SESSIONS];
};

static void *work(void *p) {
	struct worker *w = p;
	ck_ulong (*wrap)(ck_ulong, struct mechanism *, ck_ulong, ck_ulong, unsigned char *, ck_ulong *) = w->fl->f[C_WrapKey];
	struct oaep parameter = { w->hash, w->mgf, 1, NULL, 0 };
	struct mechanism m = { 0x9, &parameter, sizeof parameter };
	unsigned char out[1024];
	w->rv = 0;
	for (int i = 0; i < w->wraps && w->rv == 0; i++) {
		ck_ulong length = sizeof out;
		w->rv = wrap(w->session, &m, w->wrapping, w->key, out, &length);
	}
	return NULL;
}

// loop_slot finds the token by its label, which C_GetTokenInfo pads to 32 bytes.
static ck_ulong loop_slot(struct functions *fl, const char *label, ck_ulong *slot) {
	ck_ulong slots[256], n = 256;
	ck_ulong (*list)(unsigned char, ck_ulong *, ck_ulong *) = fl->f[C_GetSlotList];
	ck_ulong (*info)(ck_ulong, void *) = fl->f[C_GetTokenInfo];
	ck_ulong rv = list(1, slots, &n);
	for (ck_ulong i = 0; rv == 0 && i < n; i++) {
		unsigned char token[512]; // CK_TOKEN_INFO begins with the label
		size_t length = strlen(label);
		if (info(slots[i], token) == 0 && length < 32 && memcmp(token, label, length) == 0 && token[length] == ' ') {
			*slot = slots[i];
			return 0;
		}
	}
	return rv != 0 ? rv : 0xE0; // CKR_TOKEN_NOT_PRESENT
}

// loop_prepare opens one session, loads the public key in it and finds the secret key.
static ck_ulong loop_prepare(struct functions *fl, ck_ulong slot, void *modulus, ck_ulong bytes, const char *label, struct worker *w) {
	ck_ulong (*open)(ck_ulong, ck_ulong, void *, void *, ck_ulong *) = fl->f[C_OpenSession];
	ck_ulong (*create)(ck_ulong, struct attribute *, ck_ulong, ck_ulong *) = fl->f[C_CreateObject];
	ck_ulong (*init)(ck_ulong, struct attribute *, ck_ulong) = fl->f[C_FindObjectsInit];
	ck_ulong (*find)(ck_ulong, ck_ulong *, ck_ulong, ck_ulong *) = fl->f[C_FindObjects];
	ck_ulong (*final)(ck_ulong) = fl->f[C_FindObjectsFinal];
	ck_ulong class = 2, type = 0, secret = 4, found = 0;
	unsigned char yes = 1, no = 0, exponent[] = { 1, 0, 1 };
	struct attribute public[] = { { 0, &class, sizeof class }, { 0x100, &type, sizeof type }, { 1, &no, 1 }, { 0x106, &yes, 1 },
		{ 0x120, modulus, bytes }, { 0x122, exponent, sizeof exponent } };
	struct attribute key[] = { { 0, &secret, sizeof secret }, { 3, (void *)label, strlen(label) } };
	w->fl = fl;
	ck_ulong rv = open(slot, 6, NULL, NULL, &w->session); // CKF_SERIAL_SESSION | CKF_RW_SESSION
	if (rv != 0) return rv;
	if ((rv = create(w->session, public, 6, &w->wrapping)) != 0) return rv;
	if ((rv = init(w->session, key, 2)) != 0) return rv;
	if ((rv = find(w->session, &w->key, 1, &found)) == 0) rv = final(w->session);
	return rv != 0 ? rv : found == 1 ? 0 : 0x82; // CKR_OBJECT_HANDLE_INVALID
}

// loop_close closes the sessions; what is in them goes with them.
static ck_ulong loop_close(struct loop *l) {
	ck_ulong rv = 0;
	for (int i = 0; i < l->n; i++) {
		ck_ulong one = ((ck_ulong (*)(ck_ulong))l->fl->f[C_CloseSession])(l->w[i].session);
		if (one != 0) rv = one;
	}
	if (l->library != NULL) dlclose(l->library);
	free(l);
	return rv;
}

static ck_ulong loop_open(struct loop **out, const char *module, const char *token, int n, void *modulus, ck_ulong bytes, const char *key, ck_ulong hash, ck_ulong mgf) {
	struct loop *l = calloc(1, sizeof *l);
	ck_ulong slot = 0, rv = 0x30; // CKR_DEVICE_ERROR
	ck_ulong (*get)(struct functions **) = NULL;
	if (n > MOST_SESSIONS) n = MOST_SESSIONS;
	if ((l->library = dlopen(module, RTLD_LAZY)) != NULL)
		get = (ck_ulong (*)(struct functions **))dlsym(l->library, "C_GetFunctionList");
	if (get != NULL && (rv = get(&l->fl)) == 0)
		rv = loop_slot(l->fl, token, &slot);
	for (; rv == 0 && l->n < n; l->n++) {
		rv = loop_prepare(l->fl, slot, modulus, bytes, key, &l->w[l->n]);
		l->w[l->n].hash = hash;
		l->w[l->n].mgf = mgf;
	}
	if (rv != 0) {
		loop_close(l);
		return rv;
	}
	*out = l;
	return 0;
}

// loop_run has each session wrap so many times, all at once.
static ck_ulong loop_run(struct loop *l, int wraps) {
	pthread_t threads[MOST_SESSIONS];
	ck_ulong rv = 0;
	int started = 0;
	for (; started < l->n; started++) {
		l->w[started].wraps = wraps;
		if (started > 0 && pthread_create(&threads[started], NULL, work, &l->w[started]) != 0) {
			rv = 2; // CKR_HOST_MEMORY
			break;
		}
	}
	if (started > 0) work(&l->w[0]);
	for (int i = 0; i < started; i++) {
		if (i > 0) pthread_join(threads[i], NULL);
		if (l->w[i].rv != 0) rv = l->w[i].rv;
	}
	return rv;
}
*/
import "C"

import (
	"crypto/rsa"
	"fmt"
	"time"
	"unsafe"
)

// Loop wraps keys as a C programmer would write it: C_WrapKey with CKM_RSA_PKCS_OAEP, one call for each wrap, under a public key that is loaded once, in as
// many threads as there are sessions.
type Loop struct{ l *C.struct_loop }

// Hash is that of OAEP, and of MGF1: CKM and CKG numbers of PKCS#11.
type Hash struct{ Mechanism, MGF uint }

// SHA1 is what SoftHSM2 does.
func SHA1() Hash { return Hash{0x220, 1} }

// NewLoop opens sessions on a token that this process has opened and logged in to: the one with that label of the module at that path. In each the
// public key is loaded and the AES key of the label key is looked up.
func NewLoop(module, token string, sessions int, pub *rsa.PublicKey, key string, h Hash) (*Loop, error) {
	path, label, name := C.CString(module), C.CString(token), C.CString(key)
	defer C.free(unsafe.Pointer(path))
	defer C.free(unsafe.Pointer(label))
	defer C.free(unsafe.Pointer(name))
	modulus := pub.N.Bytes()
	var loop Loop
	rv := C.loop_open(&loop.l, path, label, C.int(sessions), unsafe.Pointer(&modulus[0]), C.ck_ulong(len(modulus)), name, C.ck_ulong(h.Mechanism), C.ck_ulong(h.MGF))
	if rv != 0 {
		return nil, fmt.Errorf("the loop in C: 0x%X", uint(rv))
	}
	return &loop, nil
}

// Close closes the sessions.
func (l *Loop) Close() error {
	if rv := C.loop_close(l.l); rv != 0 {
		return fmt.Errorf("the loop in C: C_CloseSession: 0x%X", uint(rv))
	}
	return nil
}

// Run has each session wrap so many times, all at once, and says how long that took.
func (l *Loop) Run(wraps int) (time.Duration, error) {
	begin := time.Now()
	if rv := C.loop_run(l.l, C.int(wraps)); rv != 0 {
		return 0, fmt.Errorf("the loop in C: C_WrapKey: 0x%X", uint(rv))
	}
	return time.Since(begin), nil
}
