package importer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"hsmbridge/hsm/wrapping"
	"hsmbridge/kmsclient"
)

// Step names a step of an import in events, logs and the journal.
type Step string

// The steps in the order in which they are recorded; an import need not have all of them.
const (
	StepPreflight  Step = "preflight"
	StepGenerate   Step = "generate"
	StepIntent     Step = "intent"
	StepParameters Step = "parameters"
	StepWrap       Step = "wrap"
	StepImport     Step = "import"
	StepProof      Step = "proof"
	StepRotate     Step = "rotate"  // RotateKeyOnDemand is sent next
	StepRotated    Step = "rotated" // KMS encrypts with the new material
	StepDelete     Step = "delete"  // DeleteImportedKeyMaterial is sent next
	StepDeleted    Step = "deleted" // KMS deleted one
	StepOutcome    Step = "outcome"
)

// ClassApproval is the class of the error that officers have to approve it first; see [Class].
const ClassApproval = "approval"

// Event is one step's result, recorded before the next step begins. It never holds key material, a wrapped
// key or an import token.
type Event struct {
	Time        time.Time
	Step        Step
	Key         string
	Destination string
	Message     string
	Fields      []Field
	Imported    bool // of StepImport: KMS took the material, and not for a proof alone
}

// Field is a name and a value of an event, in the order in which they are shown.
type Field struct{ Name, Value string }

func (r *run) record(ctx context.Context, step Step, message string, fields ...string) error {
	if r.Record == nil {
		return nil
	}
	e := Event{Time: r.now(), Step: step, Key: r.req.Name, Destination: r.req.Destination, Message: message, Imported: step == StepImport && !r.proving}
	for i := 0; i+1 < len(fields); i += 2 {
		if fields[i+1] != "" {
			e.Fields = append(e.Fields, Field{fields[i], fields[i+1]})
		}
	}
	if err := r.Record(ctx, e); err != nil {
		return fmt.Errorf("record the step %s of %s, which therefore stopped there: %w", step, r.req.Name, err)
	}
	return nil
}

// Outcome is how an import ended.
type Outcome string

// The outcomes.
const (
	Imported   Outcome = "imported"   // KMS took the material for the first time
	Restored   Outcome = "restored"   // KMS took material back that had expired or was deleted
	Reimported Outcome = "reimported" // KMS took the same material again, with a new expiry
	Unchanged  Outcome = "unchanged"  // KMS already held it with the life asked for
	Waits      Outcome = "waits"      // officers were asked; nothing was wrapped yet
	Failed     Outcome = "failed"     // KMS did not take it, or the proof says that it is another key; before unknown was told apart, it was told as this too
	Unknown    Outcome = "unknown"    // ImportKeyMaterial was sent and KMS does not show whether it took effect; the next run finds out
)

// Result is what happened to one destination of one key.
type Result struct {
	Key               string                   `json:"key"`
	Destination       string                   `json:"destination"`
	Algorithm         wrapping.Algorithm       `json:"wrapping_algorithm"`
	WrappingKeySpec   wrapping.WrappingKeySpec `json:"wrapping_key_spec"`
	Mechanism         string                   `json:"mechanism"`
	WrappingKeySHA256 string                   `json:"wrapping_key_sha256"` // empty when nothing was wrapped
	KeyMaterialID     string                   `json:"key_material_id"`     // symmetric keys only
	Expires           string                   `json:"expires"`             // RFC 3339 in UTC, "never", or empty when nothing is imported
	CheckValue        string                   `json:"check_value"`         // KCV of the HSM's key in hex, empty if the token gives none
	Proof             ProofMethod              `json:"proof"`
	ProofReason       string                   `json:"proof_reason,omitempty"` // why it is unproved
	Result            Outcome                  `json:"result"`
	PassedOver        []wrapping.Refusal       `json:"passed_over,omitempty"` // why each better candidate was refused
	Notes             []string                 `json:"notes,omitempty"`
	PlanDigest        string                   `json:"plan_digest,omitempty"`
	RequestIDs        []string                 `json:"request_ids,omitempty"` // of ImportKeyMaterial, to find the CloudTrail entries
	Error             string                   `json:"error,omitempty"`
	ErrorClass        string                   `json:"error_class,omitempty"` // caller, session, token, library, kms or approval

	expires time.Time
	took    bool
}

func newResult(r Request) Result {
	return Result{Key: r.Name, Destination: r.Destination, Proof: Unproved, Result: Failed}
}

// Failure is the result of an import that could not be begun.
func Failure(r Request, err error) Result {
	result := newResult(r)
	result.Error, result.ErrorClass = err.Error(), Class(err)
	return result
}

func (r *Result) setPlanned(p Plan) {
	r.Algorithm, r.WrappingKeySpec, r.Mechanism = p.Algorithm, p.WrappingKeySpec, p.Mechanism
	r.PassedOver, r.PlanDigest = p.PassedOver, p.Digest
	if p.Action == ActionKeep {
		r.KeyMaterialID = p.heldID
		var until time.Time
		if p.HeldUntil != nil {
			until = *p.HeldUntil
		}
		r.setExpires(until)
	}
}

func (r *Result) setWrapped(p wrapping.Plan, params kmsclient.ImportParameters) {
	r.Algorithm, r.WrappingKeySpec, r.Mechanism = p.Algorithm, p.WrappingKeySpec, p.Mechanism.String()
	r.WrappingKeySHA256 = params.SHA256()
}

func (r *Result) setImported(a Action, validTo time.Time, out kmsclient.ImportResult) {
	r.took = true
	r.Result = map[Action]Outcome{ActionImport: Imported, ActionRestore: Restored, ActionReimport: Reimported}[a]
	r.KeyMaterialID = out.KeyMaterialID
	r.setExpires(validTo)
}

func (r *Result) setExpires(t time.Time) {
	r.expires, r.Expires = t, "never"
	if !t.IsZero() {
		r.Expires = t.UTC().Format(time.RFC3339)
	}
}

func (r *Result) expiresAt() time.Time { return r.expires }

// ExpiresAt is when the material expires in KMS; zero: never, or nothing was imported.
func (r Result) ExpiresAt() time.Time { return r.expires }

// Took says that KMS took key material, whatever the proof said of it then.
func (r Result) Took() bool { return r.took }

// finish completes the result and records the outcome: what KMS took stays told as imported when only its
// proof failed. When even that cannot be recorded, the result says so. The error is err, in plain words where the
// run was interrupted.
func (r *run) finish(ctx context.Context, err error) (Result, error) {
	message := string(r.result.Result)
	if err = r.interrupted(ctx, err); err != nil {
		r.result.Error, r.result.ErrorClass = err.Error(), Class(err)
		var unknown *UnknownOutcomeError
		switch {
		case r.result.Result != Failed:
		case r.result.ErrorClass == ClassApproval:
			r.result.Result = Waits
		case errors.As(err, &unknown):
			r.result.Result = Unknown
		}
		if errors.Is(err, ErrNotSameKey) {
			r.result.Result = Failed // whatever KMS took, it is not this key
		}
		message = r.result.Error
	}
	ctx = context.WithoutCancel(ctx)
	if rerr := r.record(ctx, StepOutcome, message, "result", string(r.result.Result), "proof", string(r.result.Proof)); rerr != nil {
		r.note("the outcome could not be recorded: " + rerr.Error())
	}
	return r.result, err
}

// Class is the class of an error, which decides what happens next: "caller" (this key or request: stop and
// explain), "session" (reopen it), "token" (park it), "library" (replace the process), "kms", or "" when
// the error has none.
func Class(err error) string {
	for err != nil {
		if c, ok := err.(interface{ Class() string }); ok {
			return c.Class()
		}
		switch u := err.(type) { //nolint:errorlint // the same
		case interface{ Unwrap() error }:
			err = u.Unwrap()
		case interface{ Unwrap() []error }:
			for _, e := range u.Unwrap() {
				if c := Class(e); c != "" {
					return c
				}
			}
			return ""
		default:
			return ""
		}
	}
	return ""
}
