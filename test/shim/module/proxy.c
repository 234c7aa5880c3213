// The functions of PKCS#11 v2.40. Each counts itself, lets the script have its way, and calls the module behind.
#define _GNU_SOURCE // dladdr
#include <dlfcn.h>

#include "shim.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
enum { NO_SESSION = 0 };

// enter begins a call. False: the answer is *rv and the module is not asked.
static bool enter(enum function f, CK_SESSION_HANDLE s, struct verdict *v, CK_RV *rv) {
	*v = (struct verdict){ .output = -1, .lost = CKR_OK };
	*rv = CKR_CRYPTOKI_NOT_INITIALIZED;
	if (real == NULL)
		return false;
	count_call(f);
	*v = script_apply(f, s);
	if (script_token_removed() && f != ID_C_Initialize && f != ID_C_Finalize && f != ID_C_GetInfo && f != ID_C_GetSlotList && f != ID_C_GetSlotInfo) {
		lose_sessions();
		count_injected();
		*rv = s == NO_SESSION ? CKR_TOKEN_NOT_PRESENT : CKR_DEVICE_REMOVED;
		return false;
	}
	if (v->answered) {
		*rv = v->rv;
		return false;
	}
	*rv = s == NO_SESSION ? CKR_OK : session_check(s);
	return *rv == CKR_OK;
}

// leave ends a call that the module has answered.
static CK_RV leave(enum function f, const struct verdict *v, CK_RV rv) {
	script_done(f, rv);
	return rv == CKR_OK ? v->lost : rv;
}

// FORWARD is a function that needs nothing but that.
#define FORWARD(name, session, parameters, arguments) \
	static CK_RV name##_ parameters { \
		struct verdict v; \
		CK_RV rv; \
		return enter(ID_##name, session, &v, &rv) ? leave(ID_##name, &v, real->name arguments) : rv; \
	}
// ON_OBJECT is one with an object's handle h, which may be stale.
#define ON_OBJECT(name, stale, parameters, arguments) \
	static CK_RV name##_ parameters { \
		struct verdict v; \
		CK_RV rv; \
		if (!enter(ID_##name, s, &v, &rv)) return rv; \
		return object_in(&h) ? leave(ID_##name, &v, real->name arguments) : stale; \
	}
#define S CK_SESSION_HANDLE s
#define IN(name) CK_BYTE_PTR name, CK_ULONG n_##name
#define OUT(name) CK_BYTE_PTR name, CK_ULONG_PTR n_##name
#define MECHANISM CK_MECHANISM_PTR m

FORWARD(C_GetInfo, NO_SESSION, (CK_INFO_PTR info), (info))
FORWARD(C_GetSlotInfo, NO_SESSION, (CK_SLOT_ID slot, CK_SLOT_INFO_PTR info), (slot, info))
FORWARD(C_InitToken, NO_SESSION, (CK_SLOT_ID slot, IN(pin), CK_UTF8CHAR_PTR label), (slot, pin, n_pin, label))
FORWARD(C_InitPIN, s, (S, IN(pin)), (s, pin, n_pin))
FORWARD(C_SetPIN, s, (S, IN(old), IN(new)), (s, old, n_old, new, n_new))
FORWARD(C_GetSessionInfo, s, (S, CK_SESSION_INFO_PTR info), (s, info))
FORWARD(C_GetOperationState, s, (S, OUT(state)), (s, state, n_state))
FORWARD(C_SetOperationState, s, (S, IN(state), CK_OBJECT_HANDLE e, CK_OBJECT_HANDLE a), (s, state, n_state, e, a))
FORWARD(C_Login, s, (S, CK_USER_TYPE user, IN(pin)), (s, user, pin, n_pin))
FORWARD(C_Logout, s, (S), (s))
ON_OBJECT(C_GetObjectSize, CKR_OBJECT_HANDLE_INVALID, (S, CK_OBJECT_HANDLE h, CK_ULONG_PTR size), (s, h, size))
ON_OBJECT(C_SetAttributeValue, CKR_OBJECT_HANDLE_INVALID, (S, CK_OBJECT_HANDLE h, CK_ATTRIBUTE_PTR t, CK_ULONG n), (s, h, t, n))
FORWARD(C_FindObjectsInit, s, (S, CK_ATTRIBUTE_PTR t, CK_ULONG n), (s, t, n))
FORWARD(C_FindObjectsFinal, s, (S), (s))
ON_OBJECT(C_EncryptInit, CKR_KEY_HANDLE_INVALID, (S, MECHANISM, CK_OBJECT_HANDLE h), (s, m, h))
FORWARD(C_EncryptUpdate, s, (S, IN(in), OUT(out)), (s, in, n_in, out, n_out))
FORWARD(C_EncryptFinal, s, (S, OUT(out)), (s, out, n_out))
ON_OBJECT(C_DecryptInit, CKR_KEY_HANDLE_INVALID, (S, MECHANISM, CK_OBJECT_HANDLE h), (s, m, h))
FORWARD(C_Decrypt, s, (S, IN(in), OUT(out)), (s, in, n_in, out, n_out))
FORWARD(C_DecryptUpdate, s, (S, IN(in), OUT(out)), (s, in, n_in, out, n_out))
FORWARD(C_DecryptFinal, s, (S, OUT(out)), (s, out, n_out))
FORWARD(C_DigestInit, s, (S, MECHANISM), (s, m))
FORWARD(C_Digest, s, (S, IN(in), OUT(out)), (s, in, n_in, out, n_out))
FORWARD(C_DigestUpdate, s, (S, IN(in)), (s, in, n_in))
ON_OBJECT(C_DigestKey, CKR_KEY_HANDLE_INVALID, (S, CK_OBJECT_HANDLE h), (s, h))
FORWARD(C_DigestFinal, s, (S, OUT(out)), (s, out, n_out))
ON_OBJECT(C_SignInit, CKR_KEY_HANDLE_INVALID, (S, MECHANISM, CK_OBJECT_HANDLE h), (s, m, h))
FORWARD(C_SignUpdate, s, (S, IN(in)), (s, in, n_in))
FORWARD(C_SignFinal, s, (S, OUT(out)), (s, out, n_out))
ON_OBJECT(C_SignRecoverInit, CKR_KEY_HANDLE_INVALID, (S, MECHANISM, CK_OBJECT_HANDLE h), (s, m, h))
FORWARD(C_SignRecover, s, (S, IN(in), OUT(out)), (s, in, n_in, out, n_out))
ON_OBJECT(C_VerifyInit, CKR_KEY_HANDLE_INVALID, (S, MECHANISM, CK_OBJECT_HANDLE h), (s, m, h))
FORWARD(C_Verify, s, (S, IN(in), IN(sig)), (s, in, n_in, sig, n_sig))
FORWARD(C_VerifyUpdate, s, (S, IN(in)), (s, in, n_in))
FORWARD(C_VerifyFinal, s, (S, IN(sig)), (s, sig, n_sig))
ON_OBJECT(C_VerifyRecoverInit, CKR_KEY_HANDLE_INVALID, (S, MECHANISM, CK_OBJECT_HANDLE h), (s, m, h))
FORWARD(C_VerifyRecover, s, (S, IN(in), OUT(out)), (s, in, n_in, out, n_out))
FORWARD(C_DigestEncryptUpdate, s, (S, IN(in), OUT(out)), (s, in, n_in, out, n_out))
FORWARD(C_DecryptDigestUpdate, s, (S, IN(in), OUT(out)), (s, in, n_in, out, n_out))
FORWARD(C_SignEncryptUpdate, s, (S, IN(in), OUT(out)), (s, in, n_in, out, n_out))
FORWARD(C_DecryptVerifyUpdate, s, (S, IN(in), OUT(out)), (s, in, n_in, out, n_out))
FORWARD(C_SeedRandom, s, (S, IN(in)), (s, in, n_in))
FORWARD(C_GenerateRandom, s, (S, IN(in)), (s, in, n_in))
FORWARD(C_GetFunctionStatus, s, (S), (s))
FORWARD(C_CancelFunction, s, (S), (s))
FORWARD(C_WaitForSlotEvent, NO_SESSION, (CK_FLAGS flags, CK_SLOT_ID_PTR slot, void *reserved), (flags, slot, reserved))

// C_Initialize and C_Finalize: the module behind is loaded once, and stays.

// setting is what the file LIBRARY.conf says in a line "NAME=value", or else the environment variable. Two shims in one process share the
// environment and have a file each.
static const char *setting(const char *name, char *value, size_t size) {
	char path[4096], line[4200];
	Dl_info self;
	FILE *f = NULL;
	if (dladdr((void *)C_GetFunctionList, &self) != 0) {
		snprintf(path, sizeof path, "%s.conf", self.dli_fname);
		f = fopen(path, "re");
	}
	if (f == NULL)
		return getenv(name);
	const char *found = NULL;
	while (fgets(line, sizeof line, f) != NULL) {
		line[strcspn(line, "\n")] = 0;
		size_t n = strlen(name);
		if (strncmp(line, name, n) == 0 && line[n] == '=') {
			snprintf(value, size, "%s", line + n + 1);
			found = value;
		}
	}
	fclose(f);
	return found;
}

static CK_RV load(void) {
	static char loaded[4096];
	char value[4096];
	const char *path = setting("HSMBRIDGE_SHIM_MODULE", value, sizeof value);
	if (path == NULL)
		return CKR_GENERAL_ERROR;
	if (real != NULL && strcmp(path, loaded) == 0)
		return CKR_OK;
	void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
	CK_RV (*list)(CK_FUNCTION_LIST **) = library == NULL ? NULL : (CK_RV (*)(CK_FUNCTION_LIST **))dlsym(library, "C_GetFunctionList");
	if (list == NULL) {
		fprintf(stderr, "fault shim: %s cannot be loaded: %s\n", path, dlerror());
		return CKR_GENERAL_ERROR;
	}
	snprintf(loaded, sizeof loaded, "%s", path);
	return list(&real);
}

static CK_RV C_Initialize_(void *arguments) {
	struct verdict v;
	CK_RV rv = load();
	char value[4096];
	if (rv != CKR_OK)
		return rv;
	state_begin(setting("HSMBRIDGE_SHIM_COUNTERS", value, sizeof value));
	script_begin(setting("HSMBRIDGE_SHIM_SCRIPT", value, sizeof value));
	return enter(ID_C_Initialize, NO_SESSION, &v, &rv) ? leave(ID_C_Initialize, &v, real->C_Initialize(arguments)) : rv;
}

static CK_RV C_Finalize_(void *reserved) {
	struct verdict v;
	CK_RV rv;
	if (!enter(ID_C_Finalize, NO_SESSION, &v, &rv))
		return rv;
	if ((rv = real->C_Finalize(reserved)) == CKR_OK)
		state_end();
	return leave(ID_C_Finalize, &v, rv);
}

// Slots, tokens and mechanisms.

static CK_RV C_GetSlotList_(CK_BBOOL present, CK_SLOT_ID_PTR list, CK_ULONG_PTR n) {
	struct verdict v;
	CK_RV rv;
	if (!enter(ID_C_GetSlotList, NO_SESSION, &v, &rv))
		return rv;
	if (present && script_token_removed()) {
		*n = 0;
		return CKR_OK;
	}
	return leave(ID_C_GetSlotList, &v, real->C_GetSlotList(present, list, n));
}

static CK_RV C_GetTokenInfo_(CK_SLOT_ID slot, CK_TOKEN_INFO_PTR info) {
	struct verdict v;
	CK_RV rv;
	if (!enter(ID_C_GetTokenInfo, NO_SESSION, &v, &rv))
		return rv;
	if ((rv = real->C_GetTokenInfo(slot, info)) == CKR_OK)
		script_token_info(info);
	return leave(ID_C_GetTokenInfo, &v, rv);
}

static CK_RV C_GetMechanismList_(CK_SLOT_ID slot, CK_MECHANISM_TYPE_PTR list, CK_ULONG_PTR n) {
	enum { MOST = 1024 };
	CK_MECHANISM_TYPE all[MOST], told[MOST];
	CK_ULONG have = MOST / 2, count = 0;
	struct verdict v;
	CK_RV rv;
	bool add;
	if (!enter(ID_C_GetMechanismList, NO_SESSION, &v, &rv))
		return rv;
	if ((rv = real->C_GetMechanismList(slot, all, &have)) != CKR_OK)
		return rv;
	for (CK_ULONG i = 0; i < have; i++)
		if (!script_mechanism(all[i], &add))
			told[count++] = all[i];
	count += script_added(told + count, MOST - count);
	rv = list != NULL && *n < count ? CKR_BUFFER_TOO_SMALL : CKR_OK;
	if (list != NULL && rv == CKR_OK)
		memcpy(list, told, count * sizeof *list);
	*n = count;
	return leave(ID_C_GetMechanismList, &v, rv);
}

static CK_RV C_GetMechanismInfo_(CK_SLOT_ID slot, CK_MECHANISM_TYPE type, CK_MECHANISM_INFO_PTR info) {
	struct verdict v;
	CK_RV rv;
	bool add;
	if (!enter(ID_C_GetMechanismInfo, NO_SESSION, &v, &rv))
		return rv;
	if (!script_mechanism(type, &add))
		return leave(ID_C_GetMechanismInfo, &v, real->C_GetMechanismInfo(slot, type, info));
	if (!add)
		return CKR_MECHANISM_INVALID;
	*info = (CK_MECHANISM_INFO){ 1024, 4096, CKF_WRAP | CKF_UNWRAP };
	return CKR_OK;
}

// Sessions.

static CK_RV C_OpenSession_(CK_SLOT_ID slot, CK_FLAGS flags, void *application, CK_NOTIFY notify, CK_SESSION_HANDLE_PTR s) {
	struct verdict v;
	CK_RV rv;
	if (!enter(ID_C_OpenSession, NO_SESSION, &v, &rv))
		return rv;
	long limit = script_session_limit();
	if (limit >= 0 && sessions_open() >= limit)
		return CKR_SESSION_COUNT;
	if ((rv = real->C_OpenSession(slot, flags, application, notify, s)) == CKR_OK)
		rv = session_opened(slot, *s);
	return leave(ID_C_OpenSession, &v, rv);
}

static CK_RV C_CloseSession_(S) {
	struct verdict v;
	CK_RV rv;
	if (!enter(ID_C_CloseSession, s, &v, &rv))
		return rv;
	if ((rv = real->C_CloseSession(s)) == CKR_OK)
		session_closed(s);
	return leave(ID_C_CloseSession, &v, rv);
}

static CK_RV C_CloseAllSessions_(CK_SLOT_ID slot) {
	struct verdict v;
	CK_RV rv;
	if (!enter(ID_C_CloseAllSessions, NO_SESSION, &v, &rv))
		return rv;
	if ((rv = real->C_CloseAllSessions(slot)) == CKR_OK)
		sessions_closed();
	return leave(ID_C_CloseAllSessions, &v, rv);
}

#include "objects.h"

// C_GetFunctionList

static CK_RV C_GetFunctionList_(CK_FUNCTION_LIST_PTR_PTR list);
#define AS_ENTRY(name) .name = name##_,
static CK_FUNCTION_LIST functions = { { 2, 40 }, FUNCTIONS(AS_ENTRY) };
static CK_RV C_GetFunctionList_(CK_FUNCTION_LIST_PTR_PTR list) {
	*list = &functions;
	return CKR_OK;
}

EXPORT CK_RV C_GetFunctionList(CK_FUNCTION_LIST_PTR_PTR list) { return C_GetFunctionList_(list); }
