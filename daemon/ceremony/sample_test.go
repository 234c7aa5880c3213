package ceremony_test

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"math/big"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hsmbridge/daemon/approval"
	"hsmbridge/daemon/audit"
	"hsmbridge/daemon/ceremony"
)

var now = time.Date(2030, 1, 31, 12, 0, 0, 0, time.UTC)

const (
	id  = "7K3M-9QXA-0B2C-D4EF"
	arn = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
)

// spki is an RSA public key that is the same in every run. Nobody has its private half.
func spki(name string, bits int) []byte {
	n := new(big.Int)
	for i := 0; n.BitLen() < bits; i++ {
		sum := sha256.Sum256([]byte(name + string(rune('a'+i))))
		n.Lsh(n, 256).Or(n, new(big.Int).SetBytes(sum[:]))
	}
	n.SetBit(n.Rsh(n, uint(n.BitLen()-bits)), 0, 1)
	der, err := x509.MarshalPKIXPublicKey(&rsa.PublicKey{N: n, E: 65537})
	if err != nil {
		panic(err)
	}
	return der
}

func sample() approval.Request {
	return approval.Request{
		ID: id, Purpose: approval.Import, AskedBy: "operator", AskedAt: now.Add(-time.Hour), ValidUntil: now.Add(22 * time.Hour), Why: "first import",
		Key: "payments", KeySpec: "SYMMETRIC_DEFAULT", Object: "pkcs11:object=payments;type=secret-key", Destination: arn, Action: "import",
		Algorithm: "RSAES_OAEP_SHA_256", WrappingSpec: "RSA_2048", Expires: "90d after the import", Proof: "material-id-match",
		ParametersValidTo: now.Add(23 * time.Hour), WrappingKeys: [][]byte{spki("one", 2048), spki("two", 2048)},
	}
}

func textOf(t testing.TB, q approval.Request) []byte {
	t.Helper()
	text, err := q.Text()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func tokens(t testing.TB) ceremony.Tokens {
	t.Helper()
	return ceremony.Tokens{
		Request: id, SHA256: ceremony.Digest(textOf(t, sample())), Endpoint: "https://kms.example", ValidTo: now.Add(23 * time.Hour), IDs: "id-1 id-2",
		Tokens: [][]byte{bytes.Repeat([]byte{1}, 600), bytes.Repeat([]byte{2}, 600)},
	}
}

func wrapped(t testing.TB) ceremony.Wrapped {
	t.Helper()
	q := sample()
	w := ceremony.Wrapped{
		Request: id, SHA256: ceremony.Digest(textOf(t, q)), Key: q.Key, At: now, HSM: "SoftHSM project SoftHSM v2", Serial: "0123456789abcdef", Firmware: "2.6",
		Material: "check value 1A2B3C", Algorithm: q.Algorithm, Mechanism: "CKM_RSA_PKCS_OAEP", Log: ceremony.Origin(id), Records: "9, root 7K3M-9QXA-0B2C-D4EF",
	}
	for i, der := range q.WrappingKeys {
		w.Keys = append(w.Keys, ceremony.WrappedKey{WrappingKey: approval.Fingerprint(der), Bytes: bytes.Repeat([]byte{byte(i + 3)}, 256)})
	}
	return w
}

// clock goes on by a second with each look.
func clock() func() time.Time {
	at := now
	return func() time.Time { at = at.Add(time.Second); return at }
}

// aLog is a room's log with every step.
func aLog(t testing.TB, dir string) (*ceremony.Log, string) {
	t.Helper()
	name := filepath.Join(dir, "payments-"+id+ceremony.LogExt)
	l, err := ceremony.OpenLog(name, id, "room", clock())
	if err != nil {
		t.Fatal(err)
	}
	step := audit.Step{Request: id, SHA256: ceremony.Digest(textOf(t, sample())), Person: "Ann Operator, William Witness"}
	add := func(kind audit.Kind, message string, more func(*audit.Step)) {
		t.Helper()
		s := step
		if more != nil {
			more(&s)
		}
		if err := l.Add(kind, "payments", arn, message, s); err != nil {
			t.Fatal(err)
		}
	}
	add("ceremony-open", "the session began", nil)
	add("ceremony-check", "the request was read, and its SHA-256 compared", nil)
	for _, o := range verdicts() {
		add("ceremony-check", "an officer's signature counts: "+o.Officer, func(s *audit.Step) { s.Detail, s.FileSHA = o.Key, strings.Repeat("0a", 32) })
	}
	w := wrapped(t)
	for _, k := range w.Keys {
		sum := sha256.Sum256(k.Bytes)
		add("ceremony-wrap", "the key is wrapped next", func(s *audit.Step) { s.Key, s.Mechanism = k.WrappingKey, w.Mechanism })
		add("ceremony-wrap", "the HSM wrapped the key, 256 bytes", func(s *audit.Step) { s.Key, s.FileSHA = k.WrappingKey, hex.EncodeToString(sum[:]) })
	}
	add("ceremony-write", "the wrapped key was written", nil)
	add("ceremony-end", "the key was wrapped", nil)
	return l, name
}

func verdicts() []approval.Verdict {
	return []approval.Verdict{
		{Officer: "alice", Key: "SHA256:AliceAliceAliceAliceAliceAliceAliceAliceAlic", Hardware: true, Present: true, Verified: true, Counts: true},
		{Officer: "bob", Key: "SHA256:BobBobBobBobBobBobBobBobBobBobBobBobBobBobB", Hardware: true, Present: true, Counts: true},
	}
}

func newRSA(t testing.TB, bits int) *rsa.PrivateKey {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func spkiOf(t testing.TB, k *rsa.PrivateKey) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(&k.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return der
}
