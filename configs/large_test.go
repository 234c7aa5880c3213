package configs

import (
	"fmt"
	"strings"
	"testing"
)

// largeConfig is a configuration of n keys, eight lines each.
func largeConfig(n int) []byte {
	var b strings.Builder
	b.WriteString("tokens:\n  - {name: demo, module: /lib/p11.so, uri: \"pkcs11:token=demo\", pin_file: pin}\nkeys:\n")
	for i := range n {
		fmt.Fprintf(&b, `  - name: key-%05d
    token: demo
    uri: "pkcs11:object=key-%05d;type=secret-key"
    key_spec: SYMMETRIC_DEFAULT
    expires: 90d
    renew_before: 30d
    destinations:
      - "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-%012d"
`, i, i, i)
	}
	return []byte(b.String())
}

// TestTenThousandKeys holds that a configuration of ten thousand keys loads, and that a mistake in its last line is found there.
func TestTenThousandKeys(t *testing.T) {
	data := largeConfig(10_000)
	c, err := Parse("large.yaml", data)
	if err != nil || len(c.Keys) != 10_000 || c.Keys[9_999].Name != "key-09999" {
		t.Fatal(err)
	}
	_, err = Parse("large.yaml", append(data, "    colour: red\n"...))
	if err == nil || !strings.Contains(err.Error(), `large.yaml:80004:5: unknown key "colour"`) {
		t.Errorf("Parse: %v", err)
	}
}

// TestHundredThousandKeys holds that a file beyond what the YAML parser gets loads, and that what is wrong in it is said with its place.
func TestHundredThousandKeys(t *testing.T) {
	data := append(largeConfig(100_000), "log: {level: loud}\n"...)
	_, err := Parse("large.yaml", data)
	if err == nil || err.Error() != "large.yaml:800004:14: \"loud\" is not one of debug, info, warn, error\n    log: {level: loud}\n                 ^" {
		t.Fatal(err)
	}
	c, err := Parse("large.yaml", data[:len(data)-len("log: {level: loud}\n")])
	if err != nil || len(c.Keys) != 100_000 {
		t.Fatal(err)
	}
	if k, ok := c.Key("key-99999"); !ok || k.URI.Object != "key-99999" {
		t.Error(k)
	}
}

func BenchmarkLoad10000(b *testing.B) {
	data := largeConfig(10_000)
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Parse("large.yaml", data); err != nil {
			b.Fatal(err)
		}
	}
}
