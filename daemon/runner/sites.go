package runner

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"hsmbridge/configs"
	"hsmbridge/daemon/approval"
	"hsmbridge/daemon/importer"
	"hsmbridge/daemon/store"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/kmsclient"
)

// A key may be in several tokens, and several daemons reach several of them. Whoever can do a job does it; who cannot leaves it to the
// others, and does it itself, with the error that comes of that, when there are none.

// leaveTime is after how long a daemon looks again at a job that it has left to others.
const leaveTime = time.Second

// restTime is how long a token is left alone here when its job can be done elsewhere meanwhile.
const restTime = 30 * time.Second

// choice is where a job can be done.
type choice struct {
	here      []string // tokens that this daemon can use now, best first
	reached   []string // tokens that it reaches, those of here first
	elsewhere []string // tokens by which others could do it
}

// leaves says that other daemons can do the job and this one cannot, or that officers allowed it for a token that others reach.
func (r *Runner) leaves(ctx context.Context, j store.Job) (bool, error) {
	c := r.Config()
	k, ok := c.Key(j.Key)
	if !ok || j.Token == "" || r.Others == nil {
		return false, nil
	}
	w, err := r.choose(ctx, c, k, j)
	return err == nil && len(w.here) == 0 && r.Others(ctx, w.elsewhere), err
}

// choose says which tokens can serve the job.
func (r *Runner) choose(ctx context.Context, c *configs.Config, k configs.Key, j store.Job) (w choice, err error) {
	able := []string{k.Token}
	if len(k.Replicas) > 0 {
		if able, err = r.able(ctx, k, j); err != nil {
			return w, err
		}
	}
	if named, err := r.named(ctx, c, k, j); err != nil {
		return w, err
	} else if named = slices.DeleteFunc(named, func(t string) bool { return !slices.Contains(able, t) }); len(named) > 0 && r.somebody(ctx, c, named) {
		able = named // people allowed it for these; for another token they would have to be asked anew
	}
	w.elsewhere = able
	var tired []string
	for _, t := range able {
		switch {
		case !c.Reach(t):
		case r.Tokens.Usable(t):
			w.here = append(w.here, t)
		default:
			tired = append(tired, t)
		}
	}
	w.reached = slices.Concat(w.here, tired)
	return w, nil
}

// somebody says that this daemon or another can use one of the tokens.
func (r *Runner) somebody(ctx context.Context, c *configs.Config, tokens []string) bool {
	return slices.ContainsFunc(tokens, func(t string) bool { return c.Reach(t) && r.Tokens.Usable(t) }) || r.Others != nil && r.Others(ctx, tokens)
}

// able are the tokens that can serve a job of the key, as far as the key is concerned: its own, and each replica that was seen to hold every
// generation. New material is made in the key's own.
func (r *Runner) able(ctx context.Context, k configs.Key, j store.Job) ([]string, error) {
	known, err := r.Store.Materials(ctx, k.Name)
	if err != nil {
		return nil, err
	}
	rows, err := r.Store.Replicas(ctx, k.Name)
	if err != nil {
		return nil, err
	}
	if len(known) == 0 {
		known = []store.Material{{Generation: 1}}
	}
	last := known[len(known)-1]
	makes := j.Kind == store.KindRotate && (last.Generation == 1 || !last.Current.IsZero())
	var out []string
	for _, t := range k.Tokens() {
		good, other := true, false
		for _, m := range known {
			want, has := Reference(k, m, rows), held(rows, m.Generation, t)
			good = good && want != "" && has == want
			other = other || want != "" && has != "" && has != want
		}
		if t == k.Token && !other || t != k.Token && good && !makes {
			out = append(out, t)
		}
	}
	if len(out) == 0 {
		out = []string{k.Token} // where the error is told
	}
	return out, nil
}

// held is what a token was seen to hold of a generation; empty: nothing, or nothing that tells it.
func held(rows []store.Replica, generation int64, token string) string {
	for _, row := range rows {
		if row.Generation == generation && row.Token == token {
			return row.Identity
		}
	}
	return ""
}

// Reference is what tells the material of a generation: as it was when KMS took it, and before that as the key's own token has it. Empty: not known.
func Reference(k configs.Key, m store.Material, rows []store.Replica) string {
	switch {
	case m.Identity != "":
		return m.Identity
	case m.CheckValue != "" && k.KeySpec.Kind() == wrapping.KindSymmetric:
		return wrapping.ByCheckValue(m.CheckValue)
	}
	return held(rows, m.Generation, k.Token)
}

// named are the tokens for which officers were asked, or have approved, what the job does.
func (r *Runner) named(ctx context.Context, c *configs.Config, k configs.Key, j store.Job) ([]string, error) {
	if _, needed := c.ApprovalFor(k); !needed || len(k.Replicas) == 0 {
		return nil, nil
	}
	list, err := r.Store.Requests(ctx, store.RequestFilter{Key: k.Name, Open: true})
	if err != nil {
		return nil, err
	}
	rows, err := r.Store.Replicas(ctx, k.Name)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, q := range list {
		asked, err := approval.Parse([]byte(q.Text))
		if err != nil || asked.Serial == "" || q.Job != j.ID && (asked.Purpose != approval.Standing || q.Destination != j.Destination) {
			continue
		}
		for _, row := range rows {
			if approval.OneLine(row.Serial) == asked.Serial && !slices.Contains(out, row.Token) {
				out = append(out, row.Token)
			}
		}
	}
	return out, nil
}

// open opens the best token for the job.
func (t *task) open(ctx context.Context, c *configs.Config, k configs.Key) (importer.Token, error) {
	w, err := t.choose(ctx, c, k, t.job)
	if err != nil {
		return nil, unwritten(err)
	}
	if len(w.reached) == 0 {
		return nil, &Error{ErrCode: CodeNotReached, ErrClass: "token", Message: fmt.Sprintf("daemon %s does not reach %s (reaches:), and no daemon that does is there", t.Store.Daemon(), strings.Join(w.elsewhere, " or "))}
	}
	var errs []error
	for _, name := range w.reached {
		token, err := t.Tokens.Get(ctx, name)
		if err == nil {
			t.on, t.used = name, token
			return located(k, name, token), nil
		}
		errs = append(errs, err)
	}
	return nil, errs[0]
}

// located is the token as one in which the key is called as in the configuration.
func located(k configs.Key, name string, token importer.Token) importer.Token {
	if name == k.Token {
		return token
	}
	return &replica{Token: token, key: k, name: name}
}

// handOver queues a job again at once that failed with a token and can be done with another one, here or by another daemon.
func (r *Runner) handOver(ctx context.Context, t *task, v *verdict, err error) {
	code := codeOf(err)
	ofToken := v.do == rest || v.do == park || v.do == replace || Died(err) || slices.Contains([]string{CodeResting, CodeParked, CodeNotReached, codeNotHere, codeOtherReplica}, code)
	if elsewhere := ofToken && v.outcome.State == store.Waiting || code == codeOtherKey; t.job.Token == "" || !elsewhere {
		return
	}
	k, ok := r.Config().Key(t.job.Key)
	if !ok {
		return
	}
	w, cerr := r.choose(ctx, r.Config(), k, t.job)
	if cerr != nil || !r.another(ctx, w, t.on) || code == codeOtherKey && slices.Contains(w.elsewhere, t.on) {
		return
	}
	if t.on != "" && !slices.Contains([]string{codeOtherKey, codeOtherReplica, codeNotHere}, code) {
		// Whether it works again is found out before another job is tried with it. Of a token that rests or is parked already nothing changes.
		r.Tokens.Rest(ctx, t.on, t.used, r.Now().Add(restTime), err)
	}
	v.outcome.State, v.outcome.NotBefore, v.outcome.NeedsPerson = store.Queued, time.Time{}, false
	v.outcome.Message = "handed over to whoever can use " + strings.Join(w.elsewhere, " or ") + ": " + v.outcome.Error
}

// another says that something other than the token can do the job now.
func (r *Runner) another(ctx context.Context, w choice, on string) bool {
	return slices.ContainsFunc(w.here, func(t string) bool { return t != on }) || r.Others != nil && r.Others(ctx, w.elsewhere)
}

// fenced is a KMS client that does nothing irreversible for a process which may have lost the key's lock.
type fenced struct {
	importer.KMS
	sure  func(ctx context.Context) error // before a request is made
	renew func(ctx context.Context) error // before each of its attempts
}

type fence struct{}

// Fence asks whether the process still has the lock for which a request is sent, if it is one that cannot be taken back. Whoever sends it asks
// before each attempt: a process that is frozen while it waits for an answer repeats the request when it wakes up.
func Fence(ctx context.Context) error {
	sure, ok := ctx.Value(fence{}).(func(context.Context) error)
	if !ok {
		return nil
	}
	return sure(ctx)
}

func (f fenced) before(ctx context.Context) (context.Context, error) {
	return context.WithValue(ctx, fence{}, f.renew), f.sure(ctx)
}

// ImportKeyMaterial imports, if the lock is held.
func (f fenced) ImportKeyMaterial(ctx context.Context, r kmsclient.ImportRequest) (kmsclient.ImportResult, error) {
	ctx, err := f.before(ctx)
	if err != nil {
		return kmsclient.ImportResult{}, err
	}
	return f.KMS.ImportKeyMaterial(ctx, r)
}

// RotateKeyOnDemand rotates, if the lock is held.
func (f fenced) RotateKeyOnDemand(ctx context.Context, arn string) error {
	ctx, err := f.before(ctx)
	if err != nil {
		return err
	}
	return f.KMS.RotateKeyOnDemand(ctx, arn)
}

// DeleteImportedKeyMaterial deletes, if the lock is held.
func (f fenced) DeleteImportedKeyMaterial(ctx context.Context, arn, keyMaterialID string) error {
	ctx, err := f.before(ctx)
	if err != nil {
		return err
	}
	return f.KMS.DeleteImportedKeyMaterial(ctx, arn, keyMaterialID)
}
