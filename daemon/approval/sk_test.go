package approval_test

import (
	"path/filepath"
	"strings"
	"testing"

	"hsmbridge/daemon/approval"
)

// Keys in an authenticator count when it was touched, and when it asked for its PIN where that is required. The authenticator is
// software; ssh-keygen and its helper are real.
func TestAuthenticator(t *testing.T) {
	text := textOf(t, sample())
	lib := authenticator(t)
	verified := approval.Policy{RequireHardware: true, RequireUserVerification: true}
	for _, kind := range []string{"ed25519-sk", "ecdsa-sk"} {
		touch := newKey(t, []string{"SSH_SK_PROVIDER=" + lib}, "-t", kind)
		withPIN := newKey(t, touch.env, "-t", kind, "-O", "verify-required")
		noTouch := newKey(t, touch.env, "-t", kind, "-O", "no-touch-required")
		for _, c := range []struct {
			name   string
			key    sshKey
			flags  string // what the authenticator signs; empty: what it should
			policy approval.Policy
			reason approval.Reason
			want   string
		}{
			{"touched", touch, "", approval.Policy{RequireHardware: true}, "", ""},
			{"touched, and the PIN", withPIN, "", verified, "", ""},
			{"it says touched and verified", touch, "5", verified, "", ""},
			{"other flags beside them", touch, "0x45", verified, "", ""},
			{"the key needs no touch", noTouch, "", approval.Policy{}, approval.NoTouch, "the authenticator of alice was not touched for this signature"},
			{"the authenticator was not touched", touch, "0", approval.Policy{RequireHardware: true}, approval.NoTouch, "the authenticator of alice was not touched for this signature"},
			{"the PIN alone is no touch", withPIN, "4", verified, approval.NoTouch, "the authenticator of alice was not touched for this signature"},
			{"no PIN, and none is required", touch, "1", approval.Policy{RequireHardware: true}, "", ""},
			{"no PIN, and one is required", touch, "", verified, approval.NoVerification, "the authenticator of alice did not ask for its PIN or a fingerprint, which is required: make the key with ssh-keygen -O verify-required"},
			{"the authenticator did not ask", withPIN, "1", verified, approval.NoVerification, "the authenticator of alice did not ask for its PIN or a fingerprint, which is required: make the key with ssh-keygen -O verify-required"},
		} {
			t.Run(kind+", "+c.name, func(t *testing.T) {
				key := c.key
				if c.flags != "" {
					key.env = append([]string{"SK_FLAGS=" + c.flags}, key.env...)
				}
				armored := key.sign(t, approval.Namespace, text)
				d, v := decideOne(t, c.policy, key.PublicKey, text, armored)
				if !v.Hardware || d.Approved != (c.want == "") || v.Reason != c.reason || v.Message != c.want {
					t.Errorf("%+v", v)
				}
			})
		}
	}
}

// Without the PIN the authenticator does not sign at all.
func TestAuthenticatorPIN(t *testing.T) {
	key := newKey(t, []string{"SSH_SK_PROVIDER=" + authenticator(t)}, "-t", "ed25519-sk", "-O", "verify-required")
	file := writeFile(t, "request.txt", textOf(t, sample()))
	if out, err := run(t, key.env, "1111\n", "ssh-keygen", "-Y", "sign", "-n", approval.Namespace, "-f", key.file, file); err == nil {
		t.Errorf("signed with a wrong PIN: %s", out)
	}
}

// The flags and the application are part of what is signed: a signature in which they were changed is none.
func TestAuthenticatorForged(t *testing.T) {
	text := textOf(t, sample())
	key := newKey(t, []string{"SSH_SK_PROVIDER=" + authenticator(t), "SK_FLAGS=1"}, "-t", "ed25519-sk")
	armored := key.sign(t, approval.Namespace, text)
	blob := unarmor(t, armored)
	for name, at := range map[string]int{"user verification added": len(blob) - 5, "the counter": len(blob) - 1} {
		forged := append([]byte{}, blob...)
		forged[at] |= 0xf4
		_, v := decideOne(t, approval.Policy{RequireUserVerification: true}, key.PublicKey, text, rearmor(forged))
		if v.Counts || v.Reason != approval.OtherText {
			t.Errorf("%s: %+v", name, v)
		}
	}
	other := newKey(t, key.env, "-t", "ed25519-sk", "-O", "application=ssh:other")
	if _, v := decideOne(t, approval.Policy{}, other.PublicKey, text, other.sign(t, approval.Namespace, text)); !v.Counts {
		t.Errorf("another application: %+v", v)
	}
}

// A key in an authenticator signs through ssh-agent as well.
func TestAuthenticatorAgent(t *testing.T) {
	text := textOf(t, sample())
	lib := authenticator(t)
	key := newKey(t, []string{"SSH_SK_PROVIDER=" + lib}, "-t", "ecdsa-sk")
	client, env := startAgent(t, "-P", filepath.Dir(lib)+"/*")
	mustRun(t, env, "", "ssh-add", "-q", "-S", lib, key.file)
	sig, err := client.Sign(key.PublicKey, approval.ToSign(approval.Namespace, text))
	if err != nil {
		t.Fatal(err)
	}
	armored := approval.Armor(key.PublicKey, approval.Namespace, sig)
	d, v := decideOne(t, approval.Policy{RequireHardware: true}, key.PublicKey, text, armored)
	if !d.Approved || !v.Present || v.Verified {
		t.Errorf("%+v", d)
	}
	if err := verify(t, key.Key, approval.Namespace, text, armored); err != nil {
		t.Errorf("ssh-keygen refuses it: %v", err)
	}
	if !strings.HasPrefix(line(key), "sk-ecdsa-sha2-nistp256@openssh.com ") {
		t.Error(line(key))
	}
}
