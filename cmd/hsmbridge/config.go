package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"hsmbridge/configs"
	"hsmbridge/daemon/pin"
)

func (a *app) configCommand() *cobra.Command {
	config := &cobra.Command{Use: "config", Short: "Check, describe and start a configuration", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
	config.AddCommand(
		a.jsonFlag(&cobra.Command{
			Use: "check [FILE]", Short: "Name file, line and column of every mistake in the configuration", Args: cobra.MaximumNArgs(1),
			Long: `Name file, line and column of every mistake in the configuration. What the daemon needs beside it is looked at too: a module, a pin_file or pin_command,
or the folder of a copy of the audit log (audit.export) that is not there as it has to be is a warning, and one that this user may not look at, or
that may be good for this user alone, a note. No PIN is read. Best run it as the daemon's user.

A configuration names no fleet, and a fleet (FLEET.yaml, FLEET.csv) is no configuration: hsmbridge adopt FLEET --dry-run names every mistake in one, and
says whether the configuration would take its keys.`,
			RunE: func(_ *cobra.Command, args []string) error {
				if len(args) == 1 {
					a.configFile = args[0]
				}
				return a.checkConfig()
			},
		}, "print the mistakes as JSON, one a line"),
		a.policyCommand(),
		&cobra.Command{
			Use: "schema", Short: "Print the JSON Schema of the configuration, for editors", Args: cobra.NoArgs,
			RunE: func(*cobra.Command, []string) error {
				_, err := a.out.Write(configs.Schema())
				return err
			},
		},
		&cobra.Command{
			Use: "init [FILE]", Short: "Write a commented sample configuration to FILE, or print it", Args: cobra.MaximumNArgs(1),
			Long: "Write a commented sample configuration to FILE, which must not exist, or print it.",
			RunE: func(_ *cobra.Command, args []string) error { return a.initConfig(args) },
		},
	)
	return config
}

func (a *app) checkConfig() error {
	c, err := a.load()
	var bad *configs.Error
	wrong := errors.As(err, &bad)
	if wrong && a.json {
		for _, p := range bad.Problems {
			if err := writeJSON(a.out, p); err != nil {
				return err
			}
		}
		return &exitError{exitConfig, errShown}
	}
	if wrong && maybeFleet(bad) {
		return severalErrors{err, &advised{a.configFile + " is no configuration", "if it is a fleet, check it with: hsmbridge -c CONFIGURATION adopt " + a.configFile + " --dry-run"}}
	}
	if err != nil {
		return err
	}
	a.warnTokens(c)
	a.warnExports(c)
	if !a.json {
		destinations := 0
		for _, k := range c.Keys {
			destinations += len(k.Destinations)
		}
		fmt.Fprintf(a.out, "%s is good: %s, %s, %s\n", a.configFile, counted(len(c.Tokens), "token"), counted(len(c.Keys), "key"), counted(destinations, "destination"))
	}
	return nil
}

// maybeFleet says that what is no configuration may be meant as a fleet: a table, or keys without tokens.
func maybeFleet(bad *configs.Error) bool {
	return strings.EqualFold(filepath.Ext(bad.File), ".csv") || slices.ContainsFunc(bad.Problems, func(p configs.Problem) bool { return p.Path == "tokens" && p.Message == "tokens is missing" })
}

// warnTokens says which modules and PINs of the tokens that the daemon reaches are not there as it needs them. It is no mistake of the configuration: the
// daemon may be on another machine. No PIN is read.
func (a *app) warnTokens(c *configs.Config) {
	for _, name := range c.Reached() {
		t, _ := c.Token(name)
		info, err := os.Stat(t.Module)
		if err == nil && info.IsDir() {
			err = errors.New(t.Module + " is a folder")
		}
		if err != nil {
			a.warnToken(name, fmt.Errorf("module: %w", err))
		}
		if err := pin.Look(t); err != nil {
			a.warnToken(name, err)
		}
		for _, n := range pin.Notes(t) {
			fmt.Fprintf(a.err, "hsmbridge: note: token %s: %s\n", name, printable(n))
		}
	}
}

// warnToken says what of a token is not there. What this user may not see may be as it has to be for the daemon's.
func (a *app) warnToken(name string, err error) {
	var owner *pin.OwnerError
	switch {
	case errors.As(err, &owner):
		fmt.Fprintf(a.err, "hsmbridge: note: token %s: pin_file %s belongs to user %d: it is used only where the daemon runs as that user\n", name, printable(owner.Path), owner.UID)
	case errors.Is(err, fs.ErrPermission):
		fmt.Fprintf(a.err, "hsmbridge: note: token %s: %s; it was not looked at: check it as the daemon's user\n", name, printable(err.Error()))
	default:
		fmt.Fprintf(a.err, "hsmbridge: warning: token %s cannot be used: %s\n", name, printable(err.Error()))
	}
}

// warnExports says which files of the audit log have no folder on this machine. It is no mistake: the daemon may be on another one.
func (a *app) warnExports(c *configs.Config) {
	for _, e := range c.Audit.Export {
		if e.File == "" {
			continue
		}
		what := "the log cannot be copied there"
		if e.Required {
			what = "the daemon does not start (required: true)"
		}
		folder := filepath.Dir(e.File)
		info, err := os.Stat(folder)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			fmt.Fprintf(a.err, "hsmbridge: warning: audit.export: there is no folder %s on this machine: without it %s; make it for the daemon's user\n", folder, what)
		case err == nil && !info.IsDir():
			fmt.Fprintf(a.err, "hsmbridge: warning: audit.export: %s is no folder: %s\n", folder, what)
		}
	}
}

func (a *app) initConfig(args []string) error {
	if len(args) == 0 || args[0] == "-" {
		_, err := a.out.Write(configs.Sample())
		return err
	}
	f, err := os.OpenFile(args[0], os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return &exitError{exitConfig, fmt.Errorf("%s exists and was left as it is; name another file", args[0])}
	}
	if err != nil {
		return &exitError{exitConfig, err}
	}
	if _, err := f.Write(configs.Sample()); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := f.Close(); err != nil {
		return err
	}
	fmt.Fprintf(a.out, "wrote %s; edit it, then run: hsmbridge -c %s config check\n", args[0], args[0])
	return nil
}
