package trial

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"math/big"
	"testing"

	"hsmbridge/hsm/wrapping"
)

// The structures as encoding/asn1 writes them, so that the encoder of these tests is not our own.
type (
	algorithmIdentifier struct {
		OID    asn1.ObjectIdentifier
		Params asn1.RawValue `asn1:"optional"`
	}
	privateKeyInfo struct {
		Version    int
		Algorithm  algorithmIdentifier
		PrivateKey []byte
		Attributes asn1.RawValue  `asn1:"optional"`
		PublicKey  asn1.BitString `asn1:"optional,tag:1"`
	}
	ecPrivateKey struct {
		Version    int
		PrivateKey []byte
		Parameters asn1.ObjectIdentifier `asn1:"optional,explicit,tag:0"`
		PublicKey  asn1.BitString        `asn1:"optional,explicit,tag:1"`
	}
	rsaPrivateKey struct {
		Version                     int
		N, E, D, P, Q, DP, DQ, QInv *big.Int
	}
)

func oidRSA() asn1.ObjectIdentifier     { return asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1} }
func oidEC() asn1.ObjectIdentifier      { return asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1} }
func oidEd25519() asn1.ObjectIdentifier { return asn1.ObjectIdentifier{1, 3, 101, 112} }

// curves are the EC key specs with their OIDs and private key lengths.
func curves() map[wrapping.KeySpec]struct {
	oid  asn1.ObjectIdentifier
	size int
} {
	return map[wrapping.KeySpec]struct {
		oid  asn1.ObjectIdentifier
		size int
	}{
		wrapping.ECCNISTP256:   {asn1.ObjectIdentifier{1, 2, 840, 10045, 3, 1, 7}, 32},
		wrapping.ECCNISTP384:   {asn1.ObjectIdentifier{1, 3, 132, 0, 34}, 48},
		wrapping.ECCNISTP521:   {asn1.ObjectIdentifier{1, 3, 132, 0, 35}, 66},
		wrapping.ECCSECGP256K1: {asn1.ObjectIdentifier{1, 3, 132, 0, 10}, 32},
	}
}

func marshal(t testing.TB, v any) []byte {
	t.Helper()
	b, err := asn1.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// marshalEC encodes an EC private key; edit may spoil it first.
func marshalEC(t testing.TB, spec wrapping.KeySpec, edit func(*privateKeyInfo, *ecPrivateKey)) []byte {
	t.Helper()
	c := curves()[spec]
	key := ecPrivateKey{Version: 1, PrivateKey: make([]byte, c.size)}
	key.PrivateKey[c.size-1] = 3
	info := privateKeyInfo{Algorithm: algorithmIdentifier{oidEC(), asn1.RawValue{FullBytes: marshal(t, c.oid)}}}
	if edit != nil {
		edit(&info, &key)
	}
	if info.PrivateKey == nil {
		info.PrivateKey = marshal(t, key)
	}
	return marshal(t, info)
}

func bitString(b []byte) asn1.BitString { return asn1.BitString{Bytes: b, BitLength: 8 * len(b)} }

func TestParsePrivateFromStandardLibrary(t *testing.T) {
	type pair struct {
		private any
		public  PublicKey
	}
	var pairs []pair
	for spec, bits := range map[wrapping.KeySpec]int{wrapping.KeyRSA2048: 2048, wrapping.KeyRSA3072: 3072} {
		k, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			t.Fatal(err)
		}
		pairs = append(pairs, pair{k, PublicKey{Spec: spec, Modulus: k.N.Bytes(), Exponent: []byte{1, 0, 1}}})
	}
	for spec, c := range map[wrapping.KeySpec]elliptic.Curve{
		wrapping.ECCNISTP256: elliptic.P256(), wrapping.ECCNISTP384: elliptic.P384(), wrapping.ECCNISTP521: elliptic.P521(),
	} {
		for range 4 { // half of the P-521 scalars begin with a zero byte
			k, err := ecdsa.GenerateKey(c, rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			point, err := k.PublicKey.Bytes()
			if err != nil {
				t.Fatal(err)
			}
			pairs = append(pairs, pair{k, PublicKey{Spec: spec, Point: point}})
		}
	}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	pairs = append(pairs, pair{private, PublicKey{Spec: wrapping.ECCEdwards25519, Point: public}})

	for _, p := range pairs {
		der, err := x509.MarshalPKCS8PrivateKey(p.private)
		if err != nil {
			t.Fatal(err)
		}
		for trailing := range 9 {
			padded := append(bytes.Clone(der), make([]byte, trailing)...)
			got, n, err := ParsePrivate(padded, p.public.Spec)
			if err != nil || n != trailing || !got.Equal(p.public) {
				t.Errorf("%s with %d zero bytes: ParsePrivate = %+v, %d, %v; want %+v", p.public.Spec, trailing, got, n, err, p.public)
			}
		}
		if _, _, err := ParsePrivate(append(bytes.Clone(der), 0, 0, 1), p.public.Spec); !errors.Is(err, ErrTrailing) {
			t.Errorf("%s with other bytes behind it: %v, want ErrTrailing", p.public.Spec, err)
		}
		for cut := range der {
			if _, _, err := ParsePrivate(der[:cut], p.public.Spec); err == nil {
				t.Errorf("%s cut to %d of %d bytes is accepted", p.public.Spec, cut, len(der))
			}
		}
		for _, spec := range []wrapping.KeySpec{
			wrapping.KeyRSA2048, wrapping.KeyRSA3072, wrapping.KeyRSA4096, wrapping.ECCNISTP256, wrapping.ECCNISTP384,
			wrapping.ECCNISTP521, wrapping.ECCSECGP256K1, wrapping.ECCEdwards25519, wrapping.HMAC256, wrapping.SymmetricDefault, wrapping.MLDSA44,
		} {
			if _, _, err := ParsePrivate(der, spec); spec != p.public.Spec && err == nil {
				t.Errorf("a key of %s is accepted as %s", p.public.Spec, spec)
			}
		}
	}
}

// With and without the parameters and the public point, which tokens differ in.
func TestParsePrivateECForms(t *testing.T) {
	for spec, c := range curves() {
		want, _, err := ParsePrivate(marshalEC(t, spec, nil), spec)
		if err != nil {
			t.Fatal(err)
		}
		for _, params := range []bool{false, true} {
			for _, point := range []bool{false, true} {
				for _, outerPoint := range []bool{false, true} {
					der := marshalEC(t, spec, func(info *privateKeyInfo, key *ecPrivateKey) {
						if params {
							key.Parameters = c.oid
						}
						if point {
							key.PublicKey = bitString(want.Point)
						}
						if outerPoint {
							info.Version, info.PublicKey = 1, bitString(want.Point)
						}
					})
					got, trailing, err := ParsePrivate(der, spec)
					if err != nil || trailing != 0 || !got.Equal(want) {
						t.Errorf("%s params=%v point=%v outer point=%v: %+v, %d, %v", spec, params, point, outerPoint, got, trailing, err)
					}
				}
			}
		}
	}
	withAttributes := marshalEC(t, wrapping.ECCNISTP256, func(info *privateKeyInfo, _ *ecPrivateKey) {
		info.Attributes = asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 0, IsCompound: true}
	})
	if _, _, err := ParsePrivate(withAttributes, wrapping.ECCNISTP256); err != nil {
		t.Errorf("with attributes: %v", err)
	}
}

func TestParsePrivateECRefuses(t *testing.T) {
	for spec, c := range curves() {
		good, _, err := ParsePrivate(marshalEC(t, spec, nil), spec)
		if err != nil {
			t.Fatal(err)
		}
		other := bytes.Clone(good.Point)
		other[len(other)-1] ^= 1
		for name, edit := range map[string]func(*privateKeyInfo, *ecPrivateKey){
			"another public point":          func(_ *privateKeyInfo, k *ecPrivateKey) { k.PublicKey = bitString(other) },
			"another outer public point":    func(i *privateKeyInfo, _ *ecPrivateKey) { i.Version, i.PublicKey = 1, bitString(other) },
			"an outer point in version 0":   func(i *privateKeyInfo, _ *ecPrivateKey) { i.PublicKey = bitString(good.Point) },
			"version 1 without outer point": func(i *privateKeyInfo, _ *ecPrivateKey) { i.Version = 1 },
			"a compressed public point": func(_ *privateKeyInfo, k *ecPrivateKey) {
				k.PublicKey = bitString(append([]byte{2}, good.Point[1:1+c.size]...))
			},
			"odd bits in the public point": func(_ *privateKeyInfo, k *ecPrivateKey) {
				k.PublicKey = asn1.BitString{Bytes: good.Point, BitLength: 8*len(good.Point) - 3}
			},
			"parameters of another curve": func(_ *privateKeyInfo, k *ecPrivateKey) { k.Parameters = asn1.ObjectIdentifier{1, 3, 132, 0, 33} },
			"algorithm of another curve": func(i *privateKeyInfo, _ *ecPrivateKey) {
				i.Algorithm.Params.FullBytes = marshal(t, asn1.ObjectIdentifier{1, 3, 132, 0, 33})
			},
			"no curve":                      func(i *privateKeyInfo, _ *ecPrivateKey) { i.Algorithm.Params = asn1.RawValue{} },
			"another algorithm":             func(i *privateKeyInfo, _ *ecPrivateKey) { i.Algorithm.OID = oidRSA() },
			"ECPrivateKey version 0":        func(_ *privateKeyInfo, k *ecPrivateKey) { k.Version = 0 },
			"zero":                          func(_ *privateKeyInfo, k *ecPrivateKey) { k.PrivateKey = make([]byte, c.size) },
			"above the order":               func(_ *privateKeyInfo, k *ecPrivateKey) { k.PrivateKey = bytes.Repeat([]byte{0xFF}, c.size) },
			"leading zeros left out":        func(_ *privateKeyInfo, k *ecPrivateKey) { k.PrivateKey = k.PrivateKey[1:] },
			"one leading zero too many":     func(_ *privateKeyInfo, k *ecPrivateKey) { k.PrivateKey = append([]byte{0}, k.PrivateKey...) },
			"bytes behind the ECPrivateKey": func(i *privateKeyInfo, k *ecPrivateKey) { i.PrivateKey = append(marshal(t, *k), 0) },
			"an element more in the key": func(i *privateKeyInfo, k *ecPrivateKey) {
				i.PrivateKey = append(marshal(t, *k), 5, 0)
				i.PrivateKey[1] += 2
			},
			"no ECPrivateKey":   func(i *privateKeyInfo, k *ecPrivateKey) { i.PrivateKey = k.PrivateKey },
			"private key empty": func(i *privateKeyInfo, _ *ecPrivateKey) { i.PrivateKey = []byte{} },
		} {
			if got, _, err := ParsePrivate(marshalEC(t, spec, edit), spec); err == nil {
				t.Errorf("%s with %s: accepted as %+v", spec, name, got)
			}
		}
	}
}

func TestParsePrivateRSARefuses(t *testing.T) {
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	encode := func(edit func(*rsaPrivateKey)) []byte {
		key := rsaPrivateKey{0, k.N, big.NewInt(int64(k.E)), k.D, k.Primes[0], k.Primes[1], k.Precomputed.Dp, k.Precomputed.Dq, k.Precomputed.Qinv}
		edit(&key)
		return marshal(t, privateKeyInfo{Algorithm: algorithmIdentifier{oidRSA(), asn1.NullRawValue}, PrivateKey: marshal(t, key)})
	}
	if _, _, err := ParsePrivate(encode(func(*rsaPrivateKey) {}), wrapping.KeyRSA2048); err != nil {
		t.Fatal(err)
	}
	plus := func(n *big.Int, d int64) *big.Int { return new(big.Int).Add(n, big.NewInt(d)) }
	for name, edit := range map[string]func(*rsaPrivateKey){
		"version 1":         func(r *rsaPrivateKey) { r.Version = 1 },
		"another modulus":   func(r *rsaPrivateKey) { r.N = plus(r.N, 2) },
		"another exponent":  func(r *rsaPrivateKey) { r.E = big.NewInt(3) },
		"another d":         func(r *rsaPrivateKey) { r.D = plus(r.D, 2) },
		"another prime":     func(r *rsaPrivateKey) { r.P = plus(r.P, 2) },
		"prime one":         func(r *rsaPrivateKey) { r.P, r.Q = big.NewInt(1), r.N },
		"prime zero":        func(r *rsaPrivateKey) { r.P, r.Q = big.NewInt(0), r.N },
		"another exponent1": func(r *rsaPrivateKey) { r.DP = plus(r.DP, 2) },
		"another exponent2": func(r *rsaPrivateKey) { r.DQ = plus(r.DQ, 2) },
		"another inverse":   func(r *rsaPrivateKey) { r.QInv = plus(r.QInv, 1) },
		"inverse above p":   func(r *rsaPrivateKey) { r.QInv = new(big.Int).Add(r.QInv, r.P) },
		"negative d":        func(r *rsaPrivateKey) { r.D = new(big.Int).Neg(r.D) },
		"primes swapped":    func(r *rsaPrivateKey) { r.P, r.Q = r.Q, r.P },
	} {
		if got, _, err := ParsePrivate(encode(edit), wrapping.KeyRSA2048); err == nil {
			t.Errorf("%s: accepted as %+v", name, got)
		}
	}
	// A key of 2047 bits is none of RSA_2048.
	small, err := rsa.GenerateKey(rand.Reader, 2047) //nolint:gosec // G403: one bit short is the point
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(small)
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = ParsePrivate(der, wrapping.KeyRSA2048)
	if want := "RSAPrivateKey.modulus: 2047 bits, want 2048"; err == nil || err.Error() != want {
		t.Errorf("a key of 2047 bits: %v, want %s", err, want)
	}
}

func TestParsePrivateEd25519Refuses(t *testing.T) {
	seed := random(32)
	for name, info := range map[string]privateKeyInfo{
		"not in an OCTET STRING": {Algorithm: algorithmIdentifier{OID: oidEd25519()}, PrivateKey: seed},
		"seed and public key":    {Algorithm: algorithmIdentifier{OID: oidEd25519()}, PrivateKey: marshal(t, random(64))},
		"parameters NULL":        {Algorithm: algorithmIdentifier{oidEd25519(), asn1.NullRawValue}, PrivateKey: marshal(t, seed)},
		"another public key":     {Version: 1, Algorithm: algorithmIdentifier{OID: oidEd25519()}, PrivateKey: marshal(t, seed), PublicKey: bitString(random(32))},
	} {
		if got, _, err := ParsePrivate(marshal(t, info), wrapping.ECCEdwards25519); err == nil {
			t.Errorf("%s: accepted as %+v", name, got)
		}
	}
}

// RFC 8410, 10.3: the same key without and with its public half (and an attribute).
func TestParsePrivateRFC8410(t *testing.T) {
	want := PublicKey{Spec: wrapping.ECCEdwards25519, Point: unhex(t, "19bf44096984cdfe8541bac167dc3b96c85086aa30b6b6cb0c5c38ad703166e1")}
	for name, s := range map[string]string{
		"without": "302e020100300506032b657004220420d4ee72dbf913584ad5b6d8f1f769f8ad3afe7c28cbf1d4fbe097a88f44755842",
		"with": "3072020101300506032b657004220420d4ee72dbf913584ad5b6d8f1f769f8ad3afe7c28cbf1d4fbe097a88f44755842" +
			"a01f301d060a2a864886f70d01090914310f0c0d437572646c6520436861697273" +
			"81210019bf44096984cdfe8541bac167dc3b96c85086aa30b6b6cb0c5c38ad703166e1",
	} {
		got, trailing, err := ParsePrivate(unhex(t, s), wrapping.ECCEdwards25519)
		if err != nil || trailing != 0 || !got.Equal(want) {
			t.Errorf("%s: ParsePrivate = %+v, %d, %v; want %+v", name, got, trailing, err, want)
		}
	}
}

func TestParsePrivateDERStrict(t *testing.T) {
	// 30 len, 02 01 00 (the version, at 2), 30 13 ...
	der := marshalEC(t, wrapping.ECCNISTP256, nil)
	splice := func(at, drop int, insert ...byte) []byte {
		return append(append(bytes.Clone(der[:at]), insert...), der[at+drop:]...)
	}
	grown := func(b []byte, n byte) []byte { b[1] += n; return b }
	for name, bad := range map[string][]byte{
		"empty":                         nil,
		"one byte":                      {0x30},
		"a SET":                         splice(0, 1, 0x31),
		"indefinite length":             append(splice(1, 1, 0x80), 0, 0),
		"length in the long form":       splice(1, 1, 0x81, der[1]),
		"length with a leading zero":    splice(1, 1, 0x82, 0, der[1]),
		"length of three octets":        splice(1, 1, 0x83, 0, 0, der[1]),
		"length octets cut":             {0x30, 0x82, 1},
		"version empty":                 grown(splice(3, 2, 0), 0xFF),
		"version negative":              splice(4, 1, 0x80),
		"version with a leading zero":   grown(splice(3, 2, 2, 0, 0), 1),
		"version 2":                     splice(4, 1, 2),
		"an unknown element at the end": append(grown(bytes.Clone(der), 2), 5, 0),
	} {
		if got, _, err := ParsePrivate(bad, wrapping.ECCNISTP256); err == nil {
			t.Errorf("%s: accepted as %+v", name, got)
		}
	}
}

func TestPublicKeyEqual(t *testing.T) {
	key := PublicKey{Spec: wrapping.KeyRSA2048, Modulus: []byte{9, 8}, Exponent: []byte{1, 0, 1}}
	if same := (PublicKey{Spec: wrapping.KeyRSA2048, Modulus: []byte{0, 9, 8}, Exponent: []byte{0, 1, 0, 1}}); !key.Equal(same) {
		t.Error("leading zeros of numbers make a difference")
	}
	for name, other := range map[string]PublicKey{
		"spec":     {Spec: wrapping.KeyRSA3072, Modulus: []byte{9, 8}, Exponent: []byte{1, 0, 1}},
		"modulus":  {Spec: wrapping.KeyRSA2048, Modulus: []byte{9, 8, 0}, Exponent: []byte{1, 0, 1}},
		"exponent": {Spec: wrapping.KeyRSA2048, Modulus: []byte{9, 8}, Exponent: []byte{3}},
		"point":    {Spec: wrapping.KeyRSA2048, Modulus: []byte{9, 8}, Exponent: []byte{1, 0, 1}, Point: []byte{4}},
	} {
		if key.Equal(other) {
			t.Errorf("another %s makes no difference", name)
		}
	}
}
