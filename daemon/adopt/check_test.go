package adopt

import (
	"context"
	"slices"
	"strings"
	"testing"

	"hsmbridge/configs"
)

const (
	someARN  = "arn:aws:kms:eu-central-1:111122223333:key/1"
	otherARN = "arn:aws:kms:us-east-1:111122223333:key/2"
	oneToken = "tokens:\n  - {name: demo, module: /m.so, uri: \"pkcs11:token=demo\", pin_file: pin}\nkeys:\n" +
		"  - {name: old, token: demo, uri: \"pkcs11:id=%01;object=o\", key_spec: HMAC_256, expires: 90d, destinations: [\"" + someARN + "\"]}\n"
)

// A row is compared in what it says; what it leaves out differs in nothing.
func TestDiffer(t *testing.T) {
	c, err := configs.Parse("hsmbridge.yaml", []byte(oneToken))
	if err != nil {
		t.Fatal(err)
	}
	key, _ := c.Key("old")
	const same = "old,HMAC_256,2160h," + someARN + ",,,,"
	for row, want := range map[string][]string{
		same:                                nil,
		"old,HMAC_256,90d,,eu-central-1,,,": nil,
		"old,HMAC_256,90d," + someARN + ",,,pkcs11:object=o;id=%01,": nil,
		"old,HMAC_256,30d," + someARN + ",,,,":                       {"expires 90d there, 30d in f.csv"},
		"old,HMAC_512,never," + someARN + ",,,,":                     {"key_spec HMAC_256 there, HMAC_512 in f.csv", "expires 90d there, never in f.csv"},
		"old,HMAC_256,90d," + someARN + ",,other,,if-missing":        {"token demo there, other in f.csv", "generate never there, if-missing in f.csv"},
		"old,HMAC_256,90d," + someARN + ",,,pkcs11:object=x,":        {"uri pkcs11:object=o;id=%01 there, pkcs11:object=x in f.csv"},
		"old,HMAC_256,90d," + someARN + " " + otherARN + ",,,,":      {"the destination " + otherARN + " is in f.csv only"},
		"old,HMAC_256,90d," + otherARN + ",,,,":                      {"the destination " + otherARN + " is in f.csv only", "the destination " + someARN + " is not in f.csv"},
		"old,HMAC_256,90d," + someARN + ",eu-central-1 us-east-1,,,": {"no destination in us-east-1 there, and f.csv has the Region"},
	} {
		f, err := ParseCSV([]byte("name,key_spec,expires,destinations,regions,token,uri,generate\n" + row + "\n"))
		if err != nil {
			t.Fatal(err)
		}
		if f, err = f.Complete(Row{Token: "demo"}); err != nil {
			t.Fatal(err)
		}
		if got := Differ(f.Keys[0], key, "f.csv"); !slices.Equal(got, want) && len(got)+len(want) > 0 {
			t.Errorf("%s:\n%q, want\n%q", row, got, want)
		}
	}
}

// Whatever Regions, roles and multi-Region keys a row asks for, its placeholders are what a configuration takes.
func TestCheckWithPlaceholders(t *testing.T) {
	rows := []Row{
		{Name: "a", Regions: []string{"eu-central-1", "us-east-1"}, MultiRegion: true},
		{Name: "b", Regions: []string{"eu-central-1", "us-east-1"}, MultiRegion: true},
		{Name: "c", Regions: []string{"cn-north-1", "us-gov-west-1"}},
		{Name: "d", Regions: []string{"us-east-1"}, Destinations: []Destination{{ARN: "arn:aws:kms:us-east-1:111122223333:key/9"}}},
		{Name: "e", Regions: []string{"us-east-1"}, Line: 6},
	}
	const role = "arn:aws:iam::444455556666:role/r"
	var list []Proposal
	for i, r := range rows {
		r.Token, r.URI, r.KeySpec, r.Expires = "demo", "pkcs11:object="+r.Name, "HMAC_256", "90d"
		of := ""
		if r.Name == "e" {
			of = role
		}
		r = Whole(r, i, of)
		if of != "" {
			r.Destinations[0].RoleARN = of
		}
		if len(r.Destinations) != len(r.Regions) {
			t.Errorf("%s has %v", r.Name, r.Destinations)
		}
		list = append(list, Proposal{Row: r})
	}
	if problems, err := Check("hsmbridge.yaml", []byte(oneToken), 1, list); err != nil || len(problems) > 0 {
		t.Fatal(problems, err)
	}
	list[4].Expires, list[4].Generate = "900d", "if: [maybe"
	problems, err := Check("hsmbridge.yaml", []byte(oneToken), 1, list)
	if err != nil || len(problems) != 2 {
		t.Fatal(problems, err)
	}
	for i, want := range []string{"f.csv: line 6: e: expires: 900d is more than the 365d", `f.csv: line 6: e: generate: "if: [maybe" is neither`} {
		if got := problems[i].String("f.csv"); !strings.HasPrefix(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if _, err := Check("hsmbridge.yaml", []byte("keys: [{name: a}]\n"), 1, list); err == nil {
		t.Error("keys in one line were taken")
	}
}

func TestCheckCreation(t *testing.T) {
	for want, r := range map[string]Row{
		`a: alias: "alias/a b" is no alias`:                                                 {Name: "a", Alias: "alias/a b", Regions: []string{"us-east-1"}},
		`a: alias: "alias/aws/x" is no alias`:                                               {Name: "a", Alias: "alias/aws/x", Regions: []string{"us-east-1"}},
		`a: regions: "Frankfurt" is no AWS Region`:                                          {Name: "a", Alias: "alias/a", Regions: []string{"Frankfurt"}},
		`a: regions: "eu-centrall-1" is probably no AWS Region: did you mean eu-central-1?`: {Name: "a", Alias: "alias/a", Regions: []string{"eu-centrall-1"}},
		`a: alias: alias/first is that of first too`:                                        {Name: "a", Alias: "alias/first", Regions: []string{"us-east-1"}},
	} {
		got := CheckCreation([]Row{{Name: "first", Alias: "alias/first", Regions: []string{"us-east-1", "eu-central-1"}}, r})
		if len(got) != 1 || !strings.HasPrefix(got[0].String(""), want) {
			t.Errorf("%v, want %s", got, want)
		}
	}
}

// A Region with a direction that is no word is one that nobody meant; those that AWS has pass, and those that it may add.
func TestMeantRegion(t *testing.T) {
	for region, want := range map[string]string{
		"eu-cental-1": "eu-central-1", "us-eastt-1": "us-east-1", "us-gov-wets-1": "us-gov-west-1", "ap-southeats-2": "ap-southeast-2", "cn-norht-1": "cn-north-1",
	} {
		if got := meantRegion(region); got != want {
			t.Errorf("%s: %q, want %q", region, got, want)
		}
	}
	for region := range strings.FieldsSeq("af-south-1 ap-east-1 ap-east-2 ap-northeast-1 ap-northeast-3 ap-south-1 ap-southeast-7 ca-central-1 ca-west-1 cn-north-1 cn-northwest-1 eu-central-2 " +
		"eu-north-1 eu-south-2 eu-west-3 eusc-de-east-1 il-central-1 me-central-1 me-south-1 mx-central-1 sa-east-1 sa-west-1 us-east-1 us-gov-east-1 us-iso-east-1 us-isob-east-1 us-isof-south-1 us-west-2 " +
		"eu-isoe-west-1 me-north-1 eu-south-9 nz-southwest-1 xx-middle-1 mars") {
		if got := meantRegion(region); got != "" {
			t.Errorf("%s: %q", region, got)
		}
	}
}

// What is written for correction is read as it was, whatever somebody called an alias.
func TestFleetYAML(t *testing.T) {
	row := Row{Name: "a", Token: "demo", URI: "pkcs11:object=a", KeySpec: "HMAC_256", Expires: "90d", Generate: "if-missing", Destinations: []Destination{
		{ARN: someARN}, {ARN: otherARN, RoleARN: "arn:aws:iam::444455556666:role/r", ExternalID: "x:\"y"},
	}}
	for _, list := range [][]Proposal{{{Row: row}}, {{Row: row, Notes: []string{"alias/x\n  - name: b"}}}} {
		text := FleetYAML(list, "one\ntwo")
		f, err := ParseYAML(text)
		if err != nil || len(f.Keys) != len(list) {
			t.Fatalf("%v\n%s", err, text)
		}
		for i := range f.Keys {
			if !slices.Equal(f.Keys[i].Destinations, row.Destinations) || f.Keys[i].URI != row.URI || f.Keys[i].Generate != row.Generate {
				t.Errorf("%+v from\n%s", f.Keys[i], text)
			}
		}
	}
	if _, err := ParseYAML([]byte("keys:\n  - {name: a, destinations: [{arn: x, rolle: y}]}\n")); err == nil {
		t.Error("an unknown field of a destination was taken")
	}
}

// A KMS key whose alias could not be made was created, and is counted.
func TestKeyWithoutAliasCounts(t *testing.T) {
	left := 1
	kms := interrupted{clientOf(t, start(t), "eu-central-1"), &left}
	r := Row{Name: "a", KeySpec: "HMAC_256", Alias: "alias/a", Regions: []string{"eu-central-1"}}
	_, n, err := (&Creator{Client: func(context.Context, string) (KMS, error) { return kms, nil }}).Ensure(t.Context(), r)
	if err == nil || n != 1 {
		t.Errorf("%d, %v", n, err)
	}
}

// Copies in other tokens and times come through whole: from a table, from YAML, into the configuration, and in the comparison with it.
func TestCopiesAndTimes(t *testing.T) {
	const tokens = "tokens:\n  - {name: demo, module: /m.so, uri: \"pkcs11:token=demo\", pin_file: pin}\n" +
		"  - {name: far, module: /m.so, uri: \"pkcs11:token=far\", pin_file: pin}\n  - {name: safe, module: /m.so, uri: \"pkcs11:token=safe\", pin_file: pin}\n"
	table, err := ParseCSV([]byte("name,key_spec,destinations,replicas,backup,renew_before,rotate_every,drill_every\na,SYMMETRIC_DEFAULT," + someARN + ",far,safe,20d,180d,30d\n"))
	if err != nil {
		t.Fatal(err)
	}
	file, err := ParseYAML([]byte("keys:\n  - {name: a, key_spec: SYMMETRIC_DEFAULT, destinations: [\"" + someARN + "\"], replicas: [{token: far, uri: \"pkcs11:object=b\"}], backup: safe, renew_before: 20d, rotate_every: 180d, drill_every: 30d}\n"))
	if err != nil {
		t.Fatal(err)
	}
	for i, f := range []Fleet{table, file} {
		if f, err = f.Complete(Row{Token: "demo", Expires: "90d"}); err != nil {
			t.Fatal(err)
		}
		list := []Proposal{{Row: f.Keys[0]}}
		again, err := ParseYAML(FleetYAML(list, ""))
		if err != nil || !slices.Equal(again.Keys[0].Replicas, f.Keys[0].Replicas) || again.Keys[0].Backup != f.Keys[0].Backup || !slices.Equal(again.Keys[0].times(), f.Keys[0].times()) {
			t.Errorf("%v: %+v\nfrom %+v", err, again.Keys, f.Keys[0])
		}
		text, err := Append([]byte(tokens), YAML(list))
		if err != nil {
			t.Fatal(err)
		}
		c, err := configs.Parse("hsmbridge.yaml", text)
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		k, _ := c.Key("a")
		if len(k.Replicas) != 1 || k.Replicas[0].Token != "far" || (i == 1) != (k.Replicas[0].URI.String() == "pkcs11:object=b") || k.Backup.Token != "safe" ||
			k.RenewBefore.String() != "20d" || k.RotateEvery.String() != "180d" || k.DrillEvery.String() != "30d" {
			t.Errorf("%+v from\n%s", k, text)
		}
		r := f.Keys[0]
		if got := Differ(r, k, "f.csv"); len(got) > 0 {
			t.Errorf("the same differs: %q", got)
		}
		r.Replicas, r.Backup, r.DrillEvery, r.RenewBefore = append(slices.Clone(r.Replicas), Copy{Token: "safe"}), Copy{Token: "far"}, "31d", ""
		want := []string{"drill_every 30d there, 31d in f.csv", "replicas far there, far, safe in f.csv", "backup safe there, far in f.csv"}
		if got := Differ(r, k, "f.csv"); !slices.Equal(got, want) {
			t.Errorf("%q, want\n%q", got, want)
		}
		r.Replicas = []Copy{{Token: "far", URI: "pkcs11:object=c"}}
		if got := Differ(r, k, "f.csv"); !slices.Contains(got, "uri in far "+[]string{"pkcs11:object=a;type=secret-key", "pkcs11:object=b"}[i]+" there, pkcs11:object=c in f.csv") {
			t.Errorf("%q", got)
		}
		r.Replicas, r.Backup = []Copy{{Token: "far"}}, Copy{Token: "safe", URI: "pkcs11:object=a;type=secret-key"} // left out, and the same as the key's
		if got := Differ(r, k, "f.csv"); !slices.Equal(got, want[:1]) {
			t.Errorf("%q", got)
		}
		r.RotateEvery, k.RotateEvery = "1d", 0
		if got := Differ(r, k, "f.csv"); !slices.Contains(got, "rotate_every not set there, 1d in f.csv") {
			t.Errorf("%q", got)
		}
		if _, err := (Fleet{Keys: []Row{{Name: "a", DrillEvery: "often", Regions: []string{"us-east-1"}}}}).Complete(list[0].Row); err == nil || !strings.HasPrefix(err.Error(), "a: drill_every: ") {
			t.Errorf("%v", err)
		}
	}
}

// What the configuration says of a KMS key that is not there yet is said of the Region in which it would be.
func TestCheckPlaceholder(t *testing.T) {
	for _, multi := range []bool{false, true} {
		row := Whole(Row{Name: "a", Line: 2, Token: "demo", URI: "pkcs11:object=a", KeySpec: "HMAC_256", Expires: "90d", Regions: []string{"eu-central-1", "us-east-1"}, MultiRegion: multi}, 7, "")
		problems, err := Check("h.yaml", []byte("kms: {region: eu-central-1}\n"+oneToken), 1, []Proposal{{Row: row}})
		want := "line 2: a: regions: us-east-1: a KMS key would be in us-east-1 and kms.region is eu-central-1: correct one of them, or leave kms.region out for keys in several Regions"
		if err != nil || Problems(problems).Error() != want {
			t.Errorf("%v, %v\nwant %s", err, problems, want)
		}
	}
}
