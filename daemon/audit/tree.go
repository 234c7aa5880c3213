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

// growing is a tree with all its hashes, 64 bytes for each record: it gives the root at its own and at every smaller size, because
// checkpoints may stand behind later records.
type growing struct {
	size   int64
	stored []Hash
}

func (g *growing) read(indexes []int64) ([]Hash, error) {
	out := make([]Hash, len(indexes))
	for i, n := range indexes {
		out[i] = g.stored[n]
	}
	return out, nil
}

func (g *growing) add(leaf Hash) {
	g.size++
	_, hashes, _ := Append(g.size, leaf, g.read) // what it reads is there
	g.stored = append(g.stored, hashes...)
}

func (g *growing) root(size int64) Hash {
	h, _ := Root(size, g.read) // the same
	return h
}
