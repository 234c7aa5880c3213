package configs

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// FuzzSimple holds that what [readSimple] reads is what the YAML parser reads, and that it stands where the parser says.
func FuzzSimple(f *testing.F) {
	for _, s := range simpleSeeds(f) {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) { sameTree(t, data) })
}

// simpleSeeds are the samples, the broken files, and what the two readers could see differently.
func simpleSeeds(tb testing.TB) []string {
	tb.Helper()
	var seeds []string
	for _, pattern := range []string{"*.yaml", "testdata/*.yaml"} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			tb.Fatal(pattern, err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				tb.Fatal(err)
			}
			seeds = append(seeds, string(text))
		}
	}
	return append(seeds, string(largeConfig(3)),
		"a: b", "a: b\n", "a:\n- b\n- c\nd: e\n", "a:\n  - b: c\n    d: e\n  - f: g\n", "a: {b: c, d: [e, \"f\"]} # g\n", "a: [] # b\nc: {}\n",
		"a: 1\nb: 01\nc: 1_0\nd: 1e3\ne: 0x1\nf: 90d\ng: 1.5\nh: 0.25/s\ni: 127.0.0.1:9464\nj: 1-2\nk: 12e\nl: 1.2.3\n", "a: true\nb: yes\nc: null\nd: Off\ne: truer\n",
		"a: b c\nd: e  f\ng: h #i\nj: k# l\n", "a: b:c\nd: e:\n", "a: 'b'\nc: 'd''e'\nf: \"g\\\\h\"\ni: \"j\" k\n", "a: b\n  c\n", "a:\n  b: c\n d: e\n", "a:\nb: c\n", "a:\n  # b\n\n  c: d\n",
		"- a\n- b: c\n", "- a: b\n  c:\n  - d\n  - e\n- f\n", "- - a\n", "a:\n  - b\n  c: d\n", "a: b\na: c\n", " a: b\n c: d\n", "a: [b, c,]\n", "a: [b,c]\n", "a: {b:c}\n", "a: {b: c,d: e}\n", "a: [{b: c}, d]\n",
		"a: b\n---\nc: d\n", "a: b\n...\n", "a: |\n  b\n", "a: \"b\"#c\n", "# \u00e4\na: b # \u2028c\n", "a:   b  \nc:   \n  - d \n", "a: b-c/d@e+f=g.h\n", "a: {b: \"c\", }\n", "a: arn:aws:kms:eu-central-1:111122223333:key/1\n",
		"a: {b: [c, {d: e}], f: g}\nh:\n    i:\n        - j\n        - k: l\n")
}

// TestSimpleReadsConfigurations holds that readSimple reads what it is for: the samples, what adopt writes, and a fleet.
func TestSimpleReadsConfigurations(t *testing.T) {
	files, err := filepath.Glob("*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !sameTree(t, text) {
			t.Errorf("%s: is left to the YAML parser", file)
		}
	}
	if !sameTree(t, largeConfig(200)) {
		t.Error("a fleet is left to the YAML parser")
	}
}

// TestSimpleRandomly holds the two readers against each other on texts that are put together from what a configuration has.
func TestSimpleRandomly(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // the same texts each time
	parts := []string{
		"a: b\n", "  c: d\n", "  - e\n", "- f\n", "- g: h\n", "  - i: j\n", "    k: l\n", "m:\n", "  n:\n", "    - o\n", "    - p:\n", "\n", "# q\n", "  # r\n", "s: [t, u]\n", "  v: {w: x}\n", "- [y, z]\n",
		"  'a': b\n", "- \"c\"\n", "d: \"e\" # f\n", "  g: 1\n", "- 90d\n", "- {h: i}\n", "  - {j: k} # l\n", "- \n", "  -\n", "m: n o\n", "p: true\n", "q:r\n", "  s: t:u\n", "      v: w\n", " x: y\n",
	}
	read := 0
	for range 30_000 {
		var b strings.Builder
		for range 1 + rnd.IntN(7) {
			b.WriteString(parts[rnd.IntN(len(parts))])
		}
		if sameTree(t, []byte(b.String())) {
			read++
		}
	}
	const fewest = 300
	if read < fewest {
		t.Errorf("%d texts were read, too few to show anything", read)
	}
	t.Log(read, "texts were read by both")
}

// sameTree says whether data was read by readSimple.
func sameTree(tb testing.TB, data []byte) bool {
	tb.Helper()
	d := newDecoder()
	if !d.readable(data) {
		return false
	}
	got, ok := readSimple(data)
	if !ok {
		return false
	}
	d.source = newSource(data)
	want := d.document(data)
	if want == nil || len(d.problems) > 0 {
		tb.Fatalf("the parser refuses what was read:\n%q\n%v", data, d.problems)
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(node{}, position{}), cmpopts.EquateEmpty()); diff != "" {
		tb.Fatalf("%q\n(-parser +simple):\n%s", data, diff)
	}
	return true
}
