package pipeline

import (
	"flag"
	"fmt"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"hsmbridge/hsm/wrapping"
	"hsmbridge/kmsclient"
	"hsmbridge/test/e2e"
	"hsmbridge/test/softhsm"
	"hsmbridge/test/token"
	"hsmbridge/test/turns"
)

var keys = flag.Int("keys", 100, "how many keys BenchmarkImportMany imports")

// lifted are request quotas that hold nothing up: AWS's own would hold up both sides alike, to one import a second for each account and Region.
const lifted = "quotas:\n  - {operation: GetParametersForImport, rate: 1000/s}\n  - {operation: ImportKeyMaterial, rate: 1000/s}\n"

// world is a token, a KMS, and what both sides need.
type world struct {
	tok  token.Token
	emu  *e2e.Emulator
	kms  *kmsclient.Client
	work string
	env  []string
}

func newWorld(b *testing.B) *world {
	b.Helper()
	tok := softhsm.New(b, "pipeline").Token
	emu := e2e.StartEmulator(b)
	w := &world{tok: tok, emu: emu, kms: emu.Client(), work: b.TempDir()}
	w.env = append(e2e.Environ(), "MODULE="+tok.Module, "TOKEN="+tok.Label, "PIN_FILE="+tok.PINFile(b), "ENDPOINT="+emu.Endpoint, "WORK="+w.work)
	for name, value := range tok.Environment {
		w.env = append(w.env, name+"="+value)
	}
	return w
}

// keys makes n AES keys in the token, and for each a KMS key that waits for material. They can be read out of the token, as the pipeline needs it.
func (w *world) keys(b *testing.B, name string, n int) []e2e.Key {
	b.Helper()
	var out []e2e.Key
	for i := range n {
		label := fmt.Sprintf("%s-%d", name, i)
		w.tok.Tool(b, "--login", "--keygen", "--key-type", "AES:32", "--label", label, "--id", fmt.Sprintf("%06x", time.Now().UnixNano()&0xffffff), "--extractable")
		out = append(out, e2e.Key{Name: label, Spec: wrapping.SymmetricDefault, Expires: "never", Destinations: []string{w.emu.CreateKey(w.kms, wrapping.SymmetricDefault)}})
	}
	return out
}

// today imports each key by the script.
func (w *world) today(b *testing.B, keys []e2e.Key) time.Duration {
	b.Helper()
	script, err := filepath.Abs("testdata/today.sh")
	if err != nil {
		b.Fatal(err)
	}
	begin := time.Now()
	for _, k := range keys {
		cmd := exec.CommandContext(b.Context(), "bash", script, k.Destinations[0], k.Name)
		cmd.Env = w.env
		if out, err := cmd.CombinedOutput(); err != nil {
			b.Fatalf("the pipeline: %v\n%s", err, out)
		}
	}
	took := time.Since(begin)
	w.check(b, keys)
	return took
}

// hsmbridge imports all keys by one command.
func (w *world) hsmbridge(b *testing.B, config string, keys []e2e.Key, flags ...string) time.Duration {
	b.Helper()
	begin := time.Now()
	out := e2e.Run(b, config, append([]string{"import", "--all", "--json"}, flags...)...)
	took := time.Since(begin)
	if out.Code != 0 {
		b.Fatalf("hsmbridge import: exit code %d\n%s\n%s", out.Code, out.Stdout, out.Stderr)
	}
	w.check(b, keys)
	return took
}

// check holds that KMS has the material of every key.
func (w *world) check(b *testing.B, keys []e2e.Key) {
	b.Helper()
	for _, k := range keys {
		info, err := w.kms.DescribeKey(b.Context(), k.Destinations[0])
		if err != nil || info.State != "Enabled" {
			b.Fatalf("%s: %+v, %v", k.Name, info, err)
		}
	}
}

// BenchmarkImportOne imports one key after another: by the pipeline of today, by hsmbridge without proof, which is the same work, and by hsmbridge as it
// is, which proves with a second wrap and import that KMS holds the same key. Each import of hsmbridge starts it and its module's process anew.
func BenchmarkImportOne(b *testing.B) { bench(b, 1) }

// BenchmarkImportMany is the same for -keys keys: the pipeline one after another, hsmbridge by one `import --all`.
func BenchmarkImportMany(b *testing.B) { bench(b, *keys) }

func bench(b *testing.B, n int) {
	b.Helper()
	w := newWorld(b)
	made := 0
	fresh := func() []e2e.Key {
		made++
		return w.keys(b, fmt.Sprintf("k%d", made), n)
	}
	hsmbridge := func(flags ...string) func(int) time.Duration {
		return func(int) time.Duration {
			keys := fresh()
			return w.hsmbridge(b, e2e.Config(b, w.emu.Endpoint, w.tok, keys, lifted), keys, flags...)
		}
	}
	t := turns.New(func(int) time.Duration { return w.today(b, fresh()) }, hsmbridge("--no-prove"), hsmbridge())
	for b.Loop() {
		t.Take(n)
	}
	per := func(way int) float64 { return t.Middle(way).Seconds() * 1000 / float64(n) }
	b.ReportMetric(per(0), "today-ms/key")
	b.ReportMetric(per(1), "no-prove-ms/key")
	b.ReportMetric(per(2), "import-ms/key")
	b.ReportMetric(t.Ratio(1, 0), "times-faster")
	b.ReportMetric(t.Ratio(2, 0), "times-faster-proved")
	b.ReportMetric(float64(n), "keys")
	b.ReportMetric(0, "ns/op") // an op is a turn of all three
}
