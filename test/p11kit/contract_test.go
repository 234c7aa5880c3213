package p11kit_test

import (
	"flag"
	"path/filepath"
	"slices"
	"testing"

	"hsmbridge/hsm/hsmtest"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/test/nss"
	"hsmbridge/test/p11kit"
	"hsmbridge/test/softhsm"
	"hsmbridge/test/token"
)

var update = flag.Bool("update", false, "write the tokens' parts of docs/matrix.md anew")

// part is a token's part of docs/matrix.md.
func part(name, how string, packages ...string) hsmtest.Part {
	return hsmtest.Part{Name: name, How: how, Packages: packages, Update: *update}
}

const proxied = "The module is p11-kit-proxy.so, which shows SoftHSM and NSS as one."

// both makes a SoftHSM and an NSS token behind one proxy. Label and place of the NSS token are what p11-kit has read at first.
func both(tb testing.TB, label string) (softHSM, nssToken token.Token) {
	tb.Helper()
	tokens := p11kit.Proxy(tb, softhsm.New(tb, label).Token, nss.NewIn(tb, filepath.Join(p11kit.Dir(), "nss"), "proxied").Token)
	return tokens[0], tokens[1]
}

const padded = "zero bytes that are not part of it follow the key"

// secrets is what a token does with secrets only.
func secrets(a wrapping.Algorithm) map[wrapping.KeySpec]wrapping.Algorithm {
	out := map[wrapping.KeySpec]wrapping.Algorithm{}
	for _, spec := range wrapping.KeySpecs() {
		if spec.MaterialBytes() > 0 {
			out[spec] = a
		}
	}
	return out
}

func TestProxySoftHSM(t *testing.T) {
	want := hsmtest.Expect{
		Matrix: part("SoftHSM behind the p11-kit proxy", proxied, "p11-kit-modules", "libsofthsm2"),
		Chosen: secrets(wrapping.OAEPSHA1),
		Reasons: map[wrapping.KeySpec]string{
			wrapping.KeyRSA2048: padded, wrapping.ECCNISTP256: padded, wrapping.ECCEdwards25519: "CKR_KEY_NOT_WRAPPABLE (0x69)",
		},
		Generates: wrapping.KeySpecs(),
	}
	want.Chosen[wrapping.ECCNISTP384], want.Chosen[wrapping.ECCSECGP256K1] = wrapping.RSAAESSHA1, wrapping.RSAAESSHA1
	hsmtest.Run(t, func(tb testing.TB, label string) token.Token {
		tb.Helper()
		tok, _ := both(tb, label)
		return tok
	}, want)
}

func TestProxyNSS(t *testing.T) {
	want := hsmtest.Expect{
		Matrix:  part("NSS softokn behind the p11-kit proxy", proxied, "p11-kit-modules", "libnss3"),
		NoTrust: "CKR_USER_TYPE_INVALID",
		Chosen:  secrets(wrapping.OAEPSHA256),
		Reasons: map[wrapping.KeySpec]string{
			wrapping.ECCSECGP256K1: "CKR_DOMAIN_PARAMS_INVALID (0x130)", wrapping.ECCEdwards25519: "CKR_MECHANISM_INVALID (0x70)",
		},
	}
	for _, spec := range wrapping.KeySpecs() {
		if spec.MaterialBytes() == 0 && spec != wrapping.ECCSECGP256K1 && spec != wrapping.ECCEdwards25519 {
			want.Chosen[spec] = wrapping.RSAAESSHA256
		}
	}
	for spec := range want.Chosen {
		want.Generates = append(want.Generates, spec)
	}
	hsmtest.Run(t, func(tb testing.TB, label string) token.Token {
		tb.Helper()
		_, tok := both(tb, label)
		return tok
	}, want)
}

func TestServedSoftHSM(t *testing.T) {
	hsmtest.Run(t, func(tb testing.TB, label string) token.Token {
		tb.Helper()
		return p11kit.Serve(tb, softhsm.New(tb, label).Token).Token
	}, hsmtest.Expect{
		Matrix: part("SoftHSM served by p11-kit", p11kit.HowServed, "p11-kit", "p11-kit-modules", "libsofthsm2"),
		Chosen: secrets(wrapping.OAEPSHA1),
		Reasons: map[wrapping.KeySpec]string{
			wrapping.KeyRSA2048: "CKR_MECHANISM_INVALID (0x70)", wrapping.ECCNISTP384: "CKR_MECHANISM_INVALID (0x70)",
		},
		Generates: without(wrapping.ECCEdwards25519), NoMAC: []wrapping.KeySpec{wrapping.HMAC224},
	})
}

// without is every spec but those.
func without(specs ...wrapping.KeySpec) []wrapping.KeySpec {
	return slices.DeleteFunc(wrapping.KeySpecs(), func(s wrapping.KeySpec) bool { return slices.Contains(specs, s) })
}

func TestServedNSS(t *testing.T) {
	want := hsmtest.Expect{
		Matrix:    part("NSS softokn served by p11-kit", p11kit.HowServed, "p11-kit", "p11-kit-modules", "libnss3"),
		NoTrust:   "CKR_USER_TYPE_INVALID",
		Chosen:    secrets(wrapping.OAEPSHA256),
		Reasons:   map[wrapping.KeySpec]string{wrapping.KeyRSA2048: "CKR_MECHANISM_INVALID (0x70)"},
		Generates: without(wrapping.ECCSECGP256K1, wrapping.ECCEdwards25519), NoMAC: []wrapping.KeySpec{wrapping.HMAC224},
	}
	for _, spec := range []wrapping.KeySpec{wrapping.ECCNISTP256, wrapping.ECCNISTP384, wrapping.ECCNISTP521} {
		want.Chosen[spec] = wrapping.OAEPSHA256 // straight: the protocol has no AES key wrap
	}
	hsmtest.Run(t, func(tb testing.TB, label string) token.Token {
		tb.Helper()
		return p11kit.Serve(tb, nss.New(tb, label).Token).Token
	}, want)
}
