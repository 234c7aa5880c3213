// Command hsmbridge brings keys from an HSM into AWS KMS. The HSM wraps them; their material never exists
// outside it in the clear.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

var version = "devel" // set by the linker

func main() { os.Exit(Main()) }

// Main runs the command line and gives its exit code.
func Main() int {
	noDumps()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	go func() {
		<-ctx.Done()
		stop() // a second signal ends the process at once
	}()
	a := &app{out: os.Stdout, err: os.Stderr}
	return a.run(ctx, os.Args[1:])
}

// noDumps keeps what is in this process's memory, a PIN for a moment, out of core dumps and away from debuggers of
// the same user. Where the kernel refuses, nothing is lost but this.
func noDumps() {
	_ = unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
}
