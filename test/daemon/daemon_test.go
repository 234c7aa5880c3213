// Package daemon_test runs the daemon as its users do: the real binaries, a real SoftHSM2 token and the emulator.
package daemon_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"hsmbridge/hsm/wrapping"
	"hsmbridge/kmsclient"
	"hsmbridge/test/e2e"
	"hsmbridge/test/softhsm"
	"hsmbridge/test/token"
)

func TestMain(m *testing.M) {
	syscall.Umask(0o022) // a configuration that the group can change is refused
	os.Exit(m.Run())
}

// world is what one script has.
type world struct {
	emu    *e2e.Emulator
	client *kmsclient.Client

	mu     sync.Mutex
	daemon *exec.Cmd
	log    *os.File
	before int64 // bytes of the log of its earlier lives
}

// TestScripts runs testdata/*.txtar.
//
// A script has a SoftHSM2 store of its own with the tokens demo and spare, an emulator, the file common.yaml with its settings (kms, tokens,
// database, control, metrics, quotas), and in the environment MODULE, CONF, PINFILE, SPAREPIN and ENDPOINT; SPY is
// pkcs11-spy.so, and SK the folder with an authenticator in software (sk.c).
//
//	kmskey SPEC NAME        makes a KMS key and puts its ARN into the environment variable NAME
//	aws ARGS                the AWS CLI: aws kms ARGS
//	control PATH JSON       drives the emulator
//	holdup OPERATION        the next request for it arrives at KMS and does not take effect until goon
//	held OPERATION          waits until a request that is held up has arrived
//	goon                    has what is held up take effect
//	subst FILE...           replaces $NAME in files
//	append FROM TO          adds a file to another
//	exits CODE COMMAND...   the command ends with exactly this exit code
//	daemon [FILE]           starts hsmbridge serve with the configuration FILE (hsmbridge.yaml) and waits until it answers
//	signal NAME             sends HUP, TERM or KILL to the daemon
//	ended CODE              waits until the daemon has ended; -1 after a signal
//	daemonlog PATTERN [N]   the daemon's log matches, or matches exactly N times
//	untillog PATTERN        waits until the log of the daemon that runs matches
//	until PATTERN COMMAND   runs the command until its output matches, for at most a minute
func TestScripts(t *testing.T) {
	worlds := map[string]*world{}
	var mu sync.Mutex
	of := func(ts *testscript.TestScript) *world {
		mu.Lock()
		defer mu.Unlock()
		return worlds[ts.Getenv("WORK")]
	}
	testscript.RunT(serial{t}, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			tok := softhsm.New(t, "demo", "spare")
			emu := e2e.StartEmulator(t)
			w := &world{emu: emu, client: emu.Client()}
			mu.Lock()
			worlds[env.WorkDir] = w
			mu.Unlock()
			env.Defer(w.kill)
			for _, kv := range e2e.Environ() {
				if strings.HasPrefix(kv, "AWS_") {
					env.Vars = append(env.Vars, kv)
				}
			}
			env.Setenv("PATH", e2e.Binaries(t)+string(os.PathListSeparator)+os.Getenv("PATH"))
			env.Setenv("HOME", os.Getenv("HOME"))
			env.Setenv("MODULE", tok.Module)
			env.Setenv("CONF", tok.Environment["SOFTHSM2_CONF"])
			env.Setenv("PINFILE", tok.PINFile(t))
			env.Setenv("SPAREPIN", tok.Others[0].PINFile(t))
			env.Setenv("ENDPOINT", emu.Endpoint)
			env.Setenv("HSMBRIDGE_CONFIG", "hsmbridge.yaml")
			spy, err := token.Module("pkcs11-spy.so", "pkcs11")
			if err != nil {
				return err
			}
			env.Setenv("SPY", spy)
			sk, err := filepath.Abs("../../daemon/approval/testdata")
			if err != nil {
				return err
			}
			env.Setenv("SK", sk)
			common, err := os.ReadFile("testdata/common.yaml")
			if err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(env.WorkDir, "common.yaml"), common, 0o600) //nolint:gosec // the test framework gives the directory
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"kmskey": func(ts *testscript.TestScript, _ bool, args []string) {
				w := of(ts)
				ts.Setenv(args[1], w.emu.CreateKey(w.client, wrapping.KeySpec(args[0])))
			},
			"fleet": func(ts *testscript.TestScript, _ bool, args []string) { of(ts).fleet(ts, args[0], args[1]) },
			"aws":   func(ts *testscript.TestScript, _ bool, args []string) { of(ts).emu.AWS(args...) },
			"control": func(ts *testscript.TestScript, _ bool, args []string) {
				of(ts).emu.ControlRaw(args[0], args[1])
			},
			"holdup": func(ts *testscript.TestScript, _ bool, args []string) { of(ts).emu.HoldUp(args[0]) },
			"held":   func(ts *testscript.TestScript, _ bool, args []string) { of(ts).emu.Held(args[0]) },
			"goon":   func(ts *testscript.TestScript, _ bool, _ []string) { of(ts).emu.GoOn() },
			"count": func(ts *testscript.TestScript, _ bool, args []string) {
				if got := of(ts).emu.Count(args[0]); got != args[1] {
					ts.Fatalf("%s was asked for %s times, want %s", args[0], got, args[1])
				}
			},
			"subst": func(ts *testscript.TestScript, _ bool, args []string) {
				for _, name := range args {
					ts.Check(os.WriteFile(ts.MkAbs(name), []byte(os.Expand(ts.ReadFile(name), ts.Getenv)), 0o600))
				}
			},
			"append": func(ts *testscript.TestScript, _ bool, args []string) {
				ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(ts.ReadFile(args[1])+ts.ReadFile(args[0])), 0o600))
			},
			"exits":     exits,
			"until":     until,
			"daemon":    func(ts *testscript.TestScript, _ bool, args []string) { of(ts).start(ts, args) },
			"signal":    func(ts *testscript.TestScript, _ bool, args []string) { of(ts).signal(ts, args[0]) },
			"ended":     func(ts *testscript.TestScript, _ bool, args []string) { of(ts).ended(ts, args[0]) },
			"untillog":  func(ts *testscript.TestScript, _ bool, args []string) { of(ts).untilLogged(ts, args[0]) },
			"daemonlog": func(ts *testscript.TestScript, neg bool, args []string) { of(ts).logged(ts, neg, args) },
		},
	})
}

// start runs the daemon. Its log goes on in one file over all its lives.
func (w *world) start(ts *testscript.TestScript, args []string) {
	file := "hsmbridge.yaml"
	if len(args) > 0 {
		file = args[0]
	}
	log, err := os.OpenFile(ts.MkAbs("daemon.log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	ts.Check(err)
	before, err := log.Seek(0, io.SeekEnd)
	ts.Check(err)
	cmd := exec.Command(filepath.Join(filepath.SplitList(ts.Getenv("PATH"))[0], "hsmbridge"), "-c", file, "serve") //nolint:noctx // ended by the script or by kill
	cmd.Dir, cmd.Stderr, cmd.Stdout = ts.Getenv("WORK"), log, log
	for _, name := range []string{"PATH", "HOME", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_EC2_METADATA_DISABLED"} {
		cmd.Env = append(cmd.Env, name+"="+ts.Getenv(name))
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	ts.Check(cmd.Start())
	w.mu.Lock()
	w.daemon, w.log, w.before = cmd, log, before
	w.mu.Unlock()
	until(ts, false, []string{"ready, up", "hsmbridge", "-c", file, "status"})
}

func (w *world) kill() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.daemon != nil {
		_ = w.daemon.Process.Kill()
		_ = w.daemon.Wait()
		_ = w.log.Close()
	}
}

func (w *world) signal(ts *testscript.TestScript, name string) {
	signals := map[string]syscall.Signal{"HUP": syscall.SIGHUP, "TERM": syscall.SIGTERM, "KILL": syscall.SIGKILL}
	ts.Check(w.daemon.Process.Signal(signals[name]))
}

func (w *world) ended(ts *testscript.TestScript, code string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	timer := time.AfterFunc(2*time.Minute, func() { _ = w.daemon.Process.Signal(syscall.SIGQUIT) })
	_ = w.daemon.Wait()
	timer.Stop()
	_ = w.log.Close()
	if got := strconv.Itoa(w.daemon.ProcessState.ExitCode()); got != code {
		ts.Fatalf("the daemon ended with exit code %s, want %s\n%s", got, code, ts.ReadFile("daemon.log"))
	}
	w.daemon = nil
}

// untilLogged waits for something in the log of the daemon's present life.
func (w *world) untilLogged(ts *testscript.TestScript, pattern string) {
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		log := ts.ReadFile("daemon.log")[w.before:]
		switch {
		case regexp.MustCompile("(?m)" + pattern).MatchString(log):
			return
		case time.Now().After(end):
			ts.Fatalf("the daemon's log never has %s:\n%s", pattern, log)
		}
	}
}

// logged looks into the daemon's log.
func (w *world) logged(ts *testscript.TestScript, neg bool, args []string) {
	log := ts.ReadFile("daemon.log")
	n := len(regexp.MustCompile("(?m)"+args[0]).FindAllString(log, -1))
	switch {
	case len(args) > 1 && strconv.Itoa(n) != args[1], len(args) == 1 && neg == (n > 0):
		ts.Fatalf("the daemon's log has %s %d times:\n%s", args[0], n, log)
	}
}

func exits(ts *testscript.TestScript, _ bool, args []string) {
	err := ts.Exec(args[1], args[2:]...)
	got := 0
	var failed *exec.ExitError
	switch {
	case errors.As(err, &failed):
		got = failed.ExitCode()
	case err != nil:
		ts.Fatalf("%v", err)
	}
	if strconv.Itoa(got) != args[0] {
		ts.Fatalf("%s ended with exit code %d, want %s\n%s%s", strings.Join(args[1:], " "), got, args[0], ts.ReadFile("stdout"), ts.ReadFile("stderr"))
	}
}

// until repeats a command until its standard output matches.
func until(ts *testscript.TestScript, _ bool, args []string) {
	pattern := regexp.MustCompile("(?m)" + args[0])
	for end := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		_ = ts.Exec(args[1], args[2:]...)
		if pattern.MatchString(ts.ReadFile("stdout")) {
			return
		}
		if time.Now().After(end) {
			ts.Fatalf("%s never printed %s; last:\n%s%s", strings.Join(args[1:], " "), args[0], ts.ReadFile("stdout"), ts.ReadFile("stderr"))
		}
	}
}

// serial runs scripts one after another: SoftHSM answers CKR_GENERAL_ERROR now and then under load.
type serial struct{ *testing.T }

// Run is a subtest.
func (s serial) Run(name string, f func(testscript.T)) {
	s.T.Run(name, func(t *testing.T) { f(serial{t}) })
}

// Parallel does nothing.
func (serial) Parallel() {}

// Verbose is the test flag.
func (serial) Verbose() bool { return testing.Verbose() }

// fleet adds many managed keys to a configuration.
func (w *world) fleet(ts *testscript.TestScript, file, many string) {
	n, err := strconv.Atoi(many)
	ts.Check(err)
	y := ts.ReadFile(file) + "keys:\n"
	for i := range n {
		y += fmt.Sprintf("  - {name: key-%02d, token: demo, uri: \"pkcs11:object=key-%02d;type=secret-key\", key_spec: HMAC_256, generate: if-missing, expires: 90d, destinations: [%q]}\n",
			i, i, w.emu.CreateKey(w.client, wrapping.HMAC256))
	}
	ts.Check(os.WriteFile(ts.MkAbs(file), []byte(y), 0o600))
}
