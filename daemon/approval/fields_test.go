package approval_test

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"hsmbridge/daemon/approval"
)

func TestDifferences(t *testing.T) {
	same := sample()
	same.ID, same.AskedAt, same.ValidUntil, same.Plan = "other", askedAt.Add(time.Hour), askedAt.Add(48*time.Hour), "00"
	same.ParametersValidTo, same.WrappingKeys = time.Time{}, [][]byte{spki("another")}
	changed := sample()
	changed.Destination, changed.Why, changed.Expires, changed.Firmware = "arn:other", "", "30d", ""
	less := sample()
	less.Expires = ""
	for _, c := range []struct {
		name        string
		before, now approval.Request
		want        []approval.Difference
	}{
		{"nothing", sample(), sample(), nil},
		{"what differs every time", sample(), same, nil},
		{"changed, and gone", sample(), changed, []approval.Difference{
			{"destination", sample().Destination, "arn:other"},
			{"expires", "never", "30d"},
			{"why", sample().Why, ""},
			{"HSM firmware", "2.6", ""},
		}},
		{"new", less, sample(), []approval.Difference{{"expires", "", "never"}}},
	} {
		if got := approval.Differences(c.before, c.now); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q", c.name, got)
		}
	}
}

func TestRejectionText(t *testing.T) {
	text := textOf(t, sample())
	got, err := approval.RejectionText(text, " no:\nnot \u202e now \x00")
	want := fmt.Sprintf("hsmbridge rejection, version 1\n\nrequest: 7K3M-9QXA-0B2C-D4EF\nSHA-256: %x\nwhy: no:_not _ now _\n", approval.Digest(text))
	if err != nil || string(got) != want {
		t.Errorf("%s, %v", got, err)
	}
	var format *approval.FormatError
	if _, err := approval.RejectionText(text[1:], "no"); !errors.As(err, &format) {
		t.Errorf("no request: %v", err)
	}
}

func TestOneLine(t *testing.T) {
	for in, want := range map[string]string{
		"":                                      "",
		" a  b ":                                "a  b",
		"a\tb\nc":                               "a_b_c",
		"\u00a0a":                               "_a",
		"a\xffb\xc3":                            "a_b_",
		"\u00e9 \u540d \U0001f511":              "\u00e9 \u540d \U0001f511",
		"\u2066a\u2069\u200d\ufeff":             "_a___",
		"\u3164\uffa0\u115f\u034f\ufe0f\u2800":  "______",
		"\U000e0041\U000e0100":                  "__",
		strings.Repeat("x", 701):                strings.Repeat("x", 700),
		strings.Repeat("x", 699) + "\u00e9":     strings.Repeat("x", 699),
		strings.Repeat("x", 698) + " \u00e9abc": strings.Repeat("x", 698),
	} {
		got := approval.OneLine(in)
		if got != want {
			t.Errorf("OneLine(%q) is %q and not %q", in, got, want)
		}
		if again := approval.OneLine(got); again != got {
			t.Errorf("twice it is %q", again)
		}
	}
}

func TestNewID(t *testing.T) {
	for random, want := range map[string]string{
		strings.Repeat("\x00", 10):                 "0000-0000-0000-0000",
		strings.Repeat("\xff", 10):                 "ZZZZ-ZZZZ-ZZZZ-ZZZZ",
		"\x00\x44\x32\x14\xc7\x42\x54\xb6\x35\xcf": "0123-4567-89AB-CDEF",
	} {
		if got, err := approval.NewID(strings.NewReader(random + "more")); err != nil || got != want {
			t.Errorf("%x: %s, %v", random, got, err)
		}
		if got := approval.Short([]byte(random + "more")); got != want {
			t.Errorf("Short(%x) is %s", random, got)
		}
	}
	if got := approval.Short([]byte{0, 0x44}); got != "0120" {
		t.Errorf("of two bytes: %s", got)
	}
	if _, err := approval.NewID(iotest.ErrReader(errors.New("dry"))); err == nil || err.Error() != "name a request: dry" {
		t.Error(err)
	}
	if _, err := approval.NewID(strings.NewReader("short")); err == nil {
		t.Error("five bytes are enough")
	}
}

// Fields are what an officer reads: all lines of the text, and the fingerprints.
func TestFields(t *testing.T) {
	text := textOf(t, sample())
	for _, f := range sample().Fields() {
		if !bytes.Contains(text, fmt.Appendf(nil, "\n%-22s%s\n", f.Name+":", f.Value)) {
			t.Errorf("%q is not in the text", f)
		}
	}
	if n := strings.Count(strings.SplitN(string(text), "\n\n", 4)[2], "\n") + 1; n != len(sample().Fields()) {
		t.Errorf("%d lines, %d fields", n, len(sample().Fields()))
	}
}
