package faults

import (
	"strings"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"hsmbridge/hsm"
	"hsmbridge/hsm/hsmtest"
	"hsmbridge/hsm/quirks"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/hsm/wrapping/trial"
	"hsmbridge/test/shim"
	"hsmbridge/test/softhsm"
)

// storing opens a token that takes wrapping public keys as token objects only, and with these attributes.
func storing(t *testing.T, m shim.Module, extra ...quirks.Attribute) *hsm.Token {
	t.Helper()
	stored := true
	c := hsmtest.Config(t, m.Token)
	c.Quirks = quirks.Override{TokenPublicKey: &stored, PublicKeyAttributes: extra}
	tok, err := hsm.Open(t.Context(), c, hsmtest.PIN(m.PIN))
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

// keys makes a key to be wrapped, and one of KMS.
func keys(t *testing.T, tok *hsm.Token) (wrapping.Key, *trial.RSAKey) {
	t.Helper()
	key, err := tok.Generate(t.Context(), wrapping.SymmetricDefault, "k", nil)
	if err != nil {
		t.Fatal(err)
	}
	kms, err := trial.NewRSAKey(wrapping.RSA2048)
	if err != nil {
		t.Fatal(err)
	}
	return key, kms
}

// TestStoredKeyLostAnswer holds that a wrapping public key which the token stored, and answered with an error, is destroyed at once, or, where that
// fails too, is told of and destroyed when the token is closed.
func TestStoredKeyLostAnswer(t *testing.T) {
	m := shim.New(t, softhsm.New(t).Token)
	tok := storing(t, m)
	key, kms := keys(t, tok)
	wrap := func() error {
		_, err := tok.Wrap(t.Context(), key, kms.Public(), plan(wrapping.SymmetricDefault, wrapping.OAEPSHA1, oaep, 32))
		return err
	}
	left := func() int {
		t.Helper()
		labels, err := tok.Leftovers(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return len(labels)
	}

	m.Script(t, "C_CreateObject: answer lost CKR_DEVICE_ERROR times 1")
	if err := wrap(); err == nil || !strings.Contains(err.Error(), "CKR_DEVICE_ERROR") || strings.Contains(err.Error(), stays) {
		t.Errorf("the answer was lost: %v", err)
	}
	if n := left(); n != 0 {
		t.Errorf("%d wrapping public keys are left", n)
	}

	m.Script(t, "C_CreateObject: answer lost CKR_DEVICE_ERROR times 1", "C_DestroyObject: return CKR_DEVICE_MEMORY times 1")
	if err := wrap(); err == nil || !strings.Contains(err.Error(), "CKR_DEVICE_ERROR") || !strings.Contains(err.Error(), stays) {
		t.Errorf("and it could not be destroyed: %v", err)
	}
	if n := left(); n != 1 {
		t.Errorf("%d wrapping public keys are left, want the one that could not be destroyed", n)
	}
	if err := wrap(); err != nil {
		t.Errorf("afterwards: %v", err)
	}
	if err := tok.Close(); err != nil {
		t.Error(err)
	}
	tok = storing(t, m)
	if n := left(); n != 0 {
		t.Errorf("%d wrapping public keys are left after Close", n)
	}
	if err := tok.Close(); err != nil {
		t.Error(err)
	}
}

// TestStoredKeyNotSeen holds that a stored wrapping public key which is not seen, because the login is gone, does not count as destroyed, neither after
// its use nor when the token is closed.
func TestStoredKeyNotSeen(t *testing.T) {
	m := shim.New(t, softhsm.New(t).Token)
	private := quirks.Attribute{Name: "CKA_PRIVATE", Type: pkcs11.CKA_PRIVATE, Value: true}
	tok := storing(t, m, private)
	key, kms := keys(t, tok)
	m.Script(t, "C_DestroyObject: login lost times 1")
	out, err := tok.Wrap(t.Context(), key, kms.Public(), plan(wrapping.SymmetricDefault, wrapping.OAEPSHA1, oaep, 32))
	if err == nil || len(out) != 0 || !strings.Contains(err.Error(), stays) {
		t.Errorf("Wrap: %d bytes, %v", len(out), err)
	}
	if err := tok.Close(); err == nil || !strings.Contains(err.Error(), stays) {
		t.Errorf("Close: %v", err)
	}
	tok = storing(t, m, private)
	if labels, err := tok.Leftovers(t.Context()); err != nil || len(labels) != 1 {
		t.Errorf("left: %q, %v: the test is about nothing", labels, err)
	}
	if err := tok.Close(); err != nil {
		t.Error(err)
	}
}

// TestStoredKeyNotRead holds the same of one whose label the token does not tell at that moment.
func TestStoredKeyNotRead(t *testing.T) {
	m := shim.New(t, softhsm.New(t).Token)
	tok := storing(t, m)
	kms, err := trial.NewRSAKey(wrapping.RSA2048)
	if err != nil {
		t.Fatal(err)
	}
	wk, err := tok.LoadWrappingKey(t.Context(), kms.Public())
	if err != nil {
		t.Fatal(err)
	}
	m.Script(t, "C_DestroyObject: return CKR_DEVICE_ERROR times 1", "C_GetAttributeValue: return CKR_DEVICE_MEMORY times 1")
	if err := wk.Close(); err == nil || !strings.Contains(err.Error(), stays) {
		t.Errorf("Close of the wrapping key: %v", err)
	}
	if c := m.Counters(t); c.TokenObjects != 1 {
		t.Errorf("%d objects are stored: the test is about nothing", c.TokenObjects)
	}
	if err := tok.Close(); err != nil {
		t.Error(err)
	}
	if c := m.Counters(t); c.TokenObjects != 0 {
		t.Errorf("%d objects are stored after Close", c.TokenObjects)
	}
}

// TestDiscardLeavesOthers holds that where two processes make a key of the same label and id at the same moment, one of them loses its own at
// most: not that of the other when it is not told that its own is destroyed.
func TestDiscardLeavesOthers(t *testing.T) {
	m := shim.New(t, softhsm.New(t).Token)
	tok, err := hsm.Open(t.Context(), hsmtest.Config(t, m.Token), hsmtest.PIN(m.PIN))
	if err != nil {
		t.Fatal(err)
	}
	m.Script(t, "C_GenerateKey: hang times 1")
	ended := make(chan error, 1)
	go func() {
		_, err := tok.Generate(t.Context(), wrapping.SymmetricDefault, "k", []byte{1})
		ended <- err
	}()
	for deadline := time.Now().Add(30 * time.Second); m.Counters(t).Injected == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("C_GenerateKey was not called")
		}
	}
	hsmtest.GenerateAES(t, m.Token, "k", pkcs11.CKA_ID, []byte{1}) // the other process
	m.Script(t, "C_DestroyObject: answer lost CKR_DEVICE_ERROR times 1")
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "another process made a key of this label") || !strings.Contains(err.Error(), stays) {
		t.Errorf("Generate: %v", err)
	}
	keys, err := tok.Keys(t.Context())
	if err != nil || len(keys) != 1 {
		t.Errorf("%d keys are left, want the other's: %v", len(keys), err)
	}
	if c := m.Counters(t); c.Injected != 2 {
		t.Errorf("%d faults happened", c.Injected)
	}
	if err := tok.Close(); err != nil {
		t.Error(err)
	}
}

// TestLostKeyIsNamed holds that a key of which the token did not say that it was made is destroyed when no other process can have made it, and reported
// and left alone when its id is not of this process alone.
func TestLostKeyIsNamed(t *testing.T) {
	m := shim.New(t, softhsm.New(t).Token)
	tok, err := hsm.Open(t.Context(), hsmtest.Config(t, m.Token), hsmtest.PIN(m.PIN))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		label string
		id    []byte
		left  int
	}{{"drawn", nil, 0}, {"given", []byte{7}, 1}} {
		m.Script(t, "C_GenerateKey: answer lost CKR_DEVICE_ERROR times 1")
		_, err := tok.Generate(t.Context(), wrapping.SymmetricDefault, tt.label, tt.id)
		if err == nil || !strings.Contains(err.Error(), "CKR_DEVICE_ERROR") || strings.Contains(err.Error(), stays) != (tt.left > 0) {
			t.Errorf("%s: %v", tt.label, err)
		}
		if keys, err := tok.Keys(t.Context()); err != nil || len(keys) != tt.left {
			t.Errorf("%s: %d keys are left, want %d: %v", tt.label, len(keys), tt.left, err)
		}
	}
	if err := tok.Close(); err != nil {
		t.Error(err)
	}
}
