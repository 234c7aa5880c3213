package approval_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"testing"

	"golang.org/x/crypto/ssh"

	"hsmbridge/daemon/approval"
)

// Keys of which the same are made in every run, so that what is said of them is the same: Ed25519 from a name.

const application = "ssh:"

func fileKey(name string) ssh.Signer {
	s, err := ssh.NewSignerFromKey(seed(name))
	if err != nil {
		panic(err)
	}
	return s
}

func signFile(key ssh.Signer, namespace string, text []byte) []byte {
	sig, err := key.Sign(nil, approval.ToSign(namespace, text))
	if err != nil {
		panic(err)
	}
	return approval.Armor(key.PublicKey(), namespace, sig)
}

// hardwareKey is an sk-ssh-ed25519 key.
func hardwareKey(name string) ssh.PublicKey {
	key, err := ssh.ParsePublicKey(ssh.Marshal(struct {
		Type string
		Key  []byte
		App  string
	}{ssh.KeyAlgoSKED25519, seed(name + "'s authenticator")[ed25519.PublicKeySize:], application}))
	if err != nil {
		panic(err)
	}
	return key
}

// signHardware signs as an authenticator does. Source: OpenSSH, PROTOCOL.u2f.
func signHardware(name string, flags byte, namespace string, text []byte) []byte {
	app, message := sha256.Sum256([]byte(application)), sha256.Sum256(approval.ToSign(namespace, text))
	state := binary.BigEndian.AppendUint32([]byte{flags}, 7)
	key := hardwareKey(name)
	return approval.Armor(key, namespace, &ssh.Signature{
		Format: key.Type(), Blob: ed25519.Sign(seed(name+"'s authenticator"), slices.Concat(app[:], state, message[:])), Rest: state,
	})
}

// certificate is one for a key in a file. Nobody signed it: that is not looked at.
func certificate(name string) *ssh.Certificate {
	return &ssh.Certificate{Key: public(name), SignatureKey: public("ca"), CertType: ssh.UserCert, Signature: &ssh.Signature{Format: ssh.KeyAlgoED25519, Blob: make([]byte, ed25519.SignatureSize)}}
}

func rsaKey(t testing.TB) ssh.Signer {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	s, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func signSHA1(t testing.TB, key ssh.Signer, namespace string, text []byte) []byte {
	t.Helper()
	s, ok := key.(ssh.AlgorithmSigner)
	if !ok {
		t.Fatalf("%T", key)
	}
	sig, err := s.SignWithAlgorithm(rand.Reader, approval.ToSign(namespace, text), ssh.KeyAlgoRSA)
	if err != nil {
		t.Fatal(err)
	}
	return approval.Armor(key.PublicKey(), namespace, sig)
}

// blob is what is in the armor, behind the magic. Source: OpenSSH, PROTOCOL.sshsig.
type blob struct {
	Version                                         uint32
	PublicKey, Namespace, Reserved, Hash, Signature string
}

const magic = "SSHSIG"

func withBlob(t testing.TB, raw []byte, change func(*blob)) []byte {
	t.Helper()
	var b blob
	if err := ssh.Unmarshal(raw[len(magic):], &b); err != nil {
		t.Fatal(err)
	}
	change(&b)
	return append([]byte(magic), ssh.Marshal(b)...)
}

func withSignature(t testing.TB, raw []byte, change func(*ssh.Signature)) []byte {
	t.Helper()
	return withBlob(t, raw, func(b *blob) {
		var s ssh.Signature
		if err := ssh.Unmarshal([]byte(b.Signature), &s); err != nil {
			t.Fatal(err)
		}
		change(&s)
		b.Signature = string(ssh.Marshal(s))
	})
}

// zerosInFront is an RSA key with zeros in front of its exponent: the same number, and another encoding.
func zerosInFront(key ssh.PublicKey) []byte {
	exponent := []byte{0, 0, 0, 3, 1, 0, 1}
	return bytes.Replace(key.Marshal(), exponent, []byte{0, 0, 0, 5, 0, 0, 1, 0, 1}, 1)
}
