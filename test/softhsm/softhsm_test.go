package softhsm_test

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/pkcs11"

	"hsmbridge/test/softhsm"
	"hsmbridge/test/token"
)

func TestTokenHoldsKeys(t *testing.T) {
	tok := softhsm.New(t, "alpha", "beta")
	beta := tok.Others[0]
	tok.Generate(t, "in-alpha", "01")
	if got := tok.Tool(t, "--list-objects", "--type", "secrkey"); !strings.Contains(got, "in-alpha") {
		t.Errorf("alpha does not list its key:\n%s", got)
	}
	if got := beta.Tool(t, "--list-objects", "--type", "secrkey"); strings.Contains(got, "in-alpha") {
		t.Errorf("beta lists alpha's key:\n%s", got)
	}
}

func TestTwoStoresDoNotMeet(t *testing.T) {
	one, two := softhsm.New(t, "same"), softhsm.New(t, "same")
	one.Generate(t, "in-one", "01")
	if got := two.Tool(t, "--list-objects", "--type", "secrkey"); strings.Contains(got, "in-one") {
		t.Errorf("the second store lists the first's key:\n%s", got)
	}
	if one.PIN == two.PIN || one.Serial == two.Serial {
		t.Errorf("PIN or serial number of two tokens are equal: %s, %s", one.Serial, two.Serial)
	}
}

// The package comment and Add promise this of the module: one store at a time, read anew at each C_Initialize.
func TestStoreIsReadAtInitialize(t *testing.T) {
	first, second := softhsm.New(t, "a", "b"), softhsm.New(t, "c")
	p := pkcs11.New(first.Module)
	if p == nil {
		t.Fatalf("load %s", first.Module)
	}
	defer p.Destroy()

	first.Setenv(t)
	initialize(t, p)
	want(t, p, "a", "b")
	first.Add(t, "added")
	want(t, p, "a", "b")
	finalize(t, p)

	initialize(t, p)
	want(t, p, "a", "added", "b")
	finalize(t, p)

	second.Setenv(t)
	initialize(t, p)
	want(t, p, "c")
	finalize(t, p)
}

func TestSameLabelTwice(t *testing.T) {
	tok := softhsm.New(t, "twin", "twin")
	if tok.Serial == tok.Others[0].Serial {
		t.Errorf("two tokens have the serial number %s", tok.Serial)
	}
}

func TestPINFile(t *testing.T) {
	tok := softhsm.New(t)
	path := tok.PINFile(t)
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode() != 0o400 {
		t.Errorf("mode of the PIN file: %v, want 0400", info.Mode())
	}
	pin, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(pin) != tok.PIN {
		t.Error("the PIN file does not hold the PIN")
	}
}

func TestNothingIsLeft(t *testing.T) {
	var dir string
	before := token.Files(t, "/dev/shm", "/var/lib/softhsm")
	t.Run("use", func(t *testing.T) {
		tok := softhsm.New(t)
		tok.Generate(t, "key", "01")
		tok.PINFile(t)
		dir = tok.Dir
	})
	if left := token.Files(t, dir); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if diff := cmp.Diff(before, token.Files(t, "/dev/shm", "/var/lib/softhsm")); diff != "" {
		t.Errorf("files of the machine changed (-before +after):\n%s", diff)
	}
}

func initialize(t *testing.T, p *pkcs11.Ctx) {
	t.Helper()
	if err := p.Initialize(); err != nil {
		t.Fatalf("C_Initialize: %v", err)
	}
}

func finalize(t *testing.T, p *pkcs11.Ctx) {
	t.Helper()
	if err := p.Finalize(); err != nil {
		t.Fatalf("C_Finalize: %v", err)
	}
}

// want compares the labels of the initialised tokens that the module lists. SoftHSM always lists
// one more slot, for the next token.
func want(t *testing.T, p *pkcs11.Ctx, labels ...string) {
	t.Helper()
	slots, err := p.GetSlotList(true)
	if err != nil {
		t.Fatalf("C_GetSlotList: %v", err)
	}
	var got []string
	for _, slot := range slots {
		info, err := p.GetTokenInfo(slot)
		if err != nil {
			t.Fatalf("C_GetTokenInfo: %v", err)
		}
		if info.Flags&pkcs11.CKF_TOKEN_INITIALIZED != 0 {
			got = append(got, info.Label)
		}
	}
	slices.Sort(got)
	if diff := cmp.Diff(labels, got); diff != "" {
		t.Errorf("tokens (-want +got):\n%s", diff)
	}
}
