package nss_test

import (
	"strings"
	"testing"

	"hsmbridge/hsm/hsmtest"
	"hsmbridge/hsm/wrapping"
)

// TestLuckyLength holds that a throwaway RSA key whose PKCS#8 has, by luck, a multiple of 8 bytes passes for nothing: softokn wraps such a
// key exactly with CKM_AES_KEY_WRAP and an RFC 5649 initial value, and no other private key.
func TestLuckyLength(t *testing.T) {
	h := hsmtest.Open(t, freshToken(t, "lucky"))
	for range 400 {
		caps, err := h.Probe(t.Context(), wrapping.KeyRSA2048)
		if err != nil {
			t.Fatal(err)
		}
		lucky := false
		for _, tr := range caps.Trials {
			switch tr.Mechanism.Form {
			case wrapping.FormKWPIV:
				if tr.Outcome == wrapping.Exact {
					t.Fatalf("%s under %s counts as exact", tr.Mechanism, tr.WrappingKeySpec)
				}
				lucky = lucky || strings.Contains(tr.Reason, "it is exact only for some lengths: another RSA_2048 key: ")
			case wrapping.FormKWP:
				if tr.Mechanism.Name == "CKM_AES_KEY_WRAP_KWP" && tr.Outcome != wrapping.Exact {
					t.Fatalf("%s under %s: %s", tr.Mechanism, tr.WrappingKeySpec, tr.Reason)
				}
			case wrapping.FormOAEP, wrapping.FormPKCS1, wrapping.FormNative:
			}
		}
		if lucky {
			return
		}
	}
	t.Error("in 400 probes no key had a length of a multiple of 8")
}
