package importer

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"

	"hsmbridge/hsm/wrapping"
)

// Action is what a run does with the key material in KMS.
type Action string

// The actions.
const (
	ActionImport   Action = "import"   // KMS has never held material for this key, as far as it tells
	ActionRestore  Action = "restore"  // KMS knows material of this key that has expired or was deleted
	ActionReimport Action = "reimport" // KMS holds material; the same material goes in again with a new expiry
	ActionKeep     Action = "keep"     // KMS holds material with the life asked for; it is only proved
)

// Object is the key object in the token as a plan shows it.
type Object struct {
	Label   string           `json:"label"`
	ID      string           `json:"id,omitempty"` // CKA_ID in hex
	KeyType string           `json:"key_type,omitempty"`
	KeySpec wrapping.KeySpec `json:"key_spec"`
	Missing bool             `json:"missing,omitempty"` // it will be generated
}

// Plan is what an import will do, decided from the token's and KMS's real answers.
type Plan struct {
	Key             string                   `json:"key"`
	Destination     string                   `json:"destination"`
	Token           wrapping.TokenIdentity   `json:"token"`
	Object          Object                   `json:"object"`
	State           string                   `json:"state"` // of the KMS key
	Action          Action                   `json:"action"`
	Algorithm       wrapping.Algorithm       `json:"wrapping_algorithm"`
	WrappingKeySpec wrapping.WrappingKeySpec `json:"wrapping_key_spec"`
	Mechanism       string                   `json:"mechanism"`
	Padded          bool                     `json:"padded_pkcs8,omitempty"`
	PassedOver      []wrapping.Refusal       `json:"passed_over,omitempty"` // why each better candidate was refused
	ImportType      string                   `json:"import_type,omitempty"`
	KeyMaterialID   string                   `json:"key_material_id,omitempty"`
	Expires         string                   `json:"expires"` // "never" or a duration from the import on, such as "90d" or "36h0m0s"
	HeldUntil       *time.Time               `json:"held_until,omitempty"`
	ProofMethod     ProofMethod              `json:"proof"`
	ProofHow        string                   `json:"proof_how"`
	Operations      []string                 `json:"operations"` // KMS operations that the run needs, for an IAM policy
	Notes           []string                 `json:"notes,omitempty"`
	Digest          string                   `json:"digest"` // SHA-256 over the fields that say what will be done

	plans  []wrapping.Plan // best first
	heldID string          // key material ID that KMS shows
	listed bool            // KMS lists key materials, so it takes their descriptions
}

// Plan decides what Run would do with the request and changes nothing, in KMS or in the token (the probe's
// throwaway session objects are destroyed).
func (im *Importer) Plan(ctx context.Context, r Request) (Plan, error) {
	silent := *im
	silent.Record = nil
	run := &run{Importer: &silent, req: r, result: newResult(r)}
	p, err := run.preflight(ctx)
	p.Notes = run.result.Notes
	return p, err
}

// decide makes the plan from the selection and from what KMS holds.
func (r *run) decide(s wrapping.Selection, held holding, missing bool) Plan {
	best := s.Plans[0]
	p := Plan{
		Key: r.req.Name, Destination: r.req.Destination, Token: r.Token.Identity(), State: r.info.State,
		Object: Object{
			Label: r.key.Label, ID: hex.EncodeToString(r.key.ID), KeyType: r.key.KeyType, KeySpec: r.req.KeySpec, Missing: missing,
		},
		Algorithm: best.Algorithm, WrappingKeySpec: best.WrappingKeySpec, Mechanism: best.Mechanism.String(), Padded: best.Padded,
		PassedOver: s.PassedOver(best), Expires: "never", plans: s.Plans,
	}
	if missing {
		p.Object.Label, p.Object.ID = r.req.Object.Object, hex.EncodeToString(r.req.Object.ID)
	}
	if r.req.Expires > 0 {
		p.Expires = life(r.req.Expires)
	}
	if held.present && !held.validTo.IsZero() {
		p.HeldUntil = &held.validTo
	}
	if doubt := r.req.KeySpec.Doubt(); doubt != "" {
		r.note(doubt)
	}
	p.heldID, p.listed = held.id, held.listed
	p.Action = r.action(held)
	p.ImportType, p.KeyMaterialID = r.importType(held, p.Action)
	p.ProofMethod, p.ProofHow = proofFor(r.req, r.info)
	p.Operations = operations(r.req, p)
	p.Digest = p.digest()
	return p
}

func (r *run) action(held holding) Action {
	again := !r.req.ValidTo.IsZero() && held.present && held.validTo.Equal(r.req.ValidTo)
	switch {
	case !held.present && held.known():
		return ActionRestore
	case !held.present:
		return ActionImport
	case again:
		return ActionKeep // an earlier attempt of the same job did it
	case r.req.Renew || !r.lifeFits(held.validTo):
		return ActionReimport
	}
	return ActionKeep
}

// lifeFits says that what is left of the material's life is what the request asks for, within a tenth, so
// that a second run of the same request finds nothing to do.
func (r *run) lifeFits(validTo time.Time) bool {
	if r.req.Expires == 0 || validTo.IsZero() {
		return r.req.Expires == 0 && validTo.IsZero()
	}
	left, want := validTo.Sub(r.now()), r.req.Expires
	return left > want-want/10 && left <= want+time.Minute
}

// importType says what is asserted about material that is not new. ImportType and KeyMaterialId exist for
// symmetric keys only. A first import leaves both out: KMS's default is NEW_KEY_MATERIAL for a key that has
// never held any and EXISTING_KEY_MATERIAL afterwards, so that a repeated request can never add a second material.
func (r *run) importType(held holding, a Action) (importType, materialID string) {
	if r.req.KeySpec.Kind() == wrapping.KindSymmetric {
		switch {
		case r.req.New && a == ActionImport:
			return "NEW_KEY_MATERIAL", ""
		case r.req.KeyMaterialID != "" && held.listed:
			return "EXISTING_KEY_MATERIAL", r.req.KeyMaterialID
		}
	}
	if r.req.KeySpec.Kind() != wrapping.KindSymmetric || a == ActionImport && (!r.info.MultiRegion || r.info.Primary) {
		return "", ""
	}
	if !held.known() && !held.listed {
		return "", "" // an endpoint without key material IDs would not know the parameter either
	}
	if len(held.materials) > 1 || held.id == "" {
		return "EXISTING_KEY_MATERIAL", "" // KMS finds out which of its materials this is, and refuses others
	}
	return "EXISTING_KEY_MATERIAL", held.id
}

// operations are the KMS operations of the run, in the order of use.
func operations(r Request, p Plan) []string {
	ops := []string{"DescribeKey"}
	symmetric := r.KeySpec.Kind() == wrapping.KindSymmetric
	if symmetric {
		ops = append(ops, "ListKeyRotations")
	}
	if p.Action != ActionKeep || symmetric && r.Prove {
		ops = append(ops, "GetParametersForImport", "ImportKeyMaterial")
	}
	switch p.ProofMethod {
	case ProofMAC:
		ops = append(ops, "GenerateMac")
	case ProofPublicKey:
		ops = append(ops, "GetPublicKey")
	case ProofMaterialID, Unproved:
	}
	return ops
}

// digest is the SHA-256 over what will be done, as canonical JSON: not over what is only shown (the state,
// what was passed over, notes).
func (p Plan) digest() string {
	b, err := json.Marshal([]any{
		"hsmbridge plan v1", p.Key, p.Destination, p.Token, p.Object, p.Action, p.Algorithm, p.WrappingKeySpec, p.Mechanism, p.Padded,
		p.ImportType, p.KeyMaterialID, p.Expires, p.ProofMethod,
	})
	if err != nil {
		panic("importer: a plan is always representable as JSON: " + err.Error())
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// life is a duration in days where it has whole days, as AWS counts an expiry.
func life(d time.Duration) string {
	const day = 24 * time.Hour
	if d%day == 0 {
		return fmt.Sprintf("%dd", d/day)
	}
	return d.String()
}

// Summary is the plan in one line.
func (p Plan) Summary() string {
	if p.Action == ActionKeep {
		return fmt.Sprintf("%s: KMS holds the material with the life asked for; it will be proved", p.Key)
	}
	return fmt.Sprintf("%s: %s with %s under %s by %s, expires %s", p.Key, p.Action, p.Algorithm, p.WrappingKeySpec, p.Mechanism, p.Expires)
}
