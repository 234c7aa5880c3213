package softhsm_test

import (
	"strings"
	"testing"

	"hsmbridge/hsm/wrapping"
	"hsmbridge/test/e2e"
	"hsmbridge/test/softhsm"
)

// TestPaddedPKCS8 holds what allow_padded_pkcs8 is for: SoftHSM 2.6.1's zero bytes behind a PKCS#8 are refused by
// default, and with the setting by a KMS that reads strictly; a lenient KMS takes them, and the key is proved.
func TestPaddedPKCS8(t *testing.T) {
	for _, tt := range []struct {
		name    string
		flags   []string
		extra   string
		code    int
		want    string
		results int
	}{
		{"default", nil, "", 4, "zero bytes that are not part of it follow the key", 0},
		{"allowed, strict KMS", nil, "wrapping: {allow_padded_pkcs8: true}\n", 4, "this KMS does not take them", 0},
		{"allowed, lenient KMS", []string{"-lenient-der"}, "wrapping: {allow_padded_pkcs8: true}\n", 0, "", 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tok := softhsm.New(t, "padded").Token
			emu := e2e.StartEmulator(t, tt.flags...)
			c := emu.Client()
			config := e2e.Config(t, emu.Endpoint, tok, []e2e.Key{
				{Name: "p256", Spec: wrapping.ECCNISTP256, Generate: true, Destinations: []string{emu.CreateKey(c, wrapping.ECCNISTP256)}},
				{Name: "p521", Spec: wrapping.ECCNISTP521, Generate: true, Destinations: []string{emu.CreateKey(c, wrapping.ECCNISTP521)}},
			}, tt.extra)
			out := e2e.Run(t, config, "import", "--all", "--json")
			if out.Code != tt.code || !strings.Contains(out.Stdout, tt.want) {
				t.Fatalf("%+v, want code %d and %q", out, tt.code, tt.want)
			}
			n := 0
			for _, r := range e2e.Lines[e2e.Result](t, out.Stdout) {
				if r.Result == "imported" && r.Proof == "public-key-match" && r.Algorithm == "RSA_AES_KEY_WRAP_SHA_1" {
					n++
				}
			}
			if n != tt.results {
				t.Errorf("%d keys were imported and proved, want %d: %s", n, tt.results, out.Stdout)
			}
		})
	}
}

// TestPKCS1 holds that PKCS #1 v1.5 is used when it is allowed, nothing else is left, and KMS is of its time.
func TestPKCS1(t *testing.T) {
	tok := softhsm.New(t, "pkcs1").Token
	for _, tt := range []struct {
		name  string
		flags []string
		extra string
		code  int
		want  string
	}{
		{"not allowed", []string{"-era", "2018"}, "wrapping: {algorithms: [RSAES_PKCS1_V1_5]}\n", 3, "allow_pkcs1_v1_5"},
		{"allowed, KMS of 2018", []string{"-era", "2018"}, "wrapping: {algorithms: [RSAES_PKCS1_V1_5], allow_pkcs1_v1_5: true}\n", 0, `"wrapping_algorithm":"RSAES_PKCS1_V1_5"`},
		{"allowed, KMS of today", nil, "wrapping: {algorithms: [RSAES_PKCS1_V1_5], allow_pkcs1_v1_5: true}\n", 4, "KMS refused every plan"},
		{"allowed, but there is better", []string{"-era", "2018"}, "wrapping: {allow_pkcs1_v1_5: true}\n", 0, `"wrapping_algorithm":"RSAES_OAEP_SHA_1"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			emu := e2e.StartEmulator(t, tt.flags...)
			config := e2e.Config(t, emu.Endpoint, tok, []e2e.Key{
				{Name: "aes", Spec: wrapping.SymmetricDefault, Generate: true, Destinations: []string{emu.CreateKey(emu.Client(), wrapping.SymmetricDefault)}},
			}, tt.extra)
			out := e2e.Run(t, config, "import", "aes", "--json")
			if out.Code != tt.code || !strings.Contains(out.Stdout+out.Stderr, tt.want) {
				t.Errorf("%+v, want code %d and %q", out, tt.code, tt.want)
			}
		})
	}
}
