package softhsm_test

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"

	"hsmbridge/hsm"
	"hsmbridge/hsm/hsmtest"
	"hsmbridge/hsm/pkcs11uri"
	"hsmbridge/hsm/quirks"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/test/softhsm"
	"hsmbridge/test/token"
)

func ptr[T any](v T) *T { return &v }

// withQuirks opens the token with overridden quirks. At the end neither session objects nor wrapping public keys may be left.
func withQuirks(t *testing.T, tok token.Token, o quirks.Override) *hsm.Token {
	t.Helper()
	c := hsmtest.Config(t, tok)
	c.Quirks = o
	open, err := hsm.Open(t.Context(), c, hsmtest.PIN(tok.PIN))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := open.Close(); err != nil {
			t.Error(err)
		}
	})
	return open
}

func leftovers(t *testing.T, open *hsm.Token) []string {
	t.Helper()
	found, err := open.Leftovers(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(found)
	return found
}

func rsaPublic(t *testing.T) *rsa.PublicKey {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return &k.PublicKey
}

// TestTokenPublicKey holds that on a token which takes wrapping public keys as token objects only, the same comes out as with session
// objects, and that each is destroyed whatever happens.
func TestTokenPublicKey(t *testing.T) {
	tok := softhsm.New(t).Token
	open := withQuirks(t, tok, quirks.Override{TokenPublicKey: ptr(true)})
	none := func(after string) {
		t.Helper()
		if found := leftovers(t, open); len(found) > 0 {
			t.Errorf("after %s there are still %v", after, found)
		}
	}
	caps, err := open.Probe(t.Context(), wrapping.SymmetricDefault)
	if err != nil {
		t.Fatal(err)
	}
	none("a probe")
	plans := wrapping.Select(wrapping.SymmetricDefault, caps, wrapping.Policy{}).Plans
	if len(plans) == 0 || plans[0].Algorithm != wrapping.OAEPSHA1 {
		t.Fatalf("chosen: %+v", plans)
	}
	key, err := open.Generate(t.Context(), wrapping.SymmetricDefault, "k", nil)
	if err != nil {
		t.Fatal(err)
	}
	plan, pub := plans[0], rsaPublic(t)
	plan.WrappingKeySpec = wrapping.RSA2048
	if out, err := open.Wrap(t.Context(), key, pub, plan); err != nil || len(out) != 256 {
		t.Errorf("Wrap: %d bytes, %v", len(out), err)
	}
	none("a wrap")
	refused := plan
	refused.Algorithm = wrapping.OAEPSHA256
	if _, err := open.Wrap(t.Context(), key, pub, refused); err == nil {
		t.Error("SoftHSM wrapped with SHA-256")
	}
	none("a wrap that the token refused")

	wk, err := open.LoadWrappingKey(t.Context(), pub)
	if err != nil {
		t.Fatal(err)
	}
	if found := leftovers(t, open); len(found) != 1 || len(found[0]) > 40 {
		t.Errorf("while it is loaded: %q", found)
	}
	if err := wk.Close(); err != nil {
		t.Error(err)
	}
	none("a loaded key was closed")
	if n, err := open.SessionObjects(t.Context()); err != nil || n != 0 {
		t.Errorf("%d session objects, %v", n, err)
	}
	if _, err := open.WrapTrusted(t.Context(), nil, nil, pkcs11uri.URI{Object: "k"}, pub, plan); err == nil || !strings.Contains(err.Error(), "nothing was wrapped") {
		t.Errorf("WrapTrusted: %v", err)
	}
}

// TestTokenPublicKeyOutlivesSession holds that a wrapping public key whose session was lost is destroyed by its label.
func TestTokenPublicKeyOutlivesSession(t *testing.T) {
	tok := softhsm.New(t).Token
	open := withQuirks(t, tok, quirks.Override{TokenPublicKey: ptr(true)})
	wk, err := open.LoadWrappingKey(t.Context(), rsaPublic(t))
	if err != nil {
		t.Fatal(err)
	}
	rawSlot(t, tok, func(c *pkcs11.Ctx, slot uint) {
		if err := c.CloseAllSessions(slot); err != nil { // somebody else's doing: sessions and login are gone
			t.Fatal(err)
		}
	})
	_ = wk.Close()
	again := withQuirks(t, tok, quirks.Override{TokenPublicKey: ptr(true)})
	if found := leftovers(t, again); len(found) > 0 {
		t.Errorf("still there: %v", found)
	}
}

// rawSlot gives the token's slot in a module that is already initialised in this process.
func rawSlot(t *testing.T, tok token.Token, f func(c *pkcs11.Ctx, slot uint)) {
	t.Helper()
	c := pkcs11.New(tok.Module)
	if c == nil {
		t.Fatal("the module cannot be loaded")
	}
	defer c.Destroy()
	slots, err := c.GetSlotList(true)
	if err != nil {
		t.Fatal(err)
	}
	for _, slot := range slots {
		if info, err := c.GetTokenInfo(slot); err == nil && strings.TrimRight(info.Label, " \x00") == tok.Label {
			f(c, slot)
			return
		}
	}
	t.Fatalf("there is no token %s", tok.Label)
}

// holder is what a child process gets to know: it loads a wrapping public key, says so, and waits for its end.
type holder struct {
	Config hsm.Config
	PIN    string
}

const holderVariable = "HSMBRIDGE_TEST_HOLDER"

// TestHolder is the child process of TestSweep; by itself it does nothing.
func TestHolder(t *testing.T) {
	file := os.Getenv(holderVariable)
	if file == "" {
		return
	}
	text, err := os.ReadFile(file) //nolint:gosec // the test that starts this one names it
	if err != nil {
		t.Fatal(err)
	}
	var h holder
	if err := json.Unmarshal(text, &h); err != nil {
		t.Fatal(err)
	}
	open, err := hsm.Open(t.Context(), h.Config, hsmtest.PIN(h.PIN))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := open.LoadWrappingKey(t.Context(), rsaPublic(t)); err != nil {
		t.Fatal(err)
	}
	_, _ = os.Stdout.WriteString("loaded\n")
	select {}
}

// hold starts a process that has a wrapping public key in the token, and gives the function that kills it.
func hold(t *testing.T, tok token.Token) (kill func()) {
	t.Helper()
	c := hsmtest.Config(t, tok)
	c.Quirks.TokenPublicKey = ptr(true)
	text, err := json.Marshal(holder{c, tok.PIN})
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.CreateTemp(tok.Dir, "holder-*")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(text); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), os.Args[0], "-test.run", "^TestHolder$", "-test.v")
	cmd.Env = append(os.Environ(), holderVariable+"="+f.Name())
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	killed := false
	kill = func() {
		if !killed {
			killed = true
			_ = cmd.Process.Kill() // SIGKILL
			_ = cmd.Wait()
		}
	}
	t.Cleanup(kill)
	var said []string
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if said = append(said, lines.Text()); lines.Text() == "loaded" {
			return kill
		}
	}
	t.Fatalf("the child said: %s", strings.Join(said, "\n"))
	return nil
}

// TestSweep holds that the wrapping public key of a process that was killed is destroyed at the next open, and that of one that lives, and
// everything that hsmbridge did not make, is not touched.
func TestSweep(t *testing.T) {
	tok := softhsm.New(t).Token
	kill := hold(t, tok)
	hold(t, tok) // lives on
	first := withQuirks(t, tok, quirks.Override{TokenPublicKey: ptr(true)})
	if found := leftovers(t, first); len(found) != 2 || len(first.Warnings()) > 0 {
		t.Fatalf("while both live: %v, %v", found, first.Warnings())
	}
	stranger := "hsmbridge-wk-of-somebody-else"
	storePublic(t, tok, stranger)
	storePublic(t, tok, "backup")
	before := leftovers(t, first)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	kill()

	// A token without the quirk is left as it is.
	if found := leftovers(t, withQuirks(t, tok, quirks.Override{})); !slices.Equal(found, before) {
		t.Errorf("without the quirk: %v, want %v", found, before)
	}
	open := withQuirks(t, tok, quirks.Override{TokenPublicKey: ptr(true)})
	found := leftovers(t, open)
	if len(found) != 2 || !slices.Contains(found, stranger) {
		t.Errorf("after the sweep: %v; the living process's and the stranger's have to stay", found)
	}
	if w := open.Warnings(); len(w) != 1 || !strings.HasPrefix(w[0], "1 wrapping public keys that an earlier process left") {
		t.Errorf("warnings: %q", w)
	}
	if listed := tok.Tool(t, "--list-objects", "--type", "pubkey"); !strings.Contains(listed, "backup") {
		t.Errorf("a key that is not hsmbridge's is gone:\n%s", listed)
	}
}

// storePublic stores a public RSA key of a label, as another program would.
func storePublic(t *testing.T, tok token.Token, label string) {
	t.Helper()
	rawSlot(t, tok, func(c *pkcs11.Ctx, slot uint) {
		s, err := c.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
		if err != nil {
			t.Fatal(err)
		}
		defer c.CloseSession(s) //nolint:errcheck // a test's
		_, err = c.CreateObject(s, []*pkcs11.Attribute{
			pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_PUBLIC_KEY), pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_RSA),
			pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true), pkcs11.NewAttribute(pkcs11.CKA_LABEL, label), pkcs11.NewAttribute(pkcs11.CKA_WRAP, true),
			pkcs11.NewAttribute(pkcs11.CKA_MODULUS, rsaPublic(t).N.Bytes()), pkcs11.NewAttribute(pkcs11.CKA_PUBLIC_EXPONENT, []byte{1, 0, 1}),
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}

// TestPINFormat holds that a PIN of the wrong form costs no try and is not said.
func TestPINFormat(t *testing.T) {
	tok := softhsm.New(t).Token
	c := hsmtest.Config(t, tok)
	c.Quirks.PINFormat = quirks.PINUserPassword
	_, err := hsm.Open(t.Context(), c, hsmtest.PIN(tok.PIN))
	var e *hsm.Error
	if !errors.As(err, &e) || e.CKR() != hsm.PINUnavailable || !strings.Contains(err.Error(), "no login was tried") || strings.Contains(err.Error(), tok.PIN) {
		t.Errorf("Open: %v", err)
	}
	// SoftHSM shows CKF_USER_PIN_COUNT_LOW after a wrong PIN; the right one is taken, in the same process.
	open := withQuirks(t, tok, quirks.Override{})
	if open.PINTriesLow() {
		t.Error("a try was spent")
	}
}

// TestProtectedPath holds that no PIN is asked for where it is typed at the device.
func TestProtectedPath(t *testing.T) {
	tok := softhsm.New(t).Token
	c := hsmtest.Config(t, tok)
	c.Quirks.ProtectedPath = ptr(true)
	_, err := hsm.Open(t.Context(), c, func(context.Context, wrapping.TokenIdentity) ([]byte, error) {
		t.Error("a PIN was asked for")
		return nil, nil
	})
	var e *hsm.Error
	if !errors.As(err, &e) || e.Op != "C_Login" { // SoftHSM has no such path: it refuses a login without a PIN
		t.Errorf("Open: %v", err)
	}
}

// TestReadOnlySessions holds that a wrap needs no read-write session on this token, and that what does need one says so.
func TestReadOnlySessions(t *testing.T) {
	tok := softhsm.New(t).Token
	tok.Generate(t, "k", "01")
	open := withQuirks(t, tok, quirks.Override{ReadOnlySessions: ptr(true)})
	key, err := open.Find(t.Context(), pkcs11uri.URI{Object: "k"})
	if err != nil {
		t.Fatal(err)
	}
	caps, err := open.Probe(t.Context(), wrapping.SymmetricDefault)
	if err != nil {
		t.Fatal(err)
	}
	plan := wrapping.Select(wrapping.SymmetricDefault, caps, wrapping.Policy{}).Plans[0]
	plan.WrappingKeySpec = wrapping.RSA2048
	if _, err := open.Wrap(t.Context(), key, rsaPublic(t), plan); err != nil {
		t.Error(err)
	}
	if _, err := open.Generate(t.Context(), wrapping.SymmetricDefault, "new", nil); err == nil || !strings.Contains(err.Error(), "CKR_SESSION_READ_ONLY") {
		t.Errorf("Generate: %v", err)
	}
	c := hsmtest.Config(t, tok)
	c.Quirks = quirks.Override{Family: "cloudhsm", ReadOnlySessions: ptr(true)}
	if _, err := hsm.Open(t.Context(), c, hsmtest.PIN(tok.PIN)); err == nil || !strings.Contains(err.Error(), "no login was tried") {
		t.Errorf("read-only sessions on a family that has none: %v", err)
	}
}

// TestVendorMechanisms holds that a vendor's mechanisms are candidates like any other: tried, judged by what comes out, and listed.
func TestVendorMechanisms(t *testing.T) {
	tok := softhsm.New(t).Token
	open := withQuirks(t, tok, quirks.Override{Family: "cloudhsm", PINFormat: quirks.PINAny, MaxSessions: 2, PublicKeyAttributes: []quirks.Attribute{{Name: "CKA_ENCRYPT", Type: pkcs11.CKA_ENCRYPT, Value: true}}})
	caps, err := open.Probe(t.Context(), wrapping.ECCNISTP384)
	if err != nil {
		t.Fatal(err)
	}
	tried := map[string]int{}
	for _, tr := range caps.Trials {
		if tr.Mechanism.Type >= pkcs11.CKM_VENDOR_DEFINED {
			tried[tr.Mechanism.Name]++
			if tr.Outcome != wrapping.Failed || !strings.Contains(tr.Reason, "CKR_") {
				t.Errorf("%+v", tr)
			}
		}
	}
	if len(tried) != 3 {
		t.Errorf("tried: %v", tried)
	}
	if plans := wrapping.Select(wrapping.ECCNISTP384, caps, wrapping.Policy{}).Plans; len(plans) == 0 || plans[0].Mechanism.Name != "CKM_AES_KEY_WRAP_PAD" {
		t.Errorf("chosen: %+v", plans)
	}
	listed, err := open.Mechanisms(t.Context())
	if err != nil || !slices.ContainsFunc(listed, func(m hsm.MechanismInfo) bool { return m.Type == 0x8000216F && !m.Listed }) {
		t.Errorf("listed: %+v, %v", listed, err)
	}
	if q := open.Quirks(); q.Family != "cloudhsm" || q.MaxSessions != 2 {
		t.Errorf("quirks: %+v", q)
	}
}

// TestCannotWrapIsSaid holds that a family that cannot wrap is named at the start.
func TestCannotWrapIsSaid(t *testing.T) {
	tok := softhsm.New(t).Token
	if w := withQuirks(t, tok, quirks.Override{Family: "nethsm"}).Warnings(); len(w) != 1 || !strings.Contains(w[0], "Nitrokey NetHSM cannot wrap") {
		t.Errorf("warnings: %q", w)
	}
	open := withQuirks(t, tok, quirks.Override{})
	if q := open.Quirks(); q.Family != "softhsm2" || len(open.Warnings()) > 0 {
		t.Errorf("%+v, %q", q, open.Warnings())
	}
	if l := open.Library(); l.Version != "2.6" || l.Manufacturer != "SoftHSM" {
		t.Errorf("library: %+v", l)
	}
}
