package ceremony_test

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1" //nolint:gosec // RSAES_OAEP_SHA_1 is what SoftHSM2 does
	"crypto/x509"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"hsmbridge/daemon/approval"
	"hsmbridge/daemon/ceremony"
)

const arn = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"

// requestOf writes a request under wrapping keys that the test has the private halves of.
func (w *world) requestOf(folder string, change func(*approval.Request)) (string, []*rsa.PrivateKey) {
	w.t.Helper()
	now := time.Now().UTC().Truncate(time.Second)
	q := approval.Request{
		Purpose: approval.Import, AskedBy: "operator", AskedAt: now, ValidUntil: now.Add(20 * time.Hour), Key: "payments", KeySpec: "SYMMETRIC_DEFAULT",
		Object: "pkcs11:object=payments;type=secret-key", Destination: arn, Action: "import", Algorithm: "RSAES_OAEP_SHA_1", WrappingSpec: "RSA_2048",
		Expires: "never", ParametersValidTo: now.Add(20 * time.Hour),
	}
	var keys []*rsa.PrivateKey
	for range 2 {
		k, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			w.t.Fatal(err)
		}
		der, err := x509.MarshalPKIXPublicKey(&k.PublicKey)
		if err != nil {
			w.t.Fatal(err)
		}
		keys, q.WrappingKeys = append(keys, k), append(q.WrappingKeys, der)
	}
	var err error
	if q.ID, err = approval.NewID(rand.Reader); err != nil {
		w.t.Fatal(err)
	}
	if change != nil {
		change(&q)
	}
	text, err := q.Text()
	if err != nil {
		w.t.Fatal(err)
	}
	return w.write(filepath.Join(folder, "payments-"+q.ID+ceremony.RequestExt), text), keys
}

// opens holds that the wrapped key is one key, under each of the private halves.
func (w *world) opens(request string, keys []*rsa.PrivateKey) {
	w.t.Helper()
	text := w.read(strings.TrimSuffix(request, ceremony.RequestExt) + ceremony.WrappedExt)
	got, err := ceremony.ParseWrapped(text)
	if err != nil {
		w.t.Fatal(err)
	}
	var first []byte
	for i, k := range keys {
		key, err := rsa.DecryptOAEP(sha1.New(), nil, k, got.Keys[i].Bytes, nil) //nolint:gosec // see the import
		if err != nil || len(key) != 32 || first != nil && !bytes.Equal(key, first) {
			w.t.Errorf("output %d does not open as the same key: %v", i, err)
		}
		first = key
	}
	if bin := w.read(filepath.Join(filepath.Dir(request), ceremony.MaterialBin)); !bytes.Equal(bin, got.Keys[0].Bytes) {
		w.t.Error("EncryptedKeyMaterial.bin is something else")
	}
}

func (w *world) log(request string) string {
	w.t.Helper()
	out, code := w.hsmceremony("show", strings.TrimSuffix(request, ceremony.RequestExt)+ceremony.LogExt)
	if code != 0 {
		w.t.Errorf("the log is refused:\n%s", out)
	}
	if !strings.Contains(out, "as on the paper: the log: ") {
		w.t.Errorf("the root is not shown as it was written on paper:\n%s", out)
	}
	return out
}

// TestKilledAtEveryStep kills the session with each question open, and in the wrap. The next one goes on, and in the end there is one
// wrapped key, one log that is whole, and nothing in the HSM that was not there before.
func TestKilledAtEveryStep(t *testing.T) {
	w := newWorld(t, "", "", arn)
	w.tok.Generate(t, "payments", "01")
	before := w.objects()
	request, keys := w.requestOf("room", nil)
	questions := w.questions(request)
	for _, asks := range []string{
		"Name of the person who operates:", "Name of the person who watches:", "Type the four groups", "Are the same people here?", "Type none", "Type right",
		"Type the last 4", "Type the label", "Press Enter", "Type the name of the key", "Type again",
	} {
		k := w.wrap(request)
		if k.until(questions, asks) == "" {
			t.Fatalf("%q was never asked:\n%s", asks, k.shown())
		}
		sig := syscall.SIGKILL
		if asks == "Type right" || asks == "Type the label" {
			sig = syscall.SIGINT
		}
		code := k.signal(sig)
		if sig == syscall.SIGINT && (code != 130 || !strings.Contains(k.shown(), "run it again: it goes on where it was")) {
			t.Errorf("after Ctrl-C: exit code %d\n%s", code, k.shown())
		}
		if asks == "Type the name of the key" { // from here on there is a wrap whose result was lost
			w.killInTheWrap(request)
		}
		if _, err := os.Stat(filepath.Join(w.dir, "room", ceremony.MaterialBin)); err == nil {
			t.Fatal("something was wrapped before it was confirmed")
		}
	}
	out := w.all(0, request)
	matches(t, out, `ATTENTION\. The HSM was asked to wrap this key before, and the result is not here`)
	w.opens(request, keys)
	log := w.log(request)
	matches(t, log, `ceremony-check +wraps were begun before \(\d+\), and their result is not here; people decided to go on`)
	matches(t, log, `ceremony-end +the session stopped before the key was wrapped`)
	matches(t, log, `ceremony-end +the key was wrapped`)
	if after := w.objects(); after != before {
		t.Errorf("the HSM held\n%s\nand holds\n%s", before, after)
	}
	matches(t, w.all(0, request), `Nothing is wrapped again`)
}

// killInTheWrap ends a session between the record that the HSM is asked next and the file with the result.
func (w *world) killInTheWrap(request string) {
	w.t.Helper()
	for range 50 {
		k := w.wrap(request)
		questions := w.questions(request)
		if k.until(questions, "Type the name of the key") == "" {
			w.t.Fatalf("it was never asked:\n%s", k.shown())
		}
		logFile := strings.TrimSuffix(request, ceremony.RequestExt) + ceremony.LogExt
		had := bytes.Count(w.read(logFile), []byte("the key is wrapped next"))
		if _, err := k.in.Write([]byte("payments\n")); err != nil {
			w.t.Fatal(err)
		}
		for bytes.Count(w.read(logFile), []byte("the key is wrapped next")) == had {
			select {
			case <-k.ended:
			default:
				continue
			}
			break
		}
		k.signal(syscall.SIGKILL)
		name := strings.TrimSuffix(request, ceremony.RequestExt)
		if _, err := os.Stat(name + ceremony.WrappedExt); err != nil {
			return
		}
		for _, f := range []string{ceremony.WrappedExt, ceremony.ReportExt + ".txt", ceremony.ReportExt + ".json", ceremony.ReportExt + ".html"} { // it was too quick
			_ = os.Remove(name + f)
		}
		_ = os.Remove(filepath.Join(filepath.Dir(name), ceremony.MaterialBin))
	}
	w.t.Fatal("the session could not be killed in the wrap")
}

// TestKilledAtEveryRecord goes on from each state that a power cut can leave in and behind the wrap: every record of the log is on the disk
// before the next thing is done, and a file is there whole or not at all.
func TestKilledAtEveryRecord(t *testing.T) {
	w := newWorld(t, "", "", arn)
	w.tok.Generate(t, "payments", "01")
	request, keys := w.requestOf("done", nil)
	w.all(0, request)
	name := strings.TrimSuffix(filepath.Base(request), ceremony.RequestExt)
	lines := bytes.SplitAfter(w.read(filepath.Join(w.dir, "done", name+ceremony.LogExt)), []byte("\n"))
	wrapped := w.read(filepath.Join(w.dir, "done", name+ceremony.WrappedExt))
	wraps, written := 0, 0
	for i, l := range lines {
		switch {
		case wraps == 0 && bytes.Contains(l, []byte(`"ceremony-wrap"`)):
			wraps = i
		case bytes.Contains(l, []byte(`"ceremony-write"`)):
			written = i
		}
	}
	for n := wraps + 1; n <= len(lines)-1; n++ {
		for _, withFile := range []bool{false, true} {
			if withFile != (n >= written) && n != written {
				continue
			}
			folder := filepath.Join("cut", string(rune('a'+n)), map[bool]string{false: "lost", true: "kept"}[withFile])
			again := w.write(filepath.Join(folder, filepath.Base(request)), w.read(request))
			w.write(filepath.Join(folder, name+ceremony.LogExt), append(bytes.Join(lines[:n], nil), lines[n][:len(lines[n])/2]...))
			if withFile {
				w.write(filepath.Join(folder, name+ceremony.WrappedExt), wrapped)
				w.write(filepath.Join(folder, name+ceremony.ReportExt+".txt.part"), []byte("half a rep"))
			}
			out := w.all(0, again)
			w.opens(again, keys)
			log := w.log(again)
			matches(t, log, `ceremony-end +the key was wrapped`)
			if asked := strings.Contains(out, "ATTENTION"); asked == withFile {
				t.Errorf("after %d records, result kept %v: the earlier wrap was shown: %v\n%s", n, withFile, asked, out)
			}
			if !withFile {
				matches(t, log, `people decided to go on`)
			} else if bytes.Count([]byte(log), []byte("is wrapped next")) != 2 {
				t.Errorf("it was wrapped once more:\n%s", log)
			}
			if _, err := os.Stat(filepath.Join(w.dir, folder, name+ceremony.ReportExt+".html")); err != nil {
				t.Error(err)
			}
		}
	}
}

// TestRoomRefuses holds what a session says before anything is asked.
func TestRoomRefuses(t *testing.T) {
	w := newWorld(t, "", "", arn)
	w.tok.Generate(t, "payments", "01")
	soon := func(left time.Duration) func(*approval.Request) {
		return func(q *approval.Request) { q.ParametersValidTo = time.Now().UTC().Add(left).Truncate(time.Second) }
	}
	for folder, tc := range map[string]struct {
		change func(*approval.Request)
		says   string
	}{
		"expired":     {soon(-time.Hour), `the import parameters expired at .*fetch new ones`},
		"nearly":      {soon(10 * time.Minute), `the import parameters expire in (10m0s|9m\d+s), at .*, and at least 15m0s must be left`},
		"HSM":         {func(q *approval.Request) { q.Serial = "ffff" }, `the request is for the HSM with serial ffff, and this one has ` + w.tok.Serial},
		"key":         {func(q *approval.Request) { q.Material = "check value 000000" }, `it is another key`},
		"destination": {func(q *approval.Request) { q.Destination = strings.Replace(arn, "1234", "9999", 1) }, `it was changed`},
	} {
		request, _ := w.requestOf(folder, tc.change)
		matches(t, strings.Join(strings.Fields(w.all(4, request)), " "), tc.says)
	}
	// A wrapping key is used once.
	request, _ := w.requestOf("twice", nil)
	w.all(0, request)
	q, err := approval.Parse(w.read(request))
	if err != nil {
		t.Fatal(err)
	}
	second, _ := w.requestOf("twice", func(r *approval.Request) { r.WrappingKeys = q.WrappingKeys })
	matches(t, w.all(4, second), `the wrapping key of this request was used before, in request `+q.ID)
	// Another ceremony's result in the folder is not carried out by mistake.
	third, _ := w.requestOf("twice", nil)
	matches(t, w.all(4, third), `EncryptedKeyMaterial\.bin is there already`)
	// Two sessions at once.
	fourth, _ := w.requestOf("twice4", nil)
	k := w.wrap(fourth)
	k.until(w.questions(fourth), "Name of the person who operates:")
	matches(t, w.all(4, fourth), `another hsmceremony is at work on request`)
	k.signal(syscall.SIGKILL)
}
