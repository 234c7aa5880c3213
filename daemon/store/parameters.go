package store

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"time"
)

// Parameters are import parameters that were fetched and not used yet, with the signature over them. Nothing in them is secret, and nothing
// in them is to be believed before the signature was verified.
type Parameters struct {
	Destination     string // key ARN
	Algorithm       string
	WrappingKeySpec string
	Endpoint        string // of KMS; empty: AWS's own
	PublicKey       []byte // DER SubjectPublicKeyInfo
	ImportToken     []byte
	RequestID       string
	Fetched         time.Time
	ValidTo         time.Time
	Signature       []byte
}

// KeepParameters keeps import parameters, in place of earlier ones of the same kind.
func (s *Store) KeepParameters(ctx context.Context, p Parameters) error {
	return s.Tx(ctx, func(tx *Tx) error {
		if err := tx.dropParameters(ctx, p); err != nil {
			return err
		}
		_, err := tx.exec(ctx, `INSERT INTO parameters (destination, wrapping_algorithm, wrapping_key_spec, endpoint, public_key, import_token, request_id, fetched_at, valid_to, signature)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`, p.Destination, p.Algorithm, p.WrappingKeySpec, p.Endpoint, base64.StdEncoding.EncodeToString(p.PublicKey),
			base64.StdEncoding.EncodeToString(p.ImportToken), p.RequestID, micros(p.Fetched), micros(p.ValidTo), base64.StdEncoding.EncodeToString(p.Signature))
		return err
	})
}

// KeptParameters gives the import parameters that are kept for a destination, an algorithm and a wrapping key spec.
func (s *Store) KeptParameters(ctx context.Context, destination, algorithm, wrappingKeySpec, endpoint string) (p Parameters, found bool, err error) {
	list, err := query(ctx, s, s.read, scanParameters, `SELECT destination, wrapping_algorithm, wrapping_key_spec, endpoint, public_key, import_token, request_id, fetched_at, valid_to, signature
		FROM parameters WHERE destination = ? AND wrapping_algorithm = ? AND wrapping_key_spec = ? AND endpoint = ?`, destination, algorithm, wrappingKeySpec, endpoint)
	if err != nil || len(list) == 0 {
		return p, false, err
	}
	return list[0], true, nil
}

func scanParameters(scan func(...any) error) (Parameters, error) {
	var p Parameters
	var fetched, validTo int64
	var public, token, signature string
	if err := scan(&p.Destination, &p.Algorithm, &p.WrappingKeySpec, &p.Endpoint, &public, &token, &p.RequestID, &fetched, &validTo, &signature); err != nil {
		return p, err
	}
	p.Fetched, p.ValidTo = stamp(fetched), stamp(validTo)
	var errs [3]error
	p.PublicKey, errs[0] = base64.StdEncoding.DecodeString(public)
	p.ImportToken, errs[1] = base64.StdEncoding.DecodeString(token)
	p.Signature, errs[2] = base64.StdEncoding.DecodeString(signature)
	if errors.Join(errs[:]...) != nil {
		p.Signature = nil // whoever wrote this was not hsmbridge: it does not verify
	}
	return p, nil
}

// UseParameters takes import parameters away that are about to be used, or that do not count.
func (s *Store) UseParameters(ctx context.Context, p Parameters) error {
	return s.Tx(ctx, func(tx *Tx) error { return tx.dropParameters(ctx, p) })
}

func (tx *Tx) dropParameters(ctx context.Context, p Parameters) error {
	_, err := tx.exec(ctx, "DELETE FROM parameters WHERE destination = ? AND wrapping_algorithm = ? AND wrapping_key_spec = ? AND endpoint = ?",
		p.Destination, p.Algorithm, p.WrappingKeySpec, p.Endpoint)
	return err
}

// DropExpiredParameters takes those away whose time is over, and gives how many.
func (s *Store) DropExpiredParameters(ctx context.Context) (n int64, err error) {
	err = s.Tx(ctx, func(tx *Tx) error {
		n, err = tx.exec(ctx, "DELETE FROM parameters WHERE valid_to <= ?", micros(s.now()))
		return err
	})
	return n, err
}

// OpenPlaces lists where the open jobs are to be done: their tokens and destinations, and nothing else of them.
func (s *Store) OpenPlaces(ctx context.Context) ([]Job, error) {
	list, err := query(ctx, s, s.read, func(scan func(...any) error) (Job, error) {
		var j Job
		err := scan(&j.Token, &j.Destination)
		return j, err
	}, "SELECT DISTINCT token, destination FROM jobs WHERE state IN ('queued', 'running', 'waiting') AND destination <> ''")
	if err != nil {
		return nil, fmt.Errorf("the open jobs: %w", err)
	}
	return list, nil
}
