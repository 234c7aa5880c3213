package kmsemu

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"slices"
	"time"
)

// parameters are one set of import parameters, found again by the import token.
type parameters struct {
	KeyARN, Algorithm, Spec string
	Private                 *rsa.PrivateKey
	ValidTo                 time.Time
}

// offered is what KMS offers for a key: the wrapping algorithms of its spec.
func (s *Server) offered(k *key) []string {
	oaep := []string{"RSAES_OAEP_SHA_256", "RSAES_OAEP_SHA_1"}
	aes := []string{"RSA_AES_KEY_WRAP_SHA_256", "RSA_AES_KEY_WRAP_SHA_1"}
	if partition(k.Region) == "aws-cn" {
		aes = nil
	}
	switch {
	case k.symmetric() || k.Usage == "GENERATE_VERIFY_MAC":
		if s.opt.Era == "2018" {
			return append(oaep, "RSAES_PKCS1_V1_5")
		}
		return oaep
	case k.Spec[:3] == "RSA":
		return aes
	}
	return append(aes, oaep...)
}

func getParametersForImport(s *Server, c call) (any, error) {
	var in struct{ KeyID, WrappingAlgorithm, WrappingKeySpec string }
	k, err := s.requested(c, &in, &in.KeyID)
	if err != nil {
		return nil, err
	}
	if err := s.importable(k); err != nil {
		return nil, err
	}
	bits := map[string]int{"RSA_2048": 2048, "RSA_3072": 3072, "RSA_4096": 4096}[in.WrappingKeySpec]
	switch {
	case bits == 0:
		return nil, fail("ValidationException", "1 validation error detected: Value '%s' at 'wrappingKeySpec' failed to satisfy constraint: Member must satisfy enum value set: [RSA_2048, RSA_3072, RSA_4096, SM2]", in.WrappingKeySpec)
	case s.refused[in.WrappingKeySpec] != "":
		return nil, fail(s.refused[in.WrappingKeySpec], "WrappingKeySpec %s is not supported.", in.WrappingKeySpec)
	case s.refused[in.WrappingAlgorithm] != "":
		return nil, fail(s.refused[in.WrappingAlgorithm], "WrappingAlgorithm %s is not supported.", in.WrappingAlgorithm)
	case !slices.Contains(s.offered(k), in.WrappingAlgorithm):
		return nil, fail("ValidationException", "WrappingAlgorithm %s is not supported for %s keys.", in.WrappingAlgorithm, k.Spec)
	case k.Spec == "ECC_NIST_P521" && bits == 2048 && in.WrappingAlgorithm[:5] == "RSAES":
		return nil, fail("ValidationException", "WrappingAlgorithm %s with WrappingKeySpec RSA_2048 is not supported for ECC_NIST_P521 keys.", in.WrappingAlgorithm)
	}
	private, err := s.wrappers.get(bits)
	if err != nil {
		return nil, err
	}
	public, err := x509.MarshalPKIXPublicKey(&private.PublicKey)
	if err != nil {
		return nil, err
	}
	token := make([]byte, 512)
	if _, err := rand.Read(token); err != nil {
		return nil, err
	}
	p := &parameters{KeyARN: k.ARN, Algorithm: in.WrappingAlgorithm, Spec: in.WrappingKeySpec, Private: private, ValidTo: s.now().Add(24 * time.Hour)}
	s.params[hex.EncodeToString(token)] = p
	out := map[string]any{"KeyId": k.ARN, "ImportToken": token, "PublicKey": public, "ParametersValidTo": stamp(p.ValidTo)}
	return out, s.beHostile(out, p)
}

// importable says whether the key takes imported material at all.
func (s *Server) importable(k *key) error {
	switch state := k.state(); {
	case k.Origin != "EXTERNAL":
		return fail("UnsupportedOperationException", "%s origin is %s which is not valid for this operation.", k.ARN, k.Origin)
	case state == "PendingDeletion":
		return fail("KMSInvalidStateException", "%s is pending deletion.", k.ARN)
	}
	return nil
}

// maxLife is the longest ValidTo. Source: API Reference, ImportKeyMaterial.
const maxLife = 365 * 24 * time.Hour

func importKeyMaterial(s *Server, c call) (any, error) {
	var in struct {
		KeyID, ExpirationModel, ImportType, KeyMaterialID string
		KeyMaterialDescription                            *string
		EncryptedKeyMaterial, ImportToken                 []byte
		ValidTo                                           *float64
	}
	k, err := s.requested(c, &in, &in.KeyID)
	if err != nil {
		return nil, err
	}
	if err := s.importable(k); err != nil {
		return nil, err
	}
	if !k.symmetric() && (in.ImportType != "" || in.KeyMaterialID != "" || in.KeyMaterialDescription != nil) {
		return nil, fail("ValidationException", "ImportType, KeyMaterialId and KeyMaterialDescription are valid for symmetric encryption keys only.")
	}
	if s.noIDs && (in.ImportType != "" || in.KeyMaterialID != "") {
		return nil, fail("ValidationException", "unknown parameter")
	}
	validTo, err := s.validTo(in.ExpirationModel, in.ValidTo)
	if err != nil {
		return nil, err
	}
	p := s.params[hex.EncodeToString(in.ImportToken)]
	switch {
	case p == nil, p.KeyARN != k.ARN:
		return nil, fail("InvalidImportTokenException", "the import token is not for this key")
	case !s.now().Before(p.ValidTo):
		return nil, fail("ExpiredImportTokenException", "the import token has expired")
	}
	plain, err := unwrap(p.Private, p.Algorithm, in.EncryptedKeyMaterial)
	if err != nil {
		return nil, fail("InvalidCiphertextException", "")
	}
	if plain, err = checkMaterial(k.Spec, plain, s.opt.LenientDER); err != nil {
		return nil, fail("InvalidCiphertextException", "")
	}
	before := k.state()
	m, err := s.place(k, plain, in.ImportType, in.KeyMaterialID)
	if err != nil {
		return nil, err
	}
	m.Bytes, m.ValidTo = plain, validTo
	if in.KeyMaterialDescription != nil {
		m.Description = *in.KeyMaterialDescription
	}
	s.regionsReady(k, m.ID)
	s.change(k, before)
	out := map[string]any{"KeyId": k.ARN}
	if k.symmetric() && !s.noIDs {
		out["KeyMaterialId"] = m.ID
	}
	return out, nil
}

func (s *Server) validTo(model string, seconds *float64) (time.Time, error) {
	switch {
	case model == "KEY_MATERIAL_DOES_NOT_EXPIRE" && seconds != nil:
		return time.Time{}, fail("ValidationException", "ValidTo must not be set when ExpirationModel is KEY_MATERIAL_DOES_NOT_EXPIRE")
	case model == "KEY_MATERIAL_DOES_NOT_EXPIRE":
		return time.Time{}, nil
	case model != "" && model != "KEY_MATERIAL_EXPIRES":
		return time.Time{}, fail("ValidationException", "ExpirationModel %s", model)
	case seconds == nil:
		return time.Time{}, fail("ValidationException", "A validTo date must be set if the ExpirationModel is KEY_MATERIAL_EXPIRES")
	}
	t := time.UnixMilli(int64(*seconds * 1000))
	if !t.After(s.now()) || t.After(s.now().Add(maxLife)) {
		return time.Time{}, fail("ValidationException", "ValidTo must be in the future and at most 365 days from now")
	}
	return t, nil
}

// materialID is the ID of a material: it depends on the key ID and the bytes, so that replicas agree.
func materialID(k *key, b []byte) string {
	h := sha256.New()
	h.Write([]byte(k.ID))
	h.Write(canonical(k.Spec, b))
	return hex.EncodeToString(h.Sum(nil))
}

// place finds or makes the entry that the material goes into, by the rules of ImportType.
func (s *Server) place(k *key, plain []byte, importType, asserted string) (*material, error) {
	id := materialID(k, plain)
	var known *material
	for _, m := range k.Materials {
		if m.ID == id {
			known = m
		}
	}
	if !k.symmetric() {
		if len(k.Materials) > 0 && known == nil {
			return nil, fail("IncorrectKeyMaterialException", "the key material is not the one that was imported before")
		}
		if known == nil {
			known = &material{ID: id, State: current}
			k.Materials = append(k.Materials, known)
		}
		return known, nil
	}
	if importType == "" {
		importType = "EXISTING_KEY_MATERIAL"
		if len(k.Materials) == 0 {
			importType = "NEW_KEY_MATERIAL"
		}
	}
	switch importType {
	case "EXISTING_KEY_MATERIAL":
		if known == nil || asserted != "" && asserted != id {
			return nil, fail("IncorrectKeyMaterialException", "the key material is not associated with this key")
		}
		return known, nil
	case "NEW_KEY_MATERIAL":
		return s.placeNew(k, known, id, asserted)
	}
	return nil, fail("ValidationException", "ImportType %s", importType)
}

func (s *Server) placeNew(k *key, known *material, id, asserted string) (*material, error) {
	waiting := slices.IndexFunc(k.Materials, func(m *material) bool { return !m.permanent() })
	switch {
	case asserted != "":
		return nil, fail("ValidationException", "KeyMaterialId cannot be specified with NEW_KEY_MATERIAL")
	case k.MultiRegion && k.ARN != k.Primary:
		return nil, fail("UnsupportedOperationException", "NEW_KEY_MATERIAL can only be imported into the primary Region key.")
	case known != nil && known.permanent():
		return nil, fail("IncorrectKeyMaterialException", "the key material is already associated with this key")
	case known != nil:
		return known, nil
	case len(k.Materials) > 0 && k.state() == "PendingImport":
		return nil, fail("KMSInvalidStateException", "%s is pending import of existing key material.", k.ARN)
	case waiting >= 0:
		return nil, fail("KMSInvalidStateException", "%s has key material pending rotation.", k.ARN)
	}
	state := current
	if len(k.Materials) > 0 {
		state = pending
		if len(s.related(k)) > 1 {
			state = pendingRegions
		}
	}
	m := &material{ID: id, State: state}
	k.Materials = append(k.Materials, m)
	for _, r := range s.related(k) {
		if r != k {
			r.Materials = append(r.Materials, &material{ID: id, State: state})
		}
	}
	return m, nil
}

// regionsReady makes a new material of a multi-Region key ready for rotation once every Region has it.
func (s *Server) regionsReady(k *key, id string) {
	var entries []*material
	for _, r := range s.related(k) {
		for _, m := range r.Materials {
			if m.ID == id && m.State == pendingRegions {
				if m.Bytes == nil {
					return
				}
				entries = append(entries, m)
			}
		}
	}
	for _, m := range entries {
		m.State = pending
	}
}

func deleteImportedKeyMaterial(s *Server, c call) (any, error) {
	var in struct{ KeyID, KeyMaterialID string }
	k, err := s.requested(c, &in, &in.KeyID)
	if err != nil {
		return nil, err
	}
	if err := s.importable(k); err != nil {
		return nil, err
	}
	before := k.state()
	found := false
	for i, m := range k.Materials {
		if in.KeyMaterialID == "" && m.State == current || m.ID == in.KeyMaterialID {
			m.Bytes, m.ValidTo, found = nil, time.Time{}, true
			if !m.permanent() {
				k.Materials = slices.Delete(k.Materials, i, i+1)
			}
			break
		}
	}
	if !found && in.KeyMaterialID != "" {
		return nil, fail("NotFoundException", "key material %s is not found", in.KeyMaterialID)
	}
	s.change(k, before)
	return map[string]any{"KeyId": k.ARN, "KeyMaterialId": in.KeyMaterialID}, nil
}

func listKeyRotations(s *Server, c call) (any, error) {
	var in struct{ KeyID, IncludeKeyMaterial string }
	k, err := s.requested(c, &in, &in.KeyID)
	switch {
	case err != nil:
		return nil, err
	case !k.symmetric():
		return nil, fail("UnsupportedOperationException", "%s is not a symmetric encryption key.", k.ARN)
	}
	out := []map[string]any{}
	for _, m := range k.Materials {
		if in.IncludeKeyMaterial != "ALL_KEY_MATERIAL" && m.Rotated.IsZero() {
			continue
		}
		e := map[string]any{"KeyId": k.ARN, "KeyMaterialId": m.ID, "KeyMaterialState": m.State}
		if k.Origin == "EXTERNAL" {
			e["ImportState"] = "PENDING_IMPORT"
			if m.Bytes != nil {
				e["ImportState"], e["ExpirationModel"] = "IMPORTED", "KEY_MATERIAL_DOES_NOT_EXPIRE"
			}
			if !m.ValidTo.IsZero() {
				e["ExpirationModel"], e["ValidTo"] = "KEY_MATERIAL_EXPIRES", stamp(m.ValidTo)
			}
			if m.Description != "" {
				e["KeyMaterialDescription"] = m.Description
			}
		}
		if !m.Rotated.IsZero() {
			e["RotationDate"], e["RotationType"] = stamp(m.Rotated), "ON_DEMAND"
		}
		out = append(out, e)
	}
	return map[string]any{"Rotations": out, "Truncated": false}, nil
}

// maxRotations is AWS's limit of on-demand rotations of one key.
const maxRotations = 25

func rotateKeyOnDemand(s *Server, c call) (any, error) {
	var in struct{ KeyID string }
	k, err := s.requested(c, &in, &in.KeyID)
	switch {
	case err != nil:
		return nil, err
	case !k.symmetric() || k.MultiRegion && k.ARN != k.Primary:
		return nil, fail("UnsupportedOperationException", "%s cannot be rotated on demand.", k.ARN)
	case k.state() != "Enabled":
		return nil, fail("KMSInvalidStateException", "%s is in state %s.", k.ARN, k.state())
	case k.Rotations >= maxRotations:
		return nil, fail("LimitExceededException", "the on-demand rotation limit of %d has been reached", maxRotations)
	case !k.RotateAt.IsZero():
		return nil, fail("ConflictException", "a rotation is in progress")
	case k.Origin == "EXTERNAL" && !slices.ContainsFunc(k.Materials, func(m *material) bool { return m.State == pending }):
		return nil, fail("KMSInvalidStateException", "%s has no key material pending rotation.", k.ARN)
	}
	k.RotateAt = s.now().Add(s.lag)
	if s.lag == 0 {
		s.rotate(k)
	}
	return map[string]any{"KeyId": k.ARN}, nil
}

// rotate makes the waiting material current, in every Region of the key.
func (s *Server) rotate(k *key) {
	k.RotateAt = time.Time{}
	k.Rotations++
	for _, r := range s.related(k) {
		if k.Origin == "AWS_KMS" && r == k {
			b, err := generate(k.Spec)
			if err != nil {
				return
			}
			r.Materials = append(r.Materials, &material{ID: materialID(k, b), Bytes: b, State: pending})
		}
		for _, m := range r.Materials {
			switch m.State {
			case current:
				m.State = nonCurrent
			case pending:
				m.State, m.Rotated = current, s.now()
			}
		}
	}
}

func getKeyRotationStatus(s *Server, c call) (any, error) {
	var in struct{ KeyID string }
	k, err := s.requested(c, &in, &in.KeyID)
	if err != nil {
		return nil, err
	}
	out := map[string]any{"KeyId": k.ARN, "KeyRotationEnabled": false}
	if !k.RotateAt.IsZero() {
		out["OnDemandRotationStartDate"] = stamp(k.RotateAt)
	}
	return out, nil
}

// canonical is what a material is known by: private keys are the same whichever way their PKCS#8 is written.
func canonical(spec string, b []byte) []byte {
	if id, err := privateIdentity(spec, b); err == nil {
		return id
	}
	return bytes.Clone(b)
}
