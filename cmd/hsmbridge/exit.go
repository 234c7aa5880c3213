package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"hsmbridge/daemon/control"
	"hsmbridge/daemon/importer"
)

// The exit codes. Scripts may rely on them.
const (
	exitDone        = 0
	exitUnexpected  = 1
	exitUsage       = 2
	exitConfig      = 3
	exitRefused     = 4
	exitToken       = 5
	exitKMS         = 6
	exitPartly      = 7
	exitApproval    = 9
	exitInterrupted = 130
)

// exitTable documents them.
func exitTable() []struct {
	code    int
	meaning string
} {
	return []struct {
		code    int
		meaning string
	}{
		{exitDone, "done; what was asked for holds, also when nothing had to be changed"},
		{exitUnexpected, "an error that fits none of the others, or several that do not fit the same one; no daemon answers"},
		{exitUsage, "the command line is wrong, nothing was done; a file that is named there cannot be read or written (audit verify, audit export)"},
		{exitConfig, "the configuration is wrong or cannot be read; nothing was done"},
		{exitRefused, "refused: this key, destination or permission has to be changed first; there is nothing like that; another daemon has the database; a log is not whole (audit verify)"},
		{exitToken, "the token: PIN refused or parked, not there, session or module broken"},
		{exitKMS, "AWS KMS: not reachable, throttled, in the wrong state, it holds another key, or does not show whether it took this one"},
		{exitPartly, "some destinations or keys are done and some are not; adopt: some keys need a person; the output says which"},
		{exitApproval, "officers have to approve it and were asked; nothing is lost, and it goes on by itself when they have"},
		{exitInterrupted, "interrupted"},
	}
}

func exitCodesTopic() *cobra.Command {
	var b strings.Builder
	for _, e := range exitTable() {
		fmt.Fprintf(&b, "  %3d  %s\n", e.code, e.meaning)
	}
	return &cobra.Command{Use: "exit-codes", Short: "What the exit codes mean", Long: "Exit codes:\n\n" + strings.TrimRight(b.String(), "\n")}
}

// exitError is an error with the exit code that it causes.
type exitError struct {
	code int
	err  error
}

// advised is an error that ends with what to do next, which is then told on a line of its own.
type advised struct{ what, next string }

func (e *advised) Error() string { return e.what + "; " + e.next }

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

// Class is the error class that leads to the exit code, so that results carry it too.
func (e *exitError) Class() string {
	if e.code == exitToken {
		return "token"
	}
	return importer.Class(e.err)
}

func usageError(err error) error { return &exitError{exitUsage, err} }

// errShown ends a command whose output says already what went wrong.
var errShown = errors.New("shown")

// shownInterrupt ends a command that was interrupted and has said so, or need not.
func shownInterrupt() error { return fmt.Errorf("%w: %w", errShown, context.Canceled) }

// exit prints what went wrong, if anything, and gives the exit code.
func (a *app) exit(ctx context.Context, err error) int {
	if k, ok := a.out.(*keeper); ok && k.err != nil && err == nil {
		err = fmt.Errorf("the output could not be written: %w", k.err)
	}
	if err == nil {
		return exitDone
	}
	interrupted := ctx.Err() != nil && errors.Is(err, context.Canceled)
	if !errors.Is(err, errShown) && !interrupted {
		a.complain(err)
	}
	if interrupted && errors.Is(err, errShown) {
		return exitInterrupted
	}
	if interrupted {
		fmt.Fprintln(a.err, "hsmbridge: interrupted; run it again: what KMS holds is looked at before anything is imported")
		return exitInterrupted
	}
	return codeOf(err)
}

func codeOf(err error) int {
	var e *exitError
	if errors.As(err, &e) {
		return e.code
	}
	if strings.HasPrefix(err.Error(), "unknown command") || strings.HasPrefix(err.Error(), "accepts ") || strings.HasPrefix(err.Error(), "requires ") {
		return exitUsage // cobra has no types for these
	}
	return classCode(importer.Class(err))
}

// classCode is the exit code of an error class.
func classCode(class string) int {
	switch class {
	case "caller":
		return exitRefused
	case "session", "token", "library":
		return exitToken
	case "kms":
		return exitKMS
	case control.ClassApproval:
		return exitApproval
	}
	return exitUnexpected
}

// resultsCode is the exit code of an import's results.
func resultsCode(results []importer.Result) int {
	bad, code := 0, exitDone
	for _, r := range results {
		if r.Error == "" {
			continue
		}
		bad++
		if c := classCode(r.ErrorClass); code == exitDone || c == code {
			code = c
		} else {
			code = exitUnexpected
		}
	}
	if bad > 0 && bad < len(results) {
		return exitPartly
	}
	return code
}
