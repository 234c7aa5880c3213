package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"

	"hsmbridge/daemon/importer"
)

func TestResultsCode(t *testing.T) {
	done := importer.Result{}
	failed := func(class string) importer.Result { return importer.Result{Error: "x", ErrorClass: class} }
	for _, tt := range []struct {
		name    string
		results []importer.Result
		want    int
	}{
		{"nothing to do", nil, exitDone},
		{"all done", []importer.Result{done, done}, exitDone},
		{"refused", []importer.Result{failed("caller")}, exitRefused},
		{"all refused", []importer.Result{failed("caller"), failed("caller"), failed("caller")}, exitRefused},
		{"KMS", []importer.Result{failed("kms"), failed("kms")}, exitKMS},
		{"KMS does not show whether it took it", []importer.Result{{Result: importer.Unknown, Error: "x", ErrorClass: "kms"}}, exitKMS},
		{"of one of them that is not known", []importer.Result{done, {Result: importer.Unknown, Error: "x", ErrorClass: "kms"}}, exitPartly},
		{"token", []importer.Result{failed("token")}, exitToken},
		{"session and module are the token's too", []importer.Result{failed("session"), failed("token"), failed("library")}, exitToken},
		{"no class", []importer.Result{failed("")}, exitUnexpected},
		{"unknown class", []importer.Result{failed("weather")}, exitUnexpected},
		{"different reasons", []importer.Result{failed("caller"), failed("kms")}, exitUnexpected},
		{"different reasons, the first again", []importer.Result{failed("caller"), failed("kms"), failed("caller")}, exitUnexpected},
		{"no class, then one", []importer.Result{failed(""), failed("token")}, exitUnexpected},
		{"the first failed", []importer.Result{failed("kms"), done}, exitPartly},
		{"the last failed", []importer.Result{done, done, failed("token")}, exitPartly},
		{"one done of many reasons", []importer.Result{failed("caller"), failed("kms"), done}, exitPartly},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := resultsCode(tt.results); got != tt.want {
				t.Errorf("exit code %d, want %d", got, tt.want)
			}
		})
	}
}

// classed is an error as packages hsm and kmsclient make them.
type classed string

func (c classed) Error() string { return "class " + string(c) }
func (c classed) Class() string { return string(c) }

func TestExit(t *testing.T) {
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	const interrupted = "hsmbridge: interrupted; run it again: what KMS holds is looked at before anything is imported\n"
	for _, tt := range []struct {
		name string
		ctx  context.Context
		err  error
		code int
		said string
	}{
		{"no error", t.Context(), nil, exitDone, ""},
		{"no error at the last moment", cancelled, nil, exitDone, ""},
		{"caller", t.Context(), fmt.Errorf("payments: %w", classed("caller")), exitRefused, "hsmbridge: payments: class caller\n"},
		{"session", t.Context(), classed("session"), exitToken, "hsmbridge: class session\n"},
		{"token", t.Context(), errors.Join(errors.New("a"), classed("token")), exitToken, "hsmbridge: a\nclass token\n"},
		{"library", t.Context(), classed("library"), exitToken, "hsmbridge: class library\n"},
		{"KMS", t.Context(), classed("kms"), exitKMS, "hsmbridge: class kms\n"},
		{"no class", t.Context(), errors.New("x"), exitUnexpected, "hsmbridge: x\n"},
		{"its own code", t.Context(), fmt.Errorf("a: %w", &exitError{exitPartly, errors.New("b")}), exitPartly, "hsmbridge: a: b\n"},
		{"its own code before the class", t.Context(), &exitError{exitPartly, classed("kms")}, exitPartly, "hsmbridge: class kms\n"},
		{"said already", t.Context(), &exitError{exitPartly, errShown}, exitPartly, ""},
		{"usage", t.Context(), usageError(errors.New("x")), exitUsage, "hsmbridge: x\nsee: hsmbridge import --help\n"},
		{"usage, as cobra says it", t.Context(), errors.New("unknown command \"x\" for \"hsmbridge\""), exitUsage, "hsmbridge: unknown command \"x\" for \"hsmbridge\"\nsee: hsmbridge import --help\n"},
		{"interrupted", cancelled, context.Canceled, exitInterrupted, interrupted},
		{"failed before the interruption", cancelled, classed("kms"), exitKMS, "hsmbridge: class kms\n"},
		{"a cancellation that is not ours", t.Context(), context.Canceled, exitUnexpected, "hsmbridge: context canceled\n"},
		{"no escape sequences", t.Context(), errors.New("a\x1b[2J"), exitUnexpected, `hsmbridge: a\u001b[2J` + "\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var said bytes.Buffer
			a := &app{err: &said, used: "hsmbridge import"}
			if got := a.exit(tt.ctx, tt.err); got != tt.code {
				t.Errorf("exit code %d, want %d", got, tt.code)
			}
			if said.String() != tt.said {
				t.Errorf("said %q, want %q", said.String(), tt.said)
			}
		})
	}
}

// TestExitTable: every code is documented, once.
func TestExitTable(t *testing.T) {
	seen := map[int]bool{}
	for _, e := range exitTable() {
		if seen[e.code] || e.meaning == "" {
			t.Errorf("exit code %d stands twice or has no meaning", e.code)
		}
		seen[e.code] = true
	}
	for _, code := range []int{exitDone, exitUnexpected, exitUsage, exitConfig, exitRefused, exitToken, exitKMS, exitPartly, exitInterrupted} {
		if !seen[code] {
			t.Errorf("exit code %d is not documented", code)
		}
	}
}
