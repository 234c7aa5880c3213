package store

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"hsmbridge/daemon/audit"
)

// append adds a record to the audit log: the row, and the hashes of the tree. Records are added one after the other. An event that cannot
// be added fails its transaction, so that nothing is done that is not in the log.
func (tx *Tx) append(ctx context.Context, e Event) error {
	size, err := tx.logSize(ctx)
	if err != nil {
		return err
	}
	r := audit.Record{N: size + 1, Time: e.Time, Kind: audit.Kind(e.Kind), Actor: e.Actor, Key: e.Key, Destination: e.Destination, Job: e.Job, Message: e.Message}
	if err := r.SetFields(e.Fields); err != nil {
		return err
	}
	record, err := r.Encode()
	if err != nil {
		return err
	}
	if err := tx.hash(ctx, r.N, record); err != nil {
		return err
	}
	_, err = tx.exec(ctx, "INSERT INTO events (id, at, kind, actor, key_name, destination, job_id, message, record) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
		r.N, micros(e.Time), e.Kind, e.Actor, e.Key, e.Destination, e.Job, e.Message, string(record))
	tx.size, tx.added = r.N, true
	return err
}

// logSize is the number of records, when nobody else can add one.
func (tx *Tx) logSize(ctx context.Context) (int64, error) {
	if tx.size > 0 {
		return tx.size, nil
	}
	if err := tx.eventsInOrder(ctx); err != nil {
		return 0, err
	}
	if err := tx.QueryRowContext(ctx, "SELECT coalesce(max(id), 0) FROM events").Scan(&tx.size); err != nil {
		return 0, fmt.Errorf("database: %w", err)
	}
	return tx.size, nil
}

// hash stores the hashes of the tree that record n completes.
func (tx *Tx) hash(ctx context.Context, n int64, record []byte) error {
	first, hashes, err := audit.Append(n, audit.LeafHash(record), func(numbers []int64) ([]audit.Hash, error) {
		return tx.s.hashes(ctx, tx, tx.fresh, numbers)
	})
	if err != nil {
		return fmt.Errorf("the audit log cannot be continued, and nothing was done: %w; compare it with an export by hsmbridge audit verify", err)
	}
	if tx.fresh == nil {
		tx.fresh = map[int64]audit.Hash{}
	}
	values, args := make([]string, len(hashes)), make([]any, 0, 2*len(hashes))
	for i, h := range hashes {
		tx.fresh[first+int64(i)] = h
		values[i] = "(?, ?)"
		args = append(args, first+int64(i), h.String())
	}
	_, err = tx.exec(ctx, "INSERT INTO audit_hashes (number, hash) VALUES "+strings.Join(values, ", "), args...)
	return err
}

// hashes reads hashes of the tree, those that the transaction has just made first.
func (s *Store) hashes(ctx context.Context, q querier, fresh map[int64]audit.Hash, numbers []int64) ([]audit.Hash, error) {
	out := make([]audit.Hash, len(numbers))
	at := map[int64]int{}
	var marks []string
	var args []any
	for i, n := range numbers {
		if h, ok := fresh[n]; ok {
			out[i] = h
			continue
		}
		at[n] = i
		marks, args = append(marks, "?"), append(args, n)
	}
	if len(args) == 0 {
		return out, nil
	}
	type row struct {
		number int64
		hash   string
	}
	rows, err := query(ctx, s, q, func(scan func(...any) error) (row, error) {
		var r row
		err := scan(&r.number, &r.hash)
		return r, err
	}, "SELECT number, hash FROM audit_hashes WHERE number IN ("+strings.Join(marks, ", ")+")", args...)
	if err != nil {
		return nil, err
	}
	if len(rows) != len(at) {
		return nil, errors.New("hashes of the audit log are missing")
	}
	for _, r := range rows {
		raw, err := base64.StdEncoding.DecodeString(r.hash)
		i := at[r.number]
		if err != nil || len(raw) != len(out[i]) {
			return nil, fmt.Errorf("hash %d of the audit log is broken", r.number)
		}
		copy(out[i][:], raw)
	}
	return out, nil
}

// Origin is the name of the audit log.
func (s *Store) Origin(ctx context.Context) (origin string, err error) {
	if err := s.read.QueryRowContext(ctx, "SELECT origin FROM audit_log").Scan(&origin); err != nil {
		return "", fmt.Errorf("database: %w", err)
	}
	return origin, nil
}

// AuditKey is the DER SubjectPublicKeyInfo of the key that signs checkpoints; nil: none has yet.
func (s *Store) AuditKey(ctx context.Context) ([]byte, error) {
	var text string
	if err := s.read.QueryRowContext(ctx, "SELECT public_key FROM audit_log").Scan(&text); err != nil {
		return nil, fmt.Errorf("database: %w", err)
	}
	der, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("database: %w", err)
	}
	return der, nil
}

// AuditKeys are all keys that ever signed, as the records of the log name them: DER SubjectPublicKeyInfo. It looks at the whole log.
func (s *Store) AuditKeys(ctx context.Context) ([][]byte, error) {
	list, err := query(ctx, s, s.read, scanEvent, "SELECT id, record FROM events WHERE kind = 'audit-key' ORDER BY id")
	if err != nil {
		return nil, err
	}
	var out [][]byte
	for _, e := range list {
		der, err := base64.StdEncoding.DecodeString(e.Fields["public_key"])
		if err != nil {
			return nil, fmt.Errorf("database: record %d: %w", e.ID, err)
		}
		out = append(out, der)
	}
	return out, nil
}

// SetAuditKey notes the key that signs checkpoints from now on, with its record.
func (s *Store) SetAuditKey(ctx context.Context, der []byte, e Event) error {
	return s.noted(ctx, func(tx *Tx) error {
		if _, err := tx.exec(ctx, "UPDATE audit_log SET public_key = ?, since = ?", base64.StdEncoding.EncodeToString(der), micros(s.now())); err != nil {
			return err
		}
		return tx.event(ctx, e)
	})
}

// Logged is a record as it is in the log.
type Logged struct {
	N      int64           `json:"n"`
	Record json.RawMessage `json:"record"`
}

// Log lists records of the audit log from number first on.
func (s *Store) Log(ctx context.Context, first int64, limit int) ([]Logged, error) {
	return query(ctx, s, s.read, func(scan func(...any) error) (Logged, error) {
		var l Logged
		var record string
		err := scan(&l.N, &record)
		l.Record = json.RawMessage(record)
		return l, err
	}, "SELECT id, record FROM events WHERE id >= ? ORDER BY id LIMIT ?", first, limit)
}

// Prove makes the proof that record n is in the latest signed checkpoint.
func (s *Store) Prove(ctx context.Context, n int64) (audit.Proof, error) {
	list, err := s.Log(ctx, n, 1)
	if err != nil {
		return audit.Proof{}, err
	}
	if len(list) == 0 || list[0].N != n {
		return audit.Proof{}, fmt.Errorf("record %d: %w", n, ErrNoRecord)
	}
	c, found, err := s.LastCheckpoint(ctx)
	switch {
	case err != nil:
		return audit.Proof{}, err
	case !found || c.Size < n:
		return audit.Proof{}, fmt.Errorf("record %d: %w", n, ErrNoCheckpoint)
	}
	return audit.Prove(n, list[0].Record, c.Note, func(numbers []int64) ([]audit.Hash, error) { return s.hashes(ctx, s.read, nil, numbers) })
}

// A record that is not there, or that no signed checkpoint has yet, cannot be proved.
var (
	ErrNoRecord     = errors.New("the log has no such record")
	ErrNoCheckpoint = errors.New("no signed checkpoint has it yet")
)

// Exported is up to where this daemon has copied the log to a place: the number of the first record and the size of the first checkpoint
// that the place does not have yet, from 1.
func (s *Store) Exported(ctx context.Context, sink string) (next, signed int64, err error) {
	switch err := s.read.QueryRowContext(ctx, s.rebind("SELECT next, signed FROM audit_exports WHERE daemon = ? AND sink = ?"), s.daemon, sink).Scan(&next, &signed); {
	case errors.Is(err, sql.ErrNoRows):
		return 1, 1, nil
	case err != nil:
		return 0, 0, fmt.Errorf("database: %w", err)
	}
	return next, signed, nil
}

// SetExported notes up to where this daemon has copied the log to a place.
func (s *Store) SetExported(ctx context.Context, sink string, next, signed int64) error {
	return s.Tx(ctx, func(tx *Tx) error {
		_, err := tx.exec(ctx, "INSERT INTO audit_exports (daemon, sink, next, signed) VALUES (?, ?, ?, ?) ON CONFLICT (daemon, sink) DO UPDATE SET next = excluded.next, signed = excluded.signed",
			s.daemon, sink, next, signed)
		return err
	})
}

// journal is the kind of events of the first schema that no kind of today fits.
const journal = "journal"

// beginLog names the log and takes the events of an earlier schema into it. It is part of the migration to schema 2.
func (tx *Tx) beginLog(ctx context.Context) error {
	random := make([]byte, 4)
	if _, err := rand.Read(random); err != nil {
		return fmt.Errorf("database: %w", err)
	}
	origin := "hsmbridge/" + tx.s.daemon + "-" + hex.EncodeToString(random)
	if _, err := tx.exec(ctx, "INSERT INTO audit_log (origin) VALUES (?)", origin); err != nil {
		return err
	}
	type old struct {
		Event
		fields string
	}
	list, err := query(ctx, tx.s, tx, func(scan func(...any) error) (old, error) {
		var e old
		var at int64
		err := scan(&e.ID, &at, &e.Kind, &e.Actor, &e.Key, &e.Destination, &e.Job, &e.Message, &e.fields)
		e.Time = stamp(at)
		return e, err
	}, "SELECT id, at, kind, actor, key_name, destination, job_id, message, fields FROM events ORDER BY id")
	if err != nil {
		return err
	}
	for i, e := range list {
		r := audit.Record{N: int64(i) + 1, Time: e.Time, Kind: audit.Kind(e.Kind), Actor: e.Actor, Key: e.Key, Destination: e.Destination, Job: e.Job, Message: e.Message}
		var fields map[string]string
		if err := json.Unmarshal([]byte(e.fields), &fields); err != nil {
			return fmt.Errorf("database: event %d: %w", e.ID, err)
		}
		if err := r.SetFields(fields); err != nil {
			r.Kind, r.Data = journal, &audit.Journal{Kind: e.Kind, Fields: e.fields}
		}
		record, err := r.Encode()
		if err != nil {
			return err
		}
		if err := tx.hash(ctx, r.N, record); err != nil {
			return err
		}
		if _, err := tx.exec(ctx, "UPDATE events SET id = ?, record = ? WHERE id = ?", r.N, string(record), e.ID); err != nil {
			return err
		}
	}
	_, err = tx.exec(ctx, "ALTER TABLE events DROP COLUMN fields")
	return err
}
