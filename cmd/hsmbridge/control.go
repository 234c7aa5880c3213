package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"hsmbridge/daemon/control"
	"hsmbridge/daemon/store"
)

// defaultConfig is where the packages put the configuration.
const defaultConfig = "/etc/hsmbridge/hsmbridge.yaml"

// defaultSocket is where a daemon listens whose configuration does not say so.
const defaultSocket = "/run/hsmbridge/control.sock"

// client asks the daemon of a socket, and says once that it does not answer, as one that is stopped. It waits on: some answers take long.
func (a *app) client(socket string) *control.Client {
	wait := cmp.Or(a.patience, patience)
	return control.NewClient(socket).Slow(wait, func() {
		if !a.slow {
			fmt.Fprintf(a.err, "hsmbridge: the daemon on %s took the request and has not answered for %s; this waits on: Ctrl-C ends this command alone\n", socket, wait)
		}
		a.slow = true
	})
}

// daemon is the client of the running daemon: on --socket, else where the configuration says, else in the default place.
func (a *app) daemon() (*control.Client, error) {
	if a.socket != "" {
		return a.client(a.socket), nil
	}
	c, err := a.load()
	var exit *exitError
	switch {
	case err == nil:
		return a.client(c.ControlSocket()), nil
	case errors.Is(err, os.ErrPermission), a.configFile == "" && errors.As(err, &exit) && exit.code == exitUsage:
		return a.client(defaultSocket), nil // who may ask need not read the configuration
	case a.configFile == defaultConfig:
		fmt.Fprintf(a.err, "hsmbridge: %s is wrong (hsmbridge config check says where); the daemon on %s is asked all the same\n", defaultConfig, defaultSocket)
		return a.client(defaultSocket), nil
	case errors.As(err, &exit) && exit.code == exitConfig:
		return nil, severalErrors{err, errors.New("so the daemon's control socket is not known; name it by --socket to ask the daemon all the same")}
	}
	return nil, err
}

// controlCommands are the commands that talk to the daemon.
func (a *app) controlCommands() []*cobra.Command {
	list := []*cobra.Command{
		a.statusCommand(), a.jobsCommand(), a.eventsCommand(),
		a.startCommand(store.KindRotate, false, "rotate NAME...", "Make new key material in the token and rotate the KMS keys to it"),
		a.startCommand(store.KindImport, true, "drill NAME...", "Import the same material again: proof that the token's copy still works"),
		a.startCommand(store.KindReconcile, false, "reconcile [NAME...]", "Write down again what KMS and the token hold, after the database was lost"),
		a.pauseCommand(), a.resumeCommand(), a.retryCommand(), a.revokeCommand(), a.restoreCommand(), a.waiveCommand(), a.reloadCommand(), a.backupCommand(),
	}
	list = append(list, a.approvalCommands()...)
	for _, c := range list {
		c.GroupID = groupDaemon
		c.Flags().StringVar(&a.socket, "socket", "", "the daemon's control `socket`, in place of the configuration's")
	}
	return list
}

const groupDaemon = "daemon"

// each asks the daemon for something about every name.
func (a *app) each(names []string, done string, f func(c *control.Client, name string) error) error {
	return a.eachSays(names, func(c *control.Client, n string) (string, error) { return done, f(c, n) })
}

// eachSays is each where what was done can differ.
func (a *app) eachSays(names []string, f func(c *control.Client, name string) (done string, err error)) error {
	c, err := a.daemon()
	if err != nil {
		return err
	}
	bad, code, wrongly := 0, exitDone, false
	for _, n := range names {
		done, err := f(c, n)
		var down *control.NoDaemonError
		switch {
		case err == nil:
			fmt.Fprintf(a.out, "%s: %s\n", n, done)
		case len(names) == 1, errors.As(err, &down):
			return err
		default: // the others are done all the same
			wrongly = a.tell(err) || wrongly
			bad, code = bad+1, codeOf(err)
		}
	}
	if wrongly {
		a.see()
	}
	switch {
	case bad == 0:
		return nil
	case bad < len(names):
		code = exitPartly
	}
	return &exitError{code, errShown}
}

func (a *app) pauseCommand() *cobra.Command {
	return &cobra.Command{
		Use: "pause NAME...", Short: "Begin nothing more for keys, until they are resumed",
		Long: "Begin nothing more for keys, until they are resumed. A job that runs goes on to its end. The material in KMS stays, and expires when it expires.",
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.eachSays(args, func(c *control.Client, n string) (string, error) {
				changed, err := c.Pause(cmd.Context(), n, false)
				if !changed {
					return "is paused already; nothing was changed", err
				}
				return "paused; its material in KMS stays, and is not renewed", err
			})
		},
	}
}

func (a *app) resumeCommand() *cobra.Command {
	var token bool
	c := &cobra.Command{
		Use: "resume NAME...", Short: "Take a pause back; with --token use parked tokens again",
		Long: `Take the pause of keys back. With --token the names are those of tokens: the cause for which they were parked is mended. One more login is
tried for each. A wrong PIN counts against the token, which locks after few.`,
		Example: "  hsmbridge resume payments\n  hsmbridge resume --token hsm-1",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if token {
				return a.each(args, "used again; one login is tried as soon as there is something to do with it; hsmbridge status shows how it went", func(c *control.Client, n string) error { return c.ResumeToken(cmd.Context(), n) })
			}
			return a.eachSays(args, func(c *control.Client, n string) (string, error) {
				changed, err := c.Pause(cmd.Context(), n, true)
				if !changed {
					return "is not paused; nothing was changed", err
				}
				return "resumed", err
			})
		},
	}
	c.Flags().BoolVar(&token, "token", false, "the names are those of tokens")
	return c
}

func (a *app) retryCommand() *cobra.Command {
	var job bool
	c := &cobra.Command{
		Use: "retry NAME...", Short: "The cause of an error is mended: try again now",
		Long: "The cause of an error is mended: forget the keys' errors and begin what is due now. With --job the names are numbers of waiting jobs.",
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.eachSays(args, func(c *control.Client, n string) (string, error) {
				if !job {
					open, err := c.Retry(cmd.Context(), n)
					if err != nil {
						return "", err
					}
					if len(open) == 0 {
						if known, err := c.Keys(cmd.Context(), n); err == nil && len(known) == 1 && known[0].State.Revoked() {
							return "its errors are forgotten; it is revoked, and nothing is imported for it", nil
						}
						return "its errors are forgotten; nothing waits or is due; to import it all the same: hsmbridge import " + n + " --renew", nil
					}
					return "its errors are forgotten, and what is due begins", nil
				}
				id, err := strconv.ParseInt(n, 10, 64)
				if err != nil {
					return "", usageError(fmt.Errorf("%q is not the number of a job", n))
				}
				return "begins now", c.Job(cmd.Context(), "retry", id)
			})
		},
	}
	c.Flags().BoolVar(&job, "job", false, "the names are numbers of jobs")
	return c
}

func (a *app) revokeCommand() *cobra.Command {
	var reason, confirm string
	c := &cobra.Command{
		Use: "revoke NAME", Short: "The kill switch: delete a key's material from KMS, everywhere at once",
		Long: `Delete the key's material from all its destinations at once (DeleteImportedKeyMaterial), and import it no more until hsmbridge restore.
Whatever is encrypted under the KMS keys cannot be decrypted meanwhile. The key stays in the token. The name of the key has to be typed again.`,
		Example: "  hsmbridge revoke payments --reason 'incident 4711'",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.daemon()
			if err != nil {
				return err
			}
			if reason == "" {
				return usageError(errors.New("--reason is missing: it goes into the record"))
			}
			if confirm == "" && !isTerminal(os.Stdin) {
				return usageError(fmt.Errorf("nothing was revoked: there is no terminal to ask on; give the name of the key a second time: --confirm %s", args[0]))
			}
			if confirm == "" {
				if confirm, err = a.ask(fmt.Sprintf("This deletes the material of %s from every destination. What is encrypted under it cannot be read until it is restored.\nType the name of the key: ", args[0])); err != nil {
					return err
				}
			}
			if confirm != args[0] {
				return usageError(fmt.Errorf("%q is not %q: nothing was revoked", confirm, args[0]))
			}
			j, err := c.Revoke(cmd.Context(), args[0], control.ReasonRequest{Reason: reason, Confirm: confirm})
			if err != nil {
				return err
			}
			return a.await(cmd.Context(), c, []store.Job{j})
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why, for the record")
	c.Flags().StringVar(&confirm, "confirm", "", "the name of the key again, for scripts; otherwise it is asked for")
	return c
}

// ask asks on the terminal, which there has to be.
func (a *app) ask(question string) (string, error) {
	fmt.Fprint(a.err, question)
	line, err := bufio.NewReader(os.Stdin).ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("read the answer: %w", err)
	}
	return strings.TrimSpace(line), nil
}

func (a *app) restoreCommand() *cobra.Command {
	return &cobra.Command{
		Use: "restore NAME...", Short: "Take a revocation back: the keys are imported again",
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.each(args, "the revocation is taken back; it is imported again now, or when officers have approved it where it needs their approval; a pause stays until hsmbridge resume", func(c *control.Client, n string) error { return c.Restore(cmd.Context(), n) })
		},
	}
}

func (a *app) waiveCommand() *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use: "waive-backup NAME", Short: "Let a key be imported although the backup token has no copy of it",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if reason == "" {
				return usageError(errors.New("--reason is missing: it goes into the record"))
			}
			return a.each(args, "may be imported without a backup; if the token is lost, the key is lost", func(c *control.Client, n string) error { return c.Waive(cmd.Context(), n, reason) })
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why, for the record")
	return c
}

func (a *app) reloadCommand() *cobra.Command {
	return &cobra.Command{
		Use: "reload", Short: "Have the daemon read its configuration again; a wrong one is refused and the old one kept",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.daemon()
			if err != nil {
				return err
			}
			if err := c.Reload(cmd.Context()); err != nil {
				var refused *control.Error
				if errors.As(err, &refused) {
					return &exitError{exitConfig, fmt.Errorf("the daemon goes on with the configuration that it has: %w", err)}
				}
				return err
			}
			fmt.Fprintln(a.out, "the configuration was read again")
			return nil
		},
	}
}

func (a *app) backupCommand() *cobra.Command {
	return &cobra.Command{
		Use: "backup FILE", Short: "Have the daemon copy its SQLite database to a new file, while it works",
		Long: "Have the daemon copy its SQLite database to a new file, as it is at one moment, while it works. To go back to it: stop the daemon, put the file in the place of the database, remove its -wal and -shm files, rename the files of audit.export (they have records that the copy does not have; where one is required, the daemon would not start), start the daemon.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.daemon()
			if err != nil {
				return err
			}
			file, err := filepath.Abs(args[0])
			if err != nil {
				return fmt.Errorf("backup: %w", err)
			}
			if err := c.Backup(cmd.Context(), file); err != nil {
				return err
			}
			fmt.Fprintf(a.out, "the database was copied to %s\n", file)
			return nil
		},
	}
}

func (a *app) startCommand(kind store.Kind, drill bool, use, short string) *cobra.Command {
	var all, noWait bool
	c := &cobra.Command{
		Use: use, Short: short,
		RunE: func(cmd *cobra.Command, args []string) error {
			if kind == store.KindReconcile && len(args) == 0 {
				all = true
			}
			if all == (len(args) > 0) {
				return usageError(errors.New("name keys, or give --all"))
			}
			c, err := a.daemon()
			if err != nil {
				return err
			}
			list, err := c.Start(cmd.Context(), control.StartRequest{Keys: args, All: all, Kind: kind, Drill: drill})
			if err != nil {
				return err
			}
			if noWait {
				return a.printJobs(list)
			}
			return a.awaitNow(cmd.Context(), c, list)
		},
	}
	c.Flags().BoolVar(&all, "all", false, "every managed key")
	c.Flags().BoolVar(&noWait, "no-wait", false, "only queue the jobs")
	return a.jsonFlag(c, "print one JSON object per job, each on a line")
}

// served is the daemon that looks after the keys; nil: there is none. One that does not answer is an error: only it knows what was
// paused, revoked and rotated. undone says what was not done then.
func (a *app) served(ctx context.Context, undone string) (*control.Client, error) {
	config, cerr := a.load()
	var exit *exitError
	if errors.As(cerr, &exit) && exit.code == exitConfig && !errors.Is(cerr, os.ErrPermission) {
		return nil, cerr
	}
	c, err := a.daemon() // who may ask need not read the configuration
	if err != nil {
		return nil, err
	}
	if c.Serves(ctx) {
		return c, nil
	}
	if cerr != nil {
		return nil, cerr
	}
	if a.socket != "" {
		_, err = c.Status(ctx)
		return nil, &exitError{exitRefused, fmt.Errorf("the daemon that --socket names does not answer, and only it knows what was paused and revoked; %s: %w; --direct goes on all the same", undone, err)}
	}
	kind, database := config.DatabaseLocation()
	if kind == "postgres" {
		database = "in PostgreSQL"
	} else if _, err := os.Stat(database); errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	_, err = c.Status(ctx)
	return nil, &exitError{exitRefused, fmt.Errorf("the keys are looked after by a daemon, its database %s shows that, and only it knows what was paused, revoked and rotated; %s: %w; --direct goes on all the same", database, undone, err)}
}
