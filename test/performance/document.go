package performance

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// marks are a line "<!-- bench NAME -->" or "<!-- machine -->", what is generated, and a line "<!-- end -->".
func marks() *regexp.Regexp {
	return regexp.MustCompile(`(?s)<!-- (machine|bench (Benchmark\w+)) -->\n(.*?)<!-- end -->\n`)
}

// Unmeasured stands between marks until the first run.
const unmeasured = "Not measured yet: `make bench`.\n"

// failed stands there for a benchmark that did not end, or ended with an error.
const failed = "It failed in this run, so there are no figures.\n"

// sections are the names of the benchmarks that the document has a place for, in its order, and whether what stands there is of that benchmark.
func sections(document string) (names, wrong []string, machine int) {
	for _, m := range marks().FindAllStringSubmatch(document, -1) {
		name, text := m[2], m[3]
		switch {
		case name == "":
			machine++
		case text != unmeasured && text != failed && !strings.HasPrefix(text, "| "+name+" |"):
			wrong = append(wrong, name)
			fallthrough
		default:
			names = append(names, name)
		}
	}
	return names, wrong, machine
}

// Fill puts results between the marks, and says there of a benchmark without results that it failed: all figures are of one machine and one day.
func Fill(document string, r Results) (string, error) {
	names, _, _ := sections(document)
	var errs []error
	for _, n := range r.names() {
		if !slices.Contains(names, n) {
			errs = append(errs, fmt.Errorf("%s has no place in the document: write <!-- bench %s --> and <!-- end --> on lines of their own, and around them what it is for", n, n))
		}
	}
	if len(r.Facts) == 0 {
		errs = append(errs, errors.New("the results do not say on what machine they were made"))
	}
	if len(errs) > 0 {
		return "", errors.Join(errs...)
	}
	return marks().ReplaceAllStringFunc(document, func(old string) string {
		m := marks().FindStringSubmatch(old)
		text := facts(r.Facts)
		switch b := r.Benchmarks[m[2]]; {
		case m[2] == "":
		case b == nil:
			text = failed
		default:
			text = b.table(m[2])
		}
		return "<!-- " + m[1] + " -->\n" + text + "<!-- end -->\n"
	}), nil
}

func facts(list [][2]string) string {
	var b strings.Builder
	b.WriteString("| | |\n|---|---|\n")
	for _, f := range list {
		fmt.Fprintf(&b, "| %s | %s |\n", f[0], f[1])
	}
	return b.String()
}
