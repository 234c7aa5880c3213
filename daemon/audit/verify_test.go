package audit_test

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"hsmbridge/daemon/audit"
)

// log is an exported log: its lines, and what made them.
type log struct {
	t       *testing.T
	pair    pair
	hashes  stored
	records [][]byte
	notes   map[int64]string // signed checkpoints by size
	lines   []string         // records and checkpoints
}

// newLog makes a log with checkpoints of these sizes.
func newLog(t *testing.T, records int64, checkpoints ...int64) *log {
	t.Helper()
	l := &log{t: t, pair: ecKey(t), notes: map[int64]string{}}
	l.extend(records, "", checkpoints...)
	return l
}

// extend adds records up to a number; what makes them different.
func (l *log) extend(to int64, what string, checkpoints ...int64) {
	l.t.Helper()
	for n := int64(len(l.records)) + 1; n <= to; n++ {
		raw := record(l.t, n, what)
		l.records = append(l.records, raw)
		l.hashes.add(l.t, n, raw)
		l.lines = append(l.lines, string(audit.RecordLine(n, raw)))
		if slices.Contains(checkpoints, n) {
			l.checkpoint(l.pair)
		}
	}
}

// checkpoint signs what is there.
func (l *log) checkpoint(p pair) {
	l.t.Helper()
	size := int64(len(l.records))
	l.notes[size] = sign(l.t, p, size, merkle(l.records))
	l.lines = append(l.lines, string(audit.CheckpointLine(l.notes[size])))
}

func record(t *testing.T, n int64, what string) []byte {
	t.Helper()
	r := audit.Record{N: n, Time: at.Add(time.Duration(n) * time.Second), Kind: "wrap", Actor: "d", Key: "payments", Message: "wrapped" + what}
	if err := r.SetFields(map[string]string{"mechanism": "CKM_RSA_PKCS_OAEP"}); err != nil {
		t.Fatal(err)
	}
	raw, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// line is where record n stands.
func line(lines []string, n int64) int {
	return slices.IndexFunc(lines, func(s string) bool { return strings.HasPrefix(s, fmt.Sprintf(`{"n":%d,`, n)) })
}

func (l *log) options(kept ...string) audit.Options {
	return audit.Options{Keys: []*audit.Key{l.pair.key(l.t)}, Trusted: kept}
}

func verify(t *testing.T, lines []string, o audit.Options) audit.Report {
	t.Helper()
	r, err := audit.Verify(strings.NewReader(strings.Join(lines, "\n")+"\n"), o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// problems are the problems as text, short.
func problems(r audit.Report) string {
	var out []string
	for _, p := range r.Problems {
		out = append(out, fmt.Sprintf("%s %d-%d", p.What, p.First, p.Last))
	}
	return strings.Join(out, ", ")
}

func TestVerify(t *testing.T) {
	t.Parallel()
	l := newLog(t, 30, 10, 20, 29)
	r := verify(t, l.lines, l.options(l.notes[20]))
	root := audit.Hash(merkle(l.records))
	if !r.OK() || r.Records != 30 || r.Signed != 29 || r.Kept != 20 || r.Count != 3 || r.Origin != origin || r.Root != root.String() || !r.SignedAt.Equal(at.Add(29*time.Second)) {
		t.Fatalf("got %+v", r)
	}

	type edit func(lines []string) []string
	set := func(n int64, f func(string) string) edit {
		return func(lines []string) []string {
			i := line(lines, n)
			lines[i] = f(lines[i])
			return lines
		}
	}
	remove := func(first, last int64) edit {
		return func(lines []string) []string {
			for n := first; n <= last; n++ {
				i := line(lines, n)
				lines = slices.Delete(lines, i, i+1)
			}
			return lines
		}
	}
	move := func(n, behind int64) edit {
		return func(lines []string) []string {
			i := line(lines, n)
			s := lines[i]
			lines = slices.Delete(lines, i, i+1)
			return slices.Insert(lines, line(lines, behind)+1, s)
		}
	}
	insert := func(behind int64, s string) edit {
		return func(lines []string) []string { return slices.Insert(lines, line(lines, behind)+1, s) }
	}
	forged := func(n int64) string { return string(audit.RecordLine(n, record(t, n, " by nobody"))) }
	for _, c := range []struct {
		what string
		edit edit
		kept []string
		want string
	}{
		{"a record edited", set(7, func(s string) string { return strings.Replace(s, "wrapped", "Wrapped", 1) }), nil, "edited 7-7"},
		{"two records edited", func(lines []string) []string {
			return set(12, func(s string) string { return strings.Replace(s, "payments", "paYments", 1) })(set(3, func(s string) string { return strings.Replace(s, `"d"`, `"e"`, 1) })(lines))
		}, nil, "edited 3-3, edited 12-12"},
		{"an unsigned record edited", set(30, func(s string) string { return strings.Replace(s, "wrapped", "Wrapped", 1) }), nil, "edited 30-30"},
		{"a record edited with its hash", set(15, func(string) string { return forged(15) }), nil, "edited 11-20"},
		{"the only record since the last checkpoint, with its hash", func([]string) []string {
			m := newLog(t, 0)
			m.pair = l.pair
			m.extend(10, "", 9, 10)
			m.lines[line(m.lines, 10)] = forged(10)
			return m.lines
		}, nil, "edited 10-10"},
		{"the hash of another record", set(7, func(string) string {
			return strings.Replace(string(audit.RecordLine(7, l.records[6])), audit.LeafHash(l.records[6]).String(), audit.LeafHash(l.records[7]).String(), 1)
		}), nil, "edited 7-7"},
		{"a record removed", remove(4, 4), nil, "removed 4-4"},
		{"the first removed", remove(1, 1), nil, "removed 1-1"},
		{"many removed", remove(9, 21), nil, "removed 9-21"},
		{"the end cut off, with a checkpoint behind it", remove(25, 30), nil, "truncated 25-29"},
		{"the last signed one cut off", remove(29, 30), nil, "truncated 29-29"},
		{"the end cut off with its checkpoints", func(lines []string) []string { return lines[:line(lines, 21)] }, []string{l.notes[29]}, "truncated 21-29"},
		{"two swapped", move(5, 6), nil, "reordered 5-5"},
		{"one moved far", move(5, 22), nil, "reordered 5-5"},
		{"one moved to the front", func(lines []string) []string {
			i := line(lines, 6)
			s := lines[i]
			return slices.Insert(slices.Delete(lines, i, i+1), 0, s)
		}, nil, "reordered 1-1, reordered 2-2, reordered 3-3, reordered 4-4, reordered 5-5"},
		{"one moved and edited", func(lines []string) []string {
			return set(5, func(s string) string { return strings.Replace(s, "wrapped", "Wrapped", 1) })(move(5, 8)(lines))
		}, nil, "reordered 5-5, edited 5-5"},
		{"the same record twice", insert(8, l.lines[line(l.lines, 8)]), nil, "duplicated 8-8"},
		{"the same record again later", insert(22, l.lines[line(l.lines, 8)]), nil, "duplicated 8-8"},
		{"a forged record before the real one", insert(7, forged(8)), nil, "inserted 8-8"},
		{"a forged record behind the real one", insert(8, forged(8)), nil, "inserted 8-8"},
		{"a record in the place of another", set(9, func(string) string { return string(audit.RecordLine(9, l.records[9])) }), nil, "edited 1-10, reordered 9-9"},
		{"a forged record at the end", insert(30, forged(31)), nil, ""}, // it is not signed yet, which the report says
		{"an impossible number", insert(30, forged(1<<60)), nil, fmt.Sprintf("removed 31-%d", 1<<60-1)},
		{"a line of something else", insert(4, "Nov 26 12:00:00 host prog: hello"), nil, "unreadable 5-5"},
		{"a line cut", set(30, func(s string) string { return s[:len(s)/2] }), nil, "unreadable 30-30"},
		{"a blank in a line", set(6, func(s string) string { return strings.Replace(s, `,"record"`, `, "record"`, 1) }), nil, "unreadable 6-6, removed 6-6"},
		{"a blank line", insert(4, ""), nil, ""},
		{"a checkpoint edited", func(lines []string) []string {
			i := slices.IndexFunc(lines, func(s string) bool { return strings.HasPrefix(s, `{"checkpoint"`) })
			lines[i] = strings.Replace(lines[i], `\n10\n`, `\n11\n`, 1)
			return lines
		}, nil, "checkpoint 10-10"},
		{"no checkpoints", func(lines []string) []string {
			return slices.DeleteFunc(lines, func(s string) bool { return strings.HasPrefix(s, `{"checkpoint"`) })
		}, nil, "unsigned 1-30"},
		{"a checkpoint of a later log kept", func(lines []string) []string { return lines }, []string{l.notes[10]}, ""},
	} {
		t.Run(c.what, func(t *testing.T) {
			t.Parallel()
			lines := c.edit(slices.Clone(l.lines))
			r := verify(t, lines, l.options(c.kept...))
			if got := problems(r); got != c.want {
				t.Errorf("got  %s\nwant %s\n%+v", got, c.want, r.Problems)
			}
		})
	}
}

// TestVerifyEveryRecord edits, removes, moves and doubles each record of a log in turn: it is found by its number.
func TestVerifyEveryRecord(t *testing.T) {
	t.Parallel()
	const most = 21
	l := newLog(t, most, 8, 13, most)
	for n := int64(1); n <= most; n++ {
		i := line(l.lines, n)
		edited := slices.Clone(l.lines)
		edited[i] = strings.Replace(edited[i], "wrapped", "unwrapped", 1)
		doubled := slices.Insert(slices.Clone(l.lines), i, l.lines[i])
		removed := slices.Delete(slices.Clone(l.lines), i, i+1)
		gone := fmt.Sprintf("removed %d-%d", n, n)
		if n == most {
			gone = fmt.Sprintf("truncated %d-%d", n, n)
		}
		for want, lines := range map[string][]string{fmt.Sprintf("edited %d-%d", n, n): edited, fmt.Sprintf("duplicated %d-%d", n, n): doubled, gone: removed} {
			if got := problems(verify(t, lines, l.options())); got != want {
				t.Errorf("got %s, want %s", got, want)
			}
		}
		// With its hash, it is found between two checkpoints.
		forged := slices.Clone(l.lines)
		forged[i] = string(audit.RecordLine(n, record(t, n, " by nobody")))
		r := verify(t, forged, l.options())
		if len(r.Problems) != 1 || r.Problems[0].What != audit.Edited || r.Problems[0].First > n || r.Problems[0].Last < n {
			t.Errorf("record %d forged: %+v", n, r.Problems)
		}
	}
}

// TestRepair: when a record is there twice, the checkpoint says which one was signed, and what comes later is verified all the same.
func TestRepair(t *testing.T) {
	t.Parallel()
	l := newLog(t, 30, 10, 20, 30)
	lines := slices.Clone(l.lines)
	for _, n := range []int64{3, 6, 14} {
		lines = slices.Insert(lines, line(lines, n), string(audit.RecordLine(n, record(t, n, " by nobody"))))
	}
	r := verify(t, lines, l.options())
	if r.Signed != 30 || problems(r) != "inserted 3-3, inserted 6-6, inserted 14-14" || !strings.HasSuffix(r.Problems[0].Message, "the second one is the one that was signed, the first was inserted") {
		t.Errorf("got %d signed, %+v", r.Signed, r.Problems)
	}
}

// TestAfterAProblem: what the next good checkpoint cannot reach is not called signed.
func TestAfterAProblem(t *testing.T) {
	t.Parallel()
	l := newLog(t, 30, 10, 20, 30)
	lines := slices.Clone(l.lines)
	lines[line(lines, 15)] = string(audit.RecordLine(15, record(t, 15, " by nobody")))
	if r := verify(t, lines, l.options()); r.Signed != 10 || r.Root != "" {
		t.Errorf("got %+v", r)
	}
}

// TestRollback: a log that was taken back to an earlier state and went on otherwise is not the one of which the checkpoint was kept.
func TestRollback(t *testing.T) {
	t.Parallel()
	l := newLog(t, 20, 10, 20)
	back := &log{t: t, pair: l.pair, notes: map[int64]string{}}
	back.extend(12, "", 10)
	if got := problems(verify(t, back.lines, back.options(l.notes[20]))); got != "truncated 13-20" {
		t.Errorf("rolled back: %s", got)
	}
	back.extend(30, " otherwise", 12, 25, 30)
	r := verify(t, back.lines, back.options())
	if !r.OK() {
		t.Fatalf("by itself it is a good log: %+v", r.Problems)
	}
	r = verify(t, back.lines, back.options(l.notes[20]))
	if got := problems(r); got != "edited 11-20" || !strings.Contains(r.Problems[0].Message, "kept elsewhere") {
		t.Errorf("it went on otherwise: %s: %+v", got, r.Problems)
	}
	if r := verify(t, back.lines, back.options(l.notes[10])); !r.OK() || r.Kept != 10 {
		t.Errorf("a checkpoint from before: %+v", r)
	}
}

// TestKeysOfALog: the key may be replaced; another log's checkpoints and keys do not count.
func TestKeysOfALog(t *testing.T) {
	t.Parallel()
	l := newLog(t, 10, 5, 10)
	next := rsaKey(t, 2048)
	l.extend(20, "")
	l.checkpoint(next)
	both := audit.Options{Keys: []*audit.Key{l.pair.key(t), next.key(t)}}
	if r := verify(t, l.lines, both); !r.OK() || r.Signed != 20 {
		t.Errorf("with both keys: %+v", r)
	}
	if got := problems(verify(t, l.lines, l.options())); got != "checkpoint 20-20" {
		t.Errorf("with the first key: %s", got)
	}
	if r := verify(t, l.lines, audit.Options{Keys: []*audit.Key{ecKey(t).key(t)}}); problems(r) != "checkpoint 5-5, checkpoint 10-10, checkpoint 20-20" || r.Signed != 0 {
		t.Errorf("with the key of another log: %+v", r)
	}
	if r := verify(t, l.lines, audit.Options{}); !r.OK() || r.Signed != 20 || r.Origin != origin {
		t.Errorf("without a key: %+v", r)
	}
	if _, err := audit.Verify(strings.NewReader(""), audit.Options{Keys: []*audit.Key{next.key(t)}, Trusted: []string{l.notes[5]}}); err == nil {
		t.Error("a kept checkpoint of another key was taken")
	}
	other, err := audit.Checkpoint{Origin: "hsmbridge/other", Size: 10, Root: merkle(l.records), Time: at}.Sign(l.pair.der, l.pair.sign)
	if err != nil {
		t.Fatal(err)
	}
	if r := verify(t, append(slices.Clone(l.lines), string(audit.CheckpointLine(other))), audit.Options{}); problems(r) != "checkpoint 20-20" {
		t.Errorf("a checkpoint of another log: %+v", r)
	}
}

// TestEach: every record that can be read is given, also of a kind of a later version.
func TestEach(t *testing.T) {
	t.Parallel()
	l := newLog(t, 3)
	later := []byte(`{"n":4,"time":"2027-01-02T03:04:05Z","kind":"later","actor":"d","message":"m"}`)
	l.records = append(l.records, later)
	l.lines = append(l.lines, string(audit.RecordLine(4, later)))
	l.checkpoint(l.pair)
	var got []int64
	o := l.options()
	o.Each = func(r audit.Record) error {
		got = append(got, r.N)
		return nil
	}
	if r := verify(t, l.lines, o); !r.OK() || r.Unknown != 1 || r.Signed != 4 || !slices.Equal(got, []int64{1, 2, 3, 4}) {
		t.Errorf("got %v, %+v", got, r)
	}
}

// TestLargeFiles: a file of something else does not fill the memory, and a line without an end is an error.
func TestLargeFiles(t *testing.T) {
	t.Parallel()
	r, err := audit.Verify(strings.NewReader(strings.Repeat("x\n", 5000)), audit.Options{})
	if err != nil || len(r.Problems) != 1000 || r.More != 4000 {
		t.Errorf("got %d problems and %d more, %v", len(r.Problems), r.More, err)
	}
	if _, err := audit.Verify(bytes.NewReader(make([]byte, 8<<20)), audit.Options{}); err == nil {
		t.Error("a line of 8 MiB was taken")
	}
}
