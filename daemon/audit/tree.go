package audit

import (
	"crypto/sha256"
	"fmt"
	"math/bits"
	"slices"

	"golang.org/x/mod/sumdb/tlog"
)

// Hash is a hash of the tree: SHA-256, RFC 6962.
type Hash = tlog.Hash

// LeafHash is the hash of a record as it stands in the tree. Source: RFC 6962, 2.1.
func LeafHash(record []byte) Hash { return tlog.RecordHash(record) }

// Reader reads stored hashes by their index. See [Append].
type Reader func(indexes []int64) ([]Hash, error)

// Append gives the hashes that have to be stored when the record with this leaf hash becomes the n-th (from 1), and the index of the
// first: they are stored one behind the other. read gives hashes that were stored before.
func Append(n int64, leaf Hash, read Reader) (first int64, hashes []Hash, err error) {
	hashes, err = tlog.StoredHashesForRecordHash(n-1, leaf, tlog.HashReaderFunc(read))
	if err != nil {
		return 0, nil, fmt.Errorf("audit: %w", err)
	}
	return tlog.StoredHashIndex(0, n-1), hashes, nil
}

// LeafIndex is the index at which the leaf hash of the n-th record (from 1) is stored.
func LeafIndex(n int64) int64 { return tlog.StoredHashIndex(0, n-1) }

// Root is the hash of the tree of the first size records.
func Root(size int64, read Reader) (Hash, error) {
	h, err := tlog.TreeHash(size, tlog.HashReaderFunc(read))
	if err != nil {
		return h, fmt.Errorf("audit: %w", err)
	}
	return h, nil
}

// tree is a tree of which only what is needed to go on is kept: the roots of its perfect subtrees, the largest first.
type tree struct {
	size  int64
	roots []Hash
}

func (t *tree) add(leaf Hash) {
	for n := t.size; n&1 == 1; n >>= 1 { // as many subtrees as size ends with ones become one
		last := len(t.roots) - 1
		leaf, t.roots = tlog.NodeHash(t.roots[last], leaf), t.roots[:last]
	}
	t.roots = append(t.roots, leaf)
	t.size++
}

func (t *tree) root() Hash {
	if t.size == 0 {
		return Hash(sha256.Sum256(nil)) // RFC 6962, 2.1
	}
	h := t.roots[len(t.roots)-1]
	for i := len(t.roots) - 2; i >= 0; i-- {
		h = tlog.NodeHash(t.roots[i], h)
	}
	return h
}

func (t *tree) clone() tree { return tree{t.size, slices.Clone(t.roots)} }

// Growth is a tree that grows from leaf hashes alone, behind a first part of which only its perfect subtrees are read.
type Growth struct{ tree tree }

// Grow begins with the tree of the first size records. Its root says whether what was read of it is the tree of an earlier [Checkpoint].
func Grow(size int64, read Reader) (*Growth, error) {
	var indexes []int64
	for at, left := int64(0), size; left > 0; {
		level := bits.Len64(uint64(left)) - 1
		indexes = append(indexes, tlog.StoredHashIndex(level, at>>level))
		at, left = at+1<<level, left-1<<level
	}
	g := &Growth{tree{size: size}}
	if len(indexes) == 0 {
		return g, nil
	}
	var err error
	if g.tree.roots, err = read(indexes); err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	return g, nil
}

// Add adds the leaf hash of the next record.
func (g *Growth) Add(leaf Hash) { g.tree.add(leaf) }

// Root is the hash of the tree as it is.
func (g *Growth) Root() Hash { return g.tree.root() }
