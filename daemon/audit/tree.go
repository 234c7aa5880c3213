package audit

import (
	"fmt"

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

// Root is the hash of the tree of the first size records.
func Root(size int64, read Reader) (Hash, error) {
	h, err := tlog.TreeHash(size, tlog.HashReaderFunc(read))
	if err != nil {
		return h, fmt.Errorf("audit: %w", err)
	}
	return h, nil
}

// growing is a tree of which only the right edge is kept: enough to give the root at each size.
type growing struct {
	size  int64
	edge  []Hash  // roots of the perfect subtrees, the largest first
	sizes []int64 // of them
}

func (g *growing) add(leaf Hash) {
	g.size++
	g.edge, g.sizes = append(g.edge, leaf), append(g.sizes, 1)
	for n := len(g.edge); n > 1 && g.sizes[n-1] == g.sizes[n-2]; n = len(g.edge) {
		g.edge = append(g.edge[:n-2], tlog.NodeHash(g.edge[n-2], g.edge[n-1]))
		g.sizes = append(g.sizes[:n-2], g.sizes[n-2]*2)
	}
}

func (g *growing) root() Hash {
	if len(g.edge) == 0 {
		h, _ := tlog.TreeHash(0, nil) // of no record, which needs no reader
		return h
	}
	h := g.edge[len(g.edge)-1]
	for i := len(g.edge) - 2; i >= 0; i-- {
		h = tlog.NodeHash(g.edge[i], h)
	}
	return h
}
