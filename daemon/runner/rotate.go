package runner

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"hsmbridge/configs"
	"hsmbridge/daemon/importer"
	"hsmbridge/daemon/store"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/kmsclient"
)

// rotate makes a new key object in the token and the current material of every KMS key that the managed key feeds. An earlier
// attempt's object is used, not a second one made.
func (t *task) rotate(ctx context.Context, c *configs.Config, k configs.Key) (o store.Outcome, err error) {
	if k.KeySpec.Kind() != wrapping.KindSymmetric {
		return o, &Error{ErrCode: "NotRotatable", ErrClass: "caller", Message: fmt.Sprintf("%s cannot be rotated: a KMS key of spec %s holds one key material for ever; create a new KMS key", k.Name, k.KeySpec)}
	}
	known, err := t.Store.Materials(ctx, k.Name)
	if err != nil {
		return o, err
	}
	if len(known) == 0 {
		return o, &Error{ErrCode: "NotImported", ErrClass: "caller", Message: fmt.Sprintf("%s cannot be rotated before it was imported once; run hsmbridge import %s", k.Name, k.Name)}
	}
	token, err := t.open(ctx, c, k)
	if err != nil {
		return o, err
	}
	im := t.importer(token, k)
	if known, err = t.allKnown(ctx, im, k, known); err != nil {
		return o, err
	}
	o.Materials = known
	g, err := t.nextGeneration(ctx, k, token, known)
	if err != nil {
		return o, err
	}
	if err := t.backedUp(ctx, k, token, g.uri); err != nil {
		return o, err
	}
	if g.Identity, err = t.everywhere(ctx, k, token, g); err != nil {
		return o, err
	}
	if err := t.expect(ctx, k, token, g); err != nil {
		return o, err
	}
	for _, group := range groups(k.Destinations) {
		if err := t.rotateGroup(ctx, im, c, k, group, &g, &o); err != nil {
			return o, err
		}
	}
	g.Current = t.Now()
	o.Materials = append(o.Materials, g.Material)
	o.State, o.Rotated, o.Message = store.Done, true, "rotated to "+g.uri.Object
	return o, nil
}

// allKnown adds the generations that KMS knows and a database from an older backup does not.
func (t *task) allKnown(ctx context.Context, im *importer.Importer, k configs.Key, known []store.Material) ([]store.Material, error) {
	d := k.Destinations[0]
	seen, err := im.Observe(ctx, importer.Request{Name: k.Name, KeySpec: k.KeySpec, Destination: d.ARN})
	if err != nil {
		return nil, err
	}
	var out []store.Material
	for _, g := range t.adopt(k, d, known, seen) {
		if g.IDs == nil {
			g.IDs = map[string]string{}
		}
		if g.IDs[d.ARN] == "" && g.id != "" {
			g.IDs[d.ARN] = g.id
		}
		out = append(out, g.Material)
	}
	return out, nil
}

// nextGeneration finds or makes the key object of the next generation. It is written down before it is made.
func (t *task) nextGeneration(ctx context.Context, k configs.Key, token importer.Token, known []store.Material) (generation, error) {
	g := generation{Material: known[len(known)-1]}
	if g.Generation == 1 || !g.Current.IsZero() {
		g.Material = store.Material{Generation: g.Generation + 1, IDs: map[string]string{}}
	}
	g.uri = objectOf(k, g.Generation)
	g.Object = g.uri.String()
	if err := t.Store.AddMaterial(ctx, t.lease, k.Name, g.Material); err != nil {
		return g, err
	}
	e := importer.Event{
		Time: t.Now(), Step: StepGeneration, Key: k.Name, Message: "the next key object is " + g.uri.Object,
		Fields: []importer.Field{{Name: "generation", Value: fmt.Sprint(g.Generation)}},
	}
	if err := t.record(ctx, e); err != nil {
		return g, err
	}
	key, err := token.Find(ctx, g.uri)
	if errors.Is(err, wrapping.ErrKeyNotFound) {
		if key, err = token.Generate(ctx, k.KeySpec, g.uri.Object, nil); err == nil {
			e.Step, e.Message = importer.StepGenerate, "generated "+g.uri.Object+" in the token"
			err = t.record(ctx, e)
		}
	}
	if err != nil {
		return g, fmt.Errorf("the key object of the next generation: %w", err)
	}
	check, err := token.CheckValue(ctx, key)
	if err != nil {
		return g, fmt.Errorf("read the check value of %s: %w", g.uri.Object, err)
	}
	if g.CheckValue != "" && check != "" && check != g.CheckValue {
		return g, &Error{
			ErrCode: "OtherKey", ErrClass: "caller",
			Message: fmt.Sprintf("the object %s has the check value %s, and had %s when the rotation began: somebody replaced it; put the former one back", g.uri.Object, check, g.CheckValue),
		}
	}
	g.CheckValue = check
	return g, t.Store.AddMaterial(ctx, t.lease, k.Name, g.Material)
}

// groups are the destinations by KMS key: the Regions of one multi-Region key belong together.
func groups(all []configs.Destination) [][]configs.Destination {
	var out [][]configs.Destination
	at := map[string]int{}
	for _, d := range all {
		id := d.Account() + "/" + d.KeyID()
		if _, ok := at[id]; !ok {
			at[id] = len(out)
			out = append(out, nil)
		}
		out[at[id]] = append(out[at[id]], d)
	}
	return out
}

// rotateGroup rotates one KMS key: new material into the primary, the same into every replica, then RotateKeyOnDemand.
func (t *task) rotateGroup(ctx context.Context, im *importer.Importer, c *configs.Config, k configs.Key, group []configs.Destination, g *generation, o *store.Outcome) error {
	primary, err := t.primaryFirst(ctx, im, k, group)
	if err != nil {
		return err
	}
	for i, d := range primary {
		r := t.request(c, k, d)
		r.Object, r.CheckValue, r.KeyMaterialID, r.Description = g.uri, g.CheckValue, idIn(d, g.IDs), description(g.uri)
		r.New, r.Pending = i == 0, i > 0
		got, err := im.Run(ctx, r)
		o.Imports = append(o.Imports, row(got, g.Generation))
		if err != nil {
			return err
		}
		g.IDs[d.ARN] = got.KeyMaterialID
		if err := t.Store.AddMaterial(ctx, t.lease, k.Name, g.Material); err != nil {
			return err
		}
	}
	r := t.request(c, k, primary[0])
	r.KeyMaterialID = g.IDs[primary[0].ARN]
	if err := im.Rotate(ctx, r); err != nil {
		return err
	}
	for _, d := range primary {
		seen, err := im.Observe(ctx, t.request(c, k, d))
		if err != nil {
			return err
		}
		o.Seen = append(o.Seen, observed(k.Name, d, seen))
	}
	return nil
}

// primaryFirst puts the primary of a multi-Region key before its replicas.
func (t *task) primaryFirst(ctx context.Context, im *importer.Importer, k configs.Key, group []configs.Destination) ([]configs.Destination, error) {
	if len(group) == 1 {
		return group, nil
	}
	var first, rest []configs.Destination
	for _, d := range group {
		seen, err := im.Observe(ctx, importer.Request{Name: k.Name, KeySpec: k.KeySpec, Destination: d.ARN})
		if err != nil {
			return nil, err
		}
		if seen.Info.Primary {
			first = append(first, d)
		} else {
			rest = append(rest, d)
		}
	}
	if len(first) != 1 {
		return nil, &Error{
			ErrCode: "NoPrimary", ErrClass: "caller",
			Message: fmt.Sprintf("the primary of the multi-Region key %s is not among the destinations of %s, and only it can be rotated; add it", group[0].KeyID(), k.Name),
		}
	}
	return append(first, rest...), nil
}

// observed is an observation as it is kept.
func observed(key string, d configs.Destination, o importer.Observation) store.Seen {
	s := store.Seen{
		Key: key, Destination: d.ARN, State: o.Info.State, Present: o.Present, MaterialID: o.Info.CurrentKeyMaterialID, Rotations: int64(o.Rotations),
	}
	if o.Present {
		s.ValidTo = o.ValidTo
	}
	return s
}

// revoke deletes the material from all destinations at once.
func (t *task) revoke(ctx context.Context, k configs.Key) (o store.Outcome, err error) {
	im := t.importer(nil, k)
	errs := make([]error, len(k.Destinations))
	var deleted int
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i, d := range k.Destinations {
		wg.Go(func() {
			r := importer.Request{Name: k.Name, KeySpec: k.KeySpec, Destination: d.ARN}
			n, err := im.Revoke(ctx, r)
			var seen importer.Observation
			if err == nil {
				seen, err = im.Observe(ctx, r)
			}
			if kmsclient.Code(err) == "NotFoundException" && !configured(t.config, d.ARN) {
				seen.Info.State, err = "NotFound", nil // it was deleted, with what it held
			}
			if err == nil && n > 0 && seen.Present {
				seen.Present, seen.Info.State = false, "PendingImport" // KMS took the deletion, and does not show it yet
			}
			mu.Lock()
			defer mu.Unlock()
			deleted += n
			if errs[i] = err; err == nil {
				o.Seen = append(o.Seen, observed(k.Name, d, seen))
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		if done := len(o.Seen); done > 0 {
			err = fmt.Errorf("of %d KMS keys %d hold none of it any more: %w", len(errs), done, err)
		}
		return o, err
	}
	o.State, o.Message = store.Done, fmt.Sprintf("key materials deleted: %d; no destination holds any", deleted)
	return o, nil
}

// checkValueOf is what the token shows of a key object, to be written down; empty: nothing is, because it differs from what was recorded, or
// because a replica is not where a material is learned.
func (t *task) checkValueOf(ctx context.Context, k configs.Key, token importer.Token, key wrapping.Key, m store.Material) (string, error) {
	shown, err := token.CheckValue(ctx, key)
	if err != nil || shown == "" || shown == m.CheckValue {
		return shown, err
	}
	if m.CheckValue == "" && t.on == k.Token {
		return shown, nil
	}
	message := fmt.Sprintf("token %s shows the check value %s for %s, and %s is recorded: the record stays; see who changed the object", t.on, shown, m.Object, m.CheckValue)
	if m.CheckValue == "" {
		message = fmt.Sprintf("token %s shows the check value %s for %s, which is not recorded: it is a replica, and the material is learned from token %s", t.on, shown, m.Object, k.Token)
	}
	return "", t.record(ctx, importer.Event{Time: t.Now(), Step: StepObserved, Key: k.Name, Message: message})
}

// reconcile writes down what KMS and the token hold, and changes neither. It fails when all is written down and the object in the token is another key than the one that
// was recorded, or that KMS holds. Of a revoked key that is written down too, and nobody is called for: whose key was compromised replaces its object, and must not be told
// to put the former one back. Nothing is imported under the name, and after a restore an import refuses the other object.
func (t *task) reconcile(ctx context.Context, k configs.Key) (o store.Outcome, err error) {
	token, err := t.open(ctx, t.config, k)
	if err != nil {
		return o, err
	}
	im := t.importer(token, k)
	found := map[int64]*store.Material{}
	missing, present := 0, []configs.Destination{}
	for _, d := range k.Destinations {
		seen, err := im.Observe(ctx, importer.Request{Name: k.Name, KeySpec: k.KeySpec, Destination: d.ARN})
		if err != nil {
			return o, err
		}
		o.Seen = append(o.Seen, observed(k.Name, d, seen))
		if seen.Present {
			present = append(present, d)
		}
		known, err := t.Store.Materials(ctx, k.Name)
		if err != nil {
			return o, err
		}
		for _, g := range t.adopt(k, d, known, seen) {
			m := found[g.Generation]
			if m == nil {
				m = &g.Material
				m.IDs = map[string]string{}
				found[g.Generation] = m
			}
			m.IDs[d.ARN] = g.id
		}
		if err := t.record(ctx, importer.Event{
			Time: t.Now(), Step: StepObserved, Key: k.Name, Destination: d.ARN, Message: fmt.Sprintf("KMS shows %s; key materials: %d", seen.Info.State, len(seen.Materials)),
		}); err != nil {
			return o, err
		}
	}
	rows, err := t.Store.Replicas(ctx, k.Name)
	if err != nil {
		return o, unwritten(err)
	}
	keys, err := t.Store.KeysOf(ctx, k.Name)
	if err != nil {
		return o, unwritten(err)
	}
	revoked := keys[k.Name].Revoked()
	follows := ""
	if revoked {
		follows = "the key is revoked: nothing is imported under its name"
	}
	var others []error
	for n, m := range found {
		key, err := token.Find(ctx, objectOf(k, n))
		switch {
		case errors.Is(err, wrapping.ErrKeyNotFound):
			missing++
			if err := t.record(ctx, importer.Event{Time: t.Now(), Step: StepObserved, Key: k.Name, Message: "the token does not hold " + objectOf(k, n).Object}); err != nil {
				return o, err
			}
			if len(m.IDs) == 0 || n == 1 && k.Generate == configs.GenerateIfMissing {
				continue
			}
		case err != nil:
			return o, err
		default:
			other, err := t.compare(ctx, im, token, key, *m, Reference(k, *m, rows), present, follows)
			if err != nil {
				return o, err
			}
			if other != nil && t.on == k.Token {
				others = append(others, other)
			}
			if other != nil {
				m.CheckValue = "" // what is recorded stays
			} else if m.CheckValue, err = t.checkValueOf(ctx, k, token, key, *m); err != nil {
				return o, err
			}
		}
		o.Materials = append(o.Materials, *m)
	}
	o.State, o.Message = store.Done, fmt.Sprintf("written down: destinations %d, key materials %d; key objects that are not in the token: %d", len(o.Seen), len(o.Materials), missing)
	if revoked && len(others) > 0 {
		o.Message += fmt.Sprintf("; that are another key than the one that was recorded, which is revoked: %d", len(others))
		return o, nil
	}
	return o, errors.Join(others...)
}
