// Package hsmtest is the contract that hsm keeps on every token: one suite, run by the tests of each token
// under test/. What differs between tokens is in [Expect], measured and written down, not guessed.
package hsmtest

import (
	"context"
	"testing"

	"hsmbridge/hsm"
	"hsmbridge/hsm/pkcs11uri"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/hsm/wrapping/trial"
	"hsmbridge/test/token"
)

// Expect is what a token is known to do. Source: measurements on the token itself.
type Expect struct {
	// Chosen is the first plan's algorithm for each key spec under the default policy; a spec that is missing has none.
	Chosen map[wrapping.KeySpec]wrapping.Algorithm
	// Reasons are parts of the explanation for specs without a plan.
	Reasons map[wrapping.KeySpec]string
	// Generates are the specs that Generate makes.
	Generates []wrapping.KeySpec
	// NoWrapWithTrusted says that the token does not know CKA_WRAP_WITH_TRUSTED.
	NoWrapWithTrusted bool
	// NoTrust is what the token answers that does not let its security officer trust a wrapping key; empty: it does.
	NoTrust string
	// NoMAC are the HMAC specs for which the token has no mechanism to compute with.
	NoMAC []wrapping.KeySpec
	// NoCheckValue says that the token encrypts no block and has no CKA_CHECK_VALUE.
	NoCheckValue bool
	// CannotWrap is what a token says of itself that wraps nothing and makes no secret keys; empty: it wraps.
	CannotWrap string
	// Matrix is the token's part of docs/matrix.md.
	Matrix Part
}

// URI parses a PKCS #11 URI or fails the test.
func URI(tb testing.TB, s string) pkcs11uri.URI {
	tb.Helper()
	u, err := pkcs11uri.Parse(s)
	if err != nil {
		tb.Fatal(err)
	}
	return u
}

// Config is the configuration of a fixture's token.
func Config(tb testing.TB, tok token.Token) hsm.Config {
	tb.Helper()
	return hsm.Config{
		Name: tok.Label, Module: tok.Module, Parameters: tok.Parameters, Environment: tok.Environment, URI: URI(tb, tok.URI()),
	}
}

// PIN is a source that gives pin.
func PIN(pin string) hsm.PINSource {
	return func(context.Context, wrapping.TokenIdentity) ([]byte, error) { return []byte(pin), nil }
}

// Open opens a fixture's token for the length of the test. At its end no session object may be left.
func Open(tb testing.TB, tok token.Token) *hsm.Token {
	tb.Helper()
	t, err := hsm.Open(tb.Context(), Config(tb, tok), PIN(tok.PIN))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		n, err := t.SessionObjects(context.Background())
		if err != nil || n != 0 {
			tb.Errorf("%d session objects are left in the token (%v)", n, err)
		}
		if err := t.Close(); err != nil {
			tb.Error(err)
		}
	})
	return t
}

// Run runs the contract. fresh makes a new token with the label; each part that must not meet another's has one. A token is not used any
// more when the next is made.
func Run(t *testing.T, fresh func(tb testing.TB, label string) token.Token, want Expect) {
	t.Helper()
	tok := fresh(t, "contract")
	t.Run("open", func(t *testing.T) { testOpen(t, tok, want) })
	if want.CannotWrap != "" {
		t.Run("cannot wrap", func(t *testing.T) { testCannotWrap(t, tok, want) })
	} else {
		keys := newThrowaways(t)
		var caps wrapping.Capabilities
		t.Run("probe", func(t *testing.T) { caps = testProbe(t, tok, want) })
		t.Run("generate and wrap", func(t *testing.T) { testGenerateAndWrap(t, tok, caps, keys, want) })
		t.Run("keys that must not leave", func(t *testing.T) { testMustNotLeave(t, tok, keys, want) })
		t.Run("report", func(t *testing.T) { testReport(t, tok) })
		t.Run("many at once", func(t *testing.T) { testConcurrent(t, tok, keys, want) })
	}
	t.Run("find", func(t *testing.T) { testFind(t, tok, want) })
	t.Run("giving up", func(t *testing.T) { testGiveUp(t, tok) })
	t.Run("signing", func(t *testing.T) { testSigning(t, fresh(t, "signing")) })
	if want.CannotWrap == "" {
		t.Run("trusted", func(t *testing.T) { testTrusted(t, fresh(t, "trusted"), want.NoTrust) })
	}
	t.Run("wrong PIN", func(t *testing.T) { testWrongPIN(t, fresh(t, "wrong-pin")) })
}

// throwaways are wrapping keys for one run: making one of 4096 bits takes longer than all wraps under it.
type throwaways map[wrapping.WrappingKeySpec]*trial.RSAKey

func newThrowaways(t *testing.T) throwaways {
	t.Helper()
	keys := throwaways{}
	for _, w := range wrapping.WrappingKeySpecs() {
		key, err := trial.NewRSAKey(w)
		if err != nil {
			t.Fatal(err)
		}
		keys[w] = key
	}
	return keys
}
