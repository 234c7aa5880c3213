package audit

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/mod/sumdb/note"
)

// Checkpoint is the tree at one moment. Source: C2SP, tlog-checkpoint.
type Checkpoint struct {
	Origin string // names the log
	Size   int64
	Root   Hash
	Time   time.Time
}

// Text is the checkpoint before it is signed.
func (c Checkpoint) Text() string {
	return fmt.Sprintf("%s\n%d\n%s\ntime %s\n", c.Origin, c.Size, c.Root, c.Time.UTC().Format(time.RFC3339))
}

// parseCheckpoint reads what Text writes.
func parseCheckpoint(text string) (c Checkpoint, err error) {
	lines := strings.Split(text, "\n")
	bad := errors.New("this is no checkpoint of an hsmbridge log")
	if len(lines) != 5 || lines[4] != "" {
		return c, bad
	}
	c.Origin = lines[0]
	if c.Size, err = strconv.ParseInt(lines[1], 10, 64); err != nil || c.Size < 0 {
		return c, bad
	}
	raw, err := base64.StdEncoding.DecodeString(lines[2])
	if err != nil || len(raw) != len(c.Root) {
		return c, bad
	}
	copy(c.Root[:], raw)
	at, ok := strings.CutPrefix(lines[3], "time ")
	if c.Time, err = time.Parse(time.RFC3339, at); err != nil || !ok {
		return c, bad
	}
	if c.Text() != text {
		return c, bad
	}
	return c, nil
}

// Signer signs with the audit key: ECDSA (ASN.1) or RSASSA-PKCS1-v1_5, over the SHA-256 of the message.
type Signer func(message []byte) (signature []byte, err error)

// Sign makes a signed note of a checkpoint. public is the key's DER SubjectPublicKeyInfo. What the signer gives is verified.
func (c Checkpoint) Sign(public []byte, sign Signer) (string, error) {
	key, err := NewKey(c.Origin, public)
	if err != nil {
		return "", err
	}
	out, err := note.Sign(&note.Note{Text: c.Text()}, &signer{key, sign})
	if err != nil {
		return "", fmt.Errorf("sign a checkpoint of the audit log: %w", err)
	}
	if _, err := key.Open(string(out)); err != nil {
		return "", fmt.Errorf("sign a checkpoint of the audit log: what the token signed does not verify: %w", err)
	}
	return string(out), nil
}

type signer struct {
	*Key
	sign Signer
}

// Sign is part of note.Signer.
func (s *signer) Sign(message []byte) ([]byte, error) { return s.sign(message) }

// Key verifies checkpoints of one log.
type Key struct {
	origin string
	public crypto.PublicKey
	der    []byte
}

// names says whether a log can have this name, which stands in lines of files and in front of signatures. Source: C2SP signed-note, key name.
func names(origin string) bool {
	not := func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) || r == '+' }
	return origin != "" && utf8.ValidString(origin) && !strings.ContainsFunc(origin, not) && !strings.Contains(origin, "-----")
}

// NewKey makes a key of a DER SubjectPublicKeyInfo: ECDSA, or RSA with 2048 bits at least. origin is the log's name, without spaces and "+".
func NewKey(origin string, der []byte) (*Key, error) {
	if !names(origin) {
		return nil, fmt.Errorf("%q is not the name of an audit log: there is a space, a '+' or a control character in it", origin)
	}
	public, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return nil, fmt.Errorf("the audit log's public key cannot be read: %w", err)
	}
	const least = 2048
	switch k := public.(type) {
	case *ecdsa.PublicKey:
	case *rsa.PublicKey:
		if k.N.BitLen() < least {
			return nil, fmt.Errorf("the audit log's RSA key has %d bits, and %d are the least", k.N.BitLen(), least)
		}
	default:
		return nil, fmt.Errorf("the audit log's public key is a %T: it has to be ECDSA or RSA", public)
	}
	return &Key{origin, public, der}, nil
}

// ParseKey reads a public key from PEM, as hsmbridge audit key prints it. origin is the log's name, empty: the one in the PEM's header line.
func ParseKey(text []byte, origin string) (*Key, error) {
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "PUBLIC KEY" {
		return nil, errors.New("this is not a public key in PEM (-----BEGIN PUBLIC KEY-----), as hsmbridge audit key prints it")
	}
	if before, _, ok := strings.Cut(string(text), "-----BEGIN"); ok && origin == "" {
		for line := range strings.Lines(before) {
			if o, ok := strings.CutPrefix(strings.TrimSpace(line), originLine); ok {
				origin = o
			}
		}
	}
	if origin == "" {
		return nil, errors.New("the file does not say of which log it is the key: its line " + strconv.Quote(originLine+"NAME") + " is missing")
	}
	return NewKey(origin, block.Bytes)
}

const originLine = "# hsmbridge audit log: "

// PEM is the key with the name of its log, for files.
func (k *Key) PEM() []byte {
	return append([]byte(originLine+k.origin+"\n"), pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: k.der})...)
}

// SHA256 is the SHA-256 of the DER SubjectPublicKeyInfo.
func (k *Key) SHA256() [32]byte { return sha256.Sum256(k.der) }

// Name is the log's name. It is part of note.Verifier.
func (k *Key) Name() string { return k.origin }

// KeyHash is the beginning of the SHA-256 of the DER SubjectPublicKeyInfo, as for ECDSA in C2SP signed-note. It is part of note.Verifier.
func (k *Key) KeyHash() uint32 {
	sum := k.SHA256()
	return binary.BigEndian.Uint32(sum[:4])
}

// Verify checks a signature. It is part of note.Verifier.
func (k *Key) Verify(message, sig []byte) bool {
	sum := sha256.Sum256(message)
	switch p := k.public.(type) {
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(p, sum[:], sig)
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(p, crypto.SHA256, sum[:], sig) == nil
	}
	return false
}

var errOtherKey = errors.New("the checkpoint is not signed by this key")

// Open checks a signed checkpoint and reads it.
func (k *Key) Open(signed string) (Checkpoint, error) {
	n, err := note.Open([]byte(signed), note.VerifierList(k))
	var unverified *note.UnverifiedNoteError
	switch {
	case errors.As(err, &unverified):
		return Checkpoint{}, errOtherKey
	case err != nil:
		return Checkpoint{}, fmt.Errorf("the checkpoint's signature is wrong: %w", err)
	}
	c, err := parseCheckpoint(n.Text)
	if err == nil && c.Origin != k.origin {
		return c, fmt.Errorf("the checkpoint is of the log %q and not of %q", c.Origin, k.origin)
	}
	return c, err
}

// openAny checks a checkpoint that one of several keys has signed: the key may have been replaced in the log's life.
func openAny(keys []*Key, signed string) (c Checkpoint, err error) {
	err = errors.New("no key was given")
	for _, k := range keys {
		if c, err = k.Open(signed); err == nil {
			return c, nil
		}
	}
	if len(keys) > 1 && errors.Is(err, errOtherKey) {
		err = errors.New("the checkpoint is not signed by one of these keys")
	}
	return c, err
}

// ReadUnsigned reads a checkpoint without checking who signed it.
func ReadUnsigned(signed string) (Checkpoint, error) {
	text, _, ok := bytes.Cut([]byte(signed), []byte("\n\n"))
	if !ok {
		return Checkpoint{}, errors.New("this is no signed checkpoint")
	}
	return parseCheckpoint(string(text) + "\n")
}
