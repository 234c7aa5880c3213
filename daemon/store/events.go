package store

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"time"

	"hsmbridge/daemon/audit"
)

// Event is one record of the journal, which is the audit log: a step of a job, or an act of a person. It holds no key material, PIN or import token.
type Event struct {
	ID          int64             `json:"id"`
	Time        time.Time         `json:"time"`
	Kind        string            `json:"kind"`
	Actor       string            `json:"actor"` // who caused it: a user's name, or the name of the daemon
	Key         string            `json:"key,omitempty"`
	Destination string            `json:"destination,omitempty"`
	Job         int64             `json:"job,omitempty"`
	Message     string            `json:"message"`
	Fields      map[string]string `json:"fields,omitempty"`

	// On the way in; the destination keeps when.
	Sending  bool `json:"-"` // key material goes to KMS next, which may hold it from then on
	Imported bool `json:"-"` // KMS took key material, and not for a proof alone
}

// event adds an event to the transaction, and so to the audit log.
func (tx *Tx) event(ctx context.Context, e Event) error {
	if e.Time.IsZero() {
		e.Time = tx.s.now()
	}
	if e.Actor == "" {
		e.Actor = tx.s.daemon
	}
	if err := tx.append(ctx, e); err != nil || !e.Imported && !e.Sending {
		return err
	}
	if err := tx.destination(ctx, e.Key, e.Destination); err != nil {
		return err
	}
	set, args := "tried_at = ?", []any{micros(e.Time)}
	if e.Imported {
		set, args = set+", sent_at = ?", append(args, micros(e.Time))
	}
	_, err := tx.exec(ctx, "UPDATE destinations SET "+set+" WHERE key_name = ? AND destination = ?", append(args, e.Key, e.Destination)...)
	return err
}

// eventsInOrder lets transactions that add events commit one after the other, so that nobody who has read up to an ID misses a smaller one
// that is committed later. SQLite has one writer anyway.
func (tx *Tx) eventsInOrder(ctx context.Context) error {
	if !tx.s.postgres || tx.alone {
		return nil
	}
	_, err := tx.exec(ctx, "SELECT pg_advisory_xact_lock(7305804402566557797)")
	tx.alone = err == nil
	return err
}

// LastEvent is the ID of the last event.
func (s *Store) LastEvent(ctx context.Context) (id int64, err error) {
	if err := s.read.QueryRowContext(ctx, "SELECT coalesce(max(id), 0) FROM events").Scan(&id); err != nil {
		return 0, fmt.Errorf("database: %w", err)
	}
	return id, nil
}

// lastEvent is [Store.LastEvent] of a transaction, for what comes after it: at least 1, as if there had been one.
func (tx *Tx) lastEvent(ctx context.Context) (id int64, err error) {
	if err := tx.QueryRowContext(ctx, "SELECT coalesce(max(id), 1) FROM events").Scan(&id); err != nil {
		return 0, fmt.Errorf("database: %w", err)
	}
	return id, nil
}

// AddEvent adds an event by itself.
func (s *Store) AddEvent(ctx context.Context, e Event) error {
	return s.noted(ctx, func(tx *Tx) error { return tx.event(ctx, e) })
}

// EventFilter says which events are wanted.
type EventFilter struct {
	After  int64  // only those with a greater ID
	Before int64  // only those with a smaller ID; 0: all
	Key    string // empty: of every key
	Job    int64  // 0: of every job
	Last   int    // at most so many, the latest; 0: 1000, the first after After
}

// Events lists events, oldest first.
func (s *Store) Events(ctx context.Context, f EventFilter) ([]Event, error) {
	order, limit := "ASC", 1000
	if f.Last > 0 {
		order, limit = "DESC", f.Last
	}
	where, args := "id > ? AND id < ?", []any{f.After, cmp.Or(f.Before, math.MaxInt64)}
	if f.Key != "" {
		where, args = where+" AND key_name = ?", append(args, f.Key)
	}
	if f.Job != 0 {
		where, args = where+" AND job_id = ?", append(args, f.Job)
	}
	list, err := query(ctx, s, s.read, scanEvent, "SELECT id, record FROM events WHERE "+where+" ORDER BY id "+order+" LIMIT ?", append(args, limit)...)
	if f.Last > 0 {
		for i, j := 0, len(list)-1; i < j; i, j = i+1, j-1 {
			list[i], list[j] = list[j], list[i]
		}
	}
	return list, err
}

func scanEvent(scan func(...any) error) (Event, error) {
	var id int64
	var record string
	if err := scan(&id, &record); err != nil {
		return Event{}, err
	}
	r, err := audit.Decode([]byte(record))
	var unknown *audit.UnknownKindError
	if errors.As(err, &unknown) {
		err = nil // of a later version; what everyone understands is there
	}
	if err != nil {
		return Event{}, fmt.Errorf("record %d of the audit log: %w", id, err)
	}
	e := Event{ID: id, Time: r.Time, Kind: string(r.Kind), Actor: r.Actor, Key: r.Key, Destination: r.Destination, Job: r.Job, Message: r.Message}
	if old, ok := r.Data.(*audit.Journal); ok {
		e.Kind = old.Kind
		return e, json.Unmarshal([]byte(old.Fields), &e.Fields)
	}
	e.Fields, err = r.Fields()
	return e, err
}

// Watch gives a channel that gets a value after every commit of this process, and a function that ends it.
func (s *Store) Watch() (changed <-chan struct{}, stop func()) {
	ch := make(chan struct{}, 1)
	s.mu.Lock()
	s.watchers[ch] = true
	s.mu.Unlock()
	return ch, func() {
		s.mu.Lock()
		delete(s.watchers, ch)
		s.mu.Unlock()
	}
}

func (s *Store) wake() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for ch := range s.watchers {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}
