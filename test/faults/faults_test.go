package faults

import (
	"slices"
	"strings"
)

// fault is something that happens in a call, in the words of the shim's script.
type fault struct {
	name string
	rule string   // after "C_Function: "
	in   []string // the functions in which it makes sense; nil: every one that has a session, or any
	only string   // the operation in which it makes sense; empty: any
	core bool     // it stands for its class
}

// Functions with an output that a script can spoil.
var spoils = []string{"C_WrapKey", "C_Sign", "C_Encrypt"}

// Functions that leave something else in the token, or less, than was there before.
var changes = []string{"C_CreateObject", "C_GenerateKey", "C_GenerateKeyPair", "C_DestroyObject", "C_CloseSession"}

// faults are the classes of faults. Each happens in the first call of a function, once.
func faults() []fault {
	var out []fault
	for _, ckr := range []string{
		"CKR_DEVICE_ERROR", "CKR_DEVICE_MEMORY", "CKR_HOST_MEMORY", "CKR_GENERAL_ERROR", "CKR_FUNCTION_FAILED", "0x80000001", "CKR_TOKEN_NOT_PRESENT",
		"CKR_DEVICE_REMOVED", "CKR_USER_NOT_LOGGED_IN", "CKR_CRYPTOKI_NOT_INITIALIZED", "CKR_SESSION_CLOSED", "CKR_FUNCTION_NOT_SUPPORTED", "CKR_ARGUMENTS_BAD",
	} {
		core := slices.Contains([]string{"CKR_DEVICE_ERROR", "CKR_GENERAL_ERROR", "CKR_USER_NOT_LOGGED_IN", "CKR_CRYPTOKI_NOT_INITIALIZED", "CKR_FUNCTION_NOT_SUPPORTED"}, ckr)
		out = append(out, fault{name: ckr, rule: "return " + ckr + " times 1", core: core})
	}
	out = append(
		out,
		fault{name: "CKR_SESSION_COUNT", rule: "return CKR_SESSION_COUNT times 1", in: []string{"C_OpenSession"}},
		fault{name: "CKR_SESSION_READ_ONLY", rule: "return CKR_SESSION_READ_ONLY times 1", in: []string{"C_CreateObject", "C_GenerateKey", "C_GenerateKeyPair"}},
		fault{name: "CKR_MECHANISM_INVALID", rule: "return CKR_MECHANISM_INVALID times 1", in: []string{"C_WrapKey", "C_SignInit", "C_EncryptInit", "C_GenerateKey", "C_GenerateKeyPair"}, core: true},
		fault{name: "CKR_FUNCTION_CANCELED", rule: "return CKR_FUNCTION_CANCELED times 1", in: []string{"C_WrapKey", "C_CreateObject", "C_GenerateKey"}, core: true},
		fault{name: "CKR_KEY_UNEXTRACTABLE", rule: "return CKR_KEY_UNEXTRACTABLE times 1", in: []string{"C_WrapKey"}},
		fault{name: "CKR_BUFFER_TOO_SMALL", rule: "return CKR_BUFFER_TOO_SMALL times 1", in: append([]string{"C_GetAttributeValue"}, spoils...)},
		fault{name: "CKR_OPERATION_ACTIVE", rule: "return CKR_OPERATION_ACTIVE times 1", in: []string{"C_FindObjectsInit", "C_SignInit", "C_EncryptInit"}},
	)
	for _, pin := range []string{"CKR_PIN_INCORRECT", "CKR_PIN_LOCKED", "CKR_PIN_EXPIRED", "CKR_USER_PIN_NOT_INITIALIZED"} {
		out = append(out, fault{name: pin, rule: "return " + pin + " times 1", in: []string{"C_Login"}})
	}
	return append(
		out,
		fault{name: "the session is lost", rule: "session lost times 1", core: true},
		fault{name: "every session of the function is lost", rule: "session lost"},
		fault{name: "all sessions and the login are lost", rule: "sessions lost times 1", core: true},
		fault{name: "all object handles are stale", rule: "objects stale times 1", core: true},
		fault{name: "somebody logs out", rule: "login lost times 1", core: true},
		fault{name: "the token is taken out", rule: "token removed times 1", core: true},
		fault{name: "garbage", rule: "output garbage times 1", in: append([]string{"C_GetAttributeValue"}, spoils...), core: true},
		fault{name: "half of the output", rule: "output truncated times 1", in: spoils},
		fault{name: "plaintext", rule: "output plaintext times 1", in: spoils},
		fault{name: "zeros", rule: "output zero times 1", in: spoils},
		fault{name: "a length 8 too small", rule: "length -8 times 1", in: spoils},
		fault{name: "a length far beyond the buffer", rule: "length 1099511627776 times 1", in: append([]string{"C_GetAttributeValue"}, spoils...), core: true},
		fault{name: "length queries that say too little", rule: "query -8", in: append([]string{"C_GetAttributeValue"}, spoils...)},
		fault{name: "SHA-1 in OAEP whatever is asked for", rule: "oaep sha1", in: []string{"C_WrapKey"}, only: "Probe", core: true},
		fault{name: "done, but CKR_DEVICE_ERROR", rule: "answer lost CKR_DEVICE_ERROR times 1", in: changes, core: true},
		fault{name: "done, but CKR_GENERAL_ERROR", rule: "answer lost CKR_GENERAL_ERROR times 1", in: changes, core: true},
		fault{name: "a wait of 5 ms", rule: "delay 5ms times 1"},
		fault{name: "a hang", rule: hang, core: true},
	)
}

const hang = "hang times 1"

// needsSession are functions without a session, in which none can be lost.
func needsSession(function string) bool {
	switch function {
	case "C_OpenSession", "C_GetTokenInfo", "C_GetSlotList", "C_GetMechanismList", "C_GetMechanismInfo", "C_Initialize", "C_Finalize", "C_GetInfo", "C_GetSlotInfo":
		return false
	}
	return true
}

// fits says that the fault makes sense in the function.
func (f fault) fits(function string) bool {
	if f.in == nil {
		return needsSession(function) || !strings.HasPrefix(f.rule, "session") && f.rule != "login lost times 1" && f.rule != "objects stale times 1"
	}
	return slices.Contains(f.in, function)
}
