// Package importer is the use case: a key in an HSM becomes usable in AWS KMS. [Importer.Run] is the
// function to read. It consumes a [Token] and a [KMS] through small interfaces, so that the same steps run
// against a token in this process, in another process, or against the emulator.
//
// An import is, in this order: preflight (what KMS and the token say), the read-back of what KMS already
// holds, import parameters, wrap inside the token, ImportKeyMaterial, and proof that KMS holds the same key.
// Every step is recorded before the next begins, and an import that is run again never imports blindly.
package importer

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"time"

	"hsmbridge/hsm/pkcs11uri"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/kmsclient"
)

// Token is what an import needs of the HSM. No method returns key material in the clear.
type Token interface {
	Identity() wrapping.TokenIdentity
	// Find returns the one secret or private key that the URI names; its error wraps
	// [wrapping.ErrKeyNotFound] or [wrapping.ErrKeyAmbiguous] otherwise.
	Find(ctx context.Context, object pkcs11uri.URI) (wrapping.Key, error)
	// Generate makes a persistent, sensitive and extractable key.
	Generate(ctx context.Context, spec wrapping.KeySpec, label string, id []byte) (wrapping.Key, error)
	// Probe proves with throwaway keys what the token can do for these key specs.
	Probe(ctx context.Context, specs ...wrapping.KeySpec) (wrapping.Capabilities, error)
	// Wrap wraps key under pub as the plan says, checks the output and leaves nothing behind in the token.
	Wrap(ctx context.Context, key wrapping.Key, pub *rsa.PublicKey, plan wrapping.Plan) ([]byte, error)
	// PublicKey is the DER SubjectPublicKeyInfo of a private key's public half.
	PublicKey(ctx context.Context, key wrapping.Key) ([]byte, error)
	// MAC is the HMAC of message under an HMAC key.
	MAC(ctx context.Context, key wrapping.Key, message []byte) ([]byte, error)
	// CheckValue is the key check value (KCV) in hex, empty when the token gives none.
	CheckValue(ctx context.Context, key wrapping.Key) (string, error)
}

// KMS is what an import needs of AWS KMS. [kmsclient.Client] has these methods.
type KMS interface {
	// Endpoint is where it calls; empty: AWS's own.
	Endpoint() string
	DescribeKey(ctx context.Context, arn string) (kmsclient.KeyInfo, error)
	GetParametersForImport(ctx context.Context, arn, algorithm, wrappingKeySpec string) (kmsclient.ImportParameters, error)
	ImportKeyMaterial(ctx context.Context, r kmsclient.ImportRequest) (kmsclient.ImportResult, error)
	ListKeyMaterials(ctx context.Context, arn string) ([]kmsclient.KeyMaterial, error)
	RotateKeyOnDemand(ctx context.Context, arn string) error
	DeleteImportedKeyMaterial(ctx context.Context, arn, keyMaterialID string) error
	GetPublicKey(ctx context.Context, arn string) ([]byte, error)
	GenerateMAC(ctx context.Context, arn, algorithm string, message []byte) ([]byte, error)
	Sign(ctx context.Context, arn, algorithm string, message []byte) ([]byte, error)
}

// Request is one import: one managed key to one destination.
type Request struct {
	Name        string           // the managed key
	Object      pkcs11uri.URI    // where it is in the token
	KeySpec     wrapping.KeySpec // what it has to be
	Destination string           // key ARN
	Generate    bool             // make the key in the token if it is not there and KMS has never held one
	Expires     time.Duration    // life of the material in KMS from now on; 0: it does not expire
	Prove       bool             // spend a second set of import parameters to prove a symmetric key
	Renew       bool             // import again although KMS holds the material with the life asked for
	Policy      wrapping.Policy

	// What an earlier attempt or an earlier import left to know. All may be empty.
	ValidTo       time.Time // the expiry that an earlier attempt of the same job chose: found in KMS, nothing is left to import
	KeyMaterialID string    // of this material; it is asserted, and KMS refuses any other. Symmetric keys only
	CheckValue    string    // of the key object; another one is refused
	Description   string    // KeyMaterialDescription. Symmetric keys only

	// New imports another material than the destination has (NEW_KEY_MATERIAL), which then waits for rotation. Pending says of material
	// with a KeyMaterialID that it may still wait, as in the replicas of a multi-Region key.
	New, Pending bool
}

// Importer carries out imports with one token. It is used by one goroutine at a time.
type Importer struct {
	Token  Token
	KMS    func(ctx context.Context, destination string) (KMS, error) // the client for a destination's account and Region
	Record func(ctx context.Context, e Event) error                   // journal, audit, progress; an error stops the import before the next step; may be nil
	Now    func() time.Time                                           // nil: time.Now
	Random io.Reader                                                  // for messages that are MACed or signed; nil: crypto/rand
	Wait   func(ctx context.Context, d time.Duration) error
	// Authorize is asked whether a wrap may be done, once before parameters are fetched for it and again immediately before it; an
	// error stops the import. It must be there: without it nothing is wrapped.
	Authorize func(ctx context.Context, a Act) error
	// Chosen is told the expiry before it is sent to KMS, so that a later attempt can name it as Request.ValidTo; may be nil.
	Chosen func(ctx context.Context, validTo time.Time) error

	probed map[wrapping.KeySpec]wrapping.Capabilities
}

// Run carries out one import and returns what happened. Run again with the same request it finds what KMS
// holds, proves it again and imports only what has to be imported. The Result says how far it came also
// when err is not nil.
func (im *Importer) Run(ctx context.Context, r Request) (Result, error) {
	run := &run{Importer: im, req: r, result: newResult(r)}
	return run.finish(ctx, run.all(ctx))
}

// run is the state of one import.
type run struct {
	*Importer
	kms    KMS
	req    Request
	plan   Plan
	key    wrapping.Key
	info   kmsclient.KeyInfo
	result Result

	uploading bool                    // what was wrapped in an HSM room
	already   bool                    // and KMS held material before
	made      bool                    // the key was generated in the token
	before    []kmsclient.KeyMaterial // the materials that KMS listed at first
	confirmed bool                    // KMS itself answered that it took the material
	seen      bool                    // KMS's answer was lost, and it shows that it took the material
	proving   bool                    // the next wrap is the second one, for the proof
}

func (r *run) all(ctx context.Context) error {
	plan, err := r.preflight(ctx)
	if err != nil {
		return err
	}
	if plan.Object.Missing {
		if err := r.generate(ctx); err != nil {
			return err
		}
	}
	if r.result.CheckValue, err = r.Token.CheckValue(ctx, r.key); err != nil {
		return fmt.Errorf("read the check value of %s: %w", r.req.Name, err)
	}
	if want := r.req.CheckValue; want != "" && r.result.CheckValue != "" && r.result.CheckValue != want {
		return r.refuse(fmt.Sprintf("the object's check value is %s, and that of the key that was imported before is %s: it is another key", r.result.CheckValue, want),
			PutBack)
	}
	if err := r.record(ctx, StepIntent, plan.Summary(), "plan", plan.Digest); err != nil {
		return err
	}
	if plan.Action == ActionKeep {
		r.result.Result = Unchanged
		return r.prove(ctx)
	}
	if err := r.authorize(ctx, r.act(plan.plans[0])); err != nil {
		return err
	}
	if err := r.importMaterial(ctx); err != nil {
		return err
	}
	return r.prove(ctx)
}

// generate makes the key that the preflight found missing and allowed to be made.
func (r *run) generate(ctx context.Context) error {
	key, err := r.Token.Generate(ctx, r.req.KeySpec, r.req.Object.Object, r.req.Object.ID)
	if err != nil {
		return fmt.Errorf("generate %s in the token: %w", r.req.Name, err)
	}
	r.key, r.made = key, true
	return r.record(ctx, StepGenerate, fmt.Sprintf("generated a %s key in the token", r.req.KeySpec), "label", key.Label)
}

// importMaterial wraps the key and imports it, and reads back what KMS did when the answer was lost.
func (r *run) importMaterial(ctx context.Context) error {
	validTo := r.validTo()
	if r.Chosen != nil {
		if err := r.Chosen(ctx, validTo); err != nil {
			return fmt.Errorf("record the expiry of %s, which therefore was not imported: %w", r.req.Name, err)
		}
	}
	req := kmsclient.ImportRequest{KeyARN: r.req.Destination, ValidTo: validTo, Description: r.description()}
	if r.plan.Action == ActionRestore || r.plan.Action == ActionReimport || r.req.New {
		req.ImportType, req.KeyMaterialID = r.plan.ImportType, r.plan.KeyMaterialID
	}
	out, err := r.wrapAndImport(ctx, req)
	if err != nil && unknownEffect(err) {
		out, err = r.readBack(ctx, validTo, err)
	}
	if r.confirmed || r.seen {
		r.result.setImported(r.plan.Action, validTo, out) // true also when the journal then failed
	}
	return err
}

// wrapAndImport does one round: parameters, wrap, ImportKeyMaterial. Parameters that KMS calls expired are
// fetched anew, once.
func (r *run) wrapAndImport(ctx context.Context, req kmsclient.ImportRequest) (kmsclient.ImportResult, error) {
	for try := 1; ; try++ {
		params, plan, err := r.parameters(ctx)
		if err != nil {
			return kmsclient.ImportResult{}, err
		}
		act := r.act(plan)
		act.Now, act.Parameters = true, params
		if err := r.authorize(ctx, act); err != nil {
			return kmsclient.ImportResult{}, err
		}
		wrapped, err := r.Token.Wrap(ctx, r.key, params.PublicKey, plan)
		if err != nil {
			return kmsclient.ImportResult{}, fmt.Errorf("wrap %s in the token: %w", r.req.Name, err)
		}
		r.result.setWrapped(plan, params)
		sum := sha256.Sum256(wrapped)
		if err := r.record(ctx, StepWrap, fmt.Sprintf("the token wrapped the key, %d bytes", len(wrapped)),
			"mechanism", plan.Mechanism.String(), "wrapping_key_sha256", params.SHA256(), "output_sha256", hex.EncodeToString(sum[:])); err != nil {
			return kmsclient.ImportResult{}, err
		}
		req.ImportToken, req.EncryptedKeyMaterial = params.ImportToken, wrapped
		out, err := r.kms.ImportKeyMaterial(ctx, req)
		switch {
		case err == nil:
			r.result.RequestIDs = append(r.result.RequestIDs, out.RequestID)
			r.confirmed = true
			// What KMS did is recorded also when the run is being stopped.
			return out, r.record(context.WithoutCancel(ctx), StepImport, r.taken(), "request_id", out.RequestID, "key_material_id", out.KeyMaterialID)
		case kmsclient.Code(err) == "ExpiredImportTokenException" && try == 1:
			r.note("the import parameters had expired and were fetched anew")
		default:
			if plan.Padded && kmsclient.Code(err) == "InvalidCiphertextException" {
				r.note("the token leaves zero bytes behind the PKCS#8 (wrapping.allow_padded_pkcs8), and this KMS does not take them: use a token that wraps exactly")
			}
			return kmsclient.ImportResult{}, fmt.Errorf("import %s into KMS: %w", r.req.Name, err)
		}
	}
}

// parameters fetches import parameters for the best plan that KMS takes.
func (r *run) parameters(ctx context.Context) (kmsclient.ImportParameters, wrapping.Plan, error) {
	var refused []error
	for len(r.plan.plans) > 0 {
		plan := r.plan.plans[0]
		params, err := r.kms.GetParametersForImport(r.proof(ctx), r.req.Destination, string(plan.Algorithm), string(plan.WrappingKeySpec))
		switch {
		case err == nil:
			what := "import parameters from KMS"
			if !params.Fetched.IsZero() {
				what += ", fetched at " + params.Fetched.UTC().Format(time.RFC3339) + " and not used since"
			}
			return params, plan, r.record(ctx, StepParameters, what,
				"wrapping_algorithm", string(plan.Algorithm), "wrapping_key_spec", string(plan.WrappingKeySpec),
				"wrapping_key_sha256", params.SHA256(), "valid_to", params.ValidTo.UTC().Format(time.RFC3339))
		case !refusesPlan(err):
			return kmsclient.ImportParameters{}, plan, fmt.Errorf("get import parameters for %s: %w", r.req.Name, err)
		}
		refused = append(refused, err)
		r.result.PassedOver = append(r.result.PassedOver, wrapping.Refusal{
			Algorithm: plan.Algorithm, WrappingKeySpec: plan.WrappingKeySpec, Rule: wrapping.RuleKMS, Reason: "KMS refused it: " + kmsclient.Code(err),
		})
		r.plan.plans = r.plan.plans[1:]
		if err := r.record(ctx, StepParameters, "KMS refused a plan, the next one is tried",
			"wrapping_algorithm", string(plan.Algorithm), "wrapping_key_spec", string(plan.WrappingKeySpec), "code", kmsclient.Code(err)); err != nil {
			return kmsclient.ImportParameters{}, plan, err
		}
	}
	return kmsclient.ImportParameters{}, wrapping.Plan{}, fmt.Errorf("KMS refused every plan for %s: %w", r.req.Name, errors.Join(refused...))
}

// refusesPlan says that KMS refused the algorithm or the wrapping key spec, so that the next plan is worth a
// try: KMS-compatible servers and older partitions do not know all of them.
func refusesPlan(err error) bool {
	switch kmsclient.Code(err) {
	case "ValidationException", "UnsupportedOperationException":
		return true
	}
	return false
}

// validTo is when the material is to expire, in whole seconds as KMS keeps it; zero: never. The maximum of
// 365 days is shortened by a minute so that clocks need not agree to the second.
func (r *run) validTo() time.Time {
	if r.req.Expires == 0 {
		return time.Time{}
	}
	// A repeated attempt asks for the same expiry, as long as it is worth anything.
	if v := r.req.ValidTo; v.After(r.now().Add(r.req.Expires/2)) && !v.After(r.now().Add(MaxExpires-time.Minute)) {
		return v
	}
	return r.now().Add(min(r.req.Expires, MaxExpires-time.Minute)).Truncate(time.Second)
}

func (im *Importer) now() time.Time {
	if im.Now == nil {
		return time.Now()
	}
	return im.Now()
}

func (im *Importer) random(n int) ([]byte, error) {
	src := im.Random
	if src == nil {
		src = rand.Reader
	}
	b := make([]byte, n)
	_, err := io.ReadFull(src, b)
	return b, err
}

func (im *Importer) wait(ctx context.Context, d time.Duration) error {
	if im.Wait != nil {
		return im.Wait(ctx, d)
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

func (r *run) note(s string) { r.result.Notes = append(r.result.Notes, s) }

// taken says what KMS took.
func (r *run) taken() string {
	if r.proving {
		return "KMS took the same key material once more, for the proof"
	}
	return "KMS took the key material"
}
