package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"hsmbridge/daemon/approval"
)

// signer makes SSH signatures with an officer's key: through ssh-keygen with a key file (which asks for a passphrase, a touch or a PIN
// where the key needs one), or through ssh-agent.
type signer struct {
	keyFile string   // private or public; empty: the agent
	known   []string // fingerprints of the officers' keys; empty: not known
}

func (s signer) sign(ctx context.Context, namespace string, text []byte) ([]byte, error) {
	if s.keyFile != "" {
		return s.keygen(ctx, namespace, text)
	}
	return s.agent(ctx, namespace, text)
}

// keygen signs with ssh-keygen -Y sign. The text goes through a file of its own: ssh-keygen asks on the terminal.
func (s signer) keygen(ctx context.Context, namespace string, text []byte) (sig []byte, err error) {
	dir, err := os.MkdirTemp("", "hsmbridge-sign-")
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	file := filepath.Join(dir, "text")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	c := exec.CommandContext(ctx, "ssh-keygen", "-Y", "sign", "-f", s.keyFile, "-n", namespace, file)
	c.Stdin = os.Stdin
	var said bytes.Buffer
	c.Stderr = &said
	if isTerminal(os.Stderr) {
		c.Stderr = os.Stderr // "Confirm user presence for key ..."
	}
	if err := c.Run(); err != nil {
		return nil, &exitError{exitRefused, fmt.Errorf("ssh-keygen did not sign with %s, so nothing was handed in: %w: %s", s.keyFile, err, strings.TrimSpace(said.String()))}
	}
	if sig, err = os.ReadFile(file + ".sig"); err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	return sig, nil
}

func (s signer) agent(ctx context.Context, namespace string, text []byte) ([]byte, error) {
	socket := os.Getenv("SSH_AUTH_SOCK")
	if socket == "" {
		return nil, usageError(errors.New("there is no ssh-agent here (SSH_AUTH_SOCK): give --key FILE to sign with a key file, or --signature FILE with what ssh-keygen -Y sign wrote"))
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, usageError(fmt.Errorf("ssh-agent does not answer: %w; give --key FILE", err))
	}
	defer conn.Close() //nolint:errcheck // nothing is written any more
	a := agent.NewClient(conn)
	key, err := s.choose(a)
	if err != nil {
		return nil, err
	}
	var flags agent.SignatureFlags
	if key.Type() == ssh.KeyAlgoRSA {
		flags = agent.SignatureFlagRsaSha512
	}
	sig, err := a.SignWithFlags(key, approval.ToSign(namespace, text), flags)
	if err != nil {
		return nil, &exitError{exitRefused, fmt.Errorf("ssh-agent did not sign with %s: %w; nothing was handed in (an authenticator wants to be touched, or its PIN: try --key FILE)", ssh.FingerprintSHA256(key), err)}
	}
	return approval.Armor(key, namespace, sig), nil
}

// choose finds the one key of the agent that is an officer's.
func (s signer) choose(a agent.ExtendedAgent) (ssh.PublicKey, error) {
	list, err := a.List()
	if err != nil {
		return nil, fmt.Errorf("ssh-agent: %w", err)
	}
	var found []*agent.Key
	var have []string
	for _, k := range list {
		fp := ssh.FingerprintSHA256(k)
		have = append(have, fp+" "+k.Comment)
		if len(s.known) == 0 || slices.Contains(s.known, fp) {
			found = append(found, k)
		}
	}
	switch {
	case len(list) == 0:
		return nil, usageError(errors.New("ssh-agent has no key: run ssh-add, or give --key FILE"))
	case len(found) == 0:
		return nil, &exitError{exitRefused, fmt.Errorf("ssh-agent has no key of an officer (it has %s); give --key FILE", strings.Join(have, ", "))}
	case len(found) > 1:
		return nil, usageError(fmt.Errorf("ssh-agent has several keys that could sign (%s): give --key FILE with the public key of the one to use", strings.Join(have, ", ")))
	}
	key, err := ssh.ParsePublicKey(found[0].Blob)
	if err != nil {
		return nil, fmt.Errorf("ssh-agent: %w", err)
	}
	return key, nil
}
