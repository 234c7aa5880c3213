package tree

import (
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// documents are all Markdown files of the tree.
func documents(t *testing.T) []string {
	t.Helper()
	var out []string
	err := fs.WalkDir(os.DirFS(root), ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && name != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "bin" || d.Name() == "testdata"):
			return fs.SkipDir
		case !d.IsDir() && strings.HasSuffix(name, ".md"):
			out = append(out, name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	const least = 10
	if len(out) < least {
		t.Fatalf("%d documents were found: that is not the tree", len(out))
	}
	return out
}

// anchors are the names by which the headings of a document are linked to, as GitHub makes them.
func anchors(text string) []string {
	drop := regexp.MustCompile(`[^\p{L}\p{N} _-]`)
	var out []string
	fenced := false
	for line := range strings.Lines(text) {
		if strings.HasPrefix(strings.TrimSpace(line), "```") {
			fenced = !fenced
		}
		if title := strings.TrimLeft(line, "#"); !fenced && title != line && strings.HasPrefix(title, " ") {
			out = append(out, strings.ReplaceAll(drop.ReplaceAllString(strings.ToLower(strings.TrimSpace(title)), ""), " ", "-"))
		}
	}
	return out
}

// links are the targets of the links and pictures in a document, without code.
func links(text string) []string {
	text = regexp.MustCompile("(?s)```.*?```").ReplaceAllString(text, "")
	text = regexp.MustCompile("`[^`\n]+`\\]").ReplaceAllString(text, "]") // code may be what is linked
	text = regexp.MustCompile("`[^`\n]+`").ReplaceAllString(text, "")
	var out []string
	for _, m := range regexp.MustCompile(`\]\(([^)\s]+)\)`).FindAllStringSubmatch(text, -1) {
		if !strings.Contains(m[1], "://") && !strings.HasPrefix(m[1], "mailto:") {
			out = append(out, m[1])
		}
	}
	return out
}

// TestLinks holds that what a document links to in the tree is there, with the heading that is named.
func TestLinks(t *testing.T) {
	texts := map[string]string{}
	for _, name := range documents(t) {
		b, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		texts[name] = string(b)
	}
	seen := 0
	for name, text := range texts {
		for _, link := range links(text) {
			seen++
			file, anchor, _ := strings.Cut(link, "#")
			target := name
			if file != "" {
				target = path.Join(path.Dir(name), file)
			}
			if _, err := os.Stat(filepath.Join(root, target)); err != nil {
				t.Errorf("%s: %s is not there", name, link)
				continue
			}
			if anchor == "" {
				continue
			}
			if linked, ok := texts[target]; !ok || !slices.Contains(anchors(linked), anchor) {
				t.Errorf("%s: %s: there is no such heading", name, link)
			}
		}
	}
	const least = 100
	if seen < least {
		t.Errorf("%d links were found: those are not the documents", seen)
	}
}
