package main

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"hsmbridge/daemon/control"
)

// The screen is one screen: what does not fit is counted.
func TestStatusExpiries(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	s := control.Status{Now: now, Started: now}
	for i := range 20 {
		s.Next = append(s.Next, control.Expiry{Key: fmt.Sprintf("key-%02d", i), ValidTo: now.AddDate(0, 0, i+1), Renewal: now})
	}
	for expiring, want := range map[int]string{20: "  and 10 later ", 10000: "  and 9990 later "} {
		s.Counts.Expiring = expiring
		var out bytes.Buffer
		(&app{out: &out}).printStatus(s)
		if !strings.Contains(out.String(), "key-09 ") || strings.Contains(out.String(), "key-10 ") || !strings.Contains(out.String(), want) {
			t.Errorf("of %d:\n%s", expiring, out.String())
		}
	}
	s.Next, s.Counts.Expiring = s.Next[:10], 10
	var out bytes.Buffer
	(&app{out: &out}).printStatus(s)
	if strings.Contains(out.String(), "later") {
		t.Errorf("of ten:\n%s", out.String())
	}
}
