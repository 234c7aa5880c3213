package report_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hsmbridge/hsm/quirks"
	"hsmbridge/hsm/report"
	"hsmbridge/hsm/wrapping"
)

// reports are the texts of every report in the tree, by name.
func reports(tb testing.TB) map[string][]byte {
	tb.Helper()
	files, err := filepath.Glob("testdata/reports/*.json")
	if err != nil || len(files) == 0 {
		tb.Fatal("no reports", err)
	}
	out := map[string][]byte{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			tb.Fatal(err)
		}
		out[strings.TrimSuffix(file, ".json")] = text
	}
	return out
}

// TestReports holds for every report in testdata/reports what is chosen for each kind of key on such a token, from the report alone. What
// has to be chosen stands beside it in NAME.want, one line for each key spec; a report without that file is printed as it would be.
func TestReports(t *testing.T) {
	for name, text := range reports(t) {
		t.Run(filepath.Base(name), func(t *testing.T) {
			r, err := report.Parse(text)
			if err != nil {
				t.Fatal(err)
			}
			if f, _ := quirks.Find(r.Seen()); f.Name != r.Family {
				t.Errorf("the table finds the family %q, the report has %q", f.Name, r.Family)
			}
			var b strings.Builder
			for _, spec := range wrapping.KeySpecs() {
				s := wrapping.Select(spec, r.Capabilities(), wrapping.Policy{})
				if len(s.Plans) == 0 {
					fmt.Fprintf(&b, "%s none\n", spec)
					continue
				}
				p := s.Plans[0]
				fmt.Fprintf(&b, "%s %s %s %s\n", spec, p.Algorithm, p.WrappingKeySpec, p.Mechanism)
			}
			want, err := os.ReadFile(name + ".want")
			if err != nil {
				t.Fatalf("%v; check that it is right, and write:\n%s", err, b.String())
			}
			if diff := cmp.Diff(string(want), b.String()); diff != "" {
				t.Errorf("chosen (-want +got):\n%s", diff)
			}
		})
	}
}

func sample() (wrapping.Capabilities, quirks.Quirks) {
	caps := wrapping.Capabilities{
		Token: wrapping.TokenIdentity{Label: "Frankfurt-1", Manufacturer: "Acme, for FRANKFURT-1", Model: "Box 4711", Serial: "4711", Firmware: "2.6"},
		Trials: []wrapping.Trial{
			{KeySpec: wrapping.SymmetricDefault, Algorithm: wrapping.OAEPSHA256, WrappingKeySpec: wrapping.RSA4096, Mechanism: wrapping.Mechanism{Name: "CKM_RSA_PKCS_OAEP", Type: 9, Form: wrapping.FormOAEP}, Outcome: wrapping.Exact, Length: 32},
			{KeySpec: wrapping.SymmetricDefault, Algorithm: wrapping.OAEPSHA1, WrappingKeySpec: wrapping.RSA4096, Mechanism: wrapping.Mechanism{Name: "CKM_RSA_PKCS_OAEP", Type: 9, Form: wrapping.FormOAEP}, Outcome: wrapping.Failed, Reason: "CKR_ARGUMENTS_BAD (0x7): slot Room 12 of frankfurt-1 <&>"},
		},
	}
	return caps, quirks.For(quirks.Seen{Module: "yubihsm_pkcs11.so"}, quirks.Override{})
}

func TestNew(t *testing.T) {
	caps, q := sample()
	r := report.New(report.Report{
		Hsmbridge: "v1", OS: "linux", Arch: "amd64", Module: "/opt/frankfurt/yubihsm_pkcs11.so",
		Library:    report.Library{Manufacturer: "Acme", Description: "P11 in Room 12", Version: "1.0", Cryptoki: "2.40"},
		Mechanisms: []report.Mechanism{{Type: report.Number(9), Flags: report.Number(0x60000), Min: 1024, Max: 4096}},
	}, caps, q, []string{"Room 12", "/opt/frankfurt/yubihsm_pkcs11.so", "", "B"})
	text, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	for _, private := range []string{"frankfurt", "Frankfurt", "FRANKFURT", "4711", "Room 12", "/opt"} {
		if bytes.Contains(text, []byte(private)) {
			t.Errorf("%q is in the report:\n%s", private, text)
		}
	}
	if r.Module != "yubihsm_pkcs11.so" || r.Token.Model != "Box [redacted]" || r.Library.Description != "P11 in [redacted]" || r.Family != "yubihsm2" || r.Trials[1].CKR != "CKR_ARGUMENTS_BAD" {
		t.Errorf("%+v", r)
	}
	again, err := report.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(r, again); diff != "" {
		t.Errorf("read again (-wrote +read):\n%s", diff)
	}
	want := caps
	want.Token.Label, want.Token.Serial = "", ""
	want.Token.Manufacturer, want.Token.Model = r.Token.Manufacturer, r.Token.Model
	want.Trials[1].Reason = r.Trials[1].Reason
	if diff := cmp.Diff(want, again.Capabilities()); diff != "" {
		t.Errorf("capabilities:\n%s", diff)
	}
	for _, path := range []string{"/x/libbox-frankfurt.so", "/x/libsofthsm2-frankfurt.so", "/x/frankfurt-libsofthsm2.so"} {
		if r := report.New(report.Report{Module: path}, caps, q, nil); r.Module != "" {
			t.Errorf("%s is named %s", path, r.Module)
		}
	}
	for _, name := range []string{"libCryptoki2_64.so", "libcs_pkcs11_R3.so", "libsofthsm2.so", "libopencryptoki.so.0", "libsoftokn3.so"} {
		if r := report.New(report.Report{Module: "/x/" + name}, caps, q, nil); r.Module != name {
			t.Errorf("%s is not named", name)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	caps, q := sample()
	good, err := report.New(report.Report{}, caps, q, nil).Encode()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := report.Parse(good); err != nil {
		t.Fatal(err)
	}
	replace := func(old, with string) string { return strings.Replace(string(good), old, with, 1) }
	for name, text := range map[string]string{
		"empty":           "",
		"another version": replace(`"version": 1`, `"version": 2`),
		"unknown field":   replace(`"os": ""`, `"os": "", "label": "x"`),
		"given twice":     replace(`"os": ""`, `"os": "x", "os": ""`),
		"reformatted":     strings.ReplaceAll(string(good), "\n", ""),
		"more behind it":  string(good) + "{}",
		"null":            replace(`"mechanisms": []`, `"mechanisms": null`),
		"other case":      replace(`"os"`, `"OS"`),
		"key spec":        replace(string(wrapping.SymmetricDefault), "AES"),
		"outcome":         replace(`"exact"`, `"fine"`),
		"form":            replace(`"oaep"`, `"magic"`),
		"type":            replace(`0x00000009`, `9`),
		"length":          replace(`"length":32`, `"length":-1`),
		"large":           strings.Repeat(" ", 5<<20),
	} {
		if _, err := report.Parse([]byte(text)); err == nil {
			t.Errorf("%s: read", name)
		}
	}
}

// FuzzParse holds that what is read is written again byte for byte, and that a selection can be made from it.
func FuzzParse(f *testing.F) {
	caps, q := sample()
	text, err := report.New(report.Report{Mechanisms: []report.Mechanism{{Type: report.Number(1)}}}, caps, q, nil).Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte(`{"version": 1}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := report.Parse(text)
		if err != nil {
			return
		}
		again, err := r.Encode()
		if err != nil || !bytes.Equal(again, text) {
			t.Fatalf("%q is written as %q (%v)", text, again, err)
		}
		for _, spec := range wrapping.KeySpecs() {
			wrapping.Select(spec, r.Capabilities(), wrapping.Policy{})
		}
	})
}
