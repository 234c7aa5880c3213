package tree

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestThreatsNameTests holds that every row of the tables in THREATS.md names tests that are there: `folder.TestName`, or the path of a script.
func TestThreatsNameTests(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(root, "THREATS.md"))
	if err != nil {
		t.Fatal(err)
	}
	quoted := regexp.MustCompile("`([^`]+)`")
	rows := 0
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "| ") || strings.HasPrefix(line, "| attack |") {
			continue
		}
		rows++
		cells := strings.Split(strings.Trim(line, "| "), " | ")
		const columns = 3
		if len(cells) != columns {
			t.Errorf("%d columns and not %d: %s", len(cells), columns, line)
			continue
		}
		shown := cells[columns-1]
		names := quoted.FindAllStringSubmatch(shown, -1)
		if rest := strings.Trim(quoted.ReplaceAllString(shown, ""), ", "); len(names) == 0 || rest != "" {
			t.Errorf("%q: name tests only, each as `folder.TestName` or the path of a script; %q is none", cells[0], shown)
		}
		for _, n := range names {
			if !there(t, n[1]) {
				t.Errorf("%q: there is no test %s", cells[0], n[1])
			}
		}
	}
	const least = 40
	if rows < least {
		t.Errorf("%d rows were found: those are not the tables", rows)
	}
}

// there says whether a test exists.
func there(t *testing.T, name string) bool {
	t.Helper()
	if strings.HasSuffix(name, ".txtar") {
		_, err := os.Stat(filepath.Join(root, name))
		return err == nil
	}
	folder, test, ok := strings.Cut(name, ".")
	if !ok || !strings.HasPrefix(test, "Test") && !strings.HasPrefix(test, "Fuzz") {
		return false
	}
	files, err := filepath.Glob(filepath.Join(root, folder, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), "\nfunc "+test+"(") {
			return true
		}
	}
	return false
}
