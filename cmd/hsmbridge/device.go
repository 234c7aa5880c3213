package main

import (
	"context"
	"fmt"
	"time"

	"hsmbridge/configs"
	"hsmbridge/daemon/control"
	"hsmbridge/hsm/wrapping"
)

// atDevice says on standard error that somebody has to log in at a token's device now. The daemon's login is its own: a command that talks to the token
// by itself needs another one. While the daemon asks at the same device nobody could tell whose prompt it is, so this command does not.
func (c *connections) atDevice(ctx context.Context, t configs.Token, id wrapping.TokenIdentity, wait time.Duration) error {
	var s control.Status
	err := c.daemon.ask(ctx, func(d *control.Client) (err error) {
		s, err = d.Status(ctx)
		return err
	})
	if err == nil {
		for _, x := range s.Tokens {
			if x.Name == t.Name && x.State == "opening" && x.Reason != "" {
				return fmt.Errorf("the daemon logs in at the same device: token %s %s; run this again when that is done", t.Name, x.Reason)
			}
		}
	}
	why := ""
	if !t.Quirks.NeedsNoPIN() {
		why = " The token says so itself (CKF_PROTECTED_AUTHENTICATION_PATH): the PIN that the configuration gives is not used."
	}
	fmt.Fprintf(c.app.err, "hsmbridge: token %s (label %q, serial %q) asks for its PIN at its own device. Type it there, or put the key in, within %s; it is asked for once.%s\n", t.Name, id.Label, id.Serial, wait, why)
	return nil
}
