package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Key is what the daemon knows of a managed key as a whole.
type Key struct {
	Name          string    `json:"name"`
	PausedAt      time.Time `json:"paused_at,omitzero"`
	PausedBy      string    `json:"paused_by,omitempty"`
	RevokedAt     time.Time `json:"revoked_at,omitzero"`
	RevokedBy     string    `json:"revoked_by,omitempty"`
	RevokedReason string    `json:"revoked_reason,omitempty"`
	WaivedAt      time.Time `json:"waived_at,omitzero"` // an officer lets it be imported without a backup
	WaivedBy      string    `json:"waived_by,omitempty"`
	WaivedReason  string    `json:"waived_reason,omitempty"`
	RotatedAt     time.Time `json:"rotated_at,omitzero"`
	NeedsPerson   bool      `json:"needs_person"` // because of the last job for the key as a whole
	Error         string    `json:"error,omitempty"`
	ErrorClass    string    `json:"error_class,omitempty"`
	ErrorCode     string    `json:"error_code,omitempty"`
}

// Paused says that no new job is begun for the key.
func (k Key) Paused() bool { return !k.PausedAt.IsZero() }

// Revoked says that the key's material is not to be in KMS.
func (k Key) Revoked() bool { return !k.RevokedAt.IsZero() }

// WasRevoked says of a revoked key by whom and when.
func (k Key) WasRevoked() string {
	return fmt.Sprintf("%s was revoked by %s at %s", k.Name, k.RevokedBy, k.RevokedAt.Format(time.RFC3339))
}

// Barred says why a person's import of the key is refused. Empty: nothing speaks against it.
func (k Key) Barred() string {
	switch {
	case k.Revoked():
		return fmt.Sprintf("%s; run hsmbridge restore %s first", k.WasRevoked(), k.Name)
	case k.Paused():
		return fmt.Sprintf("%s was paused by %s at %s; run hsmbridge resume %s first", k.Name, k.PausedBy, k.PausedAt.Format(time.RFC3339), k.Name)
	}
	return ""
}

// Keys lists what is known of all keys, by name. A key without a row was never paused, revoked or rotated.
func (s *Store) Keys(ctx context.Context) (map[string]Key, error) { return s.keys(ctx, "") }

// KeysOf is the same for some keys.
func (s *Store) KeysOf(ctx context.Context, names ...string) (map[string]Key, error) {
	out := make(map[string]Key, len(names))
	for part := range slices.Chunk(names, inOne) {
		some, err := s.keys(ctx, " WHERE name IN (?"+strings.Repeat(", ?", len(part)-1)+")", anys(part)...)
		if err != nil {
			return nil, err
		}
		maps.Copy(out, some)
	}
	return out, nil
}

func (s *Store) keys(ctx context.Context, where string, args ...any) (map[string]Key, error) {
	list, err := query(ctx, s, s.read, func(scan func(...any) error) (Key, error) {
		var k Key
		var paused, revoked, waived, rotated, person int64
		err := scan(&k.Name, &paused, &k.PausedBy, &revoked, &k.RevokedBy, &k.RevokedReason, &waived, &k.WaivedBy, &k.WaivedReason, &rotated, &person, &k.Error, &k.ErrorClass, &k.ErrorCode)
		k.NeedsPerson = person != 0
		k.PausedAt, k.RevokedAt, k.WaivedAt, k.RotatedAt = stamp(paused), stamp(revoked), stamp(waived), stamp(rotated)
		return k, err
	}, "SELECT name, paused_at, paused_by, revoked_at, revoked_by, revoked_reason, waived_at, waived_by, waived_reason, rotated_at, needs_person, error, error_class, error_code FROM keys"+where, args...)
	out := make(map[string]Key, len(list))
	for _, k := range list {
		out[k.Name] = k
	}
	return out, err
}

// setKey changes a key's row.
func (tx *Tx) setKey(ctx context.Context, name, set string, args ...any) error {
	if err := tx.addKey(ctx, name); err != nil {
		return err
	}
	_, err := tx.exec(ctx, "UPDATE keys SET "+set+" WHERE name = ?", append(args, name)...)
	return err
}

// addKey gives a key its row.
func (tx *Tx) addKey(ctx context.Context, name string) error {
	_, err := tx.exec(ctx, "INSERT INTO keys (name) VALUES (?) ON CONFLICT DO NOTHING", name)
	return err
}

// Pause stops new jobs of a key; resume lets them begin again. A key that is so already stays as it is, with who paused it first; changed is false then, and nothing
// is noted.
func (s *Store) Pause(ctx context.Context, key, actor string, resume bool) (changed bool, err error) {
	at, by, when, kind, message := micros(s.now()), actor, "paused_at = 0", "pause", "paused: nothing is begun for it any more, and its material expires when it expires"
	if resume {
		at, by, when, kind, message = 0, "", "paused_at <> 0", "resume", "resumed"
	}
	err = s.noted(ctx, func(tx *Tx) error {
		if err := tx.addKey(ctx, key); err != nil {
			return err
		}
		n, err := tx.exec(ctx, "UPDATE keys SET paused_at = ?, paused_by = ? WHERE name = ? AND "+when, at, by, key)
		if changed = n > 0; err != nil || !changed {
			return err
		}
		return tx.event(ctx, Event{Kind: kind, Actor: actor, Key: key, Message: message})
	})
	return changed && err == nil, err
}

// useRequest closes the open request by which something is done, if there is one.
func (tx *Tx) useRequest(ctx context.Context, request, actor string) error {
	if request == "" {
		return nil
	}
	r, err := tx.openRequest(ctx, request)
	if err != nil {
		return err
	}
	return tx.endRequest(ctx, &r, RequestUsed, actor, "")
}

// Revoke marks the key, so that nothing is imported any more, cancels its other jobs and queues the job that deletes the material.
// request is the name of the one by which officers approved it, if they had to.
func (s *Store) Revoke(ctx context.Context, key, actor, reason, request string, enqueue Enqueue) (j Job, err error) {
	err = s.noted(ctx, func(tx *Tx) error {
		if err := tx.useRequest(ctx, request, actor); err != nil {
			return err
		}
		if err := tx.addKey(ctx, key); err != nil {
			return err
		}
		// Of a key that is revoked already it stays who did so first, and why.
		if _, err := tx.exec(ctx, "UPDATE keys SET revoked_at = ?, revoked_by = ?, revoked_reason = ? WHERE name = ? AND revoked_at = 0", micros(s.now()), actor, reason, key); err != nil {
			return err
		}
		if err := tx.event(ctx, Event{Kind: "revoke", Actor: actor, Key: key, Message: "revoked: " + reason}); err != nil {
			return err
		}
		if err := tx.clearErrors(ctx, key); err != nil { // of imports that are not wanted any more
			return err
		}
		open, err := query(ctx, s, tx, scanJob, selectJobs+" WHERE key_name = ? AND kind <> 'revoke' AND state IN ('queued', 'waiting')", key)
		if err != nil {
			return err
		}
		for _, o := range open {
			if err := tx.cancel(ctx, o, actor, "the key was revoked"); err != nil {
				return err
			}
		}
		// A standing approval would bring back at once what people have just taken away, when one person takes the revocation back.
		if err := tx.endRequestsOf(ctx, key, actor, "the key was revoked"); err != nil {
			return err
		}
		j = Job{Key: key, Kind: KindRevoke, Reason: reason, RequestedBy: actor}
		id, isNew, err := tx.addJob(ctx, &j, enqueue)
		if j.ID = id; err != nil || !isNew {
			return err
		}
		return enqueue(ctx, tx.Tx, []Job{j})
	})
	return j, err
}

// Restore takes a revocation back; the planner imports the key again. A job that deletes its material and waits for its next try ends with that. Nothing is done, and
// nothing noted, where the key is not revoked, or while such a job is queued or running: that one is given.
func (s *Store) Restore(ctx context.Context, key, actor string) (changed bool, deletes int64, err error) {
	err = s.noted(ctx, func(tx *Tx) error {
		changed, deletes = false, 0
		open, err := query(ctx, s, tx, scanJob, selectJobs+" WHERE key_name = ? AND kind = 'revoke' AND state IN ('queued', 'running', 'waiting')", key)
		if err != nil {
			return err
		}
		for _, j := range open {
			if j.State != Waiting {
				deletes = j.ID
				return nil
			}
		}
		for _, j := range open {
			if err := tx.cancel(ctx, j, actor, "the revocation was taken back"); err != nil {
				return err
			}
		}
		n, err := tx.exec(ctx, "UPDATE keys SET revoked_at = 0, revoked_by = '', revoked_reason = '' WHERE name = ? AND revoked_at <> 0", key)
		if changed = n > 0; err != nil || !changed {
			return err
		}
		if err := tx.clearErrors(ctx, key); err != nil {
			return err
		}
		return tx.event(ctx, Event{Kind: "restore", Actor: actor, Key: key, Message: "the revocation was taken back"})
	})
	return changed && err == nil, deletes, err
}

// Waive lets a key be imported although no second token holds a copy. request is as for [Store.Revoke].
func (s *Store) Waive(ctx context.Context, key, actor, reason, request string) error {
	return s.noted(ctx, func(tx *Tx) error {
		if err := tx.useRequest(ctx, request, actor); err != nil {
			return err
		}
		if err := tx.setKey(ctx, key, "waived_at = ?, waived_by = ?, waived_reason = ?", micros(s.now()), actor, reason); err != nil {
			return err
		}
		return tx.event(ctx, Event{Kind: "waiver", Actor: actor, Key: key, Message: "may be imported without a backup: " + reason})
	})
}

// Parked is a token that is not to be used until a person says so.
type Parked struct {
	Token  string    `json:"token"`
	Daemon string    `json:"daemon"` // which found out
	At     time.Time `json:"at"`
	Code   string    `json:"code,omitempty"`
	Reason string    `json:"reason"`
}

// Park notes that a token is not to be used, by this daemon or another. A restart does not forget it: a wrong PIN is not tried again.
func (s *Store) Park(ctx context.Context, p Parked) error {
	return s.noted(ctx, func(tx *Tx) error {
		if _, err := tx.exec(ctx, `INSERT INTO parked (token, daemon, parked_at, code, reason) VALUES (?, ?, ?, ?, ?)
			ON CONFLICT (token) DO UPDATE SET daemon = excluded.daemon, parked_at = excluded.parked_at, code = excluded.code, reason = excluded.reason`,
			p.Token, s.daemon, micros(s.now()), p.Code, p.Reason); err != nil {
			return err
		}
		return tx.event(ctx, Event{Kind: "parked", Message: p.Reason, Fields: map[string]string{"token": p.Token}})
	})
}

// LoginBegun is the code of a token to which somebody logs in at this moment. A process that ends before it knows whether the PIN was
// right leaves it behind.
const LoginBegun = "LoginBegun"

// ErrParked says that a token was parked meanwhile.
var ErrParked = errors.New("the token was parked in this moment")

// BeginLogin writes down that a PIN is going to be given to a token, before it is.
func (s *Store) BeginLogin(ctx context.Context, token string) error {
	return s.Tx(ctx, func(tx *Tx) error {
		n, err := tx.exec(ctx, "INSERT INTO parked (token, daemon, parked_at, code, reason) VALUES (?, ?, ?, ?, 'a login is under way') ON CONFLICT (token) DO NOTHING",
			token, s.daemon, micros(s.now()), LoginBegun)
		if err == nil && n == 0 {
			err = ErrParked
		}
		return err
	})
}

// EndLogin writes down that it is known how a login ended. One that parked the token, or was found by somebody else, stays.
func (s *Store) EndLogin(ctx context.Context, token string) error {
	return s.Tx(ctx, func(tx *Tx) error {
		_, err := tx.exec(ctx, "DELETE FROM parked WHERE token = ? AND daemon = ? AND code = ?", token, s.daemon, LoginBegun)
		return err
	})
}

// Unpark lets a token be used again, and gives false if it was not parked.
func (s *Store) Unpark(ctx context.Context, token, actor, why string) (found bool, err error) {
	err = s.noted(ctx, func(tx *Tx) error {
		n, err := tx.exec(ctx, "DELETE FROM parked WHERE token = ? AND code <> ?", token, LoginBegun)
		if err != nil {
			return err
		}
		here, err := tx.exec(ctx, "DELETE FROM parked_here WHERE token = ?", token) // at every daemon
		if found = n+here > 0; err != nil || !found {
			return err
		}
		return tx.event(ctx, Event{Kind: "unparked", Actor: actor, Message: why, Fields: map[string]string{"token": token}})
	})
	return found, err
}

// ParkedTokens lists the parked tokens by name, and with the code [LoginBegun] those to which somebody logs in.
func (s *Store) ParkedTokens(ctx context.Context) (map[string]Parked, error) {
	list, err := query(ctx, s, s.read, scanParked, "SELECT token, daemon, parked_at, code, reason FROM parked")
	out := make(map[string]Parked, len(list))
	for _, p := range list {
		out[p.Token] = p
	}
	if err != nil {
		return out, err
	}
	return out, s.parkedHere(ctx, out)
}

func scanParked(scan func(...any) error) (Parked, error) {
	var p Parked
	var at int64
	err := scan(&p.Token, &p.Daemon, &at, &p.Code, &p.Reason)
	p.At = stamp(at)
	return p, err
}
