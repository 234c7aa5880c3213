package approval_test

import (
	"bytes"
	"errors"
	"testing"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"hsmbridge/daemon/approval"
)

// kinds are the keys in files with which officers can sign.
var kinds = []struct {
	name string
	args []string
}{
	{"ed25519", []string{"-t", "ed25519"}},
	{"ecdsa-256", []string{"-t", "ecdsa", "-b", "256"}},
	{"ecdsa-384", []string{"-t", "ecdsa", "-b", "384"}},
	{"ecdsa-521", []string{"-t", "ecdsa", "-b", "521"}},
	{"rsa", []string{"-t", "rsa", "-b", "2048"}},
}

// What ssh-keygen signs counts, with each kind of key and each hash; over another text it does not.
func TestSSHKeygen(t *testing.T) {
	text := textOf(t, sample())
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			key := newKey(t, nil, k.args...)
			for _, hash := range []string{"sha512", "sha256"} {
				armored := key.sign(t, approval.Namespace, text, "-O", "hashalg="+hash)
				s, err := approval.ParseSignature(armored)
				if err != nil {
					t.Fatal(err)
				}
				if s.Hash != hash || s.Namespace != approval.Namespace || s.SHA256() != ssh.FingerprintSHA256(key) {
					t.Errorf("hash %s, namespace %s, key %s", s.Hash, s.Namespace, s.SHA256())
				}
				d, v := decideOne(t, approval.Policy{}, key.PublicKey, text, armored)
				if !d.Approved || d.Err() != nil || !v.Counts || v.Officer != "alice" || v.Hardware || v.Present || v.Verified {
					t.Errorf("%s: %+v", hash, d)
				}
				crlf := bytes.ReplaceAll(armored, []byte("\n"), []byte("\r\n"))
				if d, _ := decideOne(t, approval.Policy{}, key.PublicKey, text, crlf); !d.Approved {
					t.Errorf("%s, lines as Windows ends them: %s", hash, d.Message)
				}
				if _, v := decideOne(t, approval.Policy{RequireHardware: true}, key.PublicKey, text, armored); v.Reason != approval.NoHardware {
					t.Errorf("%s: a key in a file passes for hardware: %+v", hash, v)
				}
				other := sample()
				other.Key = "payments2"
				if _, v := decideOne(t, approval.Policy{}, key.PublicKey, textOf(t, other), armored); v.Reason != approval.OtherText {
					t.Errorf("%s, another text: %+v", hash, v)
				}
			}
		})
	}
}

// An agent's signature, through its socket, counts; ssh-keygen takes it too, so that both agree on what is signed.
func TestAgent(t *testing.T) {
	text := textOf(t, sample())
	client, env := startAgent(t)
	sign := func(t *testing.T, key ssh.PublicKey, flags agent.SignatureFlags) []byte {
		t.Helper()
		sig, err := client.SignWithFlags(key, approval.ToSign(approval.Namespace, text), flags)
		if err != nil {
			t.Fatal(err)
		}
		return approval.Armor(key, approval.Namespace, sig)
	}
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			key := newKey(t, nil, k.args...)
			mustRun(t, env, "", "ssh-add", "-q", key.file)
			flags := []agent.SignatureFlags{0}
			if k.name == "rsa" {
				flags = []agent.SignatureFlags{agent.SignatureFlagRsaSha256, agent.SignatureFlagRsaSha512}
			}
			for _, f := range flags {
				armored := sign(t, key.PublicKey, f)
				if d, _ := decideOne(t, approval.Policy{}, key.PublicKey, text, armored); !d.Approved {
					t.Errorf("flags %d: %s", f, d.Message)
				}
				if err := verify(t, key.Key, approval.Namespace, text, armored); err != nil {
					t.Errorf("flags %d: ssh-keygen refuses it: %v", f, err)
				}
			}
			// ssh-keygen finds the private half in the agent.
			public := sshKey{file: writeFile(t, "id.pub", []byte(line(key)+"\n")), env: env}
			armored := public.sign(t, approval.Namespace, text)
			if d, _ := decideOne(t, approval.Policy{}, key.PublicKey, text, armored); !d.Approved {
				t.Errorf("ssh-keygen through the agent: %s", d.Message)
			}
			// Ed25519 and RSA sign one text in one way: then the files are the same to the byte.
			if k.name == "ed25519" || k.name == "rsa" {
				if ours := sign(t, key.PublicKey, flags[len(flags)-1]); !bytes.Equal(ours, armored) {
					t.Errorf("Armor writes\n%s\nand ssh-keygen\n%s", ours, armored)
				}
			}
		})
	}
}

// An agent that is not asked for SHA-2 signs with SHA-1.
func TestAgentSHA1(t *testing.T) {
	text := textOf(t, sample())
	client, env := startAgent(t)
	key := newKey(t, nil, "-t", "rsa", "-b", "2048")
	mustRun(t, env, "", "ssh-add", "-q", key.file)
	sig, err := client.Sign(key.PublicKey, approval.ToSign(approval.Namespace, text))
	if err != nil {
		t.Fatal(err)
	}
	if sig.Format != ssh.KeyAlgoRSA {
		t.Fatalf("the agent signed with %s", sig.Format)
	}
	armored := approval.Armor(key.PublicKey, approval.Namespace, sig)
	d, v := decideOne(t, approval.Policy{}, key.PublicKey, text, armored)
	const want = "the signature is made with SHA-1 (ssh-rsa), which can be forged: sign with ssh-keygen -Y sign, or have the agent use rsa-sha2-512"
	if d.Approved || v.Message != want {
		t.Errorf("%+v", v)
	}
	if verify(t, key.Key, approval.Namespace, text, armored) == nil {
		t.Error("ssh-keygen takes it")
	}
}

// ssh-keygen signs with a certificate when it is given one. hsmbridge takes the officer's key only.
func TestCertificate(t *testing.T) {
	text := textOf(t, sample())
	ca, key := newKey(t, nil, "-t", "ed25519"), newKey(t, nil, "-t", "ed25519")
	mustRun(t, nil, "", "ssh-keygen", "-q", "-s", ca.file, "-I", "alice", "-n", "alice", key.file+".pub")
	armored := key.signAs(t, key.file+"-cert.pub", approval.Namespace, text)
	_, v := decideOne(t, approval.Policy{}, key.PublicKey, text, armored)
	if v.Reason != approval.NotASignature || v.Message != "the signature was made with a certificate; hsmbridge takes plain public keys only" {
		t.Errorf("%+v", v)
	}
	const want = "ssh-ed25519-cert-v01@openssh.com keys cannot approve: take one of ssh-ed25519, ecdsa-sha2-nistp256, ecdsa-sha2-nistp384, " +
		"ecdsa-sha2-nistp521, ssh-rsa, sk-ssh-ed25519@openssh.com, sk-ecdsa-sha2-nistp256@openssh.com"
	if _, err := approval.ParseKey(string(readFile(t, key.file+"-cert.pub"))); err == nil || err.Error() != want {
		t.Errorf("a certificate as an officer's key: %v", err)
	}
}

// RSA keys that ssh-keygen makes too short are no officers' keys.
func TestShortRSA(t *testing.T) {
	file := t.TempDir() + "/id"
	mustRun(t, nil, "", "ssh-keygen", "-q", "-N", "", "-t", "rsa", "-b", "1024", "-f", file)
	const want = "an RSA key needs 2048 bits to approve, and this one has 1024"
	if _, err := approval.ParseKey(string(readFile(t, file+".pub"))); err == nil || err.Error() != want {
		t.Error(err)
	}
}

// An officer's no, signed with ssh-keygen, says no to this request and this reason, and approves nothing.
func TestRejection(t *testing.T) {
	text := textOf(t, sample())
	key := newKey(t, nil, "-t", "ed25519")
	p := approval.Policy{Officers: []approval.Officer{officer("operator", key)}, Threshold: 1} // the requester may say no
	said, err := approval.RejectionText(text, "  not\nbefore the audit ")
	if err != nil {
		t.Fatal(err)
	}
	no := key.sign(t, approval.RejectionNamespace, said)
	v, err := p.Rejected(text, "not_before the audit", no)
	if err != nil || !v.Counts || v.Officer != "operator" {
		t.Errorf("%+v, %v", v, err)
	}
	other := sample()
	other.ID = "0000-0000-0000-0000"
	stranger := newKey(t, nil, "-t", "ed25519")
	for name, c := range map[string]struct {
		text    []byte
		why     string
		armored []byte
		reason  approval.Reason
		message string
	}{
		"another reason":    {text, "for ever", no, approval.OtherText, "the signature of operator is over another text"},
		"another request":   {textOf(t, other), "not_before the audit", no, approval.OtherText, "the signature of operator is over another text"},
		"another namespace": {text, "x", key.sign(t, approval.Namespace, said), approval.WrongNamespace, `the signature of operator is for the namespace "hsmbridge-approval" and not for "hsmbridge-rejection"`},
		"a stranger":        {text, "not_before the audit", stranger.sign(t, approval.RejectionNamespace, said), approval.NotAnOfficer, "the key " + ssh.FingerprintSHA256(stranger) + " is no officer's"},
		"no signature":      {text, "x", []byte("no"), approval.NotASignature, "this is not an SSH signature (-----BEGIN SSH SIGNATURE-----)"},
	} {
		v, err := p.Rejected(c.text, c.why, c.armored)
		if err != nil || v.Counts || v.Reason != c.reason || v.Message != c.message {
			t.Errorf("%s: %+v, %v", name, v, err)
		}
	}
	var format *approval.FormatError
	if _, err := p.Rejected([]byte("hello"), "x", no); !errors.As(err, &format) {
		t.Errorf("no request: %v", err)
	}
}
