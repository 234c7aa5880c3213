package wrapping

// material is what the policy knows of one key spec: one line a spec, the whole of AWS's table.
type material struct {
	kind  Kind
	bytes int         // raw length of the material; 0 for private keys, whose PKCS#8 length is the token's
	order []Algorithm // AWS's order of preference for this material
	no    string      // why KMS does not take imported material of this spec, empty when it does
}

// materialOf is the policy. Sources: AWS KMS Developer Guide, "Importing key material" (what can be
// imported), "Select a wrapping algorithm" (the orders), "Requirements for imported key material" (lengths).
func materialOf(k KeySpec) material {
	secret := []Algorithm{OAEPSHA256, OAEPSHA1, PKCS1v15}
	rsa := []Algorithm{RSAAESSHA256, RSAAESSHA1}
	ecc := []Algorithm{RSAAESSHA256, RSAAESSHA1, OAEPSHA256, OAEPSHA1}

	switch k {
	case SymmetricDefault:
		return material{kind: KindSymmetric, bytes: 32, order: secret}
	case HMAC224:
		return material{kind: KindHMAC, bytes: 28, order: secret}
	case HMAC256:
		return material{kind: KindHMAC, bytes: 32, order: secret}
	case HMAC384:
		return material{kind: KindHMAC, bytes: 48, order: secret}
	case HMAC512:
		return material{kind: KindHMAC, bytes: 64, order: secret}
	case KeyRSA2048, KeyRSA3072, KeyRSA4096:
		return material{kind: KindRSA, order: rsa}
	case ECCNISTP256, ECCNISTP384, ECCNISTP521, ECCSECGP256K1:
		return material{kind: KindEC, order: ecc}
	case ECCEdwards25519:
		return material{kind: KindEd25519, order: ecc}
	case MLDSA44, MLDSA65, MLDSA87:
		return material{kind: KindRefused, no: "AWS KMS does not take imported key material for ML-DSA keys"}
	case SM2:
		return material{kind: KindRefused, no: "SM2 keys exist only in the China Regions, where they are imported under SM2PKE, which hsmbridge does not do"}
	}
	return material{kind: KindRefused, no: "AWS KMS has no key spec of this name that takes imported key material"}
}

// Kind is the kind of material that the spec holds; KindRefused when KMS takes none for it.
func (k KeySpec) Kind() Kind { return materialOf(k).kind }

// MaterialBytes is the exact length in bytes of a symmetric or HMAC key, 0 for private keys.
func (k KeySpec) MaterialBytes() int { return materialOf(k).bytes }

// WhyNot says why KMS takes no imported material for the spec; empty when it does.
func (k KeySpec) WhyNot() string { return materialOf(k).no }

// Doubt is what AWS's documents leave open about the spec; empty when they are clear.
func (k KeySpec) Doubt() string {
	if k == ECCEdwards25519 {
		return "AWS's Developer Guide does not list Ed25519 among the importable key specs, the API Reference says that all are: KMS decides"
	}
	return ""
}

// Order is AWS's order of preference for the spec, most preferred first; nil when KMS takes none.
func (k KeySpec) Order() []Algorithm { return materialOf(k).order }

// KeySpecs lists every spec that takes imported key material.
func KeySpecs() []KeySpec {
	return []KeySpec{
		SymmetricDefault, HMAC224, HMAC256, HMAC384, HMAC512, KeyRSA2048, KeyRSA3072, KeyRSA4096,
		ECCNISTP256, ECCNISTP384, ECCNISTP521, ECCSECGP256K1, ECCEdwards25519,
	}
}

// Representative is the spec whose trials stand for k: tokens wrap RSA keys of every size alike and
// generating a large throwaway pair takes a device seconds, so RSA_2048 stands for all of them.
func (k KeySpec) Representative() KeySpec {
	if k.Kind() == KindRSA {
		return KeyRSA2048
	}
	return k
}

// hashBytes is the length in bytes of the hash that the algorithm uses in OAEP, 0 for PKCS #1 v1.5.
func (a Algorithm) hashBytes() int {
	switch a {
	case OAEPSHA256, RSAAESSHA256:
		return 32
	case OAEPSHA1, RSAAESSHA1:
		return 20
	case PKCS1v15:
	}
	return 0
}

// TwoPart says that the algorithm wraps an ephemeral AES key under RSA and the material under that key.
func (a Algorithm) TwoPart() bool { return a == RSAAESSHA256 || a == RSAAESSHA1 }

// Room is the number of bytes that the algorithm can take in one piece under the wrapping key spec
// (RFC 8017: k - 2*hLen - 2 for OAEP, k - 11 for PKCS #1 v1.5); -1 for two-part algorithms, which have no limit.
func (a Algorithm) Room(s WrappingKeySpec) int {
	switch {
	case a.TwoPart():
		return -1
	case a == PKCS1v15:
		return s.Bytes() - 11
	}
	return s.Bytes() - 2*a.hashBytes() - 2
}

// Rule names the rule by which a candidate was passed over.
type Rule string

// The rules, in the order in which a candidate meets them.
const (
	RuleMaterial   Rule = "material"     // KMS takes no imported material of this spec
	RuleAWSOrder   Rule = "aws-order"    // AWS does not offer the algorithm for this kind of material
	RuleConfigured Rule = "configured"   // wrapping.algorithms leaves it out
	RulePartition  Rule = "partition"    // the AWS partition does not have it
	RuleKMS        Rule = "kms"          // KMS refuses the combination
	RuleRoom       Rule = "room"         // the material does not fit under this wrapping key
	RuleToken      Rule = "token"        // the trial on the token failed
	RulePadded     Rule = "padded-pkcs8" // the token appends zero bytes to the PKCS#8
	RulePKCS1      Rule = "pkcs1-v1_5"   // last resort that has to be allowed
)
