package adopt

import (
	"errors"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"hsmbridge/configs"
	"hsmbridge/hsm/pkcs11uri"
	"hsmbridge/hsm/wrapping"
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
		"  line 20: neither destinations nor regions are given\n  line 21: \"d/e\": key_spec is missing"
	if _, err = f.Complete(Row{Token: "t"}); err == nil || err.Error() != lacking {
		t.Errorf("%v\nwant %s", err, lacking)
	}
}

// A fleet is as plain as a configuration: a value stands where it is used. Numbers are read as they are written.
func TestYAMLPlain(t *testing.T) {
	f, err := ParseYAML([]byte(`defaults: {token: demo, tags: {cost: 007, v: 1.10}, multi_region: true}
keys:
  - name: a
    destinations: [{arn: one, external_id: 0123}, two]
  - {name: b, multi_region: false, backup: ~}
`))
	if err != nil {
		t.Fatal(err)
	}
	a, b := f.Keys[0].or(f.Defaults), f.Keys[1].or(f.Defaults)
	if a.Line != 3 || b.Line != 5 || !a.MultiRegion || b.MultiRegion || b.or(Row{MultiRegion: true}).MultiRegion {
		t.Errorf("%+v, %+v", a, b)
	}
	if !slices.Equal(a.Destinations, []Destination{{ARN: "one", ExternalID: "0123"}, {ARN: "two"}}) || a.Tags["cost"] != "007" || a.Tags["v"] != "1.10" {
		t.Errorf("%+v", a)
	}
	const refused = "anchors, aliases and merge keys are refused: write the value where it is used, so that who approves it reads it there"
	for _, c := range [][2]string{
		{"defaults: &d {token: t}\nkeys:\n- {<<: *d, name: a}\n", "3 mistakes:\n  line 1: " + refused + "\n  line 3: " + refused + "\n  line 3: " + refused},
		{"keys: [{name: a, tags: !x {b: c}}]\n", "line 1: tags are refused: the type of a value is given by its field"},
		{"%YAML 1.2\n---\nkeys: []\n", "line 1: directives are refused: the file is YAML 1.2 as it is"},
		{"keys: []\n---\nkeys: []\n", "line 2: a second YAML document: the file is one"},
		{"keys: " + strings.Repeat("[", 1<<16), "line 1: nested deeper than 16 levels, which no field is"},
		{"\ufeffkeys: []\n", "line 1: the file starts with a byte order mark: save it as UTF-8 without one"},
		{"keys:\n- name: a\n  pin: S3CRET\n - x\n", "line 4: this is not YAML: value is not allowed in this context: look at the indentation, and for a missing quote or colon"},
		{"# nothing\n", "the fleet has no keys: they are a list under keys"},
		{"keys: ~\n", "the fleet has no keys: they are a list under keys"},
		{"text\n", "line 1: the fleet has to be a mapping of create-kms-keys, defaults, keys"},
		{"keys: [{name: a, tags: {\"q\\nhsmbridge: fine\": []}}]\n", `line 1: a: tags: "q\nhsmbridge: fine" has to be text`},
		{"defaults: {name: x, destinations: [y]}\nkeys: [{name: a}, {name: b}]\n", "line 1: defaults: name and destinations are those of one key: they stand with it"},
	} {
		in, want := c[0], c[1]
		if _, err := ParseYAML([]byte(in)); err == nil || err.Error() != want {
			t.Errorf("%.60q: %v\nwant %s", in, err, want)
		}
	}
	if _, err := (Fleet{Keys: []Row{{Name: "a\nb", KeySpec: "HMAC_256", Token: "t"}}}).Complete(Row{Regions: []string{"us-east-1"}}); err == nil || err.Error() != `"a\nb": expires is missing (90d, or never)` {
		t.Error(err)
	}
}

// A row that is an object which the configuration has under another name is refused; so are more Regions than there can be.
func TestTaken(t *testing.T) {
	u, err := pkcs11uri.Parse("pkcs11:object=o;type=secret-key")
	if err != nil {
		t.Fatal(err)
	}
	c := &configs.Config{Keys: []configs.Key{{Name: "old", Token: "demo", URI: u, KeySpec: wrapping.HMAC256}}}
	row := func(name, token, uri, spec string) Row {
		return Row{Name: name, Line: 7, Token: token, URI: uri, KeySpec: spec}
	}
	got := Taken([]Row{
		row("old", "demo", "pkcs11:object=o", "HMAC_256"), row("b", "demo", "pkcs11:object=o", "HMAC_256"), row("c", "spare", "pkcs11:object=o", "HMAC_256"),
		row("d", "demo", "pkcs11:object=o", "RSA_2048"), row("e", "demo", "pkcs11:object=p", "HMAC_256"),
	}, c, "h.yaml")
	if want := "line 7: b: uri: pkcs11:object=o of token demo is the key old of the configuration already: add the destination to that key in h.yaml"; got.Error() != want {
		t.Errorf("%v, want %s", got, want)
	}
	var many []string
	for i := range 10000 {
		many = append(many, "eu-west-"+strconv.Itoa(i))
	}
	f, err := Fleet{Keys: []Row{{Name: "a", Token: "t", KeySpec: "HMAC_256", Expires: "never", Regions: many}}}.Complete(Row{})
	if err == nil || err.Error() != "a: 10000 regions, and AWS has fewer than 200" || len(f.Keys[0].Regions) != 1 {
		t.Error(err)
	}
}
