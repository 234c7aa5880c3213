package ceremony_test

import (
	"crypto/rand"
	"regexp"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"

	"hsmbridge/daemon/approval"
	"hsmbridge/daemon/ceremony"
	"hsmbridge/hsm/hsmtest"
)

// hmacWorld makes a room whose key is an HMAC key.
func hmacWorld(t *testing.T) (w *world, request string) {
	t.Helper()
	w = newWorld(t, "", "", arn)
	w.write("hsmbridge.yaml", []byte(strings.ReplaceAll(string(w.read(w.config)), "SYMMETRIC_DEFAULT", "HMAC_256")))
	request, _ = w.requestOf("room", func(q *approval.Request) { q.KeySpec = "HMAC_256" })
	return w, request
}

// An HMAC key is told by its HMAC of a fixed message, which is what was said of it when it was made.
func TestHMACKeyIsTold(t *testing.T) {
	w, request := hmacWorld(t)
	out, code := w.run("hsmbridge", "-c", w.config, "keys", "generate", "payments")
	made := regexp.MustCompile(`HMAC of a fixed message ([0-9a-f]{32}): keep it with the HSM's papers`).FindStringSubmatch(strings.Join(strings.Fields(out), " "))
	if code != 0 || made == nil {
		t.Fatalf("exit code %d:\n%s", code, out)
	}
	shown := w.all(0, request, "--dry-run")
	matches(t, shown, `which key HMAC of a fixed message `+made[1]+` The request does not say which key it has to be\. Compare with the record`)
	matches(t, string(w.read(strings.TrimSuffix(request, ceremony.RequestExt)+ceremony.LogExt)), `the key object was compared.*payments HMAC of a fixed message `+made[1])
}

// One that makes no HMAC can be wrapped, and the screen says that nothing tells it.
func TestHMACKeyIsNotTold(t *testing.T) {
	w, request := hmacWorld(t)
	t.Run("key", func(t *testing.T) { // the module is unloaded at its end
		hsmtest.Open(t, w.tok.Token)
		value := make([]byte, 32)
		_, _ = rand.Read(value)
		hsmtest.Create(t, w.tok.Token, []*pkcs11.Attribute{
			pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_GENERIC_SECRET),
			pkcs11.NewAttribute(pkcs11.CKA_VALUE, value), pkcs11.NewAttribute(pkcs11.CKA_LABEL, "payments"), pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true),
			pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, true), pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, true), pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, true),
			pkcs11.NewAttribute(pkcs11.CKA_SIGN, false),
		})
	})
	shown := w.all(0, request)
	matches(t, shown, `key spec HMAC_256 size 256 bits The HSM tells nothing of the key itself by which it could be compared: its label, CKA_ID and size have to be those`)
	if strings.Contains(shown, "which key") {
		t.Errorf("something tells the key:\n%s", shown)
	}
}
