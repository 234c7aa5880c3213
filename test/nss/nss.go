// Package nss makes NSS softokn tokens for tests: the software token behind Firefox, which does every AWS wrapping
// algorithm exactly, RSA and EC private keys too.
//
// softokn is not told where its database is by a file or the environment but by the string in
// CK_C_INITIALIZE_ARGS.pReserved ([token.Token].Parameters); with a null pReserved C_Initialize answers CKR_ARGUMENTS_BAD, so
// pkcs11-tool cannot drive it. It has two slots: slot 1 is its internal cryptography without a database, slot 2 is the token.
// A process has one database at a time: tests that run one after another and call C_Finalize may have one each.
package nss

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"hsmbridge/test/token"
)

// DefaultLabel is the token's label when its parameters do not name another.
const DefaultLabel = "NSS Certificate DB"

// Token is one softokn database. It has no security officer. Its serial number is the same for all
// databases: 0000000000000000.
type Token struct {
	token.Token
}

// New makes a database and returns its token, with label ("nss-test" if none is given).
func New(tb testing.TB, label ...string) Token {
	tb.Helper()
	if len(label) == 0 {
		label = []string{"nss-test"}
	}
	return NewIn(tb, filepath.Join(tb.TempDir(), "db"), label[0])
}

// NewIn makes a database in the directory, in the place of one that may be there: for a module whose parameters are written down
// elsewhere, and stay.
func NewIn(tb testing.TB, database, label string) Token {
	tb.Helper()
	t := Token{token.Token{Label: label, Serial: "0000000000000000", Dir: tb.TempDir()}}
	var err error
	if t.Module, err = Module(); err != nil {
		tb.Fatal(err)
	}
	if t.PIN, err = token.Digits(12); err != nil {
		tb.Fatal(err)
	}
	if err := os.RemoveAll(database); err != nil {
		tb.Fatal(err)
	}
	if err := os.Mkdir(database, 0o700); err != nil {
		tb.Fatalf("make the NSS database: %v", err)
	}
	t.Parameters = Parameters(database, t.Label)
	if _, err := token.Run(tb.Context(), t.Environ(), "certutil", "-N", "-d", "sql:"+database, "-f", t.PINFile(tb)); err != nil {
		tb.Fatal(err)
	}
	return t
}

// Parameters is the string for CK_C_INITIALIZE_ARGS.pReserved (module_parameters in a configuration): the database
// in dir, its token with label. Neither may hold a quote.
func Parameters(dir, label string) string {
	return fmt.Sprintf("configdir='sql:%s' certPrefix='' keyPrefix='' secmod='secmod.db' dbTokenDescription='%s'", dir, label)
}

// Module finds libsoftokn3.so, which old releases of Debian keep in a directory of its own.
func Module() (string, error) { return token.Module("libsoftokn3.so", "nss") }
