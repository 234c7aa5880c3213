package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"hsmbridge/daemon/approval"
)

// patience is more than anything takes here.
const patience = time.Minute

// fifo makes a pipe with a name. At the test's end nobody waits at it any more.
func fifo(t *testing.T, name string) string {
	t.Helper()
	if err := syscall.Mkfifo(name, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if f, err := os.OpenFile(name, os.O_RDWR, 0); err == nil {
			_ = f.Close()
		}
	})
	return name
}

// roomFiles writes a configuration and a request of its key, and gives their files.
func roomFiles(t *testing.T) (folder, config, request string) {
	t.Helper()
	folder = t.TempDir()
	const arn = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
	config = filepath.Join(folder, "room.yaml")
	write(t, config, `tokens: [{name: vault, module: /bin/true, uri: "pkcs11:token=vault", pin_prompt: true}]
keys: [{name: payments, token: vault, uri: "pkcs11:object=payments", key_spec: SYMMETRIC_DEFAULT, expires: never, destinations: ["`+arn+`"]}]
`)
	now := time.Now().UTC().Truncate(time.Second)
	q := approval.Request{
		Purpose: approval.Import, ID: "7K3M-9QXA-0B2C-D4EF", AskedBy: "x", AskedAt: now, ValidUntil: now.Add(time.Hour), Key: "payments", KeySpec: "SYMMETRIC_DEFAULT", Destination: arn,
		Action: "import", Algorithm: "RSAES_OAEP_SHA_1", WrappingSpec: "RSA_2048", Expires: "never", ParametersValidTo: now.Add(time.Hour),
	}
	text, err := q.Text()
	if err != nil {
		t.Fatal(err)
	}
	request = filepath.Join(folder, "payments-7K3M-9QXA-0B2C-D4EF.request")
	write(t, request, string(text))
	return folder, config, request
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestInterruptedWhileReading holds that a command ends when it is interrupted while it waits for a file: a pipe that nobody writes to holds it in open(2).
func TestInterruptedWhileReading(t *testing.T) {
	folder, config, request := roomFiles(t)
	pipe := fifo(t, filepath.Join(folder, "pipe"))
	from := filepath.Join(folder, "from")
	write(t, from, "no key")
	for _, args := range [][]string{
		{"show", pipe},
		{"can", "-c", pipe, "payments"},
		{"request", "-c", pipe, "--from", from, "payments"},
		{"wrap", "-c", pipe, request},
		{"wrap", "-c", config, pipe},
		{"wrap", "-c", config, "--signature", pipe, request},
	} {
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan int, 1)
		var out, errs strings.Builder
		go func() { ended <- (&app{in: strings.NewReader(""), out: &out, err: &errs}).run(ctx, args) }()
		stop()
		select {
		case code := <-ended:
			if code != exitInterrupted || errs.String() != "\nhsmceremony: interrupted; nothing was wrapped; run it again\n" {
				t.Errorf("%v: exit code %d, %s", args, code, errs.String())
			}
		case <-time.After(patience):
			t.Fatalf("%v: it does not end", args)
		}
	}
}

// TestReadsPipes holds that a pipe with a writer is read, such as a shell makes of <(...), and that AWS's files are not taken from one.
func TestReadsPipes(t *testing.T) {
	folder, config, request := roomFiles(t)
	text, err := os.ReadFile(request)
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close() //nolint:errcheck // it was only read
	go func() {
		_, _ = w.Write(text)
		_ = w.Close()
	}()
	var out, errs strings.Builder
	a := &app{in: strings.NewReader(""), out: &out, err: &errs}
	if code := a.run(t.Context(), []string{"show", fmt.Sprintf("/dev/fd/%d", r.Fd())}); code != exitDone || !strings.Contains(out.String(), "payments") {
		t.Errorf("exit code %d: %s%s", code, out.String(), errs.String())
	}
	pipe := fifo(t, filepath.Join(folder, "pipe"))
	ended := make(chan int, 1)
	go func() { ended <- a.run(t.Context(), []string{"request", "-c", config, "--from", pipe, "payments"}) }()
	select {
	case code := <-ended:
		if code != exitRefused || !strings.Contains(errs.String(), "pipe is not a regular file") {
			t.Errorf("exit code %d: %s", code, errs.String())
		}
	case <-time.After(patience):
		t.Fatal("it waits for the pipe")
	}
}

// TestMissingFiles holds the exit code of a file that is named and is not there, or is a folder, and that the help is named then.
func TestMissingFiles(t *testing.T) {
	folder, config, request := roomFiles(t)
	none := filepath.Join(folder, "nope")
	for _, tt := range []struct {
		args []string
		says string
	}{
		{[]string{"show", none}, none + " is not there"},
		{[]string{"show", config + "/x"}, config + "/x is not there"},
		{[]string{"show", folder}, folder + " is a folder, and a file is expected"},
		{[]string{"wrap", "-c", config, none}, none + " is not there"},
		{[]string{"wrap", "-c", config, "--signature", none, request}, none + " is not there"},
		{[]string{"wrap", "-c", config, "--trusted", "--so-pin-file", none, request}, none + " is not there"},
		{[]string{"request", "-c", config, "--from", none, "payments"}, none + " is not there"},
		{[]string{"request", "-c", config, "--from", config, "--out", none, "payments"}, none + " is not there"},
	} {
		var out, errs strings.Builder
		code := (&app{in: strings.NewReader(""), out: &out, err: &errs}).run(t.Context(), tt.args)
		if want := "hsmceremony: " + tt.says + "\nsee: hsmceremony " + tt.args[0] + " --help\n"; code != exitUsage || errs.String() != want || out.String() != "" {
			t.Errorf("%v: exit code %d, %s%s", tt.args, code, errs.String(), out.String())
		}
	}
	var errs strings.Builder
	if code := (&app{err: &errs}).run(t.Context(), []string{"wrap", "-c", none, request}); code != exitConfig {
		t.Errorf("the configuration: exit code %d, %s", code, errs.String())
	}
}
