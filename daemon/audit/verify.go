package audit

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"sort"
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
	Duplicated  What = "duplicated" // the same record twice
	Inserted    What = "inserted"   // two different records with one number
	Truncated   What = "truncated"
	Unreadable  What = "unreadable"
	Checkpoints What = "checkpoint" // one that is not signed by the key, or of another log
	Unsigned    What = "unsigned"   // a key was given, and nothing is signed by it
)

// Report is what [Verify] found.
type Report struct {
	Origin   string     `json:"origin"`
	Records  int64      `json:"records"`   // that were read, each number once
	Signed   int64      `json:"signed"`    // records under the last good checkpoint
	SignedAt time.Time  `json:"signed_at"` // when it was made
	Kept     int64      `json:"kept"`      // records under the largest checkpoint kept elsewhere that the log contains
	Root     string     `json:"root"`      // of all records; empty if some are missing
	Count    int        `json:"checkpoints"`
	Unknown  int64      `json:"unknown"` // records of kinds that this version does not know; they are verified like the others
	Problems []Problem  `json:"problems"`
	More     int        `json:"more_problems"` // beyond the first 1000, not listed
	Last     Checkpoint `json:"-"`             // the last good one
}

// OK says that nothing is wrong.
func (r Report) OK() bool { return len(r.Problems) == 0 }

// Options of [Verify].
type Options struct {
	Keys    []*Key   // that signed checkpoints, one after another; none: checkpoints are held against the records only
	Trusted []string // signed checkpoints that were kept elsewhere: the log has to contain them
	// Each is called with every record that could be read, as it stands in the file. Of a kind that is not known Data is nil. May be nil.
	Each func(Record) error
}

// maxLine is the longest line: a record with the text of a request and signatures stays far below.
const maxLine = 4 << 20

// Verify reads an exported log from its first record on and checks every record against its hash, its number, and the checkpoints. It needs
// nothing but the file and the key. The error is one of reading; what is wrong with the log is in the report.
//
// A record that does not have its hash, that is missing, moved, there twice or cut off is told by its number. When a record was changed
// together with its hash, that is told by the two checkpoints between which it stands.
func Verify(r io.Reader, o Options) (Report, error) {
	v := &verifier{o: o, report: Report{Problems: []Problem{}}, late: map[int64]Hash{}, other: map[int64]alternative{}}
	for _, s := range o.Trusted {
		c, err := v.open(s)
		if err != nil {
			return v.report, fmt.Errorf("the checkpoint that was kept elsewhere: %w", err)
		}
		v.report.Origin = c.Origin
		v.points = append(v.points, point{c, true})
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
			v.problem(v.top+1, v.top+1, Unreadable, "line %d, where record %d should be: %v", number, v.top+1, err)
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

// verifier is the state of a verification: which leaf hash each number has, and what the checkpoints say. They are compared at the end.
type verifier struct {
	o      Options
	report Report
	top    int64                 // the greatest number so far
	runs   []run                 // leaf hashes, without those that were missing when their turn came
	late   map[int64]Hash        // that came behind a greater number
	other  map[int64]alternative // a second hash that a record may have
	points []point
}

// run is a part of the log without a gap.
type run struct {
	first  int64
	leaves []Hash
}

func (r run) end() int64 { return r.first + int64(len(r.leaves)) }

// point is a checkpoint; kept: from elsewhere.
type point struct {
	Checkpoint

	kept bool
}

// alternative is another hash that a record may have, and what it means if the checkpoints are of that one.
type alternative struct {
	hash Hash
	what What
	says string
}

func (v *verifier) problem(first, last int64, what What, format string, args ...any) {
	const most = 1000
	if len(v.report.Problems) == most {
		v.report.More++
		return
	}
	v.report.Problems = append(v.report.Problems, Problem{first, last, what, fmt.Sprintf(format, args...)})
}

func (v *verifier) open(signed string) (Checkpoint, error) {
	if len(v.o.Keys) == 0 {
		return ReadUnsigned(signed)
	}
	return openAny(v.o.Keys, signed)
}

func (v *verifier) checkpoint(signed string) {
	c, err := v.open(signed)
	switch {
	case err != nil:
		v.problem(v.top, v.top, Checkpoints, "a checkpoint behind record %d: %v", v.top, err)
	case v.report.Origin != "" && c.Origin != v.report.Origin:
		v.problem(v.top, v.top, Checkpoints, "a checkpoint behind record %d is of another log, %s", v.top, c.Origin)
	default:
		v.report.Origin = c.Origin
		v.report.Count++
		v.points = append(v.points, point{c, false})
	}
}

func (v *verifier) record(l Line) error {
	leaf := LeafHash(l.Record)
	r, err := Decode(l.Record)
	var unknown *UnknownKindError
	readable := err == nil || errors.As(err, &unknown)
	if v.place(l.N, l.Hash) {
		if unknown != nil {
			v.report.Unknown++
		}
		switch {
		case leaf != l.Hash:
			v.problem(l.N, l.N, Edited, "record %d was edited: it does not have its hash", l.N)
			v.other[l.N] = alternative{leaf, Edited, "what was edited is its hash: the record itself is the one that was signed"}
		case !readable:
			v.problem(l.N, l.N, Unreadable, "record %d: %v", l.N, err)
		case r.N != l.N:
			v.problem(l.N, l.N, Reordered, "the record in the place of number %d is number %d", l.N, r.N)
		}
	}
	if v.o.Each != nil && readable {
		return v.o.Each(r)
	}
	return nil
}

// place puts a record's leaf hash into its place; false: there is one already.
func (v *verifier) place(n int64, leaf Hash) bool {
	if n > v.top {
		if n > v.top+1 || len(v.runs) == 0 {
			v.runs = append(v.runs, run{first: n})
		}
		last := &v.runs[len(v.runs)-1]
		last.leaves = append(last.leaves, leaf)
		v.top = n
		v.report.Records++
		return true
	}
	before, there := v.leaf(n)
	switch {
	case !there:
		v.late[n] = leaf
		v.report.Records++
		v.problem(n, n, Reordered, "record %d stands behind record %d", n, v.top)
		return true
	case before == leaf:
		v.problem(n, n, Duplicated, "record %d is there a second time, behind record %d", n, v.top)
	default:
		v.problem(n, n, Inserted, "there are two different records %d: the second one stands behind record %d", n, v.top)
		v.other[n] = alternative{leaf, Inserted, "the second one is the one that was signed, the first was inserted"}
	}
	return false
}

// leaf is the hash of a record.
func (v *verifier) leaf(n int64) (Hash, bool) {
	i := sort.Search(len(v.runs), func(i int) bool { return v.runs[i].end() > n })
	if i < len(v.runs) && n >= v.runs[i].first {
		return v.runs[i].leaves[n-v.runs[i].first], true
	}
	h, ok := v.late[n]
	return h, ok
}
