package ceremony_test

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hsmbridge/daemon/approval"
	"hsmbridge/daemon/audit"
	"hsmbridge/daemon/ceremony"
)

var update = flag.Bool("update", false, "write the golden files anew")

// report is one with everything in it: wrapped, uploaded, and taken over into the daemon's audit log.
func report(t *testing.T) ceremony.Report {
	t.Helper()
	q, w := sample(), wrapped(t)
	l, _ := aLog(t, t.TempDir())
	defer l.Close() //nolint:errcheck // of a test
	r, err := ceremony.NewReport(q, textOf(t, q), approval.Decision{Need: 2, Have: 2, Approved: true, Verdicts: append(verdicts(), approval.Verdict{Officer: "carol"})}, &w, l.Records(), now.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	if r.LogPlace, err = l.Place(); err != nil {
		t.Fatal(err)
	}
	online := audit.Step{Request: id, SHA256: r.SHA256, File: "payments-" + id + ".request"}
	records := []audit.Record{
		{N: 4711, Time: now.Add(-time.Hour), Kind: "ceremony-fetch", Actor: "operator", Key: "payments", Destination: arn, Message: "import parameters were fetched for a ceremony", Data: &online},
		{N: 4713, Time: now.Add(time.Hour), Kind: "ceremony-fetch", Actor: "operator", Key: "other", Message: "another one", Data: &audit.Step{Request: "other"}},
	}
	for i, s := range r.Steps {
		records = append(records, audit.Record{N: 4720 + int64(i), Time: now.Add(time.Hour), Kind: "ceremony", Message: "taken over", Data: &audit.Ceremony{Request: id, Hash: s.Leaf}})
	}
	if err := r.Place("hsmbridge/vault", records); err != nil {
		t.Fatal(err)
	}
	r.Result = "imported in AWS KMS, material-id-match"
	r.Upload = &ceremony.Upload{
		At: now.Add(time.Hour), By: "operator", RequestIDs: []string{"11111111-2222-3333-4444-555555555555", "22222222-2222-3333-4444-555555555555"}, KeyMaterialID: "00ff",
		Expires: "2030-05-01T13:00:00Z", Proof: "material-id-match", Fetched: []string{"00000000-2222-3333-4444-555555555555"},
	}
	return r
}

func TestReport(t *testing.T) {
	dir := t.TempDir()
	full := report(t)
	bare, err := ceremony.NewReport(sample(), textOf(t, sample()), approval.Decision{}, nil, nil, now)
	if err != nil {
		t.Fatal(err)
	}
	for name, r := range map[string]ceremony.Report{"report": full, "nothing": bare} {
		if err := ceremony.WriteReport(filepath.Join(dir, name), r); err != nil {
			t.Fatal(err)
		}
		for _, ext := range []string{".txt", ".json", ".html"} {
			got, err := os.ReadFile(filepath.Join(dir, name+ext))
			if err != nil {
				t.Fatal(err)
			}
			golden := filepath.Join("testdata", name+ext)
			if *update {
				if err := os.WriteFile(golden, got, 0o600); err != nil { //nolint:gosec // the name is one of the test's own
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), string(got)); d != "" {
				t.Errorf("%s%s (-update writes it anew):\n%s", name, ext, d)
			}
		}
	}
}

// TestReportPages holds what a printed report needs: nothing from elsewhere, and nothing that a value could put into the page.
func TestReportPages(t *testing.T) {
	r := report(t)
	r.People = `<script>alert("x")</script>`
	r.Fields = append(r.Fields, approval.Field{Name: "why", Value: `"><img src=x onerror=1>`})
	html, err := r.HTML()
	if err != nil {
		t.Fatal(err)
	}
	if m := regexp.MustCompile(`(?i)<(script|img|link|iframe|object|base|form)\b|\bsrc=|\bhref=|url\(|@import`).Find(regexp.MustCompile(`&#34;&gt;&lt;img src=x onerror=1&gt;`).ReplaceAll(html, nil)); m != nil {
		t.Errorf("the page has %s", m)
	}
	if !bytes.Contains(html, []byte("@page{size:A4")) || !bytes.Contains(html, []byte("&lt;script&gt;")) {
		t.Error("the page is not made for A4, or shows something else than the name")
	}
}

// TestReportGoesOn holds that what an interruption left of a report is kept, and the rest written.
func TestReportGoesOn(t *testing.T) {
	name := filepath.Join(t.TempDir(), "r")
	if err := os.WriteFile(name+".txt", []byte("there"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := ceremony.WriteReport(name, report(t)); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(name + ".txt")
	if err != nil || string(got) != "there" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := os.Stat(name + ".html"); err != nil {
		t.Error(err)
	}
}
