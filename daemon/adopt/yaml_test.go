package adopt

import (
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// Unknown fields and wrong types are all told at once, with the other mistakes, each in its line; what cannot be read is not missing.
func TestYAMLMistakes(t *testing.T) {
	f, err := ParseYAML([]byte(`create-kms-keys: maybe
defaults:
  expiress: 90d
  tags: [x]
keys:
  - name: a
    key_spec: [HMAC_256]
    regionss: [eu-central-1]
  - {name: b, regions: eu-central-1, key_spec: HMAC_256}
  - just text
  - name: c
    key_spec: HMAC_256
    destinations:
      - arn: x
        rol_arn: y
      - [z]
    multi_region: 1
    name: c
  - {key_spec: HMAC_256}
  - name: {x: y}
  - {name: d/e, pin: "1234", regions: [us-east-1]}
colour: red
`))
	var wrong Problems
	if !errors.As(err, &wrong) {
		t.Fatal(err)
	}
	fields := strings.Join(fieldsOf(reflect.TypeFor[Row]()), ", ")
	want := []string{
		"f: line 1: create-kms-keys has to be true or false",
		`f: line 3: defaults: there is no field "expiress", did you mean expires?`,
		"f: line 4: defaults: tags has to be a mapping of NAME: VALUE",
		"f: line 7: a: key_spec has to be text",
		`f: line 8: a: there is no field "regionss", did you mean regions?`,
		"f: line 9: b: regions has to be a list, even of one: start each element with '- '",
		"f: line 10: an element of keys has to be a mapping of " + fields,
		`f: line 15: c: destinations: there is no field "rol_arn", did you mean role_arn?`,
		"f: line 16: c: an element of destinations has to be a mapping of arn, role_arn, external_id",
		"f: line 17: c: multi_region has to be true or false",
		"f: line 18: c: name is given twice in an element of keys",
		"f: line 19: key 5 of the fleet has no name",
		"f: line 20: name has to be text",
		`f: line 21: there is no field "pin"; there are ` + fields,
		"f: line 21: \"d/e\" cannot be the name of a key: letters, digits, '.', '_' and '-', at most 64",
		`f: line 22: there is no field "colour"; there are create-kms-keys, defaults, keys`,
	}
	if got := wrong.Lines("f"); !slices.Equal(got, want) {
		t.Errorf("%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	const lacking = "4 mistakes:\n  line 19: neither destinations nor regions are given\n  line 20: key_spec is missing\n" +
		"  line 20: neither destinations nor regions are given\n  line 21: d/e: key_spec is missing"
	if _, err = f.Complete(Row{Token: "t"}); err == nil || err.Error() != lacking {
		t.Errorf("%v\nwant %s", err, lacking)
	}
}

// Anchors, aliases and merge keys are what YAML says; numbers are read as they are written.
func TestYAMLAliases(t *testing.T) {
	f, err := ParseYAML([]byte(`defaults: &d {token: demo, tags: &t {cost: 007, v: 1.10}}
keys:
  - &a
    name: a
    destinations: [&x {arn: one, external_id: 0123}, two]
    regions: &r [eu-central-1]
  - {<<: *a, name: b, regions: *r, tags: {<<: *t, v: !!str 2}}
  - {<<: *d, name: c, destinations: [*x], backup: ~}
`))
	if err != nil {
		t.Fatal(err)
	}
	a, b, c := f.Keys[0], f.Keys[1], f.Keys[2]
	if a.Line != 3 || b.Line != 7 || c.Line != 8 {
		t.Errorf("lines %d, %d, %d", a.Line, b.Line, c.Line)
	}
	if one := (Destination{ARN: "one", ExternalID: "0123"}); !slices.Equal(b.Destinations, []Destination{one, {ARN: "two"}}) || !slices.Equal(c.Destinations, b.Destinations[:1]) {
		t.Errorf("%v, %v", b.Destinations, c.Destinations)
	}
	if b.Name != "b" || !slices.Equal(b.Regions, a.Regions) || b.Tags["cost"] != "007" || b.Tags["v"] != "2" || c.Token != "demo" || c.Tags["v"] != "1.10" {
		t.Errorf("%+v\n%+v", b, c)
	}
	for in, want := range map[string]string{
		"keys: [{name: a, regions: *r}]\n":                                               "line 1: a: the alias *r stands for nothing that is anchored before it",
		"keys:\n- &a {name: a, <<: *a}\n":                                                "line 2: a: merge keys within one another, more than 16",
		"keys: [{name: a, tags: !x {b: c}}]\n":                                           "line 1: a: the tag !x is refused: the type of a value is given by its field",
		"keys: [{name: a, <<: [x]}]\n":                                                   "line 1: a: what is merged into an element of keys has to be one mapping",
		"x: &r [{uri: [t]}]\nkeys: [{name: a, replicas: *r}, {name: b, replicas: *r}]\n": "2 mistakes:\n  line 1: there is no field \"x\"; there are create-kms-keys, defaults, keys\n  line 1: a: replicas: uri has to be text",
		"# nothing\n":               "read the fleet: the file is empty: the managed keys are a list under keys",
		"keys: []\n---\nkeys: []\n": "read the fleet: the file has more than one document",
		"text\n":                    "line 1: the fleet has to be a mapping of create-kms-keys, defaults, keys",
	} {
		if _, err := ParseYAML([]byte(in)); err == nil || err.Error() != want {
			t.Errorf("%q: %v\nwant %s", in, err, want)
		}
	}
}
