package ceremony_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"hsmbridge/daemon/ceremony"
)

func (w *world) rename(from, to string) {
	w.t.Helper()
	if err := os.Rename(from, to); err != nil {
		w.t.Fatal(err)
	}
}

// TestOutcome holds that a session that ends early says what was wrapped and what was not, whatever earlier ones did, and that files which only
// a wrap writes end it before anybody compares anything.
func TestOutcome(t *testing.T) {
	w := newWorld(t, "", "", arn)
	w.tok.Generate(t, "payments", "01")
	request, keys := w.requestOf("room", nil)
	name := strings.TrimSuffix(request, ceremony.RequestExt)
	base, bin := filepath.Base(name), filepath.Join(filepath.Dir(name), ceremony.MaterialBin)
	stopAt := func(asks, answer, says string) {
		t.Helper()
		k := w.wrap(request)
		if k.until(w.questions(request), asks) == "" {
			t.Fatalf("%q was never asked:\n%s", asks, k.shown())
		}
		if _, err := k.in.Write([]byte(answer + "\n")); err != nil {
			t.Fatal(err)
		}
		if code := k.code(); code != 4 {
			t.Errorf("exit code %d", code)
		}
		matches(t, k.shown(), says)
	}
	refused := func(says string) {
		t.Helper()
		out := w.all(4, request)
		matches(t, out, says)
		if strings.Contains(out, "Step ") {
			t.Errorf("it is refused behind a step:\n%s", out)
		}
	}

	// A file that was there from the start, and one that came meanwhile.
	w.write("room/"+base+".report.json", []byte("{}"))
	refused(base + `\.report\.json is there already, without ` + base + `\.wrapped, and no file .*; else move it away, or work in another folder; nothing was wrapped\n`)
	w.rename(name+".report.json", name+".kept")
	if err := os.Symlink("nowhere", name+ceremony.WrappedExt); err != nil {
		t.Fatal(err)
	}
	refused(base + `\.wrapped is there already, .*; nothing was wrapped\n`)
	if err := os.Remove(name + ceremony.WrappedExt); err != nil {
		t.Fatal(err)
	}
	k := w.wrap(request)
	k.until(w.questions(request), "Type the name of the key")
	w.rename(name+".kept", name+".report.json")
	_, _ = k.in.Write([]byte("payments\n"))
	if code := k.code(); code != 4 {
		t.Errorf("exit code %d", code)
	}
	matches(t, k.shown(), `report\.json is there already, .*; nothing was wrapped\n`)
	w.rename(name+".report.json", name+".kept")
	stopAt("Type right", "stop", `"stop" is not "right", so the ceremony stops here; nothing was wrapped\. Run the same command to go on`)

	// The result was moved away, the reports were left.
	w.all(0, request)
	w.rename(name+ceremony.WrappedExt, name+".away")
	w.rename(bin, bin+".away")
	refused(base + `\.report\.txt, ` + base + `\.report\.json, ` + base + `\.report\.html are there already, without ` + base + `\.wrapped, .*: where that was moved away, put it back, and nothing is wrapped again; else move them away, or work in another folder; ` +
		`nothing was wrapped in this session; the HSM wrapped the key in an earlier one \(records \d+, \d+ of the log\), and no whole result of that is here\n`)
	for _, ext := range []string{".txt", ".json", ".html"} {
		w.rename(name+".report"+ext, name+".away"+ext)
	}
	stopAt("Type again", "stop", `so the ceremony stops here; nothing was wrapped in this session; the HSM wrapped the key in an earlier one \(records \d+, \d+ of the log\), and no whole result of that is here\. Run`)
	w.rename(name+".away", name+ceremony.WrappedExt)
	w.write("room/"+ceremony.MaterialBin, []byte("of somebody else"))
	refused(`EncryptedKeyMaterial\.bin is there already, .*; the key was wrapped, and ` + base + `\.wrapped is here: the same command wraps nothing more`)
	w.rename(bin+".away", bin)
	matches(t, w.all(0, request), `Nothing is wrapped again`)
	w.opens(request, keys)
}

// TestSignalWhileReading holds that one signal ends a command that waits for what comes out of a pipe.
func TestSignalWhileReading(t *testing.T) {
	w := newWorld(t, "", "", arn)
	pipe := filepath.Join(w.dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	for args, sig := range map[string]syscall.Signal{"show " + pipe: syscall.SIGTERM, "wrap -c " + pipe + " x.request": syscall.SIGINT, "wrap -c " + w.config + " " + pipe: syscall.SIGTERM} {
		k := w.start(func(*exec.Cmd) {}, strings.Fields(args)...)
		var writer *os.File
		for end := time.Now().Add(patience); writer == nil; time.Sleep(2 * time.Millisecond) { // until it has the pipe open
			var err error
			if writer, err = os.OpenFile(pipe, os.O_WRONLY|syscall.O_NONBLOCK, 0); err != nil && time.Now().After(end) {
				t.Fatal(err)
			}
		}
		if code := k.signal(sig); code != 130 {
			t.Errorf("%s: exit code %d after %v\n%s", args, code, sig, k.shown())
		}
		_ = writer.Close()
	}
}
