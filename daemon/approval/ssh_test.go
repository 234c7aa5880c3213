package approval_test

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh/agent"

	"hsmbridge/daemon/approval"
)

const pin = "2468" // of testdata/sk.c

// run runs one of OpenSSH's programs and returns what it says.
func run(t *testing.T, env []string, stdin, name string, args ...string) (string, error) {
	t.Helper()
	c := exec.CommandContext(t.Context(), name, args...)
	c.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "LC_ALL=C"}, env...)
	c.Stdin = strings.NewReader(stdin)
	out, err := c.CombinedOutput()
	return string(out), err
}

func mustRun(t *testing.T, env []string, stdin, name string, args ...string) {
	t.Helper()
	if out, err := run(t, env, stdin, name, args...); err != nil {
		t.Fatalf("%s %s: %v (make deps installs what is missing)\n%s", name, strings.Join(args, " "), err, out)
	}
}

// sshKey is a key pair in a file, made by ssh-keygen.
type sshKey struct {
	file string
	env  []string // for every use
	pin  bool     // it asks for the PIN
	approval.Key
}

// newKey makes a key with ssh-keygen; args say of which kind.
func newKey(t *testing.T, env []string, args ...string) sshKey {
	t.Helper()
	k := sshKey{file: filepath.Join(t.TempDir(), "id"), env: env, pin: strings.Contains(strings.Join(args, " "), "verify-required")}
	mustRun(t, env, k.stdin(), "ssh-keygen", append([]string{"-q", "-N", "", "-C", "test", "-f", k.file}, args...)...)
	k.Key = readKey(t, k.file+".pub")
	return k
}

func readKey(t *testing.T, file string) approval.Key {
	t.Helper()
	key, err := approval.ParseKey(string(readFile(t, file)))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (k sshKey) stdin() string {
	if k.pin {
		return pin + "\n"
	}
	return ""
}

// sign signs a text with ssh-keygen -Y sign and returns the file that it writes.
func (k sshKey) sign(t *testing.T, namespace string, text []byte, args ...string) []byte {
	t.Helper()
	return k.signAs(t, k.file, namespace, text, args...)
}

func (k sshKey) signAs(t *testing.T, keyFile, namespace string, text []byte, args ...string) []byte {
	t.Helper()
	file := writeFile(t, "request.txt", text)
	mustRun(t, k.env, k.stdin(), "ssh-keygen", append([]string{"-Y", "sign", "-n", namespace, "-f", keyFile}, append(args, file)...)...)
	return readFile(t, file+".sig")
}

// verify has ssh-keygen -Y verify check a signature.
func verify(t *testing.T, key approval.Key, namespace string, text, armored []byte) error {
	t.Helper()
	allowed := writeFile(t, "allowed_signers", []byte("alice "+line(key)))
	_, err := run(t, nil, string(text), "ssh-keygen", "-Y", "verify", "-n", namespace, "-I", "alice", "-f", allowed, "-s", writeFile(t, "sig", armored))
	return err
}

// startAgent starts ssh-agent and returns a client and the environment in which programs find it.
func startAgent(t *testing.T, args ...string) (agent.ExtendedAgent, []string) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	c := exec.CommandContext(t.Context(), "ssh-agent", append([]string{"-D", "-a", socket}, args...)...)
	c.Env = append(os.Environ(), "SSH_ASKPASS=/bin/false", "DISPLAY=")
	if err := c.Start(); err != nil {
		t.Fatalf("%v (make deps installs what is missing)", err)
	}
	t.Cleanup(func() { _ = c.Wait() }) // the test's context, which is done by now, ends it
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "unix", socket)
		if err == nil {
			t.Cleanup(func() { _ = conn.Close() })
			return agent.NewClient(conn), []string{"SSH_AUTH_SOCK=" + socket}
		}
		if time.Now().After(end) {
			t.Fatalf("ssh-agent does not answer: %v", err)
		}
	}
}

// authenticator compiles the FIDO authenticator in software and returns its file.
func authenticator(t *testing.T) string {
	t.Helper()
	lib := filepath.Join(t.TempDir(), "sk.so")
	mustRun(t, nil, "", "gcc", "-std=c11", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", lib, "testdata/sk.c", "-lcrypto")
	return lib
}

func writeFile(t *testing.T, name string, text []byte) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func readFile(t *testing.T, file string) []byte {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return text
}
