package kmsclient

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

// KeyInfo is what KMS tells about a key (KeyMetadata), in AWS's spelling. Times are UTC, zero for none.
type KeyInfo struct {
	ARN         string
	KeyID       string
	AccountID   string
	Description string
	KeySpec     string // SYMMETRIC_DEFAULT, HMAC_256, RSA_2048, ECC_NIST_P256 ...
	KeyUsage    string // ENCRYPT_DECRYPT, SIGN_VERIFY, GENERATE_VERIFY_MAC, KEY_AGREEMENT
	KeyManager  string // CUSTOMER, AWS
	Origin      string // EXTERNAL, AWS_KMS, AWS_CLOUDHSM, EXTERNAL_KEY_STORE
	State       string // PendingImport, Enabled, Disabled, PendingDeletion, PendingReplicaDeletion, Creating, Updating, Unavailable
	Enabled     bool

	ExpirationModel      string    // KEY_MATERIAL_EXPIRES, KEY_MATERIAL_DOES_NOT_EXPIRE; empty without imported material
	ValidTo              time.Time // the earliest time at which imported material expires
	CurrentKeyMaterialID string    // symmetric keys

	CreationDate time.Time
	DeletionDate time.Time // scheduled deletion

	MultiRegion bool
	Primary     bool     // this is the primary key of a multi-Region key
	PrimaryARN  string   // multi-Region keys
	ReplicaARNs []string // multi-Region keys

	CustomKeyStoreID string

	EncryptionAlgorithms   []string
	SigningAlgorithms      []string
	MACAlgorithms          []string
	KeyAgreementAlgorithms []string
}

// DescribeKey tells about a key. It also takes a key ID, an alias or an alias ARN, so that their key ARN
// can be found; every other call needs the key ARN.
func (c *Client) DescribeKey(ctx context.Context, arn string) (KeyInfo, error) {
	const op = opDescribeKey
	a, notARN := ParseARN(arn)
	if notARN == nil {
		if err := c.checkRegion(op, arn, a); err != nil {
			return KeyInfo{}, err
		}
	}
	out, _, err := call(ctx, c, op, arn, c.api.DescribeKey, &kms.DescribeKeyInput{KeyId: aws.String(arn)})
	if err != nil {
		return KeyInfo{}, err
	}
	if out.KeyMetadata == nil || aws.ToString(out.KeyMetadata.Arn) == "" {
		return KeyInfo{}, missing(op, arn, "key metadata")
	}
	if notARN == nil {
		if err := checkAnswer(op, arn, out.KeyMetadata.Arn, false); err != nil {
			return KeyInfo{}, err
		}
	}
	return keyInfo(out.KeyMetadata), nil
}

// CreateKeyRequest is one CreateKey with origin EXTERNAL.
type CreateKeyRequest struct {
	KeySpec     string
	KeyUsage    string // empty: ENCRYPT_DECRYPT for SYMMETRIC_DEFAULT, GENERATE_VERIFY_MAC for HMAC, SIGN_VERIFY otherwise
	Description string
	MultiRegion bool
	Policy      string // key policy, JSON; empty: the account's default
	Tags        map[string]string
}

// CreateKey creates a KMS key without key material (origin EXTERNAL). It is sent once: after
// [OutcomeUnknown] there may be a key that nobody knows of.
func (c *Client) CreateKey(ctx context.Context, r CreateKeyRequest) (KeyInfo, error) {
	const op = opCreateKey
	in := &kms.CreateKeyInput{
		Origin: types.OriginTypeExternal, KeySpec: types.KeySpec(r.KeySpec), KeyUsage: keyUsage(r), Description: optional(r.Description),
		Policy: optional(r.Policy),
	}
	if r.MultiRegion {
		in.MultiRegion = aws.Bool(true)
	}
	for _, k := range slices.Sorted(maps.Keys(r.Tags)) {
		in.Tags = append(in.Tags, types.Tag{TagKey: aws.String(k), TagValue: aws.String(r.Tags[k])})
	}
	out, _, err := call(ctx, c, op, "", c.api.CreateKey, in)
	if err != nil {
		return KeyInfo{}, err
	}
	if out.KeyMetadata == nil || aws.ToString(out.KeyMetadata.Arn) == "" {
		return KeyInfo{}, missing(op, "", "key metadata")
	}
	return keyInfo(out.KeyMetadata), nil
}

// keyUsage is the usage that imported keys of the spec have by default.
func keyUsage(r CreateKeyRequest) types.KeyUsageType {
	switch {
	case r.KeyUsage != "":
		return types.KeyUsageType(r.KeyUsage)
	case r.KeySpec == "SYMMETRIC_DEFAULT" || r.KeySpec == "":
		return types.KeyUsageTypeEncryptDecrypt
	case strings.HasPrefix(r.KeySpec, "HMAC_"):
		return types.KeyUsageTypeGenerateVerifyMac
	}
	return types.KeyUsageTypeSignVerify
}

// CreateAlias gives the key a name, "alias/payments". It is sent once.
func (c *Client) CreateAlias(ctx context.Context, alias, arn string) error {
	if err := c.checkKey(opCreateAlias, arn); err != nil {
		return err
	}
	_, _, err := call(ctx, c, opCreateAlias, arn, c.api.CreateAlias,
		&kms.CreateAliasInput{AliasName: aws.String(alias), TargetKeyId: aws.String(arn)})
	return err
}

func keyInfo(m *types.KeyMetadata) KeyInfo {
	k := KeyInfo{
		ARN: aws.ToString(m.Arn), KeyID: aws.ToString(m.KeyId), AccountID: aws.ToString(m.AWSAccountId), Description: aws.ToString(m.Description),
		KeySpec: string(m.KeySpec), KeyUsage: string(m.KeyUsage), KeyManager: string(m.KeyManager), Origin: string(m.Origin),
		State: string(m.KeyState), Enabled: m.Enabled,
		ExpirationModel: string(m.ExpirationModel), ValidTo: utc(m.ValidTo), CurrentKeyMaterialID: aws.ToString(m.CurrentKeyMaterialId),
		CreationDate: utc(m.CreationDate), DeletionDate: utc(m.DeletionDate),
		MultiRegion: aws.ToBool(m.MultiRegion), CustomKeyStoreID: aws.ToString(m.CustomKeyStoreId),
		EncryptionAlgorithms: names(m.EncryptionAlgorithms), SigningAlgorithms: names(m.SigningAlgorithms),
		MACAlgorithms: names(m.MacAlgorithms), KeyAgreementAlgorithms: names(m.KeyAgreementAlgorithms),
	}
	if k.KeySpec == "" { // servers of before KeySpec existed
		k.KeySpec = string(m.CustomerMasterKeySpec) //nolint:staticcheck // deprecated, and all that they have
	}
	if r := m.MultiRegionConfiguration; r != nil {
		k.Primary = r.MultiRegionKeyType == types.MultiRegionKeyTypePrimary
		if r.PrimaryKey != nil {
			k.PrimaryARN = aws.ToString(r.PrimaryKey.Arn)
		}
		for _, replica := range r.ReplicaKeys {
			k.ReplicaARNs = append(k.ReplicaARNs, aws.ToString(replica.Arn))
		}
	}
	return k
}

// names turns a list of the SDK's enumerated strings into strings.
func names[S ~string](list []S) []string {
	var out []string
	for _, s := range list {
		out = append(out, string(s))
	}
	return out
}
