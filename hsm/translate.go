package hsm

import (
	"github.com/miekg/pkcs11"

	"hsmbridge/hsm/failure"
)

// translation says what a CKR code means, who has to act and how. op restricts it to one function; the first
// row that fits is taken, so restricted rows stand before general ones.
type translation struct {
	code  uint
	op    string
	class string
	cause string
	fix   string
}

// ckrBufferTooSmall and the like are in miekg/pkcs11; codes of PKCS#11 v3.0 that are not are named here.
const ckrOperationCancelFailed = 0x202

// translations is the table of causes and fixes. Source: PKCS#11 v2.40, section 5.1, and the tokens' measured behaviour.
func translations() []translation {
	return []translation{
		// keys and requests
		{pkcs11.CKR_KEY_UNEXTRACTABLE, "", ClassCaller, "{key} was generated with CKA_EXTRACTABLE=false and can never leave this token", "generate a new key with CKA_EXTRACTABLE=true for KMS (hsmbridge keys generate does)"},
		{pkcs11.CKR_KEY_NOT_WRAPPABLE, "", ClassCaller, "the token does not wrap this kind of key this way", "run `hsmbridge probe`: it shows what the token can do for each kind of key"},
		{pkcs11.CKR_WRAPPING_KEY_HANDLE_INVALID, "", ClassSession, "the wrapping public key is gone from the token", "run this again"},
		{pkcs11.CKR_WRAPPING_KEY_SIZE_RANGE, "", ClassCaller, "the token does not take a wrapping key of this size", "run `hsmbridge probe`: it shows which wrapping key specs work"},
		{pkcs11.CKR_WRAPPING_KEY_TYPE_INCONSISTENT, "", ClassCaller, "the token does not wrap with this kind of wrapping key", "run `hsmbridge probe`"},
		{pkcs11.CKR_KEY_SIZE_RANGE, "", ClassCaller, "the token does not take a key of this size", "choose another size; `hsmbridge probe` shows what works"},
		{pkcs11.CKR_KEY_TYPE_INCONSISTENT, "", ClassCaller, "the token does not do this with a key of this type", "check CKA_KEY_TYPE of {key}"},
		{pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED, "", ClassCaller, "the attributes of {key} do not allow this", "the key needs the matching usage attribute (CKA_SIGN, CKA_ENCRYPT or CKA_WRAP)"},
		{pkcs11.CKR_KEY_HANDLE_INVALID, "", ClassSession, "the handle of {key} is no longer valid: somebody else logged out, or the connection was lost", "run this again; it looks the key up anew"},
		{pkcs11.CKR_OBJECT_HANDLE_INVALID, "", ClassSession, "the handle of {key} is no longer valid: somebody else logged out, or the connection was lost", "run this again; it looks the key up anew"},
		{pkcs11.CKR_MECHANISM_INVALID, "", ClassCaller, "the token does not have this mechanism", "run `hsmbridge probe`: it shows what the token does have"},
		{pkcs11.CKR_MECHANISM_PARAM_INVALID, "", ClassCaller, "the token does not do this with these parameters", "run `hsmbridge probe`: it shows with which parameters the token works"},
		{pkcs11.CKR_ARGUMENTS_BAD, "C_Initialize", ClassCaller, "the module needs parameters", "set tokens[].module_parameters (NSS: configdir='sql:/dir')"},
		{pkcs11.CKR_ARGUMENTS_BAD, "", ClassCaller, "the token does not do this with these parameters", "run `hsmbridge probe`: it shows with which parameters the token works"},
		{pkcs11.CKR_FUNCTION_NOT_SUPPORTED, "", ClassCaller, "the module does not have this function", "this token cannot do the job; see docs/tokens.md"},
		{pkcs11.CKR_CURVE_NOT_SUPPORTED, "", ClassCaller, "the token does not have this curve", "choose another key spec; `hsmbridge probe` shows what works"},
		{pkcs11.CKR_DOMAIN_PARAMS_INVALID, "", ClassCaller, "the token does not have this curve", "choose another key spec; `hsmbridge probe` shows what works"},
		{pkcs11.CKR_ATTRIBUTE_TYPE_INVALID, "", ClassCaller, "the token does not know an attribute that was given", "report this token with `hsmbridge probe --json`"},
		{pkcs11.CKR_ATTRIBUTE_VALUE_INVALID, "", ClassCaller, "the token does not take an attribute's value", "look at the token's policy for keys of this kind"},
		{pkcs11.CKR_ATTRIBUTE_READ_ONLY, "", ClassCaller, "an attribute cannot be set by this user", "look at the token's policy for keys of this kind"},
		{pkcs11.CKR_ATTRIBUTE_SENSITIVE, "", ClassCaller, "the attribute is sensitive", "report this token with `hsmbridge probe --json`"},
		{pkcs11.CKR_TEMPLATE_INCOMPLETE, "", ClassCaller, "the token wants more attributes than were given", "report this token with `hsmbridge probe --json`"},
		{pkcs11.CKR_TEMPLATE_INCONSISTENT, "", ClassCaller, "the token does not take these attributes together", "look at the token's policy for keys of this kind"},
		{pkcs11.CKR_DATA_LEN_RANGE, "", ClassCaller, "the key does not fit under this wrapping key", "a longer wrapping key or RSA_AES_KEY_WRAP is needed"},
		{pkcs11.CKR_DATA_INVALID, "", ClassCaller, "the token does not do this with what it was given", "run `hsmbridge probe`: it shows what the token does"},
		{pkcs11.CKR_ENCRYPTED_DATA_INVALID, "", ClassCaller, "the token does not do this with what it was given", "run `hsmbridge probe`: it shows what the token does"},
		{pkcs11.CKR_ENCRYPTED_DATA_LEN_RANGE, "", ClassCaller, "the token does not do this with so many bytes", "run `hsmbridge probe`: it shows what the token does"},
		{pkcs11.CKR_INFORMATION_SENSITIVE, "", ClassCaller, "the token does not give this out", "ask the HSM's administrator which policy allows wrapping keys out"},
		{pkcs11.CKR_KEY_NOT_NEEDED, "", ClassCaller, "the token does not want a key for this", "report this token with `hsmbridge probe --json`"},
		{pkcs11.CKR_KEY_NEEDED, "", ClassCaller, "the token wants a key for this", "report this token with `hsmbridge probe --json`"},
		{pkcs11.CKR_ACTION_PROHIBITED, "", ClassCaller, "the token's policy forbids this", "ask the HSM's administrator which policy allows wrapping keys out"},
		{pkcs11.CKR_BUFFER_TOO_SMALL, "", ClassToken, "the token wants more room than it says", "report this token with `hsmbridge probe --json`"},
		// PINs: never tried again
		{pkcs11.CKR_PIN_INCORRECT, "", ClassToken, "the PIN is wrong; it was tried once and will not be tried again, because tokens lock", "correct the PIN of {token}, then " + failure.Anew},
		{pkcs11.CKR_PIN_INVALID, "", ClassToken, "the PIN has characters that the token does not take; it was tried once", "correct the PIN of {token}"},
		{pkcs11.CKR_PIN_LEN_RANGE, "", ClassToken, "the PIN is too short or too long for the token; it was tried once", "correct the PIN of {token}"},
		{pkcs11.CKR_PIN_LOCKED, "", ClassToken, "the user PIN of the token is locked", "the security officer has to unlock it (C_InitPIN, or the vendor's tool)"},
		{pkcs11.CKR_PIN_EXPIRED, "", ClassToken, "the PIN has expired or has to be changed before first use", "change it with the vendor's tool"},
		{pkcs11.CKR_USER_PIN_NOT_INITIALIZED, "", ClassToken, "the token has no user PIN yet", "the security officer has to set it"},
		{pkcs11.CKR_USER_ANOTHER_ALREADY_LOGGED_IN, "", ClassToken, "another user (the security officer) is logged in to the token in this process", "end that session first"},
		{pkcs11.CKR_USER_NOT_LOGGED_IN, "", ClassToken, "the login is gone: the token was reset, or somebody logged out", "run this again; it logs in once"},
		{pkcs11.CKR_USER_TOO_MANY_TYPES, "", ClassToken, "the token takes no more users at once", "end other sessions on the token"},
		// sessions
		{pkcs11.CKR_SESSION_HANDLE_INVALID, "", ClassSession, "the session is gone", "run this again"},
		{pkcs11.CKR_SESSION_CLOSED, "", ClassSession, "the session was closed by the token", "run this again"},
		{pkcs11.CKR_OPERATION_ACTIVE, "", ClassSession, "the session is in the middle of another operation", "run this again"},
		{pkcs11.CKR_OPERATION_NOT_INITIALIZED, "", ClassSession, "the session lost its operation", "run this again"},
		{ckrOperationCancelFailed, "", ClassSession, "the session's operation could not be ended", "run this again"},
		{pkcs11.CKR_SESSION_COUNT, "", ClassToken, "the token has no session left", "close other applications that use it, or raise its limit"},
		{pkcs11.CKR_SESSION_READ_ONLY, "", ClassToken, "the token gives read-only sessions", "it has to allow read-write sessions for the HSM user"},
		{pkcs11.CKR_TOKEN_WRITE_PROTECTED, "", ClassToken, "the token is write protected", "it has to allow read-write sessions for the HSM user"},
		{pkcs11.CKR_SESSION_PARALLEL_NOT_SUPPORTED, "", ClassLibrary, "the module took a serial session for a parallel one", "report this module"},
		// token and device
		{pkcs11.CKR_TOKEN_NOT_PRESENT, "", ClassToken, "the token is not there", "check the HSM, its network and its card or partition"},
		{pkcs11.CKR_TOKEN_NOT_RECOGNIZED, "", ClassToken, "the module does not recognise the token", "check the HSM's firmware against the module's version"},
		{pkcs11.CKR_SLOT_ID_INVALID, "", ClassToken, "the token's slot is gone", "check the HSM, then run this again"},
		{pkcs11.CKR_DEVICE_REMOVED, "", ClassToken, "the token was removed", "put it back, then run this again"},
		{pkcs11.CKR_DEVICE_ERROR, "", ClassToken, "the device reports an error", "look at the HSM's own log"},
		{pkcs11.CKR_DEVICE_MEMORY, "", ClassToken, "the device is out of memory", "look for session objects that other applications left behind"},
		{pkcs11.CKR_HOST_MEMORY, "", ClassLibrary, "the module is out of memory", "run this again"},
		{pkcs11.CKR_GENERAL_ERROR, "C_Initialize", ClassCaller, "the module could not start", "it usually means that it cannot read its configuration: check tokens[].environment and its permissions"},
		{pkcs11.CKR_GENERAL_ERROR, "", ClassToken, "the module reports an error without saying which", "look at the HSM's own log"},
		{pkcs11.CKR_FUNCTION_FAILED, "", ClassToken, "the function failed in the token", "look at the HSM's own log"},
		{pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED, "", ClassLibrary, "the module was finalised behind our back", "run this again"},
		{pkcs11.CKR_CANT_LOCK, "", ClassCaller, "the module cannot be used by several threads", "it cannot be used with hsmbridge"},
		{pkcs11.CKR_RANDOM_NO_RNG, "", ClassToken, "the token has no random numbers", "look at the HSM's own log"},
	}
}
