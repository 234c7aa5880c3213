// Package wrapping holds the policy of hsmbridge: which AWS KMS wrapping algorithm is used for which
// key on which token, and why. It is pure: no token, no network, no clock.
//
// The words are those of AWS KMS and of PKCS#11. [Select] is the function to read; the policy itself
// is the table in rules.go.
package wrapping

// Algorithm is a KMS wrapping algorithm in AWS's spelling (the WrappingAlgorithm parameter of
// GetParametersForImport).
type Algorithm string

// The wrapping algorithms of AWS KMS. Source: AWS KMS API Reference, GetParametersForImport.
const (
	OAEPSHA256   Algorithm = "RSAES_OAEP_SHA_256"       // RFC 8017, 7.1, SHA-256 for hash and MGF1
	OAEPSHA1     Algorithm = "RSAES_OAEP_SHA_1"         // RFC 8017, 7.1, SHA-1 for hash and MGF1
	PKCS1v15     Algorithm = "RSAES_PKCS1_V1_5"         // RFC 8017, 7.2; refused by AWS since 10 October 2023
	RSAAESSHA256 Algorithm = "RSA_AES_KEY_WRAP_SHA_256" // PKCS#11 v2.40 CKM_RSA_AES_KEY_WRAP: AES-256 under OAEP, material under RFC 5649
	RSAAESSHA1   Algorithm = "RSA_AES_KEY_WRAP_SHA_1"   // the same with SHA-1 in OAEP
)

// Algorithms lists every wrapping algorithm: those for secrets, then those for private keys, each group in AWS's
// order of preference. The order for one key spec is [KeySpec.Order].
// Source: AWS KMS Developer Guide, "Select a wrapping algorithm".
func Algorithms() []Algorithm {
	return []Algorithm{OAEPSHA256, OAEPSHA1, PKCS1v15, RSAAESSHA256, RSAAESSHA1}
}

// WrappingKeySpec is the size of the RSA wrapping key (the WrappingKeySpec parameter of
// GetParametersForImport).
type WrappingKeySpec string

// The wrapping key specs of AWS KMS. Source: AWS KMS API Reference, GetParametersForImport.
const (
	RSA4096 WrappingKeySpec = "RSA_4096"
	RSA3072 WrappingKeySpec = "RSA_3072"
	RSA2048 WrappingKeySpec = "RSA_2048"
)

// WrappingKeySpecs lists the wrapping key specs, longest first: the order in which they are preferred.
func WrappingKeySpecs() []WrappingKeySpec {
	return []WrappingKeySpec{RSA4096, RSA3072, RSA2048}
}

// Bits is the modulus length in bits, 0 for an unknown spec.
func (s WrappingKeySpec) Bits() int {
	switch s {
	case RSA4096:
		return 4096
	case RSA3072:
		return 3072
	case RSA2048:
		return 2048
	}
	return 0
}

// Bytes is the modulus length in bytes, which is also the length of an RSAES ciphertext.
func (s WrappingKeySpec) Bytes() int { return s.Bits() / 8 }

// KeySpec is the spec of a KMS key in AWS's spelling (the KeySpec of DescribeKey).
type KeySpec string

// The key specs that can take imported key material, and those that are refused by name.
// Source: AWS KMS Developer Guide, "Importing key material", and the API Reference, CreateKey.
const (
	SymmetricDefault KeySpec = "SYMMETRIC_DEFAULT"
	HMAC224          KeySpec = "HMAC_224"
	HMAC256          KeySpec = "HMAC_256"
	HMAC384          KeySpec = "HMAC_384"
	HMAC512          KeySpec = "HMAC_512"
	KeyRSA2048       KeySpec = "RSA_2048"
	KeyRSA3072       KeySpec = "RSA_3072"
	KeyRSA4096       KeySpec = "RSA_4096"
	ECCNISTP256      KeySpec = "ECC_NIST_P256"
	ECCNISTP384      KeySpec = "ECC_NIST_P384"
	ECCNISTP521      KeySpec = "ECC_NIST_P521"
	ECCSECGP256K1    KeySpec = "ECC_SECG_P256K1"
	ECCEdwards25519  KeySpec = "ECC_NIST_EDWARDS25519"
	MLDSA44          KeySpec = "ML_DSA_44"
	MLDSA65          KeySpec = "ML_DSA_65"
	MLDSA87          KeySpec = "ML_DSA_87"
	SM2              KeySpec = "SM2"
)

// Kind groups the key specs that are wrapped alike.
type Kind string

// The kinds of key material.
const (
	KindSymmetric Kind = "symmetric"   // raw bytes, 32
	KindHMAC      Kind = "HMAC"        // raw bytes, exactly the spec's length
	KindRSA       Kind = "RSA private" // PKCS#8 (RFC 5958), RSAPrivateKey inside
	KindEC        Kind = "ECC private" // PKCS#8, ECPrivateKey with a named curve inside
	KindEd25519   Kind = "Ed25519"     // PKCS#8 (RFC 8410)
	KindRefused   Kind = "not importable"
)

// TokenIdentity is what a token says of itself (CK_TOKEN_INFO). Capabilities are valid for one identity
// and are thrown away when it changes.
type TokenIdentity struct {
	Label        string `json:"label"`
	Manufacturer string `json:"manufacturer"`
	Model        string `json:"model"`
	Serial       string `json:"serial"`
	Hardware     string `json:"hardware_version"`
	Firmware     string `json:"firmware_version"`
}

// Key describes one secret or private key object in a token. It holds no key material: hsmbridge never
// asks a token for CKA_VALUE, CKA_PRIVATE_EXPONENT or any other secret attribute.
type Key struct {
	Label   string  `json:"label"`
	ID      []byte  `json:"-"`        // CKA_ID
	Class   string  `json:"class"`    // CKO_SECRET_KEY or CKO_PRIVATE_KEY
	KeyType string  `json:"key_type"` // CKK_AES, CKK_GENERIC_SECRET, CKK_RSA, CKK_EC, CKK_EC_EDWARDS ...
	Bits    int     `json:"bits"`     // key size in bits: 256 for AES-256, the modulus for RSA, the field for EC; 0 if unknown
	Curve   string  `json:"curve,omitempty"`
	KeySpec KeySpec `json:"key_spec"` // the KMS key spec that this object fits, empty if none

	// The attributes below are read back from the token. An attribute that the token does not know
	// leaves the field at the value given here.
	Extractable     bool `json:"extractable"`       // CKA_EXTRACTABLE; false if unreadable
	Sensitive       bool `json:"sensitive"`         // CKA_SENSITIVE
	WrapWithTrusted bool `json:"wrap_with_trusted"` // CKA_WRAP_WITH_TRUSTED; false if unknown
	Local           bool `json:"local"`             // CKA_LOCAL: generated in this token
	Decrypt         bool `json:"-"`                 // CKA_DECRYPT
	Sign            bool `json:"-"`                 // CKA_SIGN
	Wrap            bool `json:"-"`                 // CKA_WRAP

	// Blockers says why this object cannot be imported into KMS, one sentence each; empty when it can.
	Blockers []string `json:"blockers,omitempty"`

	Handle uint   `json:"-"` // CK_OBJECT_HANDLE, valid within Epoch only
	Epoch  uint64 `json:"-"` // the connection to the token in which Handle was found
}

// Form is the shape of a wrapping operation on the token.
type Form string

// The forms. RSA_AES_KEY_WRAP can be done in one call or composed of two; both give the same bytes' shape.
const (
	FormOAEP   Form = "oaep"   // C_WrapKey with CKM_RSA_PKCS_OAEP
	FormPKCS1  Form = "pkcs1"  // C_WrapKey with CKM_RSA_PKCS
	FormNative Form = "native" // C_WrapKey with CKM_RSA_AES_KEY_WRAP
	FormKWP    Form = "kwp"    // composed: the AES part by a mechanism that does RFC 5649 itself
	FormKWPIV  Form = "kwp-iv" // composed: the AES part by CKM_AES_KEY_WRAP with the RFC 5649 alternative IV as its parameter
)

// Mechanism is one way in which a token can produce the bytes of an algorithm.
type Mechanism struct {
	Name string `json:"name"` // CKM name; for composed forms the AES mechanism's
	Type uint   `json:"-"`    // CK_MECHANISM_TYPE of Name
	Form Form   `json:"form"`
}

// String names every mechanism that the token is asked for.
func (m Mechanism) String() string {
	if m.Form == FormKWP || m.Form == FormKWPIV {
		return m.Name + " + CKM_RSA_PKCS_OAEP"
	}
	return m.Name
}

// Outcome is how a known-answer trial ended.
type Outcome string

// The outcomes of a trial.
const (
	Exact  Outcome = "exact"  // decrypted outside the token: the throwaway key, byte for byte
	Padded Outcome = "padded" // the throwaway key followed by zero bytes that are not part of it (SoftHSM 2.6.1's CKM_AES_KEY_WRAP_PAD)
	Failed Outcome = "failed" // an error, or anything else came out
)

// Trial is the result of one known-answer trial on a token: a throwaway key of KeySpec wrapped by
// Mechanism under a throwaway RSA key of WrappingKeySpec, and decrypted outside the token.
type Trial struct {
	KeySpec         KeySpec
	Algorithm       Algorithm
	WrappingKeySpec WrappingKeySpec
	Mechanism       Mechanism
	Outcome         Outcome
	Reason          string // why Outcome is not Exact: "CKR_ARGUMENTS_BAD (0x7): ...", "hash mismatch: ..."
	Length          int    // bytes of key material that came out; for EC those of this key's PKCS#8, of which others of the curve may differ; 0 if unknown
}

// Capabilities is everything that was proved about a token.
type Capabilities struct {
	Token  TokenIdentity
	Trials []Trial
}

// MechanismInfo is what a token's list says of a mechanism that matters for wrapping. What it really does is for a probe to find out.
type MechanismInfo struct {
	Name   string `json:"name"`
	Type   uint   `json:"type"` // CK_MECHANISM_TYPE
	Listed bool   `json:"listed"`
	Wrap   bool   `json:"wrap"`     // CKF_WRAP
	Min    uint   `json:"min_size"` // key size, in bits or bytes as the mechanism has it
	Max    uint   `json:"max_size"`
}
