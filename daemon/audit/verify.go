package audit

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"
)

// Problem is something that is wrong with an exported log.
type Problem struct {
	First   int64  `json:"first"` // the first record that is concerned
	Last    int64  `json:"last"`  // the last one
	What    What   `json:"what"`
	Message string `json:"message"`
}

// What says what is wrong.
type What string

// What can be wrong.
const (
	Edited      What = "edited"
	Removed     What = "removed"
	Reordered   What = "reordered"
	Truncated   What = "truncated"
	Unreadable  What = "unreadable"
	Checkpoints What = "checkpoint" // one that is not signed by the key, or of another log, or not of this history
)

// Report is what [Verify] found.
type Report struct {
	Origin   string     `json:"origin"`
	Records  int64      `json:"records"`
	Signed   int64      `json:"signed"`    // records under the last good checkpoint
	SignedAt time.Time  `json:"signed_at"` // when it was made
	Root     string     `json:"root"`      // of all records
	Count    int        `json:"checkpoints"`
	Problems []Problem  `json:"problems"`
	Last     Checkpoint `json:"-"` // the last good one
}

// OK says that nothing is wrong.
func (r Report) OK() bool { return len(r.Problems) == 0 }

// Options of [Verify].
type Options struct {
	Key     *Key     // nil: checkpoints are not checked against a key, only against the records
	Trusted []string // signed checkpoints that were kept elsewhere: the log has to contain them
	// Each is called with every record that could be read. May be nil.
	Each func(Record) error
}

// maxLine is the longest line: a record with the text of a request and signatures stays far below.
const maxLine = 4 << 20

// verifier is the state of a verification.
type verifier struct {
	o       Options
	report  Report
	tree    growing
	next    int64 // the number that the next record should have
	good    int64 // size of the last checkpoint that fitted
	broken  bool  // the tree is lost: a record's hash is not known
	trusted []Checkpoint
	ahead   Checkpoint // the largest checkpoint seen that goes beyond the records before it
}

// Verify reads an exported log from its first record on and checks every record against its hash, its number, and the checkpoints. It needs
// nothing but the file and the key. The error is one of reading; what is wrong with the log is in the report.
func Verify(r io.Reader, o Options) (Report, error) {
	v := &verifier{o: o, next: 1, report: Report{Problems: []Problem{}}}
	for _, s := range o.Trusted {
		c, err := v.open(s)
		if err != nil {
			return v.report, fmt.Errorf("the checkpoint that was kept elsewhere: %w", err)
		}
		v.trusted = append(v.trusted, c)
	}
	in := bufio.NewScanner(r)
	in.Buffer(make([]byte, 0, 1<<16), maxLine)
	number := 0
	for in.Scan() {
		number++
		if len(bytes.TrimSpace(in.Bytes())) == 0 {
			continue
		}
		l, err := ParseLine(in.Bytes())
		switch {
		case err != nil:
			v.problem(v.next, v.next, Unreadable, "line %d, where record %d should be: %v", number, v.next, err)
		case l.Checkpoint != "":
			v.checkpoint(l.Checkpoint)
		default:
			if err := v.record(l); err != nil {
				return v.report, err
			}
		}
	}
	if err := in.Err(); err != nil {
		return v.report, fmt.Errorf("read the log: %w", err)
	}
	v.end()
	return v.report, nil
}

func (v *verifier) problem(first, last int64, what What, format string, args ...any) {
	v.report.Problems = append(v.report.Problems, Problem{first, last, what, fmt.Sprintf(format, args...)})
}

func (v *verifier) open(signed string) (Checkpoint, error) {
	if v.o.Key == nil {
		return Unsigned(signed)
	}
	return v.o.Key.Open(signed)
}

func (v *verifier) record(l Line) error {
	switch {
	case l.N > v.next:
		if l.N == v.next+1 {
			v.problem(v.next, v.next, Removed, "record %d is missing", v.next)
		} else {
			v.problem(v.next, l.N-1, Removed, "records %d to %d are missing", v.next, l.N-1)
		}
		v.broken = true
	case l.N < v.next:
		v.moved(l.N)
		return nil
	}
	v.next = l.N + 1
	v.report.Records++
	leaf := LeafHash(l.Record)
	r, err := Decode(l.Record)
	var unknown *UnknownKindError
	switch {
	case leaf != l.Hash:
		v.problem(l.N, l.N, Edited, "record %d was edited: it does not have its hash", l.N)
	case err != nil && !errors.As(err, &unknown):
		v.problem(l.N, l.N, Unreadable, "record %d: %v", l.N, err)
	case r.N != l.N:
		v.problem(l.N, l.N, Reordered, "the record in the place of number %d is number %d", l.N, r.N)
	}
	v.tree.add(l.Hash) // the hash that the checkpoint was made of: so the others can be checked all the same
	v.kept()
	if v.o.Each != nil && err == nil {
		return v.o.Each(r)
	}
	return nil
}

// moved says that a record stands behind a later one, and no longer that it is missing.
func (v *verifier) moved(n int64) {
	i := slices.IndexFunc(v.report.Problems, func(p Problem) bool { return p.What == Removed && p.First == n && p.Last == n })
	if i >= 0 {
		v.report.Problems = slices.Delete(v.report.Problems, i, i+1)
	}
	v.problem(n, n, Reordered, "record %d stands behind record %d", n, v.next-1)
}

// kept compares the tree with the checkpoints that were kept elsewhere.
func (v *verifier) kept() {
	for _, c := range v.trusted {
		if c.Size == v.tree.size && !v.broken && c.Root != v.tree.root(c.Size) {
			v.different(c, "the checkpoint that was kept elsewhere")
		}
	}
}

// different says that the records up to a checkpoint are not those of which it was made.
func (v *verifier) different(c Checkpoint, which string) {
	first := v.good + 1
	if first > c.Size {
		first = c.Size
	}
	if first == c.Size {
		v.problem(first, c.Size, Edited, "record %d was changed together with its hash: it is not in %s of %s", c.Size, which, c.Time.Format(time.RFC3339))
	} else {
		v.problem(first, c.Size, Edited, "at least one of the records %d to %d was changed together with its hash: they are not those of %s of %s", first, c.Size, which, c.Time.Format(time.RFC3339))
	}
	v.broken = true
}

func (v *verifier) checkpoint(signed string) {
	c, err := v.open(signed)
	last := v.next - 1
	switch {
	case err != nil:
		v.problem(last, last, Checkpoints, "a checkpoint behind record %d: %v", last, err)
		return
	case v.report.Origin != "" && c.Origin != v.report.Origin:
		v.problem(last, last, Checkpoints, "a checkpoint behind record %d is of another log, %s", last, c.Origin)
		return
	}
	v.report.Origin = c.Origin
	v.report.Count++
	switch {
	case c.Size > last:
		if c.Size > v.ahead.Size {
			v.ahead = c
		}
	case v.broken && c.Size > v.good:
	case c.Root != v.tree.root(c.Size):
		v.different(c, "the checkpoint")
	case c.Size > v.good:
		v.good, v.report.Signed, v.report.SignedAt, v.report.Last = c.Size, c.Size, c.Time, c
	}
}

func (v *verifier) end() {
	last := v.next - 1
	if v.ahead.Size <= last {
		v.ahead = Checkpoint{}
	}
	for _, c := range v.trusted {
		if c.Size > last && c.Size > v.ahead.Size {
			v.ahead = c
		}
	}
	if v.ahead.Size > last {
		v.problem(last+1, v.ahead.Size, Truncated, "the records %d to %d are cut off: a checkpoint of %s has %d", last+1, v.ahead.Size, v.ahead.Time.Format(time.RFC3339), v.ahead.Size)
	}
	root := v.tree.root(v.tree.size)
	v.report.Root = root.String()
}
