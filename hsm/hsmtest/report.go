package hsmtest

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hsmbridge/hsm/quirks"
	"hsmbridge/hsm/report"
	"hsmbridge/test/token"
)

// testReport holds that a report names neither the token nor its place, that it reads back, and that the table of families finds the token
// in it. With HSMBRIDGE_REPORTS=DIR it is also written to DIR/FAMILY-FIRMWARE.json, from where hsm/report/testdata/reports has it.
func testReport(t *testing.T, tok token.Token) {
	t.Helper()
	open := Open(t, tok)
	r, err := open.Report(t.Context(), "test", nil)
	if err != nil {
		t.Fatal(err)
	}
	text, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	id := open.Identity()
	private := []string{id.Label, tok.Dir, filepath.Dir(tok.Module), tok.PIN}
	if strings.Trim(id.Serial, "0") != "" { // NSS has sixteen zeros
		private = append(private, id.Serial)
	}
	for _, value := range tok.Environment {
		private = append(private, value)
	}
	for _, p := range private {
		if p != "" && bytes.Contains(bytes.ToLower(text), bytes.ToLower([]byte(p))) {
			t.Errorf("%q is in the report", p)
		}
	}
	again, err := report.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	if f, ok := quirks.Find(again.Seen()); !ok || f.Name != again.Family || f.Run == "" {
		t.Errorf("the family is %q, and the table says %+v of the report", again.Family, f)
	}
	if len(again.Mechanisms) == 0 || len(again.Trials) == 0 {
		t.Errorf("%d mechanisms, %d trials", len(again.Mechanisms), len(again.Trials))
	}
	if dir := os.Getenv("HSMBRIDGE_REPORTS"); dir != "" {
		if err := os.WriteFile(filepath.Join(dir, again.Family+"-"+again.Library.Version+".json"), text, 0o600); err != nil { //nolint:gosec // whoever runs the suite names the folder
			t.Fatal(err)
		}
	}
}
