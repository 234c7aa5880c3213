package trial

import (
	"crypto"
	"fmt"
	"testing"

	"hsmbridge/hsm/wrapping"
)

func BenchmarkNewRSAKey(b *testing.B) {
	for _, spec := range wrapping.WrappingKeySpecs() {
		b.Run(string(spec), func(b *testing.B) {
			for b.Loop() {
				newKey(b, spec)
			}
		})
	}
}

func BenchmarkOpenOAEP(b *testing.B) {
	for _, spec := range wrapping.WrappingKeySpecs() {
		k := newKey(b, spec)
		for name, hash := range map[string]crypto.Hash{"exact": crypto.SHA256, "mismatch": crypto.SHA512} {
			ct := encryptRaw(k, encodeOAEP(b, spec.Bytes(), hash, hash, "", random(32)))
			b.Run(fmt.Sprintf("%s/%s", spec, name), func(b *testing.B) {
				for b.Loop() {
					if _, err := k.OpenOAEP(wrapping.OAEPSHA256, ct); (err == nil) != (name == "exact") {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func BenchmarkOpenKWP(b *testing.B) {
	kek := random(32)
	for _, n := range []int{8, 37, 138, 1218, 2376} { // one block, a secret, EC P-256, RSA 2048, RSA 4096
		ct := wrapRFC5649(b, kek, random(n))
		b.Run(fmt.Sprintf("%d bytes", n), func(b *testing.B) {
			b.SetBytes(int64(n))
			for b.Loop() {
				if _, err := OpenKWP(kek, ct); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkParsePrivate(b *testing.B) {
	for spec := range curves() {
		der := marshalEC(b, spec, nil)
		b.Run(string(spec), func(b *testing.B) {
			for b.Loop() {
				if _, _, err := ParsePrivate(der, spec); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
