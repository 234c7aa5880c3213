// Command hsmbridge brings keys from an HSM into AWS KMS. The HSM wraps them; their material never exists
// outside it in the clear.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"hsmbridge/hsm/isolation"
	"hsmbridge/hsm/worker"
)

var version = "devel" // set by the linker

func main() { os.Exit(Main()) }

// Main runs the command line and gives its exit code.
func Main() int {
	if worker.Called(os.Args) {
		return worker.Main(os.Args)
	}
	_ = isolation.NoDumps() // where the kernel refuses, nothing is lost but this
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	go func() {
		<-ctx.Done()
		stop() // a second signal ends the process at once
	}()
	a := &app{out: os.Stdout, err: os.Stderr}
	return a.run(ctx, os.Args[1:])
}
