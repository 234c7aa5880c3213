package adopt

import (
	"context"
	"errors"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"

	"hsmbridge/configs"
	"hsmbridge/kmsclient"
	"hsmbridge/kmsclient/kmsemu"
)

// start serves an emulator and gives clients of its Regions.
func start(t *testing.T) func(ctx context.Context, region string) (KMS, error) {
	t.Helper()
	t.Setenv("AWS_ACCESS_KEY_ID", "x")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "x")
	emulator, err := kmsemu.New(kmsemu.Options{})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(emulator)
	t.Cleanup(srv.Close)
	return func(ctx context.Context, region string) (KMS, error) {
		return kmsclient.New(ctx, kmsclient.Config{Region: region, Endpoint: srv.URL})
	}
}

func clientOf(t *testing.T, clients func(context.Context, string) (KMS, error), region string) KMS {
	t.Helper()
	k, err := clients(t.Context(), region)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// interrupted is a KMS whose nth change is the last thing that happens.
type interrupted struct {
	KMS
	left *int
}

var errInterrupted = errors.New("interrupted")

func (k interrupted) count() error {
	*k.left--
	if *k.left < 0 {
		return errInterrupted
	}
	return nil
}

func (k interrupted) CreateKey(ctx context.Context, r kmsclient.CreateKeyRequest) (kmsclient.KeyInfo, error) {
	if err := k.count(); err != nil {
		return kmsclient.KeyInfo{}, err
	}
	return k.KMS.CreateKey(ctx, r)
}

func (k interrupted) CreateAlias(ctx context.Context, alias, arn string) error {
	if err := k.count(); err != nil {
		return err
	}
	return k.KMS.CreateAlias(ctx, alias, arn)
}

func (k interrupted) ReplicateKey(ctx context.Context, r kmsclient.ReplicaRequest) (kmsclient.KeyInfo, error) {
	if err := k.count(); err != nil {
		return kmsclient.KeyInfo{}, err
	}
	return k.KMS.ReplicateKey(ctx, r)
}

const fleetCSV = "name,key_spec,regions,multi_region,tags\n" +
	"payments,SYMMETRIC_DEFAULT,eu-central-1 us-east-1,true,owner=treasury\n" +
	"sessions,HMAC_256,eu-central-1,,\n" +
	"signing,ECC_NIST_P384,eu-central-1 us-east-1,,\n"

func fleet(t *testing.T) []Row {
	t.Helper()
	f, err := ParseCSV([]byte(fleetCSV))
	if err != nil {
		t.Fatal(err)
	}
	f, err = f.Complete(Row{Token: "demo", Expires: "90d", Alias: "hsm/{name}", Tags: map[string]string{"team": "keys"}})
	if err != nil {
		t.Fatal(err)
	}
	return f.Keys
}

// An interruption after any of the changes, and the same command again: every KMS key is there once, with its alias, and in the result.
func TestCreateIsResumed(t *testing.T) {
	for n := range 11 {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			clients := start(t)
			left := n
			c := &Creator{Client: func(ctx context.Context, region string) (KMS, error) {
				k, err := clients(ctx, region)
				return interrupted{k, &left}, err
			}}
			for _, r := range fleet(t) {
				if _, _, err := c.Ensure(t.Context(), r); err != nil && !errors.Is(err, errInterrupted) {
					t.Fatal(err)
				}
			}
			again := &Creator{Client: clients}
			total := 0
			for _, r := range fleet(t) {
				got, created, err := again.Ensure(t.Context(), r)
				if err != nil {
					t.Fatal(err)
				}
				total += created
				if len(got.Destinations) != len(r.Regions) {
					t.Errorf("%s has %d destinations, want %d", r.Name, len(got.Destinations), len(r.Regions))
				}
			}
			if n == 10 && total != 0 {
				t.Errorf("the second run created %d keys", total)
			}
			for region, want := range map[string]int{"eu-central-1": 3, "us-east-1": 2} {
				found, err := Discover(t.Context(), clientOf(t, clients, region), nil)
				if err != nil {
					t.Fatal(err)
				}
				if len(found) != want {
					t.Errorf("%s has %d KMS keys, want %d", region, len(found), want)
				}
				for _, f := range found {
					if len(f.Aliases) != 1 || f.Aliases[0] != "alias/hsm/"+f.Tags[NameTag] || f.Tags["team"] != "keys" {
						t.Errorf("%s in %s: aliases %q, tags %v", f.ARN, region, f.Aliases, f.Tags)
					}
					if multi := f.Tags[NameTag] == "payments"; f.MultiRegion != multi || multi && f.Tags["owner"] != "treasury" {
						t.Errorf("%s: multi-Region %v, tags %v", f.ARN, f.MultiRegion, f.Tags)
					}
				}
			}
		})
	}
}

func TestExistingKeyDoesNotFit(t *testing.T) {
	clients := start(t)
	kms := clientOf(t, clients, "eu-central-1")
	other, err := kms.CreateKey(t.Context(), kmsclient.CreateKeyRequest{KeySpec: "HMAC_256"})
	if err != nil {
		t.Fatal(err)
	}
	if err := kms.CreateAlias(t.Context(), "alias/hsm/payments", other.ARN); err != nil {
		t.Fatal(err)
	}
	row := fleet(t)[0]
	row.MultiRegion, row.Regions = false, []string{"eu-central-1"}
	_, n, err := (&Creator{Client: clients}).Ensure(t.Context(), row)
	var exists *ExistsError
	if !errors.As(err, &exists) || n != 0 || !strings.Contains(err.Error(), "is of key spec HMAC_256, and the file says SYMMETRIC_DEFAULT") {
		t.Errorf("%d, %v", n, err)
	}
	row.Alias = ""
	dry := &Creator{Client: clients, DryRun: true}
	if got, n, err := dry.Ensure(t.Context(), row); err != nil || n != 1 || len(got.Destinations) != 0 {
		t.Errorf("%d, %v, %v", n, got.Destinations, err)
	}
	if found, err := Discover(t.Context(), kms, nil); err != nil || len(found) != 1 {
		t.Errorf("a dry run left %d keys, %v", len(found), err)
	}
}

// What was sent when the run was interrupted is waited for, and gets its alias; nothing more is sent.
func TestCreateEndsWhatItSent(t *testing.T) {
	clients := start(t)
	ctx, cancel := context.WithCancel(t.Context())
	c := &Creator{Client: func(ctx context.Context, region string) (KMS, error) {
		k, err := clients(ctx, region)
		return stopping{k, cancel}, err
	}}
	rows := fleet(t)
	rows[0].MultiRegion, rows[0].Regions = false, []string{"eu-central-1"}
	if _, n, err := c.Ensure(ctx, rows[0]); err != nil || n != 1 {
		t.Errorf("%d, %v", n, err)
	}
	if _, n, err := c.Ensure(ctx, rows[1]); !errors.Is(err, context.Canceled) || n != 0 {
		t.Errorf("%d, %v", n, err)
	}
	found, err := Discover(t.Context(), clientOf(t, clients, "eu-central-1"), nil)
	if err != nil || len(found) != 1 || len(found[0].Aliases) != 1 {
		t.Errorf("%+v, %v", found, err)
	}
}

// stopping is a KMS; while it creates a key, the run is interrupted.
type stopping struct {
	KMS
	stop func()
}

func (s stopping) CreateKey(ctx context.Context, r kmsclient.CreateKeyRequest) (kmsclient.KeyInfo, error) {
	s.stop()
	return s.KMS.CreateKey(ctx, r)
}

// What is found becomes a configuration that loads, whatever keys are called.
func TestProposals(t *testing.T) {
	clients := start(t)
	eu, us := clientOf(t, clients, "eu-central-1"), clientOf(t, clients, "us-east-1")
	primary, err := eu.CreateKey(t.Context(), kmsclient.CreateKeyRequest{KeySpec: "SYMMETRIC_DEFAULT", MultiRegion: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := eu.ReplicateKey(t.Context(), kmsclient.ReplicaRequest{PrimaryARN: primary.ARN, Region: "us-east-1"}); err != nil {
		t.Fatal(err)
	}
	known, err := eu.CreateKey(t.Context(), kmsclient.CreateKeyRequest{KeySpec: "HMAC_256"})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 130 { // more than a page
		k, err := eu.CreateKey(t.Context(), kmsclient.CreateKeyRequest{KeySpec: "ECC_NIST_P256", Tags: map[string]string{NameTag: "same name!\n  - x: y"}})
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			if err := eu.CreateAlias(t.Context(), `alias/a:b"c\#d`, k.ARN); err != nil {
				t.Fatal(err)
			}
		}
	}
	var found []Found
	for _, k := range []KMS{eu, us} {
		list, err := Discover(t.Context(), k, nil)
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, list...)
	}
	list, names := Propose(found, &configs.Config{Keys: []configs.Key{{Name: "old", Destinations: []configs.Destination{{ARN: known.ARN}}}}}, Rules{Token: "demo", Expires: "90d"})
	if len(list) != 131 || names[known.ARN] != "old" {
		t.Fatalf("%d proposals for %d keys, %v", len(list), len(found), names)
	}
	for _, p := range list {
		if p.MultiRegion && (len(p.Destinations) != 2 || p.Destinations[0].ARN != primary.ARN) {
			t.Errorf("the multi-Region key has %v", p.Destinations)
		}
	}
	base := "tokens:\n  - {name: demo, module: /m.so, uri: \"pkcs11:token=demo\", pin_file: pin}\nkeys:\n    - {name: old, token: demo, uri: \"pkcs11:object=o;type=secret-key\", key_spec: HMAC_256, expires: never, destinations: [\"" + known.ARN + "\"]}\n\n# behind\nlog: {level: debug}\n"
	text, err := Append([]byte(base), YAML(list))
	if err != nil {
		t.Fatal(err)
	}
	c, err := configs.Parse("hsmbridge.yaml", text)
	if err != nil {
		t.Fatal(err)
	}
	before, behind, _ := strings.Cut(base, "\n\n# behind")
	if len(c.Keys) != 132 || c.Log.Level != "debug" || !strings.HasPrefix(string(text), before) || !strings.HasSuffix(string(text), "\n# behind"+behind) {
		t.Errorf("%d keys in\n%s", len(c.Keys), text)
	}
	table, err := CSV(list)
	if err != nil {
		t.Fatal(err)
	}
	again, err := ParseCSV(table)
	if err != nil || len(again.Keys) != len(list) || again.Keys[7].URI != list[7].URI || again.Keys[0].Destinations[0] != list[0].Destinations[0] {
		t.Errorf("%d keys read again, %v", len(again.Keys), err)
	}
}

func TestAppend(t *testing.T) {
	const keys = "  - name: \"b\"\n    x: y\n"
	for in, want := range map[string]string{
		"":                               "keys:\n" + keys,
		"a: 1":                           "a: 1\nkeys:\n" + keys,
		"keys: []\nz: 1\n":               "keys:\n" + keys + "z: 1\n",
		"keys: # all\n- name: a\nz: 1\n": "keys: # all\n- name: a\n- name: \"b\"\n  x: y\nz: 1\n",
		"keys:\n  - name: a":             "keys:\n  - name: a\n" + keys,
	} {
		got, err := Append([]byte(in), []byte(keys))
		if err != nil || string(got) != want {
			t.Errorf("%q: %q, %v\nwant %q", in, got, err, want)
		}
	}
	if _, err := Append([]byte("keys: [{name: a}]\n"), []byte(keys)); err == nil {
		t.Error("keys in one line were taken")
	}
}

func TestFleetFiles(t *testing.T) {
	for in, want := range map[string]string{
		"nom\nx\n":                      `there is no column "nom"; there are alias, backup, description, destinations`,
		"name,name\na,b\n":              "is there twice",
		"name,key_spec\na/b,HMAC_256\n": `"a/b" cannot be the name of a key`,
		"name\na\na\n":                  "two keys with the name a",
		"name,tags\na,x\n":              `line 2: column 3: tags: the tag "x" is not name=value`,
		"name,multi_region\na,maybe\n":  "line 2: column 3: multi_region",
		"name,key_spec\n\"a,HMAC_256\n": `line 2: column 13: extraneous or missing " in quoted-field; the rows after it were not read`,
		"name,key_spec\n":               "the fleet has no keys: a key is a line below",
		"name\n\"\"\n":                  "key 1 of the fleet has no name",
	} {
		if _, err := ParseCSV([]byte(in)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", in, err, want)
		}
	}
	f, err := ParseYAML([]byte("create-kms-keys: true\ndefaults: {token: demo, expires: 30d, regions: [eu-central-1], alias: \"alias/{name}\"}\nkeys:\n  - {name: a, key_spec: HMAC_256}\n"))
	if err != nil || !f.CreateKMSKeys {
		t.Fatal(f, err)
	}
	f, err = f.Complete(Row{Token: "other", Generate: "if-missing"})
	if err != nil || f.Keys[0].Token != "demo" || f.Keys[0].Alias != "alias/a" || f.Keys[0].URI != "pkcs11:object=a;type=secret-key" || f.Keys[0].Generate != "if-missing" {
		t.Errorf("%+v, %v", f.Keys, err)
	}
	if _, err := ParseYAML([]byte("keys:\n  - {nam: a}\n")); err == nil || !strings.Contains(err.Error(), "nam") {
		t.Error(err)
	}
	for in, want := range map[string]string{
		"name\na\n":                                          "a: key_spec is missing",
		"name,key_spec\na,ML_DSA_44\n":                       "a: key material of spec ML_DSA_44 cannot be imported",
		"name,key_spec\na,HMAC_256\n":                        "a: neither destinations nor regions are given",
		"name,key_spec,expires,regions\na,HMAC_256,soon,x\n": "a: expires:",
	} {
		f, err := ParseCSV([]byte(in))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Complete(Row{Token: "t", Expires: "1d"}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", in, err, want)
		}
	}
}

// All mistakes of a file are told at once, of very many some.
func TestAllMistakes(t *testing.T) {
	_, err := ParseCSV([]byte("name,multi_region\na,maybe\na/b,\nc,\nc,\n"))
	if _, err := ParseCSV([]byte("name,alias\nx/y\na/b,\n")); err == nil || err.Error() != "2 mistakes:\n  line 2: it has 1 fields, and the first line 2; a value with a comma stands in quotes\n  line 3: \"a/b\" cannot be the name of a key: letters, digits, '.', '_' and '-', at most 64" {
		t.Error(err)
	}
	want := "3 mistakes:\n  line 2: column 3: multi_region: \"maybe\" is neither true nor false\n  line 3: \"a/b\" cannot be the name of a key: letters, digits, '.', '_' and '-', at most 64\n  line 5: the fleet has two keys with the name c"
	if err == nil || err.Error() != want {
		t.Errorf("%v\nwant %s", err, want)
	}
	f, err := ParseCSV([]byte("name,expires\na,soon\nb,\n"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Complete(Row{Token: "t", KeySpec: "HMAC_256", Regions: []string{"x"}}); err == nil || !strings.Contains(err.Error(), "2 mistakes:\n  line 2: a: expires: ") || !strings.Contains(err.Error(), "\n  line 3: b: expires is missing") {
		t.Error(err)
	}
	var many, rows strings.Builder
	for i := range 30 {
		fmt.Fprintf(&rows, "a/%d\n", i)
		fmt.Fprintf(&many, "a%d,x,\n", i)
	}
	if f, err = ParseCSV([]byte("name\n" + rows.String())); err == nil || !strings.HasPrefix(err.Error(), "30 mistakes:") || !strings.HasSuffix(err.Error(), "\n  and 10 more") {
		t.Errorf("%v, %v", f, err)
	}
	// What many rows share is told once, and where some of the others are; of few rows each.
	f, err = ParseCSV([]byte("name,regions,expires\n" + many.String() + "b,x,soon\n"))
	if err != nil {
		t.Fatal(err)
	}
	want = "31 mistakes:\n  line 2: a0: expires is missing (90d, or never); the same in 29 more lines: 3, 4, 5, …\n  line 32: b: expires: "
	if _, err = f.Complete(Row{Token: "t", KeySpec: "HMAC_256"}); err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("%v\nwant %s", err, want)
	}
	for n, want := range map[int]string{
		3: "a0: w, a1: w, a2: w", 4: "a0: w; the same in 3 more keys: a1, a2, a3", 5: "a0: w; the same in 4 more keys: a1, a2, a3, …",
	} {
		var list Problems
		for i := range n {
			list = append(list, Problem{Name: fmt.Sprintf("a%d", i), What: "w"})
		}
		if got := strings.Join(list.Lines(""), ", "); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}

// All that is wrong with a table is told with what is wrong with its columns, and a column that was probably meant is not missing.
func TestColumnsAndRows(t *testing.T) {
	f, err := ParseCSV([]byte("name,regionss,multi_region,name\na,x,maybe,b\nc/d,x,,\n"))
	for _, want := range []string{
		"4 mistakes:\n  line 1: there is no column \"regionss\", did you mean regions?; there are alias, ", "\n  line 1: the column \"name\" is there twice\n",
		"\n  line 2: column 5: multi_region: ", "\n  line 3: \"c/d\" cannot be the name of a key",
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	_, err = f.Complete(Row{Token: "t", Expires: "soon", KeySpec: "HMAC_256"})
	var wrong Problems
	if !errors.As(err, &wrong) || len(wrong) != 2 || !strings.HasPrefix(wrong[0].What, "expires: ") || !strings.HasPrefix(wrong[1].What, "expires: ") {
		t.Error(err)
	}
}

// Rows of one key are a mistake however they write it, those of other tokens and classes are not.
func TestOneObjectTwice(t *testing.T) {
	f, err := ParseCSV([]byte("name,token,key_spec,uri\na,t,HMAC_256,pkcs11:object=x;id=%01\nb,t,SYMMETRIC_DEFAULT,pkcs11:id=%01;type=secret-key;object=x\n" +
		"c,u,HMAC_256,pkcs11:object=x;id=%01\nd,t,RSA_2048,pkcs11:object=x;id=%01\ne,t,HMAC_256,pkcs11:object=f;type=secret-key\nf,t,HMAC_256,\ng,t,HMAC_256,wrong\nh,t,HMAC_256,wrong\n"))
	if err != nil {
		t.Fatal(err)
	}
	f.Keys[2].AssumeToken("t")
	const want = "2 mistakes:\n  line 3: b: uri: pkcs11:id=%01;type=secret-key;object=x of token t is the key of a in line 2 too: a key that goes to several KMS keys is one row with several destinations or regions\n" +
		"  line 7: f: uri: pkcs11:object=f;type=secret-key of token t is the key of e in line 6 too: a key that goes to several KMS keys is one row with several destinations or regions"
	f, err = f.Complete(Row{Expires: "1d", Regions: []string{"us-east-1"}})
	if err == nil || err.Error() != want || len(f.Keys) != 8 {
		t.Errorf("%d rows, %v\nwant %s", len(f.Keys), err, want)
	}
}

func FuzzParseCSV(f *testing.F) {
	f.Add([]byte(fleetCSV))
	f.Add([]byte("name,tags,destinations\na,x=y z=,arn:aws:kms:eu-central-1:111122223333:key/1\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		fleet, err := ParseCSV(text)
		if err != nil {
			return
		}
		if fleet, err = fleet.Complete(Row{Token: "t", Expires: "1d", KeySpec: "HMAC_256", Regions: []string{"eu-central-1"}}); err != nil {
			return
		}
		var list []Proposal
		for _, r := range fleet.Keys {
			list = append(list, Proposal{Row: r})
		}
		table, err := CSV(list)
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseCSV(table)
		if err != nil || len(again.Keys) != len(fleet.Keys) {
			t.Fatalf("%v\n%s", err, table)
		}
	})
}
