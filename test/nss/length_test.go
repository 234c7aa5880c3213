package nss_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"testing"

	"github.com/miekg/pkcs11"

	"hsmbridge/hsm/hsmtest"
	"hsmbridge/hsm/pkcs11uri"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/hsm/wrapping/trial"
	"hsmbridge/test/nss"
)

// Of an EC key that was made without its public key, NSS gives a shorter PKCS#8 than of one that it generated. Both are wrapped.
func TestKeyWithoutPublicKey(t *testing.T) {
	tok := nss.New(t).Token
	h := hsmtest.Open(t, tok)
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	value, err := ec.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	hsmtest.Create(t, tok, []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY), pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_EC), pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true),
		pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, true), pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, true), pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, true),
		pkcs11.NewAttribute(pkcs11.CKA_SIGN, true), pkcs11.NewAttribute(pkcs11.CKA_LABEL, "short"), pkcs11.NewAttribute(pkcs11.CKA_ID, []byte{9}),
		pkcs11.NewAttribute(pkcs11.CKA_EC_PARAMS, []byte{0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07}), pkcs11.NewAttribute(pkcs11.CKA_VALUE, value),
	})
	caps, err := h.Probe(t.Context(), wrapping.ECCNISTP256)
	if err != nil {
		t.Fatal(err)
	}
	plan := wrapping.Select(wrapping.ECCNISTP256, caps, wrapping.Policy{}).Plans[0]
	key, err := h.Find(t.Context(), pkcs11uri.URI{Object: "short"})
	if err != nil {
		t.Fatal(err)
	}
	under, err := trial.NewRSAKey(plan.WrappingKeySpec)
	if err != nil {
		t.Fatal(err)
	}
	out, err := h.Wrap(t.Context(), key, under.Public(), plan)
	if err != nil {
		t.Fatal(err)
	}
	material, err := under.Open(plan.Algorithm, out)
	if err != nil {
		t.Fatal(err)
	}
	got, err := x509.ParsePKCS8PrivateKey(material)
	if err != nil || !ec.Equal(got) {
		t.Errorf("another key came out (%d bytes, the plan says %d): %v", len(material), plan.Length, err)
	}
	if len(material) == plan.Length {
		t.Errorf("it is as long as one that NSS generated: %d bytes", plan.Length)
	}
}
