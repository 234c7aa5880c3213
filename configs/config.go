// Package configs is hsmbridge's configuration: its Go types, a strict reader that names every mistake with file, line
// and column, the JSON Schema for editors, and the sample files.
//
// The YAML is a plain subset: one document; no anchors, aliases, merge keys, tags or '?' keys. What two people approve says
// everything in the place where they look. A value has exactly the type that the field wants: text that looks like a number
// is quoted, "yes" is not true, and a key without a value is a mistake.
//
// Needs no HSM, no network and no cgo.
package configs

import (
	"hsmbridge/hsm/pkcs11uri"
	"hsmbridge/hsm/quirks"
	"hsmbridge/hsm/wrapping"
)

// Config is the configuration of hsmbridge.
type Config struct {
	// Name of this daemon among those that share a database. Empty: the name of the machine.
	Name string `yaml:"name,omitempty"`
	// Where the daemon keeps what it did and has to do: the path of an SQLite file, or postgres://USER@HOST/DATABASE for several daemons. A relative path starts in the folder of the configuration file.
	Database string `yaml:"database,omitempty"`
	// Where AWS KMS is.
	KMS KMS `yaml:"kms,omitempty"`
	// The HSM tokens that hold the keys.
	Tokens []Token `yaml:"tokens" jsonschema:"required,minItems=1"`
	// Names of the tokens that this daemon reaches, where several daemons at several sites share a PostgreSQL database and a configuration. Empty: all of them.
	Reaches []string `yaml:"reaches,omitempty" jsonschema:"uniqueItems=true"`
	// The managed keys: an object in a token and the KMS keys that it feeds. Nothing else is ever wrapped.
	Keys []Key `yaml:"keys,omitempty"`
	// Who has to approve what is done with keys, for every key. A key can have an approval of its own; what that leaves out is taken from here. Empty: nobody.
	Approval Approval `yaml:"approval,omitempty"`
	// The audit log: who signs it, and where it is copied to.
	Audit Audit `yaml:"audit,omitempty"`
	// Which wrapping algorithms may be used.
	Wrapping Wrapping `yaml:"wrapping,omitempty"`
	// Request quotas of AWS KMS that differ from AWS's defaults.
	Quotas []Quota `yaml:"quotas,omitempty"`
	// The daemon's local API.
	Control Control `yaml:"control,omitempty"`
	// Metrics and health of the daemon.
	Metrics Metrics `yaml:"metrics,omitempty"`
	// Pages for a browser on this machine: what expires when, what waits for officers, and the text to sign.
	Web Web `yaml:"web,omitempty"`
	// What the daemon logs.
	Log Log `yaml:"log,omitempty"`
	// How long the daemon keeps what it did. The audit log is kept for ever.
	Retention Retention `yaml:"retention,omitempty"`

	digest string
	byName map[string]int // the places of keys
}

// KMS says how AWS KMS is reached. Credentials come from the usual AWS chain.
type KMS struct {
	// AWS Region. Every destination has to be in it. Empty: each destination's ARN names its own.
	Region string `yaml:"region,omitempty"`
	// Another endpoint: a VPC or FIPS endpoint, a KMS-compatible server, the emulator. https, or http on this machine only. Empty: AWS's own.
	Endpoint string `yaml:"endpoint,omitempty"`
	// Named profile of the AWS configuration files. Empty: the usual credential chain.
	Profile string `yaml:"profile,omitempty"`
	// Call AWS's FIPS 140 endpoints.
	FIPS bool `yaml:"fips,omitempty"`
	// How often the daemon looks at each KMS key (DescribeKey) for material that was deleted or has expired behind its back. Default 15m.
	WatchEvery Duration `yaml:"watch_every,omitempty"`
}

// Token is one token of an HSM, reached through its PKCS #11 module. Exactly one source of its PIN is given, and none where it is typed at the device.
type Token struct {
	// Name by which keys and commands refer to the token.
	Name string `yaml:"name" jsonschema:"required"`
	// The vendor's PKCS #11 library. A relative path starts in the folder of the configuration file.
	Module string `yaml:"module" jsonschema:"required"`
	// PKCS #11 URI (RFC 7512) that matches exactly one token: by token (its label), serial, model, manufacturer, slot or library.
	URI pkcs11uri.URI `yaml:"uri" jsonschema:"required"`

	// File that holds the PIN, readable by its owner only. A relative path starts in the folder of the configuration file.
	PINFile string `yaml:"pin_file,omitempty"`
	// Command that prints the PIN: a list is started as it is, a text is run by /bin/sh -c.
	PINCommand Command `yaml:"pin_command,omitempty"`
	// Ask for the PIN on the terminal.
	PINPrompt bool `yaml:"pin_prompt,omitempty"`
	// Name of the systemd credential (LoadCredential=, LoadCredentialEncrypted=) that holds the PIN.
	PINCredential string `yaml:"pin_credential,omitempty"`

	// Environment variables that the module reads, taken as they are. Each token's module has a process of its own, and these are its alone; of hsmbridge's own it gets only PATH, HOME, TZ, LANG and LD_LIBRARY_PATH.
	Environment map[string]string `yaml:"environment,omitempty"`
	// String for CK_C_INITIALIZE_ARGS.pReserved, which NSS wants: configdir='sql:/path/to/database'.
	ModuleParameters string `yaml:"module_parameters,omitempty"`
	// How this token differs from the standard, where hsmbridge's table of HSM families does not know it or is wrong. See docs/hsms.md.
	Quirks quirks.Override `yaml:"quirks,omitempty"`
	// Whether the module may use the network. none (the default) takes it away from the module's process; allowed is for HSMs that are reached over it.
	Network Network `yaml:"network,omitempty"`
	// How long a call to the module may take before its process is killed and replaced: 1s to 10m, default 30s. Generating a key may take 4 times as long, a probe 10 times.
	CallTimeout Timeout `yaml:"call_timeout,omitempty"`
}

// Command is a program and its arguments. In YAML it is a list, or a text for /bin/sh -c.
type Command []string

// UnmarshalText makes a shell command of the text.
func (c *Command) UnmarshalText(text []byte) error {
	*c = Command{"/bin/sh", "-c", string(text)}
	return nil
}

// Key is one managed key: an object in a token and the KMS keys that it feeds.
type Key struct {
	// Name by which commands, logs and the audit refer to the key.
	Name string `yaml:"name" jsonschema:"required"`
	// Name of the token that holds the key, and in which new key material is made.
	Token string `yaml:"token" jsonschema:"required"`
	// PKCS #11 URI (RFC 7512) that matches exactly one key in the token: by object (its label) or id, and type.
	URI pkcs11uri.URI `yaml:"uri" jsonschema:"required"`
	// Key spec in AWS's spelling. It is checked against the object and against the KMS keys.
	KeySpec wrapping.KeySpec `yaml:"key_spec" jsonschema:"required"`
	// Other tokens that hold the same key: any of them serves, by whichever daemon reaches it. hsmbridge makes no copies, the HSM's own tools do.
	Replicas []Replica `yaml:"replicas,omitempty"`
	// Whether to generate the key in the token when it is not there.
	Generate Generate `yaml:"generate,omitempty"`
	// When KMS deletes the imported key material, counted from the import: at most 365d, or never.
	Expires Duration `yaml:"expires" jsonschema:"required"`
	// Whether to prove a symmetric key by a second import of the same material, which costs one more request. Other kinds are always proved.
	Prove bool `yaml:"prove"`
	// How long before its expiry the daemon imports the material again. Default: a third of expires.
	RenewBefore Duration `yaml:"renew_before,omitempty"`
	// Fixed times at which the daemon imports the material again, whatever its expiry.
	Schedule Schedule `yaml:"schedule,omitempty"`
	// When the daemon may renew, rotate and drill. Default: at any time.
	Window Window `yaml:"window,omitempty"`
	// How often the daemon makes new key material in the token and rotates the KMS keys to it. SYMMETRIC_DEFAULT only.
	RotateEvery Duration `yaml:"rotate_every,omitempty"`
	// How often the daemon proves by a new import of the same material that the token's copy of the key still works.
	DrillEvery Duration `yaml:"drill_every,omitempty"`
	// Second token that has to hold a copy before the key is imported.
	Backup Backup `yaml:"backup,omitempty"`
	// Who has to approve what is done with this key. What is left out is taken from the approval for all keys.
	Approval Approval `yaml:"approval,omitempty"`
	// The KMS keys (origin EXTERNAL) into which this key is imported, and no others: their ARNs, or mappings with arn, role_arn, external_id and endpoint.
	Destinations []Destination `yaml:"destinations" jsonschema:"required,minItems=1"`
}

func (k *Key) setDefaults() {
	k.Generate = GenerateNever
	k.Prove = true
}

// Generate says whether a key is made in the token.
type Generate string

// The values of [Key.Generate].
const (
	GenerateNever     Generate = "never"      // a missing key is an error (the default)
	GenerateIfMissing Generate = "if-missing" // a missing key is generated: sensitive, extractable, never in the clear
)

// Wrapping restricts the choice of the wrapping algorithm.
type Wrapping struct {
	// Allowed wrapping algorithms, most preferred first. Empty: all of them in AWS's order.
	Algorithms []wrapping.Algorithm `yaml:"algorithms,omitempty" jsonschema:"uniqueItems=true"`
	// Allow RSAES_PKCS1_V1_5 as the last resort. AWS refuses it since 10 October 2023; older KMS-compatible servers may need it.
	AllowPKCS1v15 bool `yaml:"allow_pkcs1_v1_5,omitempty"`
	// Allow zero bytes behind the PKCS#8 of a private key, which SoftHSM 2.6.1 appends. Whether AWS takes them is not known.
	AllowPaddedPKCS8 bool `yaml:"allow_padded_pkcs8,omitempty"`
}

// Policy is the policy for a destination in an AWS partition (aws, aws-cn, aws-us-gov).
func (w Wrapping) Policy(partition string) wrapping.Policy {
	return wrapping.Policy{
		Algorithms:       w.Algorithms,
		AllowPKCS1v15:    w.AllowPKCS1v15,
		AllowPaddedPKCS8: w.AllowPaddedPKCS8,
		Partition:        partition,
	}
}

// Token finds a token by name.
func (c *Config) Token(name string) (Token, bool) {
	for i := range c.Tokens {
		if c.Tokens[i].Name == name {
			return c.Tokens[i], true
		}
	}
	return Token{}, false
}

// Key finds a managed key by name.
func (c *Config) Key(name string) (Key, bool) {
	if i, ok := c.byName[name]; ok && i < len(c.Keys) && c.Keys[i].Name == name {
		return c.Keys[i], true
	}
	for i := range c.Keys {
		if c.Keys[i].Name == name {
			return c.Keys[i], true
		}
	}
	return Key{}, false
}
