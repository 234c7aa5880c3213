package configs

import "testing"

func TestMeant(t *testing.T) {
	known := []string{"payments", "payment-tokens", "ledger", "a", "db"}
	for name, want := range map[string]string{
		"paymets":        "payments", // dropped
		"paymentss":      "payments", // typed twice
		"paymnets":       "payments", // swapped
		"psyments":       "payments", // replaced
		"pyamenst":       "payments", // swapped twice
		"ldeger":         "ledger",
		"payment":        "payments",
		"payment-token":  "payment-tokens",
		"payment_tokens": "payment-tokens",
		"pay":            "",
		"sessions":       "",
		"b":              "", // all of a short name is no slip
		"d":              "",
		"":               "",
	} {
		if got := Meant(name, known); got != want {
			t.Errorf("%q is taken for %q, want %q", name, got, want)
		}
	}
	if got := Meant("x", nil); got != "" {
		t.Errorf("%q is meant of nothing", got)
	}
}

func TestSlips(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want int
	}{
		{"", "", 0},
		{"abc", "abc", 0},
		{"", "abc", 3},
		{"abc", "", 3},
		{"abc", "abd", 1},
		{"abc", "ab", 1},
		{"ab", "abc", 1},
		{"abc", "acb", 1},
		{"ca", "abc", 3},
		{"kitten", "sitting", 3},
	} {
		if got := slips(tt.a, tt.b); got != tt.want {
			t.Errorf("slips(%q, %q) = %d, want %d", tt.a, tt.b, got, tt.want)
		}
	}
}
