package configs

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"hsmbridge/daemon/approval"
	"hsmbridge/hsm/pkcs11uri"
)

// Approval says who has to approve what is done with a key before it is done.
type Approval struct {
	// The officers: people and their OpenSSH public keys. Two keys of one person count once.
	Officers []Officer `yaml:"officers,omitempty"`
	// File with more officers, in the format of ssh-keygen's allowed_signers: the first principal is the name. A relative path starts in the folder of the configuration file.
	AllowedSigners string `yaml:"allowed_signers,omitempty"`
	// How many different officers have to sign. Whoever asked does not count.
	Threshold int `yaml:"threshold,omitempty" jsonschema:"minimum=0,maximum=20"`
	// How long a request can be signed and carried out. Default 24h.
	ValidFor Duration `yaml:"valid_for,omitempty"`
	// Only signatures by keys in hardware count (sk-ssh-ed25519, sk-ecdsa-sha2-nistp256), each touched for it.
	RequireHardware bool `yaml:"require_hardware,omitempty"`
	// Only signatures count for which the authenticator asked for its PIN or a fingerprint.
	RequireUserVerification bool `yaml:"require_user_verification,omitempty"`
	// The longest time for which officers can approve renewals of the same material in advance. Empty: they cannot.
	Standing Duration `yaml:"standing,omitempty"`
	// This key needs no approval, although there is one for all keys.
	Exempt bool `yaml:"exempt,omitempty"`

	signers []approval.Officer // of AllowedSigners
}

// Officer is a person who approves.
type Officer struct {
	// Name of the person, in requests and in the audit log.
	Name string `yaml:"name" jsonschema:"required"`
	// OpenSSH public keys, as in the .pub files.
	Keys []string `yaml:"keys" jsonschema:"required,minItems=1"`
	// User names by which the person uses hsmbridge, when they are not the name: a request of one's own is not approved by oneself.
	Users []string `yaml:"users,omitempty"`
}

// Audit is the record that cannot be changed quietly.
type Audit struct {
	// Name of the token with the key that signs checkpoints of the log. Empty: they are not signed.
	Token string `yaml:"token,omitempty"`
	// PKCS #11 URI of that private key: ECDSA or RSA, for signing only.
	URI pkcs11uri.URI `yaml:"uri,omitempty"`
	// Whether to generate that key (P-256, not extractable) when it is not there.
	Generate Generate `yaml:"generate,omitempty"`
	// How often a checkpoint is signed when there is something new. Default 5m.
	Every Duration `yaml:"every,omitempty"`
	// Where the log is copied to as it grows.
	Export []Export `yaml:"export,omitempty"`
}

func (a *Audit) setDefaults() { a.Generate = GenerateNever }

// Export is a place to which the audit log is copied. Exactly one of file, syslog and stdout is given.
type Export struct {
	// File to which lines are appended. A relative path starts in the folder of the configuration file.
	File string `yaml:"file,omitempty"`
	// Syslog: local, or unix:///PATH of a datagram socket, or udp://HOST:PORT, or tcp://HOST:PORT.
	Syslog string `yaml:"syslog,omitempty"`
	// The daemon's standard output.
	Stdout bool `yaml:"stdout,omitempty"`
	// Nothing is done before its record is there; while it cannot be written, nothing is done at all.
	Required bool `yaml:"required,omitempty"`
}

// Name is the place as it is shown and remembered.
func (e Export) Name() string {
	switch {
	case e.File != "":
		return "file " + e.File
	case e.Syslog != "":
		return "syslog " + e.Syslog
	}
	return "stdout"
}

const (
	defaultValidFor   = 24 * time.Hour
	defaultCheckpoint = 5 * time.Minute
	maxValidFor       = 30 * day
)

// IsZero says that nothing is said about approvals.
func (a Approval) IsZero() bool {
	return len(a.Officers) == 0 && a.AllowedSigners == "" && a.Threshold == 0 && a.ValidFor == 0 && !a.RequireHardware && !a.RequireUserVerification && a.Standing == 0 && !a.Exempt
}

// ApprovalFor is the approval that a key needs: its own, with what that leaves out from the default. A key can ask for hardware and
// verification where the default does not, and not the other way round. false: it needs none.
func (c *Config) ApprovalFor(k Key) (Approval, bool) {
	a, d := k.Approval, c.Approval
	if a.Exempt || a.IsZero() && d.IsZero() {
		return Approval{}, false
	}
	if len(a.Officers) == 0 && a.AllowedSigners == "" {
		a.Officers, a.AllowedSigners, a.signers = d.Officers, d.AllowedSigners, d.signers
	}
	a.Threshold = cmp.Or(a.Threshold, d.Threshold)
	a.ValidFor = cmp.Or(a.ValidFor, d.ValidFor, Duration(defaultValidFor))
	a.Standing = cmp.Or(a.Standing, d.Standing)
	a.RequireHardware = a.RequireHardware || d.RequireHardware
	a.RequireUserVerification = a.RequireUserVerification || d.RequireUserVerification
	return a, true
}

// Policy is the approval as it decides. Its keys were checked when the configuration was read.
func (a Approval) Policy() (approval.Policy, error) {
	officers, err := a.people()
	return approval.Policy{
		Officers: officers, Threshold: a.Threshold, RequireHardware: a.RequireHardware, RequireUserVerification: a.RequireUserVerification,
	}, err
}

func (a Approval) people() ([]approval.Officer, error) {
	var out []approval.Officer
	for _, o := range a.Officers {
		p := approval.Officer{Name: o.Name, Users: o.Users}
		for _, text := range o.Keys {
			key, err := approval.ParseKey(text)
			if err != nil {
				return nil, fmt.Errorf("officer %s: %w", o.Name, err)
			}
			p.Keys = append(p.Keys, key)
		}
		out = append(out, p)
	}
	return append(out, a.signers...), nil
}

// Checkpoint is how often a checkpoint of the audit log is signed: [Audit.Every], or 5 minutes.
func (a Audit) Checkpoint() time.Duration { return cmp.Or(a.Every.Duration(), defaultCheckpoint) }

// SHA256 is the SHA-256 of the configuration as it was read, hexadecimal, also of the files of officers that it names.
func (c *Config) SHA256() string { return c.digest }

// Policies is the SHA-256 over who has to approve what, hexadecimal; it changes when an approval does.
func (c *Config) Policies() string {
	h := sha256.New()
	for _, k := range c.Keys {
		a, needed := c.ApprovalFor(k)
		if !needed {
			continue
		}
		p, err := a.Policy()
		if err != nil {
			continue // it was checked when it was read
		}
		line := []any{k.Name, p.Threshold, p.RequireHardware, p.RequireUserVerification, a.ValidFor, a.Standing}
		for _, o := range p.Officers {
			line = append(line, o.Name, o.Users)
			for _, key := range o.Keys {
				line = append(line, key.Marshal(), key.From, key.Until)
			}
		}
		b, err := json.Marshal(line)
		if err != nil {
			continue
		}
		h.Write(append(b, '\n'))
	}
	return hex.EncodeToString(h.Sum(nil))
}

// officerNames are the names of all officers.
func officerNames(list []approval.Officer) []string {
	var out []string
	for _, o := range list {
		if !slices.Contains(out, o.Name) {
			out = append(out, o.Name)
		}
	}
	return out
}
