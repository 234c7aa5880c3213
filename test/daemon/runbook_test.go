package daemon_test

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestRunbooks: every alert names a section of the documentation, whose heading is the name of the alert, and there is no section for an
// alert that is none.
func TestRunbooks(t *testing.T) {
	rules, err := os.ReadFile("../../packaging/prometheus/hsmbridge.rules.yaml")
	if err != nil {
		t.Fatal(err)
	}
	manual, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	headings := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^#+ (\S+)$`).FindAllStringSubmatch(string(manual), -1) {
		headings[m[1]] = true
	}
	alerts := map[string]bool{}
	for _, block := range strings.Split(string(rules), "- alert: ")[1:] {
		name := strings.TrimSpace(strings.SplitN(block, "\n", 2)[0])
		alerts[name] = true
		if want := "runbook: docs/operations.md#" + strings.ToLower(name) + "\n"; !strings.Contains(block, want) {
			t.Errorf("alert %s has no %s", name, want)
		}
		if !headings[name] {
			t.Errorf("docs/operations.md has no section %s", name)
		}
	}
	if len(alerts) == 0 {
		t.Fatal("there are no alerts")
	}
	for name := range headings {
		if strings.HasPrefix(name, "Hsmbridge") && !alerts[name] {
			t.Errorf("docs/operations.md has the section %s, and there is no such alert", name)
		}
	}
}
