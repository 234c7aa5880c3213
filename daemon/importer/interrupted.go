package importer

import (
	"context"
	"errors"
	"fmt"
)

// InterruptedError says that an import was ended from outside, as by a signal, while it is known what KMS holds: what a run that was ended
// between ImportKeyMaterial and its answer says is an [UnknownOutcomeError]. Its class is that of the call that was ended.
type InterruptedError struct {
	Key, Destination string
	Result           Outcome // what was done before: Failed says that KMS was not changed
	Generated        bool    // the key was made in the token for it
	Upload           bool    // what was wrapped in an HSM room was imported, which is done once
	Err              error   // wraps [context.Canceled]
}

func (e *InterruptedError) Error() string {
	if e.Result == Failed {
		kept := ""
		if e.Generated {
			kept = ", and the key that was generated stays in the token"
		}
		return fmt.Sprintf("the import of %s was interrupted before KMS took key material: nothing was changed in %s%s; run it again, it looks at KMS before it imports", e.Key, e.Destination, kept)
	}
	held := "KMS took the key material"
	if e.Result == Unchanged {
		held = "KMS holds the key material as before"
	}
	next := "run it again, it proves what KMS holds"
	if e.Upload {
		next = "it stays unproved: a new request (hsmbridge ceremony fetch --renew) proves it"
	}
	return fmt.Sprintf("%s of %s (%s), and the proof was interrupted; %s", held, e.Key, e.Destination, next)
}

// Unwrap gives the error of the call that was ended.
func (e *InterruptedError) Unwrap() error { return e.Err }

// interrupted says in plain words that the run was ended from outside, if that is what err comes from.
func (r *run) interrupted(ctx context.Context, err error) error {
	var unknown *UnknownOutcomeError
	if !errors.Is(err, context.Canceled) || !errors.Is(ctx.Err(), context.Canceled) || errors.As(err, &unknown) {
		return err
	}
	return &InterruptedError{Key: r.req.Name, Destination: r.req.Destination, Result: r.result.Result, Generated: r.made, Upload: r.uploading, Err: err}
}
