package softhsm_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"
	"github.com/rogpeppe/go-internal/testscript"

	"hsmbridge/hsm/hsmtest"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/kmsclient"
	"hsmbridge/test/e2e"
	"hsmbridge/test/loopback"
	"hsmbridge/test/softhsm"
)

// TestScripts runs testdata/*.txtar: the real binaries as a user calls them, good and bad.
//
// A script has one SoftHSM2 store with the tokens "demo" and "other", an emulator of its own, and in the
// environment: MODULE, CONF (of SoftHSM2), PINFILE, ENDPOINT and a place where nobody listens, DOWN. Token demo holds aes,
// hmac (HMAC_256), ec (P-384), stay (not extractable), trusted (wrap with trusted), and twin, twice.
//
//	kmskey SPEC NAME   makes a KMS key and puts its ARN into the environment variable NAME
//	aws ARGS           the AWS CLI: aws kms ARGS
//	control PATH JSON  drives the emulator
//	subst FILE...      replaces $NAME in files
//	count OP N         the emulator was asked for OP exactly N times
func TestScripts(t *testing.T) {
	tok := softhsm.New(t, "demo", "other")
	fill(t, tok)
	pinFile := tok.PINFile(t)
	wrongPIN := filepath.Join(t.TempDir(), "wrong")
	if err := os.WriteFile(wrongPIN, []byte("000000000000"), 0o400); err != nil {
		t.Fatal(err)
	}
	type world struct {
		emu    *e2e.Emulator
		client *kmsclient.Client
	}
	worlds := map[string]world{}
	testscript.RunT(serial{t}, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			emu := e2e.StartEmulator(t)
			w := world{emu, emu.Client()}
			worlds[env.WorkDir] = w
			for _, kv := range e2e.Environ() {
				if strings.HasPrefix(kv, "AWS_") {
					env.Vars = append(env.Vars, kv)
				}
			}
			env.Setenv("PATH", e2e.Binaries(t)+string(os.PathListSeparator)+os.Getenv("PATH"))
			env.Setenv("HOME", os.Getenv("HOME"))
			env.Setenv("MODULE", tok.Module)
			env.Setenv("CONF", tok.Environment["SOFTHSM2_CONF"])
			env.Setenv("PINFILE", pinFile)
			env.Setenv("WRONGPIN", wrongPIN)
			env.Setenv("ENDPOINT", emu.Endpoint)
			env.Setenv("DOWN", "http://"+loopback.Refused(t))
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"kmskey": func(ts *testscript.TestScript, _ bool, args []string) {
				w := worlds[ts.Getenv("WORK")]
				ts.Setenv(args[1], w.emu.CreateKey(w.client, wrapping.KeySpec(args[0])))
			},
			"control": func(ts *testscript.TestScript, _ bool, args []string) {
				worlds[ts.Getenv("WORK")].emu.ControlRaw(args[0], args[1])
			},
			"aws": func(ts *testscript.TestScript, _ bool, args []string) {
				worlds[ts.Getenv("WORK")].emu.AWS(args...)
			},
			"subst": func(ts *testscript.TestScript, _ bool, args []string) {
				for _, name := range args {
					path := ts.MkAbs(name)
					ts.Check(os.WriteFile(path, []byte(os.Expand(ts.ReadFile(name), ts.Getenv)), 0o600))
				}
			},
			"count": func(ts *testscript.TestScript, _ bool, args []string) {
				if got := worlds[ts.Getenv("WORK")].emu.Count(args[0]); got != args[1] {
					ts.Fatalf("%s was asked for %s times, want %s", args[0], got, args[1])
				}
			},
		},
	})
}

// serial runs scripts one after another: they share a token, and SoftHSM answers CKR_GENERAL_ERROR now and then when
// several processes log in to one at the same moment.
type serial struct{ *testing.T }

// Run is a subtest.
func (s serial) Run(name string, f func(testscript.T)) {
	s.T.Run(name, func(t *testing.T) { f(serial{t}) })
}

// Parallel does nothing.
func (serial) Parallel() {}

// Verbose is the test flag.
func (serial) Verbose() bool { return testing.Verbose() }

// fill makes the keys that the scripts use.
func fill(t *testing.T, tok softhsm.Token) {
	t.Helper()
	h := hsmtest.Open(t, tok.Token)
	for label, spec := range map[string]wrapping.KeySpec{"aes": wrapping.SymmetricDefault, "hmac": wrapping.HMAC256, "ec": wrapping.ECCNISTP384} {
		if _, err := h.Generate(t.Context(), spec, label, nil); err != nil {
			t.Fatal(err)
		}
	}
	hsmtest.GenerateAES(t, tok.Token, "stay", pkcs11.CKA_EXTRACTABLE, false)
	hsmtest.GenerateAES(t, tok.Token, "trusted", pkcs11.CKA_WRAP_WITH_TRUSTED, true)
	hsmtest.GenerateAES(t, tok.Token, "twin", pkcs11.CKA_EXTRACTABLE, true)
	hsmtest.GenerateAES(t, tok.Token, "twin", pkcs11.CKA_EXTRACTABLE, true)
}
