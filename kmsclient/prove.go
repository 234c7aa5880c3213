package kmsclient

import (
	"context"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

// GetPublicKey is the public half of an asymmetric key: DER SubjectPublicKeyInfo, RFC 5280.
func (c *Client) GetPublicKey(ctx context.Context, arn string) ([]byte, error) {
	const op = opGetPublicKey
	if err := c.checkKey(op, arn); err != nil {
		return nil, err
	}
	out, _, err := call(ctx, c, op, arn, c.api.GetPublicKey, &kms.GetPublicKeyInput{KeyId: aws.String(arn)})
	if err != nil {
		return nil, err
	}
	return c.proof(op, arn, out.KeyId, out.PublicKey, "public key")
}

// GenerateMAC is the HMAC of the message, at most 4096 bytes, under an HMAC key. The algorithm is
// HMAC_SHA_224, HMAC_SHA_256, HMAC_SHA_384 or HMAC_SHA_512.
func (c *Client) GenerateMAC(ctx context.Context, arn, algorithm string, message []byte) ([]byte, error) {
	const op = opGenerateMAC
	if err := c.checkKey(op, arn); err != nil {
		return nil, err
	}
	out, _, err := call(ctx, c, op, arn, c.api.GenerateMac, &kms.GenerateMacInput{
		KeyId: aws.String(arn), MacAlgorithm: types.MacAlgorithmSpec(algorithm), Message: message,
	})
	if err != nil {
		return nil, err
	}
	return c.proof(op, arn, out.KeyId, out.Mac, "MAC")
}

// Sign is a signature over the message itself (MessageType RAW), at most 4096 bytes. ECDSA signatures are
// DER, RFC 3279.
func (c *Client) Sign(ctx context.Context, arn, algorithm string, message []byte) ([]byte, error) {
	const op = opSign
	if err := c.checkKey(op, arn); err != nil {
		return nil, err
	}
	out, _, err := call(ctx, c, op, arn, c.api.Sign, &kms.SignInput{
		KeyId: aws.String(arn), Message: message, MessageType: types.MessageTypeRaw, SigningAlgorithm: types.SigningAlgorithmSpec(algorithm),
	})
	if err != nil {
		return nil, err
	}
	return c.proof(op, arn, out.KeyId, out.Signature, "signature")
}

// proof is the value if it is there and is about the key that was asked for.
func (c *Client) proof(op operation, arn string, answered *string, value []byte, what string) ([]byte, error) {
	if err := checkAnswer(op, arn, answered, false); err != nil {
		return nil, err
	}
	if len(value) == 0 {
		return nil, missing(op, arn, what)
	}
	return value, nil
}
