// Package audit is the record that cannot be changed quietly: numbered records in a Merkle tree (RFC 6962), checkpoints of the tree
// signed by a key in the HSM, and the files that carry both to an auditor. It is pure: where records and hashes are kept is the
// caller's matter, and so is who signs.
//
// [Verify] is the function to read: with a file and a public key alone it finds a record that was edited, removed, moved or cut off.
package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// Kind names what a record tells. A kind, once there, keeps its name and its fields for ever; see docs/audit.md.
type Kind string

// Record is one entry of the log. Its JSON, as [Record.Encode] writes it, is what the tree is made of.
type Record struct {
	N           int64     `json:"n"` // from 1, without gaps
	Time        time.Time `json:"time"`
	Kind        Kind      `json:"kind"`
	Actor       string    `json:"actor"` // who caused it: a user's name, or that of the daemon
	Key         string    `json:"key,omitempty"`
	Destination string    `json:"destination,omitempty"`
	Job         int64     `json:"job,omitempty"`
	Message     string    `json:"message"` // for people; its wording may change
	Data        any       `json:"data,omitempty"`
}

// UnknownKindError says that a record has a kind or a field that is not in the table.
type UnknownKindError struct {
	Kind   Kind
	Reason string
}

func (e *UnknownKindError) Error() string {
	return fmt.Sprintf("audit record %q: %s", e.Kind, e.Reason)
}

// SetFields makes the record's Data of names and values: the struct of its kind. Names that the kind does not have are an error, so that
// nothing enters the log that docs/audit.md does not know.
func (r *Record) SetFields(fields map[string]string) error {
	zero, ok := kinds()[r.Kind]
	if !ok {
		return &UnknownKindError{r.Kind, "the kind is not in the table of package audit"}
	}
	if len(fields) == 0 {
		return nil
	}
	raw, err := json.Marshal(fields)
	if err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	data := zero()
	if err := strict(raw, data); err != nil {
		return &UnknownKindError{r.Kind, err.Error()}
	}
	r.Data = data
	return nil
}

// Fields are the names and values of the record's Data.
func (r Record) Fields() (map[string]string, error) {
	if r.Data == nil {
		return nil, nil
	}
	raw, err := json.Marshal(r.Data)
	if err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	var out map[string]string
	if err := json.Unmarshal(raw, &out); err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	return out, nil
}

// Encode is the record as it is hashed and kept: one line of JSON.
func (r Record) Encode() ([]byte, error) {
	r.Time = r.Time.UTC().Truncate(time.Microsecond)
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(r); err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// Decode reads a record, strictly: it takes what [Record.Encode] writes. Data is a pointer to the struct of its kind.
func Decode(line []byte) (Record, error) {
	var raw struct {
		Record
		Data json.RawMessage `json:"data"`
	}
	if err := strict(line, &raw); err != nil {
		return Record{}, fmt.Errorf("this is no audit record: %w", err)
	}
	r := raw.Record
	zero, ok := kinds()[r.Kind]
	if !ok {
		return r, &UnknownKindError{r.Kind, "the kind is unknown: a later hsmbridge may have written it"}
	}
	if raw.Data != nil {
		data := zero()
		if err := strict(raw.Data, data); err != nil {
			return r, &UnknownKindError{r.Kind, err.Error()}
		}
		r.Data = data
	}
	again, err := r.Encode()
	switch {
	case err != nil:
		return r, err
	case !bytes.Equal(again, line):
		return r, errors.New("this audit record is not written as hsmbridge writes it")
	}
	return r, nil
}

func strict(raw []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("there is something behind the JSON")
	}
	return nil
}

// KindInfo describes a kind, for the documentation.
type KindInfo struct {
	Kind   Kind
	Fields []string
}

// Kinds lists every kind with its fields, sorted.
func Kinds() []KindInfo {
	var out []KindInfo
	for k, zero := range kinds() {
		out = append(out, KindInfo{k, fieldNames(zero())})
	}
	sortKinds(out)
	return out
}
