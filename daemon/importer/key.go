package importer

import (
	"context"
	"errors"
	"fmt"

	"hsmbridge/hsm/wrapping"
)

// RunKey carries out the imports of one managed key to all its destinations, one after the other, and gives
// one result for each, in the same order. A destination that fails does not stop the others. A key that may
// be generated is generated only if no destination has ever held material: otherwise none is imported.
func (im *Importer) RunKey(ctx context.Context, requests []Request) []Result {
	results := make([]Result, 0, len(requests))
	if err := im.mayGenerate(ctx, requests); err != nil {
		for _, r := range requests {
			run := &run{Importer: im, req: r, result: newResult(r)}
			result, _ := run.finish(ctx, err) // the result carries the error
			results = append(results, result)
		}
		return results
	}
	for _, r := range requests {
		result, _ := im.Run(ctx, r) // the result carries the error
		results = append(results, result)
	}
	return results
}

// mayGenerate looks at every destination before a missing key is generated for the first.
func (im *Importer) mayGenerate(ctx context.Context, requests []Request) error {
	if len(requests) < 2 || !requests[0].Generate {
		return nil
	}
	if _, err := im.Token.Find(ctx, requests[0].Object); err == nil || !errors.Is(err, wrapping.ErrKeyNotFound) {
		return nil // each run says what it finds
	}
	for _, r := range requests {
		if _, err := im.Plan(ctx, r); err != nil {
			return fmt.Errorf("%s was not generated, because one of its destinations cannot take a new key: %w", r.Name, err)
		}
	}
	return nil
}
