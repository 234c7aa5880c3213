package runner

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"hsmbridge/configs"
	"hsmbridge/daemon/importer"
	"hsmbridge/daemon/store"
	"hsmbridge/hsm/pkcs11uri"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/kmsclient"
)

// generation is one material of a managed key: a key object, and its ID in one destination.
type generation struct {
	store.Material
	uri     pkcs11uri.URI
	id      string // in the destination in question; empty: not known
	pending bool   // it waits for rotation there
}

// ObjectIn is the URI by which a token has the object of a generation of a key that it holds.
func ObjectIn(k configs.Key, token string, generation int64) pkcs11uri.URI {
	return k.ObjectIn(token, objectOf(k, generation))
}

// objectOf names the key object of a generation: the configured one, then LABEL.2, LABEL.3 ...
func objectOf(k configs.Key, n int64) pkcs11uri.URI {
	u := k.URI
	if n > 1 {
		u.Object += "." + strconv.FormatInt(n, 10)
	}
	return u
}

// description is what KMS keeps beside a material, so that it can be told which object it came from although the database was lost.
// KMS takes letters, digits, space and :/_.- there (API Reference, ImportKeyMaterial, KeyMaterialDescription).
func description(u pkcs11uri.URI) string {
	if u.Object == "" {
		return ""
	}
	clean := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune(":/_.- ", r) {
			return r
		}
		return '_'
	}, u.Object)
	const most = 200
	return "hsmbridge: " + clean[:min(len(clean), most)]
}

// described gives the generation that a description names.
func described(k configs.Key, text string) (n int64, ok bool) {
	if text == "" {
		return 0, false
	}
	for n = 1; n <= kmsclient.MaxRotations+2; n++ {
		if description(objectOf(k, n)) == text {
			return n, true
		}
	}
	return 0, false
}

// generations says which of a key's materials a destination needs, oldest first: those that KMS knows for it; for a KMS key that never
// held any, the latest alone.
func (t *task) generations(k configs.Key, d configs.Destination, known []store.Material, o importer.Observation) ([]generation, error) {
	all := t.adopt(k, d, known, o)
	if k.KeySpec.Kind() != wrapping.KindSymmetric || o.Materials == nil {
		return all[len(all)-1:], nil
	}
	if len(o.Materials) == 0 {
		i := len(all) - 1
		for i > 0 && all[i].Current.IsZero() {
			i-- // a rotation to it is under way elsewhere
		}
		return []generation{all[i]}, nil
	}
	var out []generation
	for i := range all {
		g := &all[i]
		at := slices.IndexFunc(o.Materials, func(m kmsclient.KeyMaterial) bool { return m.ID == g.id && g.id != "" })
		switch {
		case at >= 0:
			g.pending = strings.HasPrefix(o.Materials[at].State, "PENDING")
			out = append(out, *g)
		case g.id == "" && len(all) == 1 && len(o.Materials) == 1:
			out = append(out, *g) // KMS finds out whether it is this one
		}
	}
	for _, m := range o.Materials {
		if m.ImportState != "IMPORTED" && !slices.ContainsFunc(out, func(g generation) bool { return g.id == m.ID || g.id == "" }) {
			return out, &Error{
				ErrCode: "UnknownKeyMaterial", ErrClass: "caller",
				Message: fmt.Sprintf("KMS wants the key material %s (%s) back for %s, and no key object is known to be it; run hsmbridge reconcile %s, "+
					"which looks for it in the token; without it the KMS key stays unusable", m.ID, strings.ToLower(m.State), d.ARN, k.Name),
			}
		}
	}
	if len(out) == 0 {
		return nil, &Error{
			ErrCode: "UnknownKeyMaterial", ErrClass: "caller",
			Message: fmt.Sprintf("%s holds key material that no known key object of %s is; run hsmbridge reconcile %s", d.ARN, k.Name, k.Name),
		}
	}
	return out, nil
}

// adopt joins what the database knows with what KMS tells: IDs of the same multi-Region key in another Region, and descriptions.
func (t *task) adopt(k configs.Key, d configs.Destination, known []store.Material, o importer.Observation) []generation {
	byNumber := map[int64]*generation{1: {Material: store.Material{Generation: 1}, uri: objectOf(k, 1)}}
	for _, m := range known {
		byNumber[m.Generation] = &generation{Material: m, uri: objectOf(k, m.Generation), id: idIn(d, m.IDs)}
	}
	for _, m := range o.Materials {
		n, ok := described(k, m.Description)
		if !ok {
			continue
		}
		if byNumber[n] == nil {
			byNumber[n] = &generation{Material: store.Material{Generation: n}, uri: objectOf(k, n)}
			if !strings.HasPrefix(m.State, "PENDING") {
				byNumber[n].Current = t.Now() // one that the database knows keeps what is written there: a rotation to it may be under way
			}
		}
		if g := byNumber[n]; g.id == "" {
			g.id = m.ID
		}
	}
	out := make([]generation, 0, len(byNumber))
	for _, g := range byNumber {
		g.Object = g.uri.String()
		if g.Generation == 1 && g.Current.IsZero() {
			g.Current = t.Now()
		}
		out = append(out, *g)
	}
	slices.SortFunc(out, func(a, b generation) int { return int(a.Generation - b.Generation) })
	return out
}

// idIn is the ID of a material in a destination. The Regions of a multi-Region key share it.
func idIn(d configs.Destination, ids map[string]string) string {
	if id := ids[d.ARN]; id != "" {
		return id
	}
	for arn, id := range ids {
		if other := (configs.Destination{ARN: arn}); other.KeyID() == d.KeyID() && other.Account() == d.Account() && strings.HasPrefix(d.KeyID(), "mrk-") {
			return id
		}
	}
	return ""
}

// backedUp refuses a key that is only in one token, where the configuration asks for a second.
func (t *task) backedUp(ctx context.Context, k configs.Key, token importer.Token, u pkcs11uri.URI) error {
	if k.Backup.Token == "" {
		return nil
	}
	keys, err := t.Store.Keys(ctx)
	if err != nil {
		return err
	}
	if w := keys[k.Name]; !w.WaivedAt.IsZero() {
		return t.record(ctx, importer.Event{Time: t.Now(), Step: StepBackup, Key: k.Name, Message: "no backup is asked for: " + w.WaivedBy + " waived it: " + w.WaivedReason})
	}
	if err := t.copied(ctx, k, token, u); err != nil {
		return &Error{
			ErrCode: codeNoBackup, ErrClass: "caller", Err: err,
			Message: fmt.Sprintf("%s was not imported, because token %s does not show a copy of it (backup:); copy the key there, or let an officer waive it (hsmbridge waive-backup %s); it is tried again by itself",
				k.Name, k.Backup.Token, k.Name),
		}
	}
	return t.record(ctx, importer.Event{Time: t.Now(), Step: StepBackup, Key: k.Name, Message: "token " + k.Backup.Token + " holds a copy of the key"})
}

// Steps that a job has beside those of the importer.
const (
	StepBackup     importer.Step = "backup"
	StepGeneration importer.Step = "generation"
	StepObserved   importer.Step = "observed"
)

func (t *task) copied(ctx context.Context, k configs.Key, token importer.Token, u pkcs11uri.URI) error {
	second, err := t.Tokens.Get(ctx, k.Backup.Token)
	if err != nil {
		return err
	}
	there := configs.CopyOf(k.URI, k.Backup.URI, u)
	here, err := token.Find(ctx, u)
	if errors.Is(err, wrapping.ErrKeyNotFound) {
		return fmt.Errorf("the key is not even in token %s: %w", t.on, err)
	}
	if err != nil {
		return err
	}
	copied, err := second.Find(ctx, there)
	if err != nil {
		return err
	}
	a, err := fingerprint(ctx, token, here, k.KeySpec)
	if err != nil {
		return err
	}
	b, err := fingerprint(ctx, second, copied, k.KeySpec)
	switch {
	case err != nil:
		return err
	case a == "" || b == "":
		return errors.New("one of the tokens gives no check value to compare")
	case a != b:
		return errors.New("the object there is another key: its check value differs")
	}
	return nil
}

// fingerprint is what two copies of a key have in common: a public key, a MAC, a check value.
func fingerprint(ctx context.Context, token importer.Token, key wrapping.Key, spec wrapping.KeySpec) (string, error) {
	switch spec.Kind() {
	case wrapping.KindHMAC:
		mac, err := token.MAC(ctx, key, []byte("hsmbridge: is there a copy of this key in the backup token?"))
		return string(mac), err
	case wrapping.KindRSA, wrapping.KindEC, wrapping.KindEd25519:
		public, err := token.PublicKey(ctx, key)
		return string(public), err
	case wrapping.KindSymmetric, wrapping.KindRefused:
	}
	return token.CheckValue(ctx, key)
}
