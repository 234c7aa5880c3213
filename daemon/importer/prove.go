package importer

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"time"

	"hsmbridge/hsm/wrapping"
	"hsmbridge/kmsclient"
)

// ProofMethod is how it is shown that KMS holds the HSM's key.
type ProofMethod string

// The methods.
const (
	ProofMAC        ProofMethod = "mac-match"         // KMS and the HSM compute the same HMAC over a random message
	ProofPublicKey  ProofMethod = "public-key-match"  // KMS returns the HSM's public key, and what KMS signs verifies under it
	ProofMaterialID ProofMethod = "material-id-match" // KMS accepts a second, independent wrap under the key material ID of the first
	Unproved        ProofMethod = "unproved"
)

// ErrNotSameKey means that KMS holds other key material than the HSM's key object.
var ErrNotSameKey = errors.New("KMS does not hold the same key as the HSM")

// MismatchError is [ErrNotSameKey] with what was compared.
type MismatchError struct{ Key, Destination, Compared string }

func (e *MismatchError) Error() string {
	return fmt.Sprintf("%s: %v (%s of %s); find out which of the two is right before anything is encrypted under the KMS key or deleted: "+
		"where the object in the token was replaced, put the former one back; where KMS holds a wrong one, delete its material with `aws kms delete-imported-key-material` and import again", e.Key, ErrNotSameKey, e.Compared, e.Destination)
}

// Unwrap makes errors.Is(err, ErrNotSameKey) true.
func (e *MismatchError) Unwrap() error { return ErrNotSameKey }

// Class is "kms": what is wrong is in KMS.
func (e *MismatchError) Class() string { return "kms" }

// proofFor says how an import of this request will be proved.
func proofFor(r Request, info kmsclient.KeyInfo) (method ProofMethod, how string) {
	switch r.KeySpec.Kind() {
	case wrapping.KindHMAC:
		return ProofMAC, "GenerateMac in KMS must equal C_Sign in the HSM over a random message"
	case wrapping.KindRSA, wrapping.KindEC, wrapping.KindEd25519:
		if slices.Contains(info.SigningAlgorithms, signingAlgorithm(r.KeySpec)) {
			return ProofPublicKey, "GetPublicKey in KMS must equal the HSM's public key, and a signature made in KMS must verify under it where kms:Sign is allowed"
		}
		return ProofPublicKey, "GetPublicKey in KMS must equal the HSM's public key"
	case wrapping.KindSymmetric, wrapping.KindRefused:
	}
	if !r.Prove {
		return Unproved, "prove is false: a symmetric key is proved only by a second import"
	}
	return ProofMaterialID, "a second, independent wrap from the HSM must be accepted as EXISTING_KEY_MATERIAL under the key material ID of the first"
}

// prove shows that KMS holds the HSM's key, or says why that cannot be shown. A mismatch is an error, a proof
// that cannot be had is not.
func (r *run) prove(ctx context.Context) error {
	var err error
	switch r.plan.ProofMethod {
	case ProofMAC:
		err = r.proveMAC(ctx)
	case ProofPublicKey:
		err = r.provePublicKey(ctx)
	case ProofMaterialID:
		err = r.proveMaterial(ctx)
	case Unproved:
		err = &noProofError{r.plan.ProofHow}
	}
	var none *noProofError
	switch {
	case errors.As(err, &none):
		r.result.Proof, r.result.ProofReason = Unproved, none.reason
	case err != nil:
		return err
	default:
		r.result.Proof = r.plan.ProofMethod
	}
	return r.record(ctx, StepProof, string(r.result.Proof), "reason", r.result.ProofReason)
}

// noProofError says why a proof cannot be had.
type noProofError struct{ reason string }

func (e *noProofError) Error() string { return "unproved: " + e.reason }

func (r *run) mismatch(compared string) error {
	return &MismatchError{Key: r.req.Name, Destination: r.req.Destination, Compared: compared}
}

// broken is an error of the token, its session or its module, or the end of the run: not a reason why there is no
// proof, but why it could not be tried.
func broken(ctx context.Context, err error) error {
	if err == nil || ctx.Err() == nil && !slices.Contains([]string{"session", "token", "library"}, Class(err)) {
		return nil
	}
	return fmt.Errorf("prove with the token: %w", err)
}

// unavailable turns an error of a proving call into the reason why there is no proof, where the import
// itself is not in doubt: the endpoint lacks the operation, it is not allowed, the key is disabled.
func unavailable(operation string, err error) error {
	code := kmsclient.Code(err)
	if kmsclient.IsUnsupportedOperation(err) || slices.Contains([]string{"AccessDeniedException", "DisabledException", "KMSInvalidStateException", "InvalidKeyUsageException"}, code) {
		return &noProofError{fmt.Sprintf("KMS refused %s (%s)", operation, code)}
	}
	return fmt.Errorf("prove by %s: %w", operation, err)
}

func (r *run) proveMAC(ctx context.Context) error {
	message, err := r.random(64)
	if err != nil {
		return err
	}
	ours, err := r.Token.MAC(ctx, r.key, message)
	if err := broken(ctx, err); err != nil {
		return err
	}
	if err != nil {
		return &noProofError{fmt.Sprintf("the token computes no HMAC with this key: %v", err)}
	}
	if len(ours) < sha256.Size224 {
		return &noProofError{fmt.Sprintf("the token answered with an HMAC of %d bytes", len(ours))}
	}
	algorithm := "HMAC_SHA_" + string(r.req.KeySpec)[len("HMAC_"):]
	theirs, err := eventually(ctx, r, func() ([]byte, error) {
		return r.kms.GenerateMAC(ctx, r.req.Destination, algorithm, message)
	})
	if err != nil {
		return unavailable("GenerateMac", err)
	}
	if !hmac.Equal(ours, theirs) {
		return r.mismatch("HMACs over one message")
	}
	return nil
}

func (r *run) provePublicKey(ctx context.Context) error {
	public, err := r.comparePublicKeys(ctx)
	if err != nil {
		return err
	}
	return r.proveSignature(ctx, public)
}

// comparePublicKeys gives the public key that the HSM and KMS have both.
func (r *run) comparePublicKeys(ctx context.Context) ([]byte, error) {
	ours, err := r.Token.PublicKey(ctx, r.key)
	if err := broken(ctx, err); err != nil {
		return nil, err
	}
	if err != nil {
		return nil, &noProofError{fmt.Sprintf("the token gives no public half of this key: %v", err)}
	}
	theirs, err := eventually(ctx, r, func() ([]byte, error) { return r.kms.GetPublicKey(ctx, r.req.Destination) })
	if err != nil {
		return nil, unavailable("GetPublicKey", err)
	}
	if !bytes.Equal(ours, theirs) && !samePublicKey(ours, theirs) {
		return nil, r.mismatch("public keys")
	}
	return theirs, nil
}

// proveSignature lets KMS sign where the key is for signing and the caller may: a signature shows that KMS
// can use the private key, beyond knowing its public half.
func (r *run) proveSignature(ctx context.Context, public []byte) error {
	algorithm := signingAlgorithm(r.req.KeySpec)
	if !slices.Contains(r.info.SigningAlgorithms, algorithm) {
		return nil
	}
	message, err := r.random(64)
	if err != nil {
		return err
	}
	sig, err := r.kms.Sign(ctx, r.req.Destination, algorithm, message)
	if err != nil {
		var none *noProofError
		if err = unavailable("Sign", err); errors.As(err, &none) {
			r.note("no signature was compared, only the public keys: " + none.reason)
			return nil
		}
		return err
	}
	switch ok, err := verifySignature(public, message, sig); {
	case err != nil:
		r.note("no signature was compared, only the public keys: " + err.Error())
	case !ok:
		return r.mismatch("a signature by KMS against the public key")
	}
	return nil
}

// proveMaterial wraps the key a second time and imports it as existing material with the same expiry: KMS
// accepts it only if the material is what the key material ID was computed from.
func (r *run) proveMaterial(ctx context.Context) error {
	if asserted := r.plan.KeyMaterialID; r.confirmed && asserted != "" && asserted == r.result.KeyMaterialID && r.plan.Action != ActionKeep {
		return r.checkInUse(ctx, asserted) // the import itself asserted the ID, and KMS confirmed it
	}
	id, err := r.materialID(ctx)
	if err != nil {
		return err
	}
	r.proving = true
	if len(r.plan.plans) > 0 {
		if err := r.authorize(ctx, r.act(r.plan.plans[0])); err != nil {
			return notAllowed(err)
		}
	}
	if err := r.record(ctx, StepProof, "a second, independent wrap follows, as the proof"); err != nil {
		return err
	}
	first := r.result.WrappingKeySHA256
	validTo := r.result.expiresAt()
	if r.plan.Action == ActionKeep && !validTo.IsZero() && !validTo.After(r.now()) {
		return &noProofError{"the material has just expired"}
	}
	out, err := r.wrapAndImport(ctx, kmsclient.ImportRequest{
		KeyARN: r.req.Destination, ValidTo: validTo, ImportType: "EXISTING_KEY_MATERIAL", KeyMaterialID: id, Description: r.description(),
	})
	if first != "" {
		r.result.WrappingKeySHA256 = first
	}
	switch {
	case errors.Is(err, ErrNotAllowed):
		return notAllowed(err)
	case kmsclient.Code(err) == "IncorrectKeyMaterialException":
		return r.mismatch("key material IDs")
	case kmsclient.Code(err) == "ValidationException" || kmsclient.IsUnsupportedOperation(err):
		return &noProofError{fmt.Sprintf("this KMS endpoint does not take KeyMaterialId (%s)", kmsclient.Code(err))}
	case err != nil:
		return r.unproved(err)
	case out.KeyMaterialID == "":
		return &noProofError{"this KMS endpoint took the second import without confirming a key material ID"}
	case out.KeyMaterialID != id:
		return r.mismatch("key material IDs")
	}
	r.result.KeyMaterialID = id
	return r.checkInUse(ctx, id)
}

// proving marks the requests of a proof in their context.
type proving struct{}

// Proving says that a request to KMS belongs to a proof: what is to be imported comes first.
func Proving(ctx context.Context) bool { return ctx.Value(proving{}) != nil }

func (r *run) proof(ctx context.Context) context.Context {
	if !r.proving {
		return ctx
	}
	return context.WithValue(ctx, proving{}, true)
}

// notAllowed leaves a proof out that nobody has approved, where nothing but the proof was to be done.
func notAllowed(err error) error {
	if errors.Is(err, ErrNotAllowed) {
		return &noProofError{"the proof is another wrap, and " + ErrNotAllowed.Error() + ": hsmbridge import --renew asks them"}
	}
	return err
}

// checkInUse holds that the proved material is the one that KMS encrypts with: a rotated key has several, and is
// unusable while one of them is missing.
func (r *run) checkInUse(ctx context.Context, id string) error {
	if r.req.New || r.req.Pending || r.req.KeyMaterialID != "" {
		return nil // it waits for rotation, or is asked for by its ID: which one KMS encrypts with is not the question
	}
	info, err := r.kms.DescribeKey(ctx, r.req.Destination)
	switch {
	case err != nil:
		return unavailable("DescribeKey", err)
	case info.CurrentKeyMaterialID != "" && info.CurrentKeyMaterialID != id:
		return &noProofError{fmt.Sprintf("KMS holds this material (%s) and encrypts with another (%s)", id, info.CurrentKeyMaterialID)}
	}
	return nil
}

// materialID is the ID of the material that the proof has to match.
func (r *run) materialID(ctx context.Context) (string, error) {
	if r.result.KeyMaterialID != "" {
		return r.result.KeyMaterialID, nil
	}
	info, err := eventually(ctx, r, func() (kmsclient.KeyInfo, error) { return r.kms.DescribeKey(ctx, r.req.Destination) })
	if err != nil {
		return "", unavailable("DescribeKey", err)
	}
	if info.CurrentKeyMaterialID == "" {
		return "", &noProofError{"this KMS endpoint gives no key material ID"}
	}
	return info.CurrentKeyMaterialID, nil
}

// eventually repeats a read while KMS is not yet consistent with the import.
func eventually[T any](ctx context.Context, r *run, read func() (T, error)) (T, error) {
	const step, tries = 500 * time.Millisecond, 20
	for i := 1; ; i++ {
		v, err := read()
		code := kmsclient.Code(err)
		if i == tries || code != "KMSInvalidStateException" && code != "NotFoundException" {
			return v, err
		}
		if err := r.wait(ctx, step); err != nil {
			return v, err
		}
	}
}

// unproved is the error of a proof that could not be made; what it is about stays in KMS.
func (r *run) unproved(err error) error {
	what := "the key was imported"
	switch {
	case r.already:
		what = "KMS holds key material already, and whether it is the key of the room is not known"
	case r.result.Result == Unchanged:
		what = "KMS holds the key as before"
	}
	return fmt.Errorf("%s, its proof failed: %w", what, err)
}
