package main

import (
	"bytes"
	"strings"
	"testing"

	"hsmbridge/daemon/audit"
)

// What is not signed yet is told as one record or as several.
func TestPrintReport(t *testing.T) {
	for signed, want := range map[int64]string{
		5: "whole, and signed to its end\n",
		4: "whole; record 5 came after the last checkpoint and is not signed yet: it could still be changed\n",
		3: "whole; the records 4 to 5 came after the last checkpoint and are not signed yet: they could still be changed\n",
	} {
		var out bytes.Buffer
		(&app{out: &out}).printReport(audit.Report{Records: 5, Count: 1, Signed: signed}, audit.Options{Keys: make([]*audit.Key, 1)})
		if !strings.Contains(out.String(), want) {
			t.Errorf("signed up to %d:\n%s", signed, out.String())
		}
	}
}
