package ceremony_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hsmbridge/daemon/approval"
	"hsmbridge/daemon/ceremony"
)

func mustText(t testing.TB, f interface{ Text() ([]byte, error) }) string {
	t.Helper()
	text, err := f.Text()
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// says holds that an error is there and says it.
func says(t testing.TB, err error, want string) {
	t.Helper()
	var classed interface{ Class() string }
	switch {
	case err == nil:
		t.Fatalf("it was taken; it should be refused: %s", want)
	case !strings.Contains(err.Error(), want):
		t.Errorf("it says\n  %v\nand not\n  %s", err, want)
	case !errors.As(err, &classed) || classed.Class() != "caller":
		t.Errorf("%v is not the caller's", err)
	}
}

func TestRoundTrips(t *testing.T) {
	tok := tokens(t)
	bare := tok
	bare.Endpoint, bare.IDs, bare.Tokens = "", "", bare.Tokens[:1]
	for _, want := range []ceremony.Tokens{tok, bare} {
		got, err := ceremony.ParseTokens([]byte(mustText(t, want)))
		if d := cmp.Diff(want, got); err != nil || d != "" {
			t.Errorf("%v\n%s", err, d)
		}
	}
	symmetric := wrapped(t)
	mac, pair := wrapped(t), wrapped(t)
	mac.Keys, mac.MAC = mac.Keys[:1], strings.Repeat("ab", 32)
	pair.Keys, pair.Public, pair.Material = pair.Keys[:1], spki("pair", 2048), ""
	for _, want := range []ceremony.Wrapped{symmetric, mac, pair} {
		got, err := ceremony.ParseWrapped([]byte(mustText(t, want)))
		if d := cmp.Diff(want, got); err != nil || d != "" {
			t.Errorf("%v\n%s", err, d)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	tok, w := mustText(t, tokens(t)), mustText(t, wrapped(t))
	const edited = "somebody edited it, or a program changed it on the way"
	parseTokens := func(s string) error { _, err := ceremony.ParseTokens([]byte(s)); return err }
	parseWrapped := func(s string) error { _, err := ceremony.ParseWrapped([]byte(s)); return err }
	change := strings.Replace
	for name, tc := range map[string]struct {
		err  error
		says string
	}{
		"empty":               {parseTokens(""), `does not begin with "hsmbridge import token, version 1"`},
		"the other kind":      {parseTokens(w), `this is no file with import tokens: it does not begin with`},
		"a later version":     {parseWrapped(change(w, "version 1", "version 2", 1)), `does not begin with "hsmbridge wrapped key, version 1"`},
		"too long":            {parseWrapped(w + strings.Repeat("x", 300<<10)), "bytes"},
		"cut in a line":       {parseTokens(before(tok, " SHA-256:")), `the line "request" has no name and value`},
		"cut in a block":      {parseTokens(tok[:len(tok)-40]), "only blocks in PEM may follow"},
		"without its blocks":  {parseWrapped(before(w, "\n-----")), "one or two wrapping keys, not 0"},
		"CRLF":                {parseTokens(strings.ReplaceAll(tok, "\n", "\r\n")), "does not begin with"},
		"no end of line":      {parseTokens(strings.TrimSuffix(tok, "\n")), edited},
		"something behind":    {parseTokens(tok + "x"), "only blocks in PEM"},
		"a blank line behind": {parseTokens(tok + "\n"), "only blocks in PEM"},
		"a blank more":        {parseTokens(change(tok, "request: ", "request:  ", 1)), edited},
		"an unknown line":     {parseTokens(change(tok, "KMS endpoint:", "KMS Endpoint:", 1)), `"KMS Endpoint" is unknown, or stands there twice`},
		"a line twice":        {parseTokens(change(tok, "request SHA-256:", "request:  x\nrequest SHA-256:", 1)), `"request" is unknown, or stands there twice`},
		"wrong order":         {parseWrapped(change(change(w, "HSM serial:", "HSM firmware:", 1), "\nHSM firmware:         2.6", "\nHSM serial:   2.6", 1)), "in the wrong place"},
		"no time":             {parseTokens(change(tok, "2030-02-01T11:00:00Z", "tomorrow", 1)), `"tomorrow" is not a time such as`},
		"another zone":        {parseTokens(change(tok, "2030-02-01T11:00:00Z", "2030-02-01T12:00:00+01:00", 1)), edited},
		"no time, wrapped":    {parseWrapped(change(w, "2030-01-31T12:00:00Z", "", 1)), "is not a time such as"},
		"terminal escapes":    {parseTokens(change(tok, "https://kms.example", "https://kms\x1b[2J", 1)), "characters that cannot be shown"},
		"a bidi override":     {parseWrapped(change(w, "SoftHSM project", "SoftHSM\u202eproject", 1)), "characters that cannot be shown"},
		"another block":       {parseTokens(strings.ReplaceAll(tok, "KMS IMPORT TOKEN", "CERTIFICATE")), "a block of another kind: CERTIFICATE"},
		"a block with header": {parseTokens(change(tok, "-----BEGIN KMS IMPORT TOKEN-----\n", "-----BEGIN KMS IMPORT TOKEN-----\nA: b\n\n", 1)), "only blocks in PEM"},
		"three outputs":       {parseWrapped(w + w[strings.LastIndex(w, "\n-----BEGIN"):]), "a block too many"},
		"outputs swapped":     {parseWrapped(swapBlocks(w)), edited},
		"an output changed":   {parseWrapped(change(w, "AwMD", "AwME", 1)), edited},
		"a key too few":       {parseWrapped(w[:strings.LastIndex(w, "\n-----BEGIN")]), edited},
	} {
		t.Run(name, func(t *testing.T) { says(t, tc.err, tc.says) })
	}
}

func before(s, mark string) string {
	s, _, _ = strings.Cut(s, mark)
	return s
}

func swapBlocks(w string) string {
	i := strings.Index(w, "\n-----BEGIN")
	j := strings.LastIndex(w, "\n-----BEGIN")
	return w[:i] + w[j:] + w[i:j]
}

func TestTextRefuses(t *testing.T) {
	w := wrapped(t)
	w.Keys = nil
	if _, err := w.Text(); err == nil || !strings.Contains(err.Error(), "one or two wrapping keys, not 0") {
		t.Error(err)
	}
	w = wrapped(t)
	w.HSM = "two\nlines"
	if _, err := w.Text(); err == nil || !strings.Contains(err.Error(), "cannot be shown in one line") {
		t.Error(err)
	}
	tok := tokens(t)
	tok.Tokens[0] = make([]byte, 300<<10)
	if _, err := tok.Text(); err == nil || !strings.Contains(err.Error(), "is too long") {
		t.Error(err)
	}
}

func TestBelongs(t *testing.T) {
	q := sample()
	text := textOf(t, q)
	if err := tokens(t).Belongs(q, text); err != nil {
		t.Error(err)
	}
	if err := wrapped(t).Belongs(q, text); err != nil {
		t.Error(err)
	}
	for want, change := range map[string]func(*ceremony.Tokens){
		"two ceremonies were mixed up":             func(x *ceremony.Tokens) { x.Request = "other" },
		"the request was changed":                  func(x *ceremony.Tokens) { x.SHA256 = strings.Repeat("0", 64) },
		"there are 1 import tokens for 2 wrapping": func(x *ceremony.Tokens) { x.Tokens = x.Tokens[:1] },
		"do not expire at the same time":           func(x *ceremony.Tokens) { x.ValidTo = x.ValidTo.Add(time.Second) },
	} {
		x := tokens(t)
		change(&x)
		says(t, x.Belongs(q, text), want)
	}
	for want, change := range map[string]func(*ceremony.Wrapped, *approval.Request){
		"two ceremonies were mixed up":            func(w *ceremony.Wrapped, _ *approval.Request) { w.Request = "other" },
		"another text of request":                 func(w *ceremony.Wrapped, _ *approval.Request) { w.SHA256 = strings.Repeat("0", 64) },
		"the room wrapped other by":               func(w *ceremony.Wrapped, _ *approval.Request) { w.Key = "other" },
		"by RSAES_OAEP_SHA_1, and the":            func(w *ceremony.Wrapped, _ *approval.Request) { w.Algorithm = "RSAES_OAEP_SHA_1" },
		"wrapped in the HSM 0123456789abcdef":     func(_ *ceremony.Wrapped, q *approval.Request) { q.Serial = "ffff" },
		"the room wrapped the key 1 times":        func(w *ceremony.Wrapped, _ *approval.Request) { w.Keys = w.Keys[:1] },
		"it was swapped":                          func(w *ceremony.Wrapped, _ *approval.Request) { w.Keys[0], w.Keys[1] = w.Keys[1], w.Keys[0] },
		"and the request has " + fingerprintOf(q): func(w *ceremony.Wrapped, _ *approval.Request) { w.Keys[0].WrappingKey = strings.Repeat("a", 64) },
	} {
		w, other := wrapped(t), q
		change(&w, &other)
		says(t, w.Belongs(other, text), want)
	}
}

func fingerprintOf(q approval.Request) string { return approval.Fingerprint(q.WrappingKeys[0]) }

func TestInTime(t *testing.T) {
	q := sample()
	for _, tc := range []struct {
		at     time.Time
		margin time.Duration
		says   string
	}{
		{now, ceremony.RoomMargin, ""},
		{q.ParametersValidTo.Add(-15 * time.Minute), ceremony.RoomMargin, "the request was valid until"},
		{q.ParametersValidTo.Add(-15*time.Minute + time.Second), ceremony.RoomMargin, "expire in 14m59s, at 2030-02-01T11:00:00Z, and at least 15m0s must be left: fetch new ones"},
		{q.ParametersValidTo.Add(-30 * time.Second), ceremony.UploadMargin, "at least 1m0s must be left"},
		{q.ParametersValidTo, 0, "the import parameters expired at 2030-02-01T11:00:00Z"},
		{q.ParametersValidTo.Add(240 * time.Hour), 0, "fetch new ones (hsmbridge ceremony fetch)"},
		{q.ValidUntil, ceremony.RoomMargin, "the request was valid until 2030-02-01T10:00:00Z"},
	} {
		if err := ceremony.InTime(q, tc.at, tc.margin); tc.says != "" {
			says(t, err, tc.says)
		} else if err != nil {
			t.Error(err)
		}
	}
	q.ParametersValidTo = time.Time{}
	says(t, ceremony.InTime(q, now, 0), "does not say until when")
}

func TestWriteNew(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "a")
	if err := os.WriteFile(name+".part", []byte("left by a kill -9"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := ceremony.WriteNew(name, []byte("one"), 0o600); err != nil {
		t.Fatal(err)
	}
	var exists *ceremony.ExistsError
	if err := ceremony.WriteNew(name, []byte("two"), 0o600); !errors.As(err, &exists) {
		t.Errorf("it was overwritten: %v", err)
	} else {
		says(t, err, "no file of a ceremony is ever overwritten")
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(filepath.Join(dir, "elsewhere"), link); err != nil {
		t.Fatal(err)
	}
	if err := ceremony.WriteNew(link, []byte("two"), 0o600); !errors.As(err, &exists) {
		t.Errorf("it was written through a link: %v", err)
	}
	if err := os.Symlink(filepath.Join(dir, "elsewhere"), filepath.Join(dir, "b.part")); err != nil {
		t.Fatal(err)
	}
	if err := ceremony.WriteNew(filepath.Join(dir, "b"), []byte("b"), 0o600); err != nil {
		t.Error(err)
	}
	got, err := os.ReadFile(name)
	if string(got) != "one" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	info, err := os.Stat(name)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 3 { // a, b, link
		t.Errorf("%v, %v", entries, err)
	}
	if err := ceremony.WriteNew(filepath.Join(dir, "none", "a"), nil, 0o600); err == nil {
		t.Error("written into a folder that is not there")
	}
}

func TestRead(t *testing.T) {
	name := filepath.Join(t.TempDir(), "long")
	if err := os.WriteFile(name, bytes.Repeat([]byte("x"), 257<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := ceremony.Read(name)
	says(t, err, "has more than 262144 bytes")
	if _, err = ceremony.Read(name + ".no"); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}
