package importer

import (
	"context"
	"errors"
	"fmt"

	"hsmbridge/hsm/wrapping"
)

// Compare holds the key object of a request against what KMS holds, and changes neither. It is [ErrNotSameKey] where KMS tells that it is another one: by the public
// key, or by the MAC over a random message. nil: it is the same, or it cannot be seen. That KMS holds material is for the caller to know.
func (im *Importer) Compare(ctx context.Context, r Request) error {
	silent := *im
	silent.Record = nil
	run := &run{Importer: &silent, req: r, result: newResult(r)}
	var err error
	if run.kms, err = im.KMS(ctx, r.Destination); err != nil {
		return fmt.Errorf("reach KMS for %s: %w", r.Name, err)
	}
	switch run.key, err = im.Token.Find(ctx, r.Object); {
	case errors.Is(err, wrapping.ErrKeyNotFound):
		return nil
	case err != nil:
		return fmt.Errorf("find %s in the token: %w", r.Name, err)
	}
	switch r.KeySpec.Kind() {
	case wrapping.KindHMAC:
		err = run.proveMAC(ctx)
	case wrapping.KindRSA, wrapping.KindEC, wrapping.KindEd25519:
		_, err = run.comparePublicKeys(ctx)
	case wrapping.KindSymmetric, wrapping.KindRefused: // nothing but another wrap tells
	}
	var none *noProofError
	if errors.As(err, &none) {
		return nil // it cannot be seen
	}
	return err
}
