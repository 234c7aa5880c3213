package main

import (
	"bufio"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"hsmbridge/daemon/approval"
	"hsmbridge/daemon/audit"
)

func (a *app) auditVerify() *cobra.Command {
	var keyFiles, kept []string
	var origin string
	var noKey bool
	c := &cobra.Command{
		Use: "verify FILE...", Short: "Check an exported log, a ceremony's log or a proof, with the public key alone",
		Long: `Check an exported log, or a proof by hsmbridge audit prove, with the public key alone: no daemon, no database, no configuration, no network.

Every record is held against its hash, its number and the signed checkpoints. What was edited, removed, inserted, doubled, moved or cut off
is told by number. A log that was rotated into several files is checked as one: name them in their order. - is standard input.

--key may be given again, where the log was signed by one key after another. --checkpoint names files with checkpoints that were kept
elsewhere: the log has to contain them. Without a checkpoint from elsewhere nobody can tell that the end of a log was cut off together with
its checkpoints, or that an older state of the log was put back.

--no-key checks hashes and numbers only, for the log of a ceremony in an HSM that has no key for it: it finds damage, and not who did it.

Exit codes: 0, the log is whole; 4, it is not; 2, a file cannot be read or is none.`,
		Example: "  hsmbridge audit verify log.jsonl --key audit.pem --checkpoint kept.txt\n  hsmbridge audit verify export.jsonl.1 export.jsonl --key audit.pem",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			var o audit.Options
			switch {
			case len(keyFiles) == 0 && !noKey:
				return usageError(errors.New("--key is missing: the file that hsmbridge audit key printed, kept away from the machine that made the log; --no-key checks hashes and numbers only"))
			case noKey && (len(keyFiles) > 0 || len(kept) > 0):
				return usageError(errors.New("--no-key and --key or --checkpoint do not go together: without a key nobody knows who signed a checkpoint"))
			}
			for _, name := range keyFiles {
				text, err := readSmall(name)
				if err != nil {
					return err
				}
				key, err := audit.ParseKey(text, origin)
				if err != nil {
					return usageError(fmt.Errorf("%s: %w", name, err))
				}
				o.Keys = append(o.Keys, key)
			}
			for _, name := range kept {
				c, err := readSmall(name)
				if err != nil {
					return err
				}
				o.Trusted = append(o.Trusted, string(c))
			}
			return a.verifyFiles(args, o)
		},
	}
	f := c.Flags()
	f.StringArrayVar(&keyFiles, "key", nil, "`file` with the public key; may be given again")
	f.StringVar(&origin, "origin", "", "the log's name, where the key file does not say it")
	f.StringArrayVar(&kept, "checkpoint", nil, "`file` with a checkpoint that was kept elsewhere; may be given again")
	f.BoolVar(&noKey, "no-key", false, "check hashes and numbers only")
	return a.jsonFlag(c, "print the report as JSON")
}

// verifyFiles checks files one behind the other.
func (a *app) verifyFiles(names []string, o audit.Options) error {
	var parts []io.Reader
	var open []*os.File
	defer func() {
		for _, f := range open {
			_ = f.Close() // it was only read
		}
	}()
	for _, name := range names {
		in := os.Stdin
		if name != "-" {
			f, err := os.Open(name)
			if err != nil {
				return usageError(err)
			}
			open = append(open, f)
			in = f
		}
		parts = append(parts, in, strings.NewReader("\n")) // the last line of a file may have no end
	}
	r := bufio.NewReaderSize(io.MultiReader(parts...), 1<<16)
	if begin, _ := r.Peek(64); audit.IsProof(begin) {
		if len(names) > 1 {
			return usageError(errors.New("a proof is checked by itself"))
		}
		return a.verifyProof(r, o)
	}
	report, err := audit.Verify(r, o)
	if err != nil {
		return &exitError{exitRefused, err}
	}
	if report.Records == 0 && report.Count == 0 {
		return &exitError{exitUsage, fmt.Errorf("%s has no record of an audit log: hsmbridge audit export writes one", strings.Join(names, ", "))}
	}
	if a.json {
		if err := writeJSON(a.out, struct {
			Whole bool `json:"whole"`
			audit.Report
		}{report.OK(), report}); err != nil {
			return err
		}
	} else {
		a.printReport(report, o)
	}
	if !report.OK() {
		return &exitError{exitRefused, errShown}
	}
	return nil
}

func (a *app) printReport(r audit.Report, o audit.Options) {
	fmt.Fprintf(a.out, "log         %s\nrecords     %d\ncheckpoints %d\n", printable(dash(r.Origin)), r.Records, r.Count)
	if r.Signed > 0 && len(o.Keys) > 0 {
		fmt.Fprintf(a.out, "signed      records 1 to %d, at %s\n", r.Signed, r.SignedAt.UTC().Format(time.RFC3339))
	}
	if r.Kept > 0 {
		fmt.Fprintf(a.out, "kept        records 1 to %d are those of the checkpoint that was kept elsewhere\n", r.Kept)
	}
	if r.Root != "" {
		fmt.Fprintf(a.out, "root        %s\n", r.Root)
		if root, err := base64.StdEncoding.DecodeString(r.Root); err == nil && len(o.Keys) == 0 {
			paper := ", as on the paper of a ceremony"
			if strings.HasPrefix(r.Origin, "hsmbridge/") {
				paper = "" // it is a daemon's log
			}
			fmt.Fprintf(a.out, "short       %s%s\n", approval.Short(root), paper)
		}
	}
	if r.Unknown > 0 {
		fmt.Fprintf(a.out, "unknown     %s of kinds of a later hsmbridge, checked like the others\n", counted(int(r.Unknown), "record"))
	}
	const shown = 50
	for _, p := range r.Problems[:min(len(r.Problems), shown)] {
		wrapped(a.out, "! ", "  ", p.Message)
	}
	if more := len(r.Problems) + r.More - shown; more > 0 {
		fmt.Fprintf(a.out, "! and %d more (--json lists them)\n", more)
	}
	switch {
	case !r.OK():
		fmt.Fprintln(a.out, "NOT WHOLE: the log was changed, or damaged")
		return
	case len(o.Keys) == 0:
		fmt.Fprintln(a.out, "whole by its own hashes; no key was given, so who wrote it cannot be told (--key)")
		return
	case r.Signed+1 == r.Records:
		fmt.Fprintf(a.out, "whole; record %d came after the last checkpoint and is not signed yet: it could still be changed\n", r.Records)
	case r.Signed < r.Records:
		fmt.Fprintf(a.out, "whole; the records %d to %d came after the last checkpoint and are not signed yet: they could still be changed\n", r.Signed+1, r.Records)
	default:
		fmt.Fprintln(a.out, "whole, and signed to its end")
	}
	if len(o.Trusted) == 0 {
		fmt.Fprintln(a.out, "no checkpoint from elsewhere was given: that nothing was cut off at the end cannot be told (--checkpoint)")
	}
}

func (a *app) verifyProof(r io.Reader, o audit.Options) error {
	const most = 8 << 20
	text, err := io.ReadAll(io.LimitReader(r, most))
	if err != nil {
		return fmt.Errorf("read the proof: %w", err)
	}
	if len(o.Keys) == 0 {
		return usageError(errors.New("a proof is worth nothing without the key (--key)"))
	}
	p, err := audit.ParseProof(text[:max(0, len(text)-1)]) // the line's end behind a file
	if err != nil {
		return &exitError{exitRefused, err}
	}
	record, c, err := p.Verify(o.Keys...)
	if err != nil {
		return &exitError{exitRefused, err}
	}
	if a.json {
		return writeJSON(a.out, struct {
			Proved   bool         `json:"proved"`
			Origin   string       `json:"origin"`
			Records  int64        `json:"records"` // of the log at that time
			SignedAt time.Time    `json:"signed_at"`
			Record   audit.Record `json:"record"`
		}{true, c.Origin, c.Size, c.Time, record})
	}
	if err := a.showRecord(p.Record); err != nil {
		return err
	}
	fmt.Fprintf(a.out, "\nproved: this is record %d of the log %s, which had %d records at %s\n", p.N, printable(c.Origin), c.Size, c.Time.UTC().Format(time.RFC3339))
	return nil
}
