package store

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Seen is what KMS showed of a destination.
type Seen struct {
	Key         string
	Destination string
	State       string    // of the KMS key: Enabled, PendingImport ...
	Present     bool      // it holds its material
	ValidTo     time.Time // the earliest expiry; zero: never, or nothing is present
	MaterialID  string    // of the current material; symmetric keys only
	Rotations   int64     // on demand, so far; -1: not looked at

	// Since is the last event before KMS was asked (see [Store.LastEvent]): if the journal has more of the destination since then, or of the
	// key as a whole, what was seen may be out of date, and is not written down. 0: it is in any case.
	Since int64
}

// Destination is what is known of one KMS key that a managed key feeds.
type Destination struct {
	Key         string        `json:"key"`
	Destination string        `json:"destination"`
	SeenAt      time.Time     `json:"seen_at,omitzero"` // when KMS was asked last
	State       string        `json:"state"`            // of the KMS key
	Present     bool          `json:"present"`          // KMS holds the material
	ValidTo     time.Time     `json:"valid_to,omitzero"`
	MaterialID  string        `json:"key_material_id,omitempty"`
	Rotations   int64         `json:"rotations"`
	FirstAt     time.Time     `json:"first_at,omitzero"`      // the first import, or when KMS was first found to hold the material
	ImportedAt  time.Time     `json:"imported_at,omitzero"`   // the last import that the journal knows; zero: none
	FirstSeenAt time.Time     `json:"first_seen_at,omitzero"` // where no import is known: when KMS was first found to hold the material, by whomever it was imported
	TriedAt     time.Time     `json:"-"`                      // when key material last went to KMS, whatever became of it; zero: never
	SettledAt   time.Time     `json:"-"`                      // the last job's import, or the first that found the material there: what the planner counts from; zero: never
	Life        time.Duration `json:"-"`                      // that was asked for at the last import
	DrilledAt   time.Time     `json:"drilled_at,omitzero"`
	ScheduledAt time.Time     `json:"scheduled_at,omitzero"`
	ProvedAt    time.Time     `json:"proved_at,omitzero"`
	Proof       string        `json:"proof,omitempty"`
	NeedsPerson bool          `json:"needs_person"`
	Error       string        `json:"error,omitempty"`
	ErrorClass  string        `json:"error_class,omitempty"`
	ErrorCode   string        `json:"error_code,omitempty"`
	ErrorAt     time.Time     `json:"error_at,omitzero"`
}

// Unseen says that nobody has looked at it yet: what KMS holds there is not known.
func (d Destination) Unseen() bool { return d.SeenAt.IsZero() && !d.Present }

// destination makes sure that there is a row.
func (tx *Tx) destination(ctx context.Context, key, destination string) error {
	_, err := tx.exec(ctx, "INSERT INTO destinations (key_name, destination) VALUES (?, ?) ON CONFLICT DO NOTHING", key, destination)
	return err
}

func (tx *Tx) see(ctx context.Context, s Seen) error {
	if err := tx.destination(ctx, s.Key, s.Destination); err != nil {
		return err
	}
	// A KMS key that is in another state than when a person was asked for is worth another try.
	if _, err := tx.exec(ctx, "UPDATE destinations SET error_at = 0, "+noError+" WHERE key_name = ? AND destination = ? AND needs_person = 1 AND kms_state <> '' AND kms_state <> ?",
		s.Key, s.Destination, s.State); err != nil {
		return err
	}
	set, args := "seen_at = ?, kms_state = ?, present = ?, valid_to = ?, material_id = ?",
		[]any{micros(tx.s.now()), s.State, flag(s.Present), micros(s.ValidTo), s.MaterialID}
	if s.Rotations >= 0 {
		set, args = set+", rotations = ?", append(args, s.Rotations)
	}
	_, err := tx.exec(ctx, "UPDATE destinations SET "+set+" WHERE key_name = ? AND destination = ?", append(args, s.Key, s.Destination)...)
	return err
}

// See notes what KMS showed, and gives what it did not note because a job or a person did something with the key since then. It adds nothing to the audit log, and takes its lock all the same: it changes several rows, as others do that hold the
// lock, and PostgreSQL changes those of one statement in whatever order it finds them.
func (s *Store) See(ctx context.Context, seen []Seen) (late []Seen, err error) {
	err = s.noted(ctx, func(tx *Tx) error {
		late = nil
		for _, one := range seen {
			since, err := tx.since(ctx, one.Key, one.Since, "destination IN (?, '')", one.Destination)
			switch {
			case err != nil:
				return err
			case since > 0:
				late = append(late, one)
			default:
				if err := tx.see(ctx, one); err != nil {
					return err
				}
			}
		}
		return nil
	})
	return late, err
}

// since counts the events of a key after one of them, of those with a condition; none after 0. Nobody else adds one before the transaction ends.
func (tx *Tx) since(ctx context.Context, key string, event int64, condition string, args ...any) (n int64, err error) {
	if event == 0 {
		return 0, nil
	}
	if err := tx.QueryRowContext(ctx, tx.s.rebind("SELECT count(*) FROM events WHERE key_name = ? AND id > ? AND "+condition), append([]any{key, event}, args...)...).Scan(&n); err != nil {
		return 0, fmt.Errorf("database: %w", err)
	}
	return n, nil
}

const selectDestinations = `SELECT key_name, destination, seen_at, kms_state, present, valid_to, material_id, rotations, first_at, imported_at, sent_at, tried_at, life,
	drilled_at, scheduled_at, proved_at, proof, needs_person, error, error_class, error_code, error_at FROM destinations`

// Destinations lists what is known of all destinations.
func (s *Store) Destinations(ctx context.Context) ([]Destination, error) {
	return query(ctx, s, s.read, scanDestination, selectDestinations+" ORDER BY key_name, destination")
}

// DestinationsOf lists what is known of the destinations of some keys.
func (s *Store) DestinationsOf(ctx context.Context, keys ...string) (list []Destination, err error) {
	for part := range slices.Chunk(keys, inOne) {
		some, err := query(ctx, s, s.read, scanDestination, selectDestinations+" WHERE key_name IN (?"+strings.Repeat(", ?", len(part)-1)+") ORDER BY key_name, destination", anys(part)...)
		if err != nil {
			return nil, err
		}
		list = append(list, some...)
	}
	return list, nil
}

// inOne is how many names go into one statement.
const inOne = 500

func anys(list []string) []any {
	args := make([]any, len(list))
	for i, x := range list {
		args[i] = x
	}
	return args
}

// Troubled lists the destinations that wait for a person, at most so many.
func (s *Store) Troubled(ctx context.Context, most int) ([]Destination, error) {
	return query(ctx, s, s.read, scanDestination, selectDestinations+" WHERE needs_person = 1 ORDER BY key_name, destination LIMIT ?", most)
}

// Times lists all destinations as the planner sees them: whether KMS holds the material, and when what was done. What people read beyond that,
// which is most of a row, is left out.
func (s *Store) Times(ctx context.Context) ([]Destination, error) {
	return query(ctx, s, s.read, func(scan func(...any) error) (d Destination, err error) {
		var seen, present, validTo, first, settled, tried, life, drilled, scheduled, person int64
		err = scan(&d.Key, &d.Destination, &seen, &present, &validTo, &d.Rotations, &first, &settled, &tried, &life, &drilled, &scheduled, &person)
		d.SeenAt, d.ValidTo, d.FirstAt, d.SettledAt, d.TriedAt, d.DrilledAt, d.ScheduledAt = stamp(seen), stamp(validTo), stamp(first), stamp(settled), stamp(tried), stamp(drilled), stamp(scheduled)
		d.Present, d.NeedsPerson, d.Life = present != 0, person != 0, time.Duration(life)*time.Microsecond
		return d, err
	}, "SELECT key_name, destination, seen_at, present, valid_to, rotations, first_at, imported_at, tried_at, life, drilled_at, scheduled_at, needs_person FROM destinations")
}

func scanDestination(scan func(...any) error) (Destination, error) {
	var d Destination
	var seen, present, validTo, first, settled, sent, tried, life, drilled, scheduled, proved, person, errorAt int64
	err := scan(&d.Key, &d.Destination, &seen, &d.State, &present, &validTo, &d.MaterialID, &d.Rotations, &first, &settled, &sent, &tried, &life,
		&drilled, &scheduled, &proved, &d.Proof, &person, &d.Error, &d.ErrorClass, &d.ErrorCode, &errorAt)
	d.SeenAt, d.ValidTo, d.FirstAt, d.SettledAt, d.ImportedAt, d.TriedAt = stamp(seen), stamp(validTo), stamp(first), stamp(settled), stamp(sent), stamp(tried)
	d.DrilledAt, d.ScheduledAt, d.ProvedAt, d.ErrorAt = stamp(drilled), stamp(scheduled), stamp(proved), stamp(errorAt)
	if sent == 0 {
		d.FirstSeenAt = d.SettledAt
	}
	d.Present, d.NeedsPerson, d.Life = present != 0, person != 0, time.Duration(life)*time.Microsecond
	return d, err
}

// ClearErrors lets the planner begin anew with a key: a person says that the cause is mended.
func (s *Store) ClearErrors(ctx context.Context, key, actor, why string) error {
	return s.noted(ctx, func(tx *Tx) error {
		if err := tx.clearErrors(ctx, key); err != nil {
			return err
		}
		return tx.event(ctx, Event{Kind: "retry", Actor: actor, Key: key, Message: why})
	})
}

const noError = "needs_person = 0, error = '', error_class = '', error_code = ''"

func (tx *Tx) clearErrors(ctx context.Context, key string) error {
	if err := tx.setKey(ctx, key, noError); err != nil {
		return err
	}
	_, err := tx.exec(ctx, "UPDATE destinations SET error_at = 0, "+noError+" WHERE key_name = ?", key)
	return err
}

// Material is one generation of a managed key: a key object in the token.
type Material struct {
	Generation int64             `json:"generation"` // from 1
	Object     string            `json:"object"`     // PKCS#11 URI
	CheckValue string            `json:"check_value,omitempty"`
	Identity   string            `json:"identity,omitempty"` // what tells the material, of any kind; empty: not known
	Created    time.Time         `json:"created"`
	Current    time.Time         `json:"current,omitzero"`           // since when every destination encrypts with it, or did; zero: not yet
	IDs        map[string]string `json:"key_material_ids,omitempty"` // by destination
}

func (tx *Tx) material(ctx context.Context, key string, m Material) error {
	if m.Created.IsZero() {
		m.Created = tx.s.now()
	}
	if _, err := tx.exec(ctx, `INSERT INTO materials (key_name, generation, object, check_value, identity, created_at, current_at) VALUES (?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (key_name, generation) DO UPDATE SET object = excluded.object,
		check_value = CASE WHEN excluded.check_value = '' THEN materials.check_value ELSE excluded.check_value END,
		identity = CASE WHEN excluded.identity = '' THEN materials.identity ELSE excluded.identity END,
		current_at = CASE WHEN materials.current_at = 0 THEN excluded.current_at ELSE materials.current_at END`, key, m.Generation, m.Object, m.CheckValue, m.Identity, micros(m.Created), micros(m.Current)); err != nil {
		return err
	}
	for destination, id := range m.IDs {
		if id == "" {
			continue
		}
		if _, err := tx.exec(ctx, `INSERT INTO material_ids (key_name, generation, destination, material_id) VALUES (?, ?, ?, ?)
			ON CONFLICT (key_name, generation, destination) DO UPDATE SET material_id = excluded.material_id`, key, m.Generation, destination, id); err != nil {
			return err
		}
	}
	return nil
}

// AddMaterial writes down a generation while a job runs, before KMS gets it.
func (s *Store) AddMaterial(ctx context.Context, l *Lease, key string, m Material) error {
	return s.Tx(ctx, func(tx *Tx) error {
		if err := tx.hold(ctx, l); err != nil {
			return err
		}
		return tx.material(ctx, key, m)
	})
}

// Materials lists a key's generations, oldest first.
func (s *Store) Materials(ctx context.Context, key string) ([]Material, error) {
	list, err := query(ctx, s, s.read, func(scan func(...any) error) (Material, error) {
		m := Material{IDs: map[string]string{}}
		var created, current int64
		err := scan(&m.Generation, &m.Object, &m.CheckValue, &m.Identity, &created, &current)
		m.Created, m.Current = stamp(created), stamp(current)
		return m, err
	}, "SELECT generation, object, check_value, identity, created_at, current_at FROM materials WHERE key_name = ? ORDER BY generation", key)
	if err != nil {
		return nil, err
	}
	type row struct {
		generation      int64
		destination, id string
	}
	ids, err := query(ctx, s, s.read, func(scan func(...any) error) (row, error) {
		var r row
		err := scan(&r.generation, &r.destination, &r.id)
		return r, err
	}, "SELECT generation, destination, material_id FROM material_ids WHERE key_name = ?", key)
	for _, r := range ids {
		for i := range list {
			if list[i].Generation == r.generation {
				list[i].IDs[r.destination] = r.id
			}
		}
	}
	return list, err
}

// Generations lists the generations of all keys, by key and oldest first, without their IDs.
func (s *Store) Generations(ctx context.Context) (map[string][]Material, error) {
	type row struct {
		key string
		Material
	}
	list, err := query(ctx, s, s.read, func(scan func(...any) error) (row, error) {
		var r row
		var current int64
		err := scan(&r.key, &r.Generation, &r.CheckValue, &r.Identity, &current)
		r.Current = stamp(current)
		return r, err
	}, "SELECT key_name, generation, check_value, identity, current_at FROM materials ORDER BY key_name, generation")
	out := map[string][]Material{}
	for _, r := range list {
		out[r.key] = append(out[r.key], r.Material)
	}
	return out, err
}
