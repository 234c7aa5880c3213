package approval_test

import (
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"hsmbridge/daemon/approval"
)

var askedAt = time.Date(2030, 1, 31, 12, 0, 0, 0, time.UTC)

// seed is an Ed25519 key that is the same in every run.
func seed(name string) ed25519.PrivateKey {
	sum := sha256.Sum256([]byte(name))
	return ed25519.NewKeyFromSeed(sum[:])
}

// spki is a DER SubjectPublicKeyInfo that is the same in every run.
func spki(name string) []byte {
	der, err := x509.MarshalPKIXPublicKey(seed(name).Public())
	if err != nil {
		panic(err)
	}
	return der
}

// sample is a request in which every field says something.
func sample() approval.Request {
	return approval.Request{
		ID: "7K3M-9QXA-0B2C-D4EF", Purpose: approval.Import, AskedBy: "operator", AskedAt: askedAt, ValidUntil: askedAt.Add(24 * time.Hour),
		Why: "yearly rotation, ticket 4711: Überprüft", Key: "payments", KeySpec: "SYMMETRIC_DEFAULT", HSM: "SoftHSM project SoftHSM v2",
		Serial: "0123456789abcdef", Token: "production", Firmware: "2.6", Object: "pkcs11:object=payments;type=secret-key",
		Material: "check value 1A2B3C", Destination: "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab",
		Endpoint: "https://kms.example:8443", Action: "import", Algorithm: "RSAES_OAEP_SHA_256", WrappingSpec: "RSA_4096",
		Mechanism: "CKM_RSA_PKCS_OAEP", ImportType: "NEW_KEY_MATERIAL", KeyMaterialID: "0f1e", Expires: "never", Proof: "second wrap",
		Plan: strings.Repeat("ab", 32), ParametersValidTo: askedAt.Add(23 * time.Hour), WrappingKeys: [][]byte{spki("wrapping"), spki("proof")},
	}
}

func textOf(t testing.TB, r approval.Request) []byte {
	t.Helper()
	text, err := r.Text()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func officer(name string, keys ...ssh.PublicKey) approval.Officer {
	o := approval.Officer{Name: name}
	for _, k := range keys {
		o.Keys = append(o.Keys, approval.Key{PublicKey: k})
	}
	return o
}

// line is a key as it stands in a .pub file.
func line(key ssh.PublicKey) string { return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key))) }

// decideOne says what a policy of one officer with one key makes of one signature.
func decideOne(t *testing.T, p approval.Policy, key ssh.PublicKey, text, armored []byte) (approval.Decision, approval.Verdict) {
	t.Helper()
	p.Officers, p.Threshold = []approval.Officer{officer("alice", key)}, 1
	d, err := p.Decide(text, [][]byte{armored}, askedAt.Add(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	return d, d.Verdicts[0]
}

const (
	sigBegin = "-----BEGIN SSH SIGNATURE-----\n"
	sigEnd   = "\n-----END SSH SIGNATURE-----\n"
)

func unarmor(t testing.TB, armored []byte) []byte {
	t.Helper()
	body := strings.TrimSuffix(strings.TrimPrefix(string(armored), sigBegin), sigEnd)
	blob, err := base64.StdEncoding.DecodeString(body)
	if err != nil {
		t.Fatal(err)
	}
	return blob
}

func rearmor(blob []byte) []byte {
	return []byte(sigBegin + base64.StdEncoding.EncodeToString(blob) + sigEnd)
}
