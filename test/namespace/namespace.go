// Package namespace runs the tests of a package in namespaces of their own: for software whose state belongs to the machine. No root is
// needed where the kernel lets users make namespaces; inside, the tests are root.
package namespace

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"hsmbridge/test/token"
)

// Enter runs this test binary, with its arguments, in new mount, IPC and PID namespaces, with the variable environment set to 1, and
// gives its exit code. The binary is process 1 there: whatever ends it, a kill or a time-out too, ends every other process inside.
func Enter(environment string) (int, error) {
	unshare, err := token.Program("unshare")
	if err != nil {
		return 0, err
	}
	self, err := os.Executable()
	if err != nil {
		return 0, fmt.Errorf("find the test binary: %w", err)
	}
	args := []string{"--mount", "--ipc", "--pid", "--fork", "--kill-child"}
	if os.Geteuid() != 0 {
		args = append(args, "--user", "--map-root-user")
	}
	args = append(args, "--", self)
	args = append(args, os.Args[1:]...)

	// The kernel sends Pdeathsig when the thread that started the child ends, not the process.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.Command(unshare, args...) //nolint:noctx // the tests' own time-out ends it
	cmd.Env = append(os.Environ(), environment+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() > 0 {
		return exit.ExitCode(), nil // the tests, or unshare, have said why
	}
	if err != nil {
		return 0, fmt.Errorf("run the tests in namespaces of their own (user namespaces allowed?): %w", err)
	}
	return 0, nil
}

// Hide mounts an empty, private directory over each of dirs. It is called inside only.
func Hide(dirs ...string) error {
	for _, dir := range dirs {
		if err := unix.Mount("hsmbridge-test", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
			return fmt.Errorf("mount a private %s (installed? run `make deps`): %w", dir, err)
		}
	}
	return nil
}
