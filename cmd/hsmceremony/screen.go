package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/term"

	"hsmbridge/daemon/ceremony"
)

// screens is the guided session: one screen a step, and what people type. A screen is gathered and shown with its first question, page by page
// when the terminal is lower than it.
type screens struct {
	in       *bufio.Reader
	out      io.Writer
	terminal bool
	width    int // columns
	height   int // lines; 0: without end
	step, of int
	title    string
	note     func() string // what every screen shows at its right: the time that is left
	lines    []string      // gathered, not yet shown
}

const (
	narrow = 60  // narrower terminals are written over their edge
	wide   = 100 // lines that are longer are hard to read
	usual  = 80  // where there is no terminal
	indent = 25  // where values begin
)

func (a *app) screens(of int) *screens {
	s := &screens{in: bufio.NewReader(a.in), out: a.out, width: usual, of: of, note: func() string { return "" }}
	if f, ok := a.out.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		s.terminal = true
		s.measure(int(f.Fd()))
	}
	return s
}

func (s *screens) measure(fd int) {
	w, h, err := term.GetSize(fd)
	if err == nil {
		s.width, s.height = min(max(w, narrow), wide), h
	}
}

// begin begins a screen.
func (s *screens) begin(title string) {
	s.flush()
	if f, ok := s.out.(*os.File); ok && s.terminal { // somebody may have drawn the window larger
		s.measure(int(f.Fd()))
	}
	s.step++
	s.title = fmt.Sprintf("Step %d of %d: %s", s.step, s.of, title)
	s.head("")
}

// head clears the terminal and writes the title and the time that is left.
func (s *screens) head(more string) {
	if s.terminal {
		fmt.Fprint(s.out, "\x1b[H\x1b[2J")
	} else {
		fmt.Fprintln(s.out)
	}
	title, note := s.title+more, s.note()
	if gap := s.width - utf8.RuneCountInString(title) - utf8.RuneCountInString(note); note != "" && gap > 0 {
		title += strings.Repeat(" ", gap) + note
	} else if note != "" {
		title += "\n" + note
	}
	fmt.Fprintf(s.out, "%s\n%s\n\n", title, strings.Repeat("-", s.width))
}

// say adds a paragraph.
func (s *screens) say(format string, args ...any) {
	s.wrapped("", "", fmt.Sprintf(format, args...))
}

// gap adds an empty line.
func (s *screens) gap() { s.lines = append(s.lines, "") }

// line adds a name and a value.
func (s *screens) line(name, value string) {
	if value == "" {
		return
	}
	const before = 2
	first := fmt.Sprintf("%*s%-*s ", before, "", indent-before-1, printable(name))
	if utf8.RuneCountInString(first) > indent { // the value goes below
		s.lines = append(s.lines, strings.TrimRight(first, " "))
		first = strings.Repeat(" ", indent)
	}
	s.wrapped(first, strings.Repeat(" ", indent), value)
}

// wrapped breaks a text into lines. What has no blank is broken behind its last separator that fits.
func (s *screens) wrapped(first, indent, text string) {
	line, empty := first, true
	next := func() { s.lines, line, empty = append(s.lines, line), indent, true }
	for word := range strings.FieldsSeq(printable(text)) {
		if !empty && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > s.width {
			next()
		}
		for room := s.width - utf8.RuneCountInString(line); empty && utf8.RuneCountInString(word) > room; room = s.width - utf8.RuneCountInString(line) {
			cut := broken(word, room)
			line += word[:cut]
			word = word[cut:]
			next()
		}
		if !empty {
			line += " "
		}
		line, empty = line+word, false
	}
	s.lines = append(s.lines, line)
}

// broken is where a word is broken so that its first part has at most room characters: hexadecimal in the middle, so that it is easy to compare.
func broken(word string, room int) int {
	at := 0
	for i := range word {
		if room == 0 {
			at = i
			break
		}
		room--
	}
	if half := len(word) / 2; isHex(word) && half <= at {
		return half
	}
	for _, separators := range []string{"/", ":;,?", "-=._"} {
		if sep := strings.LastIndexAny(word[:at], separators); sep > at/3 {
			return sep + 1
		}
	}
	return at
}

func isHex(s string) bool {
	return strings.Trim(s, "0123456789abcdef") == ""
}

// printable shows what would drive the terminal as what it is.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r != '\n' && (unicode.IsControl(r) || !unicode.IsPrint(r) && r != ' ') {
			return '_'
		}
		return r
	}, s)
}

// flush shows what was gathered at once.
func (s *screens) flush() {
	for _, l := range s.lines {
		fmt.Fprintln(s.out, strings.TrimRight(l, " "))
	}
	s.lines = nil
}

// show shows what was gathered, page by page.
func (s *screens) show(ctx context.Context) error {
	const around = 6 // the title above, the question below
	for s.terminal && s.height > around && len(s.lines) > s.height-around {
		page := s.height - around
		rest := s.lines[page:]
		s.lines = s.lines[:page]
		s.flush()
		got, err := s.read(ctx, "\nThere is more: press Enter to read on.")
		if err == nil && stops(got) {
			err = &stoppedError{printable(got), "Enter"}
		}
		if err != nil {
			return err
		}
		s.lines = rest
		s.head(" (more)")
	}
	s.flush()
	return nil
}

// stoppedError says that somebody did not confirm.
type stoppedError struct{ typed, want string }

func (e *stoppedError) Error() string {
	return fmt.Sprintf("%q is not %q, so the ceremony stops here", e.typed, e.want)
}

// Class is "caller".
func (e *stoppedError) Class() string { return "caller" }

// ask shows the screen and asks for a line.
func (s *screens) ask(ctx context.Context, question string) (string, error) {
	if err := s.show(ctx); err != nil {
		return "", err
	}
	return s.read(ctx, "\n"+question)
}

func (s *screens) read(ctx context.Context, question string) (string, error) {
	fmt.Fprint(s.out, question+" ")
	type answer struct {
		text string
		err  error
	}
	ch := make(chan answer, 1)
	go func() {
		text, err := s.in.ReadString('\n')
		ch <- answer{text, err}
	}()
	select {
	case <-ctx.Done():
		return "", ctx.Err()
	case a := <-ch:
		if a.err != nil && (a.text == "" || !errors.Is(a.err, io.EOF)) {
			return "", &ceremony.MismatchError{Reason: "nobody answers: the input has ended"}
		}
		if !s.terminal {
			fmt.Fprintln(s.out)
		}
		return strings.TrimSpace(a.text), nil
	}
}

// tries is how often a question is asked: a slip may be mended twice.
const tries = 3

// confirm lets somebody type a word, or what is compared without regard to case.
func (s *screens) confirm(ctx context.Context, question, want string) error {
	return s.typed(ctx, question, want, "", strings.EqualFold)
}

// exactly lets somebody type a name. Labels that differ only in case are those of two objects (PKCS#11, CKA_LABEL), and names of keys are of two keys.
func (s *screens) exactly(ctx context.Context, question, want string) error {
	return s.typed(ctx, question, want, " Small and capital letters are different ones here.", func(got, want string) bool { return got == want })
}

// typed lets somebody type what is wanted. "no" and "stop" end the session. Where nothing is wanted there is nothing to compare, and Enter alone confirms nothing.
func (s *screens) typed(ctx context.Context, question, want, hint string, same func(got, want string) bool) error {
	if want == "" {
		return &ceremony.MismatchError{Reason: "there is nothing by which to compare it (" + question + ")"}
	}
	for try := 1; ; try++ {
		got, err := s.ask(ctx, question)
		switch {
		case err != nil:
			return err
		case same(got, want):
			return nil
		case try == tries || stops(got):
			return &stoppedError{printable(got), want}
		}
		more := ""
		if strings.EqualFold(got, want) {
			more = hint
		}
		s.say("%q is not %q.%s Look again; type stop to end here.", got, want, more)
	}
}

// stops says that somebody does not want to go on.
func stops(got string) bool { return strings.EqualFold(got, "no") || strings.EqualFold(got, "stop") }

// yes lets somebody type yes or no; "stop" ends the session.
func (s *screens) yes(ctx context.Context, question string) (bool, error) {
	for try := 1; ; try++ {
		got, err := s.ask(ctx, question)
		if err != nil {
			return false, err
		}
		switch strings.ToLower(got) {
		case "yes", "y":
			return true, nil
		case "no", "n":
			return false, nil
		}
		if try == tries || strings.EqualFold(got, "stop") {
			return false, &stoppedError{printable(got), "yes or no"}
		}
		s.say("%q is neither yes nor no. Look again; type stop to end here.", got)
	}
}

// next waits until a screen was read.
func (s *screens) next(ctx context.Context) error {
	got, err := s.ask(ctx, "Press Enter to go on.")
	if err == nil && stops(got) {
		return &stoppedError{printable(got), "Enter"}
	}
	return err
}
