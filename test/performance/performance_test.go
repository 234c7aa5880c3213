package performance

import (
	"bytes"
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var results = flag.String("results", "", "the output of benchmarks to put into docs/performance.md")

const document = "../../docs/performance.md"

// TestDocument holds that docs/performance.md has a place for each benchmark in the tree, and for nothing else. It times nothing. With -results it
// writes the figures first.
func TestDocument(t *testing.T) {
	text, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	if *results != "" {
		text = fill(t, text)
	}
	names, wrong, machine := sections(string(text))
	if machine != 1 {
		t.Errorf("%d places for the machine", machine)
	}
	for _, n := range wrong {
		t.Errorf("what stands at %s is not of that benchmark", n)
	}
	want := benchmarks(t)
	for i, n := range want {
		if i > 0 && want[i-1] == n {
			t.Errorf("two benchmarks are called %s: the document could not tell them apart", n)
		}
		if !slices.Contains(names, n) {
			t.Errorf("docs/performance.md has no place for %s: write <!-- bench %s --> and <!-- end --> on lines of their own, with %q between them, and around them what it is for", n, n, strings.TrimSpace(unmeasured))
		}
	}
	for _, n := range names {
		if !slices.Contains(want, n) {
			t.Errorf("docs/performance.md has a place for %s, which is no benchmark", n)
		}
	}
	if sorted := slices.Sorted(slices.Values(names)); len(slices.Compact(sorted)) != len(names) {
		t.Error("a benchmark has two places")
	}
}

func fill(t *testing.T, text []byte) []byte {
	t.Helper()
	output, err := os.ReadFile(*results)
	if err != nil {
		t.Fatal(err)
	}
	r, err := Read(bytes.NewReader(output))
	if err != nil {
		t.Fatal(err)
	}
	filled, err := Fill(string(text), r)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(document, []byte(filled), 0o644); err != nil { //nolint:gosec // a document
		t.Fatal(err)
	}
	return []byte(filled)
}

// benchmarks are the names of all benchmarks in the tree, sorted.
func benchmarks(t *testing.T) []string {
	t.Helper()
	declared := regexp.MustCompile(`(?m)^func (Benchmark\w+)\(b \*testing\.B\)`)
	var names []string
	err := filepath.WalkDir("../..", func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && strings.HasPrefix(entry.Name(), ".") && len(entry.Name()) > 2:
			return filepath.SkipDir
		case !strings.HasSuffix(path, "_test.go"):
			return nil
		}
		text, err := os.ReadFile(path) //nolint:gosec // the tree of the sources
		for _, m := range declared.FindAllStringSubmatch(string(text), -1) {
			names = append(names, m[1])
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	return names
}

// TestFill shows what becomes of a run.
func TestFill(t *testing.T) {
	const run = `fact processor: a fast one
fact cores: 2
goos: linux
pkg: hsmbridge/x
BenchmarkA/RSA_2048/sessions=1-2    1    0 ns/op    0.95 ratio    31234.5 wraps/s
BenchmarkA/RSA_2048/sessions=1-2    1    0 ns/op    0.97 ratio    30000 wraps/s
BenchmarkA/RSA_2048/sessions=1-2    1    0 ns/op    0.96 ratio    33000 wraps/s
BenchmarkA/RSA_4096-2    1    0 ns/op    -12.34 ratio
BenchmarkB-2    100    1234567 ns/op    12 B/op
PASS
`
	r, err := Read(strings.NewReader(run))
	if err != nil {
		t.Fatal(err)
	}
	const before = "# Title\n\n<!-- machine -->\n<!-- end -->\n\nWords.\n<!-- bench BenchmarkB -->\nold\n<!-- end -->\n\nMore.\n<!-- bench BenchmarkA -->\n" + unmeasured + "<!-- end -->\nThe end.\n"
	const after = `# Title

<!-- machine -->
| | |
|---|---|
| processor | a fast one |
| cores | 2 |
<!-- end -->

Words.
<!-- bench BenchmarkB -->
| BenchmarkB | ns/op | B/op |
|---|---|---|
|  | 1,234,567 | 12.0 |
<!-- end -->

More.
<!-- bench BenchmarkA -->
| BenchmarkA | ratio | wraps/s |
|---|---|---|
| RSA_2048/sessions=1 | 0.96 (0.95–0.97) | 31,234 (30,000–33,000) |
| RSA_4096 | -12.3 |  |
<!-- end -->
The end.
`
	got, err := Fill(before, r)
	if err != nil || got != after {
		t.Errorf("%v\n%s", err, got)
	}
	if again, err := Fill(got, r); err != nil || again != got {
		t.Errorf("a second time: %v\n%s", err, again)
	}
	if _, wrong, _ := sections(before); !slices.Equal(wrong, []string{"BenchmarkB"}) {
		t.Errorf("what stands where it does not belong: %v", wrong)
	}
	if _, err := Fill("<!-- bench BenchmarkB -->\n<!-- end -->\n", r); err == nil || !strings.Contains(err.Error(), "BenchmarkA has no place") {
		t.Errorf("a benchmark that has no place: %v", err)
	}
	if _, err := Read(strings.NewReader("BenchmarkA 1 x ns/op\n")); err == nil {
		t.Error("what is no number is not seen")
	}
	r, err = Read(strings.NewReader(run + "--- FAIL: BenchmarkA/RSA_4096-2\nFAIL\n"))
	if err != nil {
		t.Fatal(err)
	}
	got, err = Fill(before, r)
	if err != nil || !strings.Contains(got, "<!-- bench BenchmarkA -->\n"+failed+"<!-- end -->") || strings.Contains(got, "0.95") {
		t.Errorf("a benchmark that failed: %v\n%s", err, got)
	}
	if _, wrong, _ := sections(got); len(wrong) > 0 {
		t.Errorf("it is not taken for what it is: %v", wrong)
	}
}
