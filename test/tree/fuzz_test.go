package tree

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestFuzzTargets holds that every fuzz target of the tree has a corpus in testdata/fuzz, that no corpus is of a target that is no more, that the corpora
// stay small, and that scripts/fuzz runs every target.
func TestFuzzTargets(t *testing.T) {
	const most = 600 << 10 // bytes of all corpora
	var targets, corpora []string
	size := int64(0)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		folder, file := filepath.Split(filepath.ToSlash(name))
		switch {
		case d.IsDir() && (file == ".git" || file == ".bin" || name == "bin"):
			return filepath.SkipDir
		case !d.IsDir() && strings.HasSuffix(file, "_test.go"):
			parsed, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			for _, decl := range parsed.Decls {
				if f, ok := decl.(*ast.FuncDecl); ok && f.Recv == nil && strings.HasPrefix(f.Name.Name, "Fuzz") {
					targets = append(targets, strings.TrimSuffix(folder, "/")+" "+f.Name.Name)
				}
			}
		case !d.IsDir() && strings.Contains(folder, "testdata/fuzz/"):
			pkg, target, _ := strings.Cut(strings.TrimSuffix(folder, "/"), "/testdata/fuzz/")
			corpora = append(corpora, pkg+" "+target)
			info, err := d.Info()
			if err != nil {
				return err
			}
			size += info.Size()
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(targets)
	slices.Sort(corpora)
	if diff := cmp.Diff(targets, slices.Compact(corpora)); diff != "" {
		t.Errorf("-fuzz target, +folder in testdata/fuzz that is not empty:\n%s", diff)
	}
	if size > most {
		t.Errorf("the corpora have %d bytes; %d are enough: keep the inputs that show something", size, most)
	}

	// The script takes what `go test -list` says of every package. Here a go that says it of the packages above stands in for the toolchain, which would
	// link all tests of the tree.
	listed := listedByScript(t, targets)
	slices.Sort(listed)
	if diff := cmp.Diff(targets, listed); diff != "" {
		t.Errorf("-fuzz target, +run by scripts/fuzz:\n%s", diff)
	}
}

// listedByScript is what scripts/fuzz would run.
func listedByScript(t *testing.T, targets []string) []string {
	t.Helper()
	var said strings.Builder
	said.WriteString("#!/bin/sh\n[ \"$*\" = 'test -list ^Fuzz ./...' ] || exit 9\ncat <<'END'\n")
	for i, target := range targets {
		pkg, name, _ := strings.Cut(target, " ")
		said.WriteString(name + "\n")
		if i+1 == len(targets) || !strings.HasPrefix(targets[i+1], pkg+" ") {
			said.WriteString("ok  \thsmbridge/" + pkg + "\t0.010s\n?   \thsmbridge/none\t[no test files]\nok  \thsmbridge/other\t0.010s\n")
		}
	}
	said.WriteString("END\n")
	bin := t.TempDir()
	if err := os.WriteFile(filepath.Join(bin, "go"), []byte(said.String()), 0o700); err != nil { //nolint:gosec // it is run
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), filepath.Join(root, "scripts", "fuzz"), "list")
	cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var listed []string
	for line := range strings.Lines(string(out)) {
		listed = append(listed, strings.TrimPrefix(strings.TrimSpace(line), "hsmbridge/"))
	}
	return listed
}
