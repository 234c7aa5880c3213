package configs

import (
	"fmt"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Error is a configuration with mistakes: all that could be found at once, in the order of the file.
type Error struct {
	File     string
	Problems []Problem
}

// Problem is one mistake.
type Problem struct {
	Line    int    `json:"line"`           // from 1
	Column  int    `json:"column"`         // from 1, in characters
	Path    string `json:"path,omitempty"` // of the field: keys[0].expires; empty for a mistake of the whole file
	Message string `json:"message"`

	excerpt string // the part of the line around the column, without secrets, printable
	caret   int    // characters of excerpt before the column
}

// Error prints every problem as "file:line:col: message", the line of the file under it, and a caret under the column.
// What looks like a PIN in that line is masked.
func (e *Error) Error() string {
	var b strings.Builder
	for i, p := range e.Problems {
		if i > 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "%s:%d:%d: %s", e.File, p.Line, p.Column, p.Message)
		if p.excerpt != "" {
			fmt.Fprintf(&b, "\n    %s\n    %s^", p.excerpt, strings.Repeat(" ", p.caret))
		}
	}
	return b.String()
}

// position is a place in the file: line and column from 1, the column in characters.
type position struct{ line, column int }

// source is the text of a configuration, for the excerpts in its problems.
type source struct {
	lines []string
	shown map[int]string // the lines that were shown, without what looks like a PIN
}

func newSource(data []byte) source {
	return source{strings.Split(strings.ReplaceAll(string(data), "\r\n", "\n"), "\n"), make(map[int]string)}
}

// masked is line i, from 0, without what looks like a PIN. A long line may have many problems, and is masked once.
func (s source) masked(i int) string {
	if line, ok := s.shown[i]; ok {
		return line
	}
	line := s.lines[i]
	for _, secret := range []*regexp.Regexp{pinForm, userinfoForm} {
		if at := secret.FindStringSubmatchIndex(line); at != nil {
			line = line[:at[3]] + "***" // up to the end of the first group
		}
	}
	s.shown[i] = line
	return line
}

// pinPattern finds a key that a person could put a PIN under, with its separator: pin:, user_pin:, pin-value=, password:.
// It does not find pin_file and its like.
const pinPattern = `(?i)((?:pin|password|passphrase|passwd|pwd)(?:[_-]?(?:value|code))?["']?[ \t]*[:=][ \t]*)`

// userinfoPattern finds the user and password in a URL.
const userinfoPattern = `(://)[^\s"'@]+@`

var (
	pinForm      = regexp.MustCompile(pinPattern)
	userinfoForm = regexp.MustCompile(userinfoPattern)
)

var secretNameForm = regexp.MustCompile(pinPattern + `$`)

// isSecretName says whether a key is named as if a PIN stood under it.
func isSecretName(key string) bool {
	return secretNameForm.MatchString(key + ":")
}

// line is the whole line of a position, unmasked.
func (s source) line(at position) string {
	if at.line < 1 || at.line > len(s.lines) {
		return ""
	}
	return s.lines[at.line-1]
}

// maxExcerpt is how many characters of a line are shown.
const maxExcerpt = 120

// excerpt cuts what is shown of a line so that the column is in it.
func (s source) excerpt(at position) (text string, caret int) {
	if at.line < 1 || at.line > len(s.lines) {
		return "", 0
	}
	line := s.masked(at.line - 1)
	before := max(at.column-1, 0)
	// Drop whole characters from the front while the column is far to the right.
	for skip := before - maxExcerpt*3/4; skip > 0 && line != ""; skip-- {
		_, size := utf8.DecodeRuneInString(line)
		line, before = line[size:], before-1
	}
	var b strings.Builder
	n := 0
	for _, r := range line {
		if n == maxExcerpt {
			break
		}
		switch {
		case r == '\t':
			r = ' '
		case !unicode.IsPrint(r):
			r = unicode.ReplacementChar
		}
		b.WriteRune(r)
		n++
	}
	text = strings.TrimRight(b.String(), " ")
	if text == "" {
		return "", 0
	}
	return text, min(before, n)
}
