package audit_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hsmbridge/daemon/audit"
)

const origin = "hsmbridge/test-01020304"

var at = time.Date(2027, 1, 2, 3, 4, 5, 0, time.UTC)

// pair is a key as a token has it: DER SubjectPublicKeyInfo, and signatures over the SHA-256 (CKM_ECDSA as ASN.1, CKM_RSA_PKCS with DigestInfo).
type pair struct {
	der  []byte
	sign audit.Signer
}

func newPair(t *testing.T, private crypto.Signer) pair {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(private.Public())
	if err != nil {
		t.Fatal(err)
	}
	return pair{der, func(message []byte) ([]byte, error) {
		sum := sha256.Sum256(message)
		return private.Sign(rand.Reader, sum[:], crypto.SHA256)
	}}
}

func ecKey(t *testing.T) pair {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return newPair(t, k)
}

func rsaKey(t *testing.T, bits int) pair {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return newPair(t, k)
}

func (p pair) key(t *testing.T) *audit.Key {
	t.Helper()
	k, err := audit.NewKey(origin, p.der)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func sign(t *testing.T, p pair, size int64, root [32]byte) string {
	t.Helper()
	note, err := audit.Checkpoint{Origin: origin, Size: size, Root: root, Time: at.Add(time.Duration(size) * time.Second)}.Sign(p.der, p.sign)
	if err != nil {
		t.Fatal(err)
	}
	return note
}

func TestCheckpoint(t *testing.T) {
	t.Parallel()
	for name, p := range map[string]pair{"ec": ecKey(t), "rsa": rsaKey(t, 2048)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			root := merkle([][]byte{[]byte("one")})
			note := sign(t, p, 1, root)
			c, err := p.key(t).Open(note)
			if err != nil || c.Size != 1 || c.Root != root || c.Origin != origin || !c.Time.Equal(at.Add(time.Second)) {
				t.Fatalf("got %+v, %v", c, err)
			}
			if plain, err := audit.ReadUnsigned(note); err != nil || plain != c {
				t.Errorf("read without a key it is %+v, %v", plain, err)
			}
			for what, bad := range map[string]string{
				"another size":        strings.Replace(note, "\n1\n", "\n2\n", 1),
				"another root":        strings.Replace(note, c.Root.String(), merkleText("other"), 1),
				"another time":        strings.Replace(note, "time 2027", "time 2028", 1),
				"another log":         strings.Replace(note, origin+"\n", origin+"x\n", 1),
				"no signature":        strings.SplitAfter(note, "\n\n")[0],
				"a line more":         strings.Replace(note, "\n\n", "\nmore\n\n", 1),
				"nothing":             "",
				"half":                note[:len(note)/2],
				"a signature changed": flip(note),
			} {
				if bad == note {
					t.Fatalf("%s: nothing was changed", what)
				}
				if _, err := p.key(t).Open(bad); err == nil {
					t.Errorf("%s was taken", what)
				}
			}
			if _, err := ecKey(t).key(t).Open(note); err == nil || err.Error() != "the checkpoint is not signed by this key" {
				t.Errorf("with another key: %v", err)
			}
			openssl(t, p, note)
		})
	}
}

func merkleText(s string) string {
	h := sha256.Sum256([]byte(s))
	return base64.StdEncoding.EncodeToString(h[:])
}

// flip changes a bit in the middle of the signature.
func flip(note string) string {
	i := strings.LastIndexByte(note, ' ')
	raw, err := base64.StdEncoding.DecodeString(strings.TrimSpace(note[i+1:]))
	if err != nil {
		return note
	}
	raw[len(raw)/2] ^= 1
	return note[:i+1] + base64.StdEncoding.EncodeToString(raw) + "\n"
}

// openssl verifies a checkpoint as docs/audit.md says that anyone can.
func openssl(t *testing.T, p pair, note string) {
	t.Helper()
	text, sig, _ := strings.Cut(note, "\n\n")
	raw, err := base64.StdEncoding.DecodeString(strings.Fields(sig)[2])
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name string, b []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	args := []string{"dgst", "-sha256", "-verify", write("key.pem", p.key(t).PEM()), "-signature", write("sig", raw[4:]), write("text", []byte(text+"\n"))}
	if out, err := exec.CommandContext(t.Context(), "openssl", args...).CombinedOutput(); err != nil {
		t.Errorf("openssl: %v\n%s", err, out)
	}
}

// TestSignerIsChecked: what a token signs is verified before it is kept.
func TestSignerIsChecked(t *testing.T) {
	t.Parallel()
	p, other := ecKey(t), ecKey(t)
	c := audit.Checkpoint{Origin: origin, Size: 1, Time: at}
	if _, err := c.Sign(p.der, other.sign); err == nil || !strings.Contains(err.Error(), "does not verify") {
		t.Errorf("signed by another key: %v", err)
	}
	broken := errors.New("CKR_DEVICE_ERROR")
	if _, err := c.Sign(p.der, func([]byte) ([]byte, error) { return nil, broken }); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
}

func TestKeys(t *testing.T) {
	t.Parallel()
	p := ecKey(t)
	text := p.key(t).PEM()
	k, err := audit.ParseKey(text, "")
	if err != nil || k.Name() != origin || k.SHA256() != p.key(t).SHA256() {
		t.Fatalf("got %v, %v", k, err)
	}
	if _, err := audit.ParseKey(text[bytes.IndexByte(text, '\n')+1:], ""); err == nil || !strings.Contains(err.Error(), "does not say of which log") {
		t.Errorf("without its log: %v", err)
	}
	if k, err := audit.ParseKey(text[bytes.IndexByte(text, '\n')+1:], "hsmbridge/x"); err != nil || k.Name() != "hsmbridge/x" {
		t.Errorf("with the log beside it: %v", err)
	}
	edPublic, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(edPublic)
	if err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct{ text, want string }{
		"nothing":       {"", "is not a public key in PEM"},
		"a certificate": {"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "is not a public key in PEM"},
		"rubbish":       {"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "cannot be read"},
		"Ed25519":       {string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})), "it has to be ECDSA or RSA"},
		"a short RSA":   {string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: rsaKey(t, 1024).der})), "2048 are the least"},
	} {
		if _, err := audit.ParseKey([]byte(c.text), origin); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", what, err, c.want)
		}
	}
}

// TestProof: one record, the path and the checkpoint are enough, and nothing of them may be changed.
func TestProof(t *testing.T) {
	t.Parallel()
	l := newLog(t, 11, 11)
	for n := int64(1); n <= 11; n++ {
		p, err := audit.Prove(n, l.records[n-1], l.notes[11], l.hashes.read)
		if err != nil {
			t.Fatal(err)
		}
		text, err := p.Text()
		if err != nil || !audit.IsProof(text) {
			t.Fatal(err)
		}
		back, err := audit.ParseProof(text)
		if err != nil {
			t.Fatal(err)
		}
		r, c, err := back.Verify(l.pair.key(t))
		if err != nil || r.N != n || c.Size != 11 {
			t.Fatalf("record %d: %+v, %+v, %v", n, r, c, err)
		}
		if _, _, err := back.Verify(ecKey(t).key(t), l.pair.key(t)); err != nil {
			t.Errorf("with one more key: %v", err)
		}
		if _, _, err := back.Verify(); err == nil {
			t.Error("verified without a key")
		}
		if _, _, err := back.Verify(ecKey(t).key(t)); err == nil {
			t.Error("verified with another key")
		}
		for i := range back.Hashes {
			bad := back
			bad.Hashes = append([]audit.Hash(nil), back.Hashes...)
			bad.Hashes[i][0] ^= 1
			if _, _, err := bad.Verify(l.pair.key(t)); err == nil {
				t.Errorf("record %d: hash %d of the path was changed", n, i)
			}
		}
		other := back
		other.N = n%11 + 1
		if _, _, err := other.Verify(l.pair.key(t)); err == nil {
			t.Errorf("record %d was proved as %d", n, other.N)
		}
		other.Record = l.records[other.N-1]
		if _, _, err := other.Verify(l.pair.key(t)); err == nil {
			t.Errorf("the path of record %d proves %d", n, other.N)
		}
		for what, bad := range map[string]string{
			"a blank":         " " + string(text),
			"no end":          strings.TrimSuffix(string(text), "\n"),
			"two":             string(text) + string(text),
			"another version": strings.Replace(string(text), "proof v1", "proof v2", 1),
			"a broken hash":   strings.Replace(string(text), `"proof":["`, `"proof":["A`, 1),
		} {
			if _, err := audit.ParseProof([]byte(bad)); err == nil {
				t.Errorf("%s was taken", what)
			}
		}
	}
}
