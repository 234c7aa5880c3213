package wrapping_test

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hsmbridge/hsm/wrapping"
)

var update = flag.Bool("update", false, "write the golden files anew")

// device describes a token by what trials on it give; trials() spells that out for every spec, as a probe does.
type device struct {
	name   string
	hashes []wrapping.Algorithm                    // RSAES algorithms that work
	no     string                                  // reason of those that do not
	specs  []wrapping.WrappingKeySpec              // wrapping key specs that work
	aes    []aesPart                               // ways to do the AES part
	direct string                                  // why a private key cannot go straight under OAEP, empty if it can
	pkcs8  map[wrapping.KeySpec]int                // PKCS#8 length of EC keys
	broken map[wrapping.KeySpec]wrapping.Outcome   // EC keys whose AES part comes out otherwise
	refuse map[wrapping.KeySpec]string             // keys that the token does not wrap at all
	native map[wrapping.Algorithm]wrapping.Outcome // CKM_RSA_AES_KEY_WRAP
}

type aesPart struct {
	mech    wrapping.Mechanism
	outcome wrapping.Outcome
	reason  string
}

var (
	oaep   = wrapping.Mechanism{Name: "CKM_RSA_PKCS_OAEP", Type: 0x9, Form: wrapping.FormOAEP}
	pkcs1  = wrapping.Mechanism{Name: "CKM_RSA_PKCS", Type: 0x1, Form: wrapping.FormPKCS1}
	native = wrapping.Mechanism{Name: "CKM_RSA_AES_KEY_WRAP", Type: 0x1054, Form: wrapping.FormNative}
	kwp    = wrapping.Mechanism{Name: "CKM_AES_KEY_WRAP_KWP", Type: 0x210B, Form: wrapping.FormKWP}
	pad    = wrapping.Mechanism{Name: "CKM_AES_KEY_WRAP_PAD", Type: 0x210A, Form: wrapping.FormKWP}
	kwpIV  = wrapping.Mechanism{Name: "CKM_AES_KEY_WRAP", Type: 0x2109, Form: wrapping.FormKWPIV}
)

func all[T any](v ...T) []T { return v }

func devices() []device {
	every := wrapping.WrappingKeySpecs()
	withPoint := map[wrapping.KeySpec]int{
		wrapping.ECCNISTP256: 138, wrapping.ECCNISTP384: 185, wrapping.ECCNISTP521: 241, wrapping.ECCSECGP256K1: 135, wrapping.ECCEdwards25519: 48,
	}
	return []device{
		{
			name: "SoftHSM 2.6.1", hashes: all(wrapping.OAEPSHA1, wrapping.PKCS1v15), no: "CKR_ARGUMENTS_BAD (0x7)", specs: every,
			aes:    all(aesPart{pad, wrapping.Padded, "zero bytes follow the PKCS#8"}),
			direct: "CKR_KEY_NOT_WRAPPABLE (0x69)", pkcs8: map[wrapping.KeySpec]int{
				wrapping.ECCNISTP256: 67, wrapping.ECCNISTP384: 80, wrapping.ECCNISTP521: 99, wrapping.ECCSECGP256K1: 64,
			},
			broken: map[wrapping.KeySpec]wrapping.Outcome{wrapping.ECCNISTP384: wrapping.Exact, wrapping.ECCSECGP256K1: wrapping.Exact},
			refuse: map[wrapping.KeySpec]string{wrapping.ECCEdwards25519: "CKR_KEY_NOT_WRAPPABLE (0x69)"},
		},
		{
			name: "openCryptoki soft 3.8.1", hashes: all(wrapping.OAEPSHA256, wrapping.OAEPSHA1, wrapping.PKCS1v15), specs: every,
			aes: all(aesPart{kwp, wrapping.Failed, "CKR_MECHANISM_INVALID (0x70)"}), direct: "CKR_KEY_NOT_WRAPPABLE (0x69)",
		},
		{
			name: "NSS softokn 3.87", hashes: all(wrapping.OAEPSHA256, wrapping.OAEPSHA1, wrapping.PKCS1v15), specs: every,
			aes: all(aesPart{kwp, wrapping.Exact, ""}, aesPart{pad, wrapping.Failed, "it is RFC 3394 with PKCS#7 padding"}), pkcs8: withPoint,
			refuse: map[wrapping.KeySpec]string{wrapping.ECCEdwards25519: "CKR_MECHANISM_INVALID (0x70)", wrapping.ECCSECGP256K1: "CKR_DOMAIN_PARAMS_INVALID (0x130)"},
		},
		{
			name: "native RSA_AES, SHA-256 only", hashes: all(wrapping.OAEPSHA256), no: "CKR_MECHANISM_PARAM_INVALID (0x71)", specs: every, pkcs8: withPoint,
			native: map[wrapping.Algorithm]wrapping.Outcome{wrapping.RSAAESSHA256: wrapping.Exact},
			aes:    all(aesPart{kwp, wrapping.Exact, ""}),
		},
		{
			name: "AES key wrap with an IV only", hashes: all(wrapping.OAEPSHA256, wrapping.OAEPSHA1), no: "CKR_MECHANISM_INVALID (0x70)", specs: every, pkcs8: withPoint,
			aes: all(aesPart{kwpIV, wrapping.Exact, ""}),
		},
		{name: "PKCS #1 v1.5 only", hashes: all(wrapping.PKCS1v15), no: "CKR_MECHANISM_INVALID (0x70)", specs: every, direct: "CKR_KEY_NOT_WRAPPABLE (0x69)"},
		{
			name: "RSA-2048 only", hashes: all(wrapping.OAEPSHA256, wrapping.OAEPSHA1), no: "CKR_MECHANISM_INVALID (0x70)",
			specs: all(wrapping.RSA2048), pkcs8: withPoint,
		},
		{name: "cannot wrap", no: "CKR_FUNCTION_NOT_SUPPORTED (0x54)", direct: "CKR_FUNCTION_NOT_SUPPORTED (0x54)"},
	}
}

// capabilities spells out the trials of a device for one key spec.
func (d device) capabilities(spec wrapping.KeySpec) wrapping.Capabilities {
	c := wrapping.Capabilities{Token: wrapping.TokenIdentity{Model: d.name}}
	spec = spec.Representative()
	secret := spec.MaterialBytes() > 0
	add := func(a wrapping.Algorithm, w wrapping.WrappingKeySpec, m wrapping.Mechanism, o wrapping.Outcome, reason string) {
		t := wrapping.Trial{KeySpec: spec, Algorithm: a, WrappingKeySpec: w, Mechanism: m, Outcome: o, Reason: reason}
		if o != wrapping.Failed {
			t.Length = d.pkcs8[spec]
		}
		c.Trials = append(c.Trials, t)
	}
	for _, a := range spec.Order() {
		for _, w := range wrapping.WrappingKeySpecs() {
			rsaWorks := slices.Contains(d.specs, w)
			for _, m := range d.mechanisms(a) {
				outcome, reason := d.judge(spec, a, m, secret)
				if !rsaWorks && outcome != wrapping.Failed {
					outcome, reason = wrapping.Failed, "CKR_KEY_SIZE_RANGE (0x62)"
				}
				add(a, w, m, outcome, reason)
			}
		}
	}
	return c
}

func (d device) mechanisms(a wrapping.Algorithm) []wrapping.Mechanism {
	switch {
	case a == wrapping.PKCS1v15:
		return all(pkcs1)
	case !a.TwoPart():
		return all(oaep)
	}
	ms := all(native)
	for _, p := range d.aes {
		ms = append(ms, p.mech)
	}
	return ms
}

func (d device) judge(spec wrapping.KeySpec, a wrapping.Algorithm, m wrapping.Mechanism, secret bool) (wrapping.Outcome, string) {
	base := map[wrapping.Algorithm]wrapping.Algorithm{wrapping.RSAAESSHA256: wrapping.OAEPSHA256, wrapping.RSAAESSHA1: wrapping.OAEPSHA1}[a]
	if base == "" {
		base = a
	}
	switch {
	case d.refuse[spec] != "":
		return wrapping.Failed, d.refuse[spec]
	case m.Form == wrapping.FormNative && d.native[a] == wrapping.Exact:
		return wrapping.Exact, ""
	case m.Form == wrapping.FormNative:
		return wrapping.Failed, "CKR_MECHANISM_INVALID (0x70)"
	case !slices.Contains(d.hashes, base):
		return wrapping.Failed, d.no
	case !a.TwoPart() && !secret && d.direct != "":
		return wrapping.Failed, d.direct
	case !a.TwoPart():
		return wrapping.Exact, ""
	}
	if o, ok := d.broken[spec]; ok && m == pad {
		return o, ""
	}
	i := slices.IndexFunc(d.aes, func(p aesPart) bool { return p.mech == m })
	return d.aes[i].outcome, d.aes[i].reason
}

func policies() map[string]wrapping.Policy {
	return map[string]wrapping.Policy{
		"1 default":                {},
		"2 allow_pkcs1_v1_5":       {AllowPKCS1v15: true},
		"3 allow_padded_pkcs8":     {AllowPaddedPKCS8: true},
		"4 algorithms: OAEP_SHA_1": {Algorithms: all(wrapping.OAEPSHA1)},
		"5 algorithms: SHA_1, SHA_256": {Algorithms: all(
			wrapping.OAEPSHA1, wrapping.OAEPSHA256, wrapping.RSAAESSHA1, wrapping.RSAAESSHA256)},
		"6 aws-cn": {Partition: "aws-cn"},
	}
}

// TestSelectGolden is the whole matrix of material, capabilities and policy.
func TestSelectGolden(t *testing.T) {
	var b strings.Builder
	ps := policies()
	names := make([]string, 0, len(ps))
	for n := range ps {
		names = append(names, n)
	}
	slices.Sort(names)
	specs := append(wrapping.KeySpecs(), wrapping.MLDSA65, wrapping.SM2, "RSA_1024")
	for _, d := range devices() {
		for _, name := range names {
			fmt.Fprintf(&b, "\n== %s / %s\n", d.name, name)
			for _, spec := range specs {
				writeSelection(&b, wrapping.Select(spec, d.capabilities(spec), ps[name]))
			}
		}
	}
	const file = "testdata/select.golden"
	if *update {
		if err := os.WriteFile(file, []byte(b.String()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), b.String()); diff != "" {
		t.Errorf("the selection differs from %s (-want +got):\n%s", file, diff)
	}
}

func writeSelection(b *strings.Builder, s wrapping.Selection) {
	fmt.Fprintf(b, "%s\n", s.KeySpec)
	for i, p := range s.Plans {
		padded := ""
		if p.Padded {
			padded = " PADDED"
		}
		fmt.Fprintf(b, "  %d. %s under %s by %s, %d bytes%s\n", i+1, p.Algorithm, p.WrappingKeySpec, p.Mechanism, p.Length, padded)
	}
	for _, r := range s.Refused {
		fmt.Fprintf(b, "  no  %s [%s]\n", r, r.Rule)
	}
}

// TestSelectOrder states the promises of the documentation one by one, beside the golden matrix.
func TestSelectOrder(t *testing.T) {
	byName := func(name string) device {
		i := slices.IndexFunc(devices(), func(d device) bool { return d.name == name })
		return devices()[i]
	}
	for _, tt := range []struct {
		device string
		spec   wrapping.KeySpec
		policy wrapping.Policy
		want   string // algorithm and wrapping key spec of the first plan, empty for none
	}{
		{"SoftHSM 2.6.1", wrapping.SymmetricDefault, wrapping.Policy{}, "RSAES_OAEP_SHA_1 RSA_4096"},
		{"SoftHSM 2.6.1", wrapping.HMAC512, wrapping.Policy{}, "RSAES_OAEP_SHA_1 RSA_4096"},
		{"SoftHSM 2.6.1", wrapping.ECCNISTP384, wrapping.Policy{}, "RSA_AES_KEY_WRAP_SHA_1 RSA_4096"},
		{"SoftHSM 2.6.1", wrapping.ECCNISTP256, wrapping.Policy{}, ""},
		{"SoftHSM 2.6.1", wrapping.KeyRSA3072, wrapping.Policy{}, ""},
		{"SoftHSM 2.6.1", wrapping.KeyRSA3072, wrapping.Policy{AllowPaddedPKCS8: true}, "RSA_AES_KEY_WRAP_SHA_1 RSA_4096"},
		{"openCryptoki soft 3.8.1", wrapping.SymmetricDefault, wrapping.Policy{}, "RSAES_OAEP_SHA_256 RSA_4096"},
		{"openCryptoki soft 3.8.1", wrapping.ECCNISTP256, wrapping.Policy{}, ""},
		{"NSS softokn 3.87", wrapping.KeyRSA4096, wrapping.Policy{}, "RSA_AES_KEY_WRAP_SHA_256 RSA_4096"},
		{"NSS softokn 3.87", wrapping.ECCNISTP521, wrapping.Policy{}, "RSA_AES_KEY_WRAP_SHA_256 RSA_4096"},
		{"NSS softokn 3.87", wrapping.ECCNISTP256, wrapping.Policy{Partition: "aws-cn"}, "RSAES_OAEP_SHA_256 RSA_4096"},
		{"PKCS #1 v1.5 only", wrapping.SymmetricDefault, wrapping.Policy{}, ""},
		{"PKCS #1 v1.5 only", wrapping.SymmetricDefault, wrapping.Policy{AllowPKCS1v15: true}, "RSAES_PKCS1_V1_5 RSA_4096"},
		{"PKCS #1 v1.5 only", wrapping.KeyRSA2048, wrapping.Policy{AllowPKCS1v15: true}, ""},
		{"RSA-2048 only", wrapping.SymmetricDefault, wrapping.Policy{}, "RSAES_OAEP_SHA_256 RSA_2048"},
		{"RSA-2048 only", wrapping.ECCNISTP521, wrapping.Policy{}, ""},
		{"AES key wrap with an IV only", wrapping.ECCNISTP256, wrapping.Policy{}, "RSA_AES_KEY_WRAP_SHA_256 RSA_4096"},
		{"AES key wrap with an IV only", wrapping.KeyRSA2048, wrapping.Policy{}, ""},
		{"cannot wrap", wrapping.SymmetricDefault, wrapping.Policy{AllowPKCS1v15: true, AllowPaddedPKCS8: true}, ""},
	} {
		t.Run(tt.device+"/"+string(tt.spec), func(t *testing.T) {
			s := wrapping.Select(tt.spec, byName(tt.device).capabilities(tt.spec), tt.policy)
			got := ""
			if len(s.Plans) > 0 {
				got = string(s.Plans[0].Algorithm) + " " + string(s.Plans[0].WrappingKeySpec)
			}
			if got != tt.want {
				t.Errorf("first plan %q, want %q", got, tt.want)
			}
			var none *wrapping.NoPlanError
			if errors.As(s.Err(), &none) != (tt.want == "") {
				t.Errorf("Err() = %v", s.Err())
			}
		})
	}
}

// TestNoPlanErrorNamesTheLastResort holds the sentence that a user of an old token has to read.
func TestNoPlanErrorNamesTheLastResort(t *testing.T) {
	i := slices.IndexFunc(devices(), func(d device) bool { return d.name == "PKCS #1 v1.5 only" })
	err := wrapping.Select(wrapping.SymmetricDefault, devices()[i].capabilities(wrapping.SymmetricDefault), wrapping.Policy{}).Err()
	for _, want := range []string{"wrapping.allow_pkcs1_v1_5: true", "10 October 2023", "RSAES_OAEP_SHA_256", "CKR_MECHANISM_INVALID (0x70)"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not say %q", err, want)
		}
	}
}

// TestPassedOver holds that a plan is shown with the reasons of what stood before it, and with nothing else.
func TestPassedOver(t *testing.T) {
	d := devices()[0]
	for _, tt := range []struct {
		name   string
		policy wrapping.Policy
		want   []wrapping.Rule
	}{
		{"AWS's order", wrapping.Policy{}, all(wrapping.RuleToken)},
		{"restricted", wrapping.Policy{Algorithms: all(wrapping.OAEPSHA1)}, all(wrapping.RuleConfigured)},
		{"reordered", wrapping.Policy{Algorithms: all(wrapping.PKCS1v15, wrapping.OAEPSHA1)}, all(wrapping.RulePKCS1, wrapping.RuleConfigured)},
		{"not offered", wrapping.Policy{Algorithms: all(wrapping.RSAAESSHA256, wrapping.OAEPSHA1)}, all(wrapping.RuleAWSOrder, wrapping.RuleConfigured)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := wrapping.Select(wrapping.SymmetricDefault, d.capabilities(wrapping.SymmetricDefault), tt.policy)
			var got []wrapping.Rule
			for _, r := range s.PassedOver(s.Plans[0]) {
				got = append(got, r.Rule)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("rules (-want +got):\n%s", diff)
			}
		})
	}
}
