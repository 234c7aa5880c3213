package store

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Import is one row of the truth about imports.
type Import struct {
	ID                int64     `json:"id"`
	Job               int64     `json:"job"`
	Key               string    `json:"key"`
	Destination       string    `json:"destination"`
	Generation        int64     `json:"generation"`
	Result            string    `json:"result" jsonschema_description:"imported, restored, reimported, unchanged, waits, failed, or unknown: ImportKeyMaterial was sent and KMS does not show whether it took effect; the next run finds out"`
	Finished          time.Time `json:"finished"`
	Algorithm         string    `json:"wrapping_algorithm"`
	WrappingKeySpec   string    `json:"wrapping_key_spec"`
	Mechanism         string    `json:"mechanism"`
	WrappingKeySHA256 string    `json:"wrapping_key_sha256"`
	KeyMaterialID     string    `json:"key_material_id"`
	CheckValue        string    `json:"check_value"`
	ValidTo           time.Time `json:"valid_to,omitzero"`
	Proof             string    `json:"proof"`
	RequestIDs        []string  `json:"request_ids"`
	Error             string    `json:"error,omitempty"`
	ErrorClass        string    `json:"error_class,omitempty"`
	Details           any       `json:"details,omitempty"` // the importer's result, whole
}

// Outcome is how an attempt of a job ended.
type Outcome struct {
	State       State     // Done, Failed, Waiting for NotBefore, Queued (handed back), Cancelled
	NotBefore   time.Time // of Waiting
	Waits       string    // name of the open request for approval that a waiting job waits for
	NeedsPerson bool
	Error       string
	ErrorClass  string
	ErrorCode   string

	Imports   []Import
	Seen      []Seen
	Materials []Material
	Imported  []Success // destinations that hold what was asked for
	Rotated   bool
	Message   string
}

// Success says that a destination got what was asked for.
type Success struct {
	Destination string
	Life        time.Duration // that was asked for; 0: for ever
	Proof       string        // empty: none was tried
	Sent        bool          // material was really imported, so that the token's copy was proved to work
	Scheduled   bool          // it was the schedule's turn
}

// FinishJob ends an attempt: state, imports, what was seen, event and lock, in one transaction. Without the lock nothing is changed.
func (s *Store) FinishJob(ctx context.Context, l *Lease, j Job, o Outcome, enqueue Enqueue) error {
	return s.noted(ctx, func(tx *Tx) error {
		if err := tx.release(ctx, l); err != nil {
			return err
		}
		if err := tx.overtaken(ctx, j, &o); err != nil {
			return err
		}
		finished := int64(0)
		if !o.State.Open() {
			finished = micros(s.now())
		}
		if _, err := tx.exec(ctx, `UPDATE jobs SET state = CASE WHEN state = 'cancelled' THEN state ELSE ? END, not_before = ?, finished_at = ?, error = ?, error_class = ?, error_code = ? WHERE id = ?`,
			o.State, micros(o.NotBefore), finished, o.Error, o.ErrorClass, o.ErrorCode, j.ID); err != nil {
			return err
		}
		if err := tx.outcome(ctx, j, o); err != nil {
			return err
		}
		if !o.State.Open() {
			if err := tx.endRequests(ctx, j.ID, "", "the job is "+string(o.State)); err != nil {
				return err
			}
		}
		fields := map[string]string{"state": string(o.State)}
		for name, v := range map[string]string{"error_class": o.ErrorClass, "error_code": o.ErrorCode} {
			if v != "" {
				fields[name] = v
			}
		}
		if !o.NotBefore.IsZero() {
			fields["not_before"] = o.NotBefore.UTC().Format(time.RFC3339)
		}
		if err := tx.event(ctx, Event{Kind: "finished", Key: j.Key, Destination: j.Destination, Job: j.ID, Message: o.Message, Fields: fields}); err != nil {
			return err
		}
		if o.State != Queued {
			return nil
		}
		return enqueue(ctx, tx.Tx, []Job{j})
	})
}

// overtaken changes an outcome where people acted while the attempt was under way: what they do is in transactions of noted too, and found the job running, so that
// nobody else tells it.
func (tx *Tx) overtaken(ctx context.Context, j Job, o *Outcome) error {
	n, err := tx.standing(ctx, j.ID)
	if err != nil {
		return err
	}
	over := ErrCancelled
	if n.revoked {
		over = ErrRevoked
	}
	again, merged := false, n.options.Renew && !j.Options.Renew
	switch {
	// Nobody has to look at what the import of a revoked key failed with. Of one that was cancelled somebody has: KMS may hold another key.
	case o.State.Open() && (n.revoked || n.state == Cancelled), o.State == Failed && n.revoked:
		o.State, o.NotBefore, o.Message = Cancelled, time.Time{}, fmt.Sprintf("%s; the attempt that was under way: %s", over, o.Message)
		return nil
	case o.State == Waiting && merged: // who asked officers is not who asks for it now
		again, err = true, tx.endRequests(ctx, j.ID, n.requestedBy, otherAsker)
	case o.State == Waiting:
		again, err = tx.waitsNoMore(ctx, j, *o)
	case o.State == Done && j.Kind == KindImport && n.state == Running && !n.revoked && merged:
		again = !slices.ContainsFunc(o.Imported, func(s Success) bool { return s.Sent }) // who asked for a renewal got none
	}
	if again {
		o.State, o.NotBefore, o.Message = Queued, time.Time{}, o.Message+"; it begins anew, because somebody asked for it meanwhile"
	}
	return err
}

// waitsNoMore says that what a job is to wait for happened meanwhile: its request was signed or closed, or a person wants it to be tried again.
func (tx *Tx) waitsNoMore(ctx context.Context, j Job, o Outcome) (bool, error) {
	if o.Waits != "" {
		var state RequestState
		if err := tx.QueryRowContext(ctx, tx.s.rebind("SELECT state FROM requests WHERE name = ?"), o.Waits).Scan(&state); err != nil {
			return false, fmt.Errorf("database: %w", err)
		}
		if state != RequestOpen {
			return true, nil
		}
	}
	asked, err := tx.since(ctx, j.Key, j.Since, "kind = 'retry' AND job_id IN (0, ?)", j.ID)
	return asked > 0, err
}

func (tx *Tx) outcome(ctx context.Context, j Job, o Outcome) error {
	for _, i := range o.Imports {
		if err := tx.addImport(ctx, j, i); err != nil {
			return err
		}
	}
	for _, m := range o.Materials {
		if err := tx.material(ctx, j.Key, m); err != nil {
			return err
		}
	}
	for _, seen := range o.Seen {
		if err := tx.see(ctx, seen); err != nil {
			return err
		}
	}
	for _, d := range o.Imported {
		if err := tx.imported(ctx, j.Key, d); err != nil {
			return err
		}
	}
	if o.Rotated {
		if err := tx.setKey(ctx, j.Key, "rotated_at = ?", micros(tx.s.now())); err != nil {
			return err
		}
	}
	switch {
	case o.State == Queued || o.State == Cancelled:
		return nil
	case j.Destination == "" && o.Error == "":
		return tx.setKey(ctx, j.Key, noError)
	case j.Destination == "":
		return tx.setKey(ctx, j.Key, "needs_person = ?, error = ?, error_class = ?, error_code = ?", flag(o.NeedsPerson), o.Error, o.ErrorClass, o.ErrorCode)
	case o.Error == "":
		return nil
	}
	if err := tx.destination(ctx, j.Key, j.Destination); err != nil {
		return err
	}
	_, err := tx.exec(ctx, "UPDATE destinations SET needs_person = ?, error = ?, error_class = ?, error_code = ?, error_at = ? WHERE key_name = ? AND destination = ?",
		flag(o.NeedsPerson), o.Error, o.ErrorClass, o.ErrorCode, micros(tx.s.now()), j.Key, j.Destination)
	return err
}

func (tx *Tx) addImport(ctx context.Context, j Job, i Import) error {
	ids, err := json.Marshal(i.RequestIDs)
	if err != nil {
		return fmt.Errorf("database: %w", err)
	}
	details, err := json.Marshal(i.Details)
	if err != nil {
		return fmt.Errorf("database: %w", err)
	}
	_, err = tx.exec(ctx, `INSERT INTO imports (job_id, key_name, destination, generation, result, finished_at, wrapping_algorithm, wrapping_key_spec, mechanism,
		wrapping_key_sha256, key_material_id, check_value, valid_to, proof, request_ids, error, error_class, details) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		j.ID, j.Key, i.Destination, i.Generation, i.Result, micros(tx.s.now()), i.Algorithm, i.WrappingKeySpec, i.Mechanism,
		i.WrappingKeySHA256, i.KeyMaterialID, i.CheckValue, micros(i.ValidTo), i.Proof, string(ids), i.Error, i.ErrorClass, string(details))
	return err
}

// imported notes a success, which also ends what was wrong before.
func (tx *Tx) imported(ctx context.Context, key string, d Success) error {
	if err := tx.destination(ctx, key, d.Destination); err != nil {
		return err
	}
	now := micros(tx.s.now())
	set, args := noError+", error_at = 0, life = ?, first_at = CASE WHEN first_at = 0 THEN ? ELSE first_at END", []any{d.Life.Microseconds(), now}
	if d.Sent {
		set, args = set+", imported_at = ?, drilled_at = ?", append(args, now, now)
	} else {
		set, args = set+", imported_at = CASE WHEN imported_at = 0 THEN ? ELSE imported_at END", append(args, now)
	}
	if d.Scheduled {
		set, args = set+", scheduled_at = ?", append(args, now)
	}
	if d.Proof != "" {
		set, args = set+", proved_at = ?, proof = ?", append(args, now, d.Proof)
	}
	_, err := tx.exec(ctx, "UPDATE destinations SET "+set+" WHERE key_name = ? AND destination = ?", append(args, key, d.Destination)...)
	return err
}

// Imports lists what happened to a key's destinations, the latest first.
func (s *Store) Imports(ctx context.Context, key string, job int64, limit int) ([]Import, error) {
	where, args := "1 = 1", []any{}
	if key != "" {
		where, args = where+" AND key_name = ?", append(args, key)
	}
	if job != 0 {
		where, args = where+" AND job_id = ?", append(args, job)
	}
	return query(ctx, s, s.read, scanImport, `SELECT id, job_id, key_name, destination, generation, result, finished_at, wrapping_algorithm, wrapping_key_spec, mechanism,
		wrapping_key_sha256, key_material_id, check_value, valid_to, proof, request_ids, error, error_class, details FROM imports WHERE `+where+" ORDER BY id DESC LIMIT ?", append(args, limit)...)
}

// Imported says whether a key was ever given to KMS, as far as is known. Results that are not imports are named.
func (s *Store) Imported(ctx context.Context, key string, not ...string) (bool, error) {
	args := []any{key}
	for _, result := range not {
		args = append(args, result)
	}
	found, err := query(ctx, s, s.read, func(scan func(...any) error) (n int64, err error) {
		err = scan(&n)
		return n, err
	}, "SELECT id FROM imports WHERE key_name = ? AND result NOT IN (''"+strings.Repeat(", ?", len(not))+") LIMIT 1", args...)
	return len(found) > 0, err
}

func scanImport(scan func(...any) error) (Import, error) {
	var i Import
	var finished, validTo int64
	var ids, details string
	err := scan(&i.ID, &i.Job, &i.Key, &i.Destination, &i.Generation, &i.Result, &finished, &i.Algorithm, &i.WrappingKeySpec, &i.Mechanism,
		&i.WrappingKeySHA256, &i.KeyMaterialID, &i.CheckValue, &validTo, &i.Proof, &ids, &i.Error, &i.ErrorClass, &details)
	if err == nil {
		err = json.Unmarshal([]byte(ids), &i.RequestIDs)
	}
	i.Finished, i.ValidTo, i.Details = stamp(finished), stamp(validTo), json.RawMessage(details)
	return i, err
}
