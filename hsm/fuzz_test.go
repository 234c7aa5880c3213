package hsm

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"math/big"
	"slices"
	"testing"

	"hsmbridge/hsm/wrapping"
)

// generators are the generators of the NIST curves, which are nobody's public keys.
func generators() map[wrapping.KeySpec]elliptic.Curve {
	return map[wrapping.KeySpec]elliptic.Curve{wrapping.ECCNISTP256: elliptic.P256(), wrapping.ECCNISTP384: elliptic.P384(), wrapping.ECCNISTP521: elliptic.P521()}
}

func generator(c elliptic.Curve) []byte {
	size := (c.Params().BitSize + 7) / 8
	return slices.Concat([]byte{4}, c.Params().Gx.FillBytes(make([]byte, size)), c.Params().Gy.FillBytes(make([]byte, size)))
}

// FuzzECPoint is a token that gives anything as CKA_EC_POINT. A point is taken in its two forms only, which give the same SubjectPublicKeyInfo; and
// what the standard library reads from that is the same point, or is refused because it is not on the curve.
func FuzzECPoint(f *testing.F) {
	specs := []wrapping.KeySpec{wrapping.ECCNISTP256, wrapping.ECCNISTP384, wrapping.ECCNISTP521, wrapping.ECCSECGP256K1, wrapping.ECCEdwards25519}
	for i, spec := range specs {
		point := make([]byte, ed25519.PublicKeySize)
		if c := generators()[spec]; c != nil {
			point = generator(c)
		}
		octets, err := asn1.Marshal(point)
		if err != nil {
			f.Fatal(err)
		}
		for _, b := range [][]byte{point, octets, append(bytes.Clone(octets), 0), octets[:len(octets)-1], {4, 0x80}, {3, 2, 0, 4}} {
			f.Add(uint8(i), b)
		}
	}
	f.Fuzz(func(t *testing.T, which uint8, b []byte) {
		spec := specs[int(which)%len(specs)]
		point := ecPoint(b, spec)
		if point == nil {
			return
		}
		octets, err := asn1.Marshal(point)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(b, point) && !bytes.Equal(b, octets) {
			t.Errorf("%s: %x is taken as %x", spec, b, point)
		}
		if again := ecPoint(octets, spec); !bytes.Equal(again, point) {
			t.Errorf("%s: %x in an OCTET STRING is %x", spec, point, again)
		}
		der, err := ecPublicKeyInfo(point, spec)
		if err != nil {
			t.Fatalf("%s: %x: %v", spec, point, err)
		}
		parsed, err := x509.ParsePKIXPublicKey(der)
		if err != nil {
			if c := generators()[spec]; c != nil {
				if _, perr := ecdsa.ParseUncompressedPublicKey(c, point); perr == nil {
					t.Errorf("%s: %x is on the curve: %v", spec, point, err)
				}
			}
			return
		}
		again, err := x509.MarshalPKIXPublicKey(parsed)
		if err != nil || !bytes.Equal(again, der) {
			t.Errorf("%s: %x is written as %x, which is read as %x (%v)", spec, point, der, again, err)
		}
	})
}

// FuzzAttribute is a token that gives anything as the value of an attribute: numbers, sizes and curves are read as they are, or not at all.
func FuzzAttribute(f *testing.F) {
	for _, c := range curves() {
		f.Add(c.params)
		f.Add(append(bytes.Clone(c.params), 0))
		f.Add(c.also)
	}
	f.Add(binary.NativeEndian.AppendUint64(nil, 31))
	f.Add(binary.NativeEndian.AppendUint64(nil, ^uint64(0)))
	f.Add([]byte{0, 0, 1, 0, 1})
	f.Add(bytes.Repeat([]byte{0xff}, 256))
	f.Fuzz(func(t *testing.T, v []byte) {
		if got, want := bitLen(v), new(big.Int).SetBytes(v).BitLen(); got != want {
			t.Errorf("%x has %d bits and not %d", v, want, got)
		}
		n := ulongOf(v)
		if len(v) != 8 && n != -1 || len(v) == 8 && !bytes.Equal(binary.NativeEndian.AppendUint64(nil, uint64(n)), v) { //nolint:gosec // the same bits
			t.Errorf("%x is the number %d", v, n)
		}
		if c, ok := curveByParams(v); ok && !bytes.Equal(v, c.params) && !bytes.Equal(v, c.also) || ok && len(v) == 0 {
			t.Errorf("%x is the curve %s", v, c.name)
		} else if ok && keySpecOf(ckkECEdwards, c.bits, c.name) != c.spec {
			t.Errorf("%s is the key spec %s", c.name, keySpecOf(ckkECEdwards, c.bits, c.name))
		}
		if keyTypeName(n) == "" {
			t.Errorf("the key type %d has no name", n)
		}
		if spec := keySpecOf(n, bitLen(v), string(v)); spec != "" && !slices.Contains(wrapping.KeySpecs(), spec) {
			t.Errorf("%x is the key spec %q", v, spec)
		}
	})
}
