package pkcs11uri_test

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	"hsmbridge/hsm/pkcs11uri"
)

func TestParse(t *testing.T) {
	slot := uint(18446744073)
	for _, tt := range []struct {
		in, canonical string // canonical is in when empty
		want          pkcs11uri.URI
	}{
		{in: "pkcs11:"},
		{in: "pkcs11:token=demo", want: pkcs11uri.URI{Token: "demo"}},
		{in: "PKCS11:token=demo", canonical: "pkcs11:token=demo", want: pkcs11uri.URI{Token: "demo"}},
		{in: "pkcs11:object=payments;type=secret-key", want: pkcs11uri.URI{Object: "payments", Type: "secret-key"}},
		{
			in:        "pkcs11:type=private;object=a",
			canonical: "pkcs11:object=a;type=private",
			want:      pkcs11uri.URI{Object: "a", Type: "private"},
		},
		{
			in: "pkcs11:token=Software%20PKCS%2311%20softtoken;manufacturer=Snake%20Oil,%20Inc.;serial=00A&1;model=1.0?module-path=/usr/lib/x.so",
			want: pkcs11uri.URI{ //nolint:gosec // the names of a token, as in the RFC's examples
				Token: "Software PKCS#11 softtoken", Manufacturer: "Snake Oil, Inc.", Serial: "00A&1", Model: "1.0", ModulePath: "/usr/lib/x.so",
			},
		},
		{
			in:        "pkcs11:library-manufacturer=Snake;library-description=S%2fT;library-version=3",
			canonical: "pkcs11:library-manufacturer=Snake;library-version=3.0;library-description=S%2FT",
			want:      pkcs11uri.URI{LibraryManufacturer: "Snake", LibraryDescription: "S/T", LibraryVersion: "3.0"},
		},
		{in: "pkcs11:library-version=2.40", want: pkcs11uri.URI{LibraryVersion: "2.40"}},
		{
			in:   "pkcs11:slot-description=Slot%200;slot-manufacturer=M;slot-id=18446744073",
			want: pkcs11uri.URI{SlotDescription: "Slot 0", SlotManufacturer: "M", SlotID: &slot},
		},
		{in: "pkcs11:id=%00%FF%41", want: pkcs11uri.URI{ID: []byte{0, 0xff, 0x41}}},
		{in: "pkcs11:id=0x41", canonical: "pkcs11:id=%30%78%34%31", want: pkcs11uri.URI{ID: []byte("0x41")}},
		{in: "pkcs11:object=Schl%C3%BCssel", want: pkcs11uri.URI{Object: "Schlüssel"}},
		{in: "pkcs11:object=%E2%82%AC%25%3B%3F", want: pkcs11uri.URI{Object: "€%;?"}},
		{in: "pkcs11:object=a%2Db%7e", canonical: "pkcs11:object=a-b~", want: pkcs11uri.URI{Object: "a-b~"}},
		{in: "pkcs11:object=:[]@!$'()*+,=&", want: pkcs11uri.URI{Object: ":[]@!$'()*+,=&"}},
		{in: "pkcs11:?module-name=softhsm2&module-path=/a?b|c", want: pkcs11uri.URI{ModuleName: "softhsm2", ModulePath: "/a?b|c"}},
		{in: "pkcs11:token=a?", canonical: "pkcs11:token=a", want: pkcs11uri.URI{Token: "a"}},
	} {
		t.Run(tt.in, func(t *testing.T) {
			u, err := pkcs11uri.Parse(tt.in)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(u, tt.want) {
				t.Errorf("Parse = %+v, want %+v", u, tt.want)
			}
			canonical := tt.canonical
			if canonical == "" {
				canonical = tt.in
			}
			if u.String() != canonical {
				t.Errorf("String = %s, want %s", u, canonical)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	for _, tt := range []struct {
		in     string
		offset int
		reason string // a part of it
	}{
		{"", 0, `start with "pkcs11:"`},
		{"token=demo", 0, `start with "pkcs11:"`},
		{"pkcs11", 0, `start with "pkcs11:"`},
		{"pkcs11:demo", 7, `"demo" has no value: write demo=VALUE`},
		{"pkcs11:token=", 13, "token has an empty value"},
		{"pkcs11:id=", 10, "id has an empty value"},
		{"pkcs11:=x", 7, `there is no attribute ""`},
		{"pkcs11:token=a;", 15, "an attribute is missing"},
		{"pkcs11:;token=a", 7, "an attribute is missing"},
		{"pkcs11:token=a;;object=b", 15, "an attribute is missing"},
		{"pkcs11:token=a;token=b", 15, "token is given twice"},
		{"pkcs11:token=a;tokn=b", 15, "did you mean token?"},
		{"pkcs11:Token=b", 7, "did you mean token?"},
		{"pkcs11:slot_id=1", 7, "did you mean slot-id?"},
		{"pkcs11:objcet=1", 7, "did you mean object?"},
		{"pkcs11:label=1", 7, "object=LABEL"},
		{"pkcs11:x-vendor=1", 7, "vendor"},
		{"pkcs11:zz=1", 7, "RFC 7512 has token, manufacturer"},
		{"pkcs11:token=a b", 14, "write %20"},
		{"pkcs11:token=a/b", 14, "write %2F"},
		{"pkcs11:token=a#b", 14, "write %23"},
		{"pkcs11:token=ü", 13, "write %C3%BC"},
		{"pkcs11:token=\xff", 13, "byte 0xFF may not stand here: write %FF"},
		{"pkcs11:token=a%", 14, "two hexadecimal digits"},
		{"pkcs11:token=a%4", 14, "two hexadecimal digits"},
		{"pkcs11:token=%4G", 13, "two hexadecimal digits"},
		{"pkcs11:token=%+1", 13, "two hexadecimal digits"},
		{"pkcs11:token=%_1", 13, "two hexadecimal digits"},
		{"pkcs11:token=%\x11\x11", 13, "two hexadecimal digits"},
		{"pkcs11:token=%C3%28", 13, "token is not UTF-8"},
		{"pkcs11:token=a;type=secret", 20, "did you mean secret-key?"},
		{"pkcs11:type=Private", 12, "none of public, private, cert, secret-key, data"},
		{"pkcs11:slot-id=0x1", 15, "decimal"},
		{"pkcs11:slot-id=-1", 15, "decimal"},
		{"pkcs11:slot-id=99999999999999999999", 15, "decimal"},
		{"pkcs11:library-version=1.", 23, "MAJOR.MINOR"},
		{"pkcs11:library-version=256", 23, "MAJOR.MINOR"},
		{"pkcs11:library-version=1.2.3", 23, "MAJOR.MINOR"},
		{"pkcs11:token=a?module-path=/x&module-path=/y", 30, "module-path is given twice"},
		{"pkcs11:token=a?module-path=%00", 27, "zero byte"},
		{"pkcs11:token=a?module_path=/x", 15, "did you mean module-path?"},
		{"pkcs11:token=a?object=b", 15, "belongs into the path"},
		{"pkcs11:token=a;module-path=b", 15, "belongs into the query"},
		{"pkcs11:token=a?pin-source=file:/x", 15, "pin-source is refused"},
		{"pkcs11:token=a;pin-source=file:/x", 15, "pin-source is refused"},
		{"pkcs11:token=a?&", 15, "an attribute is missing"},
	} {
		t.Run(tt.in, func(t *testing.T) {
			u, err := pkcs11uri.Parse(tt.in)
			var e *pkcs11uri.Error
			if !errors.As(err, &e) {
				t.Fatalf("Parse = %v, %v, want an *Error", u, err)
			}
			if e.Offset != tt.offset || !strings.Contains(e.Reason, tt.reason) {
				t.Errorf("Parse: %v, want byte %d, %q", err, tt.offset, tt.reason)
			}
			if !reflect.DeepEqual(u, pkcs11uri.URI{}) {
				t.Errorf("Parse returned %+v beside an error", u)
			}
		})
	}
}

func TestParseNeverShowsAPIN(t *testing.T) {
	for _, in := range []string{"pkcs11:token=a?pin-value=SECRET", "pkcs11:token=a;pin-value=SECRET", "pkcs11:pin=SECRET", "pkcs11:PIN-Value=SECRET%"} {
		_, err := pkcs11uri.Parse(in)
		if err == nil || strings.Contains(err.Error(), "SECRET") || !strings.Contains(err.Error(), "pin_file") {
			t.Errorf("Parse(%s): %v, want a refusal that names pin_file and not the PIN", in, err)
		}
	}
}

func TestMatches(t *testing.T) {
	one := uint(1)
	token := func(u pkcs11uri.URI) bool { return u.MatchesToken("demo", "SoftHSM project", "SoftHSM v2", "ab12") }
	object := func(u pkcs11uri.URI) bool {
		return u.MatchesObject("payments", []byte{1, 2}, pkcs11uri.TypeSecretKey)
	}
	slot := func(u pkcs11uri.URI) bool { return u.MatchesSlot(1, "Slot", "Maker") }
	library := func(u pkcs11uri.URI) bool { return u.MatchesLibrary("Maker", "Library", 2, 6) }
	for _, tt := range []struct {
		name  string
		match func(pkcs11uri.URI) bool
		uri   pkcs11uri.URI
		want  bool
	}{
		{"nothing given", token, pkcs11uri.URI{}, true},
		{"all given", token, pkcs11uri.URI{Token: "demo", Manufacturer: "SoftHSM project", Model: "SoftHSM v2", Serial: "ab12"}, true},
		{"object attributes do not count", token, pkcs11uri.URI{Token: "demo", Object: "x"}, true},
		{"label", token, pkcs11uri.URI{Token: "Demo"}, false},
		{"part of a label", token, pkcs11uri.URI{Token: "dem"}, false},
		{"manufacturer", token, pkcs11uri.URI{Token: "demo", Manufacturer: "x"}, false},
		{"model", token, pkcs11uri.URI{Token: "demo", Model: "x"}, false},
		{"serial", token, pkcs11uri.URI{Token: "demo", Serial: "x"}, false},
		{"object", object, pkcs11uri.URI{Object: "payments", Type: "secret-key", ID: []byte{1, 2}}, true},
		{"nothing given", object, pkcs11uri.URI{}, true},
		{"object label", object, pkcs11uri.URI{Object: "x"}, false},
		{"object type", object, pkcs11uri.URI{Type: "private"}, false},
		{"object id", object, pkcs11uri.URI{ID: []byte{1}}, false},
		{"slot", slot, pkcs11uri.URI{SlotID: &one, SlotDescription: "Slot", SlotManufacturer: "Maker"}, true},
		{"slot number", slot, pkcs11uri.URI{SlotID: new(uint)}, false},
		{"slot description", slot, pkcs11uri.URI{SlotDescription: "x"}, false},
		{"library", library, pkcs11uri.URI{LibraryManufacturer: "Maker", LibraryDescription: "Library", LibraryVersion: "2.6"}, true},
		{"library version", library, pkcs11uri.URI{LibraryVersion: "2.60"}, false},
	} {
		if got := tt.match(tt.uri); got != tt.want {
			t.Errorf("%s: %s matches: %t, want %t", tt.name, tt.uri, got, tt.want)
		}
	}
}

func TestHas(t *testing.T) {
	for _, tt := range []struct {
		in                    string
		token, object, module bool
	}{
		{"pkcs11:", false, false, false},
		{"pkcs11:token=a", true, false, false},
		{"pkcs11:slot-id=0", true, false, false},
		{"pkcs11:library-version=1", true, false, false},
		{"pkcs11:id=%01", false, true, false},
		{"pkcs11:type=private", false, true, false},
		{"pkcs11:?module-name=a", false, false, true},
	} {
		u, err := pkcs11uri.Parse(tt.in)
		if err != nil {
			t.Fatal(err)
		}
		if u.HasTokenAttributes() != tt.token || u.HasObjectAttributes() != tt.object || u.HasModuleAttributes() != tt.module {
			t.Errorf("%s: token %t, object %t, module %t", tt.in, u.HasTokenAttributes(), u.HasObjectAttributes(), u.HasModuleAttributes())
		}
	}
}

// FuzzParse holds that Parse never panics, that an error points into the URI, and that what parses is written
// in a form that parses to the same and is written the same again.
func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"pkcs11:", "pkcs11:token=demo;object=a%20b;type=secret-key;id=%00%FF?module-path=/x", "PKCS11:library-version=03.04;slot-id=007",
		"pkcs11:token=%C3%BC&%26;serial=1?module-name=a|b", "pkcs11:pin-value=x", "pkcs11:token", "pkcs11:id=%", "pkcs11:?&",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		u, err := pkcs11uri.Parse(s)
		if err != nil {
			var e *pkcs11uri.Error
			if !errors.As(err, &e) || e.Offset < 0 || e.Offset > len(s) || e.Reason == "" {
				t.Fatalf("Parse(%q): error %#v", s, err)
			}
			return
		}
		again, err := pkcs11uri.Parse(u.String())
		if err != nil {
			t.Fatalf("Parse(%q) gives %s, which does not parse: %v", s, u, err)
		}
		if !reflect.DeepEqual(again, u) || again.String() != u.String() || !again.Equal(u) {
			t.Fatalf("Parse(%q) gives %s, which parses to %s", s, u, again)
		}
	})
}
