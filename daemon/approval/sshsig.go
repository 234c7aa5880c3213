package approval

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"
)

// Namespaces of signatures: one that approves can never be taken for one that rejects, or for one made for another program.
const (
	Namespace          = "hsmbridge-approval"
	RejectionNamespace = "hsmbridge-rejection"
)

// The form of an SSH signature. Source: OpenSSH, PROTOCOL.sshsig.
const (
	sigMagic   = "SSHSIG"
	sigBegin   = "-----BEGIN SSH SIGNATURE-----"
	sigEnd     = "-----END SSH SIGNATURE-----"
	sigVersion = 1
	sigWidth   = 70
	maxSig     = 16 << 10
)

// Signature is an SSH signature as ssh-keygen -Y sign writes it.
type Signature struct {
	Key       ssh.PublicKey
	Namespace string
	Hash      string // sha256 or sha512
	sig       *ssh.Signature
}

type sigBlob struct {
	Version   uint32
	PublicKey string
	Namespace string
	Reserved  string
	Hash      string
	Signature string
}

// errNotSignature says that bytes are no SSH signature.
var errNotSignature = errors.New("this is not an SSH signature (-----BEGIN SSH SIGNATURE-----)")

// ParseSignature reads an armoured SSH signature.
func ParseSignature(armored []byte) (Signature, error) {
	text := strings.TrimSpace(string(armored))
	if len(armored) > maxSig {
		return Signature{}, fmt.Errorf("%w: it has %d bytes", errNotSignature, len(armored))
	}
	body, ok := strings.CutPrefix(text, sigBegin)
	if body, ok2 := strings.CutSuffix(body, sigEnd); ok && ok2 {
		raw, err := base64.StdEncoding.Strict().DecodeString(strings.NewReplacer("\n", "", "\r", "").Replace(body))
		if err != nil {
			return Signature{}, fmt.Errorf("%w: it is broken: %w", errNotSignature, err)
		}
		return parseBlob(raw)
	}
	return Signature{}, errNotSignature
}

func parseBlob(raw []byte) (Signature, error) {
	rest, ok := bytes.CutPrefix(raw, []byte(sigMagic))
	var b sigBlob
	if !ok {
		return Signature{}, fmt.Errorf("%w: it is broken", errNotSignature)
	}
	if err := ssh.Unmarshal(rest, &b); err != nil {
		return Signature{}, fmt.Errorf("%w: it is broken: %w", errNotSignature, err)
	}
	if b.Version != sigVersion {
		return Signature{}, fmt.Errorf("%w: it has version %d, and %d is known", errNotSignature, b.Version, sigVersion)
	}
	key, err := ssh.ParsePublicKey([]byte(b.PublicKey))
	if err != nil {
		return Signature{}, fmt.Errorf("%w: its public key cannot be read: %w", errNotSignature, err)
	}
	s := Signature{Key: key, Namespace: b.Namespace, Hash: b.Hash, sig: &ssh.Signature{}}
	if err := ssh.Unmarshal([]byte(b.Signature), s.sig); err != nil {
		return Signature{}, fmt.Errorf("%w: it is broken: %w", errNotSignature, err)
	}
	_, certificate := key.(*ssh.Certificate)
	switch {
	case certificate:
		return Signature{}, errors.New("the signature was made with a certificate; hsmbridge takes plain public keys only")
	case s.sig.Format == ssh.KeyAlgoRSA:
		return Signature{}, errors.New("the signature is made with SHA-1 (ssh-rsa), which can be forged: sign with ssh-keygen -Y sign, or have the agent use rsa-sha2-512")
	case s.Hash != "sha512" && s.Hash != "sha256":
		return Signature{}, fmt.Errorf("the signature is over a hash %q, and sha512 and sha256 are known", OneLine(s.Hash))
	case len(s.sig.Rest) > 0 && !hardware(key), !bytes.Equal(s.blob(), raw):
		return Signature{}, fmt.Errorf("%w: it has bytes that nothing signs", errNotSignature)
	}
	return s, nil
}

// blob is the one encoding of a signature. What could stand in another beside it would not be signed.
func (s Signature) blob() []byte {
	return append([]byte(sigMagic), ssh.Marshal(sigBlob{
		Version: sigVersion, PublicKey: string(s.Key.Marshal()), Namespace: s.Namespace, Hash: s.Hash, Signature: string(ssh.Marshal(s.sig)),
	})...)
}

// ToSign is what the key itself signs for a text in a namespace, hashed with SHA-512.
func ToSign(namespace string, text []byte) []byte {
	sum := sha512.Sum512(text)
	return toSign(namespace, "sha512", sum[:])
}

func toSign(namespace, hash string, sum []byte) []byte {
	return append([]byte(sigMagic), ssh.Marshal(struct{ Namespace, Reserved, Hash, Sum string }{namespace, "", hash, string(sum)})...)
}

// Armor writes a signature over [ToSign] as ssh-keygen would.
func Armor(key ssh.PublicKey, namespace string, sig *ssh.Signature) []byte {
	raw := Signature{Key: key, Namespace: namespace, Hash: "sha512", sig: sig}.blob()
	var b bytes.Buffer
	b.WriteString(sigBegin + "\n")
	for line := range slices.Chunk([]byte(base64.StdEncoding.EncodeToString(raw)), sigWidth) {
		b.Write(line)
		b.WriteByte('\n')
	}
	b.WriteString(sigEnd + "\n")
	return b.Bytes()
}

// Flags of a FIDO authenticator. Source: OpenSSH, PROTOCOL.u2f; W3C Web Authentication, 6.1.
const (
	flagPresent  = 1 << 0
	flagVerified = 1 << 2
)

// hardware says whether the key is in a FIDO authenticator.
func hardware(key ssh.PublicKey) bool {
	return key.Type() == ssh.KeyAlgoSKED25519 || key.Type() == ssh.KeyAlgoSKECDSA256
}

// flags are those that the authenticator signed; 0 for other keys.
func (s Signature) flags() byte {
	if !hardware(s.Key) || len(s.sig.Rest) == 0 {
		return 0
	}
	return s.sig.Rest[0]
}

// SHA256 is the fingerprint of the signing key as ssh-keygen -l shows it.
func (s Signature) SHA256() string { return ssh.FingerprintSHA256(s.Key) }

// over says whether the signature is one over the text, in its own namespace.
func (s Signature) over(text []byte) bool {
	var sum []byte
	switch s.Hash {
	case "sha512":
		h := sha512.Sum512(text)
		sum = h[:]
	case "sha256":
		h := sha256.Sum256(text)
		sum = h[:]
	default:
		return false
	}
	return s.Key.Verify(toSign(s.Namespace, s.Hash, sum), s.sig) == nil
}
