package kmsclient

import (
	"context"
	"fmt"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

// ImportRequest is one ImportKeyMaterial. ImportType, KeyMaterialID and Description exist for symmetric
// keys only.
type ImportRequest struct {
	KeyARN               string
	ImportToken          []byte    // from the same [ImportParameters] as the public key
	EncryptedKeyMaterial []byte    // what the token wrapped
	ValidTo              time.Time // zero: does not expire; KMS allows at most 365 days ahead
	ImportType           string    // "", NEW_KEY_MATERIAL, EXISTING_KEY_MATERIAL
	KeyMaterialID        string    // of existing key material; KMS refuses any other
	Description          string    // KeyMaterialDescription
}

// ImportResult is what KMS answered.
type ImportResult struct {
	KeyARN        string
	KeyMaterialID string // symmetric keys; empty where the endpoint has no key material IDs
	RequestID     string
}

// ImportKeyMaterial imports wrapped key material. It is sent once, whatever happens: see [OutcomeUnknown].
func (c *Client) ImportKeyMaterial(ctx context.Context, r ImportRequest) (ImportResult, error) {
	const op = opImportKeyMaterial
	if err := c.checkKey(op, r.KeyARN); err != nil {
		return ImportResult{}, err
	}
	in := &kms.ImportKeyMaterialInput{
		KeyId:                  aws.String(r.KeyARN),
		ImportToken:            r.ImportToken,
		EncryptedKeyMaterial:   r.EncryptedKeyMaterial,
		ExpirationModel:        types.ExpirationModelTypeKeyMaterialDoesNotExpire,
		ImportType:             types.ImportType(r.ImportType),
		KeyMaterialId:          optional(r.KeyMaterialID),
		KeyMaterialDescription: optional(r.Description),
	}
	if !r.ValidTo.IsZero() {
		in.ExpirationModel, in.ValidTo = types.ExpirationModelTypeKeyMaterialExpires, aws.Time(r.ValidTo)
	}
	out, id, err := call(ctx, c, op, r.KeyARN, c.api.ImportKeyMaterial, in)
	if err != nil {
		return ImportResult{}, err
	}
	// Before key material IDs existed the answer was empty, and with some servers it still is.
	if err := checkAnswer(op, r.KeyARN, out.KeyId, true); err != nil {
		return ImportResult{}, err
	}
	return ImportResult{KeyARN: r.KeyARN, KeyMaterialID: aws.ToString(out.KeyMaterialId), RequestID: id}, nil
}

// DeleteImportedKeyMaterial deletes key material from the key, which is unusable until the same material is
// imported again. An empty keyMaterialID means the current one. It is sent once.
func (c *Client) DeleteImportedKeyMaterial(ctx context.Context, arn, keyMaterialID string) error {
	if err := c.checkKey(opDeleteImported, arn); err != nil {
		return err
	}
	_, _, err := call(ctx, c, opDeleteImported, arn, c.api.DeleteImportedKeyMaterial,
		&kms.DeleteImportedKeyMaterialInput{KeyId: aws.String(arn), KeyMaterialId: optional(keyMaterialID)})
	return err
}

// RotateKeyOnDemand makes the material that is pending rotation the current one of a symmetric key; of a
// multi-Region key it is the primary that is rotated. It is asynchronous: [Client.ListKeyMaterials] shows when
// it is done. KMS allows 25 a key. It is sent once.
func (c *Client) RotateKeyOnDemand(ctx context.Context, arn string) error {
	if err := c.checkKey(opRotateKeyOnDemand, arn); err != nil {
		return err
	}
	_, _, err := call(ctx, c, opRotateKeyOnDemand, arn, c.api.RotateKeyOnDemand, &kms.RotateKeyOnDemandInput{KeyId: aws.String(arn)})
	return err
}

// MaxRotations is how often a key can be rotated on demand.
// Source: AWS KMS Developer Guide, "Perform on-demand key rotation".
const MaxRotations = 25

// KeyMaterial is one key material of a symmetric key.
type KeyMaterial struct {
	ID              string
	State           string    // CURRENT, NON_CURRENT, PENDING_ROTATION, PENDING_MULTI_REGION_IMPORT_AND_ROTATION
	ImportState     string    // IMPORTED, PENDING_IMPORT
	ExpirationModel string    // KEY_MATERIAL_EXPIRES, KEY_MATERIAL_DOES_NOT_EXPIRE
	ValidTo         time.Time // UTC; zero: does not expire
	RotationDate    time.Time // UTC; zero for the first material and for one that waits for rotation
	Description     string
}

// maxPages bounds a list: a key has at most 25 rotations on demand and one a year, and a page holds 100.
const maxPages = 100

// ListKeyMaterials lists every key material of a symmetric key, also the first and one that is pending
// rotation (ListKeyRotations with ALL_KEY_MATERIAL). See [IsUnsupportedOperation] for endpoints and keys
// that have no such list.
func (c *Client) ListKeyMaterials(ctx context.Context, arn string) ([]KeyMaterial, error) {
	const op = opListKeyRotations
	if err := c.checkKey(op, arn); err != nil {
		return nil, err
	}
	var list []KeyMaterial
	in := &kms.ListKeyRotationsInput{KeyId: aws.String(arn), IncludeKeyMaterial: types.IncludeKeyMaterialAllKeyMaterial}
	for range maxPages {
		out, _, err := call(ctx, c, op, arn, c.api.ListKeyRotations, in)
		if err != nil {
			return nil, err
		}
		for _, e := range out.Rotations {
			if err := checkAnswer(op, arn, e.KeyId, true); err != nil && aws.ToString(e.KeyId) != keyID(arn) {
				return nil, err // KMS names the key by its ID or its ARN here
			}
			list = append(list, KeyMaterial{
				ID: aws.ToString(e.KeyMaterialId), State: string(e.KeyMaterialState), ImportState: string(e.ImportState),
				ExpirationModel: string(e.ExpirationModel), ValidTo: utc(e.ValidTo), RotationDate: utc(e.RotationDate),
				Description: aws.ToString(e.KeyMaterialDescription),
			})
		}
		if !out.Truncated {
			return list, nil
		}
		if aws.ToString(out.NextMarker) == "" {
			return nil, missing(op, arn, "marker of its next page")
		}
		in.Marker = out.NextMarker
	}
	return nil, newError(op, arn, &notKMSError{fmt.Sprintf("the list does not end after %d pages", maxPages)}, true)
}

// optional is nil for the empty string, so that the parameter is left out.
func optional(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}
