package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"syscall"
	_ "time/tzdata" // schedules name time zones, also on machines without their database

	"github.com/coreos/go-systemd/v22/activation"
	sd "github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"hsmbridge/configs"
	"hsmbridge/daemon"
	"hsmbridge/daemon/pin"
	"hsmbridge/hsm/failure"
	"hsmbridge/hsm/remote"
	"hsmbridge/hsm/wrapping"
)

func (a *app) serveCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "serve",
		Short: "Run the daemon: keep every managed key imported, renewed and rotated",
		Long: `Run the daemon. It keeps every managed key imported in all its destinations, imports it again before it expires, restores it when
its material is gone, rotates and drills it on schedule, and says clearly when it needs a person.

It runs in the foreground and logs to standard error; systemd is told when it is ready. SIGHUP reads the configuration again, and keeps the
old one if the new one is wrong. SIGTERM finishes the steps under way and hands the rest back: the next start goes on there.

  hsmbridge status     what expires when, what is running, what waits for a person`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return a.serve(c.Context()) },
	}
}

func (a *app) serve(ctx context.Context) error {
	c, err := daemon.LoadQuickly(a.load)
	if err != nil {
		return err
	}
	log := a.daemonLog(c)
	defer log.Sync() //nolint:errcheck // standard error cannot be synchronised
	listener, err := activated()
	if err != nil {
		return err
	}
	interval, err := sd.SdWatchdogEnabled(false)
	if err != nil {
		log.Warn("systemd's watchdog", zap.Error(err))
	}
	opener := &opener{}
	d, err := daemon.New(ctx, daemon.Options{
		Config: c, Load: a.load, OpenToken: opener.open, Log: log, Version: version, Control: listener, WatchdogIn: interval,
		Notify: func(state string) {
			if _, err := sd.SdNotify(false, state); err != nil {
				log.Warn("systemd could not be told", zap.Error(err))
			}
		},
	})
	if err != nil {
		return err
	}
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	go func() {
		for range hangup {
			_ = d.Reload(ctx, "SIGHUP") // it logs what was wrong
		}
	}()
	return d.Run(ctx)
}

// daemonLog is the log that the configuration asks for; --log-level, where it is given, wins.
func (a *app) daemonLog(c *configs.Config) *zap.Logger {
	level := zapcore.InfoLevel
	if c.Log.Level != "" {
		level, _ = zapcore.ParseLevel(c.Log.Level) // checked with the configuration
	}
	if a.logLevelGiven {
		level, _ = zapcore.ParseLevel(a.logLevel) // checked by openLog
	}
	encoder := zap.NewProductionEncoderConfig()
	encoder.EncodeTime = zapcore.RFC3339NanoTimeEncoder
	encoder.EncodeDuration = zapcore.StringDurationEncoder
	enc := zapcore.NewJSONEncoder(encoder)
	if c.Log.Format == "console" || c.Log.Format == "" && isTerminal(a.err) {
		enc = zapcore.NewConsoleEncoder(encoder)
	}
	return zap.New(zapcore.NewCore(enc, zapcore.Lock(zapcore.AddSync(a.err)), level))
}

// activated is the control socket that systemd opened, if it did. Source: sd_listen_fds(3).
func activated() (net.Listener, error) {
	named, err := activation.ListenersWithNames()
	if err != nil {
		return nil, fmt.Errorf("socket activation: %w", err)
	}
	var all []net.Listener
	for _, list := range named {
		all = append(all, list...)
	}
	switch {
	case len(all) == 0:
		return nil, nil
	case len(named["control"]) == 1 && len(all) == 1:
		return all[0], nil
	}
	return nil, &exitError{exitConfig, errors.New("socket activation: the .socket unit has to pass exactly one socket, with FileDescriptorName=control")}
}

// opener opens tokens for the daemon, each in a process of its own.
type opener struct{ start remote.Starter }

func (o *opener) open(ctx context.Context, t configs.Token, l daemon.Login) (daemon.Token, error) {
	if t.PINPrompt && !isTerminal(os.Stdin) {
		return nil, &pinError{errors.New("pin_prompt asks on a terminal, and the daemon has none: use pin_credential, pin_file or pin_command; no login was tried")}
	}
	source, err := pin.Later(t)
	if err != nil {
		return nil, &pinError{err}
	}
	module := moduleOf(t)
	module.LoginAgain, module.AtDevice = l.Again, l.AtDevice
	token, err := o.start.Open(ctx, module, begun(source, l))
	if err != nil {
		return nil, err
	}
	return token, nil
}

// begun is the source of a PIN that is given only when it is written down that a login begins. Nil: the PIN is typed at the device.
func begun(source pin.Source, l daemon.Login) remote.PINSource {
	if source == nil {
		return nil
	}
	return func(ctx context.Context, id wrapping.TokenIdentity) ([]byte, error) {
		secret, err := source(ctx, id)
		if err == nil {
			err = l.Begin(ctx)
		}
		if err != nil {
			clear(secret)
			return nil, err
		}
		return secret, nil
	}
}

// pinError is that there was no PIN to log in with.
type pinError struct{ err error }

func (e *pinError) Error() string { return e.err.Error() }
func (e *pinError) Unwrap() error { return e.err }

// CKR tells it apart in the table of retries.
func (e *pinError) CKR() string { return failure.PINUnavailable }

// Class is "token".
func (e *pinError) Class() string { return "token" }
