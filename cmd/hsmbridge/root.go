package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/term"

	"hsmbridge/configs"
)

// app is what the commands share.
type app struct {
	out, err io.Writer

	configFile string
	socket     string
	json       bool
	logLevel   string

	used          string // the command, for whoever used it wrongly
	logLevelGiven bool
	evenParked    bool
	patience      time.Duration // with the daemon; 0: as long as is usual
	slow          bool          // it was said that the daemon does not answer

	log *zap.Logger
}

func (a *app) run(ctx context.Context, args []string) int {
	a.out = &keeper{w: a.out}
	root := a.root() //nolint:contextcheck // the commands have cobra's
	root.SetArgs(args)
	root.SetOut(a.out)
	root.SetErr(a.err)
	used, err := root.ExecuteContextC(ctx)
	if used.Name() == "help" {
		used = root // a topic that is not there
	}
	a.used = used.CommandPath()
	if a.log != nil {
		_ = a.log.Sync()
	}
	return a.exit(ctx, err)
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:           "hsmbridge",
		Short:         "Bring keys from an HSM into AWS KMS, wrapped by the HSM, never in the clear",
		Version:       version,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE:          func(c *cobra.Command, _ []string) error { return c.Help() },
		PersistentPreRunE: func(c *cobra.Command, _ []string) error {
			a.used = c.CommandPath()
			a.logLevelGiven = c.Flags().Changed("log-level")
			return a.openLog()
		},
	}
	root.SetFlagErrorFunc(wrongFlag)
	root.SetHelpCommand(helpCommand(root))
	f := root.PersistentFlags()
	f.StringVarP(&a.configFile, "config", "c", os.Getenv("HSMBRIDGE_CONFIG"), "configuration `file` (or HSMBRIDGE_CONFIG; "+defaultConfig+" if it is there)")
	f.Bool("no-color", false, "for scripts that give it: no output has colors, with NO_COLOR or without")
	f.StringVar(&a.logLevel, "log-level", "warn", "what is logged to standard error: debug, info, warn or error")
	root.AddGroup(&cobra.Group{ID: groupDaemon, Title: "Commands that talk to the daemon:"})
	root.AddCommand(a.controlCommands()...)
	root.AddCommand(a.serveCommand(), a.auditCommand(), a.ceremonyCommand(), a.probeCommand(), a.keysCommand(), a.planCommand(), a.importCommand(), a.adoptCommand(), a.configCommand(), a.versionCommand(), a.manCommand(), exitCodesTopic())
	inPlainWords(root)
	return root
}

// helpCommand is cobra's, but that a topic which is not there is an error.
func helpCommand(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use: "help [COMMAND]", Short: "Help about any command",
		RunE: func(_ *cobra.Command, args []string) error {
			c, rest, err := root.Find(args)
			if err != nil || len(rest) > 0 {
				meant := ""
				if len(rest) > 0 {
					meant = meantCommand(c, rest[0])
				}
				return usageError(fmt.Errorf("there is no help on %q%s", strings.Join(args, " "), meant))
			}
			c.InitDefaultHelpFlag() // as cobra's own does
			c.InitDefaultVersionFlag()
			return c.Help()
		},
	}
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintln(a.out, "hsmbridge", version)
			return err
		},
	}
}

// jsonFlag gives a command its --json.
func (a *app) jsonFlag(c *cobra.Command, help string) *cobra.Command {
	c.Flags().BoolVar(&a.json, "json", false, help)
	return c
}

func (a *app) openLog() error {
	level, err := zapcore.ParseLevel(a.logLevel)
	if err != nil {
		return usageError(fmt.Errorf("--log-level: %w", err))
	}
	encoder := zap.NewProductionEncoderConfig()
	encoder.EncodeTime = zapcore.RFC3339TimeEncoder
	enc := zapcore.NewJSONEncoder(encoder)
	if isTerminal(a.err) {
		enc = zapcore.NewConsoleEncoder(encoder)
	}
	a.log = zap.New(zapcore.NewCore(enc, zapcore.Lock(zapcore.AddSync(a.err)), level))
	return nil
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// load reads the configuration that -c or HSMBRIDGE_CONFIG names.
func (a *app) load() (*configs.Config, error) {
	if a.configFile == "" {
		if _, err := os.Stat(defaultConfig); err == nil {
			a.configFile = defaultConfig
		}
	}
	if a.configFile == "" {
		return nil, usageError(errors.New("no configuration: give -c FILE or set HSMBRIDGE_CONFIG; `hsmbridge config init FILE` writes one to start from"))
	}
	c, err := configs.Load(a.configFile)
	if err != nil {
		return nil, &exitError{exitConfig, err}
	}
	return c, nil
}

// keysNamed are the managed keys that the arguments name, or all of them.
func keysNamed(c *configs.Config, names []string, all bool) ([]configs.Key, error) {
	switch {
	case all && len(names) > 0:
		return nil, usageError(errors.New("give names or --all, not both"))
	case all && len(c.Keys) == 0:
		return nil, &exitError{exitConfig, errors.New("the configuration has no keys")}
	case all:
		return c.Keys, nil
	case len(names) == 0:
		return nil, usageError(errors.New("name a managed key, or give --all" + configured("", keyNames(c))))
	}
	var out []configs.Key
	for _, n := range unique(names) {
		k, ok := c.Key(n)
		if !ok {
			return nil, usageError(fmt.Errorf("there is no managed key %q%s", n, configured(n, keyNames(c))))
		}
		out = append(out, k)
	}
	return out, nil
}

func keyNames(c *configs.Config) []string {
	var names []string
	for _, k := range c.Keys {
		names = append(names, k.Name)
	}
	return names
}

func tokenNames(c *configs.Config) []string {
	var names []string
	for _, t := range c.Tokens {
		names = append(names, t.Name)
	}
	return names
}
