package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"hsmbridge/daemon/audit"
	"hsmbridge/daemon/control"
	"hsmbridge/daemon/store"
)

func (a *app) auditCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "audit", Short: "The audit log: list, show, verify, prove and export its records",
		Long: `The audit log is a Merkle tree of everything that was asked for, approved, done and refused. Checkpoints of it are signed by a key in the HSM.

hsmbridge audit verify needs no daemon and no network: an exported file and the public key are enough.`,
		Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	for _, sub := range []*cobra.Command{a.auditList(), a.auditShow(), a.auditExport(), a.auditProve(), a.auditKey(), a.auditCheckpoint()} {
		sub.Flags().StringVar(&a.socket, "socket", "", "the daemon's control `socket`, in place of the configuration's")
		c.AddCommand(sub)
	}
	c.AddCommand(a.auditVerify())
	return c
}

func (a *app) auditList() *cobra.Command {
	var f store.EventFilter
	c := &cobra.Command{
		Use: "list", Short: "List records, oldest first", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.daemon()
			if err != nil {
				return err
			}
			var rows [][]string
			err = c.Events(cmd.Context(), f, false, func(e store.Event) error {
				if a.json {
					return writeJSON(a.out, e)
				}
				rows = append(rows, []string{strconv.FormatInt(e.ID, 10), e.Time.UTC().Format("2006-01-02 15:04:05"), e.Kind, e.Actor, dash(e.Key), cut(firstLine(e.Message), width-45)})
				return nil
			})
			if err != nil || a.json {
				return err
			}
			if len(rows) == 0 {
				return a.none(cmd.Context(), c, f.Key, "no records")
			}
			table(a.out, []string{"RECORD", "AT (UTC)", "KIND", "BY", "KEY", "WHAT"}, rows)
			return nil
		},
	}
	c.Flags().StringVar(&f.Key, "key", "", "only those of this key")
	c.Flags().Int64Var(&f.Job, "job", 0, "only those of this job")
	c.Flags().Int64Var(&f.After, "after", 0, "only those with a greater number")
	c.Flags().IntVar(&f.Last, "last", 50, "at most so many, the latest; 0: from the first on, 1000 at a time")
	return a.jsonFlag(c, "print one JSON object per record, each on a line")
}

func number(s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 1 {
		return 0, usageError(fmt.Errorf("%q is not the number of a record", s))
	}
	return n, nil
}

func (a *app) auditShow() *cobra.Command {
	c := &cobra.Command{
		Use: "show NUMBER", Short: "Show one record, whole", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := number(args[0])
			if err != nil {
				return err
			}
			c, err := a.daemon()
			if err != nil {
				return err
			}
			p, err := c.AuditPage(cmd.Context(), n, 1)
			if err != nil {
				return err
			}
			if len(p.Records) == 0 || p.Records[0].N != n {
				return &exitError{exitRefused, fmt.Errorf("there is no record %d: the log has %d", n, p.Size)}
			}
			raw := p.Records[0].Record
			if a.json {
				fmt.Fprintln(a.out, string(raw))
				return nil
			}
			return a.showRecord(raw)
		},
	}
	return a.jsonFlag(c, "print the record as it is hashed")
}

// showRecord prints a record for a person.
func (a *app) showRecord(raw []byte) error {
	r, err := audit.Decode(raw)
	var unknown *audit.UnknownKindError
	if err != nil && !errors.As(err, &unknown) {
		return err
	}
	job := ""
	if r.Job != 0 {
		job = strconv.FormatInt(r.Job, 10)
	}
	for _, line := range [][2]string{
		{"record", strconv.FormatInt(r.N, 10)},
		{"at", r.Time.UTC().Format(time.RFC3339Nano)},
		{"kind", string(r.Kind)},
		{"by", r.Actor},
		{"key", r.Key},
		{"destination", r.Destination},
		{"job", job},
		{"what", r.Message},
	} {
		if line[1] != "" {
			wrapped(a.out, fmt.Sprintf("%-22s ", line[0]), "                       ", line[1])
		}
	}
	fields, err := r.Fields()
	if err != nil {
		return err
	}
	for _, name := range audit.FieldNames(r.Kind) {
		v, ok := fields[name]
		switch {
		case !ok:
		case bytes.ContainsRune([]byte(v), '\n'):
			fmt.Fprintf(a.out, "%s:\n", name)
			for line := range bytes.Lines([]byte(v)) {
				fmt.Fprintln(a.out, "  "+printable(string(bytes.TrimRight(line, "\n"))))
			}
		default:
			wrapped(a.out, fmt.Sprintf("%-22s ", name), "                       ", v)
		}
	}
	leaf := audit.LeafHash(raw)
	fmt.Fprintf(a.out, "%-22s %s\n", "leaf hash", leaf)
	return nil
}

func (a *app) auditExport() *cobra.Command {
	return &cobra.Command{
		Use: "export [FILE]", Short: "Write the whole log, with its checkpoints, to a new file or standard output",
		Long: "Write the whole log, with its checkpoints, to a new file or to standard output: one JSON object a line, as hsmbridge audit verify reads it.",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			c, err := a.daemon()
			if err != nil {
				return err
			}
			if len(args) == 0 || args[0] == "-" {
				_, err := writeLog(cmd.Context(), c, a.out)
				return err
			}
			f, err := os.OpenFile(args[0], os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o640) //nolint:gosec // its group may read it
			if err != nil {
				return usageError(fmt.Errorf("the log was not exported: %w", err))
			}
			w := bufio.NewWriter(f)
			n, err := writeLog(cmd.Context(), c, w)
			if err = errors.Join(err, w.Flush(), f.Sync(), f.Close()); err != nil {
				return fmt.Errorf("the log was not exported whole: %w", err)
			}
			fmt.Fprintf(a.out, "written to %s: %s; hsmbridge audit verify %s checks it\n", args[0], counted(int(n), "record"), args[0])
			return nil
		},
	}
}

// writeLog writes the log as a file has it.
func writeLog(ctx context.Context, c *control.Client, w io.Writer) (n int64, err error) {
	for next := int64(1); ; {
		p, err := c.AuditPage(ctx, next, 0)
		if err != nil {
			return n, err
		}
		if len(p.Records) == 0 {
			return n, nil
		}
		at := 0
		for _, r := range p.Records {
			n, next = r.N, r.N+1
			lines := [][]byte{audit.RecordLine(r.N, r.Record)}
			for ; at < len(p.Checkpoints) && p.Checkpoints[at].Size <= r.N; at++ {
				lines = append(lines, audit.CheckpointLine(p.Checkpoints[at].Note))
			}
			for _, l := range lines {
				if _, err := w.Write(append(l, '\n')); err != nil {
					return n, fmt.Errorf("write the log: %w", err)
				}
			}
		}
	}
}

func (a *app) auditProve() *cobra.Command {
	return &cobra.Command{
		Use: "prove NUMBER", Short: "Print the proof that a record is in the log of the latest signed checkpoint",
		Long: "Print the proof that a record is in the log of the latest signed checkpoint: the record, the hashes between it and the root, and the checkpoint. hsmbridge audit verify checks it with the public key, without the other records.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := number(args[0])
			if err != nil {
				return err
			}
			c, err := a.daemon()
			if err != nil {
				return err
			}
			proof, err := c.AuditProof(cmd.Context(), n)
			if err != nil {
				return err
			}
			_, err = io.WriteString(a.out, proof)
			return err
		},
	}
}

func (a *app) auditKey() *cobra.Command {
	return &cobra.Command{
		Use: "key", Short: "Print the public key by which checkpoints are verified",
		Long: "Print the public key by which checkpoints are verified. Keep it away from this machine: whoever verifies with a key from the machine that made the log verifies nothing.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.daemon()
			if err != nil {
				return err
			}
			k, err := c.AuditKey(cmd.Context())
			if err != nil {
				return err
			}
			_, err = io.WriteString(a.out, k.PEM)
			return err
		},
	}
}

func (a *app) auditCheckpoint() *cobra.Command {
	var now bool
	c := &cobra.Command{
		Use: "checkpoint", Short: "Print the latest signed checkpoint; with --now sign one",
		Long: "Print the latest signed checkpoint; with --now have the daemon sign one. Kept elsewhere, it shows later that nothing was cut off: hsmbridge audit verify --checkpoint FILE.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.daemon()
			if err != nil {
				return err
			}
			p, err := c.AuditCheckpoint(cmd.Context(), now)
			if err != nil {
				return err
			}
			_, err = io.WriteString(a.out, p.Note)
			return err
		},
	}
	c.Flags().BoolVar(&now, "now", false, "sign one now")
	return c
}
