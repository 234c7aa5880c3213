package runner

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"hsmbridge/configs"
	"hsmbridge/daemon/importer"
	"hsmbridge/daemon/schedule"
	"hsmbridge/daemon/store"
	"hsmbridge/hsm/wrapping"
)

// importTo brings every material that a destination needs into it.
func (t *task) importTo(ctx context.Context, c *configs.Config, k configs.Key, d configs.Destination) (o store.Outcome, err error) {
	token, err := t.open(ctx, c, k)
	if err != nil {
		return o, err
	}
	known, err := t.Store.Materials(ctx, k.Name)
	if err != nil {
		return o, err
	}
	im, base := t.importer(token, k), t.request(c, k, d)
	seen, err := im.Observe(ctx, base)
	if err != nil {
		return o, err
	}
	o.Seen = []store.Seen{observed(k.Name, d, seen)} // also when nothing comes of it
	if i := seen.Info; i.MultiRegion && !i.Primary && i.CurrentKeyMaterialID == "" && len(seen.Materials) == 0 {
		return o, &Error{ErrCode: codePrimaryFirst, ErrClass: "kms", Message: fmt.Sprintf("%s is a replica, and its primary (%s) has no key material yet, which comes first", d.ARN, i.PrimaryARN)}
	}
	wanted, unknown := t.generations(k, d, known, seen)
	if len(wanted) == 0 {
		return o, unknown
	}
	var there bool
	if base.Generate, there, err = t.mayGenerate(ctx, im, token, k, known); err != nil {
		return o, err
	}
	prepare := func(g generation) importer.Request {
		r := base
		r.Object, r.KeyMaterialID, r.CheckValue, r.Pending = g.uri, g.id, g.CheckValue, g.pending
		r.Renew = t.renews()
		if k.KeySpec.Kind() == wrapping.KindSymmetric {
			r.Description = description(g.uri)
		}
		return r
	}
	if err := t.askForAll(ctx, c, k, im, token, wanted, prepare); err != nil {
		return o, err
	}
	result := store.Success{Destination: d.ARN, Life: base.Expires, Scheduled: t.job.Reason == string(schedule.Schedule)}
	end := time.Time{}
	for _, g := range wanted {
		r := prepare(g)
		identity, err := t.first(ctx, k, token, g, len(known) == 0 && !base.Generate)
		if err != nil {
			return o, err
		}
		got, err := im.Run(ctx, r)
		o.Imports = append(o.Imports, row(got, g.Generation))
		if got.Took() || got.Result == importer.Unknown {
			o.Seen = nil // it is not so any more
		}
		if t.on != k.Token && errors.Is(err, wrapping.ErrKeyNotFound) {
			_, lerr := t.Look(ctx, k, t.on, token, g.Material) // nobody tries it again before it is there
			return o, &Error{ErrCode: codeNotHere, ErrClass: "token", Message: "token " + t.on + " does not hold " + k.Name + " any more", Err: errors.Join(err, lerr)}
		}
		if there && errors.Is(err, wrapping.ErrKeyNotFound) {
			// Another process made it and took it back, or ended while the token wrote it.
			return o, &Error{ErrCode: "KeyVanished", ErrClass: "session", Message: k.Name + " was in the token a moment ago and is there no more", Err: err}
		}
		if err != nil {
			return o, err
		}
		m := g.Material
		m.Identity = cmp.Or(t.want, t.is, identity, t.proved(ctx, k, token, g, got))
		m.CheckValue, m.IDs = got.CheckValue, map[string]string{d.ARN: got.KeyMaterialID}
		o.Materials = append(o.Materials, m)
		result.Sent = result.Sent || got.Result != importer.Unchanged
		result.Proof = string(got.Proof)
		if at := got.ExpiresAt(); !at.IsZero() && (end.IsZero() || at.Before(end)) {
			end = at
		}
	}
	last := o.Imports[len(o.Imports)-1]
	state := seen.Info.State
	if state == "PendingImport" {
		state = "Enabled"
	}
	o.State, o.Message = store.Done, fmt.Sprintf("%s, %s", last.Result, last.Proof)
	o.Imported = []store.Success{result}
	o.Seen = []store.Seen{{
		Key: k.Name, Destination: d.ARN, State: state, Present: true, ValidTo: end, MaterialID: last.KeyMaterialID, Rotations: int64(seen.Rotations),
	}}
	if unknown != nil {
		o.Imported, o.Seen = nil, nil
	}
	return o, unknown
}

// proved is what tells a material of which nothing was wrapped, since KMS held it: the proof says that the object is the same key. Empty: not known.
func (t *task) proved(ctx context.Context, k configs.Key, token importer.Token, g generation, got importer.Result) string {
	if k.KeySpec.Kind() == wrapping.KindSymmetric || len(k.Replicas) > 0 || got.Result != importer.Unchanged || got.Proof == importer.Unproved {
		return ""
	}
	key, err := token.Find(ctx, g.uri)
	if err != nil {
		return ""
	}
	is, _, err := identify(ctx, token, key, k.KeySpec)
	if err != nil {
		return ""
	}
	return is
}

// first holds, before an import, what has to hold before a first one, and says which material it is to be.
func (t *task) first(ctx context.Context, k configs.Key, token importer.Token, g generation, isFirst bool) (identity string, err error) {
	if isFirst {
		if err := t.backedUp(ctx, k, token, g.uri); err != nil {
			return "", err
		}
		if identity, err = t.everywhere(ctx, k, token, g); err != nil {
			return "", err
		}
	}
	return identity, t.expect(ctx, k, token, g)
}

// renews says that the job imports also what KMS holds with the life asked for.
func (t *task) renews() bool {
	again := []schedule.Reason{schedule.Renew, schedule.Schedule, schedule.Drill, schedule.Changed}
	return t.job.Options.Renew || slices.Contains(again, schedule.Reason(t.job.Reason))
}

// mayGenerate says that a key which is not in the token may be made there: the configuration allows it, no import of it was ever
// written down, and no destination shows material. A key that is needed a second time cannot be made anew. there says that it need not be.
func (t *task) mayGenerate(ctx context.Context, im *importer.Importer, token importer.Token, k configs.Key, known []store.Material) (may, there bool, err error) {
	if k.Generate != configs.GenerateIfMissing || len(known) > 0 || t.on != k.Token {
		return false, false, nil
	}
	if _, err := token.Find(ctx, k.URI); err == nil || !errors.Is(err, wrapping.ErrKeyNotFound) {
		return false, err == nil, nil // the import says what it finds
	}
	may, err = t.neverImported(ctx, im, token, k)
	if _, officers := t.Config().ApprovalFor(k); err != nil || !may || !officers {
		return may, false, err
	}
	// Officers approve a key that is there.
	return false, true, t.generate(ctx, token, k, "generated the key in the token; it is imported when officers have approved it")
}

// generate makes a key in the token before anything else is done with it.
func (t *task) generate(ctx context.Context, token importer.Token, k configs.Key, message string) error {
	if _, err := token.Generate(ctx, k.KeySpec, k.URI.Object, k.URI.ID); err != nil {
		return fmt.Errorf("generate %s in the token: %w", k.Name, err)
	}
	return t.record(ctx, importer.Event{Time: t.Now(), Step: importer.StepGenerate, Key: k.Name, Message: message})
}

// neverImported says that nobody and nothing knows of an import of the key. One that ended as [importer.Unknown] counts: KMS may have taken it.
func (t *task) neverImported(ctx context.Context, im *importer.Importer, token importer.Token, k configs.Key) (bool, error) {
	if done, err := t.Store.Imported(ctx, k.Name, string(importer.Failed), string(importer.Waits)); err != nil || done {
		return false, err
	}
	for _, d := range k.Destinations {
		o, err := im.Observe(ctx, importer.Request{Name: k.Name, KeySpec: k.KeySpec, Destination: d.ARN})
		if err != nil {
			return false, fmt.Errorf("%s was not generated, because not all its destinations could be looked at: %w", k.Name, err)
		}
		if o.Present || len(o.Materials) > 0 || o.Info.CurrentKeyMaterialID != "" {
			return false, nil
		}
	}
	if k.Backup.Token == "" && len(k.Replicas) == 0 {
		return true, nil
	}
	// The copies have to be made before the import: the key is generated now, and the gates ask for the copies.
	return false, t.generate(ctx, token, k, "generated the key in the token; it is imported when the other tokens have a copy")
}

// row is an importer's result as it is kept.
func row(r importer.Result, generation int64) store.Import {
	return store.Import{
		Key: r.Key, Destination: r.Destination, Generation: generation, Result: string(r.Result), Algorithm: string(r.Algorithm),
		WrappingKeySpec: string(r.WrappingKeySpec), Mechanism: r.Mechanism, WrappingKeySHA256: r.WrappingKeySHA256, KeyMaterialID: r.KeyMaterialID,
		CheckValue: r.CheckValue, ValidTo: r.ExpiresAt(), Proof: string(r.Proof), RequestIDs: r.RequestIDs, Error: r.Error, ErrorClass: r.ErrorClass, Details: r,
	}
}
