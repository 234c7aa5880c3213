package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"hsmbridge/configs"
	"hsmbridge/daemon/adopt"
)

// adoption is one run of adopt with a file.
type adoption struct {
	*app
	o       adoptOptions
	c       *configs.Config
	file    string
	rows    []adopt.Row    // that are new for the configuration
	failed  []error        // keys that need a person
	told    adopt.Problems // the same, of the file's rows
	created int            // KMS keys
	had     int            // rows that the configuration has as the file says
	refused bool           // there are mistakes, and rows are only looked at for more of them
	ended   bool           // all KMS keys are there that could be made
}

func (a *app) adopt(ctx context.Context, file string, o adoptOptions) error {
	c, err := a.load()
	if err != nil {
		return err
	}
	rows, bad, err := a.fleet(c, file, &o)
	if err != nil {
		return err
	}
	n := &adoption{app: a, o: o, c: c, file: file, refused: len(bad) > 0}
	n.sort(rows)
	if len(bad) > 0 { // what else is wrong is told with it
		more, err := n.problems(n.rows)
		if err != nil {
			return err
		}
		return wrong(file, slices.Concat(bad, more, n.told))
	}
	err = n.run(ctx, len(rows))
	if err != nil && ctx.Err() != nil && !n.ended {
		fmt.Fprintf(a.err, "hsmbridge: interrupted: %s created, and nothing was written; run the same command again: it finds what was created, and creates none twice\n", counted(n.created, "KMS key"))
		return shownInterrupt()
	}
	return err
}

// sort tells the rows that are new from those that the configuration has, and from those with which nothing can be done.
func (n *adoption) sort(rows []adopt.Row) {
	var aliases []string // of keys that are in the configuration already
	for _, r := range rows {
		for i := range r.Destinations {
			n.assume(&r.Destinations[i])
		}
		k, there := n.c.Key(r.Name)
		if !there {
			missing := adopt.Missing(r)
			switch {
			case n.o.create || len(missing) == 0:
			case len(r.Destinations) == 0:
				n.fail(r, "has no destination: name KMS keys, or create them with --create-kms-keys")
			default:
				n.fail(r, "has no destination in "+strings.Join(missing, ", ")+": name the KMS key, or create it with --create-kms-keys")
			}
			if n.o.create || len(missing) == 0 || n.refused { // what else is wrong with one that is refused is told too
				n.rows = append(n.rows, r)
			}
			continue
		}
		if differs := adopt.Differ(r, k, n.file); len(differs) > 0 {
			n.fail(r, "is in the configuration already and differs: "+strings.Join(differs, "; ")+"; nothing was changed for it: correct one of the two")
			continue
		}
		n.had++
		if r.Alias != "" {
			aliases = append(aliases, r.Name)
		}
	}
	if len(aliases) > 0 {
		fmt.Fprintf(n.err, "hsmbridge: note: no alias is set or looked at for what is in the configuration already: %s\n", few(aliases))
	}
}

// fail notes a row that needs a person.
func (n *adoption) fail(r adopt.Row, what string) {
	if n.refused {
		n.told = append(n.told, adopt.Problem{Name: r.Name, Line: r.Line, What: "it " + what})
		return
	}
	n.failed = append(n.failed, fmt.Errorf("%s %s", r.Name, what))
}

// assume gives a destination the role of the flags, if it has none.
func (n *adoption) assume(d *adopt.Destination) {
	if d.RoleARN == "" && n.o.roleARN != "" {
		d.RoleARN, d.ExternalID = n.o.roleARN, n.o.externalID
	}
}

func (n *adoption) run(ctx context.Context, all int) error {
	creator := &adopt.Creator{Client: func(ctx context.Context, region string) (adopt.KMS, error) { return n.place(ctx, n.c, region, n.o) }}
	if n.o.policy != "" {
		policy, err := readSmall(n.o.policy)
		if err != nil {
			return err
		}
		creator.Policy = string(policy)
	}
	if err := n.writable(n.o); err != nil {
		return err
	}
	if err := n.check(n.rows); err != nil {
		return err
	}
	if n.o.create {
		if err := n.look(ctx, creator); err != nil {
			return err
		}
	}
	list, err := n.create(ctx, creator)
	if err != nil {
		return err
	}
	n.ended = true
	made := "created"
	if n.o.dryRun {
		made = "would be created"
	}
	fmt.Fprintf(n.err, "%s, %d new for the configuration, %s %s\n", counted(all, "key"), len(list), counted(n.created, "KMS key"), made)
	if len(list) > 0 || len(n.failed) == 0 {
		if err := n.result(list, n.o); err != nil {
			return err
		}
	}
	if len(n.failed) == 0 {
		return nil
	}
	for _, err := range n.failed {
		n.complain(err)
	}
	others := ""
	if !n.o.dryRun && len(list)+n.had > 0 {
		others = "; the others are done"
	}
	need := "keys need"
	if len(n.failed) == 1 {
		need = "key needs"
	}
	return &exitError{exitPartly, &advised{
		fmt.Sprintf("%d %s a person: see above%s", len(n.failed), need, others),
		"correct what is said of each, then run the same command again: what is done is left as it is",
	}}
}

// check holds that the configuration takes the rows, with placeholders for the KMS keys that are not there.
func (n *adoption) check(rows []adopt.Row) error {
	problems, err := n.problems(rows)
	if err != nil {
		return err
	}
	return wrong(n.file, problems)
}

// problems are what is wrong with the values of the rows.
func (n *adoption) problems(rows []adopt.Row) (adopt.Problems, error) {
	out := append(adopt.CheckCreation(rows), adopt.Taken(rows, n.c, filepath.Base(n.configFile))...)
	list := make([]adopt.Proposal, 0, len(rows))
	for i, r := range rows {
		if n.o.create || len(r.Destinations) == 0 {
			r = adopt.Whole(adopt.Sound(r, cmp.Or(n.c.KMS.Region, "us-east-1")), i, n.o.roleARN)
			for j := range r.Destinations {
				n.assume(&r.Destinations[j])
			}
		}
		list = append(list, adopt.Proposal{Row: r})
	}
	more, err := n.app.problems(n.c, list, n.o.appendTo)
	return append(out, more...), err
}

// look finds the KMS keys that are there, and checks the configuration with them: one may be fed by another key. It creates nothing.
func (n *adoption) look(ctx context.Context, creator *adopt.Creator) error {
	creator.DryRun = true
	var rows []adopt.Row
	found := false
	for _, r := range n.rows {
		before := len(r.Destinations)
		known, _, err := creator.Ensure(ctx, r)
		var other *adopt.ExistsError
		switch {
		case errors.As(err, &other):
			n.failed = append(n.failed, err)
			continue
		case err != nil:
			return fmt.Errorf("nothing was created: %w", err)
		}
		found = found || len(known.Destinations) > before
		rows = append(rows, known)
	}
	if found {
		if err := n.check(rows); err != nil {
			return err
		}
	}
	kept := n.rows[:0]
	for _, r := range n.rows { // those that fit, as they were
		if len(kept) < len(rows) && rows[len(kept)].Name == r.Name {
			kept = append(kept, r)
		}
	}
	n.rows = kept
	return nil
}

// create gives the rows their KMS keys.
func (n *adoption) create(ctx context.Context, creator *adopt.Creator) ([]adopt.Proposal, error) {
	creator.DryRun = n.o.dryRun
	creator.Did = func(what string) { fmt.Fprintln(n.err, what) }
	told := n.meter("adopting keys")
	list := make([]adopt.Proposal, 0, len(n.rows))
	for i, r := range n.rows {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if n.o.create {
			ensured, made, err := creator.Ensure(ctx, r)
			r = ensured
			n.created += made
			if err != nil && ctx.Err() != nil {
				return nil, err
			}
			if err != nil {
				n.failed = append(n.failed, err)
				continue
			}
		}
		for j := range r.Destinations {
			n.assume(&r.Destinations[j])
		}
		list = append(list, adopt.Proposal{Row: r})
		told(i+1, len(n.rows))
	}
	return list, nil
}

// fleet reads the file and fills in what the flags say. What is wrong with rows comes beside those with which nothing is, as far as could be seen.
func (a *app) fleet(c *configs.Config, file string, o *adoptOptions) ([]adopt.Row, adopt.Problems, error) {
	fleet, bad, err := parseFleet(file)
	if err != nil {
		return nil, nil, err
	}
	o.create = o.create || fleet.CreateKMSKeys
	if o.token == "" && len(c.Tokens) == 1 {
		o.token = c.Tokens[0].Name
	}
	flags := adopt.Row{Token: o.token, Expires: o.expires, Generate: configs.Generate(o.generate), Regions: o.regions, Alias: o.alias, MultiRegion: o.multiRegion, Tags: map[string]string{}}
	for _, t := range o.tags {
		k, v, ok := strings.Cut(t, "=")
		if !ok {
			return nil, nil, usageError(fmt.Errorf("--tag %q is not name=value", t))
		}
		flags.Tags[k] = v
	}
	if token := fleet.Defaults.Token; token != "" && !knownToken(c, token) && len(c.Tokens) > 0 {
		bad = append(bad, adopt.Problem{Line: fleet.Defaults.Line, What: fmt.Sprintf("defaults: there is no token %q%s", token, configured(token, tokenNames(c)))})
		fleet.Defaults.AssumeToken(c.Tokens[0].Name)
	}
	for i, r := range fleet.Keys {
		if token := cmp.Or(r.Token, fleet.Defaults.Token, o.token); token != "" && !knownToken(c, token) {
			bad = append(bad, adopt.Problem{Name: r.Name, Line: r.Line, What: fmt.Sprintf("there is no token %q%s", token, configured(token, tokenNames(c)))})
			if len(c.Tokens) > 0 {
				fleet.Keys[i].AssumeToken(c.Tokens[0].Name)
			}
		}
	}
	fleet, err = fleet.Complete(flags)
	var lacking adopt.Problems
	if err != nil && !errors.As(err, &lacking) {
		return nil, nil, usageError(fmt.Errorf("%s: %w", file, err))
	}
	bad = append(bad, lacking...)
	return fleet.Keys, bad, nil
}

func knownToken(c *configs.Config, name string) bool {
	_, ok := c.Token(name)
	return ok
}

// parseFleet reads the file. An error is that it is no fleet.
func parseFleet(file string) (fleet adopt.Fleet, bad adopt.Problems, err error) {
	const most = 64 << 20
	f, err := os.Open(file)
	if err != nil {
		return fleet, nil, usageError(err)
	}
	defer f.Close() //nolint:errcheck // it was only read
	text, err := io.ReadAll(io.LimitReader(f, most+1))
	if err != nil {
		return fleet, nil, usageError(err)
	}
	if len(text) > most {
		return fleet, nil, usageError(fmt.Errorf("%s: the file is longer than 64 MiB", file))
	}
	switch ext := strings.ToLower(filepath.Ext(file)); ext {
	case ".csv":
		fleet, err = adopt.ParseCSV(text)
	case ".yaml", ".yml":
		fleet, err = adopt.ParseYAML(text)
	default:
		return fleet, nil, usageError(fmt.Errorf("%s: a fleet is a .csv or a .yaml file, not %q", file, ext))
	}
	switch {
	case errors.As(err, &bad):
	case err != nil:
		return fleet, nil, &exitError{exitConfig, fmt.Errorf("%s: %w; nothing was created or written", file, err)}
	}
	return fleet, bad, nil
}

func theToken(c *configs.Config, name string) (string, error) {
	if name == "" && len(c.Tokens) == 1 {
		return c.Tokens[0].Name, nil
	}
	if name == "" {
		return "", usageError(fmt.Errorf("--token is missing: the configuration has %s", strings.Join(tokenNames(c), ", ")))
	}
	return name, knownTokens(c, []string{name})
}

func life(value *string, otherwise string) error {
	if *value == "" {
		*value = otherwise
	}
	var d configs.Duration
	if err := d.UnmarshalText([]byte(*value)); err != nil {
		return usageError(fmt.Errorf("--expires: %w", err))
	}
	return nil
}
