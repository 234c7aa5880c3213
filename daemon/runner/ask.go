package runner

import (
	"context"
	"crypto/sha256"
	"fmt"
	"strings"
	"time"

	"hsmbridge/configs"
	"hsmbridge/daemon/approval"
	"hsmbridge/daemon/importer"
	"hsmbridge/daemon/store"
)

// Ask asks officers about something that is done with a key as a whole: [approval.Revoke] or [approval.Waive].
func (r *Runner) Ask(ctx context.Context, purpose approval.Purpose, actor string, k configs.Key, validFor time.Duration, why string) (store.Request, error) {
	want := whole(k)
	want.Purpose, want.AskedBy, want.Why = purpose, approval.OneLine(actor), approval.OneLine(why)
	q, err := r.newRequest(want, validFor, 0)
	if err != nil {
		return q, err
	}
	return q, r.Store.AddRequest(ctx, nil, q, fmt.Sprintf("officers are asked to approve: %s %s", purpose, k.Name))
}

// whole is what officers read about a key as a whole.
func whole(k configs.Key) approval.Request {
	return approval.Request{Key: k.Name, KeySpec: string(k.KeySpec), Object: k.URI.String(), Destination: destinations(k)}
}

// StillAbout says that what officers read about a key as a whole is what they would read now.
func StillAbout(asked approval.Request, k configs.Key) bool {
	now := whole(k)
	return asked.Key == now.Key && asked.KeySpec == now.KeySpec && asked.Object == now.Object && asked.Destination == now.Destination
}

// destinations names all KMS keys of a key, as far as they fit into a line.
func destinations(k configs.Key) string {
	var all []string
	for _, d := range k.Destinations {
		all = append(all, d.ARN)
	}
	const most = 600
	s := strings.Join(all, ", ")
	if len(s) > most {
		return fmt.Sprintf("all %d KMS keys, the first is %s; SHA-256 of their list: %x", len(all), all[0], sha256.Sum256([]byte(s)))
	}
	return s
}

// askForAll asks officers about all materials of a rotated key at once, not about one after the other. Nothing is allowed by it.
func (t *task) askForAll(ctx context.Context, c *configs.Config, k configs.Key, im *importer.Importer, token importer.Token, list []generation, request func(generation) importer.Request) error {
	if _, needed := c.ApprovalFor(k); !needed || len(list) < 2 {
		return nil
	}
	var waits error
	for _, g := range list {
		if err := t.expect(ctx, k, token, g); err != nil {
			return err
		}
		p, err := im.Plan(ctx, request(g))
		if err != nil {
			return err
		}
		if p.Action == importer.ActionKeep {
			continue
		}
		object, err := token.Find(ctx, g.uri)
		if err != nil {
			return err
		}
		err = t.authorize(ctx, &gated{Token: token}, importer.Act{Plan: p, Key: object})
		switch {
		case err == nil:
		case codeOf(err) != CodeApproval:
			return err
		case waits == nil:
			waits = err
		}
	}
	return waits
}

// AskStanding asks officers to approve, in advance and until then, that the material which KMS holds is imported again.
func (r *Runner) AskStanding(ctx context.Context, actor, key string, validFor time.Duration, why string) ([]store.Request, error) {
	c := r.Config()
	k, ok := c.Key(key)
	if !ok {
		return nil, &Error{ErrCode: "NotConfigured", ErrClass: "caller", Message: "the configuration has no key " + key}
	}
	able := []string{k.Token}
	if len(k.Replicas) > 0 {
		var err error
		if able, err = r.able(ctx, k, store.Job{Key: key}); err != nil {
			return nil, err
		}
	}
	// A request names one HSM: there is one for each that this daemon reaches.
	var out []store.Request
	for _, name := range able {
		if here := c.Reach(name) && r.Tokens.Usable(name); len(able) > 1 && !here {
			continue
		}
		list, err := r.standingIn(ctx, c, k, name, actor, validFor, why)
		if err != nil {
			return nil, err
		}
		out = append(out, list...)
	}
	if len(out) == 0 {
		return nil, &Error{ErrCode: CodeNotReached, ErrClass: "token", Message: fmt.Sprintf("this daemon cannot use %s now: ask one that can", strings.Join(able, " or "))}
	}
	for _, q := range out {
		if err := r.Store.AddRequest(ctx, nil, q, fmt.Sprintf("officers are asked to approve renewals of %s for %s until %s", key, q.Destination, q.ValidUntil.Format(time.DateOnly))); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// standingIn are the requests for one token.
func (r *Runner) standingIn(ctx context.Context, c *configs.Config, k configs.Key, name, actor string, validFor time.Duration, why string) (out []store.Request, err error) {
	key := k.Name
	token, err := r.Tokens.Get(ctx, name)
	if err != nil {
		return nil, err
	}
	known, err := r.Store.Materials(ctx, key)
	if err != nil {
		return nil, err
	}
	t := &task{Runner: r, job: store.Job{Key: key}, on: name}
	token = located(k, name, token)
	im := t.importer(token, k)
	for _, d := range k.Destinations {
		base := t.request(c, k, d)
		seen, err := im.Observe(ctx, base)
		if err != nil {
			return nil, err
		}
		wanted, unknown := t.generations(k, d, known, seen)
		if unknown != nil {
			return nil, unknown
		}
		for _, g := range wanted {
			req := base
			req.Object, req.KeyMaterialID, req.CheckValue, req.Pending, req.Renew = g.uri, g.id, g.CheckValue, g.pending, true
			p, err := im.Plan(ctx, req)
			if err != nil {
				return nil, err
			}
			object, err := token.Find(ctx, g.uri)
			if err != nil {
				return nil, err
			}
			a := importer.Act{Plan: p, Key: object}
			want, err := t.wanted(ctx, token, k, a)
			if err != nil {
				return nil, err
			}
			if !standing(&want, a) {
				return nil, &Error{ErrCode: "NoStanding", ErrClass: "caller", Message: fmt.Sprintf(
					"no standing approval can be asked for: %s does not hold material of %s that its ID or public key tells; import it first", d.ARN, key)}
			}
			want.Purpose, want.AskedBy, want.Why = approval.Standing, approval.OneLine(actor), approval.OneLine(why)
			q, err := r.newRequest(want, validFor, 0)
			if err != nil {
				return nil, err
			}
			out = append(out, q)
		}
	}
	return out, nil
}
