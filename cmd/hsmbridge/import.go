package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"hsmbridge/configs"
	"hsmbridge/daemon/importer"
)

func (a *app) importCommand() *cobra.Command {
	var all, renew, noProve, direct bool
	var expires, why string
	c := &cobra.Command{
		Use:   "import NAME...",
		Short: "Import managed keys into all their destinations and prove it",
		Long: `Import managed keys into all their destinations and prove that KMS holds the same key.

Run again, it finds what KMS holds, proves it again and imports only what has to be imported: material that is
missing, or whose life differs from what is asked for by more than a tenth. --renew imports in any case.

Where the daemon runs, it does the import, and this command waits for it. Where there is a daemon's database and no daemon answers, nothing
is imported. --direct imports in this process all the same: it does not know of pauses, backups and rotations, of revocations only while the daemon
answers, and takes the object that the configuration names.

A key with approval: in the configuration is imported when enough officers have signed the request that this command prints (exit code 9).

A destination that fails does not stop the others. See "hsmbridge help exit-codes".`,
		Example: "  hsmbridge import payments\n  hsmbridge import --all --json",
		RunE: func(c *cobra.Command, args []string) error {
			o, err := optionsOf(expires, renew, noProve)
			if err != nil {
				return err
			}
			if !direct {
				d, err := a.served(c.Context(), "nothing was imported")
				if err != nil {
					return err
				}
				if d != nil {
					return a.importByDaemon(c.Context(), d, args, all, o, why)
				}
			}
			return a.importKeys(c.Context(), args, all, o)
		},
	}
	f := c.Flags()
	f.BoolVar(&all, "all", false, "import every managed key")
	f.StringVar(&expires, "expires", "", "life of the material in KMS in place of the configuration's: 90d, 12h or never")
	f.BoolVar(&renew, "renew", false, "import again although KMS holds the material with the life asked for")
	f.BoolVar(&direct, "direct", false, "import in this process although the daemon runs")
	f.StringVar(&why, "why", "", "what officers read in the request, where the daemon has not asked them already")
	f.BoolVar(&noProve, "no-prove", false, "do not spend a second import on the proof of symmetric keys")
	return a.loginFlag(a.jsonFlag(c, "print one JSON object per destination, each on a line"))
}

func (a *app) importKeys(ctx context.Context, names []string, all bool, o importOptions) error {
	conn, keys, err := a.connectKeys(names, all)
	if err != nil {
		return err
	}
	revoked := conn.daemon.revoked(ctx, "")
	for _, k := range keys {
		switch state := revoked[k.Name]; {
		case state.Revoked() && all:
			fmt.Fprintf(a.err, "hsmbridge: %s; it is left out\n", state.Barred())
		case state.Revoked():
			return &exitError{exitRefused, fmt.Errorf("%s; nothing was imported", state.Barred())}
		}
	}
	keys = slices.DeleteFunc(keys, func(k configs.Key) bool { return revoked[k.Name].Revoked() })
	var results []importer.Result
	untouched := 0
	for i, k := range keys {
		if ctx.Err() != nil {
			untouched = len(keys) - i
			break
		}
		got := a.importKey(ctx, conn, keys, k, o)
		if ctx.Err() != nil && len(got) == 0 { // it waited for the token
			untouched = len(keys) - i
			break
		}
		results = append(results, got...)
		if !a.json {
			continue
		}
		for _, r := range got {
			if err := writeJSON(a.out, r); err != nil {
				return err
			}
		}
	}
	if err := conn.close(); err != nil {
		a.log.Warn("closing the tokens", zap.Error(err))
	}
	if !a.json {
		a.printResults(results)
	}
	switch code := resultsCode(results); {
	case ctx.Err() != nil && untouched > 0:
		fmt.Fprintf(a.err, "hsmbridge: interrupted; %d of %d keys were not begun: run it again, what KMS holds is looked at before anything is imported\n", untouched, len(keys))
		return shownInterrupt()
	case ctx.Err() != nil:
		return context.Canceled
	case code != exitDone:
		next := "what was imported stays, run the same command again for the rest"
		if len(conn.back) > 0 {
			next = "what was revoked meanwhile (" + strings.Join(conn.back, ", ") + ") is not to be imported again; the rest that was imported stays"
		}
		fmt.Fprintf(a.err, "hsmbridge: %s; %s\n", countBad(results), next)
		return &exitError{code, errShown}
	}
	return nil
}

// countBad says how many results are no success: KMS took nothing or something is wrong, or whether it took it is not known.
func countBad(results []importer.Result) string {
	failed, unknown := 0, 0
	for _, r := range results {
		switch {
		case r.Result == importer.Unknown:
			unknown++
		case r.Error != "":
			failed++
		}
	}
	var parts []string
	if failed > 0 || unknown == 0 {
		parts = append(parts, fmt.Sprintf("%d of %d destinations failed", failed, len(results)))
	}
	if unknown > 0 {
		parts = append(parts, fmt.Sprintf("for %d of %d destinations it is not known whether KMS took the key", unknown, len(results)))
	}
	return strings.Join(parts, ", ")
}

// importKey imports one of the run's keys to all its destinations. Without results, it was interrupted before anything was begun.
func (a *app) importKey(ctx context.Context, conn *connections, keys []configs.Key, k configs.Key, o importOptions) []importer.Result {
	var requests []importer.Request
	for _, d := range k.Destinations {
		requests = append(requests, request(conn.config, k, d, o))
	}
	if err := conn.needsDaemon(k, ""); err != nil { // before anybody logs in
		var out []importer.Result
		for _, r := range requests {
			out = append(out, importer.Failure(r, err))
		}
		return out
	}
	im, err := conn.importer(ctx, k.Token)
	if err != nil && ctx.Err() != nil {
		return nil
	}
	if err != nil {
		var out []importer.Result
		for _, r := range requests {
			out = append(out, importer.Failure(r, fmt.Errorf("open token %s: %w", k.Token, err)))
		}
		if err := conn.parked(k.Token, keys, err); err != nil && ctx.Err() == nil {
			a.complain(err)
		}
		return out
	}
	im.Record = a.record
	results := im.RunKey(ctx, requests)
	conn.bringsBack(ctx, k, results)
	return results
}

// record logs every step, and shows it to a person at a terminal.
func (a *app) record(_ context.Context, e importer.Event) error {
	fields := []zap.Field{zap.String("step", string(e.Step)), zap.String("key", e.Key), zap.String("destination", e.Destination)}
	for _, f := range e.Fields {
		fields = append(fields, zap.String(f.Name, f.Value))
	}
	a.log.Info(e.Message, fields...)
	a.say(e.Key, string(e.Step), printable(firstLine(e.Message)))
	return nil
}

// say is progress for a person; scripts see none of it.
func (a *app) say(key, step, message string) {
	if a.json || !isTerminal(a.err) || a.log.Core().Enabled(zap.InfoLevel) { // the log has it too
		return
	}
	fmt.Fprintf(a.err, "%-12s %-10s %s\n", key, step, cut(message, width-24))
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

// printResults prints the table, then for each destination where it went and why that way.
func (a *app) printResults(results []importer.Result) {
	var rows [][]string
	for _, r := range results {
		rows = append(rows, []string{
			r.Key, string(r.Result), dash(string(r.Algorithm)), dash(string(r.WrappingKeySpec)), dash(cutTo(r.WrappingKeySHA256, 16)), string(r.Proof), dash(cutTo(r.Expires, 10)),
		})
	}
	table(a.out, []string{"KEY", "RESULT", "WRAPPED WITH", "UNDER", "FINGERPRINT", "PROOF", "EXPIRES"}, rows)
	const indent = "               "
	why := map[string]string{} // the reasons told, and for which key
	for i, r := range results {
		together := sharing(results, i)
		if len(together) == 0 {
			continue
		}
		fmt.Fprintln(a.out)
		for _, t := range together {
			fmt.Fprintf(a.out, "%s -> %s\n", t.Key, t.Destination)
		}
		switch {
		case r.Result == importer.Unchanged && r.WrappingKeySHA256 == "":
			wrapped(a.out, "  why          ", indent, "KMS holds the key's material with the life that is asked for, within a tenth; nothing was wrapped")
		case r.Mechanism != "":
			reasons := fmt.Sprint(r.PassedOver)
			if before, told := why[reasons]; told && len(r.PassedOver) > 0 {
				wrapped(a.out, "  why          ", indent, whyText(r)+", for the reasons given with "+before+" above")
				break
			}
			why[reasons] = r.Key
			wrapped(a.out, "  why          ", indent, whyText(r))
			a.printPassedOver(r.PassedOver, indent)
		}
		for _, line := range [][2]string{
			{"wrapping key", prefixed("sha256 ", r.WrappingKeySHA256)},
			{"material ID", r.KeyMaterialID},
			{"check value", r.CheckValue},
			{"expires", r.Expires},
			{"unproved", r.ProofReason},
		} {
			if line[1] != "" {
				wrapped(a.out, fmt.Sprintf("  %-12s ", line[0]), indent, line[1])
			}
		}
		for _, n := range r.Notes {
			wrapped(a.out, "  note         ", indent, n)
		}
		if r.Error != "" {
			for i, line := range strings.Split(r.Error, "\n") {
				first := fmt.Sprintf("  %-12s ", errorLabel(r.Result))
				if i > 0 {
					first = indent
				}
				wrapped(a.out, first, indent, line)
			}
		}
	}
}

// errorLabel says what the error of a result is.
func errorLabel(o importer.Outcome) string {
	switch o {
	case importer.Waits, importer.Unknown:
		return string(o)
	default:
		return "error"
	}
}

// sharing are the result i and all that failed later with the same error before anything was decided, so that it is said once;
// none if result i is such a later one.
func sharing(results []importer.Result, i int) []importer.Result {
	same := func(r importer.Result) bool { return r.Error == results[i].Error && r.Mechanism == "" }
	switch {
	case results[i].Error == "" || results[i].Mechanism != "":
		return results[i : i+1]
	case slices.ContainsFunc(results[:i], same):
		return nil
	}
	var out []importer.Result
	for _, r := range results[i:] {
		if same(r) {
			out = append(out, r)
		}
	}
	return out
}

func whyText(r importer.Result) string {
	what := fmt.Sprintf("%s under %s, by %s", r.Algorithm, r.WrappingKeySpec, r.Mechanism)
	if r.Result == importer.Unchanged {
		what = "KMS holds it with the life that is asked for, within a tenth; it was wrapped for the proof alone: " + what
	}
	if r.PlanDigest == "" {
		return what + ", in the HSM room"
	}
	if len(r.PassedOver) == 0 {
		return what + ": AWS's first choice for this kind of key, and the token can do it"
	}
	return what + ": the best of what is left"
}

func prefixed(prefix, s string) string {
	if s == "" {
		return ""
	}
	return prefix + s
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func cutTo(s string, n int) string { return s[:min(n, len(s))] }
