// Package worker is the process that a PKCS#11 module lives in: it makes itself alone, opens one token for hsmbridge at the other end of
// its socket, and does what [wire] has words for. It ends with the socket, at once, also while the module hangs.
package worker

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"hsmbridge/hsm"
	"hsmbridge/hsm/isolation"
	"hsmbridge/hsm/remote/wire"
)

// Exit codes of the process. Nobody but a person with a debugger sees them.
const (
	exitGone  = 0 // the socket was closed
	exitUsage = 2 // it was not started by hsmbridge
	exitBad   = 3 // hsmbridge does not speak the language
)

// Called tells whether the process was started to be that of a module. Ask before anything else is done.
func Called(args []string) bool { return len(args) == 3 && args[1] == wire.Argument }

// Main is the process. It runs twice: first it restricts itself, which counts for one thread, and executes itself again from that thread;
// then all there is, threads of the Go runtime and of the module included, is restricted.
func Main(args []string) int {
	stage := os.Getenv(wire.EnvStage)
	done, second := strings.CutPrefix(stage, secondStage)
	if !second {
		if err := first(args, stage); err != nil {
			fmt.Fprintln(os.Stderr, "hsmbridge:", err)
		}
		return exitUsage
	}
	p, err := newProcess()
	if err != nil {
		fmt.Fprintln(os.Stderr, "hsmbridge:", err)
		return exitUsage
	}
	_ = os.Unsetenv(wire.EnvStage) // the module need not know
	// Ctrl-C is for hsmbridge, which finishes the step that it is in.
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	hsm.PlainSignals()
	hello := &wire.Hello{Version: wire.Version, Isolation: unpack(done)}
	for _, m := range isolation.Finish() {
		hello.Isolation = append(hello.Isolation, wire.Measure(m))
	}
	if err := p.conn.Send(wire.KindHello, 0, 0, hello); err != nil {
		return exitGone
	}
	go p.serve()
	return <-p.ended
}

// secondStage begins what the environment says to the second run; what the first one did follows.
const secondStage = "done "

// first restricts the process and executes it again. It comes back with an error only.
func first(args []string, stage string) error {
	if stage != wire.StageNone && stage != wire.StageAllowed {
		return errors.New("this is the process of a PKCS#11 module: hsmbridge starts it by itself")
	}
	runtime.LockOSThread()
	_ = isolation.NoDumps()
	done := append([]isolation.Measure{{Name: "network", State: hsm.NetworkNamespace()}}, isolation.Restrict(stage == wire.StageAllowed)...)
	var env []string
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, wire.EnvStage+"=") {
			env = append(env, e)
		}
	}
	return fmt.Errorf("execute hsmbridge again: %w", syscall.Exec("/proc/self/exe", args, append(env, wire.EnvStage+"="+secondStage+pack(done))))
}

func pack(list []isolation.Measure) string {
	var out []string
	for _, m := range list {
		out = append(out, m.Name+"="+m.State)
	}
	return strings.Join(out, ";")
}

func unpack(s string) []wire.Measure {
	var out []wire.Measure
	for one := range strings.SplitSeq(s, ";") {
		name, state, _ := strings.Cut(one, "=")
		out = append(out, wire.Measure{Name: name, State: state})
	}
	return out
}

// socket takes over the end of the socket pair that hsmbridge left open for this process.
func socket() (*os.File, error) {
	domain, err := unix.GetsockoptInt(wire.Socket, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil || domain != unix.AF_UNIX {
		return nil, errors.New("this is the process of a PKCS#11 module: hsmbridge starts it by itself")
	}
	unix.CloseOnExec(wire.Socket) // what a module starts has no part in it
	if err := unix.SetNonblock(wire.Socket, true); err != nil {
		return nil, fmt.Errorf("the socket: %w", err)
	}
	return os.NewFile(wire.Socket, "hsmbridge"), nil
}
