package main

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"hsmbridge/hsm/worker"
)

// TestMain makes the command available to scripts as `hsmbridge`.
func TestMain(m *testing.M) {
	if worker.Called(os.Args) {
		os.Exit(worker.Main(os.Args))
	}
	syscall.Umask(0o022) // a configuration that the group can change is refused
	testscript.Main(m, map[string]func(){"hsmbridge": main})
}

// TestScripts runs testdata/*.txtar: the command as a user calls it, as far as no token is needed; test/softhsm has the
// scripts with one.
//
//	exits CODE COMMAND...   the command ends with exactly this exit code
//	json FILE N             the file (or stdout) is exactly N JSON values
//
// The condition root holds where the tests run as root.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Condition: func(cond string) (bool, error) {
			if cond != "root" {
				return false, errors.New("there is no condition " + cond)
			}
			return os.Geteuid() == 0, nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"exits": exits,
			"json":  jsonValues,
		},
	})
}

func exits(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	var failed *exec.ExitError
	switch {
	case errors.As(err, &failed):
		got = failed.ExitCode()
	case err != nil:
		ts.Fatalf("%v", err)
	}
	if got != want {
		ts.Fatalf("%s ended with exit code %d, want %d\n%s%s", strings.Join(args[1:], " "), got, want, ts.ReadFile("stdout"), ts.ReadFile("stderr"))
	}
}

func jsonValues(ts *testscript.TestScript, _ bool, args []string) {
	d := json.NewDecoder(strings.NewReader(ts.ReadFile(args[0])))
	n := 0
	for ; ; n++ {
		var v any
		if err := d.Decode(&v); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			ts.Fatalf("%s is not JSON: %v", args[0], err)
		}
	}
	if strconv.Itoa(n) != args[1] {
		ts.Fatalf("%s is %d JSON values, want %s", args[0], n, args[1])
	}
}
