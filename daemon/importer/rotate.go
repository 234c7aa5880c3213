package importer

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"hsmbridge/hsm/wrapping"
	"hsmbridge/kmsclient"
)

// Rotate makes the material with the request's KeyMaterialID, which waits for rotation, the current one of the destination: a KMS key
// of one Region, or the primary of a multi-Region key whose Regions all have it. Found current, there is nothing to do.
func (im *Importer) Rotate(ctx context.Context, r Request) error {
	run := &run{Importer: im, req: r, result: newResult(r)}
	var err error
	if run.kms, err = im.KMS(ctx, r.Destination); err != nil {
		return fmt.Errorf("reach KMS for %s: %w", r.Name, err)
	}
	switch current, err := run.isCurrent(ctx); {
	case err != nil:
		return err
	case current:
		return run.record(ctx, StepRotated, "KMS encrypts with the new key material already", "key_material_id", r.KeyMaterialID)
	}
	if err := run.record(ctx, StepRotate, "the new key material is made the current one", "key_material_id", r.KeyMaterialID); err != nil {
		return err
	}
	switch err := run.kms.RotateKeyOnDemand(ctx, r.Destination); {
	case err == nil, kmsclient.OutcomeUnknown(err), kmsclient.Code(err) == "ConflictException": // the list tells
	default:
		return fmt.Errorf("rotate %s: %w", r.Name, err)
	}
	const step, tries = 2 * time.Second, 30
	pending := &RotationPendingError{Key: r.Name, Destination: r.Destination}
	for range tries {
		switch current, err := run.isCurrent(ctx); {
		case err != nil && ctx.Err() != nil:
			return pending
		case err != nil:
			return fmt.Errorf("KMS was asked to rotate %s, and whether it did is not known yet; the next try looks before it asks again: %w", r.Destination, err)
		case current:
			return run.record(context.WithoutCancel(ctx), StepRotated, "KMS encrypts with the new key material", "key_material_id", r.KeyMaterialID)
		}
		if err := run.wait(ctx, step); err != nil {
			break
		}
	}
	return pending
}

// RotationPendingError says that a rotation was asked for and that KMS does not show it yet.
type RotationPendingError struct{ Key, Destination string }

func (e *RotationPendingError) Error() string {
	return fmt.Sprintf("%s: KMS was asked to rotate %s and does not show it yet; what waits stays there, and the next try looks before it asks again", e.Key, e.Destination)
}

// Class is "kms".
func (e *RotationPendingError) Class() string { return "kms" }

func (r *run) isCurrent(ctx context.Context) (bool, error) {
	list, err := r.kms.ListKeyMaterials(ctx, r.req.Destination)
	if err != nil {
		return false, fmt.Errorf("list the key materials of %s in KMS: %w", r.req.Name, err)
	}
	return slices.ContainsFunc(list, func(m kmsclient.KeyMaterial) bool { return m.ID == r.req.KeyMaterialID && m.State == materialCurrent }), nil
}

// Revoke deletes all key material of the destination from KMS, the current one first, and gives the number that it deleted. It needs no
// token. Run again it finds what is left.
func (im *Importer) Revoke(ctx context.Context, r Request) (deleted int, err error) {
	run := &run{Importer: im, req: r, result: newResult(r)}
	if run.kms, err = im.KMS(ctx, r.Destination); err != nil {
		return 0, fmt.Errorf("reach KMS for %s: %w", r.Name, err)
	}
	var lost error // the last answer to a deletion that did not come
	for range kmsclient.MaxRotations + 2 {
		o, err := im.Observe(ctx, r)
		if err != nil {
			return deleted, err
		}
		var ids []string
		for _, m := range o.Materials {
			switch {
			case m.ImportState != "IMPORTED":
			case m.State == materialCurrent:
				ids = slices.Insert(ids, 0, m.ID)
			default:
				ids = append(ids, m.ID)
			}
		}
		if o.Materials == nil && o.Present {
			ids = []string{""} // the only one
		}
		if len(ids) == 0 {
			return deleted, nil
		}
		if err := run.record(ctx, StepDelete, fmt.Sprintf("key materials to be deleted from KMS: %d", len(ids))); err != nil {
			return deleted, err
		}
		lost = nil
		for _, id := range ids {
			switch err := run.kms.DeleteImportedKeyMaterial(ctx, r.Destination, id); {
			case err == nil:
				deleted++
				if err := run.record(context.WithoutCancel(ctx), StepDeleted, "KMS deleted the key material", "key_material_id", id); err != nil {
					return deleted, err
				}
			case kmsclient.OutcomeUnknown(err):
				lost = err // the next look tells
			default:
				return deleted, fmt.Errorf("delete the key material of %s: %w", r.Name, err)
			}
		}
		if lost == nil {
			return deleted, nil
		}
	}
	return deleted, fmt.Errorf("whether KMS deleted all key material of %s is not known: its answers were lost again and again, and %s shows material still; "+
		"what was deleted stays deleted, and the next try looks at KMS and deletes what is left: %w", r.Name, r.Destination, lost)
}

// Observation is what KMS shows of a destination.
type Observation struct {
	Info      kmsclient.KeyInfo
	Present   bool                    // KMS holds all its material: the key is Enabled or Disabled
	ValidTo   time.Time               // the earliest expiry; zero: none expires, or nothing is present
	Materials []kmsclient.KeyMaterial // nil: not a symmetric key, or KMS does not tell
	Rotations int                     // on demand, so far; -1: KMS does not tell
}

// Observe asks KMS what it holds for a destination, and changes nothing.
func (im *Importer) Observe(ctx context.Context, r Request) (Observation, error) {
	kms, err := im.KMS(ctx, r.Destination)
	if err != nil {
		return Observation{}, fmt.Errorf("reach KMS for %s: %w", r.Name, err)
	}
	o := Observation{Rotations: -1}
	if o.Info, err = kms.DescribeKey(ctx, r.Destination); err != nil {
		return o, fmt.Errorf("look at the destination of %s: %w", r.Name, err)
	}
	o.Present = o.Info.Origin == "EXTERNAL" && slices.Contains([]string{"Enabled", "Disabled"}, o.Info.State)
	o.ValidTo = o.Info.ValidTo
	if cmp.Or(r.KeySpec, wrapping.KeySpec(o.Info.KeySpec)).Kind() != wrapping.KindSymmetric { // of a key that was taken out of the configuration only KMS tells it
		return o, nil
	}
	switch o.Materials, err = kms.ListKeyMaterials(ctx, r.Destination); {
	case err == nil:
		o.Rotations = 0
		for _, m := range o.Materials {
			if m.ImportState == "IMPORTED" && !waits(m) && !m.ValidTo.IsZero() && (o.ValidTo.IsZero() || m.ValidTo.Before(o.ValidTo)) {
				o.ValidTo = m.ValidTo // KMS says so itself (KeyMetadata, ValidTo); older endpoints need not
			}
			if !m.RotationDate.IsZero() {
				o.Rotations++
			}
		}
	case !kmsclient.IsUnsupportedOperation(err) && kmsclient.Code(err) != "AccessDeniedException":
		return o, fmt.Errorf("list the key materials of %s in KMS: %w", r.Name, err)
	}
	return o, nil
}
