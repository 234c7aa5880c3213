package main

import (
	"context"
	"errors"
	"fmt"

	"go.uber.org/zap"

	"hsmbridge/configs"
	"hsmbridge/daemon/control"
	"hsmbridge/daemon/importer"
	"hsmbridge/daemon/runner"
	"hsmbridge/hsm/wrapping"
)

// sameAsBefore refuses a key whose object in the token is another one than the daemon has recorded, as its import would. Where no daemon answers, or none has imported
// the key, there is nothing to compare with.
func (c *connections) sameAsBefore(ctx context.Context, k configs.Key) error {
	want, err := c.recorded(ctx, k)
	if err != nil || want == "" {
		return err
	}
	t, err := c.token(ctx, k.Token)
	if err != nil {
		return err
	}
	is := ""
	key, err := t.Find(ctx, k.URI)
	if err == nil {
		is, err = wrapping.Identify(ctx, t, key, k.KeySpec)
	}
	switch {
	case err != nil && importer.Class(err) != "caller":
		return fmt.Errorf("see which key %s is in token %s: %w", k.Name, k.Token, err)
	case err == nil && is != "" && is != want: // else it is the one, nobody can tell, or the plan says what is wrong with it
		return &importer.RefusedError{
			Key: k.Name, Reason: fmt.Sprintf("the object in token %s is another key than the one that was recorded: its %s, and it has to be %s", k.Token, is, want),
			Fix: importer.PutBack,
		}
	}
	return nil
}

// recorded is what tells the first generation of a key, as the daemon has it; empty: that is not known.
func (c *connections) recorded(ctx context.Context, k configs.Key) (string, error) {
	var list []control.ManagedKey
	err := c.daemon.ask(ctx, func(d *control.Client) (err error) {
		list, err = d.Keys(ctx, k.Name)
		return err
	})
	var down *control.NoDaemonError
	switch {
	case errors.As(err, &down), errors.Is(err, errSilent), unknownThere(err):
		return "", nil
	case err != nil:
		c.app.log.Warn("what the daemon has recorded of the key is not known", zap.String("key", k.Name), zap.Error(err))
		return "", ctx.Err()
	}
	for _, known := range list {
		for _, m := range known.Materials {
			if m.Generation == 1 {
				return runner.Reference(k, m, nil), nil
			}
		}
	}
	return "", nil
}

// sameAsInKMS says of a plan whether KMS holds another key than the token, where KMS tells.
func sameAsInKMS(ctx context.Context, im *importer.Importer, p importer.Plan, r importer.Request) error {
	if p.Object.Missing || p.Action != importer.ActionKeep && p.Action != importer.ActionReimport {
		return nil
	}
	return im.Compare(ctx, r)
}
