package trial

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"testing"

	"github.com/tink-crypto/tink-go/v2/kwp/subtle"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// RFC 5649, section 6, and RFC 3394, section 4.
func TestAESWrapVectors(t *testing.T) {
	const (
		kek128 = "000102030405060708090A0B0C0D0E0F"
		kek192 = "000102030405060708090A0B0C0D0E0F1011121314151617"
		kek256 = "000102030405060708090A0B0C0D0E0F101112131415161718191A1B1C1D1E1F"
		kek649 = "5840df6e29b02af1ab493b705bf16ea1ae8338f4dcc176a8"
		key128 = "00112233445566778899AABBCCDDEEFF"
		key192 = "00112233445566778899AABBCCDDEEFF0001020304050607"
		key256 = "00112233445566778899AABBCCDDEEFF000102030405060708090A0B0C0D0E0F"
	)
	for _, v := range []struct {
		name, kek, key, wrapped string
		scheme                  Scheme
	}{
		{"RFC 5649 20 bytes", kek649, "c37b7e6492584340bed12207808941155068f738", "138bdeaa9b8fa7fc61f97742e72248ee5ae6ae5360d1ae6a5f54f373fa543b6a", SchemeKWP},
		{"RFC 5649 7 bytes", kek649, "466f7250617369", "afbeb0f07dfbf5419200f2ccb50bb24f", SchemeKWP},
		{"RFC 3394 4.1", kek128, key128, "1FA68B0A8112B447AEF34BD8FB5A7B829D3E862371D2CFE5", SchemeKW},
		{"RFC 3394 4.2", kek192, key128, "96778B25AE6CA435F92B5B97C050AED2468AB8A17AD84E5D", SchemeKW},
		{"RFC 3394 4.3", kek256, key128, "64E8C3F9CE0F5BA263E9777905818A2A93C8191E7D6E8AE7", SchemeKW},
		{"RFC 3394 4.4", kek192, key192, "031D33264E15D33268F24EC260743EDCE1C6C7DDEE725A936BA814915C6762D2", SchemeKW},
		{"RFC 3394 4.5", kek256, key192, "A8F9BC1612C68B3FF6E6F4FBE30E71E4769C8B80A32CB8958CD5D17D6B254DA1", SchemeKW},
		{"RFC 3394 4.6", kek256, key256, "28C9F404C4B810F4CBCCB35CFB87F8263F5786E2D80ED326CBC7F0E71A99F43BFB988B9B7A02DD21", SchemeKW},
	} {
		t.Run(v.name, func(t *testing.T) {
			kek, key, wrapped := unhex(t, v.kek), unhex(t, v.key), unhex(t, v.wrapped)
			r, err := OpenAESWrap(kek, wrapped)
			if err != nil || r.Scheme != v.scheme || !bytes.Equal(r.Material, key) {
				t.Fatalf("OpenAESWrap = %v, %x, %v; want %v, %x", r.Scheme, r.Material, err, v.scheme, key)
			}
			material, err := OpenKWP(kek, wrapped)
			if v.scheme == SchemeKWP {
				if err != nil || !bytes.Equal(material, key) {
					t.Fatalf("OpenKWP = %x, %v; want %x", material, err, key)
				}
				if got := wrapRFC5649(t, kek, key); !bytes.Equal(got, wrapped) {
					t.Fatalf("the encoder of these tests gives %x, want %x", got, wrapped)
				}
				return
			}
			var scheme *SchemeError
			if !errors.As(err, &scheme) || scheme.Found != v.scheme {
				t.Fatalf("OpenKWP = %v, want a SchemeError for %v", err, v.scheme)
			}
		})
	}
}

func TestOpenKWPAgainstTink(t *testing.T) {
	for _, kekSize := range []int{16, 32} {
		kek := random(kekSize)
		tink, err := subtle.NewKWP(kek)
		if err != nil {
			t.Fatal(err)
		}
		for n := 16; n <= 4096; n++ {
			if n > 300 && n%61 != 0 && n != 4096 {
				continue
			}
			key := random(n)
			wrapped, err := tink.Wrap(key)
			if err != nil {
				t.Fatal(err)
			}
			if own := wrapRFC5649(t, kek, key); !bytes.Equal(own, wrapped) {
				t.Fatalf("%d bytes: the encoder of these tests and tink differ", n)
			}
			if got, err := OpenKWP(kek, wrapped); err != nil || !bytes.Equal(got, key) {
				t.Fatalf("%d bytes: OpenKWP = %x, %v; want %x", n, got, err, key)
			}
		}
	}
}

func TestOpenKWPShort(t *testing.T) {
	for _, kekSize := range []int{16, 24, 32} {
		for n := 1; n <= 24; n++ {
			kek, key := random(kekSize), random(n)
			wrapped := wrapRFC5649(t, kek, key)
			if got, err := OpenKWP(kek, wrapped); err != nil || !bytes.Equal(got, key) {
				t.Errorf("AES-%d, %d bytes: OpenKWP = %x, %v; want %x", 8*kekSize, n, got, err, key)
			}
		}
	}
}

func TestOpenKWPStrict(t *testing.T) {
	kek := random(32)
	type bad struct {
		name string
		ct   []byte
		want Scheme
	}
	cases := []bad{
		{"another AES key", wrapRFC5649(t, random(32), random(37)), SchemeUnknown},
		{"one semiblock under RFC 3394's initial value", wrapOneBlock(t, kek, 0xA6A6A6A6A6A6A6A6), SchemeUnknown},
		{"padding not zero", wrapRFC5649Length(t, kek, random(40), 37), SchemeKWPWrong},
		{"length in bits", wrapRFC5649Length(t, kek, random(32), 256), SchemeKWPWrong},
		{"length zero", wrapRFC5649Length(t, kek, make([]byte, 8), 0), SchemeKWPWrong},
		{"a whole semiblock of padding", wrapRFC5649Length(t, kek, append(random(32), make([]byte, 8)...), 32), SchemeKWPWrong},
		{"one byte more than there is", wrapRFC5649Length(t, kek, random(32), 33), SchemeKWPWrong},
	}
	flipped := wrapRFC5649(t, kek, random(37))
	for i := range flipped {
		ct := bytes.Clone(flipped)
		ct[i] ^= 1
		cases = append(cases, bad{fmt.Sprintf("bit flipped in byte %d", i), ct, SchemeUnknown})
	}
	for _, c := range cases {
		material, err := OpenKWP(kek, c.ct)
		var scheme *SchemeError
		if !errors.As(err, &scheme) || scheme.Found != c.want || material != nil {
			t.Errorf("%s: OpenKWP = %x, %v; want %v", c.name, material, err, c.want)
		}
	}
}

// wrapOneBlock encrypts iv || 8 random bytes.
func wrapOneBlock(t testing.TB, kek []byte, iv uint64) []byte {
	t.Helper()
	block, err := newAESUnwrapper(kek, make([]byte, 16))
	if err != nil {
		t.Fatal(err)
	}
	b := append(unhex(t, fmt.Sprintf("%016x", iv)), random(8)...)
	block.Encrypt(b, b)
	return b
}

func TestAESWrapLengths(t *testing.T) {
	kek := random(32)
	for _, n := range []int{0, 1, 8, 15, 17, 23, 47} {
		if _, err := OpenKWP(kek, make([]byte, n)); err == nil {
			t.Errorf("OpenKWP accepts %d bytes", n)
		}
		if _, err := OpenAESWrap(kek, make([]byte, n)); err == nil {
			t.Errorf("OpenAESWrap accepts %d bytes", n)
		}
	}
	for _, n := range []int{0, 8, 20, 33} {
		if _, err := OpenKWP(make([]byte, n), make([]byte, 16)); err == nil {
			t.Errorf("OpenKWP accepts an AES key of %d bytes", n)
		}
	}
}

// What tokens were measured to do instead of RFC 5649.
func TestOpenAESWrapDiagnoses(t *testing.T) {
	const defaultIV = 0xA6A6A6A6A6A6A6A6
	kek, secret := random(32), random(37)
	zeros := append(bytes.Clone(secret), 0, 0, 0)
	for _, c := range []struct {
		name     string
		ct       []byte
		want     Scheme
		material []byte
		message  string
	}{
		{"exact", wrapRFC5649(t, kek, secret), SchemeKWP, secret, ""},
		{"SoftHSM 2.6.1's CKM_AES_KEY_WRAP_PAD", wrapRFC5649(t, kek, zeros), SchemeKWP, zeros, ""},
		{
			"NSS's CKM_AES_KEY_WRAP_PAD", wrapRFC3394(t, kek, defaultIV, padPKCS7(secret, 8)), SchemeKWPad8, secret,
			"AES key wrap mismatch: RFC 5649 was asked, the token used RFC 3394 with PKCS#7 padding to 8 bytes, which AWS KMS refuses",
		},
		{
			"openCryptoki's CKM_AES_KEY_WRAP_PAD", wrapRFC3394(t, kek, defaultIV, padPKCS7(secret, 16)), SchemeKWPad16, secret,
			"AES key wrap mismatch: RFC 5649 was asked, the token used RFC 3394 with PKCS#7 padding to 16 bytes, which AWS KMS refuses",
		},
		{
			"zero padding", wrapRFC3394(t, kek, defaultIV, zeros), SchemeKWZeros, secret,
			"AES key wrap mismatch: RFC 5649 was asked, the token used RFC 3394 with zero padding, which AWS KMS refuses",
		},
		{
			"no padding", wrapRFC3394(t, kek, defaultIV, append(random(39), 0x80)), SchemeKW, nil,
			"AES key wrap mismatch: RFC 5649 was asked, the token used RFC 3394 without padding, which AWS KMS refuses",
		},
		{
			"wrong length field", wrapRFC5649Length(t, kek, secret, 296), SchemeKWPWrong, nil,
			"AES key wrap mismatch: RFC 5649 was asked, the token used RFC 5649 with a wrong length field or padding, which AWS KMS refuses",
		},
		{
			"another initial value", wrapRFC3394(t, kek, 0, padPKCS7(secret, 8)), SchemeUnknown, nil,
			"AES key wrap mismatch: neither RFC 5649 nor RFC 3394 fits: the token wrapped under another AES key, or its output is corrupt",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, err := OpenAESWrap(kek, c.ct)
			if err != nil || r.Scheme != c.want {
				t.Fatalf("OpenAESWrap = %v, %v; want %v", r.Scheme, err, c.want)
			}
			if c.material != nil && !bytes.Equal(r.Material, c.material) {
				t.Errorf("material = %x, want %x", r.Material, c.material)
			}
			_, err = OpenKWP(kek, c.ct)
			if c.message == "" {
				if err != nil {
					t.Errorf("OpenKWP: %v", err)
				}
				return
			}
			if err == nil || err.Error() != c.message {
				t.Errorf("OpenKWP: %v, want %s", err, c.message)
			}
		})
	}
}

// Every private key length is a multiple of 8 sometimes; PKCS#7 then adds a whole block.
func TestOpenAESWrapPKCS7AllLengths(t *testing.T) {
	kek := random(32)
	for n := 16; n < 80; n++ {
		secret := random(n)
		for _, size := range []int{8, 16} {
			padded := padPKCS7(secret, size)
			want := SchemeKWPad8
			if len(padded)-n > 8 {
				want = SchemeKWPad16
			}
			r, err := OpenAESWrap(kek, wrapRFC3394(t, kek, kwIV, padded))
			if err != nil || r.Scheme != want || !bytes.Equal(r.Material, secret) {
				t.Errorf("%d bytes padded to %d: %v, %x, %v; want %v, %x", n, size, r.Scheme, r.Material, err, want, secret)
			}
		}
	}
}
