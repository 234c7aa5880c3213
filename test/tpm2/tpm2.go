// Package tpm2 makes tokens of tpm2-pkcs11 for tests: a TPM 2.0 in software (swtpm) and the module that shows it as a PKCS#11 token.
//
// tpm2-pkcs11 1.9.0 cannot wrap: C_WrapKey answers CKR_FUNCTION_NOT_SUPPORTED, C_GenerateKey too although its mechanism is listed, and no
// key may be sensitive and extractable at once. It is here for what hsmbridge says of such a token.
//
// The module finds the TPM by TPM2_PKCS11_TCTI and its own database by TPM2_PKCS11_STORE, both read at C_Initialize.
package tpm2

import (
	"bytes"
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"hsmbridge/test/token"
)

// serial is the CK_TOKEN_INFO.serialNumber of every token of tpm2-pkcs11.
const serial = "0000000000000000"

// Token is one token on a TPM of its own.
type Token struct {
	token.Token
}

// New starts a TPM and initialises a token on it, with label ("tpm-test" if none is given). Both are gone after the test.
func New(tb testing.TB, label ...string) Token {
	tb.Helper()
	t := Token{token.Token{Label: "tpm-test", Serial: serial, Dir: tb.TempDir()}}
	if len(label) > 0 {
		t.Label = label[0]
	}
	var err error
	if t.Module, err = Module(); err != nil {
		tb.Fatal(err)
	}
	t.PIN, t.SOPIN = token.PINs(tb, 8)
	store := filepath.Join(t.Dir, "store")
	if err := os.Mkdir(store, 0o700); err != nil {
		tb.Fatalf("make the store of tpm2-pkcs11: %v", err)
	}
	t.Environment = map[string]string{"TPM2_PKCS11_TCTI": "swtpm:path=" + start(tb), "TPM2_PKCS11_STORE": store}
	t.tool(tb, "--init-token", "--label", t.Label, "--so-pin", t.SOPIN)
	t.tool(tb, "--login", "--login-type", "so", "--so-pin", t.SOPIN, "--init-pin", "--pin", t.PIN)
	return t
}

// Module finds the module of tpm2-pkcs11.
func Module() (string, error) { return token.Module("libtpm2_pkcs11.so", "pkcs11") }

// tool runs pkcs11-tool on the first slot, in which the token is initialised.
func (t Token) tool(tb testing.TB, args ...string) {
	tb.Helper()
	args = append([]string{"--module", t.Module, "--slot-index", "0"}, args...)
	if _, err := token.Run(tb.Context(), t.Environ(), "pkcs11-tool", args...); err != nil {
		tb.Fatal(err)
	}
}

// start starts a TPM and gives the path of its socket. Socket paths have room for 107 bytes, which the directory of a test can exceed.
func start(tb testing.TB) string {
	tb.Helper()
	path, err := token.Program("swtpm")
	if err != nil {
		tb.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "tpm") //nolint:usetesting // see above
	if err != nil {
		tb.Fatal(err)
	}
	socket := filepath.Join(dir, "tpm")
	ctx, cancel := context.WithCancel(context.Background())
	var said bytes.Buffer
	cmd := exec.CommandContext(ctx, path, "socket", "--tpm2", "--tpmstate", "dir="+dir, "--server", "type=unixio,path="+socket,
		"--ctrl", "type=unixio,path="+socket+".ctrl", "--flags", "not-need-init,startup-clear")
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second // then it is killed
	if err := cmd.Start(); err != nil {
		cancel()
		tb.Fatalf("start swtpm: %v", err)
	}
	var end error // of swtpm, once ended is closed
	ended := make(chan struct{})
	go func() {
		end = cmd.Wait()
		close(ended)
	}()
	tb.Cleanup(func() {
		cancel()
		<-ended
		if err := os.RemoveAll(dir); err != nil {
			tb.Error(err)
		}
	})
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		switch _, err := os.Stat(socket + ".ctrl"); { // the last that it makes before it serves
		case err == nil && listens(socket+".ctrl"):
			return socket
		case time.Now().After(deadline):
			tb.Fatalf("swtpm was not ready after 30 s: %v\n%s", err, said.String())
		}
		select {
		case <-ended:
			tb.Fatalf("swtpm ended at once: %v\n%s", end, said.String())
		default:
		}
	}
}

// listens says that somebody takes a connection at the socket.
func listens(socket string) bool {
	conn, err := net.Dial("unix", socket) //nolint:noctx // a socket of this machine answers at once
	if err != nil {
		return false
	}
	return conn.Close() == nil
}
