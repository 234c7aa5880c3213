package runner

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"hsmbridge/configs"
	"hsmbridge/daemon/importer"
	"hsmbridge/daemon/store"
	"hsmbridge/hsm/pkcs11uri"
	"hsmbridge/hsm/wrapping"
)

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
func (t *task) same(ctx context.Context, token importer.Token, a importer.Act) error {
	key := a.Key
	if len(t.key.Replicas) == 0 {
		return t.sameAsBefore(ctx, token, a)
	}
	is, err := wrapping.Identify(ctx, token, key, t.key.KeySpec)
	switch {
	case err != nil:
		return fmt.Errorf("see which key %s is in token %s: %w", t.key.Name, t.on, err)
	case t.want == "" && t.on == t.key.Token:
		return nil // its own token is where everybody else learns it
	case t.want == "" || is == "":
		return &Error{ErrCode: codeNotHere, ErrClass: "token", Message: fmt.Sprintf("nothing was wrapped in token %s, because it is not known whether it holds the same %s as token %s", t.on, t.key.Name, t.key.Token)}
	case is == t.want:
		return nil
	}
	row := store.Replica{Key: t.key.Name, Generation: t.generation, Token: t.on, Identity: is, Serial: token.Identity().Serial}
	message := otherKey(t.key, row, t.want)
	e := &store.Event{Kind: string(StepReplica), Key: t.key.Name, Job: t.job.ID, Destination: t.job.Destination, Message: message, Fields: map[string]string{"token": t.on, "identity": is, "expected": t.want}}
	if _, err := t.Store.SeeReplica(ctx, row, nil, e); err != nil {
		return unwritten(err)
	}
	return t.wrong(message)
}

// sameAsBefore is [task.same] of a key that is in one token: the object is the one that was imported before, into whichever KMS key. Of symmetric keys the
// importer compares the check value.
func (t *task) sameAsBefore(ctx context.Context, token importer.Token, a importer.Act) error {
	if t.key.KeySpec.Kind() == wrapping.KindSymmetric {
		return nil
	}
	is, problem, err := identify(ctx, token, a.Key, t.key.KeySpec)
	switch {
	case err != nil:
		return fmt.Errorf("see which key %s is in token %s: %w", t.key.Name, t.on, err)
	case t.want == "":
		t.is = is
	case is == "" && a.Plan.Action == importer.ActionImport: // where KMS had the material before, it takes no other
		return &Error{ErrCode: codeOtherKey, ErrClass: "caller", Message: fmt.Sprintf("nothing was wrapped: whether %s in token %s is the key that was imported before (%s) cannot be seen: %s", t.key.Name, t.on, t.want, problem)}
	case is != "" && is != t.want:
		return t.wrong(otherKey(t.key, store.Replica{Generation: t.generation, Token: t.on, Identity: is}, t.want))
	}
	return nil
}

// unchanged holds that the object of a key that is in one token is the one of the import before, also where KMS has it still and nothing is wrapped: a proof would
// say that KMS holds another key, and not that it is the object that has changed. What cannot be seen is left to what comes next.
func (t *task) unchanged(ctx context.Context, token importer.Token, g generation) error {
	if t.want == "" || t.key.KeySpec.Kind() == wrapping.KindSymmetric {
		return nil
	}
	key, err := token.Find(ctx, g.uri)
	if err == nil {
		err = t.sameAsBefore(ctx, token, importer.Act{Key: key})
	}
	var other *Error
	if errors.As(err, &other) {
		return err
	}
	return nil
}

// compare says whether the object of a generation is another key than the one that is recorded, or than the one that KMS holds where no record tells; other is nil where it is
// not, or where it cannot be seen. It is written down; follows stands there in place of the advice to put the former key back.
func (t *task) compare(ctx context.Context, im *importer.Importer, token importer.Token, key wrapping.Key, m store.Material, want string, present []configs.Destination, follows string) (other, err error) {
	is, _, err := identify(ctx, token, key, t.key.KeySpec)
	switch {
	case err != nil:
		return nil, fmt.Errorf("see which key %s is in token %s: %w", t.key.Name, t.on, err)
	case want != "" && is != "" && is != want:
		what := store.Replica{Generation: m.Generation, Token: t.on, Identity: is}
		message := otherKey(t.key, what, want)
		told := "nothing was wrapped: " + message // as an import says it: told once
		if follows != "" {
			message = differs(t.key, what, want) + "; " + follows
			told = message
		}
		other = &Error{ErrCode: codeOtherKey, ErrClass: "caller", Message: told}
		return other, t.record(ctx, importer.Event{Time: t.Now(), Step: StepObserved, Key: t.key.Name, Message: message + "; what is recorded stays"})
	}
	for _, d := range present {
		err := im.Compare(ctx, importer.Request{Name: t.key.Name, Object: objectOf(t.key, m.Generation), KeySpec: t.key.KeySpec, Destination: d.ARN})
		switch {
		case errors.Is(err, importer.ErrNotSameKey):
			message := err.Error()
			if follows != "" {
				message = fmt.Sprintf("%s: %v; %s", t.key.Name, importer.ErrNotSameKey, follows)
			}
			return err, t.record(ctx, importer.Event{Time: t.Now(), Step: StepObserved, Key: t.key.Name, Destination: d.ARN, Message: message})
		case err != nil:
			return nil, err
		}
	}
	return nil, nil
}

// identify is [wrapping.Identify], with the reason where the token does not tell.
func identify(ctx context.Context, token importer.Token, key wrapping.Key, spec wrapping.KeySpec) (identity, problem string, err error) {
	switch identity, err = wrapping.Identify(ctx, token, key, spec); {
	case err != nil && importer.Class(err) == "caller":
		identity, problem, err = "", "it does not tell which key it is: "+err.Error(), nil
	case err == nil && identity == "":
		problem = "it gives no check value, so nobody can tell which key it is"
	}
	return identity, problem, err
}

// wrong is the error about a token that holds another key: of the key's own token for a person, of a replica for whoever can use another token.
func (t *task) wrong(message string) error {
	e := &Error{ErrCode: codeOtherKey, ErrClass: "caller", Message: "nothing was wrapped: " + message}
	if t.on != t.key.Token {
		e.ErrCode, e.ErrClass = codeOtherReplica, "token"
	}
	return e
}

// otherKey tells of an object that is another key, and what to do: a replica needs a copy of the key, its own token the key that it had.
func otherKey(k configs.Key, r store.Replica, want string) string {
	fix := importer.PutBack
	if r.Token != k.Token {
		fix = "put a copy of the right one there"
	}
	return differs(k, r, want) + "; it is not used: " + fix
}

func differs(k configs.Key, r store.Replica, want string) string {
	return fmt.Sprintf("the object of %s (generation %d) in token %s is another key: its %s, and it has to be %s", k.Name, r.Generation, r.Token, r.Identity, want)
}

// StepReplica tells of what tokens hold of a key that is in several.
const StepReplica importer.Step = "replica"

// expect notes which material the next wraps have to be of, and holds that the token has it.
func (t *task) expect(ctx context.Context, k configs.Key, token importer.Token, g generation) error {
	if len(k.Replicas) == 0 {
		t.generation, t.want, t.is = g.Generation, g.Identity, ""
		return t.unchanged(ctx, token, g)
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
	case row.Identity == "" && (t.on != k.Token || t.want != "" && row.Problem != "" && !strings.HasPrefix(row.Problem, noSuchObject)):
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
		case there.Identity == row.Identity && !t.recent(there):
			lacks = append(lacks, fmt.Sprintf("token %s held it on %s, and nobody has looked since", name, there.Seen.UTC().Format(time.DateTime)))
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

// recent says that somebody looked into a token lately enough: what was there a week ago counts for nothing.
func (t *task) recent(r store.Replica) bool {
	const looks = 3
	return r.Seen.IsZero() || t.Now().Sub(r.Seen) < looks*t.Config().KMS.Watch()
}

func (*task) missing(k configs.Key, g generation, lacks []string) error {
	return &Error{
		ErrCode: CodeNoReplica, ErrClass: "caller",
		Message: fmt.Sprintf("%s (%s) is not imported before all its tokens hold it: %s; hsmbridge makes no copies: copy it with the HSM's own tool, in place of another key of that name, and it goes on by itself. Or say required: false for the replica",
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

// Look notes what a token holds of a generation of a key. What is otherwise than before is an event. It looks again where somebody else has noted something while it
// looked: which of the two is older is not known.
func (r *Runner) Look(ctx context.Context, k configs.Key, name string, token importer.Token, m store.Material) (row store.Replica, err error) {
	const most = 5
	late := true
	for i := 0; i < most && late && err == nil; i++ {
		row, late, err = r.look(ctx, k, name, token, m)
	}
	return row, err
}

func (r *Runner) look(ctx context.Context, k configs.Key, name string, token importer.Token, m store.Material) (row store.Replica, late bool, err error) {
	row = store.Replica{Key: k.Name, Generation: m.Generation, Token: name, Daemon: r.Store.Daemon(), Serial: token.Identity().Serial}
	rows, err := r.Store.Replicas(ctx, k.Name) // before the token is asked
	if err != nil {
		return row, false, unwritten(err)
	}
	key, err := token.Find(ctx, objectOf(k, m.Generation))
	switch {
	case errors.Is(err, wrapping.ErrKeyNotFound):
		row.Problem = fmt.Sprintf("%s %s", noSuchObject, ObjectIn(k, name, m.Generation))
	case errors.Is(err, wrapping.ErrKeyAmbiguous):
		row.Problem = err.Error()
	case err != nil:
		return row, false, err
	default:
		if row.Identity, row.Problem, err = identify(ctx, token, key, k.KeySpec); err != nil {
			return row, false, err
		}
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
		return row, false, nil // it stands there already
	}
	late, err = r.Store.SeeReplica(ctx, row, &was, e)
	return row, late, unwritten(err)
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
