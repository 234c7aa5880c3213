package hsm

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"

	"hsmbridge/hsm/wrapping"
)

// TestTranslations holds the table: each row can be reached, has a class and says a cause, and no PIN error may be
// repeated by whoever retries sessions.
func TestTranslations(t *testing.T) {
	classes := []string{ClassCaller, ClassSession, ClassToken, ClassLibrary}
	type place struct {
		code uint
		op   string
	}
	seen := map[place]bool{}
	for _, row := range translations() {
		name := codeName(row.code)
		if !slices.Contains(classes, row.class) || row.cause == "" || row.fix == "" {
			t.Errorf("%s: class %q, cause %q, fix %q", name, row.class, row.cause, row.fix)
		}
		if seen[place{row.code, ""}] || seen[place{row.code, row.op}] {
			t.Errorf("%s for %q is hidden by a row before it", name, row.op)
		}
		seen[place{row.code, row.op}] = true
		if strings.Contains(name, "_PIN_") && row.class != ClassToken {
			t.Errorf("%s has class %s: it would be tried again", name, row.class)
		}
		for _, text := range []string{row.cause, row.fix} {
			if strings.HasSuffix(text, ".") || strings.Contains(strings.NewReplacer("{key}", "", "{token}", "").Replace(text), "{") {
				t.Errorf("%s: %q", name, text)
			}
		}
		op := row.op
		if op == "" {
			op = "C_Something"
		}
		var e *Error
		if err := fault(op, pkcs11.Error(row.code), about{what: "vault", key: "payments"}); !errors.As(err, &e) || e.Class() != row.class || e.Code != row.code || !errors.Is(err, pkcs11.Error(row.code)) {
			t.Errorf("%s: %v", name, err)
		}
		if strings.Contains(e.Error(), "{") || !strings.Contains(e.Error(), e.Name) {
			t.Errorf("%s: %q", name, e.Error())
		}
	}
}

func TestFault(t *testing.T) {
	for _, tt := range []struct {
		err         error
		class, want string
	}{
		{pkcs11.Error(pkcs11.CKR_KEY_UNEXTRACTABLE), ClassCaller, "C_X: CKR_KEY_UNEXTRACTABLE (0x6A): payments was generated with CKA_EXTRACTABLE=false and can never leave this token; generate a new key"},
		{pkcs11.Error(pkcs11.CKR_SESSION_HANDLE_INVALID), ClassSession, "CKR_SESSION_HANDLE_INVALID (0xB3)"},
		{pkcs11.Error(0x80000123), ClassToken, "CKR_VENDOR_DEFINED (0x80000123): the token refused"},
		{pkcs11.Error(0x7777), ClassToken, "CKR_? (0x7777)"},
		{errors.New("a length that cannot be"), ClassLibrary, "against the standard: a length that cannot be"},
		{fmt.Errorf("before: %w", &Error{Op: "C_Before", ErrClass: ClassCaller, Cause: "known"}), ClassCaller, "before: C_Before: known"},
	} {
		err := fault("C_X", tt.err, about{key: "payments"})
		if classOf(err) != tt.class || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("fault(%v) = %v of class %q, want %q of class %q", tt.err, err, classOf(err), tt.want, tt.class)
		}
	}
	if err := fault("C_X", nil, about{}); err != nil {
		t.Errorf("fault(nil) = %v", err)
	}
}

// TestRefusal holds what a probe takes for an answer about a mechanism, and what ends it.
func TestRefusal(t *testing.T) {
	for code, ends := range map[uint]bool{
		pkcs11.CKR_MECHANISM_INVALID: false, pkcs11.CKR_MECHANISM_PARAM_INVALID: false, pkcs11.CKR_ARGUMENTS_BAD: false,
		pkcs11.CKR_KEY_NOT_WRAPPABLE: false, pkcs11.CKR_FUNCTION_FAILED: false, pkcs11.CKR_GENERAL_ERROR: false, 0x80000001: false,
		pkcs11.CKR_USER_NOT_LOGGED_IN: true, pkcs11.CKR_DEVICE_ERROR: true, pkcs11.CKR_SESSION_COUNT: true, pkcs11.CKR_SESSION_CLOSED: true, pkcs11.CKR_TOKEN_NOT_PRESENT: true, pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED: true,
	} {
		reason, err := refusal(pkcs11.Error(code))
		if (err != nil) != ends || (reason == "") != ends {
			t.Errorf("%s: reason %q, error %v", codeName(code), reason, err)
		}
	}
}

// TestKeySpecOf holds which objects KMS takes.
func TestKeySpecOf(t *testing.T) {
	for _, tt := range []struct {
		keyType, bits int
		curve         string
		want          wrapping.KeySpec
	}{
		{pkcs11.CKK_AES, 256, "", wrapping.SymmetricDefault},
		{pkcs11.CKK_AES, 128, "", ""},
		{pkcs11.CKK_GENERIC_SECRET, 224, "", wrapping.HMAC224},
		{pkcs11.CKK_SHA256_HMAC, 256, "", wrapping.HMAC256},
		{pkcs11.CKK_GENERIC_SECRET, 160, "", ""},
		{pkcs11.CKK_RSA, 3072, "", wrapping.KeyRSA3072},
		{pkcs11.CKK_RSA, 1024, "", ""},
		{pkcs11.CKK_EC, 521, "P-521", wrapping.ECCNISTP521},
		{pkcs11.CKK_EC, 256, "secp256k1", wrapping.ECCSECGP256K1},
		{pkcs11.CKK_EC, 0, "", ""},
		{ckkECEdwards, 256, "Ed25519", wrapping.ECCEdwards25519},
		{pkcs11.CKK_DES3, 192, "", ""},
		{-1, 0, "", ""},
	} {
		if got := keySpecOf(tt.keyType, tt.bits, tt.curve); got != tt.want {
			t.Errorf("keySpecOf(%#x, %d, %q) = %q, want %q", tt.keyType, tt.bits, tt.curve, got, tt.want)
		}
	}
}

func TestECPoint(t *testing.T) {
	point := make([]byte, 65)
	point[0] = 4
	for name, b := range map[string][]byte{"bare": point, "in an OCTET STRING": append([]byte{4, 65}, point...)} {
		if got := ecPoint(b, wrapping.ECCNISTP256); len(got) != 65 || got[0] != 4 {
			t.Errorf("%s: %x", name, got)
		}
	}
	for name, b := range map[string][]byte{"empty": nil, "short": point[:64], "other curve": make([]byte, 97), "trailing": append(append([]byte{4, 65}, point...), 0)} {
		if got := ecPoint(b, wrapping.ECCNISTP256); got != nil {
			t.Errorf("%s: %x", name, got)
		}
	}
}
