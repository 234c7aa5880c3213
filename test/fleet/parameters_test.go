package fleet

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"database/sql"
	"encoding/base64"
	"path/filepath"
	"strings"
	"testing"

	"hsmbridge/daemon/store"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/kmsclient/kmsemu"
)

// A daemon is killed when it has fetched import parameters and not used them. With a key that signs, the next one uses them; what somebody
// has put in their place in the database, or taken from another key, is not used; without a key that signs, others are fetched.
func TestParametersSurvive(t *testing.T) {
	t.Parallel()
	const signs = "audit: {token: hsm, uri: \"pkcs11:object=audit;type=private\", generate: if-missing}\n"
	change := func(set string, args ...any) func(t *testing.T, db *sql.DB) {
		return func(t *testing.T, db *sql.DB) {
			t.Helper()
			r, err := db.ExecContext(t.Context(), "UPDATE parameters SET "+set, args...) //nolint:gosec // this test says what
			if err != nil {
				t.Fatal(err)
			}
			if n, err := r.RowsAffected(); n != 1 || err != nil {
				t.Fatalf("%d rows, %v", n, err)
			}
		}
	}
	mine, err := rsa.GenerateKey(rand.Reader, 4096)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&mine.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, extra string
		change      func(t *testing.T, db *sql.DB)
		requests    int // for parameters, in both lives
	}{
		{"used", signs, nil, 1},
		{"another wrapping public key", signs, change("public_key = ?", base64.StdEncoding.EncodeToString(der)), 2},
		{"another import token", signs, change("import_token = 'AAAA'"), 2},
		{"valid for longer", signs, change("valid_to = valid_to + 1"), 2},
		{"no signature", signs, change("signature = ''"), 2},
		{"not base64", signs, change("public_key = '?'"), 2},
		{"nothing signs", "", nil, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, kmsemu.Options{})
			w.extra = c.extra
			arn := w.key("k", wrapping.HMAC256)
			w.start("first", "", envKill+"=import/parameters/1").died()
			if c.change != nil {
				db, err := sql.Open("sqlite", filepath.Join(w.dir, "hsmbridge.db"))
				if err != nil {
					t.Fatal(err)
				}
				c.change(t, db)
				if err := db.Close(); err != nil {
					t.Fatal(err)
				}
			}
			p := w.start("first", "")
			jobs := p.settled()
			if last := jobs[len(jobs)-1]; last.State != store.Done {
				t.Fatalf("the job is %s", asJSON(last))
			}
			if info, err := w.client.DescribeKey(t.Context(), arn); err != nil || info.State != "Enabled" {
				t.Errorf("the KMS key is %s, %v", info.State, err)
			}
			if n := w.emu.Count("GetParametersForImport"); n != c.requests {
				t.Errorf("%d requests for parameters, want %d", n, c.requests)
			}
			if n := w.emu.Count("ImportKeyMaterial"); n != 1 {
				t.Errorf("%d imports", n)
			}
			kept := 0
			for _, e := range p.events("k") {
				if e.Kind == "parameters" && strings.Contains(e.Message, "not used since") {
					kept++
				}
			}
			if want := 2 - c.requests; kept != want {
				t.Errorf("%d records tell of kept parameters, want %d", kept, want)
			}
			if log := readFile(t, p.log); strings.Contains(log, "do not have the signature") != (c.change != nil) {
				t.Errorf("the log says %q", log)
			}
			p.kill()
			db, err := sql.Open("sqlite", filepath.Join(w.dir, "hsmbridge.db"))
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close() //nolint:errcheck // it was only read
			var left int
			if err := db.QueryRowContext(t.Context(), "SELECT count(*) FROM parameters").Scan(&left); err != nil || left != 0 {
				t.Errorf("%d parameters are left after their use, %v", left, err)
			}
		})
	}
}
