package runner

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"hsmbridge/configs"
	"hsmbridge/daemon/approval"
	"hsmbridge/daemon/importer"
	"hsmbridge/daemon/store"
	"hsmbridge/hsm/pkcs11uri"
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
		return checkValue(m.CheckValue)
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
			t.on = name
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

// replica is another token than the key's own: its objects may be called otherwise, and no key is made there.
type replica struct {
	importer.Token
	key  configs.Key
	name string
}

// Find finds the copy of an object.
func (r *replica) Find(ctx context.Context, u pkcs11uri.URI) (wrapping.Key, error) {
	return r.Token.Find(ctx, r.key.ObjectIn(r.name, u))
}

// Generate refuses: a key that is made here would be another one.
func (r *replica) Generate(context.Context, wrapping.KeySpec, string, []byte) (wrapping.Key, error) {
	return wrapping.Key{}, &Error{ErrCode: codeNotHere, ErrClass: "token", Message: fmt.Sprintf("new material of %s is made in token %s, and not in its replica %s", r.key.Name, r.key.Token, r.name)}
}

// same holds immediately before a wrap, and before anybody is asked about it, that the object is the material that it has to be.
func (t *task) same(ctx context.Context, token importer.Token, key wrapping.Key) error {
	if len(t.key.Replicas) == 0 {
		return nil
	}
	is, err := Identify(ctx, token, key, t.key.KeySpec)
	switch {
	case err != nil:
		return fmt.Errorf("see which key %s is in token %s: %w", t.key.Name, t.on, err)
	case t.want == "" && t.on == t.key.Token, is == "" && t.on == t.key.Token:
		return nil // its own token is where everybody else learns it
	case t.want == "" || is == "":
		return &Error{ErrCode: codeNotHere, ErrClass: "token", Message: fmt.Sprintf("nothing was wrapped in token %s, because it is not known whether it holds the same %s as token %s", t.on, t.key.Name, t.key.Token)}
	case is == t.want:
		return nil
	}
	row := store.Replica{Key: t.key.Name, Generation: t.generation, Token: t.on, Identity: is, Serial: token.Identity().Serial}
	message := otherKey(t.key, row, t.want)
	e := &store.Event{Kind: string(StepReplica), Key: t.key.Name, Job: t.job.ID, Destination: t.job.Destination, Message: message, Fields: map[string]string{"token": t.on, "identity": is, "expected": t.want}}
	if err := t.Store.SeeReplica(ctx, row, e); err != nil {
		return unwritten(err)
	}
	return t.wrong(message)
}

// wrong is the error about a token that holds another key: of the key's own token for a person, of a replica for whoever can use another token.
func (t *task) wrong(message string) error {
	e := &Error{ErrCode: codeOtherKey, ErrClass: "caller", Message: "nothing was wrapped: " + message}
	if t.on != t.key.Token {
		e.ErrCode, e.ErrClass = codeOtherReplica, "token"
	}
	return e
}

func otherKey(k configs.Key, r store.Replica, want string) string {
	return fmt.Sprintf("the object of %s (generation %d) in token %s is another key: its %s, and it has to be %s; it is not used: put a copy of the right one there", k.Name, r.Generation, r.Token, r.Identity, want)
}

// StepReplica tells of what tokens hold of a key that is in several.
const StepReplica importer.Step = "replica"

// expect notes which material the next wraps have to be of, and holds that the token has it.
func (t *task) expect(ctx context.Context, k configs.Key, token importer.Token, g generation) error {
	if len(k.Replicas) == 0 {
		return nil
	}
	rows, err := t.Store.Replicas(ctx, k.Name)
	if err != nil {
		return unwritten(err)
	}
	t.generation, t.want = g.Generation, Reference(k, g.Material, rows)
	row, err := t.Look(ctx, k, t.on, token, g.Material)
	switch {
	case err != nil:
		return fmt.Errorf("look at %s in token %s: %w", g.uri, t.on, err)
	case t.want != "" && row.Identity != "" && row.Identity != t.want:
		return t.wrong(otherKey(k, row, t.want))
	case row.Identity == "" && t.on != k.Token:
		return &Error{ErrCode: codeNotHere, ErrClass: "token", Message: fmt.Sprintf("nothing was wrapped in token %s, as to %s (generation %d): %s", t.on, k.Name, g.Generation, row.Problem)}
	}
	return nil
}

// everywhere holds that new material is in every token that has to hold it, before it is imported for the first time, and gives what tells it.
func (t *task) everywhere(ctx context.Context, k configs.Key, token importer.Token, g generation) (identity string, err error) {
	if len(k.Replicas) == 0 {
		return "", nil
	}
	row, err := t.Look(ctx, k, t.on, token, g.Material)
	switch {
	case err != nil:
		return "", err
	case strings.HasPrefix(row.Problem, noSuchObject):
		return "", nil // the import says so
	case row.Identity == "":
		return "", t.missing(k, g, []string{fmt.Sprintf("token %s: %s", t.on, row.Problem)})
	}
	var lacks []string
	var shows []string
	for _, name := range k.Tokens() {
		if r, ok := k.Replica(name); name == t.on || ok && !r.Required {
			continue
		}
		there, err := t.seen(ctx, k, name, g)
		switch {
		case err != nil:
			return "", err
		case there.Identity == row.Identity:
			shows = append(shows, name)
		case there.Identity != "":
			lacks = append(lacks, fmt.Sprintf("token %s holds another key (%s, not %s)", name, there.Identity, row.Identity))
		default:
			lacks = append(lacks, fmt.Sprintf("token %s: %s", name, there.Problem))
		}
	}
	if len(lacks) > 0 {
		return "", t.missing(k, g, lacks)
	}
	message := fmt.Sprintf("token %s and %s hold the same key: %s", t.on, strings.Join(shows, ", "), row.Identity)
	if len(shows) == 0 {
		message = fmt.Sprintf("token %s holds the key: %s; no other has to", t.on, row.Identity)
	}
	return row.Identity, t.record(ctx, importer.Event{Time: t.Now(), Step: StepReplica, Key: k.Name, Message: message})
}

func (*task) missing(k configs.Key, g generation, lacks []string) error {
	return &Error{
		ErrCode: CodeNoReplica, ErrClass: "caller",
		Message: fmt.Sprintf("%s (%s) is not imported before all its tokens hold it: %s; hsmbridge makes no copies: copy it with the HSM's own tool, and it goes on by itself. Or say required: false for the replica",
			k.Name, g.uri.Object, strings.Join(lacks, "; ")),
	}
}

// seen is what a token holds of a generation: looked at now where this daemon can, else as another one saw it.
func (t *task) seen(ctx context.Context, k configs.Key, name string, g generation) (store.Replica, error) {
	if t.Config().Reach(name) && t.Tokens.Usable(name) {
		if token, err := t.Tokens.Get(ctx, name); err == nil {
			if row, err := t.Look(ctx, k, name, located(k, name, token), g.Material); err == nil {
				return row, nil
			}
		}
	}
	rows, err := t.Store.Replicas(ctx, k.Name)
	if err != nil {
		return store.Replica{}, unwritten(err)
	}
	for _, row := range rows {
		if row.Token == name && row.Generation == g.Generation {
			return row, nil
		}
	}
	return store.Replica{Problem: "no daemon has looked into it yet"}, nil
}

const noSuchObject = "it does not hold"

// LookInto notes what an open token of the daemon holds of a generation of a key.
func (r *Runner) LookInto(ctx context.Context, k configs.Key, name string, m store.Material) (store.Replica, error) {
	token, err := r.Tokens.Get(ctx, name)
	if err != nil {
		return store.Replica{}, err
	}
	return r.Look(ctx, k, name, located(k, name, token), m)
}

// Look notes what a token holds of a generation of a key. What is otherwise than before is an event.
func (r *Runner) Look(ctx context.Context, k configs.Key, name string, token importer.Token, m store.Material) (store.Replica, error) {
	row := store.Replica{Key: k.Name, Generation: m.Generation, Token: name, Daemon: r.Store.Daemon(), Serial: token.Identity().Serial}
	u := objectOf(k, m.Generation)
	key, err := token.Find(ctx, u)
	switch {
	case errors.Is(err, wrapping.ErrKeyNotFound):
		row.Problem = fmt.Sprintf("%s %s", noSuchObject, k.ObjectIn(name, u))
	case errors.Is(err, wrapping.ErrKeyAmbiguous):
		row.Problem = err.Error()
	case err != nil:
		return row, err
	default:
		switch row.Identity, err = Identify(ctx, token, key, k.KeySpec); {
		case err != nil && importer.Class(err) != "caller":
			return row, err
		case err != nil:
			row.Identity, row.Problem = "", "it does not tell which key it is: "+err.Error()
		case row.Identity == "":
			row.Problem = "it gives no check value, so nobody can tell which key it is"
		}
	}
	rows, err := r.Store.Replicas(ctx, k.Name)
	if err != nil {
		return row, unwritten(err)
	}
	var e *store.Event
	was := store.Replica{}
	if i := slices.IndexFunc(rows, func(x store.Replica) bool { return x.Token == name && x.Generation == m.Generation }); i >= 0 {
		was = rows[i]
	}
	if was.Identity != row.Identity || was.Problem != row.Problem {
		e = &store.Event{Kind: string(StepReplica), Key: k.Name, Message: seenMessage(k, row, Reference(k, m, rows)), Fields: map[string]string{"token": name, "identity": row.Identity}}
	}
	const fresh = time.Minute
	if e == nil && r.Now().Sub(was.Seen).Abs() < fresh {
		return row, nil // it stands there already
	}
	return row, unwritten(r.Store.SeeReplica(ctx, row, e))
}

func seenMessage(k configs.Key, row store.Replica, want string) string {
	switch {
	case row.Problem != "":
		return fmt.Sprintf("token %s, as to %s (generation %d): %s", row.Token, k.Name, row.Generation, row.Problem)
	case want != "" && want != row.Identity:
		return otherKey(k, row, want)
	}
	return fmt.Sprintf("token %s holds %s (generation %d): %s", row.Token, k.Name, row.Generation, row.Identity)
}

// handOver queues a job again at once that failed with a token and can be done with another one, here or by another daemon.
func (r *Runner) handOver(ctx context.Context, t *task, v *verdict, err error) {
	code := codeOf(err)
	ofToken := v.do == rest || v.do == park || v.do == replace || Died(err) || slices.Contains([]string{CodeResting, CodeParked, CodeNotReached, codeNotHere, codeOtherReplica}, code)
	if t.job.Token == "" || !(ofToken && v.outcome.State == store.Waiting || code == codeOtherKey) {
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
		r.Tokens.Rest(ctx, t.on, r.Now().Add(restTime), err)
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
	sure func(ctx context.Context) error
}

// ImportKeyMaterial imports, if the lock is held.
func (f fenced) ImportKeyMaterial(ctx context.Context, r kmsclient.ImportRequest) (kmsclient.ImportResult, error) {
	if err := f.sure(ctx); err != nil {
		return kmsclient.ImportResult{}, err
	}
	return f.KMS.ImportKeyMaterial(ctx, r)
}

// RotateKeyOnDemand rotates, if the lock is held.
func (f fenced) RotateKeyOnDemand(ctx context.Context, arn string) error {
	if err := f.sure(ctx); err != nil {
		return err
	}
	return f.KMS.RotateKeyOnDemand(ctx, arn)
}

// DeleteImportedKeyMaterial deletes, if the lock is held.
func (f fenced) DeleteImportedKeyMaterial(ctx context.Context, arn, keyMaterialID string) error {
	if err := f.sure(ctx); err != nil {
		return err
	}
	return f.KMS.DeleteImportedKeyMaterial(ctx, arn, keyMaterialID)
}
