package audit

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/mod/sumdb/tlog"
)

// Line is one line of an exported log, which is text with one JSON object a line: records, each with its number and its leaf hash, and
// checkpoints between them. What it writes is what it reads, to the byte.
type Line struct {
	N          int64  // of a record
	Hash       Hash   // leaf hash
	Record     []byte // as it is in the tree
	Checkpoint string // signed note; empty: the line is a record
}

// RecordLine is a record as a line, without the line's end.
func RecordLine(n int64, record []byte) []byte { return recordLine(n, LeafHash(record), record) }

func recordLine(n int64, h Hash, record []byte) []byte {
	return fmt.Appendf(nil, `{"n":%d,"hash":"%s","record":%s}`, n, h, record)
}

// CheckpointLine is a signed checkpoint as a line, without the line's end.
func CheckpointLine(signed string) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	_ = e.Encode(struct { //nolint:errchkjson // text is always representable
		Checkpoint string `json:"checkpoint"`
	}{signed})
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

// ParseLine reads a line, strictly. It does not say that the record's hash is right: [Verify] does.
func ParseLine(line []byte) (Line, error) {
	var raw struct {
		N          int64           `json:"n"`
		Hash       string          `json:"hash"`
		Record     json.RawMessage `json:"record"`
		Checkpoint string          `json:"checkpoint"`
	}
	if err := strict(line, &raw); err != nil {
		return Line{}, fmt.Errorf("this is no line of an exported audit log: %w", err)
	}
	if raw.Checkpoint != "" {
		if !bytes.Equal(CheckpointLine(raw.Checkpoint), line) {
			return Line{}, errors.New("this line is not written as hsmbridge writes it")
		}
		return Line{Checkpoint: raw.Checkpoint}, nil
	}
	h, err := base64.StdEncoding.DecodeString(raw.Hash)
	l := Line{N: raw.N, Record: raw.Record}
	if err != nil || len(h) != len(l.Hash) {
		return Line{}, errors.New("this line has no hash")
	}
	copy(l.Hash[:], h)
	if l.N < 1 || !bytes.Equal(recordLine(l.N, l.Hash, l.Record), line) {
		return Line{}, errors.New("this line is not written as hsmbridge writes it")
	}
	return l, nil
}

// Proof shows that one record is in the log, without the others.
type Proof struct {
	Record     []byte
	N          int64
	Hashes     []Hash // RFC 6962, 2.1.1, from the bottom
	Checkpoint string // signed note
}

const proofForm = "hsmbridge audit proof v1"

type proofJSON struct {
	Form       string          `json:"form"`
	N          int64           `json:"n"`
	Record     json.RawMessage `json:"record"`
	Proof      []string        `json:"proof"`
	Checkpoint string          `json:"checkpoint"`
}

// Prove makes the proof that record n is in the tree of the checkpoint.
func Prove(n int64, record []byte, signed string, read Reader) (Proof, error) {
	c, err := ReadUnsigned(signed)
	if err != nil {
		return Proof{}, err
	}
	if n < 1 || n > c.Size {
		return Proof{}, fmt.Errorf("record %d is not in the checkpoint, which has %d", n, c.Size)
	}
	hashes, err := tlog.ProveRecord(c.Size, n-1, tlog.HashReaderFunc(read))
	if err != nil {
		return Proof{}, fmt.Errorf("audit: %w", err)
	}
	return Proof{Record: record, N: n, Hashes: hashes, Checkpoint: signed}, nil
}

// Text is the proof as a file: one line of JSON.
func (p Proof) Text() ([]byte, error) {
	out := proofJSON{Form: proofForm, N: p.N, Record: p.Record, Proof: []string{}, Checkpoint: p.Checkpoint}
	for _, h := range p.Hashes {
		out.Proof = append(out.Proof, h.String())
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(out); err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	return b.Bytes(), nil
}

// IsProof says that a file looks like a proof.
func IsProof(text []byte) bool { return bytes.HasPrefix(text, []byte(`{"form":"`+proofForm+`"`)) }

// ParseProof reads a proof, strictly.
func ParseProof(text []byte) (Proof, error) {
	var raw proofJSON
	if err := strict(text, &raw); err != nil || raw.Form != proofForm {
		return Proof{}, fmt.Errorf("this is not an %s", strings.TrimSuffix(proofForm, " v1"))
	}
	p := Proof{Record: raw.Record, N: raw.N, Checkpoint: raw.Checkpoint}
	for _, s := range raw.Proof {
		b, err := base64.StdEncoding.DecodeString(s)
		var h Hash
		if err != nil || len(b) != len(h) {
			return Proof{}, errors.New("this proof has a broken hash")
		}
		copy(h[:], b)
		p.Hashes = append(p.Hashes, h)
	}
	again, err := p.Text()
	if err != nil || !bytes.Equal(again, text) {
		return Proof{}, errors.New("this proof is not written as hsmbridge writes it")
	}
	return p, nil
}

// Verify checks the proof with the log's public keys alone. Of a record whose kind is not known Data is nil.
func (p Proof) Verify(keys ...*Key) (Record, Checkpoint, error) {
	c, err := openAny(keys, p.Checkpoint)
	if err != nil {
		return Record{}, c, err
	}
	r, err := Decode(p.Record)
	var unknown *UnknownKindError
	switch {
	case err != nil && !errors.As(err, &unknown):
		return r, c, err
	case r.N != p.N:
		return r, c, fmt.Errorf("the record says that it is number %d, and the proof is for %d", r.N, p.N)
	case p.N > c.Size:
		return r, c, fmt.Errorf("record %d is not in the checkpoint, which has %d", p.N, c.Size)
	}
	if err := tlog.CheckRecord(p.Hashes, c.Size, c.Root, p.N-1, LeafHash(p.Record)); err != nil {
		return r, c, fmt.Errorf("record %d is not what stands in the log: it was edited, or the proof is of another log", p.N)
	}
	return r, c, nil
}
