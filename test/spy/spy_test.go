package spy_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hsmbridge/test/softhsm"
	"hsmbridge/test/spy"
)

// pkcs11-tool does everything that hsmbridge must not do: the witness has to see it.
func TestWitnessSeesPKCS11Tool(t *testing.T) {
	w := spy.New(t, softhsm.New(t).Token)
	w.Generate(t, "aes", "01")
	w.Tool(t, "--keypairgen", "--key-type", "rsa:2048", "--label", "rsa", "--id", "02")
	data := filepath.Join(t.TempDir(), "data")
	if err := os.WriteFile(data, []byte("CKA_PRIVATE_EXPONENT in a value is not an attribute"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.Tool(t, "--write-object", data, "--type", "data", "--label", "CKA_PRIME_1")
	w.Tool(t, "--wrap", "--mechanism", "RSA-PKCS", "--id", "02", "--application-id", "01", "--output-file", filepath.Join(t.TempDir(), "wrapped"))
	w.Tool(t, "--delete-object", "--type", "data", "--label", "CKA_PRIME_1")

	calls := w.Calls(t)
	counts := map[string]int{"C_Initialize": 5, "C_Login": 5, "C_GenerateKey": 1, "C_GenerateKeyPair": 1, "C_CreateObject": 1, "C_WrapKey": 1, "C_DestroyObject": 1, "C_Decrypt": 0}
	for name, want := range counts {
		if got := calls.Count(name); got != want {
			t.Errorf("%s was called %d times, want %d", name, got, want)
		}
	}
	if got := calls.Named("C_WrapKey")[0].Mechanism; got != "CKM_RSA_PKCS" {
		t.Errorf("C_WrapKey with %q, want CKM_RSA_PKCS", got)
	}

	asked := map[string]bool{}
	for _, use := range calls.SecretAttributesAsked() {
		asked[use.Attribute] = true
	}
	if diff := cmp.Diff(map[string]bool{"CKA_VALUE": true}, asked); diff != "" {
		t.Errorf("secret attributes asked for (-want +got):\n%s", diff)
	}
	var given []string
	for _, use := range calls.SecretAttributesGiven() {
		given = append(given, use.Call.Name+" "+use.Attribute)
	}
	if diff := cmp.Diff([]string{"C_CreateObject CKA_VALUE"}, given); diff != "" {
		t.Errorf("secret attributes given (-want +got):\n%s", diff)
	}

	// The object is made in one process and destroyed in another, under another handle: as far as the first process
	// knows, it is still there.
	type object struct {
		call, class      string
		token, destroyed bool
	}
	var objects []object
	for _, o := range calls.Objects() {
		objects = append(objects, object{o.Made.Name, o.Class, o.Token, o.Destroyed})
	}
	want := []object{
		{"C_GenerateKey", "CKO_SECRET_KEY", true, false},
		{"C_GenerateKeyPair", "CKO_PUBLIC_KEY", true, false},
		{"C_GenerateKeyPair", "CKO_PRIVATE_KEY", true, false},
		{"C_CreateObject", "CKO_DATA", true, false},
	}
	if diff := cmp.Diff(want, objects, cmp.AllowUnexported(object{})); diff != "" {
		t.Errorf("objects (-want +got):\n%s", diff)
	}
}

// Nothing that Parse returns may hold a PIN or a value: a failing test prints it.
func TestCallsHoldNoSecret(t *testing.T) {
	w := spy.New(t, softhsm.New(t).Token)
	data := filepath.Join(t.TempDir(), "data")
	if err := os.WriteFile(data, []byte("the value of the object"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.Tool(t, "--write-object", data, "--type", "data", "--label", "data")
	raw, err := os.ReadFile(w.Log)
	if err != nil {
		t.Fatal(err)
	}
	var pin strings.Builder
	for _, c := range w.PIN {
		pin.WriteString(" 3" + string(c)) // an ASCII digit in hexadecimal
	}
	if !strings.Contains(string(raw), pin.String()) {
		t.Fatal("the log does not hold the PIN: this test looks for the wrong thing")
	}
	got := fmt.Sprintf("%+v", w.Calls(t))
	for _, secret := range []string{w.PIN, pin.String(), "the value", "74 68 65"} {
		if strings.Contains(got, secret) {
			t.Errorf("the calls hold %q", secret)
		}
	}
}

const head = "*************** OpenSC PKCS#11 spy *****************\n"

func TestParse(t *testing.T) {
	tests := []struct {
		name, log string
		want      spy.Calls
		err       string
	}{
		{name: "empty"},
		{
			name: "asked and answered",
			log: head + "7: C_GetAttributeValue\n2026-01-02 03:04:05.678\n[in] hSession = 0x1\n[in] hObject = 0x2a\n" +
				"[in] pTemplate[2]: \n    CKA_CLASS             00007ffcbcab3ee8 / 8\n    CKA_? (0x80000001)    0000000000000000 / 0\n" +
				"[out] pTemplate[2]: \n    CKA_CLASS             CKO_SECRET_KEY       \nReturned:  17 CKR_ATTRIBUTE_SENSITIVE\n",
			want: spy.Calls{{
				Process: 1, Number: 7, Name: "C_GetAttributeValue", Result: "CKR_ATTRIBUTE_SENSITIVE",
				Handles: []spy.Handle{{Name: "hSession", Value: 1}, {Name: "hObject", Value: 42}},
				Attributes: []spy.Attribute{
					{Template: "pTemplate", Name: "CKA_CLASS"},
					{Template: "pTemplate", Name: "CKA_? (0x80000001)"},
					{Template: "pTemplate", Out: true, Name: "CKA_CLASS", Value: "CKO_SECRET_KEY"},
				},
			}},
		},
		{
			name: "a label that looks like a line",
			log: head + "0: C_CreateObject\n[in] pTemplate[1]: \n    CKA_LABEL             00007ffc29d46a50 / 9\n" +
				"    43 4B 41 5F 56 41 4C 55 45\n     CKA_VALUE\nReturned:  0 CKR_OK\n",
			want: spy.Calls{{
				Process: 1, Name: "C_CreateObject", Result: "CKR_OK",
				Attributes: []spy.Attribute{{Template: "pTemplate", Name: "CKA_LABEL"}},
			}},
		},
		{
			name: "two threads",
			log:  head + "0: C_WrapKey\n1: C_WrapKey\nReturned:  0 CKR_OK\nReturned:  0 CKR_OK\n",
			err:  "line 3: C_WrapKey begins within C_WrapKey: calls of several threads cannot be told apart",
		},
		{
			name: "killed within a call",
			log:  head + "0: C_WrapKey\n",
			err:  "the log ends within C_WrapKey, call 0 of process 1",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := spy.Parse(strings.NewReader(tt.log))
			var message string
			if err != nil {
				message = err.Error()
			}
			if message != tt.err {
				t.Errorf("error %q, want %q", message, tt.err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("calls (-want +got):\n%s", diff)
			}
		})
	}
}

func TestLeftovers(t *testing.T) {
	create := func(handle, token, result string) string {
		return "1: C_CreateObject\n[in] pTemplate[2]: \n    CKA_CLASS             CKO_PUBLIC_KEY       \n    CKA_TOKEN             " + token +
			"\n[out] *phObject = 0x" + handle + "\nReturned:  0 " + result + "\n"
	}
	destroy := func(handle, result string) string {
		return "2: C_DestroyObject\n[in] hSession = 0x1\n[in] hObject = 0x" + handle + "\nReturned:  0 " + result + "\n"
	}
	tests := []struct {
		name, log string
		left      []uint64
	}{
		{"destroyed", head + create("a", "False", "CKR_OK") + destroy("a", "CKR_OK"), nil},
		{"never destroyed", head + create("a", "False", "CKR_OK"), []uint64{10}},
		{"another destroyed", head + create("a", "False", "CKR_OK") + destroy("b", "CKR_OK"), []uint64{10}},
		{"destruction refused", head + create("a", "False", "CKR_OK") + destroy("a", "CKR_DEVICE_ERROR"), []uint64{10}},
		{"never made", head + create("a", "False", "CKR_TEMPLATE_INCONSISTENT"), nil},
		{"another process's", head + create("a", "False", "CKR_OK") + head + destroy("a", "CKR_OK"), []uint64{10}},
		{"handle used again", head + create("a", "False", "CKR_OK") + destroy("a", "CKR_OK") + create("a", "False", "CKR_OK"), []uint64{10}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			calls, err := spy.Parse(strings.NewReader(tt.log))
			if err != nil {
				t.Fatal(err)
			}
			var left []uint64
			for _, o := range calls.Leftovers() {
				left = append(left, o.Handle)
			}
			if diff := cmp.Diff(tt.left, left); diff != "" {
				t.Errorf("left over (-want +got):\n%s", diff)
			}
		})
	}
}
