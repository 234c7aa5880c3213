package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hsmbridge/hsm/wrapping"
)

var update = flag.Bool("update", false, "write the golden files anew")

// The mechanisms of the devices below.
var (
	oaep    = wrapping.Mechanism{Name: "CKM_RSA_PKCS_OAEP", Type: 0x9, Form: wrapping.FormOAEP}
	pkcs1   = wrapping.Mechanism{Name: "CKM_RSA_PKCS", Type: 0x1, Form: wrapping.FormPKCS1}
	native  = wrapping.Mechanism{Name: "CKM_RSA_AES_KEY_WRAP", Type: 0x1054, Form: wrapping.FormNative}
	wrapPad = wrapping.Mechanism{Name: "CKM_AES_KEY_WRAP_PAD", Type: 0x210A, Form: wrapping.FormKWP}
)

// pkcs8 is how long the PKCS#8 of EC keys is, without the public point; RSA keys differ from one to the next.
var pkcs8 = map[wrapping.KeySpec]int{
	wrapping.ECCNISTP256: 67, wrapping.ECCNISTP384: 80, wrapping.ECCNISTP521: 99, wrapping.ECCSECGP256K1: 64, wrapping.ECCEdwards25519: 48,
}

// device is a token by what the trials on it give.
type device struct {
	name   string
	listed []wrapping.MechanismInfo
	try    func(spec wrapping.KeySpec, a wrapping.Algorithm) (m wrapping.Mechanism, o wrapping.Outcome, reason string)
}

func devices() []device {
	const notWrappable, noMechanism = "CKR_KEY_NOT_WRAPPABLE (0x69)", "CKR_MECHANISM_INVALID (0x70)"
	return []device{
		{
			name: "exact",
			listed: []wrapping.MechanismInfo{
				{Name: oaep.Name, Type: oaep.Type, Listed: true, Wrap: true, Min: 512, Max: 8192},
				{Name: native.Name, Type: native.Type, Listed: true, Wrap: true, Min: 2048, Max: 4096},
			},
			try: func(_ wrapping.KeySpec, a wrapping.Algorithm) (wrapping.Mechanism, wrapping.Outcome, string) {
				switch {
				case a == wrapping.PKCS1v15:
					return pkcs1, wrapping.Exact, ""
				case a.TwoPart():
					return native, wrapping.Exact, ""
				}
				return oaep, wrapping.Exact, ""
			},
		},
		{
			name: "pkcs1-only",
			listed: []wrapping.MechanismInfo{
				{Name: pkcs1.Name, Type: pkcs1.Type, Listed: true, Wrap: true, Min: 512, Max: 4096},
				{Name: oaep.Name, Type: oaep.Type, Listed: true, Min: 512, Max: 4096},
				{Name: native.Name, Type: native.Type},
			},
			try: func(spec wrapping.KeySpec, a wrapping.Algorithm) (wrapping.Mechanism, wrapping.Outcome, string) {
				switch {
				case a == wrapping.PKCS1v15 && spec.MaterialBytes() > 0:
					return pkcs1, wrapping.Exact, ""
				case a.TwoPart():
					return native, wrapping.Failed, noMechanism
				}
				return oaep, wrapping.Failed, noMechanism
			},
		},
		{
			name: "softhsm", // what trials on SoftHSM 2.6.1 give
			listed: []wrapping.MechanismInfo{
				{Name: oaep.Name, Type: oaep.Type, Listed: true, Wrap: true, Min: 512, Max: 16384},
				{Name: pkcs1.Name, Type: pkcs1.Type, Listed: true, Wrap: true, Min: 512, Max: 16384},
				{Name: wrapPad.Name, Type: wrapPad.Type, Listed: true, Wrap: true, Min: 16, Max: 32},
			},
			try: func(spec wrapping.KeySpec, a wrapping.Algorithm) (wrapping.Mechanism, wrapping.Outcome, string) {
				switch a {
				case wrapping.OAEPSHA256:
					return oaep, wrapping.Failed, "CKR_ARGUMENTS_BAD (0x7)"
				case wrapping.RSAAESSHA256:
					return wrapPad, wrapping.Failed, "CKR_ARGUMENTS_BAD (0x7)"
				case wrapping.PKCS1v15:
					return pkcs1, wrapping.Exact, ""
				case wrapping.OAEPSHA1:
					if spec.MaterialBytes() == 0 {
						return oaep, wrapping.Failed, notWrappable
					}
					return oaep, wrapping.Exact, ""
				case wrapping.RSAAESSHA1:
					switch spec {
					case wrapping.ECCNISTP384, wrapping.ECCSECGP256K1:
						return wrapPad, wrapping.Exact, ""
					case wrapping.ECCEdwards25519:
						return wrapPad, wrapping.Failed, notWrappable
					default:
						return wrapPad, wrapping.Padded, "zero bytes follow the PKCS#8"
					}
				}
				return wrapping.Mechanism{}, wrapping.Failed, "unknown algorithm"
			},
		},
	}
}

// capabilities are what a probe of the device gives. Its label tries to drive the terminal.
func (d device) capabilities() wrapping.Capabilities {
	c := wrapping.Capabilities{Token: wrapping.TokenIdentity{
		Label: "made\x1b[31mup", Manufacturer: "Maker", Model: "Model", Serial: "0123", Hardware: "1.0", Firmware: "2.6",
	}}
	for _, spec := range wrapping.KeySpecs() {
		for _, a := range spec.Order() {
			for _, w := range wrapping.WrappingKeySpecs() {
				m, outcome, reason := d.try(spec, a)
				c.Trials = append(c.Trials, wrapping.Trial{
					KeySpec: spec, Algorithm: a, WrappingKeySpec: w, Mechanism: m, Outcome: outcome, Reason: reason, Length: max(spec.MaterialBytes(), pkcs8[spec]),
				})
			}
		}
	}
	return c
}

func named(t *testing.T, name string) device {
	t.Helper()
	all := devices()
	i := slices.IndexFunc(all, func(d device) bool { return d.name == name })
	if i < 0 {
		t.Fatalf("there is no device %q", name)
	}
	return all[i]
}

// probeJSON is the whole of what scripts may rely on: a field more or less is a change of the format.
type probeJSON struct {
	Token    string `json:"token"`
	Identity struct {
		Label        string `json:"label"`
		Manufacturer string `json:"manufacturer"`
		Model        string `json:"model"`
		Serial       string `json:"serial"`
		Hardware     string `json:"hardware_version"`
		Firmware     string `json:"firmware_version"`
	} `json:"identity"`
	Algorithms []struct {
		Name            string   `json:"name"`
		WrappingKeySpec string   `json:"wrapping_key_spec"`
		Usable          bool     `json:"usable"`
		UsableFor       []string `json:"usable_for"`
		Reason          string   `json:"reason"`
	} `json:"algorithms"`
	Chosen      map[string]string `json:"chosen"`
	NotPossible map[string][]struct {
		Algorithm       string `json:"algorithm"`
		WrappingKeySpec string `json:"wrapping_key_spec,omitempty"`
		Mechanism       string `json:"mechanism,omitempty"`
		Rule            string `json:"rule"`
		Reason          string `json:"reason"`
	} `json:"not_possible"`
	Mechanisms []struct {
		Name   string `json:"name"`
		Type   uint   `json:"type"`
		Listed bool   `json:"listed"`
		Wrap   bool   `json:"wrap"`
		Min    uint   `json:"min_size"`
		Max    uint   `json:"max_size"`
		Trial  string `json:"trial"`
	} `json:"mechanisms"`
	Trials []struct {
		KeySpec         string `json:"key_spec"`
		Algorithm       string `json:"wrapping_algorithm"`
		WrappingKeySpec string `json:"wrapping_key_spec"`
		Mechanism       string `json:"mechanism"`
		Outcome         string `json:"outcome"`
		Reason          string `json:"reason"`
	} `json:"trials"`
}

// reportJSON writes a report as the command does and reads it again, every field in its place.
func reportJSON(t *testing.T, d device, policy wrapping.Policy) probeJSON {
	t.Helper()
	var b bytes.Buffer
	if err := writeJSON(&b, report("demo", d.listed, d.capabilities(), policy)); err != nil {
		t.Fatal(err)
	}
	if strings.Count(b.String(), "\n") != 1 || !strings.HasSuffix(b.String(), "\n") {
		t.Errorf("not one line: %s", b.String())
	}
	var got probeJSON
	decoder := json.NewDecoder(bytes.NewReader(b.Bytes()))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&got); err != nil {
		t.Fatal(err)
	}
	again, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	// Both ways through a map: the same fields on both sides, whatever their order.
	var wrote, read any
	if err := json.Unmarshal(b.Bytes(), &wrote); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(again, &read); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(read, wrote); diff != "" {
		t.Errorf("the fields (-documented +written):\n%s", diff)
	}
	return got
}

// every gives all key specs the same algorithm but those that are named.
func every(a wrapping.Algorithm, except map[wrapping.KeySpec]wrapping.Algorithm) map[string]string {
	out := map[string]string{}
	for _, spec := range wrapping.KeySpecs() {
		out[string(spec)] = string(a)
	}
	for spec, other := range except {
		if out[string(spec)] = string(other); other == "" {
			delete(out, string(spec))
		}
	}
	return out
}

func TestProbeJSON(t *testing.T) {
	private := func(a wrapping.Algorithm) map[wrapping.KeySpec]wrapping.Algorithm {
		out := map[wrapping.KeySpec]wrapping.Algorithm{}
		for _, spec := range wrapping.KeySpecs() {
			if spec.MaterialBytes() == 0 {
				out[spec] = a
			}
		}
		return out
	}
	softhsm := private("")
	softhsm[wrapping.ECCNISTP384], softhsm[wrapping.ECCSECGP256K1] = wrapping.RSAAESSHA1, wrapping.RSAAESSHA1
	padded := private(wrapping.RSAAESSHA1)
	padded[wrapping.ECCEdwards25519] = ""
	oaepOnly := private(wrapping.OAEPSHA1)
	for _, spec := range []wrapping.KeySpec{wrapping.KeyRSA2048, wrapping.KeyRSA3072, wrapping.KeyRSA4096} {
		oaepOnly[spec] = ""
	}
	all := []wrapping.Algorithm{wrapping.OAEPSHA256, wrapping.OAEPSHA1, wrapping.PKCS1v15, wrapping.RSAAESSHA256, wrapping.RSAAESSHA1}
	for _, tt := range []struct {
		name, device string
		policy       wrapping.Policy
		usable       []wrapping.Algorithm // whatever the policy: it is the token that is judged
		chosen       map[string]string
	}{
		{"exact", "exact", wrapping.Policy{}, all, every(wrapping.OAEPSHA256, private(wrapping.RSAAESSHA256))},
		{"exact, one algorithm allowed", "exact", wrapping.Policy{Algorithms: []wrapping.Algorithm{wrapping.OAEPSHA1}}, all, every(wrapping.OAEPSHA1, oaepOnly)},
		{"PKCS #1 only", "pkcs1-only", wrapping.Policy{}, []wrapping.Algorithm{wrapping.PKCS1v15}, map[string]string{}},
		{"PKCS #1 only, allowed", "pkcs1-only", wrapping.Policy{AllowPKCS1v15: true}, []wrapping.Algorithm{wrapping.PKCS1v15}, every(wrapping.PKCS1v15, private(""))},
		{"SoftHSM", "softhsm", wrapping.Policy{}, []wrapping.Algorithm{wrapping.OAEPSHA1, wrapping.PKCS1v15, wrapping.RSAAESSHA1}, every(wrapping.OAEPSHA1, softhsm)},
		{"SoftHSM, padding allowed", "softhsm", wrapping.Policy{AllowPaddedPKCS8: true}, []wrapping.Algorithm{wrapping.OAEPSHA1, wrapping.PKCS1v15, wrapping.RSAAESSHA1}, every(wrapping.OAEPSHA1, padded)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := named(t, tt.device)
			got := reportJSON(t, d, tt.policy)
			if got.Token != "demo" || got.Identity.Serial != "0123" || got.Identity.Firmware != "2.6" {
				t.Errorf("token %s, identity %+v", got.Token, got.Identity)
			}
			// Every algorithm in AWS's order, under each the longest wrapping key first.
			var order, want []string
			for _, row := range got.Algorithms {
				order = append(order, row.Name+" "+row.WrappingKeySpec)
				usable := slices.Contains(tt.usable, wrapping.Algorithm(row.Name))
				if row.Usable != usable || usable != (len(row.UsableFor) > 0) || !usable && row.Reason == "" {
					t.Errorf("%+v; usable has to be %t, with a reason if not", row, usable)
				}
			}
			for _, a := range wrapping.Algorithms() {
				for _, w := range wrapping.WrappingKeySpecs() {
					want = append(want, string(a)+" "+string(w))
				}
			}
			if diff := cmp.Diff(want, order); diff != "" {
				t.Errorf("rows (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.chosen, got.Chosen); diff != "" {
				t.Errorf("chosen (-want +got):\n%s", diff)
			}
			// Every key spec is either chosen for or not possible, with the reasons.
			specs := slices.Sorted(maps.Keys(got.Chosen))
			for spec, refused := range got.NotPossible {
				if len(refused) == 0 {
					t.Errorf("%s is not possible, without a reason", spec)
				}
				specs = append(specs, spec)
			}
			slices.Sort(specs)
			var known []string
			for _, spec := range wrapping.KeySpecs() {
				known = append(known, string(spec))
			}
			slices.Sort(known)
			if diff := cmp.Diff(known, specs); diff != "" {
				t.Errorf("key specs (-want +got):\n%s", diff)
			}
			if len(got.Mechanisms) != len(d.listed) {
				t.Errorf("%d mechanisms, want %d", len(got.Mechanisms), len(d.listed))
			}
			if want := len(d.capabilities().Trials); len(got.Trials) != want {
				t.Errorf("%d trials, want %d", len(got.Trials), want)
			}
			for _, tr := range got.Trials {
				if (tr.Outcome == "exact") != (tr.Reason == "") {
					t.Errorf("%+v; a reason belongs to every trial that is not exact, and to no other", tr)
				}
			}
			for _, m := range got.Mechanisms {
				if m.Trial == "" {
					t.Errorf("%s has no word on its trials", m.Name)
				}
			}
		})
	}
}

// TestProbeText compares what a person sees, line by line, with testdata/probe-NAME.golden.
func TestProbeText(t *testing.T) {
	for _, d := range devices() {
		t.Run(d.name, func(t *testing.T) {
			var b bytes.Buffer
			report("demo", d.listed, d.capabilities(), wrapping.Policy{}).print(&app{out: &b})
			if strings.Contains(b.String(), "\x1b") {
				t.Error("an escape sequence of a label was printed")
			}
			for line := range strings.Lines(b.String()) {
				if len(line) > width+20 {
					t.Errorf("a line of %d characters: %s", len(line), line)
				}
			}
			path := filepath.Join("testdata", "probe-"+d.name+".golden")
			if *update {
				if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), b.String()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestTrialsOf(t *testing.T) {
	type trial struct {
		outcome wrapping.Outcome
		reason  string
	}
	for _, tt := range []struct {
		name    string
		trials  []trial
		summary string
		reason  string
	}{
		{"none", nil, "not tried", ""},
		{"exact", []trial{{wrapping.Exact, ""}, {wrapping.Exact, ""}}, "always exact", ""},
		{"failed", []trial{{wrapping.Failed, "first"}, {wrapping.Failed, "second"}}, neverWorked, "first"},
		{"another mechanism failed first", []trial{{wrapping.Failed, "CKM_OTHER: first"}, {wrapping.Failed, "second"}, {wrapping.Failed, "third"}}, neverWorked, "second"},
		{"only another mechanism failed", []trial{{wrapping.Failed, "CKM_OTHER: first"}, {wrapping.Failed, "CKM_OTHER: second"}}, neverWorked, "CKM_OTHER: first"},
		{"padded", []trial{{wrapping.Padded, "zeros"}, {wrapping.Padded, "zeros"}}, "0 exact, 2 padded, 0 failed", ""},
		{"each", []trial{{wrapping.Exact, ""}, {wrapping.Padded, "zeros"}, {wrapping.Failed, "first"}}, "1 exact, 1 padded, 1 failed", ""},
		{"exact and failed", []trial{{wrapping.Exact, ""}, {wrapping.Failed, "first"}, {wrapping.Failed, "first"}}, "1 exact, 0 padded, 2 failed", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			caps := wrapping.Capabilities{Trials: []wrapping.Trial{{Mechanism: pkcs1, Outcome: wrapping.Failed, Reason: "of another mechanism"}}}
			for _, one := range tt.trials {
				caps.Trials = append(caps.Trials, wrapping.Trial{Mechanism: oaep, Outcome: one.outcome, Reason: one.reason})
			}
			summary, reason := trialsOf(oaep.Type, caps)
			if summary != tt.summary || reason != tt.reason {
				t.Errorf("%q, %q; want %q, %q", summary, reason, tt.summary, tt.reason)
			}
		})
	}
}
