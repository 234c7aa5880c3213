package importer

import (
	"context"
	"fmt"
	"slices"
	"time"

	"hsmbridge/kmsclient"
)

// UnknownOutcomeError says that ImportKeyMaterial was sent, that no answer came, and that KMS does not show
// its effect, or could not be asked. Running the import again is safe: it reads what KMS holds first.
type UnknownOutcomeError struct {
	Key, Destination string
	Err              error
	Interrupted      bool // KMS could not be asked
}

func (e *UnknownOutcomeError) Error() string {
	if e.Interrupted {
		return fmt.Sprintf("whether KMS imported %s is not known: the import was interrupted before the answer of %s came; run it again, it looks at KMS before it imports", e.Key, e.Destination)
	}
	lost := ""
	if code := kmsclient.Code(e.Err); code != "" {
		lost = " (" + code + ")"
	}
	return fmt.Sprintf("whether KMS imported %s is not known: its answer was lost%s and %s does not show that it did; "+
		"run it again, it looks at KMS before it imports", e.Key, lost, e.Destination)
}

// Unwrap gives the error of the call.
func (e *UnknownOutcomeError) Unwrap() error { return e.Err }

// Class is "kms".
func (e *UnknownOutcomeError) Class() string { return "kms" }

// unknownEffect says that a failed ImportKeyMaterial may have taken effect all the same.
func unknownEffect(err error) bool { return kmsclient.OutcomeUnknown(err) }

// readBack looks for the effect of an ImportKeyMaterial whose answer was lost. The expiry, which this run
// chose to the second, tells its own import from an older one.
func (r *run) readBack(ctx context.Context, validTo time.Time, cause error) (kmsclient.ImportResult, error) {
	const step, tries = time.Second, 5
	fresh := r.plan.Action == ActionImport || r.plan.Action == ActionRestore
	looks := 0 // at KMS that were not interrupted
	for range tries {
		if id := r.appeared(ctx, validTo); id != "" {
			return kmsclient.ImportResult{KeyARN: r.req.Destination, KeyMaterialID: id},
				r.recordSeen(ctx, "KMS's answer was lost; ListKeyRotations shows that it took the key material", id)
		}
		info, err := r.kms.DescribeKey(ctx, r.req.Destination)
		if err == nil || ctx.Err() == nil {
			looks++
		}
		if err == nil && !r.byID() && info.State != "PendingImport" && info.ValidTo.Equal(validTo) && (fresh || r.changes(validTo)) {
			return kmsclient.ImportResult{KeyARN: info.ARN, KeyMaterialID: info.CurrentKeyMaterialID},
				r.recordSeen(ctx, "KMS's answer was lost; DescribeKey shows that it took the key material", info.CurrentKeyMaterialID)
		}
		if err := r.wait(ctx, step); err != nil {
			break
		}
	}
	return kmsclient.ImportResult{}, &UnknownOutcomeError{Key: r.req.Name, Destination: r.req.Destination, Err: cause, Interrupted: looks == 0}
}

// recordSeen records that KMS took the material, also when the run is being stopped.
func (r *run) recordSeen(ctx context.Context, message, id string) error {
	r.seen = true
	r.note("KMS's answer was lost on the way; that it took effect was read back")
	return r.record(context.WithoutCancel(ctx), StepImport, message, "key_material_id", id)
}

// byID says that the material is one of several, which only their list tells apart.
func (r *run) byID() bool {
	return r.req.New || r.req.Pending || r.req.KeyMaterialID != "" && len(r.before) > 1
}

// appeared is the ID of the material that the run imported, if the list of materials shows it now and did not show it so before.
func (r *run) appeared(ctx context.Context, validTo time.Time) string {
	if !r.byID() {
		return ""
	}
	list, err := r.kms.ListKeyMaterials(ctx, r.req.Destination)
	if err != nil {
		return ""
	}
	for _, m := range list {
		was := slices.ContainsFunc(r.before, func(b kmsclient.KeyMaterial) bool {
			return b.ID == m.ID && b.ImportState == m.ImportState && b.ValidTo.Equal(m.ValidTo)
		})
		ours := m.ID == r.req.KeyMaterialID || r.req.New && r.req.KeyMaterialID == "" && waits(m)
		if ours && !was && m.ImportState == "IMPORTED" && m.ValidTo.Equal(validTo) {
			return m.ID
		}
	}
	return ""
}

// changes says that the expiry differs from what KMS held before, so that seeing it there proves the effect.
func (r *run) changes(validTo time.Time) bool { return !r.info.ValidTo.Equal(validTo) }
