// Package softhsm makes SoftHSM 2 tokens for tests: real ones, in a private store that goes away with the test.
//
// # Several tokens in one process
//
// SoftHSM reads SOFTHSM2_CONF at C_Initialize, and a process loads a module once: all tokens that one
// process uses at one time have to live in one store. [New] makes a store for one test and puts as many
// tokens in it as labels are given; [Token.Add] adds one. After C_Finalize the next C_Initialize reads SOFTHSM2_CONF again, so
// tests that run one after another and close what they opened may have a store each.
package softhsm

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"hsmbridge/test/token"
)

// Token is one initialised token in a store.
type Token struct {
	token.Token
	Others []Token // the tokens of the second and later labels given to New, in that order
}

// New makes a store with one token for each label ("test" if none is given) and returns the first, which has the
// others in Others.
func New(tb testing.TB, labels ...string) Token {
	tb.Helper()
	if len(labels) == 0 {
		labels = []string{"test"}
	}
	module, err := Module()
	if err != nil {
		tb.Fatal(err)
	}
	dir := tb.TempDir()
	conf := filepath.Join(dir, "softhsm2.conf")
	if err := writeConfiguration(conf, filepath.Join(dir, "tokens")); err != nil {
		tb.Fatal(err)
	}
	store := Token{Token: token.Token{
		Module:      module,
		Environment: map[string]string{"SOFTHSM2_CONF": conf},
		Dir:         dir,
	}}
	first := store.Add(tb, labels[0])
	for _, label := range labels[1:] {
		first.Others = append(first.Others, store.Add(tb, label))
	}
	return first
}

// Add makes one more token in the store that t lives in. Two tokens may have the same label: their
// serial numbers differ.
//
// A process that is between C_Initialize and C_Finalize does not see the new token (measured on 2.6.1: not by
// C_GetSlotList with a null list either); every later C_Initialize does. So add all tokens before the first is opened.
func (t Token) Add(tb testing.TB, label string) Token {
	tb.Helper()
	added := Token{Token: t.Token}
	added.Label = label
	added.PIN, added.SOPIN = token.PINs(tb, 8)
	out, err := token.Run(tb.Context(), t.Environ(), "softhsm2-util", "--module", t.Module,
		"--init-token", "--free", "--label", label, "--pin", added.PIN, "--so-pin", added.SOPIN)
	if err != nil {
		tb.Fatal(err)
	}
	serial, err := t.serial(tb.Context(), out)
	if err != nil {
		tb.Fatal(err)
	}
	added.Serial = serial
	return added
}

// Module finds libsofthsm2.so.
func Module() (string, error) { return token.Module("libsofthsm2.so", "softhsm", "pkcs11") }

// writeConfiguration writes a softhsm2.conf, and makes the empty directory that it names.
func writeConfiguration(path, tokens string) error {
	if err := os.MkdirAll(tokens, 0o700); err != nil {
		return fmt.Errorf("make the SoftHSM store: %w", err)
	}
	lines := []string{
		"directories.tokendir = " + tokens,
		"objectstore.backend = file",
		"log.level = ERROR",
		"slots.removable = false",
	}
	if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		return fmt.Errorf("write the SoftHSM configuration: %w", err)
	}
	return nil
}

// serial finds the serial number of the token that softhsm2-util has just made: it prints the new slot's number, which is
// the low 31 bits of the serial number, and --show-slots prints both.
func (t Token) serial(ctx context.Context, initOutput string) (string, error) {
	made := regexp.MustCompile(`reassigned to slot (\d+)`).FindStringSubmatch(initOutput)
	if made == nil {
		return "", fmt.Errorf("softhsm2-util did not say which slot it made:\n%s", initOutput)
	}
	slots, err := token.Run(ctx, t.Environ(), "softhsm2-util", "--module", t.Module, "--show-slots")
	if err != nil {
		return "", err
	}
	found := regexp.MustCompile(`(?s)Slot ` + made[1] + `\s.*?Serial number:\s+(\S+)`).FindStringSubmatch(slots)
	if found == nil {
		return "", fmt.Errorf("softhsm2-util shows no slot %s:\n%s", made[1], slots)
	}
	return found[1], nil
}
