package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"unicode"
	"unicode/utf8"
)

// table prints rows under a header in columns.
func table(w io.Writer, header []string, rows [][]string) {
	var b strings.Builder
	tw := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, strings.Join(header, "\t"))
	for _, r := range rows {
		for i := range r {
			r[i] = strings.ReplaceAll(printable(r[i]), "\n", `\u000a`) // a cell is one line
		}
		fmt.Fprintln(tw, strings.Join(r, "\t"))
	}
	_ = tw.Flush() // a Builder takes everything
	for line := range strings.Lines(b.String()) {
		fmt.Fprintln(w, strings.TrimRight(line, " \n"))
	}
}

// printable shows control characters as what they are: labels come from tokens and messages from servers, and
// neither may drive the terminal.
func printable(s string) string {
	if !strings.ContainsFunc(s, isControl) {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if isControl(r) {
			fmt.Fprintf(&b, "\\u%04x", r)
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

// isControl tells characters that a terminal acts on; line breaks between words are laid out anew.
func isControl(r rune) bool {
	return r != '\n' && (unicode.IsControl(r) || r == '\u2028' || r == '\u2029' || r >= '\u202a' && r <= '\u202e' || r >= '\u2066' && r <= '\u2069')
}

// width is how wide explanations are printed.
const width = 100

// wrapped prints text in lines of at most width, each after indent; the first after first.
func wrapped(w io.Writer, first, indent, text string) {
	line := strings.ReplaceAll(printable(first), "\n", `\u000a`)
	empty := true
	for word := range strings.FieldsSeq(printable(text)) {
		if !empty && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > width {
			fmt.Fprintln(w, line)
			line, empty = indent, true
		}
		if !empty {
			line += " "
		}
		line, empty = line+word, false
	}
	fmt.Fprintln(w, line)
}

// wrappedLines is wrapped for a text that has line breaks of its own, which stay. Of more than most lines the first are printed, and then where the whole is; 0: all are.
func wrappedLines(w io.Writer, first, indent, text string, most int, whole string) {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if strings.TrimSpace(line) == "" {
			continue
		}
		begin := indent
		if b.Len() == 0 {
			begin = first
		}
		wrapped(&b, begin, indent, line)
	}
	lines := slices.Collect(strings.Lines(b.String()))
	if len(lines) == 0 {
		wrapped(w, first, indent, "")
	}
	for i, line := range lines {
		if most > 0 && i == most && len(lines) > most+1 {
			fmt.Fprintf(w, "%s... %d more lines: %s\n", indent, len(lines)-most, printable(whole))
			return
		}
		fmt.Fprint(w, line)
	}
}

// writeJSON prints one object on one line: output for machines is JSON Lines.
func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// keeper keeps the first error of a writer, so that a full disk is not taken for success.
type keeper struct {
	w   io.Writer
	err error
}

func (k *keeper) Write(p []byte) (int, error) {
	n, err := k.w.Write(p)
	if k.err == nil {
		k.err = err
	}
	return n, err
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
