package daemon_test

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"hsmbridge/hsm/wrapping"
	"hsmbridge/test/e2e"
	"hsmbridge/test/softhsm"
)

// memory looks for texts in everything that a process can read of its own, as root does with /proc/PID/mem: how often each is there.
func memory(t *testing.T, pid int, texts map[string][]byte) map[string]int {
	t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close() //nolint:errcheck // it was only read
	found, read := map[string]int{}, 0
	const piece = 4 << 20
	buf := make([]byte, piece)
	for line := range strings.Lines(string(maps)) {
		var from, to int64
		var rights string
		if strings.Contains(line, "[vsyscall]") {
			continue // the kernel's own page, the same in all processes
		}
		if _, err := fmt.Sscanf(line, "%x-%x %s", &from, &to, &rights); err != nil {
			t.Fatal(line, err)
		}
		if rights[0] != 'r' {
			continue
		}
		const overlap = 64 // what lies across two pieces is found too
		for at := from; at < to; at += piece - overlap {
			n, err := mem.ReadAt(buf[:min(piece, to-at)], at)
			if err != nil && !errors.Is(err, syscall.EIO) && !errors.Is(err, io.EOF) { // EIO: the kernel's own pages, and what is only reserved
				t.Fatalf("%s: %v", line, err)
			}
			read += n
			for name, text := range texts {
				found[name] += bytes.Count(buf[:n], text)
			}
		}
	}
	if read < 10<<20 {
		t.Fatalf("only %d bytes of process %d were read", read, pid)
	}
	return found
}

// The daemon's memory holds neither the PIN nor a key that is in the token: not after an import, a renewal, nor after the module's process was
// replaced. That the look finds what is there is shown by the name of the managed key.
func TestMemory(t *testing.T) {
	secret := make([]byte, 32)
	if _, err := rand.Read(secret); err != nil {
		t.Fatal(err)
	}
	tok := softhsm.New(t).Token
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, secret, 0o600); err != nil {
		t.Fatal(err)
	}
	name := "name-" + strings.ToLower(rand.Text())
	tok.Tool(t, "--login", "--pin", tok.PIN, "--write-object", file, "--type", "secrkey", "--key-type", "AES:32", "--label", name, "--id", "01", "--sensitive", "--extractable", "--usage-decrypt")
	emulator := e2e.StartEmulator(t)
	arn := emulator.CreateKey(emulator.Client(), wrapping.SymmetricDefault)
	socket := filepath.Join(t.TempDir(), "c.sock")
	config := e2e.Config(t, emulator.Endpoint, tok, []e2e.Key{{Name: name, Spec: wrapping.SymmetricDefault, Destinations: []string{arn}}},
		"database: x.db\ncontrol: {socket: "+socket+"}\nmetrics: {listen: none}\n")
	c, log := serve(t, config, socket, false)
	texts := map[string][]byte{"PIN": []byte(tok.PIN), "key": secret, "key in hex": []byte(hex.EncodeToString(secret)), "part of the key": secret[8:24], "name": []byte(name)}
	look := func(when string) {
		t.Helper()
		found := memory(t, c.Process.Pid, texts)
		if found["name"] == 0 {
			t.Errorf("%s: the look does not find what is there", when)
		}
		for what := range texts {
			if what != "name" && found[what] > 0 {
				t.Errorf("%s: the %s is %d times in the daemon's memory", when, what, found[what])
			}
		}
	}
	happens(t, "the import", func() bool { return strings.Contains(e2e.Run(t, config, "jobs").Stdout, " done ") })
	look("after the import")
	if out := e2e.Run(t, config, "import", "--renew", name); out.Code != 0 {
		t.Fatal(out.Stdout, out.Stderr)
	}
	look("after a renewal")
	first := moduleProcess(t, log, 1)
	if strings.Contains(readAll(t, fmt.Sprintf("/proc/%d/environ", first)), "AWS_") {
		t.Error("the module's process has AWS's variables")
	}
	if got := strings.Split(strings.TrimRight(readAll(t, fmt.Sprintf("/proc/%d/cmdline", first)), "\x00"), "\x00"); len(got) != 3 || got[1] != "module-process" {
		t.Errorf("its command line is %q", got)
	}
	if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	happens(t, "a line about it", func() bool { return strings.Contains(readAll(t, log), "ended by SIGKILL") })
	if out := e2e.Run(t, config, "import", "--renew", name); out.Code != 0 {
		t.Fatal(out.Stdout, out.Stderr)
	}
	if second := moduleProcess(t, log, 2); second == first {
		t.Error("the module's process was not replaced")
	}
	look("after the module's process was replaced")
	for _, what := range []string{"PIN", "key", "key in hex"} {
		if strings.Contains(readAll(t, log), string(texts[what])) {
			t.Errorf("the %s is in the log", what)
		}
	}
	if err := c.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := c.Wait(); err != nil {
		t.Errorf("the daemon ended with %v", err)
	}
}

// moduleProcess is the number of the n-th process that the daemon says it gave the module.
func moduleProcess(t *testing.T, log string, n int) int {
	t.Helper()
	all := regexp.MustCompile(`its module has a process of its own.*"pid":(\d+)`).FindAllStringSubmatch(readAll(t, log), -1)
	if len(all) != n {
		t.Fatalf("the log names %d processes, want %d", len(all), n)
	}
	pid, err := strconv.Atoi(all[n-1][1])
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

func readAll(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
