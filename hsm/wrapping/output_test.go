package wrapping_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"testing"

	"hsmbridge/hsm/wrapping"
)

func random(t *testing.T, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	if _, err := rand.Read(b); err != nil {
		t.Fatal(err)
	}
	return b
}

func pkcs8(t *testing.T, key any) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestCheckOutput(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ecKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaDER, ecDER := pkcs8(t, rsaKey), pkcs8(t, ecKey)
	aes := wrapping.Plan{KeySpec: wrapping.SymmetricDefault, Algorithm: wrapping.OAEPSHA256, WrappingKeySpec: wrapping.RSA2048, Length: 32}
	edwards := wrapping.Plan{KeySpec: wrapping.ECCEdwards25519, Algorithm: wrapping.RSAAESSHA256, WrappingKeySpec: wrapping.RSA2048, Length: 83}
	ec := wrapping.Plan{KeySpec: wrapping.ECCNISTP256, Algorithm: wrapping.RSAAESSHA256, WrappingKeySpec: wrapping.RSA2048, Length: 138}
	rs := wrapping.Plan{KeySpec: wrapping.KeyRSA2048, Algorithm: wrapping.RSAAESSHA256, WrappingKeySpec: wrapping.RSA4096}
	em := append([]byte{0, 2}, bytes.Repeat([]byte{0x5a, 0xa5}, 111)...)
	em = append(append(em[:256-33:256-33], 0), random(t, 32)...)

	for _, tt := range []struct {
		name string
		plan wrapping.Plan
		out  []byte
		ok   bool
	}{
		{"ciphertext", aes, random(t, 256), true},
		{"one byte short", aes, random(t, 255), false},
		{"one byte long", aes, random(t, 257), false},
		{"empty", aes, nil, false},
		{"the raw key", aes, random(t, 32), false},
		{"the raw key in zeros", aes, append(make([]byte, 224), random(t, 32)...), false},
		{"padding never encrypted", aes, em, false},
		{"all zero", aes, make([]byte, 256), false},
		{"two parts", ec, random(t, 256+152), true},
		{"AES part missing", ec, random(t, 256), false},
		{"AES part of another key of the curve, without the public key", ec, random(t, 256+80), true},
		{"AES part of the least PKCS#8", edwards, random(t, 256+56), true},
		{"AES part too short for the scalar", ec, random(t, 256+48), false},
		{"AES part too long", ec, random(t, 256+240), false},
		{"AES part not a multiple of 8", ec, random(t, 256+150), false},
		{"AES part is the PKCS#8", ec, append(random(t, 256), append(ecDER, make([]byte, 152-len(ecDER))...)...), false},
		{"AES part all zero", ec, append(random(t, 256), make([]byte, 152)...), false},
		{"RSA key", rs, random(t, 512+1216+8), true},
		{"RSA key too short to be one", rs, random(t, 512+900), false},
		{"PKCS#8 of an RSA key in the AES part", rs, append(random(t, 512), pad8(append(bytes.Clone(rsaDER), random(t, 8)...))...), false},
		{"unknown wrapping key spec", wrapping.Plan{Algorithm: wrapping.OAEPSHA1, WrappingKeySpec: "RSA_1024"}, random(t, 128), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := wrapping.CheckOutput(tt.plan, tt.out)
			if (err == nil) != tt.ok {
				t.Fatalf("CheckOutput = %v, want ok %v", err, tt.ok)
			}
			if err != nil && !errors.Is(err, wrapping.ErrUnsafeOutput) {
				t.Errorf("%v does not wrap ErrUnsafeOutput", err)
			}
		})
	}
}

// Where the mechanism was proved for the length of the probe's key alone, a key of another length is refused, and the token is not.
func TestCheckOutputOfOneLength(t *testing.T) {
	for _, p := range []wrapping.Plan{
		{Mechanism: wrapping.Mechanism{Form: wrapping.FormKWPIV}, Length: 138},
		{Mechanism: wrapping.Mechanism{Form: wrapping.FormKWP}, Length: 144},
	} {
		p.KeySpec, p.Algorithm, p.WrappingKeySpec = wrapping.ECCNISTP256, wrapping.RSAAESSHA256, wrapping.RSA2048
		if err := wrapping.CheckOutput(p, random(t, 256+152)); err != nil {
			t.Error(err)
		}
		err := wrapping.CheckOutput(p, random(t, 256+80))
		if !errors.Is(err, wrapping.ErrOtherLength) || errors.Is(err, wrapping.ErrUnsafeOutput) {
			t.Errorf("another length: %v", err)
		}
		plain := append(random(t, 256), 0x30, 65, 2, 1, 0) // a PKCS#8 of 67 bytes, and zero bytes behind it
		plain = append(append(plain, random(t, 62)...), make([]byte, 5)...)
		if err := wrapping.CheckOutput(p, plain); !errors.Is(err, wrapping.ErrUnsafeOutput) {
			t.Errorf("plaintext of another length: %v", err)
		}
	}
}

func pad8(b []byte) []byte {
	for len(b)%8 != 0 {
		b = append(b, 0xff)
	}
	return b
}

// FuzzCheckOutput holds that no input panics and that a DER private key never passes as an AES part.
func FuzzCheckOutput(f *testing.F) {
	f.Add([]byte{0x30, 0x82, 0x04, 0xbd, 0x02, 0x01, 0x00}, 67)
	f.Add(bytes.Repeat([]byte{0x30}, 300), 138)
	f.Fuzz(func(t *testing.T, out []byte, length int) {
		for _, a := range wrapping.Algorithms() {
			p := wrapping.Plan{KeySpec: wrapping.ECCNISTP256, Algorithm: a, WrappingKeySpec: wrapping.RSA2048, Length: length}
			if err := wrapping.CheckOutput(p, out); err == nil && len(out) < 256 {
				t.Fatalf("%d bytes passed for %s", len(out), a)
			}
		}
	})
}
