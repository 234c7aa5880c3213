package audit_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"hsmbridge/daemon/audit"
)

var update = flag.Bool("update", false, "write golden files of new kinds and fields, and the table in docs/audit.md")

// example is a value for a field, by its name.
func example(field string) string {
	const digest = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
	switch {
	case strings.HasSuffix(field, "sha256"):
		return digest
	case field == "valid_to", field == "valid_until", field == "not_before":
		return "2027-02-03T04:05:06Z"
	case field == "text", field == "signature":
		return "two lines\nof <text> & \"more\"\n"
	case field == "n", field == "generation", field == "keys", field == "tokens":
		return "7"
	}
	return "a " + strings.ReplaceAll(field, "_", " ")
}

// sample is a record of a kind with every field.
func sample(t *testing.T, k audit.KindInfo) audit.Record {
	t.Helper()
	r := audit.Record{
		N: 42, Time: time.Date(2027, 1, 2, 3, 4, 5, 678901000, time.UTC), Kind: k.Kind, Actor: "alice", Key: "payments",
		Destination: "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab", Job: 9, Message: "what happened, für Menschen",
	}
	fields := map[string]string{}
	for _, f := range k.Fields {
		fields[f] = example(f)
	}
	if err := r.SetFields(fields); err != nil {
		t.Fatal(err)
	}
	return r
}

// goldens are the files of a kind, oldest first: the second and later ones were added with fields that the kind got later.
func goldens(t *testing.T, k audit.Kind) []string {
	t.Helper()
	var out []string
	for i := 1; ; i++ {
		name := golden(k, i)
		if _, err := os.Stat(name); err != nil {
			return out
		}
		out = append(out, name)
	}
}

func golden(k audit.Kind, i int) string {
	name := string(k)
	if i > 1 {
		name = fmt.Sprintf("%s.%d", k, i)
	}
	return filepath.Join("testdata", "kinds", name+".json")
}

// TestKinds holds every kind and field for ever: a record that was once written is read and written again to the byte. A file is never
// changed; a field that a kind gets later makes another file (-update).
func TestKinds(t *testing.T) {
	t.Parallel()
	known := map[string]bool{}
	for _, k := range audit.Kinds() {
		files := goldens(t, k.Kind)
		want, err := sample(t, k).Encode()
		if err != nil {
			t.Fatal(err)
		}
		if last := lastOf(t, files); *update && !bytes.Equal(last, want) {
			name := golden(k.Kind, len(files)+1)
			if err := os.WriteFile(name, append(want, '\n'), 0o600); err != nil {
				t.Fatal(err)
			}
			files = append(files, name)
		}
		if last := lastOf(t, files); !bytes.Equal(last, want) {
			t.Errorf("%s: the last golden record is not what is written now. A new field needs a new file (go test ./daemon/audit -update); a field that is there is neither removed, renamed nor retyped.\n got %s\nwant %s", k.Kind, want, last)
		}
		for _, name := range files {
			known[name] = true
			line := read(t, name)
			r, err := audit.Decode(line)
			if err != nil {
				t.Errorf("%s is not read any more: %v", name, err)
				continue
			}
			again, err := r.Encode()
			if err != nil || !bytes.Equal(again, line) {
				t.Errorf("%s is written otherwise now: %v\n got %s\nwant %s", name, err, again, line)
			}
		}
	}
	all, err := filepath.Glob(filepath.Join("testdata", "kinds", "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range all {
		if !known[name] {
			t.Errorf("%s is of a kind that is not there any more: kinds stay for ever", name)
		}
	}
}

// TestFieldsAreText holds what the table says of values: text, left out when empty.
func TestFieldsAreText(t *testing.T) {
	t.Parallel()
	for _, k := range audit.Kinds() {
		v := reflect.TypeOf(sample(t, k).Data)
		if v == nil {
			continue
		}
		for i := range v.Elem().NumField() {
			f := v.Elem().Field(i)
			if f.Type.Kind() != reflect.String || !strings.HasSuffix(f.Tag.Get("json"), ",omitempty") {
				t.Errorf("%s.%s is %s with the tag %s, and has to be a string that is left out when empty", k.Kind, f.Name, f.Type, f.Tag)
			}
		}
	}
}

func lastOf(t *testing.T, files []string) []byte {
	t.Helper()
	if len(files) == 0 {
		return nil
	}
	return read(t, files[len(files)-1])
}

func read(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return []byte(strings.TrimSuffix(string(b), "\n"))
}

// TestDecodeIsStrict: one record has one form.
func TestDecodeIsStrict(t *testing.T) {
	t.Parallel()
	good := `{"n":1,"time":"2027-01-02T03:04:05.6Z","kind":"parked","actor":"d","message":"m","data":{"token":"hsm"}}`
	if _, err := audit.Decode([]byte(good)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ what, from, to string }{
		{"a blank", `{"n"`, `{ "n"`},
		{"another order", `"n":1,"time":"2027-01-02T03:04:05.6Z"`, `"time":"2027-01-02T03:04:05.6Z","n":1`},
		{"a field twice", `"actor":"d"`, `"actor":"x","actor":"d"`},
		{"other capitals", `"actor"`, `"Actor"`},
		{"another zone", `05.6Z`, `05.6+00:00`},
		{"nanoseconds", `05.6Z`, `05.6000001Z`},
		{"an escape that is not needed", `"m"`, `"\u006d"`},
		{"an empty field", `"actor":"d"`, `"actor":"d","key":""`},
		{"null data", `{"token":"hsm"}`, `null`},
		{"empty data", `{"token":"hsm"}`, `{}`},
		{"an unknown member", `"message"`, `"more":1,"message"`},
		{"a field of another kind", `"token":"hsm"`, `"token":"hsm","plan":"x"`},
		{"a number for text", `"hsm"`, `1`},
		{"a brace behind it", `}}`, `}}}`},
		{"JSON behind it", `}}`, `}} {}`},
		{"a kind nobody knows", `parked`, `parking`},
	} {
		bad := strings.Replace(good, c.from, c.to, 1)
		if bad == good {
			t.Fatalf("%s: nothing was replaced", c.what)
		}
		if _, err := audit.Decode([]byte(bad)); err == nil && c.what != "empty data" {
			t.Errorf("%s was taken: %s", c.what, bad)
		}
	}
}

// TestUnknownKind: a record of a later version keeps what everyone understands.
func TestUnknownKind(t *testing.T) {
	t.Parallel()
	r, err := audit.Decode([]byte(`{"n":3,"time":"2027-01-02T03:04:05Z","kind":"later","actor":"d","message":"m","data":{"x":"y"}}`))
	var unknown *audit.UnknownKindError
	if !errors.As(err, &unknown) || r.N != 3 || r.Message != "m" {
		t.Fatalf("got %+v, %v", r, err)
	}
	set := audit.Record{Kind: "later"}
	if err := set.SetFields(nil); !errors.As(err, &unknown) {
		t.Errorf("a record of an unknown kind can be made: %v", err)
	}
	set.Kind = "parked"
	if err := set.SetFields(map[string]string{"plan": "x"}); !errors.As(err, &unknown) {
		t.Errorf("a field that the kind does not have was taken: %v", err)
	}
}

// TestFields gives back what was set.
func TestFields(t *testing.T) {
	t.Parallel()
	for _, k := range audit.Kinds() {
		r := sample(t, k)
		raw, err := r.Encode()
		if err != nil {
			t.Fatal(err)
		}
		back, err := audit.Decode(raw)
		if err != nil {
			t.Fatal(err)
		}
		got, err := back.Fields()
		if err != nil {
			t.Fatal(err)
		}
		if len(got) != len(k.Fields) || !slices.Equal(audit.FieldNames(k.Kind), k.Fields) {
			t.Errorf("%s has the fields %v, got %v", k.Kind, k.Fields, got)
		}
		for _, f := range k.Fields {
			if got[f] != example(f) {
				t.Errorf("%s: %s is %q, want %q", k.Kind, f, got[f], example(f))
			}
		}
		if !json.Valid(raw) || strings.ContainsRune(string(raw), '\n') {
			t.Errorf("%s is not one line of JSON", k.Kind)
		}
	}
}
