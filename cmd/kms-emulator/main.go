// Command kms-emulator serves the KMS emulator on loopback, for the demo and the tests. It is not for production.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"hsmbridge/kmsclient/kmsemu"
)

var version = "devel" // set by the linker

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return
		}
		fmt.Fprintln(os.Stderr, "kms-emulator:", err)
		os.Exit(2) //nolint:gocritic // stop has nothing left to do
	}
}

// run serves until ctx ends.
func run(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("kms-emulator", flag.ContinueOnError)
	listen := flags.String("listen", "127.0.0.1:4599", "loopback `address` to serve on; port 0 picks one")
	account := flags.String("account", "111122223333", "AWS account `ID` of the keys")
	region := flags.String("region", "eu-central-1", "`Region` of requests that are not signed for one")
	era := flags.String("era", "", "behave as the service did in this `year`: 2018 takes RSAES_PKCS1_V1_5")
	quotas := flags.String("quotas", "off", "enforce AWS's request quotas: `on` or off")
	state := flags.String("state", "", "keep keys in this `file` across restarts; it holds their material in the clear")
	lenient := flags.Bool("lenient-der", false, "take bytes that follow a PKCS#8")
	showVersion := flags.Bool("version", false, "print the version")
	if err := flags.Parse(args); err != nil {
		return err
	}
	switch {
	case *showVersion:
		_, err := fmt.Fprintln(out, "kms-emulator", version)
		return err
	case flags.NArg() > 0:
		return fmt.Errorf("unexpected argument %q; see -help", flags.Arg(0))
	case *quotas != "on" && *quotas != "off":
		return fmt.Errorf("-quotas is %q; it takes on or off", *quotas)
	case *era != "" && *era != "2018":
		return fmt.Errorf("-era is %q; it takes 2018, or nothing for today", *era)
	case len(*account) != 12:
		return fmt.Errorf("-account is %q; AWS account IDs have 12 digits", *account)
	}
	host, _, err := net.SplitHostPort(*listen)
	if err != nil {
		return fmt.Errorf("-listen: %w", err)
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return fmt.Errorf("-listen is %q; the emulator serves on loopback only, because it protects nothing", *listen)
	}
	server, err := kmsemu.New(kmsemu.Options{
		Account: *account, Region: *region, Era: *era, Quotas: *quotas == "on", LenientDER: *lenient, StateFile: *state,
	})
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, server.ClearFaults)() // what a delay holds up does not hold up the end
	return serve(ctx, *listen, server, out)
}

func serve(ctx context.Context, listen string, handler http.Handler, out io.Writer) error {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", listen)
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("%w; another one may be running: use it, or give another address with -listen, and the same as kms.endpoint", err)
	}
	if err != nil {
		return err
	}
	fmt.Fprintln(out, "KMS emulator for tests and demos: NOT FOR PRODUCTION, it holds keys in the clear and takes any credentials")
	fmt.Fprintf(out, "listening on http://%s\n", l.Addr())
	srv := &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	return srv.Shutdown(end)
}
