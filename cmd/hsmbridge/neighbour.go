package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"hsmbridge/configs"
	"hsmbridge/daemon/control"
)

// patience is how long a command that works by itself waits for each answer of the daemon.
const patience = 10 * time.Second

// neighbour is the daemon that may run beside a command which works by itself. Only it knows what was revoked, parked and recorded.
type neighbour struct {
	app    *app
	socket string
	client *control.Client
	wait   time.Duration
	silent bool // it took a connection and did not answer: it is not asked again
	told   bool // that it does not say which keys are revoked
}

// errSilent says that the daemon took a connection and did not answer, now or before.
var errSilent = errors.New("the daemon does not answer")

func (a *app) neighbour(c *configs.Config) *neighbour {
	socket, wait := cmp.Or(a.socket, c.ControlSocket()), cmp.Or(a.patience, patience)
	return &neighbour{app: a, socket: socket, client: control.NewClient(socket).Within(wait), wait: wait}
}

// ask asks the daemon. Of one that does not answer it is said once, and nobody waits for it again.
func (n *neighbour) ask(ctx context.Context, f func(c *control.Client) error) error {
	if n.silent {
		return errSilent
	}
	err := f(n.client)
	if !errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil {
		return err
	}
	n.silent = true
	fmt.Fprintf(n.app.err, "hsmbridge: the daemon on %s does not answer (waited %s) and is not asked again: which keys are revoked, and which key objects it has recorded, is not known here; this command goes on all the same\n", n.socket, n.wait)
	return errSilent
}

// revoked are the keys that the daemon knows as revoked, with what to do. Where none answers nobody knows, and --direct goes on all the same.
func (n *neighbour) revoked(ctx context.Context) map[string]string { return n.revokedOf(ctx, "") }

// barred says why one key must not be imported. Empty: it is not revoked, or nobody says so.
func (n *neighbour) barred(ctx context.Context, key string) string {
	return n.revokedOf(ctx, key)[key]
}

func (n *neighbour) revokedOf(ctx context.Context, key string) map[string]string {
	var list []control.ManagedKey
	err := n.ask(ctx, func(c *control.Client) (err error) {
		list, err = c.Keys(ctx, key)
		return err
	})
	var down *control.NoDaemonError
	switch {
	case errors.As(err, &down), errors.Is(err, errSilent), unknownThere(err), ctx.Err() != nil, n.told:
	case err != nil:
		n.told = true
		fmt.Fprintf(n.app.err, "hsmbridge: the daemon does not say which keys are revoked (%v); --direct goes on all the same\n", err)
	}
	out := map[string]string{}
	if err != nil {
		return out
	}
	for _, k := range list {
		if k.State.Revoked() {
			out[k.Name] = k.State.Barred()
		}
	}
	return out
}

// unknownThere says that the daemon has no such key: it was not reloaded since the key was added.
func unknownThere(err error) bool {
	var answer *control.Error
	return errors.As(err, &answer) && answer.Status == http.StatusNotFound
}
