package importer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"hsmbridge/hsm/wrapping"
	"hsmbridge/kmsclient"
)

// MaxExpires is the longest life of imported key material.
// Source: AWS KMS API Reference, ImportKeyMaterial, ValidTo.
const MaxExpires = 365 * 24 * time.Hour

// PutBack is what to do where the object of a key is another key than the one that was imported before.
const PutBack = "put the former key object back into the token; another key needs another name in the configuration, and other KMS keys; a rotation makes a new key and does not take this one"

// RefusedError says that the request cannot be carried out as it is and why; nothing was changed.
type RefusedError struct {
	Key, Destination string
	Reason           string
	Fix              string
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("%s was not imported: %s; %s", e.Key, e.Reason, e.Fix)
}

// Class is "caller": somebody has to change the request or the key.
func (e *RefusedError) Class() string { return "caller" }

// preflight asks KMS and the token and decides, changing nothing: it fills r.info, r.key and r.plan.
func (r *run) preflight(ctx context.Context) (Plan, error) {
	var err error
	if r.kms, err = r.KMS(ctx, r.req.Destination); err != nil {
		return Plan{}, fmt.Errorf("reach KMS for %s: %w", r.req.Name, err)
	}
	if r.info, err = r.kms.DescribeKey(ctx, r.req.Destination); err != nil {
		return Plan{}, fmt.Errorf("look at the destination of %s: %w", r.req.Name, err)
	}
	if err := checkDestination(r.req, r.info); err != nil {
		return Plan{}, err
	}
	held, err := r.held(ctx)
	if err != nil {
		return Plan{}, err
	}
	missing, err := r.find(ctx, held)
	if err != nil {
		return Plan{}, err
	}
	caps, err := r.capabilities(ctx, r.req.KeySpec)
	if err != nil {
		return Plan{}, fmt.Errorf("probe the token for %s: %w", r.req.Name, err)
	}
	selection := wrapping.Select(r.req.KeySpec, caps, r.req.Policy)
	if err := selection.Err(); err != nil {
		return Plan{}, fmt.Errorf("%s was not imported: %w", r.req.Name, err)
	}
	r.plan = r.decide(selection, held, missing)
	r.result.setPlanned(r.plan)
	return r.plan, r.record(ctx, StepPreflight, "KMS and the token were asked", "state", r.info.State, "action", string(r.plan.Action))
}

// find looks the key up in the token and checks it against the request. A missing key is an error unless it
// may be generated, which it may only while KMS has never held material for the destination: a new key
// could not be the one that KMS knows.
func (r *run) find(ctx context.Context, held holding) (missing bool, err error) {
	r.key, err = r.Token.Find(ctx, r.req.Object)
	switch {
	case err == nil:
		return false, checkKey(r.req, r.key)
	case !errors.Is(err, wrapping.ErrKeyNotFound) || !r.req.Generate:
		return false, fmt.Errorf("find %s in the token: %w", r.req.Name, err)
	case held.present || held.known() || r.req.KeyMaterialID != "" || r.req.CheckValue != "":
		return false, r.refuse("the key is not in the token, and KMS already has material for this destination",
			"restore the key object in the token; a newly generated key could not replace what KMS holds")
	case r.req.Object.Object == "":
		return false, r.refuse("the key is not in the token and its uri names no label to give to a new one", "add object=LABEL to its uri")
	}
	return true, nil
}

func (r *run) refuse(reason, fix string) error {
	return &RefusedError{Key: r.req.Name, Destination: r.req.Destination, Reason: reason, Fix: fix}
}

// checkDestination holds DescribeKey's answer against what a key that takes imported material must be.
func checkDestination(req Request, info kmsclient.KeyInfo) error {
	for _, rule := range []struct {
		bad         bool
		reason, fix string
	}{
		{
			info.ARN != req.Destination,
			fmt.Sprintf("KMS answered for another key (%s)", info.ARN),
			"check the destination and the KMS endpoint",
		},
		{
			info.CustomKeyStoreID != "",
			"the KMS key is in a custom key store, which takes no imported material",
			"create a KMS key with origin EXTERNAL and put its ARN into destinations",
		},
		{
			info.Origin != "EXTERNAL",
			fmt.Sprintf("the KMS key has origin %s, so its material cannot be imported", info.Origin),
			"create a KMS key with origin EXTERNAL (the origin of a key cannot be changed) and put its ARN into destinations",
		},
		{
			info.State == "PendingDeletion" || info.State == "PendingReplicaDeletion",
			fmt.Sprintf("the KMS key is scheduled for deletion (%s)", info.State),
			"if it is still needed, run `aws kms cancel-key-deletion` and `aws kms enable-key`, then import again",
		},
		{
			!slices.Contains([]string{"PendingImport", "Enabled", "Disabled"}, info.State),
			fmt.Sprintf("the KMS key is in state %s", info.State),
			"wait until it is PendingImport, Enabled or Disabled",
		},
		{
			info.KeySpec != string(req.KeySpec),
			fmt.Sprintf("the KMS key has key spec %s and the configuration says %s", info.KeySpec, req.KeySpec),
			"correct key_spec, or name a destination of that spec",
		},
	} {
		if rule.bad {
			return &RefusedError{Key: req.Name, Destination: req.Destination, Reason: rule.reason, Fix: rule.fix}
		}
	}
	return nil
}

// checkKey holds the object in the token against the request.
func checkKey(req Request, key wrapping.Key) error {
	refuse := func(reason, fix string) error {
		return &RefusedError{Key: req.Name, Destination: req.Destination, Reason: reason, Fix: fix}
	}
	switch {
	case len(key.Blockers) > 0:
		return refuse(fmt.Sprintf("the object %q cannot leave the token for KMS", key.Label), strings.Join(key.Blockers, "; "))
	case key.KeySpec != req.KeySpec:
		return refuse(fmt.Sprintf("the object %q is a %s of %d bits and the configuration says %s", key.Label, key.KeyType, key.Bits, req.KeySpec),
			"correct key_spec or uri")
	}
	return nil
}

// capabilities probes once per key spec and Importer; the caller makes a new Importer for a new connection.
func (im *Importer) capabilities(ctx context.Context, spec wrapping.KeySpec) (wrapping.Capabilities, error) {
	spec = spec.Representative()
	if c, ok := im.probed[spec]; ok && c.Token == im.Token.Identity() {
		return c, nil
	}
	c, err := im.Token.Probe(ctx, spec)
	if err != nil {
		return wrapping.Capabilities{}, err
	}
	if im.probed == nil {
		im.probed = make(map[wrapping.KeySpec]wrapping.Capabilities)
	}
	im.probed[spec] = c
	return c, nil
}
