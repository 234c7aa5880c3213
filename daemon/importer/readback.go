package importer

import (
	"context"
	"fmt"
	"time"

	"hsmbridge/kmsclient"
)

// UnknownOutcomeError says that ImportKeyMaterial was sent, that no answer came, and that KMS does not show
// its effect. Running the import again is safe: it reads what KMS holds first.
type UnknownOutcomeError struct {
	Key, Destination string
	Err              error
}

func (e *UnknownOutcomeError) Error() string {
	return fmt.Sprintf("whether KMS imported %s is not known: its answer was lost and %s does not show the material yet; "+
		"run the import again, it looks at KMS before it imports: %v", e.Key, e.Destination, e.Err)
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
	for range tries {
		info, err := r.kms.DescribeKey(ctx, r.req.Destination)
		if err == nil && info.State != "PendingImport" && info.ValidTo.Equal(validTo) && (fresh || r.changes(validTo)) {
			return kmsclient.ImportResult{KeyARN: info.ARN, KeyMaterialID: info.CurrentKeyMaterialID},
				r.record(ctx, StepImport, "KMS's answer was lost; DescribeKey shows that it took the key material", "key_material_id", info.CurrentKeyMaterialID)
		}
		if err := r.wait(ctx, step); err != nil {
			break
		}
	}
	return kmsclient.ImportResult{}, &UnknownOutcomeError{Key: r.req.Name, Destination: r.req.Destination, Err: cause}
}

// changes says that the expiry differs from what KMS held before, so that seeing it there proves the effect.
func (r *run) changes(validTo time.Time) bool { return !r.info.ValidTo.Equal(validTo) }
