package importer

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"hsmbridge/hsm/wrapping"
	"hsmbridge/kmsclient"
)

// Remote is what an import does as far as KMS alone decides it: without a token, for one that is wrapped somewhere else.
type Remote struct {
	Info          kmsclient.KeyInfo
	Action        Action
	ImportType    string
	KeyMaterialID string
	HeldID        string // of the material that KMS shows
	Proof         ProofMethod
	ProofHow      string

	held holding
}

// Remote asks KMS what an import of the request would do, and holds that the destination takes one.
func (im *Importer) Remote(ctx context.Context, r Request) (Remote, error) {
	run := &run{Importer: im, req: r, result: newResult(r)}
	return run.remote(ctx)
}

// remote is [Importer.Remote] of a run, which goes on with what it was told. Asked again, it begins anew.
func (r *run) remote(ctx context.Context) (Remote, error) {
	r.result.Notes = nil
	var err error
	if r.kms, err = r.KMS(ctx, r.req.Destination); err != nil {
		return Remote{}, fmt.Errorf("reach KMS for %s: %w", r.req.Name, err)
	}
	if r.info, err = r.kms.DescribeKey(ctx, r.req.Destination); err != nil {
		return Remote{}, fmt.Errorf("look at the destination of %s: %w", r.req.Name, err)
	}
	if err := checkDestination(r.req, r.info); err != nil {
		return Remote{}, err
	}
	held, err := r.held(ctx)
	if err != nil {
		return Remote{}, err
	}
	out := Remote{Info: r.info, HeldID: held.id, Action: r.action(held), held: held}
	out.ImportType, out.KeyMaterialID = r.importType(held, out.Action)
	out.Proof, out.ProofHow = proofFor(r.req, r.info)
	return out, nil
}

// Ready is key material that was wrapped somewhere else, with what proves later that it is the right one. Fields that do not apply are empty.
type Ready struct {
	Token, Wrapped           []byte // import token and EncryptedKeyMaterial
	ProofToken, ProofWrapped []byte // of the second wrap, which is the proof of a symmetric key
	Message, MAC             []byte // an HMAC that the HSM computed over the message
	Public                   []byte // DER SubjectPublicKeyInfo
	Mechanism                string
	WrappingKeySHA256        string
	Algorithm                wrapping.Algorithm
	WrappingKeySpec          wrapping.WrappingKeySpec
}

// proves says that there is something to prove by, whoever imported the material.
func (r Ready) proves() bool { return len(r.MAC) > 0 || len(r.Public) > 0 || len(r.ProofWrapped) > 0 }

// Upload imports what was wrapped somewhere else, and proves it. act is what KMS is expected to show; when it shows something else, nothing
// is sent. Run again after a lost answer it finds what KMS did: where KMS holds material with the life asked for already, it is proved to be the same,
// and the result is [Unchanged]. Of a KMS key with several materials nobody can tell which one that was: then nothing is sent.
func (im *Importer) Upload(ctx context.Context, r Request, act Action, ready Ready) (Result, error) {
	only := *im
	only.Authorize = nil // nothing is wrapped here
	run := &run{Importer: &only, req: r, result: newResult(r), uploading: true}
	return run.finish(ctx, run.upload(ctx, act, ready))
}

// settled is what KMS says when it shows either the effect of an upload of a moment ago or that there was none: in between it lists a key material, and
// does not hold it.
func (r *run) settled(ctx context.Context, act Action) (Remote, error) {
	const step, tries = time.Second, 10
	for i := 1; ; i++ {
		remote, err := r.remote(ctx)
		if err != nil || act != ActionImport || remote.Action != ActionRestore || i == tries {
			return remote, err
		}
		if err := r.wait(ctx, step); err != nil {
			return remote, err
		}
	}
}

func (r *run) upload(ctx context.Context, act Action, ready Ready) error {
	remote, err := r.settled(ctx, act)
	if err != nil {
		return err
	}
	r.result.WrappingKeySpec = ready.WrappingKeySpec
	r.result.Algorithm, r.result.Mechanism, r.result.WrappingKeySHA256 = ready.Algorithm, ready.Mechanism, ready.WrappingKeySHA256
	switch {
	case remote.Action == act:
	case remote.Action == ActionKeep && (act == ActionImport || act == ActionRestore) && ready.proves() && remote.held.single(r.req):
		return r.proveUploaded(ctx, remote.held, ready)
	case act == ActionImport && remote.Action == ActionRestore:
		return r.refuse("KMS knows a key material of it and does not hold it: an upload of a moment ago does not show yet, or the material was deleted or has expired since",
			"give the same command again in some minutes; if that stays so and the material is still wanted, fetch a new request")
	default:
		return r.refuse(fmt.Sprintf("KMS shows that the import would %s now, and what was wrapped and approved was to %s: it was uploaded already, or the KMS key was changed since", remote.Action, act),
			"look with aws kms describe-key and list-key-rotations; if the material is still wanted, fetch a new request")
	}
	r.plan = Plan{Action: act, ImportType: remote.ImportType, KeyMaterialID: remote.KeyMaterialID, listed: remote.held.listed, heldID: remote.held.id}
	validTo := r.validTo()
	req := kmsclient.ImportRequest{KeyARN: r.req.Destination, ValidTo: validTo, ImportToken: ready.Token, EncryptedKeyMaterial: ready.Wrapped, Description: r.description()}
	if act == ActionRestore || act == ActionReimport {
		req.ImportType, req.KeyMaterialID = remote.ImportType, remote.KeyMaterialID
	}
	if err := r.record(ctx, StepIntent, "what was wrapped in the HSM room is imported next", "plan", ""); err != nil {
		return err
	}
	out, err := r.kms.ImportKeyMaterial(ctx, req)
	switch {
	case err == nil:
		r.confirmed = true
		r.result.RequestIDs = append(r.result.RequestIDs, out.RequestID)
		err = r.record(context.WithoutCancel(ctx), StepImport, "KMS took the key material", "request_id", out.RequestID, "key_material_id", out.KeyMaterialID)
	case unknownEffect(err):
		out, err = r.readBack(ctx, validTo, fmt.Errorf("import %s into KMS: %w", r.req.Name, err))
	default:
		return fmt.Errorf("import %s into KMS: %w", r.req.Name, err)
	}
	if r.confirmed || r.seen {
		r.result.setImported(act, validTo, out)
	}
	if err != nil {
		return err
	}
	return r.proveReady(ctx, ready, validTo)
}

// proveUploaded is an upload of which KMS shows the effect: an earlier one ended before its proof, or somebody else was quicker. What is proved is that KMS holds the
// key of the room; how it came there does not matter. Until then nothing is said of what KMS holds.
func (r *run) proveUploaded(ctx context.Context, held holding, ready Ready) error {
	r.plan, r.already = Plan{Action: ActionKeep, heldID: held.id}, true
	if err := r.record(ctx, StepIntent, "KMS holds key material with the life asked for already: it is proved next", "plan", ""); err != nil {
		return err
	}
	err := r.proveReady(ctx, ready, held.validTo)
	switch {
	case errors.Is(err, ErrNotSameKey):
		return r.refuse("KMS holds another key than that of the room, and took nothing of this upload", "find out in CloudTrail who imported it; leave it, somebody may use it: the key of the room needs another KMS key")
	case err != nil:
		return err
	case r.result.Proof == Unproved:
		return r.refuse("KMS holds key material already, and that it is the key of the room cannot be proved: "+r.result.ProofReason, "if the material is still wanted, fetch a new request with --renew")
	}
	r.result.Result, r.result.KeyMaterialID = Unchanged, held.id
	r.result.setExpires(held.validTo)
	return nil
}

// proveReady proves with what the room gave.
func (r *run) proveReady(ctx context.Context, ready Ready, validTo time.Time) error {
	var err error
	method := Unproved
	switch {
	case len(ready.MAC) > 0:
		method, err = ProofMAC, r.compareMAC(ctx, ready)
	case len(ready.Public) > 0:
		method, err = ProofPublicKey, r.comparePublic(ctx, ready)
	case r.req.KeySpec.Kind() == wrapping.KindSymmetric && r.confirmed && r.plan.KeyMaterialID != "" && r.plan.KeyMaterialID == r.result.KeyMaterialID:
		method = ProofMaterialID // the import itself asserted the ID
	case len(ready.ProofWrapped) > 0:
		method, err = ProofMaterialID, r.importAgain(ctx, ready, validTo)
	default:
		err = &noProofError{"the room gave nothing to prove it by: a symmetric key needs a request with two wrapping keys (prove: true)"}
	}
	var none *noProofError
	switch {
	case errors.As(err, &none):
		r.result.Proof, r.result.ProofReason = Unproved, none.reason
	case err != nil:
		return err
	default:
		r.result.Proof = method
	}
	return r.record(ctx, StepProof, string(r.result.Proof), "reason", r.result.ProofReason)
}

func (r *run) compareMAC(ctx context.Context, ready Ready) error {
	theirs, err := eventually(ctx, r, func() ([]byte, error) {
		return r.kms.GenerateMAC(ctx, r.req.Destination, "HMAC_SHA_"+string(r.req.KeySpec)[len("HMAC_"):], ready.Message)
	})
	if err != nil {
		return unavailable("GenerateMac", err)
	}
	if hex.EncodeToString(theirs) != hex.EncodeToString(ready.MAC) {
		return r.mismatch("HMACs over one message")
	}
	return nil
}

func (r *run) comparePublic(ctx context.Context, ready Ready) error {
	theirs, err := eventually(ctx, r, func() ([]byte, error) { return r.kms.GetPublicKey(ctx, r.req.Destination) })
	if err != nil {
		return unavailable("GetPublicKey", err)
	}
	if !bytes.Equal(ready.Public, theirs) && !samePublicKey(ready.Public, theirs) {
		return r.mismatch("public keys")
	}
	return r.proveSignature(ctx, theirs)
}

// importAgain imports the second wrap as existing material under the ID of the first.
func (r *run) importAgain(ctx context.Context, ready Ready, validTo time.Time) error {
	id, err := r.materialID(ctx)
	if err != nil {
		return err
	}
	r.proving = true
	out, err := r.kms.ImportKeyMaterial(ctx, kmsclient.ImportRequest{
		KeyARN: r.req.Destination, ValidTo: validTo, ImportType: "EXISTING_KEY_MATERIAL", KeyMaterialID: id, ImportToken: ready.ProofToken,
		EncryptedKeyMaterial: ready.ProofWrapped, Description: r.description(),
	})
	switch {
	case kmsclient.Code(err) == "IncorrectKeyMaterialException":
		return r.mismatch("key material IDs")
	case kmsclient.Code(err) == "ValidationException" || kmsclient.IsUnsupportedOperation(err):
		return &noProofError{fmt.Sprintf("this KMS endpoint does not take KeyMaterialId (%s)", kmsclient.Code(err))}
	case err != nil:
		return r.unproved(err)
	case out.KeyMaterialID != id:
		return r.mismatch("key material IDs")
	}
	r.result.RequestIDs = append(r.result.RequestIDs, out.RequestID)
	r.result.KeyMaterialID = id
	return r.record(context.WithoutCancel(ctx), StepImport, "KMS took the second wrap under the same key material ID", "request_id", out.RequestID, "key_material_id", id)
}
