// Package e2e runs the real binaries, hsmbridge and kms-emulator, against a real token: what the tests of each
// token under test/ have in common.
package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hsmbridge/hsm/wrapping"
	"hsmbridge/kmsclient"
	"hsmbridge/test/token"
)

// binaries are built once for all test binaries, which run side by side: the go command leaves what is up to date as it is.
var binaries = sync.OnceValues(func() (string, error) { //nolint:gochecknoglobals // one build for all tests
	mod, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("find the module: %w", err)
	}
	dir := filepath.Join(filepath.Dir(strings.TrimSpace(string(mod))), "bin", "test")
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // programs for everybody: tests run some as other users
		return "", err
	}
	lock, err := os.OpenFile(filepath.Join(dir, ".lock"), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return "", err
	}
	defer lock.Close() //nolint:errcheck // nothing was written
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return "", fmt.Errorf("wait for another build: %w", err)
	}
	for _, args := range [][]string{{"hsmbridge/cmd/hsmbridge", "hsmbridge/cmd/kms-emulator"}, {"-tags", "netgo,osusergo", "hsmbridge/cmd/hsmceremony"}} {
		out, err := exec.Command("go", append([]string{"build", "-o", dir + "/"}, args...)...).CombinedOutput()
		if err != nil {
			return "", fmt.Errorf("build the binaries: %w: %s", err, out)
		}
	}
	return dir, nil
})

// Binaries is the directory with hsmbridge, hsmceremony and kms-emulator.
func Binaries(tb testing.TB) string {
	tb.Helper()
	dir, err := binaries()
	if err != nil {
		tb.Fatal(err)
	}
	return dir
}

// Region and Account are those of the emulator.
const (
	Region  = "eu-central-1"
	Account = "111122223333"
)

// Emulator is a running kms-emulator.
type Emulator struct {
	tb       testing.TB
	Endpoint string
}

// StartEmulator starts kms-emulator with more flags and stops it at the end of the test.
func StartEmulator(tb testing.TB, flags ...string) *Emulator {
	tb.Helper()
	args := append([]string{"-listen", "127.0.0.1:0", "-region", Region, "-account", Account}, flags...)
	cmd := exec.Command(filepath.Join(Binaries(tb), "kms-emulator"), args...) //nolint:noctx // stopped below
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		tb.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			tb.Errorf("kms-emulator: %v", err)
		}
	})
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if endpoint, ok := strings.CutPrefix(lines.Text(), "listening on "); ok {
			return &Emulator{tb, endpoint}
		}
	}
	tb.Fatal("kms-emulator did not say where it listens")
	return nil
}

// Environ is the environment of everything that talks to the emulator.
func Environ() []string {
	return append(os.Environ(), "AWS_ACCESS_KEY_ID=test", "AWS_SECRET_ACCESS_KEY=test", "AWS_REGION="+Region, "AWS_DEFAULT_REGION="+Region,
		"AWS_CONFIG_FILE=/dev/null", "AWS_SHARED_CREDENTIALS_FILE=/dev/null", "AWS_EC2_METADATA_DISABLED=true", "AWS_PAGER=")
}

// Control posts to the emulator's own interface.
func (e *Emulator) Control(path string, body any) {
	e.tb.Helper()
	b, err := json.Marshal(body)
	if err != nil {
		e.tb.Fatal(err)
	}
	e.own(http.MethodPost, path, b, nil)
}

// own is a request of the emulator's own interface; into takes its answer, nil: there is none.
func (e *Emulator) own(method, path string, body []byte, into any) {
	e.tb.Helper()
	req, err := http.NewRequestWithContext(context.Background(), method, e.Endpoint+"/_emulator/"+path, bytes.NewReader(body))
	if err != nil {
		e.tb.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		e.tb.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	want := http.StatusNoContent
	if into != nil {
		want = http.StatusOK
		err = json.NewDecoder(resp.Body).Decode(into)
	}
	if err != nil || resp.StatusCode != want {
		e.tb.Fatalf("%s %s: %s, %v", method, path, resp.Status, err)
	}
}

// HoldUp has the next request for an operation arrive and not take effect until [Emulator.GoOn].
func (e *Emulator) HoldUp(operation string) {
	e.tb.Helper()
	e.Control("faults", map[string]any{"operation": operation, "delay": time.Hour})
}

// Held waits until a request for the operation has arrived that is held up.
func (e *Emulator) Held(operation string) {
	e.tb.Helper()
	Until(e.tb, operation+" at KMS", func() bool {
		var held []string
		e.own(http.MethodGet, "held", nil, &held)
		return slices.Contains(held, operation)
	})
}

// GoOn has what is held up take effect, whether somebody still waits for it or not.
func (e *Emulator) GoOn() {
	e.tb.Helper()
	e.own(http.MethodDelete, "faults", nil, nil)
}

// Client is a KMS client of the emulator.
func (e *Emulator) Client() *kmsclient.Client {
	e.tb.Helper()
	for _, kv := range Environ() {
		if name, value, ok := strings.Cut(kv, "="); ok && strings.HasPrefix(name, "AWS_") {
			e.tb.Setenv(name, value)
		}
	}
	c, err := kmsclient.New(e.tb.Context(), kmsclient.Config{Region: Region, Endpoint: e.Endpoint})
	if err != nil {
		e.tb.Fatal(err)
	}
	return c
}

// CreateKey makes a KMS key of origin EXTERNAL and gives its ARN.
func (e *Emulator) CreateKey(c *kmsclient.Client, spec wrapping.KeySpec) string {
	e.tb.Helper()
	usage := "SIGN_VERIFY"
	switch spec.Kind() {
	case wrapping.KindSymmetric:
		usage = "ENCRYPT_DECRYPT"
	case wrapping.KindHMAC:
		usage = "GENERATE_VERIFY_MAC"
	case wrapping.KindRSA, wrapping.KindEC, wrapping.KindEd25519, wrapping.KindRefused:
	}
	info, err := c.CreateKey(e.tb.Context(), kmsclient.CreateKeyRequest{KeySpec: string(spec), KeyUsage: usage})
	if err != nil {
		e.tb.Fatal(err)
	}
	return info.ARN
}

// Key is a managed key in a configuration.
type Key struct {
	Name, Label  string
	Spec         wrapping.KeySpec
	Expires      string // default 90d
	Generate     bool
	Destinations []string
}

// Config writes a configuration for one token and returns its path. extra is appended as it is. The database and the control socket are the
// test's own, unless extra names them: a hsmbridge that is installed on the machine has nothing to say in a test.
func Config(tb testing.TB, endpoint string, tok token.Token, keys []Key, extra string) string {
	tb.Helper()
	var b strings.Builder
	quote := func(s string) string { q, _ := json.Marshal(s); return string(q) } //nolint:errchkjson // a string
	fmt.Fprintf(&b, "kms:\n  region: %s\n  endpoint: %s\ntokens:\n  - name: tok\n    module: %s\n    uri: %s\n    pin_file: %s\n",
		Region, quote(endpoint), quote(tok.Module), quote(tok.URI()), quote(tok.PINFile(tb)))
	if tok.Parameters != "" {
		fmt.Fprintf(&b, "    module_parameters: %s\n", quote(tok.Parameters))
	}
	if len(tok.Environment) > 0 {
		b.WriteString("    environment:\n")
		for name, value := range tok.Environment {
			fmt.Fprintf(&b, "      %s: %s\n", name, quote(value))
		}
	}
	if len(keys) > 0 {
		b.WriteString("keys:\n")
	}
	for _, k := range keys {
		class, generate, expires := "private", "never", k.Expires
		if k.Spec.MaterialBytes() > 0 {
			class = "secret-key"
		}
		if k.Generate {
			generate = "if-missing"
		}
		if expires == "" {
			expires = "90d"
		}
		if k.Label == "" {
			k.Label = k.Name
		}
		fmt.Fprintf(&b, "  - name: %s\n    token: tok\n    uri: %s\n    key_spec: %s\n    generate: %s\n    expires: %s\n    destinations:\n",
			k.Name, quote("pkcs11:object="+k.Label+";type="+class), k.Spec, generate, expires)
		for _, d := range k.Destinations {
			fmt.Fprintf(&b, "      - %s\n", quote(d))
		}
	}
	dir := tb.TempDir()
	for setting, own := range map[string]string{"database": quote(filepath.Join(dir, "x.db")), "control": "{socket: " + quote(filepath.Join(dir, "c.sock")) + "}"} {
		if !strings.Contains("\n"+extra, "\n"+setting+":") {
			fmt.Fprintf(&b, "%s: %s\n", setting, own)
		}
	}
	path := filepath.Join(dir, "hsmbridge.yaml")
	if err := os.WriteFile(path, []byte(b.String()+extra), 0o600); err != nil {
		tb.Fatal(err)
	}
	return path
}

// Output is what a run of hsmbridge gave.
type Output struct {
	Stdout, Stderr string
	Code           int
}

// Run runs hsmbridge with the configuration.
func Run(tb testing.TB, config string, args ...string) Output {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(Binaries(tb), "hsmbridge"), append([]string{"-c", config}, args...)...)
	cmd.Env = Environ()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		tb.Fatal(err)
	}
	return Output{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// Lines decodes JSON Lines.
func Lines[T any](tb testing.TB, s string) []T {
	tb.Helper()
	var out []T
	d := json.NewDecoder(strings.NewReader(s))
	for d.More() {
		var v T
		if err := d.Decode(&v); err != nil {
			tb.Fatalf("%v in %q", err, s)
		}
		out = append(out, v)
	}
	return out
}

// Result is what `import --json` prints; only what scripts may rely on.
type Result struct {
	Key               string `json:"key"`
	Destination       string `json:"destination"`
	Algorithm         string `json:"wrapping_algorithm"`
	WrappingKeySpec   string `json:"wrapping_key_spec"`
	WrappingKeySHA256 string `json:"wrapping_key_sha256"`
	KeyMaterialID     string `json:"key_material_id"`
	Expires           string `json:"expires"`
	Proof             string `json:"proof"`
	Result            string `json:"result"`
	Error             string `json:"error"`
}

// AWS runs the AWS CLI against the emulator and gives what it prints.
func (e *Emulator) AWS(args ...string) string {
	e.tb.Helper()
	cmd := exec.CommandContext(e.tb.Context(), "aws", append([]string{"--endpoint-url", e.Endpoint, "kms"}, args...)...)
	cmd.Env = Environ()
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		e.tb.Fatalf("aws kms %s: %v: %s (run make deps if the AWS CLI is missing)", strings.Join(args, " "), err, stderr.String())
	}
	return strings.TrimSpace(string(out))
}

// ControlRaw is [Emulator.Control] with JSON that is already written.
func (e *Emulator) ControlRaw(path, body string) {
	e.tb.Helper()
	e.Control(path, json.RawMessage(body))
}

// Count is how often the emulator was asked for an operation, as a decimal.
func (e *Emulator) Count(operation string) string {
	e.tb.Helper()
	var log []struct{ Operation string }
	e.own(http.MethodGet, "requests", nil, &log)
	n := 0
	for _, r := range log {
		if r.Operation == operation {
			n++
		}
	}
	return strconv.Itoa(n)
}

// Until waits for something that happens in another process, and fails the test when it does not.
func Until(tb testing.TB, what string, f func() bool) {
	tb.Helper()
	const long, step = time.Minute, 20 * time.Millisecond
	for end := time.Now().Add(long); time.Now().Before(end); time.Sleep(step) {
		if f() {
			return
		}
	}
	tb.Fatalf("%s did not happen within %s", what, long)
}
