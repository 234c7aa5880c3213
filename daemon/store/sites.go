package store

import (
	"context"
	"encoding/json"
	"fmt"
	"time"
)

// Daemon is a daemon on the database, as the others see it.
type Daemon struct {
	Name   string            `json:"name"`
	Ago    time.Duration     `json:"-"`      // since its last sign of life, by the database's clock
	Alive  bool              `json:"alive"`  // it gave one within the time of a lease
	Tokens map[string]string `json:"tokens"` // that it reaches: what it can do with each, in the words of its own status
}

// Beat is this daemon's sign of life.
func (s *Store) Beat(ctx context.Context, tokens map[string]string) error {
	text, err := json.Marshal(tokens)
	if err != nil {
		return fmt.Errorf("database: %w", err)
	}
	return s.Tx(ctx, func(tx *Tx) error {
		const forgotten = 7 * 24 * time.Hour
		if _, err := tx.exec(ctx, "DELETE FROM daemons WHERE seen_at < {{clock}} - ?", forgotten.Microseconds()); err != nil {
			return err
		}
		_, err := tx.exec(ctx, "INSERT INTO daemons (name, seen_at, tokens) VALUES (?, {{clock}}, ?) ON CONFLICT (name) DO UPDATE SET seen_at = excluded.seen_at, tokens = excluded.tokens",
			s.daemon, string(text))
		return err
	})
}

// Leave takes the sign of life back: the daemon ends in good order.
func (s *Store) Leave(ctx context.Context) error {
	return s.Tx(ctx, func(tx *Tx) error {
		_, err := tx.exec(ctx, "DELETE FROM daemons WHERE name = ?", s.daemon)
		return err
	})
}

// Daemons lists the daemons on the database, also those that are gone and did not leave.
func (s *Store) Daemons(ctx context.Context) ([]Daemon, error) {
	return query(ctx, s, s.read, func(scan func(...any) error) (Daemon, error) {
		var d Daemon
		var ago int64
		var text string
		err := scan(&d.Name, &ago, &text)
		if err == nil {
			err = json.Unmarshal([]byte(text), &d.Tokens)
		}
		d.Ago = time.Duration(ago) * time.Microsecond
		d.Alive = d.Ago < s.lease
		return d, err
	}, "SELECT name, {{clock}} - seen_at, tokens FROM daemons ORDER BY name")
}

// Replica is what a token was seen to hold of a key that several tokens hold.
type Replica struct {
	Key        string    `json:"key"`
	Generation int64     `json:"generation"`
	Token      string    `json:"token"`
	Identity   string    `json:"identity,omitempty"` // what tells the material
	Problem    string    `json:"problem,omitempty"`  // why there is no identity
	Serial     string    `json:"serial,omitempty"`
	Daemon     string    `json:"daemon"`
	Seen       time.Time `json:"seen"`
}

// SeeReplica notes what a token holds of a key. With e it is an event: something is otherwise than before. was is what stood there before the token was asked: if it
// stands there no more, somebody else has asked since, and nothing is noted; late says so. nil: it is noted in any case.
func (s *Store) SeeReplica(ctx context.Context, r Replica, was *Replica, e *Event) (late bool, err error) {
	in := s.Tx
	if e != nil {
		in = s.noted
	}
	where, args := "", []any{r.Key, r.Generation, r.Token, r.Identity, r.Problem, r.Serial, s.daemon, micros(s.now())}
	if was != nil {
		where, args = " WHERE replicas.seen_at = ?", append(args, micros(was.Seen))
	}
	err = in(ctx, func(tx *Tx) error {
		n, err := tx.exec(ctx, `INSERT INTO replicas (key_name, generation, token, identity, problem, serial, daemon, seen_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
			ON CONFLICT (key_name, generation, token) DO UPDATE SET identity = excluded.identity, problem = excluded.problem, serial = excluded.serial,
			daemon = excluded.daemon, seen_at = excluded.seen_at`+where, args...)
		if late = n == 0; err != nil || late || e == nil {
			return err
		}
		return tx.event(ctx, *e)
	})
	return late, err
}

// Replicas lists what tokens hold of a key; with an empty name, of all keys.
func (s *Store) Replicas(ctx context.Context, key string) ([]Replica, error) {
	return query(ctx, s, s.read, func(scan func(...any) error) (Replica, error) {
		var r Replica
		var seen int64
		err := scan(&r.Key, &r.Generation, &r.Token, &r.Identity, &r.Problem, &r.Serial, &r.Daemon, &seen)
		r.Seen = stamp(seen)
		return r, err
	}, "SELECT key_name, generation, token, identity, problem, serial, daemon, seen_at FROM replicas WHERE ? = '' OR key_name = ? ORDER BY key_name, generation, token", key, key)
}

// HurryKey lets the jobs of a key begin now that wait with one of these codes.
func (s *Store) HurryKey(ctx context.Context, key string, codes []string, enqueue Enqueue) (n int, err error) {
	err = s.Tx(ctx, func(tx *Tx) error {
		list, err := query(ctx, s, tx, scanJob, selectJobs+" WHERE state = 'waiting' AND key_name = ?", key)
		if err != nil {
			return err
		}
		var mine []Job
		for _, j := range list {
			for _, code := range codes {
				if j.ErrorCode == code {
					mine = append(mine, j)
				}
			}
		}
		n = len(mine)
		_, err = tx.requeue(ctx, mine, enqueue)
		return err
	})
	return n, err
}

// ParkHere notes that this daemon alone is not to use a token.
func (s *Store) ParkHere(ctx context.Context, p Parked) error {
	return s.noted(ctx, func(tx *Tx) error {
		if _, err := tx.exec(ctx, `INSERT INTO parked_here (token, daemon, parked_at, code, reason) VALUES (?, ?, ?, ?, ?)
			ON CONFLICT (token, daemon) DO UPDATE SET parked_at = excluded.parked_at, code = excluded.code, reason = excluded.reason`,
			p.Token, s.daemon, micros(s.now()), p.Code, p.Reason); err != nil {
			return err
		}
		return tx.event(ctx, Event{Kind: "parked", Message: p.Reason, Fields: map[string]string{"token": p.Token}})
	})
}

// parkedHere adds the tokens that this daemon alone is not to use to those that nobody is.
func (s *Store) parkedHere(ctx context.Context, all map[string]Parked) error {
	here, err := query(ctx, s, s.read, scanParked, "SELECT token, daemon, parked_at, code, reason FROM parked_here WHERE daemon = ?", s.daemon)
	for _, p := range here {
		if _, ok := all[p.Token]; !ok {
			all[p.Token] = p
		}
	}
	return err
}
