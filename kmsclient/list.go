package kmsclient

import (
	"context"
	"maps"
	"slices"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

// Sizes of pages: the most that KMS takes. Source: AWS KMS API Reference, ListKeys, ListAliases, ListResourceTags.
const (
	pageOfKeys    = 1000
	pageOfAliases = 100
	pageOfTags    = 50
)

// ListKeys lists the ARNs of all KMS keys of the account in the Region, of every origin and state.
func (c *Client) ListKeys(ctx context.Context) ([]string, error) {
	var out []string
	err := c.pages(opListKeys, "", func(marker *string) (next *string, more bool, err error) {
		page, _, err := call(ctx, c, opListKeys, "", c.api.ListKeys, &kms.ListKeysInput{Limit: aws.Int32(pageOfKeys), Marker: marker})
		if err != nil {
			return nil, false, err
		}
		for _, k := range page.Keys {
			out = append(out, aws.ToString(k.KeyArn))
		}
		return page.NextMarker, page.Truncated, nil
	})
	return out, err
}

// ListAliases lists the aliases of the account in the Region, "alias/payments", by the key ID that they name. Those of AWS managed keys
// that do not exist yet name none and are left out.
func (c *Client) ListAliases(ctx context.Context) (map[string][]string, error) {
	out := map[string][]string{}
	err := c.pages(opListAliases, "", func(marker *string) (next *string, more bool, err error) {
		page, _, err := call(ctx, c, opListAliases, "", c.api.ListAliases, &kms.ListAliasesInput{Limit: aws.Int32(pageOfAliases), Marker: marker})
		if err != nil {
			return nil, false, err
		}
		for _, a := range page.Aliases {
			if id := aws.ToString(a.TargetKeyId); id != "" {
				out[id] = append(out[id], aws.ToString(a.AliasName))
			}
		}
		return page.NextMarker, page.Truncated, nil
	})
	for _, names := range out {
		slices.Sort(names)
	}
	return out, err
}

// ListTags lists the tags of a key.
func (c *Client) ListTags(ctx context.Context, arn string) (map[string]string, error) {
	if err := c.checkKey(opListResourceTags, arn); err != nil {
		return nil, err
	}
	out := map[string]string{}
	err := c.pages(opListResourceTags, arn, func(marker *string) (next *string, more bool, err error) {
		in := &kms.ListResourceTagsInput{KeyId: aws.String(arn), Limit: aws.Int32(pageOfTags), Marker: marker}
		page, _, err := call(ctx, c, opListResourceTags, arn, c.api.ListResourceTags, in)
		if err != nil {
			return nil, false, err
		}
		for _, t := range page.Tags {
			out[aws.ToString(t.TagKey)] = aws.ToString(t.TagValue)
		}
		return page.NextMarker, page.Truncated, nil
	})
	return out, err
}

// pages asks for page after page. A server that says that there is more and does not say where, or says the same place again, is refused:
// a list that ends early would look complete.
func (c *Client) pages(op operation, key string, page func(marker *string) (next *string, more bool, err error)) error {
	var marker *string
	for {
		next, more, err := page(marker)
		switch {
		case err != nil:
			return err
		case !more:
			return nil
		case aws.ToString(next) == "" || aws.ToString(next) == aws.ToString(marker):
			return missing(op, key, "the marker of the next page")
		}
		marker = next
	}
}

// ReplicaRequest is one ReplicateKey.
type ReplicaRequest struct {
	PrimaryARN  string
	Region      string // of the replica
	Description string
	Policy      string // key policy, JSON; empty: the account's default
	Tags        map[string]string
}

// ReplicateKey creates a replica of a multi-Region primary key in another Region; one of origin EXTERNAL then waits for the primary's key
// material. c is a client of the primary's Region. It is sent once; asked again for a Region that has a replica, KMS answers
// AlreadyExistsException.
func (c *Client) ReplicateKey(ctx context.Context, r ReplicaRequest) (KeyInfo, error) {
	const op = opReplicateKey
	if err := c.checkKey(op, r.PrimaryARN); err != nil {
		return KeyInfo{}, err
	}
	in := &kms.ReplicateKeyInput{KeyId: aws.String(r.PrimaryARN), ReplicaRegion: aws.String(r.Region), Description: optional(r.Description), Policy: optional(r.Policy)}
	for _, k := range slices.Sorted(maps.Keys(r.Tags)) {
		in.Tags = append(in.Tags, types.Tag{TagKey: aws.String(k), TagValue: aws.String(r.Tags[k])})
	}
	out, _, err := call(ctx, c, op, r.PrimaryARN, c.api.ReplicateKey, in)
	if err != nil {
		return KeyInfo{}, err
	}
	if out.ReplicaKeyMetadata == nil || aws.ToString(out.ReplicaKeyMetadata.Arn) == "" {
		return KeyInfo{}, missing(op, r.PrimaryARN, "key metadata")
	}
	return keyInfo(out.ReplicaKeyMetadata), nil
}
