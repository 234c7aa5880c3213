package configs

import (
	"bytes"
	"errors"
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"hsmbridge/hsm/pkcs11uri"
	"hsmbridge/hsm/quirks"
	"hsmbridge/hsm/wrapping"
)

var update = flag.Bool("update", false, "write the golden files")

// golden compares got with a file, or writes it.
func golden(t *testing.T, file string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, got, 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s is not current (-file +now); go test ./configs -update writes it:\n%s", file, diff)
	}
}

func brokenFiles(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal("no testdata", err)
	}
	return files
}

// TestBroken compares everything that is said of each broken configuration with its golden file.
func TestBroken(t *testing.T) {
	for _, file := range brokenFiles(t) {
		t.Run(filepath.Base(file), func(t *testing.T) {
			c, err := Load(file)
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("Load: %v, want an *Error", err)
			}
			if c != nil {
				t.Error("a configuration is returned beside the error")
			}
			if e.File != file {
				t.Errorf("File = %s", e.File)
			}
			if strings.Contains(err.Error(), "not-to-be-shown") {
				t.Errorf("a secret is shown:\n%v", err)
			}
			golden(t, strings.TrimSuffix(file, ".yaml")+".golden", []byte(err.Error()+"\n"))
		})
	}
}

func TestSamples(t *testing.T) {
	files, err := filepath.Glob("*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		c, err := Load(file)
		if err != nil {
			t.Error(err)
			continue
		}
		for _, token := range c.Tokens {
			if !filepath.IsAbs(token.Module) || token.PINFile != "" && !filepath.IsAbs(token.PINFile) {
				t.Errorf("%s: %s is not absolute after Load", file, token.PINFile)
			}
		}
	}
	c, err := Parse("hsmbridge.yaml", Sample())
	if err != nil {
		t.Fatal(err)
	}
	retention := Duration(400 * 24 * time.Hour)
	want := &Config{
		Database: "/var/lib/hsmbridge/hsmbridge.db",
		KMS:      KMS{Region: "eu-central-1", WatchEvery: Duration(15 * time.Minute)},
		Control:  Control{Socket: "/run/hsmbridge/control.sock"},
		Metrics:  Metrics{Listen: "127.0.0.1:9464"},
		Web:      Web{Listen: "none"},
		Log:      Log{Level: "info", Format: "json"},

		Retention: Retention{Jobs: &retention},
		Audit:     Audit{Generate: GenerateNever, Every: Duration(5 * time.Minute)},
		Tokens: []Token{{
			Name: "demo", Module: "/usr/lib/softhsm/libsofthsm2.so", URI: pkcs11uri.URI{Token: "demo"}, PINFile: "demo.pin",
			Environment: map[string]string{"SOFTHSM2_CONF": "/etc/softhsm/softhsm2.conf"},
			Network:     NetworkNone, CallTimeout: Timeout(30 * time.Second),
		}},
		Keys: []Key{{
			Name: "payments", Token: "demo", URI: pkcs11uri.URI{Object: "payments", Type: "secret-key"}, KeySpec: wrapping.SymmetricDefault,
			Generate: GenerateIfMissing, Expires: Duration(90 * 24 * time.Hour), Prove: true, RenewBefore: Duration(30 * 24 * time.Hour),
			Destinations: []Destination{{ARN: "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"}},
		}},
	}
	if diff := cmp.Diff(want, c, internals()); diff != "" {
		t.Errorf("the sample (-want +got):\n%s", diff)
	}
}

// TestSampleNamesEveryOption holds that the sample explains every key there is.
func TestSampleNamesEveryOption(t *testing.T) {
	for _, name := range allKeys() {
		if !bytes.Contains(Sample(), []byte(name+":")) {
			t.Errorf("the sample does not show %s", name)
		}
	}
}

const minimal = `
tokens: [{name: demo, module: lib/p11.so, uri: "pkcs11:token=demo", pin_command: cat pin}]
keys:
  - name: k
    token: demo
    uri: "pkcs11:object=k;type=private"
    key_spec: ECC_NIST_EDWARDS25519
    expires: 1d12h
    prove: false
    destinations: [arn:aws-us-gov:kms:us-gov-west-1:111122223333:key/mrk-1234abcd12ab34cd56ef1234567890ab]
wrapping: {algorithms: [RSAES_OAEP_SHA_1, RSAES_PKCS1_V1_5], allow_pkcs1_v1_5: true, allow_padded_pkcs8: true}
`

func TestParse(t *testing.T) {
	c, err := Parse("x.yaml", []byte(minimal))
	if err != nil {
		t.Fatal(err)
	}
	k, ok := c.Key("k")
	if !ok || k.Generate != GenerateNever || k.Prove || k.Expires.Duration() != 36*time.Hour {
		t.Errorf("key: %+v", k)
	}
	d := k.Destinations[0]
	if got := []string{d.Partition(), d.Region(), d.Account(), d.KeyID()}; !cmp.Equal(got, []string{"aws-us-gov", "us-gov-west-1", "111122223333", "mrk-1234abcd12ab34cd56ef1234567890ab"}) {
		t.Errorf("destination: %q", got)
	}
	token, ok := c.Token("demo")
	if !ok || token.Module != "lib/p11.so" || !cmp.Equal(token.PINCommand, Command{"/bin/sh", "-c", "cat pin"}) {
		t.Errorf("token: %+v", token)
	}
	want := wrapping.Policy{
		Algorithms: []wrapping.Algorithm{wrapping.OAEPSHA1, wrapping.PKCS1v15}, AllowPKCS1v15: true, AllowPaddedPKCS8: true, Partition: d.Partition(),
	}
	if got := c.Wrapping.Policy(d.Partition()); !cmp.Equal(got, want) {
		t.Errorf("policy: %+v", got)
	}
	if _, ok := c.Token("other"); ok {
		t.Error("a token that is not there was found")
	}
	if _, ok := c.Key("other"); ok {
		t.Error("a key that is not there was found")
	}
}

func TestLoadResolvesPaths(t *testing.T) {
	folder := t.TempDir()
	if err := os.WriteFile(filepath.Join(folder, "c.yaml"), []byte(minimal), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Chdir(folder)
	c, err := Load("c.yaml")
	if err != nil {
		t.Fatal(err)
	}
	physical, err := filepath.EvalSymlinks(folder)
	if err != nil {
		t.Fatal(err)
	}
	if got := c.Tokens[0].Module; got != filepath.Join(folder, "lib/p11.so") && got != filepath.Join(physical, "lib/p11.so") {
		t.Errorf("module = %s", got)
	}
}

func TestLoadNoFile(t *testing.T) {
	_, err := Load(filepath.Join(t.TempDir(), "none.yaml"))
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "config init") {
		t.Errorf("Load: %v", err)
	}
	if _, err := Load(t.TempDir()); err == nil {
		t.Error("a folder was loaded")
	}
}

// TestLarge holds that a large file is refused without being read, and a hostile one in a time that grows as the file does: the YAML parser
// alone takes minutes and gigabytes for it. 8 times the size may take 8 times the time and some more; what is quadratic takes 64 times.
func TestLarge(t *testing.T) {
	file := filepath.Join(t.TempDir(), "large.yaml")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, 100<<20); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(file); err == nil || !strings.Contains(err.Error(), "larger than 64 MiB") {
		t.Errorf("Load: %v", err)
	}
	if _, err := Parse("x", bytes.Repeat([]byte("{"), maxBytes+1)); err == nil || !strings.Contains(err.Error(), "larger than 8 MiB") {
		t.Errorf("Parse: %v", err)
	}
	const small, large = 64 << 10, 512 << 10
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // its share of the time depends on what else is in memory
	size := large
	fill := func(part string) string { return strings.Repeat(part, size/len(part)) }
	hostile := func() map[string]string {
		return map[string]string{
			"brackets":         fill("["),
			"braces":           fill("{"),
			"pairs":            fill("{a: "),
			"dashes":           fill("- "),
			"question marks":   fill("? "),
			"anchors":          fill("&a "),
			"tags":             fill("!!a "),
			"directives":       fill("%a\n"),
			"documents":        fill("---\n"),
			"keys":             fill("a: 1\n"),
			"keys in a list":   "tokens:\n-\n" + fill("  a: 1\n"),
			"keys in braces":   "{" + fill("a: 1, ") + "}",
			"list":             "tokens:\n" + fill("- a: 1\n"),
			"list in brackets": "tokens: [" + fill("a, ") + "]",
			"one line":         fill("x"),
			"lines":            fill("x\n"),
			"colons":           fill("a:"),
			"commas":           fill(", "),
			"quotes":           fill("\"\" "),
			"unclosed":         "a: \"" + fill("x\n"),
			"empty lines":      fill("\n"),
			"comments":         fill("# x\n"),
		}
	}
	texts := hostile()
	size = small
	shorter := hostile()
	for name, text := range texts {
		t.Run(name, func(t *testing.T) {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			defer runtime.GC()
			for try := 1; ; try++ {
				first, then := refusedIn(t, shorter[name]), refusedIn(t, text)
				const most, often = 2 * large / small, 5
				if then < most*first || then < 20*time.Millisecond {
					return
				}
				if try == often { // the machine may have done something else in between
					t.Fatalf("%d KiB take %s, and %d KiB %s", small>>10, first, large>>10, then)
				}
			}
		})
	}
}

// refusedIn holds that a text is refused in few words, and gives the processor time that it took.
func refusedIn(t *testing.T, text string) time.Duration {
	t.Helper()
	began := threadTime(t)
	_, err := Parse("x", []byte(text))
	took := threadTime(t) - began
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("Parse: %v", err)
	}
	if len(e.Problems) > maxProblems+1 || len(err.Error()) > 1<<18 {
		t.Errorf("%d problems in %d bytes", len(e.Problems), len(err.Error()))
	}
	return took
}

// threadTime is the processor time of this thread so far.
func threadTime(t *testing.T) time.Duration {
	t.Helper()
	var at unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &at); err != nil {
		t.Fatal(err)
	}
	return time.Duration(at.Nano())
}

func TestDuration(t *testing.T) {
	for _, tt := range []struct {
		in, canonical string
		want          time.Duration
	}{
		{"never", "never", 0},
		{"90d", "90d", 90 * 24 * time.Hour},
		{"8760h", "365d", 365 * 24 * time.Hour},
		{"12h", "12h", 12 * time.Hour},
		{"30m", "30m", 30 * time.Minute},
		{"1d12h5m", "1d12h5m", 36*time.Hour + 5*time.Minute},
		{"90m", "1h30m", 90 * time.Minute},
	} {
		var d Duration
		if err := d.UnmarshalText([]byte(tt.in)); err != nil || d.Duration() != tt.want || d.String() != tt.canonical {
			t.Errorf("%s: %s (%d), %v", tt.in, d, d, err)
		}
	}
	for _, in := range []string{"", "0d", "0", "90", "d", "1w", "1y", "1.5d", "-1d", "+1d", "1h1d", "1d 2h", "100000d", "99999d24h", "99999d99999h99999m", "Never", "1s", "1d\n"} {
		var d Duration
		if err := d.UnmarshalText([]byte(in)); err == nil {
			t.Errorf("%q gives %s", in, d)
		}
	}
}

// FuzzParse holds that Parse never panics, that its mistakes lie in the file, and that what loads is written as
// YAML that loads to an equal configuration.
func FuzzParse(f *testing.F) {
	for _, pattern := range []string{"*.yaml", "testdata/*.yaml"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			f.Fatal(err)
		}
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(data)
		}
	}
	f.Add([]byte(minimal))
	f.Add([]byte(complete))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse("x.yaml", data)
		if err != nil {
			var e *Error
			if !errors.As(err, &e) || len(e.Problems) == 0 {
				t.Fatalf("error %#v", err)
			}
			for _, p := range e.Problems {
				if p.Line < 1 || p.Column < 1 || p.Message == "" || p.Line > bytes.Count(data, []byte("\n"))+bytes.Count(data, []byte("\r"))+1 {
					t.Fatalf("problem %+v in %q", p, data)
				}
			}
			_ = err.Error()
			return
		}
		text, err := yaml.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		again, err := Parse("x.yaml", text)
		if err != nil {
			t.Fatalf("%q is written as\n%s\nwhich does not load: %v", data, text, err)
		}
		if diff := cmp.Diff(c, again, internals()); diff != "" {
			t.Fatalf("%q is written as\n%s\nwhich loads to (-first +second):\n%s", data, text, diff)
		}
	})
}

// allKeys lists every key of the configuration.
func allKeys() []string {
	var names []string
	for _, t := range []reflect.Type{
		reflect.TypeFor[Config](), reflect.TypeFor[KMS](), reflect.TypeFor[Token](), reflect.TypeFor[quirks.Override](), reflect.TypeFor[Key](), reflect.TypeFor[Wrapping](),
		reflect.TypeFor[Schedule](), reflect.TypeFor[Window](), reflect.TypeFor[Backup](), reflect.TypeFor[Destination](),
		reflect.TypeFor[Quota](), reflect.TypeFor[Control](), reflect.TypeFor[Metrics](), reflect.TypeFor[Log](), reflect.TypeFor[Retention](),
	} {
		names = append(names, fieldNames(t)...)
	}
	return names
}

// internals leaves out what a configuration keeps beside what it was read from.
func internals() cmp.Option {
	return cmpopts.IgnoreUnexported(Config{}, Approval{})
}
