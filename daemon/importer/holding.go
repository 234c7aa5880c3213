package importer

import (
	"context"
	"fmt"
	"slices"
	"time"

	"hsmbridge/hsm/wrapping"
	"hsmbridge/kmsclient"
)

// holding is what KMS holds for the destination before anything is done, of the material that the request is about.
type holding struct {
	present   bool                    // KMS has the material
	listed    bool                    // ListKeyRotations answered, so materials is complete
	materials []kmsclient.KeyMaterial // of the key, all of them; symmetric keys only
	validTo   time.Time               // of the present material; zero: never, or nothing present
	id        string                  // of the material, if KMS tells
}

// known says that KMS has an ID for the material, or had for one before.
func (h holding) known() bool { return h.id != "" || len(h.materials) > 0 }

// single says that KMS holds one material and has had no other, so that it is the one which every request means.
func (h holding) single(req Request) bool {
	return req.KeySpec.Kind() != wrapping.KindSymmetric || h.listed && len(h.materials) <= 1
}

// held reads back what KMS holds.
func (r *run) held(ctx context.Context) (holding, error) {
	h := holding{present: r.info.State != "PendingImport", validTo: r.info.ValidTo, id: r.info.CurrentKeyMaterialID}
	if r.req.KeySpec.Kind() != wrapping.KindSymmetric {
		return h, nil
	}
	var err error
	switch h.materials, err = r.kms.ListKeyMaterials(ctx, r.req.Destination); {
	case err == nil:
		h.listed = true
	case kmsclient.IsUnsupportedOperation(err):
		r.note("this KMS endpoint has no ListKeyRotations: which materials it holds is known only from DescribeKey")
	case kmsclient.Code(err) == "AccessDeniedException":
		r.note("kms:ListKeyRotations is not allowed: which materials KMS holds is known only from DescribeKey")
	default:
		return h, fmt.Errorf("list the key materials of %s in KMS: %w", r.req.Name, err)
	}
	r.before = h.materials
	for _, m := range h.materials {
		if m.State == materialCurrent && h.id == "" {
			h.id = m.ID
		}
	}
	return r.ours(h)
}

// States of a key material. Source: AWS KMS API Reference, RotationsListEntry.
const (
	materialCurrent        = "CURRENT"
	materialPending        = "PENDING_ROTATION"
	materialPendingRegions = "PENDING_MULTI_REGION_IMPORT_AND_ROTATION"
)

func waits(m kmsclient.KeyMaterial) bool {
	return m.State == materialPending || m.State == materialPendingRegions
}

// ours narrows a holding to the material of the request, where it is one of several.
func (r *run) ours(h holding) (holding, error) {
	switch {
	case r.req.New && !h.listed:
		return h, r.refuse("this KMS endpoint, or the permissions for it, do not list key materials, without which a rotation cannot be followed",
			"allow kms:ListKeyRotations, or use an endpoint that has it")
	case r.req.New && r.req.KeyMaterialID == "":
		return r.waiting(h)
	case r.req.KeyMaterialID == "" || !h.listed:
		return h, nil
	}
	i := slices.IndexFunc(h.materials, func(m kmsclient.KeyMaterial) bool { return m.ID == r.req.KeyMaterialID })
	if i < 0 {
		if r.req.Pending { // KMS may not show it yet
			h.present, h.validTo, h.id = false, time.Time{}, r.req.KeyMaterialID
			return h, nil
		}
		return h, r.refuse(fmt.Sprintf("KMS does not know the key material %s for this key", r.req.KeyMaterialID),
			"run hsmbridge reconcile for the key: it finds out which of its materials KMS knows")
	}
	m := h.materials[i]
	h.present, h.validTo, h.id = m.ImportState == "IMPORTED", m.ValidTo, m.ID
	return h, nil
}

// waiting looks for a material that waits for rotation already: an earlier attempt's own, told by its description, or somebody else's.
func (r *run) waiting(h holding) (holding, error) {
	i := slices.IndexFunc(h.materials, waits)
	if i < 0 {
		h.present, h.validTo, h.id, h.materials = false, time.Time{}, "", nil
		return h, nil
	}
	m := h.materials[i]
	if r.req.Description == "" || m.Description != r.req.Description {
		return h, r.refuse(fmt.Sprintf("another key material (%s) waits for rotation in KMS", m.ID),
			"rotate to it (aws kms rotate-key-on-demand) or delete it (aws kms delete-imported-key-material with its ID), then run hsmbridge retry")
	}
	r.req.KeyMaterialID = m.ID
	h.present, h.validTo, h.id = m.ImportState == "IMPORTED", m.ValidTo, m.ID
	return h, nil
}

// description is what KMS keeps beside the material, where it can.
func (r *run) description() string {
	if r.plan.listed && r.req.KeySpec.Kind() == wrapping.KindSymmetric {
		return r.req.Description
	}
	return ""
}
