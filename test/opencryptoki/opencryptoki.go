// Package opencryptoki makes openCryptoki soft tokens for tests.
//
// openCryptoki's state belongs to the machine: a daemon (pkcsslotd), its socket and locks under /run, shared memory
// in /dev/shm and System V segments, tokens in /var/lib/opencryptoki, slots in /etc/opencryptoki. So the tests of a package
// run as a whole in private namespaces, which [Main] or [Wrap] enters from TestMain; see namespace.go. The daemon belongs to the tests, and
// programs which they start use it too. No root is needed where the kernel lets users make namespaces.
//
// [New] then hands out tokens: each in a slot of its own, so that locking one does not harm another.
package opencryptoki

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"hsmbridge/test/token"
)

// Token is one initialised soft token. All soft tokens have the same serial number.
type Token struct {
	token.Token
	Slot int // the slot's number, the same in every process of the namespace
}

const (
	slots       = 128            // tokens that one run of a test binary can have; an unused slot costs no time
	serial      = "123"          // CK_TOKEN_INFO.serialNumber of every soft token
	firstSOPIN  = "87654321"     // of a new soft token, from openCryptoki's documentation
	claims      = "/run/claimed" // one empty directory for each slot handed out, for every process of the namespace to see
	environment = "HSMBRIDGE_TEST_OPENCRYPTOKI_NAMESPACE"
)

// New initialises the next free slot's token with label ("ock-test" and the slot's number if none is given). It fails
// the test outside [Main]. Both PINs have 8 digits, the most that a soft token takes, and have been changed from
// their first values, which openCryptoki demands before a token is used.
func New(tb testing.TB, label ...string) Token {
	tb.Helper()
	if os.Getenv(environment) == "" {
		tb.Fatal("opencryptoki.New works only inside opencryptoki.Main: call it from TestMain")
	}
	slot, err := claim()
	if err != nil {
		tb.Fatal(err)
	}
	t := Token{token.Token{Label: fmt.Sprintf("ock-test-%d", slot), Serial: serial, Dir: tb.TempDir()}, slot}
	if len(label) > 0 {
		t.Label = label[0]
	}
	if t.Module, err = Module(); err != nil {
		tb.Fatal(err)
	}
	t.PIN, t.SOPIN = token.PINs(tb, 8)
	if err := t.initialise(tb.Context()); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := t.retire(); err != nil {
			tb.Error(err)
		}
	})
	return t
}

// Module finds libopencryptoki.so, which Debian ships under a versioned name beside its drivers.
func Module() (string, error) {
	return token.Module("libopencryptoki.so", "opencryptoki", "pkcs11")
}

// initialise sets label and PINs of a blank token, in the steps that openCryptoki asks for.
func (t Token) initialise(ctx context.Context) error {
	firstPIN, err := token.Digits(8)
	if err != nil {
		return err
	}
	steps := [][]string{
		{"--init-token", "--label", t.Label, "--so-pin", firstSOPIN},
		{"--login", "--login-type", "so", "--so-pin", firstSOPIN, "--change-pin", "--new-pin", t.SOPIN},
		{"--login", "--login-type", "so", "--so-pin", t.SOPIN, "--init-pin", "--pin", firstPIN},
		{"--login", "--pin", firstPIN, "--change-pin", "--new-pin", t.PIN},
	}
	for _, step := range steps {
		if err := t.tool(ctx, step...); err != nil {
			return fmt.Errorf("initialise soft token %d: %w", t.Slot, err)
		}
	}
	return nil
}

// retire takes the label off the token, so that another test may use it. The slot is not used again: after a second C_InitToken
// a soft token (3.8.1) answers CKR_FUNCTION_FAILED to every login of the SO.
func (t Token) retire() error {
	if err := t.tool(context.Background(), "--init-token", "--label", "retired", "--so-pin", t.SOPIN); err != nil {
		return fmt.Errorf("retire soft token %d: %w", t.Slot, err)
	}
	return nil
}

func (t Token) tool(ctx context.Context, args ...string) error {
	args = append([]string{"--module", t.Module, "--slot", strconv.Itoa(t.Slot)}, args...)
	_, err := token.Run(ctx, os.Environ(), "pkcs11-tool", args...)
	return err
}

// claim takes the lowest slot that no test of this namespace has had.
func claim() (int, error) {
	for slot := range slots {
		err := os.Mkdir(filepath.Join(claims, strconv.Itoa(slot)), 0o700)
		if err == nil {
			return slot, nil
		}
		if !os.IsExist(err) {
			return 0, fmt.Errorf("claim a soft token: %w", err)
		}
	}
	return 0, fmt.Errorf("all %d soft tokens of this run are used: raise opencryptoki.slots", slots)
}
