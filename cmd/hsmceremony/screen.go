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

// screens is the guided session: one screen a step, and what people type.
type screens struct {
	in       *bufio.Reader
	out      io.Writer
	terminal bool
	step     int
	of       int
}

func (a *app) screens(of int) *screens {
	f, ok := a.out.(*os.File)
	return &screens{in: bufio.NewReader(a.in), out: a.out, terminal: ok && term.IsTerminal(int(f.Fd())), of: of}
}

// begin begins a screen.
func (s *screens) begin(title string) {
	s.step++
	if s.terminal && s.step > 1 {
		fmt.Fprint(s.out, "\x1b[2J\x1b[H")
	}
	fmt.Fprintf(s.out, "\n=== Step %d of %d: %s ===\n\n", s.step, s.of, title)
}

const width = 100

// say prints a paragraph.
func (s *screens) say(format string, args ...any) {
	s.wrapped("", "", fmt.Sprintf(format, args...))
}

// line prints a name and a value.
func (s *screens) line(name, value string) {
	if value != "" {
		s.wrapped(fmt.Sprintf("  %-22s ", name), strings.Repeat(" ", 25), value)
	}
}

func (s *screens) wrapped(first, indent, text string) {
	line, empty := first, true
	for word := range strings.FieldsSeq(printable(text)) {
		if !empty && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > width {
			fmt.Fprintln(s.out, line)
			line, empty = indent, true
		}
		if !empty {
			line += " "
		}
		line, empty = line+word, false
	}
	fmt.Fprintln(s.out, line)
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

// stoppedError says that somebody did not confirm.
type stoppedError struct{ typed, want string }

func (e *stoppedError) Error() string {
	return fmt.Sprintf("%q is not %q, so the ceremony stops here; nothing was wrapped. Run the same command to go on", e.typed, e.want)
}

// Class is "caller".
func (e *stoppedError) Class() string { return "caller" }

// ask asks for a line.
func (s *screens) ask(ctx context.Context, question string) (string, error) {
	fmt.Fprintf(s.out, "\n%s ", question)
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
			return "", &ceremony.MismatchError{Reason: "nobody answers: the input has ended; nothing was wrapped"}
		}
		if !s.terminal {
			fmt.Fprintln(s.out)
		}
		return strings.TrimSpace(a.text), nil
	}
}

// confirm lets somebody type a word.
func (s *screens) confirm(ctx context.Context, question, want string) error {
	got, err := s.ask(ctx, question)
	if err != nil {
		return err
	}
	if !strings.EqualFold(got, want) {
		return &stoppedError{got, want}
	}
	return nil
}
