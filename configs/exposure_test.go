package configs_test

import (
	"fmt"
	"strings"
	"testing"

	"hsmbridge/configs"
	"hsmbridge/hsm/wrapping"
)

func TestExposures(t *testing.T) {
	const arn = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
	c, err := configs.Parse("c.yaml", []byte(`
tokens:
  - {name: one, module: /x.so, uri: "pkcs11:token=one", pin_prompt: true}
  - {name: two, module: /x.so, uri: "pkcs11:token=two", pin_prompt: true}
keys:
  - {name: k, token: one, uri: "pkcs11:object=payments;type=secret-key", key_spec: SYMMETRIC_DEFAULT, expires: never, backup: {token: two}, destinations: ["`+arn+`"]}
`))
	if err != nil {
		t.Fatal(err)
	}
	secret := wrapping.Key{Label: "payments", Class: "CKO_SECRET_KEY", Extractable: true, Sensitive: true}
	with := func(change func(k *wrapping.Key)) wrapping.Key {
		k := secret
		change(&k)
		return k
	}
	for _, tt := range []struct {
		name, token string
		key         wrapping.Key
		want        []string
	}{
		{"managed", "one", secret, nil},
		{"its backup", "two", secret, nil},
		{"a later generation", "one", with(func(k *wrapping.Key) { k.Label = "payments.2" }), nil},
		{"in no configured token", "three", secret, []string{"CKA_EXTRACTABLE"}},
		{"another label", "one", with(func(k *wrapping.Key) { k.Label = "payroll" }), []string{"CKA_EXTRACTABLE"}},
		{"no generation", "one", with(func(k *wrapping.Key) { k.Label = "payments.old" }), []string{"CKA_EXTRACTABLE"}},
		{"another class", "one", with(func(k *wrapping.Key) { k.Class = "CKO_PRIVATE_KEY" }), []string{"CKA_EXTRACTABLE"}},
		{"not extractable", "one", with(func(k *wrapping.Key) { k.Label, k.Extractable = "stay", false }), nil},
		{"not sensitive", "one", with(func(k *wrapping.Key) { k.Sensitive = false }), []string{"CKA_SENSITIVE"}},
		{"wraps only", "one", with(func(k *wrapping.Key) { k.Wrap = true }), nil},
		{"decrypts only", "one", with(func(k *wrapping.Key) { k.Decrypt = true }), nil},
		{"wraps and decrypts", "one", with(func(k *wrapping.Key) { k.Wrap, k.Decrypt = true, true }), []string{"CKA_DECRYPT"}},
		{"both", "one", with(func(k *wrapping.Key) { k.Label, k.Wrap, k.Decrypt = "kek", true, true }), []string{"CKA_DECRYPT", "CKA_EXTRACTABLE"}},
	} {
		got := c.Exposures(tt.token, []wrapping.Key{tt.key})[0]
		if len(got) != len(tt.want) {
			t.Errorf("%s: %q", tt.name, got)
			continue
		}
		for i, part := range tt.want {
			if !strings.Contains(got[i], part) {
				t.Errorf("%s: %q does not say %s", tt.name, got[i], part)
			}
		}
	}
	var many []wrapping.Key
	for i := range 14 {
		many = append(many, wrapping.Key{Label: fmt.Sprint("k", i), Extractable: true, Sensitive: true})
	}
	if w := c.ExposureWarnings("one", many); len(w) != 11 || !strings.Contains(w[0], `"k0"`) || !strings.Contains(w[10], "and 4 more: hsmbridge keys list one") {
		t.Errorf("%q", w)
	}
	if w := c.ExposureWarnings("one", []wrapping.Key{secret}); w != nil {
		t.Errorf("%q", w)
	}
}
