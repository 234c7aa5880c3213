// A PKCS#11 module in front of another one whose PINs are typed at the device: it says so (CKF_PROTECTED_AUTHENTICATION_PATH), refuses a C_Login that
// brings a PIN, and waits in one without for what somebody types: a file beside it, NAME.so.user or NAME.so.so, that holds the PIN. An empty
// one is somebody who presses cancel. The file is taken away when it was read. NAME.so.module holds the path of the other module.
// With a file NAME.so.silent it does not say that it is so.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <p11-kit/pkcs11.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static CK_FUNCTION_LIST list, *theirs;
static char here[4096];

static const char *beside(const char *what) {
	static __thread char path[sizeof here + 16];
	snprintf(path, sizeof path, "%s.%s", here, what);
	return path;
}

static long content(const char *path, char *text, size_t room) {
	FILE *f = fopen(path, "re");
	if (f == NULL)
		return -1;
	size_t n = fread(text, 1, room - 1, f);
	fclose(f);
	text[n] = 0;
	return (long)n;
}

static CK_RV login(CK_SESSION_HANDLE session, CK_USER_TYPE who, CK_UTF8CHAR_PTR pin, CK_ULONG length) {
	char typed[256];
	long n;
	if (pin != NULL || length != 0)
		return CKR_ARGUMENTS_BAD;
	while ((n = content(beside(who == CKU_SO ? "so" : "user"), typed, sizeof typed)) < 0)
		nanosleep(&(struct timespec){ 0, 5000000 }, NULL);
	unlink(beside(who == CKU_SO ? "so" : "user"));
	if (n == 0)
		return CKR_FUNCTION_CANCELED;
	return theirs->C_Login(session, who, (CK_UTF8CHAR_PTR)typed, (CK_ULONG)n);
}

static CK_RV token_info(CK_SLOT_ID slot, CK_TOKEN_INFO_PTR info) {
	CK_RV rv = theirs->C_GetTokenInfo(slot, info);
	if (rv == CKR_OK && access(beside("silent"), F_OK) != 0)
		info->flags |= CKF_PROTECTED_AUTHENTICATION_PATH;
	return rv;
}

CK_RV C_GetFunctionList(CK_FUNCTION_LIST_PTR_PTR out) {
	char path[4096];
	Dl_info self;
	CK_RV (*get)(CK_FUNCTION_LIST_PTR_PTR);
	void *module;
	if (theirs == NULL) {
		if (dladdr(&list, &self) == 0 || snprintf(here, sizeof here, "%s", self.dli_fname) < 0 || content(beside("module"), path, sizeof path) <= 0)
			return CKR_GENERAL_ERROR;
		if ((module = dlopen(path, RTLD_NOW | RTLD_LOCAL)) == NULL || (*(void **)&get = dlsym(module, "C_GetFunctionList")) == NULL || get(&theirs) != CKR_OK)
			return CKR_GENERAL_ERROR;
		list = *theirs;
		list.C_Login = login;
		list.C_GetTokenInfo = token_info;
		list.C_GetFunctionList = C_GetFunctionList;
	}
	*out = &list;
	return CKR_OK;
}
