package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"hsmbridge/daemon/audit"
	"hsmbridge/daemon/ceremony"
)

// endedError is why a session ended early, with what became of the key: what was wrapped, and what was not.
type endedError struct {
	error
	outcome string
}

func (e *endedError) Unwrap() error { return e.error }

func (e *endedError) Error() string {
	text := e.error.Error() + "; " + e.outcome
	var stopped *stoppedError
	if errors.As(e.error, &stopped) {
		text += ". Run the same command to go on"
	}
	return text
}

// ended adds to an error what became of the key.
func (s *session) ended(err error) error {
	if err == nil {
		return nil
	}
	return &endedError{err, s.outcome()}
}

// outcome says what was wrapped, by the log: a session that ends before its own wrap may come behind others that wrapped.
func (s *session) outcome() string {
	begun, done := s.room.Log.Wraps()
	before, doneBefore := begun[:s.begun], done[:s.done]
	now, doneNow := begun[s.begun:], done[s.done:]
	switch {
	case s.kept:
		return fmt.Sprintf("the key was wrapped, and %s is here: the same command wraps nothing more, and writes what is missing beside it", filepath.Base(s.name)+ceremony.WrappedExt)
	case len(doneNow) > 0:
		return fmt.Sprintf("the HSM wrapped the key in this session (%s of the log), and the result was not kept", recordsOf(doneNow))
	case len(now) > 0:
		return fmt.Sprintf("the HSM was asked in this session to wrap the key (%s of the log), and no result of it was kept", recordsOf(now))
	case len(doneBefore) > 0:
		return fmt.Sprintf("nothing was wrapped in this session; the HSM wrapped the key in an earlier one (%s of the log), and no whole result of that is here", recordsOf(doneBefore))
	case len(before) > 0:
		return fmt.Sprintf("nothing was wrapped in this session; the HSM was asked for it in an earlier one (%s of the log), and no whole result of that is here", recordsOf(before))
	}
	return "nothing was wrapped"
}

// recordsOf names records by their numbers.
func recordsOf(records []audit.Record) string {
	numbers := make([]string, len(records))
	for i, r := range records {
		numbers[i] = fmt.Sprint(r.N)
	}
	if len(numbers) == 1 {
		return "record " + numbers[0]
	}
	return "records " + strings.Join(numbers, ", ")
}

// inTheWayError says which files are there that only a wrap writes, where its result is not.
type inTheWayError struct {
	files  []string
	result string
}

func (e *inTheWayError) Error() string {
	are, them := "is", "it"
	if len(e.files) > 1 {
		are, them = "are", "them"
	}
	return fmt.Sprintf("%s %s there already, without %s, and no file of a ceremony is ever overwritten: where that was moved away, put it back, and nothing is wrapped again; else move %s away, or work in another folder",
		strings.Join(e.files, ", "), are, e.result, them)
}

// Class is "caller".
func (e *inTheWayError) Class() string { return "caller" }

// nothingInTheWay holds that every file that the wrap writes can be written, before anybody compares anything, and before the HSM is asked.
func (s *session) nothingInTheWay() error {
	base := filepath.Base(s.name)
	e := &inTheWayError{result: base + ceremony.WrappedExt}
	for _, name := range []string{base + ceremony.WrappedExt, ceremony.MaterialBin, base + ceremony.ReportExt + ".txt", base + ceremony.ReportExt + ".json", base + ceremony.ReportExt + ".html"} {
		_, err := os.Lstat(filepath.Join(filepath.Dir(s.name), name))
		switch {
		case err == nil:
			e.files = append(e.files, name)
		case !errors.Is(err, fs.ErrNotExist):
			return fmt.Errorf("look for earlier results: %w", err)
		}
	}
	if len(e.files) > 0 {
		return e
	}
	return nil
}
