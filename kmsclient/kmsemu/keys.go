package kmsemu

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"
)

// key is one KMS key in one Region.
type key struct {
	ARN, ID, Region string
	Spec, Usage     string
	Origin          string
	Description     string
	Created         time.Time
	Enabled         bool
	Deletion        time.Time // zero: none scheduled
	MultiRegion     bool
	Primary         string // ARN of the primary of a multi-Region key
	Materials       []*material
	Tags            map[string]string
	Rotations       int
	RotateAt        time.Time // an on-demand rotation that was asked for
	Stale           *stale    // what readers still see
}

// material is one key material. Its ID stays when its bytes are gone.
type material struct {
	ID          string
	Bytes       []byte // raw secret or PKCS#8; nil when it is not imported
	State       string // CURRENT, NON_CURRENT, PENDING_ROTATION, PENDING_MULTI_REGION_IMPORT_AND_ROTATION
	ValidTo     time.Time
	Rotated     time.Time
	Description string
}

// stale is what DescribeKey shows until a change is seen everywhere.
type stale struct {
	Until time.Time
	State string
}

const (
	current        = "CURRENT"
	nonCurrent     = "NON_CURRENT"
	pending        = "PENDING_ROTATION"
	pendingRegions = "PENDING_MULTI_REGION_IMPORT_AND_ROTATION"
)

// specs are the key specs and the usages that each can have, the default first.
func specs() map[string][]string {
	const sign, crypt, mac, agree = "SIGN_VERIFY", "ENCRYPT_DECRYPT", "GENERATE_VERIFY_MAC", "KEY_AGREEMENT"
	return map[string][]string{
		"SYMMETRIC_DEFAULT": {crypt},
		"HMAC_224":          {mac}, "HMAC_256": {mac}, "HMAC_384": {mac}, "HMAC_512": {mac},
		"RSA_2048": {crypt, sign}, "RSA_3072": {crypt, sign}, "RSA_4096": {crypt, sign},
		"ECC_NIST_P256": {sign, agree}, "ECC_NIST_P384": {sign, agree}, "ECC_NIST_P521": {sign, agree},
		"ECC_SECG_P256K1": {sign}, "ECC_NIST_EDWARDS25519": {sign},
	}
}

// state is the key's state by what it holds.
func (k *key) state() string {
	switch {
	case !k.Deletion.IsZero():
		return "PendingDeletion"
	case k.currentMaterial() == nil || slices.ContainsFunc(k.Materials, func(m *material) bool { return m.permanent() && m.Bytes == nil }):
		return "PendingImport"
	case !k.Enabled:
		return "Disabled"
	}
	return "Enabled"
}

func (m *material) permanent() bool { return m.State == current || m.State == nonCurrent }

func (k *key) currentMaterial() *material {
	for _, m := range k.Materials {
		if m.State == current {
			return m
		}
	}
	return nil
}

// earliestEnd is when the first of the permanently associated materials expires; zero: none does.
// Source: AWS KMS API Reference, KeyMetadata, ValidTo.
func (k *key) earliestEnd() time.Time {
	var end time.Time
	for _, m := range k.Materials {
		if m.permanent() && !m.ValidTo.IsZero() && (end.IsZero() || m.ValidTo.Before(end)) {
			end = m.ValidTo
		}
	}
	return end
}

func (k *key) symmetric() bool { return k.Spec == "SYMMETRIC_DEFAULT" }

// uuid is a random key ID.
func uuid() string {
	var b [16]byte
	_, _ = rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	h := hex.EncodeToString(b[:])
	return strings.Join([]string{h[:8], h[8:12], h[12:16], h[16:20], h[20:]}, "-")
}

// lookup finds a key by ID, ARN, alias or alias ARN.
func (s *Server) lookup(c call, id string) (*key, error) {
	switch {
	case id == "":
		return nil, fail("ValidationException", "KeyId is missing")
	case strings.HasPrefix(id, "alias/"):
		arn, ok := s.aliases[c.region+"/"+id]
		if !ok {
			return nil, fail("NotFoundException", "Alias arn:aws:kms:%s:%s:%s is not found.", c.region, s.account, id)
		}
		id = arn
	case strings.HasPrefix(id, "arn:"):
		parts := strings.SplitN(id, ":", 6)
		if len(parts) != 6 || parts[2] != "kms" {
			return nil, fail("InvalidArnException", "Invalid arn %s", id)
		}
		if strings.HasPrefix(parts[5], "alias/") {
			return s.lookup(c, parts[5])
		}
		if parts[4] != s.account {
			return nil, fail("AccessDeniedException", "User: arn:aws:iam::%s:user/test is not authorized to perform: kms:%s on resource: %s because no resource-based policy allows the kms:%s action", s.account, c.op, id, c.op)
		}
		if parts[3] != c.region {
			return nil, fail("NotFoundException", "Invalid arn %s", parts[3])
		}
	default:
		id = s.arn(c.region, id)
	}
	k, ok := s.keys[id]
	if !ok {
		return nil, fail("NotFoundException", "Key '%s' does not exist", id)
	}
	return k, nil
}

// lookupNoAlias is lookup for the operations that take a key ID or ARN only.
func (s *Server) lookupNoAlias(c call, id string) (*key, error) {
	if strings.HasPrefix(id, "alias/") || strings.Contains(id, ":alias/") {
		return nil, fail("InvalidArnException", "Invalid keyId %s: %s does not take an alias", id, c.op)
	}
	return s.lookup(c, id)
}

// requested decodes a request into in and finds the key that its member id then names, which is no alias.
func (s *Server) requested(c call, in any, id *string) (*key, error) {
	if err := c.decode(in); err != nil {
		return nil, err
	}
	return s.lookupNoAlias(c, *id)
}

func (s *Server) arn(region, id string) string {
	return fmt.Sprintf("arn:%s:kms:%s:%s:key/%s", partition(region), region, s.account, id)
}

func partition(region string) string {
	switch {
	case strings.HasPrefix(region, "cn-"):
		return "aws-cn"
	case strings.HasPrefix(region, "us-gov-"):
		return "aws-us-gov"
	}
	return "aws"
}

// usable finds a key for a cryptographic operation.
func (s *Server) usable(c call, id string, usage ...string) (*key, *material, error) {
	k, err := s.lookup(c, id)
	if err != nil {
		return nil, nil, err
	}
	switch state := k.state(); {
	case state == "Disabled":
		return nil, nil, fail("DisabledException", "%s is disabled.", k.ARN)
	case state != "Enabled" || s.isStale(k):
		return nil, nil, fail("KMSInvalidStateException", "%s is pending import.", k.ARN)
	case !slices.Contains(usage, k.Usage):
		return nil, nil, fail("InvalidKeyUsageException", "%s key usage is %s which is not valid for %s.", k.ARN, k.Usage, c.op)
	}
	m := k.currentMaterial()
	return k, m, nil
}

func (s *Server) isStale(k *key) bool { return k.Stale != nil && s.now().Before(k.Stale.Until) }

// change remembers what readers go on seeing for a while, where eventual consistency was asked for.
func (s *Server) change(k *key, before string) {
	if s.lag > 0 {
		k.Stale = &stale{Until: s.now().Add(s.lag), State: before}
	}
}

// expire lets happen what the clock brings: expiry, deletion, rotation.
func (s *Server) expire() {
	now := s.now()
	for arn, k := range s.keys {
		if !k.Deletion.IsZero() && !now.Before(k.Deletion) {
			delete(s.keys, arn)
			continue
		}
		if !k.RotateAt.IsZero() && !now.Before(k.RotateAt) {
			s.rotate(k)
		}
		for _, m := range k.Materials {
			if m.Bytes != nil && !m.ValidTo.IsZero() && !now.Before(m.ValidTo) {
				m.Bytes = nil
			}
		}
	}
}

// stamp is a time as AWS JSON 1.1 writes it: seconds with a fraction; nil for none.
func stamp(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return float64(t.UnixMilli()) / 1000
}

// metadata is KeyMetadata.
func (s *Server) metadata(k *key) map[string]any {
	state := k.state()
	if s.isStale(k) {
		state = k.Stale.State
	}
	m := map[string]any{
		"AWSAccountId": s.account, "Arn": k.ARN, "KeyId": k.ID, "CreationDate": stamp(k.Created), "Description": k.Description,
		"Enabled": state == "Enabled", "KeyManager": "CUSTOMER", "KeySpec": k.Spec, "CustomerMasterKeySpec": k.Spec, "KeyState": state,
		"KeyUsage": k.Usage, "Origin": k.Origin, "MultiRegion": k.MultiRegion,
	}
	if !k.Deletion.IsZero() {
		m["DeletionDate"] = stamp(k.Deletion)
	}
	if cur := k.currentMaterial(); cur != nil && k.Origin == "EXTERNAL" && state != "PendingImport" {
		m["ExpirationModel"] = "KEY_MATERIAL_DOES_NOT_EXPIRE"
		if end := k.earliestEnd(); !end.IsZero() {
			m["ExpirationModel"], m["ValidTo"] = "KEY_MATERIAL_EXPIRES", stamp(end)
		}
	}
	if cur := k.currentMaterial(); cur != nil && k.symmetric() && !s.noIDs {
		m["CurrentKeyMaterialId"] = cur.ID
	}
	if k.MultiRegion {
		var replicas []map[string]string
		for _, r := range s.related(k) {
			if r.ARN != k.Primary {
				replicas = append(replicas, map[string]string{"Arn": r.ARN, "Region": r.Region})
			}
		}
		kind := "REPLICA"
		if k.ARN == k.Primary {
			kind = "PRIMARY"
		}
		m["MultiRegionConfiguration"] = map[string]any{
			"MultiRegionKeyType": kind, "PrimaryKey": map[string]string{"Arn": k.Primary, "Region": strings.Split(k.Primary, ":")[3]}, "ReplicaKeys": replicas,
		}
	}
	for name, list := range algorithms(k) {
		m[name] = list
	}
	return m
}

// algorithms are the lists that KeyMetadata and GetPublicKey give for a key.
func algorithms(k *key) map[string][]string {
	switch {
	case k.Usage == "GENERATE_VERIFY_MAC":
		return map[string][]string{"MacAlgorithms": {"HMAC_SHA_" + k.Spec[5:]}}
	case k.Usage == "SIGN_VERIFY":
		return map[string][]string{"SigningAlgorithms": signingAlgorithms(k.Spec)}
	case k.symmetric():
		return map[string][]string{"EncryptionAlgorithms": {"SYMMETRIC_DEFAULT"}}
	case k.Usage == "ENCRYPT_DECRYPT":
		return map[string][]string{"EncryptionAlgorithms": {"RSAES_OAEP_SHA_1", "RSAES_OAEP_SHA_256"}}
	}
	return nil
}

// related are all Regions' keys of one multi-Region key, in the order of their ARNs.
func (s *Server) related(k *key) []*key {
	if !k.MultiRegion {
		return []*key{k}
	}
	var out []*key
	for _, r := range s.keys {
		if r.MultiRegion && r.Primary == k.Primary {
			out = append(out, r)
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].ARN < out[j].ARN })
	return out
}
