package trial

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"testing"

	"hsmbridge/hsm/wrapping"
)

// What OpenKWP accepts must wrap to the same bytes again; OpenAESWrap must agree with it.
func FuzzOpenKWP(f *testing.F) {
	kek := bytes.Repeat([]byte{7}, 32)
	for _, n := range []int{1, 7, 8, 9, 16, 37, 64} {
		f.Add(kek, wrapRFC5649(f, kek, random(n)))
	}
	f.Add(kek, wrapRFC3394(f, kek, kwIV, padPKCS7(random(37), 8)))
	f.Add(kek, wrapRFC5649Length(f, kek, random(40), 37))
	f.Fuzz(func(t *testing.T, kek, ct []byte) {
		material, err := OpenKWP(kek, ct)
		r, diagnosed := OpenAESWrap(kek, ct)
		if (err == nil) != (diagnosed == nil && r.Scheme == SchemeKWP) {
			t.Fatalf("OpenKWP: %v, OpenAESWrap: %v, %v", err, r.Scheme, diagnosed)
		}
		if err == nil && !bytes.Equal(wrapRFC5649(t, kek, material), ct) {
			t.Fatalf("%x opens to %x, which wraps to something else", ct, material)
		}
	})
}

// The fuzzer cannot find the initial value by chance, so here it works behind the encryption: any data,
// initial value and length.
func FuzzOpenAESWrap(f *testing.F) {
	f.Add(uint64(kwIV), padPKCS7(random(37), 16))
	f.Add(uint64(kwpPrefix)<<32|37, append(random(37), 0, 0, 0))
	f.Add(uint64(kwIV), make([]byte, 48))
	kek := bytes.Repeat([]byte{7}, 32)
	f.Fuzz(func(t *testing.T, iv uint64, data []byte) {
		if len(data) < 16 || len(data)%8 != 0 {
			t.Skip("RFC 3394 wraps no such length")
		}
		ct := wrapRFC3394(t, kek, iv, data)
		r, err := OpenAESWrap(kek, ct)
		if err != nil {
			t.Fatal(err)
		}
		if r.Scheme != SchemeUnknown && !bytes.Equal(r.Padded, data) {
			t.Fatalf("%v: %x came out, %x went in", r.Scheme, r.Padded, data)
		}
		var again []byte
		padding := len(data) - len(r.Material)
		switch r.Scheme {
		case SchemeKWP:
			again = wrapRFC5649(t, kek, r.Material)
		case SchemeKW, SchemeKWZeros:
			again = wrapRFC3394(t, kek, kwIV, append(bytes.Clone(r.Material), make([]byte, padding)...))
		case SchemeKWPad8, SchemeKWPad16:
			again = wrapRFC3394(t, kek, kwIV, append(bytes.Clone(r.Material), bytes.Repeat(data[len(data)-1:], padding)...))
		case SchemeKWPWrong:
			if iv>>32 != kwpPrefix {
				t.Fatalf("%x taken for the initial value of RFC 5649", iv)
			}
			return
		case SchemeUnknown:
			if iv == kwIV || iv>>32 == kwpPrefix {
				t.Fatalf("the initial value %x is not recognised", iv)
			}
			return
		}
		if !bytes.Equal(again, ct) {
			t.Fatalf("%v: %x does not wrap to the same bytes again", r.Scheme, r.Material)
		}
	})
}

// The fuzzer works on encoded messages, behind RSA.
func FuzzDecodeEM(f *testing.F) {
	f.Add(encodeOAEP(f, 256, crypto.SHA256, crypto.SHA256, "", random(32)))
	f.Add(encodeOAEP(f, 256, crypto.SHA1, crypto.SHA512, "label", random(32)))
	f.Add(append(append(append([]byte{0, 2}, nonZero(221)...), 0), random(32)...))
	f.Add(append(make([]byte, 224), random(32)...))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, em []byte) {
		for _, hash := range oaepHashes() {
			if m, ok := decodeOAEP(em, hash, hash); ok && len(m) > len(em)-2*hash.Size()-2 {
				t.Fatalf("%v: %d bytes from an encoded message of %d", hash, len(m), len(em))
			}
		}
		if m, ok := decodePKCS1(em); ok && len(m) > len(em)-11 {
			t.Fatalf("PKCS#1: %d bytes from an encoded message of %d", len(m), len(em))
		}
		if mismatch := diagnoseOAEP(em); mismatch != nil && mismatch.UsedHash == 0 {
			t.Fatalf("a mismatch without a hash: %+v", *mismatch)
		}
		if unpadded(em) && !zero(em[:minPS]) {
			t.Fatal("a padded message is taken for one without padding")
		}
	})
}

// Whatever a token answers: no panic, and only an output that holds the key is judged exact.
func FuzzJudge(f *testing.F) {
	k := newKey(f, wrapping.RSA2048)
	secret := random(32)
	part := encryptRaw(k, encodeOAEP(f, 256, crypto.SHA1, crypto.SHA1, "", secret))
	f.Add(part)
	f.Add(append(bytes.Clone(part), wrapRFC5649(f, secret, random(37))...))
	f.Add(secret)
	f.Fuzz(func(t *testing.T, ct []byte) {
		for _, alg := range append(wrapping.Algorithms(), "SM2PKE") {
			v := k.Judge(alg, ct, Known(secret))
			if (v.Outcome == wrapping.Exact) != (v.Reason == "") {
				t.Fatalf("%s: %+v", alg, v)
			}
			if v.Outcome == wrapping.Exact && v.Length != len(secret) {
				t.Fatalf("%s: %+v", alg, v)
			}
		}
	})
}

// What ParsePrivate accepts, the standard library must accept where it knows the kind, with the same public
// half; and zero bytes behind it must change nothing but their count.
func FuzzParsePrivate(f *testing.F) {
	specs := []wrapping.KeySpec{
		wrapping.KeyRSA2048, wrapping.ECCNISTP256, wrapping.ECCNISTP384, wrapping.ECCNISTP521, wrapping.ECCSECGP256K1, wrapping.ECCEdwards25519,
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		f.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(rsaKey)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(der)
	for spec := range curves() {
		f.Add(marshalEC(f, spec, nil))
		f.Add(append(marshalEC(f, spec, nil), 0, 0, 0))
	}
	f.Add(unhex(f, "302e020100300506032b657004220420d4ee72dbf913584ad5b6d8f1f769f8ad3afe7c28cbf1d4fbe097a88f44755842"))
	f.Fuzz(func(t *testing.T, der []byte) {
		accepted := 0
		for _, spec := range specs {
			public, trailing, err := ParsePrivate(der, spec)
			if err != nil {
				continue
			}
			accepted++
			if trailing < 0 || trailing > len(der) || !zero(der[len(der)-trailing:]) {
				t.Fatalf("%s: %d trailing zero bytes of %d", spec, trailing, len(der))
			}
			exact := der[:len(der)-trailing]
			again, none, err := ParsePrivate(exact, spec)
			if err != nil || none != 0 || !again.Equal(public) {
				t.Fatalf("%s: without its trailing bytes: %v", spec, err)
			}
			if spec == wrapping.ECCSECGP256K1 || exact[4] == 1 {
				continue // the standard library reads neither secp256k1 nor OneAsymmetricKey
			}
			if _, err := x509.ParsePKCS8PrivateKey(exact); err != nil {
				t.Fatalf("%s: crypto/x509 refuses what is accepted here: %v", spec, err)
			}
		}
		if accepted > 1 {
			t.Fatalf("accepted as %d key specs", accepted)
		}
	})
}
