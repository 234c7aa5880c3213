package configs_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"hsmbridge/configs"
	"hsmbridge/hsm/quirks"
)

// samplesOf are the sample files and the rows of the table of families that each is for.
func samplesOf() map[string][]string {
	return map[string][]string{
		"luna": {"luna"}, "nshield": {"nshield"}, "utimaco": {"utimaco"}, "cloudhsm": {"cloudhsm"}, "yubihsm2": {"yubihsm2"}, "marvell": {"marvell"},
		"futurex": {"futurex"}, "fortanix": {"fortanix"}, "securosys": {"securosys"}, "ibm-ep11": {"ibm-ep11", "ibm-cca"}, "nethsm": {"nethsm"},
		"softhsm2": {"softhsm2"}, "nss": {"nss"}, "opencryptoki": {"opencryptoki"},
	}
}

// TestSamplePerFamily holds that every family that can be used has a sample, that it loads, that hsmbridge finds the family by what the
// sample alone shows, that a device which was not run says so, and that every source of the table stands in it.
func TestSamplePerFamily(t *testing.T) {
	covered := map[string]bool{}
	for sample, families := range samplesOf() {
		file := sample + ".yaml"
		c, err := configs.Load(file)
		if err != nil {
			t.Error(err)
			continue
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		q := quirks.For(quirks.Seen{Module: c.Tokens[0].Module}, c.Tokens[0].Quirks)
		if q.Network != (c.Tokens[0].Network == configs.NetworkAllowed) {
			t.Errorf("%s: network is %q, and the table says %v of its module", file, c.Tokens[0].Network, q.Network)
		}
		if q.Family != families[0] {
			t.Errorf("%s: the family is %q, want %q", file, q.Family, families[0])
		}
		if c.Tokens[0].PINFile == "" && c.Tokens[0].PINCredential == "" {
			t.Errorf("%s: says not where the PIN comes from", file)
		}
		f, _ := quirks.ByName(families[0])
		if says := strings.Contains(string(text), "Not run on the real device"); says != (f.Run == "") {
			t.Errorf("%s: says that it was not run: %t; what was run: %q", file, says, f.Run)
		}
		for _, s := range f.Sources {
			if s.URL != "" && !strings.Contains(strings.ReplaceAll(string(text), "\n#     ", " "), s.URL) && !strings.Contains(string(text), strings.Trim(s.Document[strings.LastIndex(s.Document, ", ")+1:], ` "`)) {
				t.Errorf("%s: does not name %s", file, s.URL)
			}
		}
		for _, m := range f.Quirks.AESKeyWrap {
			if number := fmt.Sprintf("0x%08X", m.Type); !strings.Contains(string(text), number) {
				t.Errorf("%s: does not name the mechanism %s", file, number)
			}
		}
		for _, name := range families {
			covered[name] = true
		}
	}
	for _, f := range quirks.Families() {
		if !covered[f.Name] && f.Quirks.CannotWrap == "" {
			t.Errorf("%s has no sample", f.Name)
		}
	}
}

var updateHSMs = flag.Bool("update-hsms", false, "write the table in docs/hsms.md")

const (
	tableBegin = "<!-- made from the table in hsm/quirks: go test ./configs -run HSMs -update-hsms -->\n"
	tableEnd   = "<!-- end -->\n"
)

// TestHSMsIsCurrent holds that the table in docs/hsms.md is that of package quirks.
func TestHSMsIsCurrent(t *testing.T) {
	var b strings.Builder
	b.WriteString("\n| family | `quirks.family` | sample | run | quirks | sources |\n|---|---|---|---|---|---|\n")
	for _, f := range quirks.Families() {
		sample := "–"
		for name, families := range samplesOf() {
			if slices.Contains(families, f.Name) {
				sample = fmt.Sprintf("[%s.yaml](../configs/%s.yaml)", name, name)
			}
		}
		run := f.Run
		if run == "" {
			run = "**not run**"
		}
		q := f.Quirks
		applied := q.Applied()
		if q.CannotWrap != "" {
			applied = append(slices.DeleteFunc(applied, func(s string) bool { return s == "cannot wrap" }), "**cannot wrap**: "+q.CannotWrap)
		}
		var sources []string
		for _, s := range f.Sources {
			if s.URL != "" {
				s.Document = fmt.Sprintf("[%s](%s)", s.Document, s.URL)
			}
			sources = append(sources, s.Document)
		}
		fmt.Fprintf(&b, "| %s | `%s` | %s | %s | %s | %s |\n", f.Title, f.Name, sample, run, strings.Join(applied, "; "), strings.Join(sources, "; "))
	}
	b.WriteString("\n")
	file := filepath.Join("..", "docs", "hsms.md")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(text), tableBegin)
	table, after, ok2 := strings.Cut(rest, tableEnd)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the table", file)
	}
	if *updateHSMs {
		if err := os.WriteFile(file, []byte(before+tableBegin+b.String()+tableEnd+after), 0o600); err != nil { //nolint:gosec // a file of this tree
			t.Fatal(err)
		}
		return
	}
	if table != b.String() {
		t.Errorf("%s is not current; go test ./configs -run HSMs -update-hsms writes it", file)
	}
}

// TestSampleHasEveryOption holds that the commented sample names every option that the schema has, as the documents say.
func TestSampleHasEveryOption(t *testing.T) {
	var schema any
	if err := json.Unmarshal(configs.Schema(), &schema); err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	var walk func(any)
	walk = func(x any) {
		switch x := x.(type) {
		case []any:
			for _, v := range x {
				walk(v)
			}
		case map[string]any:
			if properties, ok := x["properties"].(map[string]any); ok {
				for name := range properties {
					names[name] = true
				}
			}
			for _, v := range x {
				walk(v)
			}
		}
	}
	walk(schema)
	const least = 60
	if len(names) < least {
		t.Fatalf("the schema has %d options: that is not all of it", len(names))
	}
	for name := range names {
		if !regexp.MustCompile(`\b` + name + `:`).Match(configs.Sample()) {
			t.Errorf("configs/hsmbridge.yaml does not explain %s", name)
		}
	}
}
