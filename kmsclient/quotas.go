package kmsclient

// Quota is a default request quota of AWS KMS for one account in one Region.
type Quota struct {
	Operation string
	PerSecond float64
	Source    string
}

// Quotas is the default request quota of every operation that hsmbridge calls or will call. All are adjustable: an
// account may have others (Service Quotas). Quotas of cryptographic operations are shared by all of their kind.
func Quotas() []Quota {
	const (
		guide  = "AWS KMS Developer Guide, Request quotas"
		shared = guide + "; shared with the other cryptographic operations on this kind of key"
	)
	return []Quota{
		{"CreateAlias", 5, guide},
		{"CreateKey", 5, guide},
		{"DeleteImportedKeyMaterial", 15, guide},
		{"DescribeKey", 2000, guide},
		{"GenerateMac", 10000, shared},       // more in the largest Regions
		{"GetParametersForImport", 1, guide}, // older editions of the guide: 0.25
		{"GetPublicKey", 2000, guide},
		{"ImportKeyMaterial", 15, guide},
		{"ListAliases", 500, guide},
		{"ListKeyRotations", 100, guide},
		{"ListKeys", 500, guide},
		{"ListResourceTags", 2000, guide},
		{"ReplicateKey", 5, guide},
		{"RotateKeyOnDemand", 5, guide},
		{"Sign", 1000, shared}, // for RSA and for ECC keys each; older editions: 500 and 300
		{"TagResource", 10, guide},
	}
}
