package hsmtest

import (
	"fmt"
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
func GenerateAES(t *testing.T, tok token.Token, label string, attribute uint, value bool) {
	t.Helper()
	raw(t, tok, func(c *pkcs11.Ctx, s pkcs11.SessionHandle) { rawAES(t, c, s, label, attribute, value) })
}
