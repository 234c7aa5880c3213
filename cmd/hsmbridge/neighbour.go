package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"hsmbridge/configs"
	"hsmbridge/daemon/control"
	"hsmbridge/daemon/importer"
	"hsmbridge/daemon/store"
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

// revoked are the keys that the daemon knows as revoked: of all, or of the one that is named. Where none answers nobody knows, and --direct goes on all the same.
func (n *neighbour) revoked(ctx context.Context, key string) map[string]store.Key {
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
	out := map[string]store.Key{}
	if err != nil {
		return out
	}
	for _, k := range list {
		if k.State.Revoked() {
			out[k.Name] = k.State
		}
	}
	return out
}

// bringsBack asks once more whether a key is revoked when something of it was wrapped: the daemon may have emptied the KMS keys between the question before the wrap and
// KMS's answer. Then the results say so, and the daemon is asked to look at them at once.
func (c *connections) bringsBack(ctx context.Context, k configs.Key, results []importer.Result) {
	held := func(r importer.Result) bool {
		return r.Took() || r.WrappingKeySHA256 != "" && r.Result != importer.Failed
	}
	if !slices.ContainsFunc(results, held) {
		return
	}
	ctx = context.WithoutCancel(ctx) // also of what was imported before it was interrupted
	state, revoked := c.daemon.revoked(ctx, k.Name)[k.Name]
	if !revoked {
		return
	}
	c.back = append(c.back, k.Name)
	next := c.daemon.look(ctx, k.Name)
	for i := range results {
		r := &results[i]
		if !held(*r) {
			continue
		}
		holds := "holds"
		if !r.Took() {
			holds = "may hold"
		}
		message := fmt.Sprintf("%s, and KMS %s its material, which this command brought there meanwhile: %s; hsmbridge revoke %s --reason WHY deletes it now",
			state.WasRevoked(), holds, next, k.Name)
		if r.Error != "" {
			r.Error += "\n" + message
			continue
		}
		r.Error, r.ErrorClass = message, "caller"
	}
}

// look asks the daemon to look at the KMS keys of a key, and says when it will.
func (n *neighbour) look(ctx context.Context, key string) string {
	var jobs []store.Job
	err := n.ask(ctx, func(c *control.Client) (err error) {
		jobs, err = c.Start(ctx, control.StartRequest{Keys: []string{key}, Kind: store.KindReconcile})
		return err
	})
	if err != nil || len(jobs) == 0 {
		return fmt.Sprintf("the daemon could not be asked to look at it now (%v) and deletes it when it looks the next time (kms.watch_every)", err)
	}
	return fmt.Sprintf("the daemon was asked to look at it now (job %d) and deletes it then, or when it looks the next time by itself (kms.watch_every)", jobs[0].ID)
}

// unknownThere says that the daemon has no such key: it was not reloaded since the key was added.
func unknownThere(err error) bool {
	var answer *control.Error
	return errors.As(err, &answer) && answer.Status == http.StatusNotFound
}
