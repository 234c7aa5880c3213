package hsmtest

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"

	"hsmbridge/test/token"
)

// DecryptGCM has the token decrypt AES-256-GCM (tag of 16 bytes at the end, no additional data) with the secret key
// of that label: what hsm itself never does. The token must be open in this process.
func DecryptGCM(t *testing.T, tok token.Token, label string, iv, ciphertext []byte) (plain []byte, err error) {
	t.Helper()
	raw(t, tok, func(c *pkcs11.Ctx, s pkcs11.SessionHandle) {
		if err = c.FindObjectsInit(s, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), pkcs11.NewAttribute(pkcs11.CKA_LABEL, label)}); err != nil {
			return
		}
		found, _, ferr := c.FindObjects(s, 2)
		if err = c.FindObjectsFinal(s); err != nil || ferr != nil || len(found) != 1 {
			err = fmt.Errorf("%d keys %q: %w", len(found), label, err)
			return
		}
		params := pkcs11.NewGCMParams(iv, nil, 128)
		defer params.Free()
		if err = c.DecryptInit(s, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_GCM, params)}, found[0]); err != nil {
			return
		}
		plain, err = c.Decrypt(s, ciphertext)
	})
	return plain, err
}

// GenerateAES generates a stored AES-256 key with one attribute as given, which hsm itself never does. The token
// must be open in this process.
func GenerateAES(t *testing.T, tok token.Token, label string, attribute uint, value any) {
	t.Helper()
	raw(t, tok, func(c *pkcs11.Ctx, s pkcs11.SessionHandle) { rawAES(t, c, s, label, attribute, value) })
}

// Create makes an object as given, which hsm itself never does. The token must be open in this process.
func Create(t *testing.T, tok token.Token, template []*pkcs11.Attribute) {
	t.Helper()
	raw(t, tok, func(c *pkcs11.Ctx, s pkcs11.SessionHandle) {
		if _, err := c.CreateObject(s, template); err != nil {
			t.Fatal(err)
		}
	})
}

// raw runs f on a session of its own in the same process, to make what hsm itself never makes. The token is open in this process.
func raw(t *testing.T, tok token.Token, f func(c *pkcs11.Ctx, s pkcs11.SessionHandle)) {
	t.Helper()
	rawModule(t, tok, func(c *pkcs11.Ctx) {
		slots, err := c.GetSlotList(true)
		if err != nil {
			t.Fatal(err)
		}
		for _, slot := range slots {
			info, err := c.GetTokenInfo(slot)
			if err != nil || strings.TrimRight(info.Label, " \x00") != tok.Label {
				continue
			}
			s, err := c.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
			if err != nil {
				t.Fatal(err)
			}
			if err := c.Login(s, pkcs11.CKU_USER, tok.PIN); err != nil && !errors.Is(err, pkcs11.Error(pkcs11.CKR_USER_ALREADY_LOGGED_IN)) {
				t.Fatal(err)
			}
			f(c, s)
			if err := c.CloseSession(s); err != nil {
				t.Fatal(err)
			}
			return
		}
		t.Fatalf("no token %q", tok.Label)
	})
}

// rawModule runs f with the module, which is initialised in this process; one of p11-kit knows that only of the function list by which
// it was.
func rawModule(t *testing.T, tok token.Token, f func(c *pkcs11.Ctx)) {
	t.Helper()
	c := pkcs11.New(tok.Module)
	if c == nil {
		t.Fatalf("load %s", tok.Module)
	}
	defer c.Destroy()
	switch _, err := c.GetInfo(); {
	case errors.Is(err, pkcs11.Error(pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED)):
		if err := c.Initialize(); err != nil {
			t.Fatal(err)
		}
		defer c.Finalize() //nolint:errcheck // the test is over
	case err != nil:
		t.Fatal(err)
	}
	f(c)
}

// rawAES generates an AES-256 key with one attribute as given.
func rawAES(t *testing.T, c *pkcs11.Ctx, s pkcs11.SessionHandle, label string, attribute uint, value any) {
	t.Helper()
	template := []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_AES),
		pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, 32), pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true), pkcs11.NewAttribute(pkcs11.CKA_LABEL, label),
		pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, true), pkcs11.NewAttribute(attribute, value),
	}
	if attribute != pkcs11.CKA_EXTRACTABLE {
		template = append(template, pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, true))
	}
	if _, err := c.GenerateKey(s, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_KEY_GEN, nil)}, template); err != nil {
		t.Fatalf("generate %s: %v", label, err)
	}
}

// rawPair generates a pair for signing, P-256.
func rawPair(t *testing.T, c *pkcs11.Ctx, s pkcs11.SessionHandle, label string) {
	t.Helper()
	p256 := []byte{0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07}
	both := []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true), pkcs11.NewAttribute(pkcs11.CKA_LABEL, label)}
	_, _, err := c.GenerateKeyPair(s, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_EC_KEY_PAIR_GEN, nil)},
		append(slices.Clone(both), pkcs11.NewAttribute(pkcs11.CKA_EC_PARAMS, p256), pkcs11.NewAttribute(pkcs11.CKA_VERIFY, true)),
		append(slices.Clone(both), pkcs11.NewAttribute(pkcs11.CKA_SIGN, true), pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, true), pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, true)))
	if err != nil {
		t.Fatalf("generate %s: %v", label, err)
	}
}
