package main

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"hsmbridge/daemon/approval"
	"hsmbridge/daemon/ceremony"
)

// TestPeople holds that a slip in the first step may be mended, three tries for each name, and that the next sessions say when and by whom the ceremony was
// begun, and which session was the last.
func TestPeople(t *testing.T) {
	at := time.Date(2030, 1, 31, 12, 0, 0, 0, time.UTC)
	file := filepath.Join(t.TempDir(), "payments-X"+ceremony.LogExt)
	for _, tt := range []struct{ typed, people, stop, says string }{
		{"", "", "nobody answers: the input has ended", ""},
		{"\n\n\nAnn\n", "", "two different people have to be here", "A name is missing. Look again; type stop to end here."},
		{"Ann\nann\nANN\n\n", "", "two different people have to be here", "ann is the person who operates, and two different people have to be here. Look again"},
		{"Ann\nStop\n", "", `"Stop" is not "a name", so the ceremony stops here`, ""},
		{"\nAnn  Operator\nann operator\n\nNo, Will\n", "Ann Operator, No Will", "", "A name is missing"},
		{"yes\n", "Ann Operator, No Will", "", "This ceremony was begun at 2030-01-31T12:05:00Z by Ann Operator, No Will. It goes on; what was"},
		{"no\nCleo\nDan\n", "Cleo, Dan", "", "begun at 2030-01-31T12:05:00Z by Ann Operator, No Will. Its last session, of 2, began at 2030-01-31T12:06:00Z by Ann Operator, No Will. It goes on"},
		{"yes\n", "Cleo, Dan", "", "begun at 2030-01-31T12:05:00Z by Ann Operator, No Will. Its last session, of 3, began at 2030-01-31T12:07:00Z by Cleo, Dan. It goes on"},
	} {
		at = at.Add(time.Minute)
		now := func() time.Time { return at }
		l, err := ceremony.OpenLog(file, "", "room", now)
		if err != nil {
			t.Fatal(err)
		}
		var out strings.Builder
		a := &app{in: strings.NewReader(tt.typed), out: &out}
		s := &session{screens: a.screens(1), app: a, room: ceremony.Room{Log: l, Now: now}, q: approval.Request{ParametersValidTo: at.Add(time.Hour), ValidUntil: at.Add(time.Hour)}}
		err = s.people(t.Context())
		if s.room.People != tt.people || (err == nil) != (tt.stop == "") || err != nil && err.Error() != tt.stop {
			t.Errorf("%q: %q, %v", tt.typed, s.room.People, err)
		}
		if got := strings.Join(strings.Fields(out.String()), " "); !strings.Contains(got, tt.says) {
			t.Errorf("%q: it shows %q", tt.typed, got)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestSigner holds that the screen names whose signature does not count, and why.
func TestSigner(t *testing.T) {
	_, _, request := roomFiles(t)
	text, err := os.ReadFile(request)
	if err != nil {
		t.Fatal(err)
	}
	sign := func(name, namespace string, text []byte) ([]byte, ssh.PublicKey) {
		t.Helper()
		seed := sha256.Sum256([]byte(name))
		key, err := ssh.NewSignerFromKey(ed25519.NewKeyFromSeed(seed[:]))
		if err != nil {
			t.Fatal(err)
		}
		sig, err := key.Sign(rand.Reader, approval.ToSign(namespace, text))
		if err != nil {
			t.Fatal(err)
		}
		return approval.Armor(key.PublicKey(), namespace, sig), key.PublicKey()
	}
	good, alice := sign("alice", approval.Namespace, text)
	file, _ := sign("alice", "file", text)
	other, _ := sign("alice", approval.Namespace, []byte("another text"))
	stranger, key := sign("mallory", approval.Namespace, text)
	strange, _ := sign("mallory", "file", text)
	fingerprint := ssh.FingerprintSHA256(key)
	policy := approval.Policy{Threshold: 1, Officers: []approval.Officer{{Name: "alice", Keys: []approval.Key{{PublicKey: alice}}}}}
	for _, tt := range []struct {
		text     []byte
		who, why string
	}{
		{good, "alice", ""},
		{file, "alice", `the signature of alice is for the namespace "file" and not for "hsmbridge-approval": sign with ssh-keygen -Y sign -n hsmbridge-approval`},
		{other, "alice", "the signature of alice is over another text: another request, or a file that was changed on the way"},
		{stranger, fingerprint, "the key " + fingerprint + " is no officer's"},
		{strange, fingerprint, "the key " + fingerprint + ` is no officer's; and the signature is for the namespace "file" and not for "hsmbridge-approval"`},
		{[]byte("x"), "a.sig", "this is not an SSH signature (-----BEGIN SSH SIGNATURE-----)"},
	} {
		d, err := policy.Decide(text, [][]byte{tt.text}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if who, why := signer(policy, d.Verdicts[0], signature{"a.sig", tt.text}); who != tt.who || why != tt.why {
			t.Errorf("got %q, %q; want %q, %q", who, why, tt.who, tt.why)
		}
	}
}
