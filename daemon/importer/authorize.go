package importer

import (
	"context"
	"errors"

	"hsmbridge/hsm/wrapping"
	"hsmbridge/kmsclient"
)

// Act is a wrap that is to be done, for [Importer.Authorize].
type Act struct {
	Plan Plan         // as it will be carried out, with the algorithm that KMS gave parameters for
	Key  wrapping.Key // the object that is there
	// Now is true immediately before C_WrapKey, with the parameters under which it wraps. Before that it is asked whether it would be
	// allowed, so that no parameters are fetched in vain.
	Now        bool
	Parameters kmsclient.ImportParameters
	// KMS is the client that the run uses: who gives the wrapping public key. Nil: nothing is under way, as where officers are asked in advance.
	KMS KMS
	// Proof says that the wrap is the second one, which only shows that KMS holds the same key.
	Proof bool
}

// Optional says that nobody has to be asked if it is not allowed: KMS holds what was asked for, and only its proof would be left out.
func (a Act) Optional() bool { return a.Proof && a.Plan.Action == ActionKeep }

// ErrNotAllowed says that a wrap that is [Act.Optional] is not allowed.
var ErrNotAllowed = errors.New("officers have to approve each wrap of this key")

// authorize asks whether the wrap may be done. Without anyone to ask it may not.
func (r *run) authorize(ctx context.Context, a Act) error {
	if r.Authorize == nil {
		return &RefusedError{Key: r.req.Name, Destination: r.req.Destination, Reason: "nothing says whether this wrap is allowed", Fix: "this is a mistake in hsmbridge: report it"}
	}
	return r.Authorize(ctx, a) //nolint:wrapcheck // it says itself what was not done
}

// act is the next wrap, by the plan at hand.
func (r *run) act(w wrapping.Plan) Act {
	return Act{Plan: r.plan.by(w), Key: r.key, KMS: r.kms, Proof: r.proving}
}

// by is the plan when it is carried out with one of its wrapping plans.
func (p Plan) by(w wrapping.Plan) Plan {
	p.Algorithm, p.WrappingKeySpec, p.Mechanism, p.Padded = w.Algorithm, w.WrappingKeySpec, w.Mechanism.String(), w.Padded
	p.Digest = p.digest()
	return p
}

// HeldID is the ID of the material that KMS shows for the request, if it shows one.
func (p Plan) HeldID() string { return p.heldID }
