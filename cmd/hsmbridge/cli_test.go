package main

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"hsmbridge/daemon/importer"
	"hsmbridge/hsm"
	"hsmbridge/hsm/wrapping"
)

// capabilities are those of a token that does some algorithms for secrets, and nothing for private keys.
func capabilities(usable ...wrapping.Algorithm) wrapping.Capabilities {
	c := wrapping.Capabilities{Token: wrapping.TokenIdentity{Label: "made\x1b[31mup"}}
	for _, spec := range wrapping.KeySpecs() {
		for _, a := range spec.Order() {
			for _, w := range wrapping.WrappingKeySpecs() {
				tr := wrapping.Trial{
					KeySpec: spec, Algorithm: a, WrappingKeySpec: w, Outcome: wrapping.Failed, Reason: "CKR_MECHANISM_INVALID (0x70)",
					Mechanism: wrapping.Mechanism{Name: "CKM_" + string(a), Form: wrapping.FormOAEP},
				}
				if slices.Contains(usable, a) && spec.MaterialBytes() > 0 {
					tr.Outcome, tr.Reason = wrapping.Exact, ""
				}
				c.Trials = append(c.Trials, tr)
			}
		}
	}
	return c
}

// TestProbeJSON holds the fields that scripts rely on.
func TestProbeJSON(t *testing.T) {
	r := report("demo", []hsm.MechanismInfo{{Name: "CKM_RSA_PKCS_OAEP", Type: 9, Listed: true, Wrap: true}}, capabilities(wrapping.OAEPSHA1, wrapping.PKCS1v15), wrapping.Policy{})
	var b bytes.Buffer
	if err := writeJSON(&b, r); err != nil {
		t.Fatal(err)
	}
	if strings.Count(b.String(), "\n") != 1 {
		t.Errorf("more than one line: %s", b.String())
	}
	var got struct {
		Token      string `json:"token"`
		Algorithms []struct {
			Name            string `json:"name"`
			WrappingKeySpec string `json:"wrapping_key_spec"`
			Usable          bool   `json:"usable"`
			Reason          string `json:"reason"`
		} `json:"algorithms"`
		Chosen map[string]string `json:"chosen"`
	}
	if err := json.Unmarshal(b.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if got.Token != "demo" || len(got.Algorithms) != 15 {
		t.Fatalf("%+v", got)
	}
	var names []string
	for _, a := range got.Algorithms {
		if !slices.Contains(names, a.Name) {
			names = append(names, a.Name)
		}
		if want := a.Name == "RSAES_OAEP_SHA_1" || a.Name == "RSAES_PKCS1_V1_5"; a.Usable != want || !want && !strings.Contains(a.Reason, "CKR_MECHANISM_INVALID") {
			t.Errorf("%+v", a)
		}
	}
	if want := []string{"RSAES_OAEP_SHA_256", "RSAES_OAEP_SHA_1", "RSAES_PKCS1_V1_5", "RSA_AES_KEY_WRAP_SHA_256", "RSA_AES_KEY_WRAP_SHA_1"}; !slices.Equal(names, want) {
		t.Errorf("order %v, want %v", names, want)
	}
	if len(got.Chosen) != 5 || got.Chosen["SYMMETRIC_DEFAULT"] != "RSAES_OAEP_SHA_1" || got.Chosen["HMAC_512"] != "RSAES_OAEP_SHA_1" {
		t.Errorf("chosen %v", got.Chosen)
	}
	if only := report("demo", nil, capabilities(wrapping.PKCS1v15), wrapping.Policy{}); len(only.Chosen) != 0 || len(only.NotPossible) != len(wrapping.KeySpecs()) {
		t.Errorf("PKCS #1 v1.5 was chosen without being allowed: %v", only.Chosen)
	}
	if allowed := report("demo", nil, capabilities(wrapping.PKCS1v15), wrapping.Policy{AllowPKCS1v15: true}); allowed.Chosen[wrapping.SymmetricDefault] != wrapping.PKCS1v15 {
		t.Errorf("PKCS #1 v1.5 was not chosen: %v", allowed.Chosen)
	}
}

// TestProbeText holds that no label drives the terminal and that lines stay narrow.
func TestProbeText(t *testing.T) {
	var b bytes.Buffer
	report("demo", nil, capabilities(wrapping.OAEPSHA1), wrapping.Policy{}).print(&app{out: &b})
	if strings.Contains(b.String(), "\x1b") {
		t.Error("an escape sequence of a label was printed")
	}
	for line := range strings.Lines(b.String()) {
		if len(line) > width+20 {
			t.Errorf("a line of %d characters: %s", len(line), line)
		}
	}
}

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"plain": "plain", "ünïcode": "ünïcode", "\x1b[2J": `\u001b[2J`, "a\rb\tc": `a\u000db\u0009c`, "\u202egnp": `\u202egnp`, "two\nlines": "two\nlines",
	} {
		if got := printable(in); got != want {
			t.Errorf("printable(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestWrapped(t *testing.T) {
	var b bytes.Buffer
	wrapped(&b, "  first ", "      ", strings.Repeat("word ", 40))
	lines := strings.Split(strings.TrimRight(b.String(), "\n"), "\n")
	if len(lines) != 3 || !strings.HasPrefix(lines[0], "  first word") || !strings.HasPrefix(lines[1], "      word") {
		t.Errorf("%q", lines)
	}
	for _, l := range lines {
		if len(l) > width {
			t.Errorf("%d characters: %q", len(l), l)
		}
	}
}

func TestResultsCode(t *testing.T) {
	ok, caller, kms, token := importer.Result{}, importer.Result{Error: "x", ErrorClass: "caller"}, importer.Result{Error: "x", ErrorClass: "kms"}, importer.Result{Error: "x", ErrorClass: "token"}
	for _, tt := range []struct {
		results []importer.Result
		want    int
	}{
		{nil, exitDone},
		{[]importer.Result{ok, ok}, exitDone},
		{[]importer.Result{caller}, exitRefused},
		{[]importer.Result{kms, kms}, exitKMS},
		{[]importer.Result{token}, exitToken},
		{[]importer.Result{ok, kms}, exitPartly},
		{[]importer.Result{caller, kms}, exitUnexpected},
		{[]importer.Result{{Error: "x"}}, exitUnexpected},
	} {
		if got := resultsCode(tt.results); got != tt.want {
			t.Errorf("resultsCode(%+v) = %d, want %d", tt.results, got, tt.want)
		}
	}
}
