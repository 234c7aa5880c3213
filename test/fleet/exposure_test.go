package fleet

import (
	"strings"
	"testing"
	"time"

	"hsmbridge/hsm/wrapping"
	"hsmbridge/kmsclient/kmsemu"
)

// A key that could leave the token past the configuration is reported when the token is opened: in the log and in the status. The managed key is not.
func TestExposedKeysAreReported(t *testing.T) {
	t.Parallel()
	w := newWorld(t, kmsemu.Options{})
	w.key("k", wrapping.HMAC256)
	w.token.Generate(t, "forgotten", "0f")
	p := w.start("one", "")
	p.settled()
	warnings := func() []string {
		s, err := p.client.Status(t.Context())
		if err != nil || len(s.Tokens) == 0 {
			t.Fatal(s, err)
		}
		return s.Tokens[0].Warnings
	}
	for end := time.Now().Add(30 * time.Second); len(warnings()) == 0; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("nothing is reported")
		}
	}
	// pkcs11-tool leaves it to SoftHSM, which lets the key do everything.
	got := warnings()
	if len(got) != 2 || !strings.Contains(got[0], `key "forgotten": CKA_WRAP and CKA_DECRYPT are both true`) || !strings.Contains(got[1], `key "forgotten": CKA_EXTRACTABLE is true`) {
		t.Errorf("%q", got)
	}
	if log := readFile(t, p.log); !strings.Contains(log, `forgotten\": CKA_EXTRACTABLE is true`) {
		t.Errorf("the log does not say it:\n%s", log)
	}
}
