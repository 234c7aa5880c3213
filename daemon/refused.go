package daemon

import (
	"context"
	"fmt"
	"sync"

	"go.uber.org/zap"

	"hsmbridge/daemon/approval"
	"hsmbridge/daemon/control"
	"hsmbridge/daemon/store"
)

// refusals counts the signatures that were refused, for each request and officer; those that nobody's key made are counted together. Whoever
// can open the control socket may hand signatures in, also such that anybody can make or has copied, and each record of one stays for ever.
type refusals struct {
	mu    sync.Mutex
	count map[refusal]int
}

type refusal struct{ request, officer string }

// mostRefusals is how many of them are written down.
const mostRefusals = 20

// next is the number of this one, from 1.
func (r *refusals) next(request, officer string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.count == nil {
		r.count = map[refusal]int{}
	}
	k := refusal{request, officer}
	r.count[k] = min(r.count[k], mostRefusals) + 1
	return r.count[k]
}

// refuseSignature says why a signature does not count. That of somebody's key is written down, as long as there are few.
func (d *Daemon) refuseSignature(ctx context.Context, actor string, r store.Request, v approval.Verdict, signature string) error {
	refused := fmt.Errorf("this does not approve %s: %s: %w", r.Name, v.Message, control.ErrRefused)
	n := d.refusals.next(r.Name, v.Officer)
	if n > mostRefusals {
		return refused
	}
	message := "a signature was refused"
	if n == mostRefusals {
		message += "; further ones for this request are refused without a word"
		v.Message += "; further ones are not written down"
	}
	d.log.Warn(message, zap.String("request", r.Name), zap.String("user", actor), zap.String("reason", string(v.Reason)), zap.String("message", v.Message))
	if v.Key != "" {
		e := signedEvent("refused-signature", actor, r, v, signature, v.Message)
		e.Key, e.Destination, e.Job = r.Key, r.Destination, r.Job
		e.Fields["reason"] = string(v.Reason)
		if err := d.store.AddEvent(ctx, e); err != nil {
			return err
		}
	}
	return refused
}
