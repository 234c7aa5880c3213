package ceremony_test

import (
	"bytes"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/pkcs11"
	"golang.org/x/sys/unix"

	"hsmbridge/daemon/ceremony"
	"hsmbridge/hsm/hsmtest"
	"hsmbridge/hsm/wrapping"
	"hsmbridge/test/e2e"
	"hsmbridge/test/pinpad"
)

func derOf(t *testing.T, k *rsa.PrivateKey) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(&k.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// terminal is a pseudo terminal on which PINs are asked for.
type terminal struct {
	master, slave *os.File

	mu  sync.Mutex
	out bytes.Buffer
}

func newTerminal(t *testing.T) *terminal {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	y := &terminal{master: master, slave: slave}
	t.Cleanup(func() { _, _ = master.Close(), slave.Close() })
	go func() {
		b := make([]byte, 1024)
		for {
			n, err := master.Read(b)
			if err != nil {
				return
			}
			y.mu.Lock()
			y.out.Write(b[:n])
			y.mu.Unlock()
		}
	}()
	return y
}

// waits waits until a PIN is asked for the n-th time.
func (y *terminal) waits(n int) bool {
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		y.mu.Lock()
		got := strings.Count(y.out.String(), "PIN")
		y.mu.Unlock()
		if got >= n {
			return true
		}
	}
	return false
}

// fetched makes the request for a ceremony, and gives its file.
func (w *world) fetched() string {
	w.t.Helper()
	if out, code := w.run("hsmbridge", "-c", w.config, "ceremony", "fetch", "payments", "--algorithm", "RSAES_OAEP_SHA_1", "--out", w.dir); code != 0 {
		w.t.Fatalf("exit code %d\n%s", code, out)
	}
	requests, err := filepath.Glob(filepath.Join(w.dir, "*"+ceremony.RequestExt))
	if err != nil || len(requests) != 1 {
		w.t.Fatalf("%v, %v", requests, err)
	}
	return requests[0]
}

// TestTrustedPINs holds that a session with the security officer that could not end well is refused before it begins, and that one whose PINs are typed at the
// device says whose is asked for.
func TestTrustedPINs(t *testing.T) {
	emu := e2e.StartEmulator(t)
	kmsKey := emu.CreateKey(emu.Client(), wrapping.SymmetricDefault)
	w := newWorld(t, ", endpoint: "+emu.Endpoint, "", kmsKey)
	t.Run("key", func(t *testing.T) { // the module is unloaded at its end
		hsmtest.Open(t, w.tok.Token)
		hsmtest.GenerateAES(t, w.tok.Token, "payments", pkcs11.CKA_WRAP_WITH_TRUSTED, true)
	})
	request := w.fetched()
	name := strings.TrimSuffix(request, ceremony.RequestExt)
	so := w.write("so-pin", []byte(w.tok.SOPIN))
	file, text := regexp.MustCompile(`pin_file: ("[^"]*")`), w.read(w.config)

	w.config = w.write("command.yaml", file.ReplaceAll(text, []byte("pin_command: [cat, $1]")))
	matches(t, w.all(3, request, "--trusted", "--so-pin-file", so), `pin_command, which is run once, .*--trusted .*nothing was begun`)
	pad := pinpad.New(t, w.tok.Token)
	pad.Silent(t) // the configuration alone says it
	w.config = w.write("device.yaml", bytes.Replace(file.ReplaceAll(text, []byte("quirks: {protected_authentication_path: true}")), []byte(w.tok.Module), []byte(pad.Module), 1))
	matches(t, w.all(2, request, "--trusted", "--so-pin-file", so), `--so-pin-file is given, .*nothing was begun`)
	if _, err := os.Stat(name + ceremony.LogExt); !os.IsNotExist(err) {
		t.Errorf("a session was begun: %v", err)
	}

	ended := make(chan struct{})
	defer close(ended)
	go func() { // people at the device: they type whenever it asks
		for tick := time.NewTicker(10 * time.Millisecond); ; {
			select {
			case <-ended:
				tick.Stop()
				return
			case <-tick.C:
				pad.TypeAhead(w.tok.PIN, w.tok.SOPIN)
			}
		}
	}()
	shown := w.all(0, request, "--trusted")
	user, officer := "asks for the PIN of its USER at its own device now", "asks for the PIN of its SECURITY OFFICER at its own device now"
	first, second, third := strings.Index(shown, user), strings.Index(shown, officer), strings.LastIndex(shown, user)
	if first < 0 || second < first || third < second || strings.Contains(shown, "ATTENTION") {
		t.Errorf("it does not say whose PIN is asked for:\n%s", shown)
	}
	if _, err := os.Stat(name + ceremony.WrappedExt); err != nil {
		t.Error(err)
	}
}

// TestTrusted takes a key with CKA_WRAP_WITH_TRUSTED through a ceremony, to KMS: the security officer trusts the wrapping key for that wrap
// only, and nothing of it is left in the HSM, also after a kill -9 in the wrap.
func TestTrusted(t *testing.T) {
	emu := e2e.StartEmulator(t)
	kmsKey := emu.CreateKey(emu.Client(), wrapping.SymmetricDefault)
	w := newWorld(t, ", endpoint: "+emu.Endpoint, "", kmsKey)
	t.Run("key", func(t *testing.T) { // the module is unloaded at its end
		hsmtest.Open(t, w.tok.Token)
		hsmtest.GenerateAES(t, w.tok.Token, "payments", pkcs11.CKA_WRAP_WITH_TRUSTED, true)
	})
	before := w.objects()
	request := w.fetched()
	so := w.write("so-pin", []byte(w.tok.SOPIN))
	matches(t, w.all(4, request), `CKA_WRAP_WITH_TRUSTED is true: .*\(hsmceremony wrap --trusted\)`)
	wrong := w.write("wrong-pin", []byte("not the PIN of the SO"))
	matches(t, w.all(5, request, "--trusted", "--so-pin-file", wrong), `CKR_PIN_INCORRECT`)
	if after := w.objects(); after != before {
		t.Errorf("after a refused PIN the HSM holds\n%s", after)
	}
	// A kill -9 with the trusted key in the HSM: the user's PIN is asked for on a terminal, and nobody types it the second time. (In a
	// login the kill would have to miss the moment in which SoftHSM2 writes its token file, which it does in place.)
	file := w.config
	w.config = w.write("prompt.yaml", regexp.MustCompile(`pin_file: "[^"]*"`).ReplaceAll(w.read(file), []byte("pin_prompt: true")))
	tty := newTerminal(t)
	k := w.start(func(c *exec.Cmd) {
		c.ExtraFiles = []*os.File{tty.slave}
		c.SysProcAttr.Setsid, c.SysProcAttr.Setctty, c.SysProcAttr.Ctty = true, true, 3
	}, "wrap", "-c", w.config, request, "--trusted", "--so-pin-file", so)
	go func() {
		tty.waits(1)
		_, _ = tty.master.WriteString(w.tok.PIN + "\n")
	}()
	if k.until(w.questions(request), "Type the name of the key") == "" {
		t.Fatal(k.shown())
	}
	if _, err := k.in.Write([]byte("payments\n")); err != nil {
		t.Fatal(err)
	}
	if !tty.waits(2) {
		t.Fatalf("the PIN was not asked for again:\n%s", k.shown())
	}
	k.signal(syscall.SIGKILL)
	w.config = file
	if after := w.objects(); after != before {
		t.Errorf("after kill -9 the HSM holds\n%s", after)
	}
	name := strings.TrimSuffix(request, ceremony.RequestExt)
	shown := w.all(0, request, "--trusted", "--so-pin-file", so)
	matches(t, shown, `note +it may be wrapped only under a key that the security officer`)
	matches(t, shown, `ATTENTION\. The HSM was asked to wrap this key before`)
	if after := w.objects(); after != before {
		t.Errorf("the HSM held\n%s\nand holds\n%s", before, after)
	}
	if b := w.read(name + ceremony.LogExt); bytes.Contains(b, []byte(w.tok.SOPIN)) || bytes.Contains(b, []byte(w.tok.PIN)) {
		t.Error("a PIN is in the log")
	}
	out, code := w.run("hsmbridge", "-c", w.config, "ceremony", "upload", name+ceremony.WrappedExt)
	if code != 0 || !strings.Contains(out, "material-id-match") {
		t.Errorf("exit code %d\n%s", code, out)
	}
}
