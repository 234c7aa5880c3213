package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"hsmbridge/daemon/control"
	"hsmbridge/daemon/store"
	"hsmbridge/hsm"
)

// loginFlag gives a command that logs in to tokens by itself its --even-parked.
func (a *app) loginFlag(c *cobra.Command) *cobra.Command {
	c.Flags().BoolVar(&a.evenParked, "even-parked", false, "log in also to a token that the daemon has parked; a wrong PIN counts against the token, which locks after few")
	return c
}

// parkedByDaemon refuses a login to a token that the daemon has parked, whether it runs or not: the PIN that it refused may stand there still.
func (c *connections) parkedByDaemon(ctx context.Context, token string) error {
	if c.app.evenParked {
		return nil
	}
	reason, err := c.whyParked(ctx, token)
	if err != nil {
		c.app.log.Warn("whether the daemon has parked the token is not known", zap.String("token", token), zap.Error(err))
		return nil
	}
	if reason == "" {
		return nil
	}
	return &hsm.Error{
		Op: "open token " + token, ErrClass: hsm.ClassToken, Cause: "the daemon has parked it, so no login was tried: " + reason,
		Fix: fmt.Sprintf("mend the cause, then let the daemon try once: hsmbridge resume --token %s; or try by hand: --even-parked", token),
	}
}

// whyParked asks the daemon, or its database when it does not run or does not answer. Empty: the token is not parked.
func (c *connections) whyParked(ctx context.Context, token string) (string, error) {
	var status control.Status
	err := c.daemon.ask(ctx, func(d *control.Client) (err error) {
		status, err = d.Status(ctx)
		return err
	})
	var down *control.NoDaemonError
	silent := errors.Is(err, errSilent)
	switch {
	case err == nil:
		for _, t := range status.Tokens {
			if t.Name == token && t.State == "parked" {
				return t.Reason, nil
			}
		}
		return "", nil
	case !errors.As(err, &down) && !silent:
		return "", err
	}
	kind, path := c.config.DatabaseLocation()
	switch {
	case kind != "postgres":
	case silent:
		return "", err
	default:
		return "", nil // other daemons on it may run: they are not asked
	}
	quick, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	all, err := store.ReadParked(quick, path)
	if err != nil {
		return "", err
	}
	p, ok := all[token]
	switch {
	case !ok:
		return "", nil
	case p.Code == store.LoginBegun && silent:
		return fmt.Sprintf("the daemon, which does not answer, gave it the PIN at %s, and nobody knows whether it was right", p.At.Format(time.RFC3339)), nil
	case p.Code == store.LoginBegun:
		return fmt.Sprintf("a daemon that ended meanwhile gave it the PIN at %s, and nobody knows whether it was right", p.At.Format(time.RFC3339)), nil
	}
	return p.Reason, nil
}
