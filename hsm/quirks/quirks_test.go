package quirks_test

import (
	"bytes"
	"encoding/json"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hsmbridge/hsm/quirks"
	"hsmbridge/hsm/wrapping"
)

func TestFind(t *testing.T) {
	for _, tt := range []struct {
		name string
		seen quirks.Seen
		want string
	}{
		{"SoftHSM", quirks.Seen{Manufacturer: "SoftHSM project", Model: "SoftHSM v2", Library: "Implementation of PKCS11"}, "softhsm2"},
		{"SoftHSM through p11-kit", quirks.Seen{Manufacturer: "SoftHSM project", Model: "SoftHSM v2", Module: "/usr/lib/p11-kit-client.so"}, "softhsm2"},
		{"NSS", quirks.Seen{Manufacturer: "Mozilla Foundation", Model: "NSS 3", Library: "NSS Internal Crypto Services"}, "nss"},
		{"openCryptoki soft", quirks.Seen{Manufacturer: "IBM", Model: "Soft", Library: "openCryptoki"}, "opencryptoki"},
		{"openCryptoki EP11", quirks.Seen{Manufacturer: "IBM", Model: "EP11", Library: "openCryptoki", Module: "libopencryptoki.so"}, "ibm-ep11"},
		{"openCryptoki CCA", quirks.Seen{Manufacturer: "IBM", Model: "CCA", Library: "openCryptoki"}, "ibm-cca"},
		{"Luna", quirks.Seen{Manufacturer: "Safenet, Inc.", Model: "Luna K7"}, "luna"},
		{"CloudHSM on a card of another vendor", quirks.Seen{Manufacturer: "Marvell Semiconductors, Inc.", Module: "/opt/cloudhsm/lib/libcloudhsm_pkcs11.so"}, "cloudhsm"},
		{"the same card in one's own building", quirks.Seen{Manufacturer: "Marvell Semiconductors, Inc.", Module: "/opt/lib/libliquidsec_pkcs11.so"}, "marvell"},
		{"before the module is loaded", quirks.Seen{Module: "/usr/lib/x86_64-linux-gnu/pkcs11/yubihsm_pkcs11.so"}, "yubihsm2"},
		{"the token's words count more than the file's name", quirks.Seen{Manufacturer: "SoftHSM project", Module: "yubihsm_pkcs11.so"}, "softhsm2"},
		{"a folder is no hint", quirks.Seen{Module: "/opt/libsofthsm2/libother.so"}, ""},
		{"unknown", quirks.Seen{Manufacturer: "Somebody", Model: "Box", Module: "libbox.so"}, ""},
		{"nothing said", quirks.Seen{}, ""},
	} {
		got, ok := quirks.Find(tt.seen)
		if got.Name != tt.want || ok != (tt.want != "") {
			t.Errorf("%s: %q, %t; want %q", tt.name, got.Name, ok, tt.want)
		}
	}
}

// TestTable holds what has to be true of every row.
func TestTable(t *testing.T) {
	seen := map[string]bool{}
	for _, f := range quirks.Families() {
		switch {
		case seen[f.Name] || !regexp.MustCompile(`^[a-z0-9-]+$`).MatchString(f.Name) || f.Name == quirks.NoFamily:
			t.Errorf("the name %q", f.Name)
		case f.Title == "" || len(f.Match) == 0 || len(f.Sources) == 0:
			t.Errorf("%s has no title, match or source", f.Name)
		}
		seen[f.Name] = true
		for _, m := range f.Match {
			if m == (quirks.Match{}) || m.Module == "" && len(m.Manufacturer+m.Model+m.LibraryManufacturer+m.Library) < 3 {
				t.Errorf("%s: %+v matches too much", f.Name, m)
			}
		}
		for _, s := range f.Sources {
			if s.Document == "" || s.URL != "" && !strings.HasPrefix(s.URL, "https://") {
				t.Errorf("%s: %+v", f.Name, s)
			}
		}
		numbers := map[uint]bool{}
		for _, m := range f.Quirks.AESKeyWrap {
			if numbers[m.Type] || m.Type < 0x80000000 || !strings.HasPrefix(m.Name, "CKM_") {
				t.Errorf("%s: %+v", f.Name, m)
			}
			numbers[m.Type] = true
		}
		if f.Quirks.ReadOnlySessions && f.Quirks.ReadWriteNeeded {
			t.Errorf("%s: read-only and read-write", f.Name)
		}
		if got, ok := quirks.ByName(f.Name); !ok || got.Title != f.Title {
			t.Errorf("ByName(%s): %+v", f.Name, got)
		}
	}
}

// TestOverride holds that the configuration has the last word, part by part.
func TestOverride(t *testing.T) {
	yes, no := true, false
	yubi := quirks.Seen{Module: "yubihsm_pkcs11.so"}
	if q := quirks.For(yubi, quirks.Override{}); q.Family != "yubihsm2" || !q.TokenPublicKey || q.PIN != quirks.PINHex4Password || q.MaxSessions != 16 {
		t.Errorf("the row: %+v", q)
	}
	if q := quirks.For(yubi, quirks.Override{TokenPublicKey: &no, MaxSessions: 4}); q.TokenPublicKey || q.MaxSessions != 4 || !q.NoLengthQuery {
		t.Errorf("a part: %+v", q)
	}
	if q := quirks.For(yubi, quirks.Override{Family: quirks.NoFamily, ReadOnlySessions: &yes}); !cmp.Equal(q, quirks.Quirks{ReadOnlySessions: true}) {
		t.Errorf("no row: %+v", q)
	}
	if q := quirks.For(yubi, quirks.Override{Family: "luna", PINFormat: quirks.PINAny}); q.Family != "luna" || q.PIN != quirks.PINAny || len(q.AESKeyWrap) != 2 {
		t.Errorf("another row: %+v", q)
	}
	var mine quirks.Mechanism
	if err := mine.UnmarshalText([]byte("0x80000abc+iv")); err != nil {
		t.Fatal(err)
	}
	q := quirks.For(quirks.Seen{Module: "libCryptoki2_64.so"}, quirks.Override{AESKeyWrap: []quirks.Mechanism{mine}})
	want := wrapping.Mechanism{Name: "CKM_VENDOR_0x80000ABC", Type: 0x80000abc, Form: wrapping.FormKWPIV}
	if len(q.AESKeyWrap) != 1 || q.AESKeyWrap[0].Candidate() != want {
		t.Errorf("mechanisms: %+v", q.AESKeyWrap)
	}
}

func TestTexts(t *testing.T) {
	for text, name := range map[string]string{"0x80000171": "CKM_AES_KWP", "0x8000216F": "CKM_CLOUDHSM_AES_KEY_WRAP_ZERO_PAD", "0x80002109+iv": "CKM_CLOUDHSM_AES_KEY_WRAP_NO_PAD", "0xFFFFFFFF": "CKM_VENDOR_0xFFFFFFFF"} {
		var m quirks.Mechanism
		if err := m.UnmarshalText([]byte(text)); err != nil || m.Name != name {
			t.Errorf("%s: %+v, %v", text, m, err)
		}
		if again, err := m.MarshalText(); err != nil || string(again) != text {
			t.Errorf("%s is written as %s (%v)", text, again, err)
		}
	}
	pattern := regexp.MustCompile(quirks.MechanismPattern)
	for _, text := range []string{"", "0x171", "0x0000210B", "80000171", "0x800001710", "0X80000171", "0x80000171+IV", "0x8000017g", "0x80000171 ", "CKM_AES_KWP"} {
		var m quirks.Mechanism
		if err := m.UnmarshalText([]byte(text)); err == nil || pattern.MatchString(text) {
			t.Errorf("%q: %v, %t by the pattern", text, err, pattern.MatchString(text))
		}
	}
	pattern = regexp.MustCompile(quirks.AttributePattern)
	for text, good := range map[string]bool{"CKA_ENCRYPT=true": true, "CKA_PRIVATE=false": true, "CKA_TOKEN=false": false, "CKA_TRUSTED=true": false, "CKA_WRAP=true": false, "CKA_ENCRYPT": false, "CKA_ENCRYPT=1": false, "": false} {
		var a quirks.Attribute
		if err := a.UnmarshalText([]byte(text)); (err == nil) != good || pattern.MatchString(text) != good {
			t.Errorf("%q: %v", text, err)
		}
	}
	var o quirks.Override
	in := `{"aes_key_wrap":["0x80000171"],"pin_format":"user:password","public_key_attributes":["CKA_ENCRYPT=true"],"no_length_query":false}`
	if err := json.Unmarshal([]byte(in), &o); err != nil {
		t.Fatal(err)
	}
	if out, err := json.Marshal(o); err != nil || string(out) != in {
		t.Errorf("%s, %v", out, err)
	}
}

// TestPINFormat holds that a PIN is refused by its form, and that nothing of it is ever said.
func TestPINFormat(t *testing.T) {
	for _, tt := range []struct {
		format quirks.PINFormat
		pin    string
		good   bool
	}{
		{quirks.PINAny, "", true},
		{quirks.PINAny, "anything", true},
		{"", "anything", true},
		{quirks.PINUserPassword, "wrapper:Secret-12", true},
		{quirks.PINUserPassword, "wrapper:Secret:12", true},
		{quirks.PINUserPassword, "wrapperSecret-12", false},
		{quirks.PINUserPassword, ":Secret-12", false},
		{quirks.PINUserPassword, "Secret-12:", false},
		{quirks.PINUserPassword, "", false},
		{quirks.PINHex4Password, "0001password", true},
		{quirks.PINHex4Password, "00fFpassword-longer", true},
		{quirks.PINHex4Password, "@0001password", true},
		{quirks.PINHex4Password, "@001password", false},
		{quirks.PINHex4Password, "password0001", false},
		{quirks.PINHex4Password, "001password", false},
		{quirks.PINHex4Password, "0001passwor", false},
		{quirks.PINHex4Password, "000", false},
		{quirks.PINHex4Password, "", false},
	} {
		err := tt.format.Check([]byte(tt.pin))
		if (err == nil) != tt.good {
			t.Errorf("%s %q: %v", tt.format, tt.pin, err)
		}
		if err != nil {
			for _, part := range []string{"Secret", "wrapper", "passwor0", "0001p"} {
				if strings.Contains(err.Error(), part) {
					t.Errorf("%s %q: the error says %q: %v", tt.format, tt.pin, part, err)
				}
			}
		}
	}
	if len(quirks.PINFormats()) != 3 || !slices.Contains(quirks.FamilyNames(), quirks.NoFamily) {
		t.Error("the lists of values")
	}
}

// FuzzTexts holds that what is read is written back, and that the schema's patterns say the same as the readers.
func FuzzTexts(f *testing.F) {
	for _, s := range []string{"0x80000171", "0x80002109+iv", "CKA_ENCRYPT=true", "0xF", "CKA_TOKEN=true", ""} {
		f.Add([]byte(s))
	}
	mechanism, attribute := regexp.MustCompile(quirks.MechanismPattern), regexp.MustCompile(quirks.AttributePattern)
	f.Fuzz(func(t *testing.T, text []byte) {
		var m quirks.Mechanism
		if err := m.UnmarshalText(text); (err == nil) != mechanism.Match(text) {
			t.Errorf("%q: %v", text, err)
		} else if again, _ := m.MarshalText(); err == nil && !bytes.EqualFold(again, text) {
			t.Errorf("%q is written as %q", text, again)
		}
		var a quirks.Attribute
		if err := a.UnmarshalText(text); (err == nil) != attribute.Match(text) {
			t.Errorf("%q: %v", text, err)
		} else if again, _ := a.MarshalText(); err == nil && !bytes.Equal(again, text) {
			t.Errorf("%q is written as %q", text, again)
		}
	})
}

func TestApplied(t *testing.T) {
	q := quirks.For(quirks.Seen{Module: "libcloudhsm_pkcs11.so"}, quirks.Override{})
	want := []string{
		"aes_key_wrap 0x8000216F CKM_CLOUDHSM_AES_KEY_WRAP_ZERO_PAD", "aes_key_wrap 0x8000210A CKM_CLOUDHSM_AES_KEY_WRAP_PKCS5_PAD",
		"aes_key_wrap 0x80002109+iv CKM_CLOUDHSM_AES_KEY_WRAP_NO_PAD", "pin_format user:password", "read-write sessions needed", "network",
	}
	if diff := cmp.Diff(want, q.Applied()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if q.Warning() != "" || len(quirks.Quirks{}.Applied()) != 0 {
		t.Error("a token that can wrap is warned of, or one without quirks has some")
	}
	for _, name := range []string{"nethsm", "smartcard-hsm", "kmsp11"} {
		if w := quirks.For(quirks.Seen{}, quirks.Override{Family: name}).Warning(); !strings.Contains(w, "cannot wrap keys for AWS KMS") || !strings.Contains(w, "probe") {
			t.Errorf("%s: %q", name, w)
		}
	}
}
