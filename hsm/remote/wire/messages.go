package wire

import "hsmbridge/hsm/wrapping"

// Limits of single fields.
const (
	maxName  = 256      // names of ours, and of CK_TOKEN_INFO
	maxLabel = 4096     // CKA_LABEL and CKA_ID
	maxText  = 16 << 10 // a sentence for a person
	maxKeys  = 200_000  // in a list
	maxURI   = 3 << 12  // percent-encoded
	maxBytes = 32 << 10 // a message, a modulus, a wrapped key, a signature
	maxFew   = 4096     // trials, mechanisms, warnings
	maxPage  = 1 << 20  // a report
)

// Hello is the first that a module's process says.
type Hello struct {
	Version   uint64
	Isolation []Measure // what the process did to be alone
}

// Measure is one thing that isolates the process, and how it went.
type Measure struct{ Name, State string }

func (m *Hello) fields(c *coder) {
	c.number(&m.Version)
	list(c, &m.Isolation, maxFew, func(x *Measure) {
		text(c, &x.Name, maxName)
		text(c, &x.State, maxName)
	})
}

// Open says which module to load and which token to open. The module's environment is the process's own.
type Open struct {
	Name       string
	Module     string
	Parameters string
	URI        string // RFC 7512
	Quirks     string // JSON of what the configuration overrides; empty: nothing
	LoginAgain bool
}

func (m *Open) fields(c *coder) {
	text(c, &m.Name, maxName)
	text(c, &m.Module, maxLabel)
	text(c, &m.Parameters, maxText)
	text(c, &m.URI, maxURI)
	text(c, &m.Quirks, maxText)
	c.flag(&m.LoginAgain)
}

// WantPIN names the token that was found.
type WantPIN struct {
	Token    wrapping.TokenIdentity
	AtDevice bool // no PIN is wanted, which is typed at the device: only to be let go on
}

func (m *WantPIN) fields(c *coder) {
	identity(c, &m.Token)
	c.flag(&m.AtDevice)
}

func identity(c *coder, v *wrapping.TokenIdentity) {
	for _, s := range []*string{&v.Label, &v.Manufacturer, &v.Model, &v.Serial, &v.Hardware, &v.Firmware} {
		text(c, s, maxName)
	}
}

// Opened says which token is open.
type Opened struct {
	Token       wrapping.TokenIdentity
	Warnings    []string
	PINTriesLow bool
	Sessions    int // calls that can be under way at once
}

func (m *Opened) fields(c *coder) {
	identity(c, &m.Token)
	list(c, &m.Warnings, maxFew, func(s *string) { text(c, s, maxText) })
	c.flag(&m.PINTriesLow)
	c.count(&m.Sessions)
}

// Text is a line.
type Text struct{ Text string }

func (m *Text) fields(c *coder) { text(c, &m.Text, maxText) }

// Bytes are a wrapped key, a DER SubjectPublicKeyInfo, a MAC or a signature.
type Bytes struct{ Bytes []byte }

func (m *Bytes) fields(c *coder) { c.bytes(&m.Bytes, maxBytes) }

// Report asks for what a probe found, without what names the token or its place.
type Report struct {
	Version string   // of hsmbridge
	Private []string // texts that must not be in it
}

func (m *Report) fields(c *coder) {
	text(c, &m.Version, maxName)
	list(c, &m.Private, maxFew, func(s *string) { text(c, s, maxLabel) })
}

// Document is a report, JSON.
type Document struct{ JSON []byte }

func (m *Document) fields(c *coder) { c.bytes(&m.JSON, maxPage) }

// Key is a key object, without its Epoch: each side has one of its own.
type Key struct{ wrapping.Key }

func (m *Key) fields(c *coder) {
	k := &m.Key
	text(c, &k.Label, maxLabel)
	c.bytes(&k.ID, maxLabel)
	text(c, &k.Class, maxName)
	text(c, &k.KeyType, maxName)
	c.count(&k.Bits)
	text(c, &k.Curve, maxName)
	text(c, &k.KeySpec, maxName)
	for _, f := range []*bool{&k.Extractable, &k.Sensitive, &k.WrapWithTrusted, &k.Local, &k.Decrypt, &k.Sign, &k.Wrap} {
		c.flag(f)
	}
	list(c, &k.Blockers, maxFew, func(s *string) { text(c, s, maxText) })
	c.handle(&k.Handle)
}

// Keys is a list of keys.
type Keys struct{ Keys []Key }

func (m *Keys) fields(c *coder) { list(c, &m.Keys, maxKeys, func(k *Key) { k.fields(c) }) }

// Find names a key.
type Find struct{ URI string }

func (m *Find) fields(c *coder) { text(c, &m.URI, maxURI) }

// Generate says which key to make.
type Generate struct {
	Spec  wrapping.KeySpec
	Label string
	ID    []byte
}

func (m *Generate) fields(c *coder) {
	text(c, &m.Spec, maxName)
	text(c, &m.Label, maxLabel)
	c.bytes(&m.ID, maxLabel)
}

// Specs are key specs.
type Specs struct{ Specs []wrapping.KeySpec }

func (m *Specs) fields(c *coder) {
	list(c, &m.Specs, maxFew, func(s *wrapping.KeySpec) { text(c, s, maxName) })
}

// Wrap asks for a key under an RSA public key.
type Wrap struct {
	Key      Key
	Modulus  []byte
	Exponent uint64
	Plan     wrapping.Plan
}

func (m *Wrap) fields(c *coder) {
	m.Key.fields(c)
	c.bytes(&m.Modulus, maxBytes)
	c.number(&m.Exponent)
	p := &m.Plan
	text(c, &p.KeySpec, maxName)
	text(c, &p.Algorithm, maxName)
	text(c, &p.WrappingKeySpec, maxName)
	mechanism(c, &p.Mechanism)
	c.count(&p.Length)
	c.flag(&p.Padded)
}

func mechanism(c *coder, m *wrapping.Mechanism) {
	text(c, &m.Name, maxName)
	c.handle(&m.Type)
	text(c, &m.Form, maxName)
}

// Sign asks for a MAC or a signature over a message. Public is the DER SubjectPublicKeyInfo under which a signature has to verify.
type Sign struct {
	Key     Key
	Public  []byte
	Message []byte
}

func (m *Sign) fields(c *coder) {
	m.Key.fields(c)
	c.bytes(&m.Public, maxBytes)
	c.bytes(&m.Message, maxBytes)
}

// Capabilities is what a probe proved.
type Capabilities struct{ wrapping.Capabilities }

func (m *Capabilities) fields(c *coder) {
	identity(c, &m.Token)
	list(c, &m.Trials, maxFew, func(t *wrapping.Trial) {
		text(c, &t.KeySpec, maxName)
		text(c, &t.Algorithm, maxName)
		text(c, &t.WrappingKeySpec, maxName)
		mechanism(c, &t.Mechanism)
		text(c, &t.Outcome, maxName)
		text(c, &t.Reason, maxText)
		c.count(&t.Length)
	})
}

// Mechanisms is what the token's list says.
type Mechanisms struct{ Mechanisms []wrapping.MechanismInfo }

func (m *Mechanisms) fields(c *coder) {
	list(c, &m.Mechanisms, maxFew, func(i *wrapping.MechanismInfo) {
		text(c, &i.Name, maxName)
		c.handle(&i.Type)
		c.flag(&i.Listed)
		c.flag(&i.Wrap)
		c.handle(&i.Min)
		c.handle(&i.Max)
	})
}
