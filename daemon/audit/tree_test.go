package audit_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"

	"hsmbridge/daemon/audit"
)

// merkle is the Merkle Tree Hash as RFC 6962, 2.1 writes it down, and nothing else: it shares no code with package audit.
func merkle(leaves [][]byte) [32]byte {
	switch n := len(leaves); n {
	case 0:
		return sha256.Sum256(nil)
	case 1:
		return sha256.Sum256(append([]byte{0}, leaves[0]...))
	default:
		k := 1
		for k*2 < n {
			k *= 2
		}
		left, right := merkle(leaves[:k]), merkle(leaves[k:])
		return sha256.Sum256(append(append([]byte{1}, left[:]...), right[:]...))
	}
}

// climb is the root that an audit path leads to, as RFC 9162, 2.1.3.2 computes it.
func climb(index, size int, leaf []byte, path []audit.Hash) [32]byte {
	h := sha256.Sum256(append([]byte{0}, leaf...))
	fn, sn := index, size-1
	for _, p := range path {
		if fn%2 == 1 || fn == sn {
			h = sha256.Sum256(append(append([]byte{1}, p[:]...), h[:]...))
			for fn%2 == 0 && fn != 0 {
				fn, sn = fn/2, sn/2
			}
		} else {
			h = sha256.Sum256(append(append([]byte{1}, h[:]...), p[:]...))
		}
		fn, sn = fn/2, sn/2
	}
	return h
}

// stored keeps hashes as a database does.
type stored []audit.Hash

func (s *stored) read(indexes []int64) ([]audit.Hash, error) {
	out := make([]audit.Hash, len(indexes))
	for i, n := range indexes {
		if n >= int64(len(*s)) {
			return nil, fmt.Errorf("hash %d is not there", n)
		}
		out[i] = (*s)[n]
	}
	return out, nil
}

func (s *stored) add(t *testing.T, n int64, record []byte) {
	t.Helper()
	first, hashes, err := audit.Append(n, audit.LeafHash(record), s.read)
	if err != nil {
		t.Fatal(err)
	}
	if first != int64(len(*s)) {
		t.Fatalf("the hashes of record %d begin at %d, and %d are there", n, first, len(*s))
	}
	*s = append(*s, hashes...)
}

// TestTree compares roots and proofs of every size with the RFC's own formulas.
func TestTree(t *testing.T) {
	t.Parallel()
	const most = 70
	var s stored
	var leaves [][]byte
	for size := range most + 1 {
		if size > 0 {
			leaves = append(leaves, fmt.Appendf(nil, "record %d", size))
			s.add(t, int64(size), leaves[size-1])
		}
		want := merkle(leaves)
		got, err := audit.Root(int64(size), s.read)
		if err != nil || got != want {
			t.Fatalf("the root of %d records is %x, want %x (%v)", size, got, want, err)
		}
		// Every root of before can still be computed.
		if got, err := audit.Root(int64(size/2), s.read); err != nil || got != merkle(leaves[:size/2]) {
			t.Fatalf("of %d records, the root of the first %d is wrong (%v)", size, size/2, err)
		}
	}
	note := sign(t, ecKey(t), most, merkle(leaves))
	for n := 1; n <= most; n++ {
		p, err := audit.Prove(int64(n), leaves[n-1], note, s.read)
		if err != nil {
			t.Fatal(err)
		}
		if climb(n-1, most, leaves[n-1], p.Hashes) != merkle(leaves) {
			t.Fatalf("the proof of record %d does not lead to the root", n)
		}
	}
	for _, n := range []int64{0, -1, most + 1} {
		if _, err := audit.Prove(n, leaves[0], note, s.read); err == nil {
			t.Errorf("record %d was proved", n)
		}
	}
	if _, err := audit.Root(most+1, s.read); err == nil {
		t.Error("a root of more records than there are was computed")
	}
}

// TestKnownHashes holds the tree to test vectors that other implementations of RFC 6962 use (certificate-transparency, merkle tree tests).
func TestKnownHashes(t *testing.T) {
	t.Parallel()
	var leaves [][]byte
	for _, h := range []string{"", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"} {
		b, err := hex.DecodeString(h)
		if err != nil {
			t.Fatal(err)
		}
		leaves = append(leaves, b)
	}
	want := strings.Fields(`6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125
		aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77 d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7
		4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4 76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef
		ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c 5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328`)
	var s stored
	for i, leaf := range leaves {
		s.add(t, int64(i)+1, leaf)
		root, err := audit.Root(int64(i)+1, s.read)
		if err != nil || hex.EncodeToString(root[:]) != want[i] {
			t.Errorf("the root of %d leaves is %x, want %s (%v)", i+1, root, want[i], err)
		}
	}
}

// TestAppendNeedsTheTree: with hashes missing nothing can be appended.
func TestAppendNeedsTheTree(t *testing.T) {
	t.Parallel()
	var s stored
	for n := int64(1); n <= 7; n++ {
		s.add(t, n, []byte{byte(n)})
	}
	s = s[:2]
	if _, _, err := audit.Append(8, audit.LeafHash([]byte{8}), s.read); err == nil || !bytes.Contains([]byte(err.Error()), []byte("is not there")) {
		t.Errorf("got %v", err)
	}
}

// A tree that goes on from any size has the root of all its leaves.
func TestGrow(t *testing.T) {
	const most = 40
	var leaves [][]byte
	var stored []audit.Hash
	read := func(indexes []int64) ([]audit.Hash, error) {
		out := make([]audit.Hash, len(indexes))
		for i, n := range indexes {
			out[i] = stored[n]
		}
		return out, nil
	}
	for n := range most {
		leaves = append(leaves, fmt.Appendf(nil, "record %d", n))
		_, hashes, err := audit.Append(int64(n)+1, audit.LeafHash(leaves[n]), read)
		if err != nil {
			t.Fatal(err)
		}
		stored = append(stored, hashes...)
	}
	for size := range most + 1 {
		g, err := audit.Grow(int64(size), read)
		if err != nil || g.Root() != merkle(leaves[:size]) {
			t.Errorf("the tree of %d records has another root: %v", size, err)
			continue
		}
		for _, l := range leaves[size:] {
			g.Add(audit.LeafHash(l))
		}
		if g.Root() != merkle(leaves) {
			t.Errorf("from %d records on it has another root", size)
		}
	}
}
