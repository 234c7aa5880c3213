package main

import (
	"bytes"
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hsmbridge/kmsclient/kmsemu"
)

// TestAdoptInterrupted holds that an interruption is told with what was created, and that the same command again creates none twice.
func TestAdoptInterrupted(t *testing.T) {
	t.Setenv("AWS_ACCESS_KEY_ID", "x")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "x")
	emulator, err := kmsemu.New(kmsemu.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	aliases := 0
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.Header.Get("X-Amz-Target"), ".CreateAlias") {
			aliases++
			if aliases == 2 { // the second KMS key is there, its alias is not
				interrupt()
				panic(http.ErrAbortHandler) // no answer
			}
		}
		emulator.ServeHTTP(w, r)
	}))
	defer srv.Close()
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	config := file("hsmbridge.yaml", "kms: {endpoint: \""+srv.URL+"\"}\ntokens:\n  - {name: demo, module: /m.so, uri: \"pkcs11:token=demo\", pin_file: pin}\n")
	fleet := file("fleet.csv", "name,key_spec,expires,alias,regions\na,HMAC_256,90d,{name},eu-central-1\nb,HMAC_256,90d,{name},eu-central-1\nc,HMAC_256,90d,{name},eu-central-1\n")
	run := func(ctx context.Context) (int, string) {
		var out, errs bytes.Buffer
		code := (&app{out: &out, err: &errs}).run(ctx, []string{"-c", config, "adopt", fleet, "--create-kms-keys", "--append"})
		return code, errs.String()
	}
	code, said := run(ctx)
	const want = "hsmbridge: interrupted: 2 KMS keys created, and nothing was written; run the same command again: it finds what was created, and creates none twice\n"
	if code != exitInterrupted || !strings.HasSuffix(said, want) || strings.Contains(said, "imported") {
		t.Errorf("exit code %d\n%s", code, said)
	}
	code, said = run(t.Context())
	if code != exitDone || !strings.Contains(said, "3 keys, 3 new for the configuration, 1 KMS key created\n") || emulator.Count("CreateKey") != 3 {
		t.Errorf("exit code %d, %d KMS keys\n%s", code, emulator.Count("CreateKey"), said)
	}
}

// What the configuration would not take, or would not have, is said at once: a Region that kms.region excludes, and the alias of a key that it has already.
func TestAdoptSaysWhatIsLeftOut(t *testing.T) {
	t.Setenv("AWS_ACCESS_KEY_ID", "x")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "x")
	emulator, err := kmsemu.New(kmsemu.Options{})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(emulator)
	defer srv.Close()
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	config := file("hsmbridge.yaml", "kms: {endpoint: \""+srv.URL+"\", region: eu-central-1}\ntokens:\n  - {name: demo, module: /m.so, uri: \"pkcs11:token=demo\", pin_file: pin}\n")
	fleet := file("fleet.csv", "name,key_spec,expires,alias,regions\na,HMAC_256,90d,{name},eu-central-1\nb,HMAC_256,90d,,eu-central-1\n")
	run := func(args ...string) (int, string) {
		var out, errs bytes.Buffer
		code := (&app{out: &out, err: &errs}).run(t.Context(), append([]string{"-c", config, "adopt"}, args...))
		return code, errs.String()
	}
	const warning = "hsmbridge: warning: kms.region of the configuration is eu-central-1, and it takes no KMS keys in us-east-1: "
	if code, said := run("--discover", "--region", "us-east-1", "--region", "eu-central-1"); code != exitDone || !strings.Contains(said, warning) {
		t.Errorf("exit code %d\n%s", code, said)
	}
	if code, said := run("--discover", "--region", "eu-central-1"); code != exitDone || strings.Contains(said, "warning") {
		t.Errorf("exit code %d\n%s", code, said)
	}
	const note = "hsmbridge: note: no alias is set or looked at for what is in the configuration already: a\n"
	for _, had := range []bool{false, true} {
		if code, said := run(fleet, "--create-kms-keys", "--append"); code != exitDone || strings.Contains(said, note) != had {
			t.Errorf("exit code %d\n%s", code, said)
		}
	}
}
