// A PKCS#11 module that stands in front of another and behaves as badly as a script says. For tests only.
//
// Settings, read at C_Initialize: lines NAME=value of the file LIBRARY.conf beside the library, or without one environment variables:
//   HSMBRIDGE_SHIM_MODULE    path of the module behind it
//   HSMBRIDGE_SHIM_SCRIPT    path of the script; none: it behaves
//   HSMBRIDGE_SHIM_COUNTERS  path of a file in which it counts; none: it does not
//
// script.c reads the script, whose language is described there; state.c knows sessions and objects, and counts;
// proxy.c has the functions of PKCS#11 v2.40.
#ifndef SHIM_H
#define SHIM_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <p11-kit/pkcs11.h>

// FUNCTIONS is every function of CK_FUNCTION_LIST (PKCS#11 v2.40, section 3.6) in its order.
#define FUNCTIONS(F) \
	F(C_Initialize) F(C_Finalize) F(C_GetInfo) F(C_GetFunctionList) F(C_GetSlotList) F(C_GetSlotInfo) F(C_GetTokenInfo) \
	F(C_GetMechanismList) F(C_GetMechanismInfo) F(C_InitToken) F(C_InitPIN) F(C_SetPIN) F(C_OpenSession) F(C_CloseSession) \
	F(C_CloseAllSessions) F(C_GetSessionInfo) F(C_GetOperationState) F(C_SetOperationState) F(C_Login) F(C_Logout) \
	F(C_CreateObject) F(C_CopyObject) F(C_DestroyObject) F(C_GetObjectSize) F(C_GetAttributeValue) F(C_SetAttributeValue) \
	F(C_FindObjectsInit) F(C_FindObjects) F(C_FindObjectsFinal) F(C_EncryptInit) F(C_Encrypt) F(C_EncryptUpdate) \
	F(C_EncryptFinal) F(C_DecryptInit) F(C_Decrypt) F(C_DecryptUpdate) F(C_DecryptFinal) F(C_DigestInit) F(C_Digest) \
	F(C_DigestUpdate) F(C_DigestKey) F(C_DigestFinal) F(C_SignInit) F(C_Sign) F(C_SignUpdate) F(C_SignFinal) \
	F(C_SignRecoverInit) F(C_SignRecover) F(C_VerifyInit) F(C_Verify) F(C_VerifyUpdate) F(C_VerifyFinal) \
	F(C_VerifyRecoverInit) F(C_VerifyRecover) F(C_DigestEncryptUpdate) F(C_DecryptDigestUpdate) F(C_SignEncryptUpdate) \
	F(C_DecryptVerifyUpdate) F(C_GenerateKey) F(C_GenerateKeyPair) F(C_WrapKey) F(C_UnwrapKey) F(C_DeriveKey) \
	F(C_SeedRandom) F(C_GenerateRandom) F(C_GetFunctionStatus) F(C_CancelFunction) F(C_WaitForSlotEvent)

#define AS_ID(name) ID_##name,
enum function { FUNCTIONS(AS_ID) FUNCTION_COUNT };

// What a rule does to a call.
enum action {
	RETURN,         // answers with a CKR, without calling the module
	DELAY,          // waits first
	BUSY,           // waits first, alone
	HANG,           // does not come back before the script is another
	CRASH,          // writes to address 0
	EXIT,           // ends the process, as some libraries do
	LOSE_SESSION,   // the session of the call is gone
	LOSE_SESSIONS,  // all are, and the login with them
	STALE_OBJECTS,  // every object handle that was given out is worth nothing
	LOSE_LOGIN,     // somebody logs out
	REMOVE_TOKEN,   // the token is taken out, until the script is another
	OUTPUT,         // what the module gives is spoilt: see enum output
	QUERY,          // the answer to a length query is off by a number
	LENGTH,         // the length that is told with an output is off by a number
	OAEP_SHA1,      // OAEP is done with SHA-1, whatever was asked for
	LOSE_ANSWER,    // is done, and then answers with a CKR
};
enum output { GARBAGE, TRUNCATED, PLAINTEXT, ZERO };

// What a call does after the rules that come before it were applied.
struct verdict {
	CK_RV rv;          // the answer, if answered
	bool answered;
	CK_RV lost;        // the answer after the call was done; CKR_OK: what the module said
	bool oaep_sha1;
	int output;        // enum output, or -1
	long query, length;
};

// script.c
void script_begin(const char *path);           // at C_Initialize
struct verdict script_apply(enum function f, CK_SESSION_HANDLE s); // takes the rules for this call
void script_done(enum function f, CK_RV rv);   // a call has ended: rules that wait for it end
bool script_token_removed(void);
bool script_mechanism(CK_MECHANISM_TYPE m, bool *add); // the list lies about m
size_t script_added(CK_MECHANISM_TYPE *out, size_t most);
void script_token_info(CK_TOKEN_INFO *info);
long script_session_limit(void);               // -1: none
unsigned long script_random(void);

// state.c
extern CK_FUNCTION_LIST *real;                 // the module behind; NULL before C_Initialize
extern const char *const function_names[FUNCTION_COUNT];
enum counter { OPEN_SESSIONS, SESSION_OBJECTS, TOKEN_OBJECTS, INJECTED, SCRIPTS, COUNTER_COUNT };
void state_begin(const char *counters);
void state_end(void);
void count_call(enum function f);
void count_injected(void);
void count_script(void);
CK_RV session_opened(CK_SLOT_ID slot, CK_SESSION_HANDLE s);
void session_closed(CK_SESSION_HANDLE s);
void sessions_closed(void);                    // all of them
long sessions_open(void);
CK_RV session_check(CK_SESSION_HANDLE s);      // CKR_OK unless the shim took it away
void lose_session(CK_SESSION_HANDLE s);
void lose_sessions(void);
void lose_login(CK_SESSION_HANDLE s);
void stale_objects(void);
CK_OBJECT_HANDLE object_out(CK_OBJECT_HANDLE real_handle);
bool object_in(CK_OBJECT_HANDLE *handle);      // false: it is stale
void object_made(CK_SESSION_HANDLE s, CK_OBJECT_HANDLE real_handle, const CK_ATTRIBUTE *template, CK_ULONG n);
void object_destroyed(CK_OBJECT_HANDLE real_handle);

#endif
