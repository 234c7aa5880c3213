package approval_test

import (
	"bytes"
	"encoding/pem"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"hsmbridge/daemon/approval"
)

const requestGolden = "testdata/request.golden"

// The text is what officers have signed: a change to its form makes their signatures worthless.
func TestText(t *testing.T) {
	text := textOf(t, sample())
	if want := readFile(t, requestGolden); !bytes.Equal(text, want) {
		t.Errorf("got\n%s\nwant\n%s", text, want)
	}
	if got := fmt.Sprintf("%x", approval.Digest(text)); got != "3ee7bedb64aed15540ef4a88aa3f1d42219dcdc239b4ac12126b1c0a485c4c25" {
		t.Errorf("its SHA-256 is %s", got)
	}
}

// What is written is read again, the same.
func TestParse(t *testing.T) {
	least := approval.Request{ID: "x", Purpose: approval.Revoke, AskedBy: "operator", AskedAt: askedAt, ValidUntil: askedAt, Key: "k"}
	one := sample()
	one.WrappingKeys = one.WrappingKeys[:1]
	zone := sample()
	zone.AskedAt = askedAt.In(time.FixedZone("", -5*3600))
	standing, waive := sample(), least
	standing.Purpose, waive.Purpose = approval.Standing, approval.Waive
	odd := least
	odd.Why, odd.Key, odd.Object = `a: b  c "d" \ `+"'é'", "名前", strings.Repeat("x", 700)
	odd.WrappingKeys = [][]byte{[]byte("\x00 any bytes")}
	for name, r := range map[string]approval.Request{
		"every field": sample(), "only what is required": least, "one wrapping key": one, "another time zone": zone,
		"standing": standing, "waive": waive, "odd values": odd,
	} {
		text := textOf(t, r)
		got, err := approval.Parse(text)
		if err != nil {
			t.Errorf("%s: %v\n%s", name, err, text)
			continue
		}
		r.AskedAt = r.AskedAt.UTC()
		if !reflect.DeepEqual(got, r) {
			t.Errorf("%s: got\n%+v\nwant\n%+v", name, got, r)
		}
		if again := textOf(t, got); !bytes.Equal(again, text) {
			t.Errorf("%s: written again it is\n%s", name, again)
		}
	}
}

// What cannot be written as one unambiguous text is no request.
func TestTextRefused(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*approval.Request)
		want   string
	}{
		{"no purpose", func(r *approval.Request) { r.Purpose = "" }, `"" is no purpose of a request`},
		{"an unknown purpose", func(r *approval.Request) { r.Purpose = "export" }, `"export" is no purpose of a request`},
		{"no ID", func(r *approval.Request) { r.ID = "" }, `a request needs a value for "request"`},
		{"nobody asked", func(r *approval.Request) { r.AskedBy = "" }, `a request needs a value for "asked by"`},
		{"no time", func(r *approval.Request) { r.AskedAt = time.Time{} }, `a request needs a value for "asked at"`},
		{"no end", func(r *approval.Request) { r.ValidUntil = time.Time{} }, `a request needs a value for "valid until"`},
		{"no key", func(r *approval.Request) { r.Key = "" }, `a request needs a value for "key"`},
		{"fractions of a second", func(r *approval.Request) { r.AskedAt = askedAt.Add(time.Millisecond) }, "asked at: times are in whole seconds"},
		{"a line of its own", func(r *approval.Request) { r.Why = "x\nkey: other" }, `why: "x\nkey: other" has characters that cannot be shown in one line`},
		{"a carriage return", func(r *approval.Request) { r.Why = "x\rkey" }, `why: "x\rkey" has characters that cannot be shown in one line`},
		{"an escape sequence", func(r *approval.Request) { r.Key = "a\x1b[2Jb" }, `key: "a\x1b[2Jb" has characters that cannot be shown in one line`},
		{"text from right to left", func(r *approval.Request) { r.Key = "a\u202eb" }, `key: "a\u202eb" has characters that cannot be shown in one line`},
		{"a space that is not seen", func(r *approval.Request) { r.Key = "a\u200bb" }, `key: "a\u200bb" has characters that cannot be shown in one line`},
		{"a letter that is not seen", func(r *approval.Request) { r.Key = "a\u3164" }, "key: \"a\u3164\" has characters that cannot be shown in one line"},
		{"a blank of Braille", func(r *approval.Request) { r.Key = "a\u2800b" }, "key: \"a\u2800b\" has characters that cannot be shown in one line"},
		{"a variation of a letter", func(r *approval.Request) { r.Key = "a\ufe0f" }, "key: \"a\ufe0f\" has characters that cannot be shown in one line"},
		{"no UTF-8", func(r *approval.Request) { r.Key = "a\xff" }, `key: "a\xff" has characters that cannot be shown in one line`},
		{"the sign for no UTF-8", func(r *approval.Request) { r.Key = "a\ufffd" }, "key: \"a\ufffd\" has characters that cannot be shown in one line"},
		{"a space in front", func(r *approval.Request) { r.Token = " a" }, `token: " a" has characters that cannot be shown in one line`},
		{"a space behind", func(r *approval.Request) { r.Token = "a " }, `token: "a " has characters that cannot be shown in one line`},
		{"too long", func(r *approval.Request) { r.Why = strings.Repeat("x", 701) }, `why: "` + strings.Repeat("x", 80) + `" has characters that cannot be shown in one line`},
		{"three wrapping keys", func(r *approval.Request) { r.WrappingKeys = append(r.WrappingKeys, spki("third")) }, "a request has at most 2 wrapping keys"},
		{"too long in all", func(r *approval.Request) { r.WrappingKeys = [][]byte{make([]byte, 64<<10)} }, "the text has 90165 bytes and may have 65536"},
	} {
		r := sample()
		c.change(&r)
		if text, err := r.Text(); err == nil || err.Error() != c.want {
			t.Errorf("%s: %v\n%s", c.name, err, text)
		}
	}
}

const edited = "it is not written as hsmbridge writes it: somebody edited it, or a mail program changed it"

// Every text but those that hsmbridge writes is refused, with the line.
func TestParseRefused(t *testing.T) {
	good := string(textOf(t, sample()))
	replace := func(old, with string) func(string) string {
		return func(s string) string {
			if !strings.Contains(s, old) {
				t.Fatalf("%q is not there", old)
			}
			return strings.Replace(s, old, with, 1)
		}
	}
	block := func(kind string, der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	for _, c := range []struct {
		name   string
		change func(string) string
		line   int
		reason string
	}{
		{"nothing", func(string) string { return "" }, 1, `it does not begin with "hsmbridge request for approval, version 1"`},
		{"another version", replace("version 1", "version 2"), 1, `it does not begin with "hsmbridge request for approval, version 1"`},
		{"a byte order mark", func(s string) string { return "\ufeff" + s }, 1, `it does not begin with "hsmbridge request for approval, version 1"`},
		{"lines as Windows ends them", func(s string) string { return strings.ReplaceAll(s, "\n", "\r\n") }, 1, `it does not begin with "hsmbridge request for approval, version 1"`},
		{"a line in front", func(s string) string { return "\n" + s }, 1, `it does not begin with "hsmbridge request for approval, version 1"`},
		{"only its first line", func(s string) string { return s[:strings.Index(s, "\n")+1] }, 4, `"" is no purpose of a request`},
		{"too long", func(s string) string { return s + strings.Repeat("x", 64<<10) }, 1, "the file has 67213 bytes, and a request has at most 65536"},
		{"another sentence", replace("lets hsmbridge", "does not let hsmbridge"), 3, edited},
		{"the sentence of another purpose", replace("purpose:              import", "purpose:              standing"), 3, edited},
		{"an unknown purpose", replace("purpose:              import", "purpose:              export"), 6, `"export" is no purpose of a request`},
		{"no name", replace("key:                  payments", "payments"), 11, "it has no name and value"},
		{"an unknown field", replace("key spec:", "colour:  "), 12, `"colour" is unknown here, or stands there twice or in the wrong place`},
		{"a field twice", replace("key spec:", "key:                  other\nkey spec:"), 12, `"key" is unknown here, or stands there twice or in the wrong place`},
		{"fields in another order", replace("action:               import\nwrapping algorithm:   RSAES_OAEP_SHA_256\n", "wrapping algorithm:   RSAES_OAEP_SHA_256\naction:               import\n"), 22, `"action" is unknown here, or stands there twice or in the wrong place`},
		{"a name in capitals", replace("key spec:", "Key spec:"), 12, `"Key spec" is unknown here, or stands there twice or in the wrong place`},
		{"no value", replace("SYMMETRIC_DEFAULT", ""), 12, edited},
		{"nobody asked", replace("asked by:             operator\n", ""), 39, `a request needs a value for "asked by"`},
		{"one space more", replace("key:    ", "key:     "), 11, edited},
		{"one space less", replace("key:    ", "key:   "), 11, edited},
		{"a space at the end", replace("payments\n", "payments \n"), 11, `key: "payments " has characters that cannot be shown in one line`},
		{"a tab", replace("key:                  ", "key:\t"), 11, `key: "\tpayments" has characters that cannot be shown in one line`},
		{"no time", replace("2030-01-31T12:00:00Z", "yesterday"), 8, "asked at is not a time such as 2030-01-31T12:00:00Z"},
		{"no such day", replace("2030-01-31T12:00:00Z", "2030-02-31T12:00:00Z"), 8, "asked at is not a time such as 2030-01-31T12:00:00Z"},
		{"another time zone", replace("2030-01-31T12:00:00Z", "2030-01-31T13:00:00+01:00"), 8, edited},
		{"fractions of a second", replace("2030-01-31T12:00:00Z", "2030-01-31T12:00:00.5Z"), 8, "asked at: times are in whole seconds"},
		{"a fraction that is zero", replace("2030-01-31T12:00:00Z", "2030-01-31T12:00:00.0Z"), 8, edited},
		{"another fingerprint", replace("wrapping key SHA-256: ", "wrapping key SHA-256: 0"), 31, edited},
		{"no fingerprint", func(s string) string {
			i := strings.Index(s, "wrapping key SHA-256:")
			return s[:i] + s[i+strings.Index(s[i:], "\n")+1:]
		}, 31, edited},
		{"a field behind the fingerprints", replace("\n\n-----BEGIN", "\nplan: x\n\n-----BEGIN"), 33, `"plan" is unknown here, or stands there twice or in the wrong place`},
		{"a private key", func(s string) string { return strings.ReplaceAll(s, "PUBLIC KEY", "PRIVATE KEY") }, 34, "only public keys in PEM may follow"},
		{"a third key", func(s string) string { return s + "\n" + block("PUBLIC KEY", spki("third")) }, 42, "only public keys in PEM may follow"},
		{"text behind the keys", func(s string) string { return s + "\nP.S. also the other key\n" }, 42, "only public keys in PEM may follow"},
		{"text between the keys", replace("-----END PUBLIC KEY-----\n\n", "-----END PUBLIC KEY-----\n\nhello\n"), 38, edited},
		{"a line at the end", func(s string) string { return s + "\n" }, 42, "only public keys in PEM may follow"},
		{"no line feed at the end", func(s string) string { return strings.TrimSuffix(s, "\n") }, 40, edited},
		{"a NUL at the end", func(s string) string { return s + "\x00" }, 42, "only public keys in PEM may follow"},
		{"headers in PEM", replace("-----BEGIN PUBLIC KEY-----\n", "-----BEGIN PUBLIC KEY-----\nA: b\n\n"), 35, edited},
	} {
		_, err := approval.Parse([]byte(c.change(good)))
		var e *approval.FormatError
		if !errors.As(err, &e) {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if e.Line != c.line || e.Reason != c.reason {
			t.Errorf("%s: line %d: %s", c.name, e.Line, e.Reason)
		}
		if want := fmt.Sprintf("this is not a request for approval as hsmbridge writes it: line %d: %s", e.Line, e.Reason); e.Error() != want {
			t.Errorf("%s: %v", c.name, e)
		}
	}
}
