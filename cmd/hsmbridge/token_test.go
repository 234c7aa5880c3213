package main

import (
	"encoding/json"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/testscript"

	"hsmbridge/kmsclient"
	"hsmbridge/kmsclient/kmsemu"
	"hsmbridge/test/softhsm"
)

// kms is the KMS of one script.
type kms struct {
	server *kmsemu.Server
	client *kmsclient.Client
}

// TestTokenScripts runs testdata/token/*.txtar: the command with a real SoftHSM2 token and a KMS of the script's own.
//
// A script has the empty tokens "demo" and "other" in a store of its own, and in the environment MODULE, CONF (of
// SoftHSM2), PINFILE, OTHERPIN, WRONGPIN and ENDPOINT. Beside the commands of [TestScripts]:
//
//	kmskey SPEC NAME...    makes KMS keys and puts their ARNs into the environment variables
//	subst FILE...          replaces $NAME in files
//	cut OPERATION          the next request for the operation is lost before KMS does it
//	count OPERATION N      KMS was asked for the operation exactly N times
//	values FILE FIELD V... the lines of JSON in the file have these values in the field
//	same FILE A FILE B     field A of each line of JSON in the first file is field B of that line in the second
func TestTokenScripts(t *testing.T) {
	aws := map[string]string{
		"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true",
		"AWS_CONFIG_FILE": os.DevNull, "AWS_SHARED_CREDENTIALS_FILE": os.DevNull,
	}
	for name, value := range aws {
		t.Setenv(name, value)
	}
	var scripts sync.Map // of kms, by the script's directory
	of := func(ts *testscript.TestScript) kms {
		k, ok := scripts.Load(ts.Getenv("WORK"))
		if !ok {
			ts.Fatalf("the script has no KMS")
		}
		return k.(kms) //nolint:errcheck,forcetypeassert // nothing else is stored
	}
	testscript.Run(t, testscript.Params{
		Dir: filepath.Join("testdata", "token"),
		Setup: func(env *testscript.Env) error {
			server, err := kmsemu.New(kmsemu.Options{})
			if err != nil {
				return err
			}
			s := httptest.NewServer(server)
			env.Defer(s.Close)
			client, err := kmsclient.New(t.Context(), kmsclient.Config{Region: "eu-central-1", Endpoint: s.URL})
			if err != nil {
				return err
			}
			scripts.Store(env.WorkDir, kms{server, client})
			tok := softhsm.New(t, "demo", "other")
			wrong := filepath.Join(t.TempDir(), "wrong")
			if err := os.WriteFile(wrong, []byte("not-the-pin"), 0o400); err != nil {
				return err
			}
			for name, value := range aws {
				env.Setenv(name, value)
			}
			env.Setenv("MODULE", tok.Module)
			env.Setenv("CONF", tok.Environment["SOFTHSM2_CONF"])
			env.Setenv("PINFILE", tok.PINFile(t))
			env.Setenv("OTHERPIN", tok.Others[0].PINFile(t))
			env.Setenv("WRONGPIN", wrong)
			env.Setenv("ENDPOINT", s.URL)
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"exits": exits,
			"json":  jsonValues,
			"kmskey": func(ts *testscript.TestScript, _ bool, args []string) {
				for _, name := range args[1:] {
					k, err := of(ts).client.CreateKey(t.Context(), kmsclient.CreateKeyRequest{KeySpec: args[0]})
					ts.Check(err)
					ts.Setenv(name, k.ARN)
				}
			},
			"subst": func(ts *testscript.TestScript, _ bool, args []string) {
				for _, name := range args {
					ts.Check(os.WriteFile(ts.MkAbs(name), []byte(os.Expand(ts.ReadFile(name), ts.Getenv)), 0o600))
				}
			},
			"cut": func(ts *testscript.TestScript, _ bool, args []string) {
				of(ts).server.AddFault(kmsemu.Fault{Operation: args[0], Cut: "before"})
			},
			"count": func(ts *testscript.TestScript, _ bool, args []string) {
				if got := of(ts).server.Count(args[0]); strconv.Itoa(got) != args[1] {
					ts.Fatalf("KMS was asked for %s %d times, want %s", args[0], got, args[1])
				}
			},
			"values": func(ts *testscript.TestScript, _ bool, args []string) {
				if diff := cmp.Diff(args[2:], fieldOf(ts, args[0], args[1])); diff != "" {
					ts.Fatalf("%s of %s (-want +got):\n%s", args[1], args[0], diff)
				}
			},
			"same": func(ts *testscript.TestScript, _ bool, args []string) {
				a, b := fieldOf(ts, args[0], args[1]), fieldOf(ts, args[2], args[3])
				if diff := cmp.Diff(a, b); diff != "" || len(a) == 0 || slices.Contains(a, "") {
					ts.Fatalf("%s of %s and %s of %s (-first +second):\n%s", args[1], args[0], args[3], args[2], diff)
				}
			},
		},
	})
}

// fieldOf is a text field of each line of JSON; a line without the field is an error.
func fieldOf(ts *testscript.TestScript, file, field string) []string {
	var out []string
	for line := range strings.Lines(ts.ReadFile(file)) {
		var object map[string]any
		ts.Check(json.Unmarshal([]byte(line), &object))
		text, ok := object[field].(string)
		if !ok {
			ts.Fatalf("%s is not a text in %s", field, line)
		}
		out = append(out, text)
	}
	return out
}
