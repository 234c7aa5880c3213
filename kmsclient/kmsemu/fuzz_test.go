package kmsemu

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"
)

// FuzzRequest holds that no request ends in anything but JSON: an answer, or an error with a type.
func FuzzRequest(f *testing.F) {
	f.Add("CreateKey", []byte(`{"Origin":"EXTERNAL","KeySpec":"HMAC_256"}`))
	f.Add("ImportKeyMaterial", []byte(`{"KeyId":"alias/x","ValidTo":1e300}`))
	f.Add("DescribeKey", []byte(`{"KeyId":"arn:aws:kms:::key/"}`))
	f.Add("Decrypt", []byte(`{"CiphertextBlob":"AQ=="}`))
	f.Add("Nothing", []byte(`[`))
	f.Fuzz(func(t *testing.T, operation string, body []byte) {
		s, err := New(Options{})
		if err != nil {
			t.Fatal(err)
		}
		req := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", bytes.NewReader(body))
		req.Header.Set("X-Amz-Target", "TrentService."+operation)
		req.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential=a/20260101/eu-central-1/kms/aws4_request")
		w := httptest.NewRecorder()
		s.ServeHTTP(w, req)
		var answer map[string]any
		if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil {
			t.Fatalf("%d %q: %v", w.Code, w.Body, err)
		}
		if w.Code != http.StatusOK && (answer["__type"] == "" || w.Code != http.StatusBadRequest) {
			t.Errorf("%d %q", w.Code, w.Body)
		}
	})
}

// FuzzMaterial holds that what is taken as a private key of a spec has nothing behind it and has a public half.
func FuzzMaterial(f *testing.F) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(der)
	f.Add(append(bytes.Clone(der), 0))
	if der, err = generateSecp256k1(); err != nil {
		f.Fatal(err)
	}
	f.Add(der)
	f.Fuzz(func(t *testing.T, b []byte) {
		for spec := range specs() {
			got, err := checkMaterial(spec, b, false)
			if err != nil {
				continue
			}
			if !bytes.Equal(got, b) {
				t.Errorf("%s: %d bytes were taken of %d", spec, len(got), len(b))
			}
			if n := lengths()[spec]; n == 0 {
				if id, err := privateIdentity(spec, b); err != nil || len(id) == 0 {
					t.Errorf("%s: no public half: %v", spec, err)
				}
			} else if len(b) != n {
				t.Errorf("%s: %d bytes", spec, len(b))
			}
		}
	})
}

// FuzzUnwrap holds that no ciphertext makes the emulator fail.
func FuzzUnwrap(f *testing.F) {
	key, err := newWrapper(2048)
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte{}, 0)
	f.Add(make([]byte, 256), 1)
	f.Add(make([]byte, 296), 3)
	algorithms := []string{"RSAES_OAEP_SHA_256", "RSAES_OAEP_SHA_1", "RSAES_PKCS1_V1_5", "RSA_AES_KEY_WRAP_SHA_256", "RSA_AES_KEY_WRAP_SHA_1"}
	f.Fuzz(func(t *testing.T, ct []byte, which int) {
		a := algorithms[(which%5+5)%5]
		// One random block in some 70,000 is good PKCS #1 v1.5 padding, which is why AWS gave it up.
		if b, err := unwrap(key, a, ct); err == nil && a != "RSAES_PKCS1_V1_5" {
			t.Errorf("%s opened a ciphertext that nobody made: %d bytes", a, len(b))
		}
	})
}
