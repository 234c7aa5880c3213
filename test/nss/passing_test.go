package nss_test

import (
	"fmt"
	"strings"
	"testing"

	"hsmbridge/hsm/hsmtest"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/test/shim"
)

// TestPassingFault holds that a fault that passes during a probe ends it, or does no harm: it never selects a weaker algorithm. Nothing but an answer
// about what was asked for counts as a refusal.
func TestPassingFault(t *testing.T) {
	m := shim.New(t, freshToken(t, "passing"))
	h := hsmtest.Open(t, m.Token)
	const spec = wrapping.SymmetricDefault
	choose := func() (string, error) {
		caps, err := h.Probe(t.Context(), spec)
		if err != nil {
			return "", err
		}
		plans := wrapping.Select(spec, caps, wrapping.Policy{}).Plans
		if len(plans) == 0 {
			return "nothing", nil
		}
		return string(plans[0].Algorithm) + " " + string(plans[0].WrappingKeySpec), nil
	}
	want, err := choose()
	if err != nil || !strings.HasPrefix(want, string(wrapping.OAEPSHA256)) {
		t.Fatal(want, err)
	}
	for _, tt := range []struct {
		rule string
		ends bool
	}{
		// One for each wrapping key spec of the first algorithm.
		{"C_WrapKey: return CKR_FUNCTION_CANCELED times 3", true},
		{"C_WrapKey: return CKR_TOKEN_NOT_RECOGNIZED times 3", true},
		{"C_WrapKey: return 0x200 times 3", true}, // CKR_FUNCTION_REJECTED
		{"C_WrapKey: return 0x201 times 3", true}, // CKR_TOKEN_RESOURCE_EXCEEDED
		{"C_WrapKey: return CKR_PIN_EXPIRED times 3", true},
		{"C_WrapKey: return CKR_RANDOM_NO_RNG times 3", true},
		{"C_WrapKey: return CKR_DEVICE_ERROR times 3", true},
		{"C_WrapKey: return 0x12345 times 3", true},              // no code of the standard
		{"C_WrapKey: return CKR_FUNCTION_FAILED times 1", false}, // asked again
		{"C_WrapKey: return 0x80000001 times 1", false},
		{"C_CreateObject: return CKR_FUNCTION_CANCELED times 1", true},
		{"C_GenerateKey: return CKR_TOKEN_WRITE_PROTECTED times 1", true},
		{"C_WrapKey: login lost times 1", true},
	} {
		m.Script(t, tt.rule)
		got, err := choose()
		m.Script(t)
		switch {
		case tt.ends && err == nil:
			t.Errorf("%s: chosen: %s, and no error", tt.rule, got)
		case !tt.ends && (err != nil || got != want):
			t.Errorf("%s: chosen: %s, want %s: %v", tt.rule, got, want, err)
		}
	}
}

// TestPassingFaultOdd holds the same of the wraps of RSA keys that are made only to see whether a mechanism is exact at every length: after three by
// CKM_RSA_AES_KEY_WRAP, which softokn does not have, the two parts of the first composed wrap, and those of a secret of odd length.
func TestPassingFaultOdd(t *testing.T) {
	m := shim.New(t, freshToken(t, "odd"))
	h := hsmtest.Open(t, m.Token)
	for after := 3; after < 7; after++ {
		m.Script(t, fmt.Sprintf("C_WrapKey: return CKR_DEVICE_ERROR after %d times 1", after))
		before := m.Counters(t).Injected
		if _, err := h.Probe(t.Context(), wrapping.KeyRSA2048); err == nil || m.Counters(t).Injected == before {
			t.Errorf("a fault in wrap %d is not told: %v", after+1, err)
		}
	}
}
