package adopt

import (
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// FuzzParseYAML holds that no file makes the parser panic or swell, that every name is one that a configuration takes, and that what is read is
// written so that it is read as the same.
func FuzzParseYAML(f *testing.F) {
	f.Add([]byte("create-kms-keys: true\ndefaults: {token: demo, expires: 90d}\nkeys:\n- {name: a, key_spec: HMAC_256, regions: [eu-central-1]}\n- name: b\n  key_spec: RSA_2048\n  destinations:\n  - arn: arn:aws:kms:eu-central-1:111122223333:key/1\n"))
	f.Add([]byte("keys: [{name: a, tags: {x: y}, multi_region: true}]\n---\nkeys: []\n"))
	f.Add([]byte("keys: &k [{name: a}]\ndefaults: *k\n"))
	f.Add([]byte("a: &a [x,x,x,x]\nb: &b [*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b]\nkeys: [{regions: *c}]\n"))
	f.Add([]byte("keys:\n- <<: {name: a}\n  name: b\n"))
	f.Add([]byte("keys:\n- {name: a, destinations: [\"arn:aws:kms:eu-central-1:111122223333:key/1\", {arn: x, role_arn: y}]}\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		fleet, err := ParseYAML(text)
		if err != nil {
			return
		}
		for _, r := range fleet.Keys {
			if clean(r.Name) != r.Name || r.Name == "" {
				t.Errorf("the name %q", r.Name)
			}
		}
		out, err := yaml.Marshal(fleet)
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseYAML(out)
		if err != nil {
			t.Fatalf("%q is written as\n%s\nwhich is not read: %v", text, out, err)
		}
		if diff := cmp.Diff(fleet, again, cmpopts.EquateEmpty(), cmpopts.IgnoreUnexported(Row{}), cmpopts.IgnoreFields(Row{}, "Line")); diff != "" {
			t.Errorf("%q is written as\n%s\n%s", text, out, diff)
		}
	})
}
