package daemon

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"hsmbridge/daemon/control"
	"hsmbridge/daemon/store"
)

// What a token holds of keys that several tokens hold: what is wrong comes first, and what is left out is counted.
func TestCopies(t *testing.T) {
	dir := t.TempDir()
	text := fmt.Sprintf("name: one\ndatabase: %q\nmetrics: {listen: none}\ntokens:\n", filepath.Join(dir, "x.db"))
	for _, token := range []string{"a", "b", "c"} {
		text += fmt.Sprintf("  - {name: %s, module: /lib/p11.so, uri: \"pkcs11:token=%[1]s;serial=%[1]s\", pin_file: pin}\n", token)
	}
	text += "keys:\n"
	for i, replicas := range []string{"{token: b}", "{token: c}, {token: b, required: false, uri: \"pkcs11:object=copy;type=secret-key\"}", ""} {
		text += fmt.Sprintf("  - {name: k%d, token: a, uri: \"pkcs11:object=k%[1]d;type=secret-key\", key_spec: SYMMETRIC_DEFAULT, expires: 90d, destinations: [%q], replicas: [%s]}\n", i, arn(i, 0), replicas)
	}
	path := filepath.Join(dir, "hsmbridge.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	now := time.Date(2026, 5, 20, 12, 0, 0, 0, time.UTC)
	d := still(t, path, func() time.Time { return now })
	defer d.store.Close() //nolint:errcheck // the end of the test
	for _, r := range []store.Replica{
		{Key: "k0", Token: "a", Identity: "check value 1a2b3c"},
		{Key: "k0", Token: "b", Identity: "check value 1a2b3c", Serial: "b"},
		{Key: "k1", Token: "a", Identity: "check value 445566"},
		{Key: "k1", Token: "b", Identity: "check value ffffff"},
	} {
		r.Generation = 1
		if _, err := d.store.SeeReplica(t.Context(), r, nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	list, total, err := d.Copies(t.Context(), "b", 5)
	if err != nil || total != 2 || len(list) != 2 {
		t.Fatalf("%d of %d: %+v, %v", len(list), total, list, err)
	}
	if r := list[0]; r.Key != "k1" || r.Agrees || r.Required || r.Object != "pkcs11:object=copy;type=secret-key" || r.TokenState != "closed" || r.Problem != "another key: it has to be check value 445566" {
		t.Errorf("first %+v", r)
	}
	if r := list[1]; r.Key != "k0" || !r.Agrees || !r.Required || r.Object != "pkcs11:object=k0;type=secret-key" || r.Serial != "b" || !r.Seen.Equal(now) {
		t.Errorf("second %+v", r)
	}
	if list, total, err := d.Copies(t.Context(), "b", 1); err != nil || total != 2 || len(list) != 1 || list[0].Key != "k1" {
		t.Errorf("of one: %d of %d: %+v, %v", len(list), total, list, err)
	}
	keys, err := d.Keys(t.Context(), "k1")
	if err != nil || len(keys[0].Replicas) != 3 {
		t.Fatalf("%+v, %v", keys, err)
	}
	for i, r := range keys[0].Replicas {
		if r.TokenState != "closed" || r.Agrees != (i == 0) {
			t.Errorf("replica %d is %+v", i, r)
		}
	}
	if list, total, err := d.Copies(t.Context(), "c", 5); err != nil || total != 1 || list[0].Problem != "not looked at yet" {
		t.Errorf("not looked at: %+v, %v", list, err)
	}
}

// An import through the HSM room is one that the journal knows, of a destination of the configuration. What is due is not decided by it.
func TestCeremonyImport(t *testing.T) {
	now := time.Date(2026, 5, 20, 12, 0, 0, 0, time.UTC)
	d := still(t, fleet(t, filepath.Join(t.TempDir(), "x.db"), 2, false), func() time.Time { return now })
	defer d.store.Close() //nolint:errcheck // the end of the test
	for _, s := range []control.CeremonyStep{
		{Kind: "ceremony-upload", Key: "key-000000", Destination: arn(0, 0), Imported: true},
		{Kind: "ceremony-fetch", Key: "key-000001", Destination: arn(1, 0), Imported: true},
		{Kind: "ceremony-upload", Key: "key-000001", Destination: arn(1, 0)},
		{Kind: "ceremony-upload", Key: "key-000001", Destination: arn(2, 0), Imported: true},
		{Kind: "ceremony-upload", Key: "nobody's", Destination: arn(0, 0), Imported: true},
	} {
		if err := d.CeremonyStep(t.Context(), "alice", s); err != nil {
			t.Fatal(err)
		}
	}
	list, err := d.store.Destinations(t.Context())
	if err != nil || len(list) != 2 || list[1].Key != "key-000001" || list[1].Destination != arn(1, 0) || !list[1].ImportedAt.IsZero() || !list[1].TriedAt.Equal(now) || list[0].Key != "key-000000" || !list[0].ImportedAt.Equal(now) || !list[0].SettledAt.IsZero() || !list[0].FirstSeenAt.IsZero() {
		t.Errorf("%+v, %v", list, err)
	}
}
