package performance

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Results are what a run of benchmarks wrote, in Go's benchmark format (golang.org/design/14313-benchmark-format).
type Results struct {
	Facts      [][2]string // of the machine and of the run: lines "fact NAME: VALUE", in their order
	Benchmarks map[string]*Benchmark
	Failed     []string // benchmarks that failed: nothing that they measured counts
}

// Benchmark is what one benchmark measured.
type Benchmark struct {
	Rows  []*Row
	Units []string // in the order in which they came
}

// Row is one case of it: the part of the name behind the benchmark's own, without the number of processors.
type Row struct {
	Name   string
	Values map[string][]float64 // by unit, one for each run
}

// Read reads the output of `go test -bench`, and the facts before it.
func Read(in io.Reader) (Results, error) {
	r := Results{Benchmarks: map[string]*Benchmark{}}
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		if fact, ok := strings.CutPrefix(line, "fact "); ok {
			name, value, _ := strings.Cut(fact, ": ")
			r.Facts = append(r.Facts, [2]string{name, value})
		}
		if name, ok := strings.CutPrefix(line, "--- FAIL: Benchmark"); ok {
			name, _, _ = strings.Cut(withoutProcessors("Benchmark"+name), "/")
			r.Failed = append(r.Failed, name)
		}
		if strings.HasPrefix(line, "Benchmark") {
			if err := r.add(strings.Fields(line)); err != nil {
				return r, fmt.Errorf("%q: %w", line, err)
			}
		}
	}
	if err := lines.Err(); err != nil {
		return r, fmt.Errorf("read the results: %w", err)
	}
	for _, name := range r.Failed {
		delete(r.Benchmarks, name)
	}
	return r, nil
}

func (r Results) add(fields []string) error {
	if len(fields) < 4 || len(fields)%2 != 0 {
		return nil // a name alone, before what it logs
	}
	name, row, _ := strings.Cut(withoutProcessors(fields[0]), "/")
	b := r.Benchmarks[name]
	if b == nil {
		b = &Benchmark{}
		r.Benchmarks[name] = b
	}
	i := slices.IndexFunc(b.Rows, func(x *Row) bool { return x.Name == row })
	if i < 0 {
		i = len(b.Rows)
		b.Rows = append(b.Rows, &Row{Name: row, Values: map[string][]float64{}})
	}
	for j := 2; j < len(fields); j += 2 {
		v, err := strconv.ParseFloat(fields[j], 64)
		if err != nil {
			return fmt.Errorf("a value: %w", err)
		}
		unit := fields[j+1]
		if !slices.Contains(b.Units, unit) {
			b.Units = append(b.Units, unit)
		}
		b.Rows[i].Values[unit] = append(b.Rows[i].Values[unit], v)
	}
	return nil
}

// withoutProcessors takes the number of processors off a benchmark's name.
func withoutProcessors(name string) string {
	return regexp.MustCompile(`-\d+$`).ReplaceAllString(name, "")
}

// table is a benchmark's Markdown table: the median of its runs, and from where to where they went.
func (b *Benchmark) table(name string) string {
	units := slices.DeleteFunc(slices.Clone(b.Units), b.empty)
	var out strings.Builder
	fmt.Fprintf(&out, "| %s | %s |\n|---|%s\n", name, strings.Join(units, " | "), strings.Repeat("---|", len(units)))
	for _, row := range b.Rows {
		cells := []string{row.Name}
		for _, u := range units {
			cells = append(cells, cell(row.Values[u]))
		}
		fmt.Fprintf(&out, "| %s |\n", strings.Join(cells, " | "))
	}
	return out.String()
}

// empty says that a unit is 0 in every row: ns/op of a benchmark that reports in others.
func (b *Benchmark) empty(unit string) bool {
	for _, row := range b.Rows {
		for _, v := range row.Values[unit] {
			if v != 0 {
				return false
			}
		}
	}
	return true
}

func cell(values []float64) string {
	if len(values) == 0 {
		return ""
	}
	s := slices.Sorted(slices.Values(values))
	middle := number(s[len(s)/2])
	if len(s) == 1 || number(s[0]) == number(s[len(s)-1]) {
		return middle
	}
	return fmt.Sprintf("%s (%s–%s)", middle, number(s[0]), number(s[len(s)-1]))
}

// number has three significant digits, and all that stand before the point.
func number(v float64) string {
	decimals := 2
	for limit := 10.0; decimals > 0 && (v >= limit || v <= -limit); limit *= 10 {
		decimals--
	}
	s := strconv.FormatFloat(v, 'f', decimals, 64)
	whole, rest, _ := strings.Cut(s, ".")
	for i := len(whole) - 3; i > 0 && whole[i-1] != '-'; i -= 3 {
		whole = whole[:i] + "," + whole[i:]
	}
	if rest == "" {
		return whole
	}
	return whole + "." + rest
}

// names are the benchmarks that ran.
func (r Results) names() []string { return slices.Sorted(maps.Keys(r.Benchmarks)) }
