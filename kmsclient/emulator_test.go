package kmsclient

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1" //nolint:gosec // RSAES_OAEP_SHA_1 is a wrapping algorithm of KMS
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"net/http/httptest"
	"testing"
	"time"

	"hsmbridge/kmsclient/kmsemu"
)

// newEmulator starts the emulator and makes a client for it.
func newEmulator(t *testing.T, o kmsemu.Options) (*kmsemu.Server, *Client) {
	t.Helper()
	emu, err := kmsemu.New(o)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(emu)
	t.Cleanup(s.Close)
	return emu, newTestClient(t, s.URL)
}

func create(t *testing.T, c *Client, spec string) KeyInfo {
	t.Helper()
	k, err := c.CreateKey(t.Context(), CreateKeyRequest{KeySpec: spec, Description: "test", Tags: map[string]string{"made-by": "test"}})
	if err != nil {
		t.Fatal(err)
	}
	if k.Origin != "EXTERNAL" || k.State != "PendingImport" || k.KeySpec != spec {
		t.Fatalf("created %+v", k)
	}
	return k
}

// wrap fetches import parameters and encrypts the material under them, as a token would.
func wrap(t *testing.T, c *Client, arn, algorithm, spec string, material []byte) ImportRequest {
	t.Helper()
	p, err := c.GetParametersForImport(t.Context(), arn, algorithm, spec)
	if err != nil {
		t.Fatal(err)
	}
	newHash := sha256.New
	if algorithm == "RSAES_OAEP_SHA_1" {
		newHash = sha1.New
	}
	wrapped, err := rsa.EncryptOAEP(newHash(), rand.Reader, p.PublicKey, material, nil)
	if err != nil {
		t.Fatal(err)
	}
	return ImportRequest{KeyARN: arn, ImportToken: p.ImportToken, EncryptedKeyMaterial: wrapped}
}

func random(t *testing.T, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	if _, err := rand.Read(b); err != nil {
		t.Fatal(err)
	}
	return b
}

func TestEmulatorSymmetric(t *testing.T) {
	_, c := newEmulator(t, kmsemu.Options{})
	k := create(t, c, "SYMMETRIC_DEFAULT")
	if err := c.CreateAlias(t.Context(), "alias/payments", k.ARN); err != nil {
		t.Fatal(err)
	}
	if got, err := c.DescribeKey(t.Context(), "alias/payments"); err != nil || got.ARN != k.ARN {
		t.Fatalf("by alias: %+v, %v", got, err)
	}
	material := random(t, 32)
	until := time.Now().Add(90 * 24 * time.Hour).Truncate(time.Second)
	var id string
	for i, spec := range []string{"RSA_2048", "RSA_3072", "RSA_4096"} {
		for j, algorithm := range []string{"RSAES_OAEP_SHA_256", "RSAES_OAEP_SHA_1"} {
			r := wrap(t, c, k.ARN, algorithm, spec, material)
			r.ValidTo = until
			if i+j > 0 {
				r.ImportType, r.KeyMaterialID = "EXISTING_KEY_MATERIAL", id
			}
			got, err := c.ImportKeyMaterial(t.Context(), r)
			if err != nil || got.KeyARN != k.ARN || len(got.KeyMaterialID) != 64 || i+j > 0 && got.KeyMaterialID != id {
				t.Fatalf("%s, %s: %+v, %v", algorithm, spec, got, err)
			}
			id = got.KeyMaterialID
		}
	}
	info, err := c.DescribeKey(t.Context(), k.ARN)
	if err != nil || info.State != "Enabled" || !info.Enabled || info.CurrentKeyMaterialID != id || !info.ValidTo.Equal(until) || info.ExpirationModel != "KEY_MATERIAL_EXPIRES" {
		t.Errorf("got %+v, %v", info, err)
	}
	list, err := c.ListKeyMaterials(t.Context(), k.ARN)
	if err != nil || len(list) != 1 || list[0].ID != id || list[0].State != "CURRENT" || list[0].ImportState != "IMPORTED" || !list[0].ValidTo.Equal(until) {
		t.Errorf("got %+v, %v", list, err)
	}

	r := wrap(t, c, k.ARN, "RSAES_OAEP_SHA_256", "RSA_2048", random(t, 32))
	if _, err := c.ImportKeyMaterial(t.Context(), r); Code(err) != "IncorrectKeyMaterialException" || OutcomeUnknown(err) {
		t.Errorf("other material: %v", err)
	}
	if err := c.DeleteImportedKeyMaterial(t.Context(), k.ARN, ""); err != nil {
		t.Fatal(err)
	}
	if info, err := c.DescribeKey(t.Context(), k.ARN); err != nil || info.State != "PendingImport" {
		t.Errorf("after deletion: %+v, %v", info, err)
	}
}

func TestEmulatorProofs(t *testing.T) {
	_, c := newEmulator(t, kmsemu.Options{})

	secret := random(t, 32)
	k := create(t, c, "HMAC_256")
	if _, err := c.ImportKeyMaterial(t.Context(), wrap(t, c, k.ARN, "RSAES_OAEP_SHA_256", "RSA_4096", secret)); err != nil {
		t.Fatal(err)
	}
	message := random(t, 64)
	mac, err := c.GenerateMAC(t.Context(), k.ARN, "HMAC_SHA_256", message)
	want := hmac.New(sha256.New, secret)
	want.Write(message)
	if err != nil || !hmac.Equal(mac, want.Sum(nil)) {
		t.Errorf("MAC %x, %v", mac, err)
	}
	if _, err := c.ListKeyMaterials(t.Context(), k.ARN); !IsUnsupportedOperation(err) {
		t.Errorf("materials of an HMAC key: %v", err)
	}

	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	k = create(t, c, "ECC_NIST_P256")
	if _, err := c.ImportKeyMaterial(t.Context(), wrap(t, c, k.ARN, "RSAES_OAEP_SHA_256", "RSA_4096", pkcs8)); err != nil {
		t.Fatal(err)
	}
	public, err := c.GetPublicKey(t.Context(), k.ARN)
	if err != nil || !bytes.Equal(public, spki(t, &private.PublicKey)) {
		t.Errorf("public key %x, %v", public, err)
	}
	signature, err := c.Sign(t.Context(), k.ARN, "ECDSA_SHA_256", message)
	digest := sha256.Sum256(message)
	if err != nil || !ecdsa.VerifyASN1(&private.PublicKey, digest[:], signature) {
		t.Errorf("signature %x, %v", signature, err)
	}
}

// The answer is lost before or after KMS did it: only a look at the key tells, and no second request is sent.
func TestEmulatorLostAnswer(t *testing.T) {
	for cut, state := range map[string]string{"before": "PendingImport", "after": "Enabled"} {
		t.Run(cut, func(t *testing.T) {
			emu, c := newEmulator(t, kmsemu.Options{})
			k := create(t, c, "SYMMETRIC_DEFAULT")
			r := wrap(t, c, k.ARN, "RSAES_OAEP_SHA_256", "RSA_2048", random(t, 32))
			var attempts int
			c.log = func(done Call) {
				if done.Operation == "ImportKeyMaterial" {
					attempts++
				}
			}
			emu.AddFault(kmsemu.Fault{Operation: "ImportKeyMaterial", Cut: cut})
			if _, err := c.ImportKeyMaterial(t.Context(), r); Code(err) != codeCut || !OutcomeUnknown(err) {
				t.Errorf("got %v", err)
			}
			if info, err := c.DescribeKey(t.Context(), k.ARN); err != nil || info.State != state {
				t.Errorf("got %+v, %v", info, err)
			}
			if attempts != 1 {
				t.Errorf("%d attempts", attempts)
			}
		})
	}
}

func TestEmulatorRetries(t *testing.T) {
	emu, c := newEmulator(t, kmsemu.Options{})
	k := create(t, c, "SYMMETRIC_DEFAULT")
	for _, f := range []kmsemu.Fault{{Cut: "before"}, {Cut: "after"}, {Code: "ThrottlingException"}, {Code: "KMSInternalException", Status: 500}} {
		var attempts int
		c.log = func(Call) { attempts++ }
		f.Operation = "DescribeKey"
		emu.AddFault(f)
		if _, err := c.DescribeKey(t.Context(), k.ARN); err != nil || attempts != 2 {
			t.Errorf("%+v: %d attempts, %v", f, attempts, err)
		}
	}
}

func TestEmulatorHostile(t *testing.T) {
	for name, h := range map[string]kmsemu.Hostile{
		"shorter":      {Bits: 1024},
		"longer":       {Bits: 3072},
		"exponent":     {Exponent: 3},
		"another key":  {KeyID: testARN},
		"a week":       {Life: 7 * 24 * time.Hour},
		"already over": {Life: -time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			emu, c := newEmulator(t, kmsemu.Options{})
			k := create(t, c, "SYMMETRIC_DEFAULT")
			emu.SetHostile(h)
			p, err := c.GetParametersForImport(t.Context(), k.ARN, "RSAES_OAEP_SHA_256", "RSA_2048")
			if _, ok := errors.AsType[*UntrustedParametersError](err); !ok || p.PublicKey != nil {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestEmulatorRefusals(t *testing.T) {
	emu, c := newEmulator(t, kmsemu.Options{})
	k := create(t, c, "SYMMETRIC_DEFAULT")
	other := create(t, c, "SYMMETRIC_DEFAULT")
	material := random(t, 32)

	_, err := c.GetParametersForImport(t.Context(), k.ARN, "RSAES_PKCS1_V1_5", "RSA_2048")
	if e, ok := errors.AsType[*Error](err); !ok || e.Class() != ClassCaller || e.Retryable {
		t.Errorf("PKCS #1 v1.5: %v", err)
	}
	if _, err := c.DescribeKey(t.Context(), k.ARN[:len(k.ARN)-4]+"0000"); Code(err) != "NotFoundException" {
		t.Errorf("no such key: %v", err)
	}
	r := wrap(t, c, k.ARN, "RSAES_OAEP_SHA_256", "RSA_2048", material)
	r.KeyARN = other.ARN
	if _, err := c.ImportKeyMaterial(t.Context(), r); Code(err) != "InvalidImportTokenException" || OutcomeUnknown(err) {
		t.Errorf("token of another key: %v", err)
	}
	r = wrap(t, c, k.ARN, "RSAES_OAEP_SHA_256", "RSA_2048", material)
	r.EncryptedKeyMaterial[10] ^= 1
	if _, err := c.ImportKeyMaterial(t.Context(), r); Code(err) != "InvalidCiphertextException" {
		t.Errorf("broken ciphertext: %v", err)
	}
	r = wrap(t, c, k.ARN, "RSAES_OAEP_SHA_256", "RSA_2048", material)
	r.ValidTo = time.Now().Add(400 * 24 * time.Hour)
	if _, err := c.ImportKeyMaterial(t.Context(), r); Code(err) != "ValidationException" {
		t.Errorf("too long: %v", err)
	}
	r.ValidTo = time.Time{}
	emu.Advance(25 * time.Hour)
	if _, err := c.ImportKeyMaterial(t.Context(), r); Code(err) != "ExpiredImportTokenException" {
		t.Errorf("late: %v", err)
	}
	emu.Without("ListKeyRotations")
	if _, err := c.ListKeyMaterials(t.Context(), k.ARN); !IsUnsupportedOperation(err) {
		t.Errorf("without ListKeyRotations: %v", err)
	}
}
