// Command hsmceremony wraps keys in the HSM room: a guided session for security officers on a machine without a network.
//
// It has no network code: files come in and go out by hand. hsmbridge ceremony fetch makes the request on a machine with a network,
// hsmbridge ceremony upload takes the wrapped key to AWS KMS. docs/ceremony.md is the script.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// version is set by the linker.
var version = "devel"

// Exit codes.
const (
	exitDone        = 0
	exitUnexpected  = 1
	exitUsage       = 2
	exitConfig      = 3
	exitRefused     = 4
	exitToken       = 5
	exitInterrupted = 130
)

const usage = `hsmceremony %s: wrap keys for AWS KMS in the HSM room, without a network

  hsmceremony can     -c CONFIG KEY            how this HSM can wrap a key: what to fetch
  hsmceremony request -c CONFIG --from FILES KEY [DESTINATION]
                                               make a request of AWS's own import files (console, AWS CLI)
  hsmceremony show    FILE                     show a request, a wrapped key, import tokens or a log
  hsmceremony wrap    -c CONFIG REQUEST        the guided session: wrap the key of a request
  hsmceremony version

hsmceremony COMMAND --help lists the flags. docs/ceremony.md is the script to follow.

Exit codes: 0 done; 1 an error that fits none of the others; 2 the command line is wrong, or names a file that is not there;
3 the configuration is wrong or cannot be read; 4 refused, and nothing was wrapped or what was wrapped is told; 5 the HSM; 130 interrupted.
`

func main() {
	// A core image could hold a PIN.
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	_ = unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	a := &app{in: os.Stdin, out: os.Stdout, err: os.Stderr}
	code := a.run(ctx, os.Args[1:])
	stop()
	os.Exit(code)
}

// app is one run of the command.
type app struct {
	in       io.Reader
	out, err io.Writer
}

type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

type configError struct{ error }

// errShown ends a command that has said what is wrong.
var errShown = errors.New("shown")

func (a *app) run(ctx context.Context, args []string) int {
	if len(args) == 0 {
		fmt.Fprintf(a.err, usage, version)
		return exitUsage
	}
	commands := map[string]func(context.Context, []string) error{"can": a.can, "request": a.request, "show": a.show, "wrap": a.wrap, "version": a.version}
	f, ok := commands[args[0]]
	switch {
	case args[0] == "help" || args[0] == "-h" || args[0] == "--help":
		fmt.Fprintf(a.out, usage, version)
		return exitDone
	case !ok:
		return a.exit(ctx, "", usageError{fmt.Errorf("there is no command %q", args[0])})
	}
	return a.exit(ctx, " "+args[0], f(ctx, args[1:]))
}

func (a *app) version(_ context.Context, args []string) error {
	if _, err := a.parse(a.flags("version", "", "Print the version."), args, 0); err != nil {
		return err
	}
	fmt.Fprintln(a.out, "hsmceremony", version)
	return nil
}

// exit prints what went wrong, if anything, and gives the exit code. command is the one that was used, with a blank before it.
func (a *app) exit(ctx context.Context, command string, err error) int {
	var u usageError
	var c configError
	var classed interface{ Class() string }
	var ended *endedError
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return exitDone
	case ctx.Err() != nil && errors.As(err, &ended):
		fmt.Fprintf(a.err, "\nhsmceremony: interrupted; %s; run it again: it goes on where it was\n", printable(ended.outcome))
		return exitInterrupted
	case ctx.Err() != nil:
		fmt.Fprintln(a.err, "\nhsmceremony: interrupted; nothing was wrapped; run it again")
		return exitInterrupted
	}
	if !errors.Is(err, errShown) {
		fmt.Fprintln(a.err, "hsmceremony:", printable(err.Error()))
	}
	switch {
	case errors.As(err, &u):
		fmt.Fprintf(a.err, "see: hsmceremony%s --help\n", command)
		return exitUsage
	case errors.As(err, &c):
		return exitConfig
	case errors.As(err, &classed):
		switch classed.Class() {
		case "caller":
			return exitRefused
		case "session", "token", "library":
			return exitToken
		}
	case errors.Is(err, errShown):
		return exitRefused
	}
	return exitUnexpected
}

// flags are those of a command, with what its help says.
type flags struct {
	*flag.FlagSet
	args, about string
}

// flags makes the flags of a command.
func (a *app) flags(name, args, about string) *flags {
	f := &flags{flag.NewFlagSet(name, flag.ContinueOnError), args, about}
	f.SetOutput(io.Discard) // what is wrong is told as all else is
	return f
}

// line is how the command is called.
func (f *flags) line() string {
	return strings.TrimSpace(fmt.Sprintf("hsmceremony %s [flags] %s", f.Name(), f.args))
}

func (f *flags) help(out io.Writer) {
	fmt.Fprintf(out, "%s\n\n%s\n\nFlags:\n", f.line(), f.about)
	f.SetOutput(out)
	f.PrintDefaults()
}

// parse reads flags and names, in any order.
func (a *app) parse(f *flags, args []string, most int) ([]string, error) {
	var names []string
	for {
		if err := f.Parse(args); errors.Is(err, flag.ErrHelp) {
			f.help(a.out)
			return nil, err
		} else if err != nil {
			return nil, usageError{plain(err)}
		}
		args = f.Args()
		if len(args) == 0 {
			break
		}
		names, args = append(names, args[0]), args[1:]
	}
	switch {
	case len(names) == 0 && most > 0:
		return nil, usageError{errors.New("a name is missing: " + f.line())}
	case len(names) > most:
		return nil, usageError{fmt.Errorf("%q is one name too many: %s", names[most], f.line())}
	}
	return names, nil
}

// plain says what is wrong with a flag in the words of the other messages; package flag has no types for its errors.
func plain(err error) error {
	text := err.Error()
	dashes := func(name string) string {
		if name = strings.TrimPrefix(name, "-"); len(name) > 1 {
			return "--" + name
		}
		return "-" + name
	}
	if name, ok := strings.CutPrefix(text, "flag provided but not defined: "); ok {
		return fmt.Errorf("there is no flag %s", dashes(name))
	}
	if name, ok := strings.CutPrefix(text, "flag needs an argument: "); ok {
		return fmt.Errorf("%s needs a value", dashes(name))
	}
	if what, ok := strings.CutPrefix(text, "bad flag syntax: "); ok {
		return fmt.Errorf("%q is no flag", what)
	}
	if what, ok := strings.CutPrefix(text, "invalid boolean value "); ok {
		value, name, _ := strings.Cut(what, " for ")
		name, _, _ = strings.Cut(name, ":")
		return fmt.Errorf("%s is true or false, and not %s", dashes(name), value)
	}
	return err
}

// list is a flag that may be given again.
type list []string

func (l *list) String() string     { return strings.Join(*l, ", ") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }
