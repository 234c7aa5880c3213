package nss_test

import (
	"errors"
	"strings"
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/pkcs11"

	"hsmbridge/test/nss"
	"hsmbridge/test/token"
)

// keySlot is where softokn shows the database; slot 1 is its internal cryptography.
const keySlot = 2

func TestTokenHoldsKeys(t *testing.T) {
	tests := []struct {
		name   string
		labels []string
		want   string
	}{
		{"label of the fixture", nil, "nss-test"},
		{"label of its own", []string{"other label"}, "other label"},
		{"label of NSS", []string{nss.DefaultLabel}, nss.DefaultLabel},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tok := nss.New(t, tt.labels...)
			session(t, tok, func(p *pkcs11.Ctx, s pkcs11.SessionHandle) {
				info, err := p.GetTokenInfo(keySlot)
				if err != nil {
					t.Fatal(err)
				}
				if info.Label != tt.want || tok.Label != tt.want {
					t.Errorf("label %q, of the fixture %q, want %q", info.Label, tok.Label, tt.want)
				}
				if info.SerialNumber != tok.Serial {
					t.Errorf("serial number %q, of the fixture %q", info.SerialNumber, tok.Serial)
				}
				if n := keys(t, p, s); n != 0 {
					t.Errorf("a new database holds %d keys", n)
				}
				generate(t, p, s)
			})
			session(t, tok, func(p *pkcs11.Ctx, s pkcs11.SessionHandle) {
				if n := keys(t, p, s); n != 1 {
					t.Errorf("the database holds %d keys after one was made", n)
				}
			})
		})
	}
}

func TestTwoDatabasesDoNotMeet(t *testing.T) {
	one, two := nss.New(t), nss.New(t)
	session(t, one, func(p *pkcs11.Ctx, s pkcs11.SessionHandle) { generate(t, p, s) })
	session(t, two, func(p *pkcs11.Ctx, s pkcs11.SessionHandle) {
		if n := keys(t, p, s); n != 0 {
			t.Errorf("the second database holds %d keys of the first", n)
		}
	})
}

// The package comment promises this: it is why pkcs11-tool cannot be used.
func TestParametersAreNeeded(t *testing.T) {
	tok := nss.New(t)
	p := load(t, tok)
	if err := p.Initialize(); !errors.Is(err, pkcs11.Error(pkcs11.CKR_ARGUMENTS_BAD)) {
		t.Errorf("C_Initialize without parameters: %v, want CKR_ARGUMENTS_BAD", err)
	}
}

func TestNothingIsLeft(t *testing.T) {
	var dir string
	before := token.Files(t, "/dev/shm")
	t.Run("use", func(t *testing.T) {
		tok := nss.New(t)
		session(t, tok, func(p *pkcs11.Ctx, s pkcs11.SessionHandle) { generate(t, p, s) })
		dir = tok.Dir
	})
	if left := token.Files(t, dir); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if diff := cmp.Diff(before, token.Files(t, "/dev/shm")); diff != "" {
		t.Errorf("files of the machine changed (-before +after):\n%s", diff)
	}
}

func load(t *testing.T, tok nss.Token) *pkcs11.Ctx {
	t.Helper()
	p := pkcs11.New(tok.Module)
	if p == nil {
		t.Fatalf("load %s", tok.Module)
	}
	t.Cleanup(p.Destroy)
	return p
}

// session logs in to the token for one function and finalises the module after it.
func session(t *testing.T, tok nss.Token, use func(*pkcs11.Ctx, pkcs11.SessionHandle)) {
	t.Helper()
	p := load(t, tok)
	parameters := append([]byte(tok.Parameters), 0) // pReserved is a C string, read during the call
	if err := p.Initialize(pkcs11.InitializeWithReserved(unsafe.Pointer(&parameters[0]))); err != nil {
		t.Fatalf("C_Initialize(%s): %v", tok.Parameters, err)
	}
	defer func() {
		if err := p.Finalize(); err != nil {
			t.Errorf("C_Finalize: %v", err)
		}
	}()
	s, err := p.OpenSession(keySlot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	if err != nil {
		t.Fatalf("C_OpenSession: %v", err)
	}
	if err := p.Login(s, pkcs11.CKU_USER, strings.Repeat("x", 4)); !errors.Is(err, pkcs11.Error(pkcs11.CKR_PIN_INCORRECT)) {
		t.Fatalf("C_Login with a wrong PIN: %v, want CKR_PIN_INCORRECT", err)
	}
	if err := p.Login(s, pkcs11.CKU_USER, tok.PIN); err != nil {
		t.Fatalf("C_Login: %v", err)
	}
	use(p, s)
}

func generate(t *testing.T, p *pkcs11.Ctx, s pkcs11.SessionHandle) {
	t.Helper()
	_, err := p.GenerateKey(s, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_KEY_GEN, nil)}, []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true),
		pkcs11.NewAttribute(pkcs11.CKA_LABEL, "key"),
		pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, 32),
	})
	if err != nil {
		t.Fatalf("C_GenerateKey: %v", err)
	}
}

func keys(t *testing.T, p *pkcs11.Ctx, s pkcs11.SessionHandle) int {
	t.Helper()
	if err := p.FindObjectsInit(s, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY)}); err != nil {
		t.Fatalf("C_FindObjectsInit: %v", err)
	}
	found, _, err := p.FindObjects(s, 10)
	if err != nil {
		t.Fatalf("C_FindObjects: %v", err)
	}
	if err := p.FindObjectsFinal(s); err != nil {
		t.Fatalf("C_FindObjectsFinal: %v", err)
	}
	return len(found)
}
