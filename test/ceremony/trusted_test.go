package ceremony_test

import (
	"bytes"
	"crypto/rsa"
	"crypto/x509"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/miekg/pkcs11"

	"hsmbridge/daemon/ceremony"
	"hsmbridge/hsm/hsmtest"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/test/e2e"
)

func derOf(t *testing.T, k *rsa.PrivateKey) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(&k.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// TestTrusted takes a key with CKA_WRAP_WITH_TRUSTED through a ceremony, to KMS: the security officer trusts the wrapping key for that wrap
// only, and nothing of it is left in the HSM, also after a kill -9 in the wrap.
func TestTrusted(t *testing.T) {
	emu := e2e.StartEmulator(t)
	kmsKey := emu.CreateKey(emu.Client(), wrapping.SymmetricDefault)
	w := newWorld(t, ", endpoint: "+emu.Endpoint, "database: x.db\ncontrol: {socket: c.sock}\nmetrics: {listen: none}\n", kmsKey)
	t.Run("key", func(t *testing.T) { // the module is unloaded at its end
		hsmtest.Open(t, w.tok.Token)
		hsmtest.GenerateAES(t, w.tok.Token, "payments", pkcs11.CKA_WRAP_WITH_TRUSTED, true)
	})
	before := w.objects()
	if out, code := w.run("hsmbridge", "-c", w.config, "ceremony", "fetch", "payments", "--algorithm", "RSAES_OAEP_SHA_1", "--out", w.dir); code != 0 {
		t.Fatalf("exit code %d\n%s", code, out)
	}
	requests, err := filepath.Glob(filepath.Join(w.dir, "*"+ceremony.RequestExt))
	if err != nil || len(requests) != 1 {
		t.Fatalf("%v, %v", requests, err)
	}
	request := requests[0]
	so := w.write("so-pin", []byte(w.tok.SOPIN))
	matches(t, w.all(4, request), `CKA_WRAP_WITH_TRUSTED is true: .*\(hsmceremony wrap --trusted\)`)
	wrong := w.write("wrong-pin", []byte("not the PIN of the SO"))
	matches(t, w.all(5, request, "--trusted", "--so-pin-file", wrong), `CKR_PIN_INCORRECT`)
	if after := w.objects(); after != before {
		t.Errorf("after a refused PIN the HSM holds\n%s", after)
	}
	k := w.wrap(request, "--trusted", "--so-pin-file", so)
	if k.until(w.questions(request), "Type the name of the key") == "" {
		t.Fatal(k.shown())
	}
	if _, err := k.in.Write([]byte("payments\n")); err != nil {
		t.Fatal(err)
	}
	for !strings.Contains(k.shown(), "The SECURITY OFFICER of the HSM logs in") {
		select {
		case <-k.ended:
			t.Fatal(k.shown())
		default:
		}
	}
	k.signal(syscall.SIGKILL)
	if after := w.objects(); after != before {
		t.Errorf("after kill -9 the HSM holds\n%s", after)
	}
	name := strings.TrimSuffix(request, ceremony.RequestExt)
	if _, err := os.Stat(name + ceremony.WrappedExt); err != nil { // nearly always
		out := w.all(0, request, "--trusted", "--so-pin-file", so)
		matches(t, out, `note +it may be wrapped only under a key that the security officer`)
		matches(t, out, `ATTENTION`)
	}
	if after := w.objects(); after != before {
		t.Errorf("the HSM held\n%s\nand holds\n%s", before, after)
	}
	if b := w.read(name + ceremony.LogExt); bytes.Contains(b, []byte(w.tok.SOPIN)) || bytes.Contains(b, []byte(w.tok.PIN)) {
		t.Error("a PIN is in the log")
	}
	out, code := w.run("hsmbridge", "-c", w.config, "ceremony", "upload", name+ceremony.WrappedExt)
	if code != 0 || !strings.Contains(out, "material-id-match") {
		t.Errorf("exit code %d\n%s", code, out)
	}
}
