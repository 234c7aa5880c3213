package tree

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// root is the source tree.
const root = "../.."

// ways are all functions that lead to C_WrapKey, and why each may. A function that is not here fails the test: whoever adds one has to say
// what decides whether it may wrap, and to walk it in test/fleet (TestNoWayAroundOfficers) or in the scripts of test/daemon.
func ways() map[string]string {
	return map[string]string{ //nolint:gosec // names of functions
		// In the HSM's package: from the one C call outwards.
		"hsm/cgo.go library.wrap":           "the one call of C_WrapKey",
		"hsm/wrap.go Token.wrapOnce":        "one call with a buffer",
		"hsm/wrap.go Token.wrapRaw":         "one plan, by RSA alone or by CKM_RSA_AES_KEY_WRAP",
		"hsm/wrap.go Token.wrapAES":         "the second part of a composed RSA_AES_KEY_WRAP",
		"hsm/wrap.go Token.compose":         "a composed RSA_AES_KEY_WRAP",
		"hsm/wrap.go Token.wrapUnder":       "checks the output",
		"hsm/wrap.go Token.Wrap":            "exported: its callers are below",
		"hsm/wrap.go WrappingKey.Wrap":      "exported: many wraps under one key; its callers are below, and there is none outside of tests",
		"hsm/trusted.go Token.wrapTrusted":  "what WrapTrusted does once nobody else is at work",
		"hsm/trusted.go Token.WrapTrusted":  "exported: as the security officer; its callers are below",
		"hsm/probe.go prober.try":           "throwaway keys only (TestWitness): the walk ends here",
		"hsm/probe_odd.go prober.oddLength": "throwaway keys only (TestWitness)",
		"hsm/probe_odd.go prober.oddSecret": "throwaway keys only (TestWitness)",
		"hsm/probe_odd.go prober.oddPair":   "throwaway keys only (TestWitness)",
		"hsm/probe.go prober.composed":      "throwaway keys only (TestWitness)",
		"hsm/probe.go prober.rsaPart":       "throwaway keys only (TestWitness)",
		"hsm/probe.go prober.aesPart":       "throwaway keys only (TestWitness)",
		"hsm/probe.go prober.wrapAES":       "throwaway keys only (TestWitness)",
		// In the module's own process.
		"hsm/worker/serve.go prepare": "carries out what comes over the private socket: the walk goes on at its other end, hsm/remote's Token.Wrap",
		// Online.
		"daemon/importer/importer.go run.wrapAndImport": "asks Importer.Authorize immediately before, for the import and for its proof",
		"daemon/runner/approve.go gated.Wrap":           "wraps what was allowed a moment ago, once",
		"daemon/tracked.go tracked.Wrap":                "counts calls that hang; it is behind gated",
		// In the HSM room.
		"daemon/ceremony/room.go Room.wrap":             "only Room.Wrap calls it",
		"daemon/ceremony/room.go Room.Wrap":             "checks request, times, approvals, token and object immediately before each wrap",
		"cmd/hsmceremony/finish.go session.wrapTrusted": "as the security officer: given to Room.Trusted, which only Room.wrap calls",
		"cmd/hsmceremony/wrap.go app.wrap":              "gives it to Room.Trusted",
	}
}

// deciders are those of the ways that decide whether a wrap may be done: there the walk ends, since what calls them cannot go around it.
func deciders() map[string]bool {
	return map[string]bool{
		"hsm/probe.go prober.try":                       true, // has throwaway keys only
		"hsm/worker/serve.go prepare":                   true, // what it is asked for was decided in the daemon's process
		"daemon/importer/importer.go run.wrapAndImport": true,
		"daemon/ceremony/room.go Room.Wrap":             true,
		"cmd/hsmceremony/wrap.go app.wrap":              true, // the guided session: Room.Wrap decides
	}
}

// authorizers are all places that say who decides for an importer. One without refuses every wrap.
func authorizers() map[string]string {
	return map[string]string{
		"daemon/runner/runner.go task.importer":      "the daemon: signatures of officers",
		"cmd/hsmbridge/plan.go connections.importer": "a run without the daemon: refuses every key that has an approval",
		"daemon/importer/remote.go Importer.Upload":  "nobody: what was wrapped in the HSM room is only sent",
	}
}

// source is a file of Go that is not a test.
type source struct {
	name string // cmd/hsmbridge/main.go
	*ast.File
}

func (s source) folder() string { return filepath.Dir(s.name) }

// onlyForTests are folders that no program links.
func onlyForTests(folder string) bool {
	return folder == "hsm/hsmtest" || folder == "hsm/bench" || folder == "test" || strings.HasPrefix(folder, "test/")
}

// sources are all files of the tree that are compiled into something else than tests, of all build constraints.
func sources(t *testing.T) []source {
	t.Helper()
	var out []source
	err := fs.WalkDir(os.DirFS(root), ".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "bin"):
			return fs.SkipDir
		case d.IsDir(), !strings.HasSuffix(path, ".go"), strings.HasSuffix(path, "_test.go"):
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(root, path), nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		out = append(out, source{path, f})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	const least = 100
	if len(out) < least {
		t.Fatalf("%d files were found: that is not the tree", len(out))
	}
	return out
}

// function is the name of a declaration as the tables write it; what is outside of functions counts as one function of its own.
func function(d ast.Decl) string {
	f, ok := d.(*ast.FuncDecl)
	switch {
	case !ok:
		return "(declaration)"
	case f.Recv == nil:
		return f.Name.Name
	}
	of := f.Recv.List[0].Type
	if star, ok := of.(*ast.StarExpr); ok {
		of = star.X
	}
	return fmt.Sprintf("%s.%s", of, f.Name.Name)
}

// mentions says whether a declaration has x.name for one of the names.
func mentions(d ast.Decl, names ...string) bool {
	found := false
	ast.Inspect(d, func(n ast.Node) bool {
		if sel, ok := n.(*ast.SelectorExpr); ok {
			found = found || slices.Contains(names, sel.Sel.Name)
		}
		return !found
	})
	return found
}

// TestWaysToAWrap walks the tree from C_WrapKey outwards, by types: what uses a function that leads there, also as a value or through an
// interface, leads there as well. It ends at those that decide. What it finds has to be the table.
func TestWaysToAWrap(t *testing.T) {
	all := checked(t)
	ways, ends := ways(), deciders()
	reach := map[string]bool{"hb_wrap": true, "(*hsmbridge/hsm/remote.Token).Wrap": true} // by full name; the second is the socket to the first
	found := map[string]bool{}
	for grown := true; grown; {
		grown = false
		for _, p := range all {
			for _, s := range p.sources {
				for _, d := range s.Decls {
					at := s.name + " " + function(d)
					if found[at] || !p.uses(d, reach) {
						continue
					}
					found[at], grown = true, true
					f, ok := d.(*ast.FuncDecl)
					if !ok || ends[at] {
						continue
					}
					method, ok := p.info.Defs[f.Name].(*types.Func)
					if !ok {
						t.Fatalf("%s has no type", at)
					}
					reach[method.FullName()] = true
					for _, name := range interfaces(all, method) {
						reach[name] = true
					}
				}
			}
		}
	}
	for at := range ends {
		if ways[at] == "" {
			t.Errorf("%s decides and is not in the table", at)
		}
	}
	compare(t, found, ways, "leads to C_WrapKey")
}

// interfaces are the methods of the tree's interfaces through which a method can be called.
func interfaces(all []checkedPackage, method *types.Func) []string {
	sig, ok := method.Type().(*types.Signature)
	if !ok || sig.Recv() == nil {
		return nil
	}
	var out []string
	for _, p := range all {
		for _, name := range p.types.Scope().Names() {
			i, ok := p.types.Scope().Lookup(name).Type().Underlying().(*types.Interface)
			if !ok {
				continue
			}
			for m := range i.Methods() {
				// By name and form: what a package was compiled from and what another reads of it are different objects.
				if m.Name() == method.Name() && types.TypeString(m.Type(), nil) == types.TypeString(sig, nil) {
					out = append(out, m.FullName())
				}
			}
		}
	}
	return out
}

// checkedPackage is a package of the tree with its types.
type checkedPackage struct {
	sources []source
	types   *types.Package
	info    *types.Info
}

// uses says whether a declaration uses one of the functions, as a call or as a value.
func (p checkedPackage) uses(d ast.Decl, names map[string]bool) bool {
	found := false
	ast.Inspect(d, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.SelectorExpr:
			if x, ok := n.X.(*ast.Ident); ok && x.Name == "C" && names[n.Sel.Name] {
				found = true
			}
		case *ast.Ident:
			if f, ok := p.info.Uses[n].(*types.Func); ok && names[f.FullName()] {
				found = true
			}
		}
		return !found
	})
	return found
}

// checked are all packages of the tree that are no tests, type-checked against what the compiler wrote of the packages that they import.
func checked(t *testing.T) []checkedPackage {
	t.Helper()
	c := exec.CommandContext(t.Context(), "go", "list", "-export", "-deps", "-json=ImportPath,Export,Dir,GoFiles,CgoFiles", "./...")
	c.Dir, c.Stderr = root, os.Stderr
	b, err := c.Output()
	if err != nil {
		t.Fatal(err)
	}
	type listed struct {
		ImportPath, Export, Dir string
		GoFiles, CgoFiles       []string
	}
	exports := map[string]string{}
	var ours []listed
	for dec := json.NewDecoder(bytes.NewReader(b)); dec.More(); {
		var l listed
		if err := dec.Decode(&l); err != nil {
			t.Fatal(err)
		}
		exports[l.ImportPath] = l.Export
		if folder, ok := strings.CutPrefix(l.ImportPath, "hsmbridge/"); ok && !onlyForTests(folder) {
			ours = append(ours, l)
		}
	}
	files := token.NewFileSet()
	var broken []error
	conf := types.Config{
		FakeImportC: true,
		Error: func(err error) {
			var e types.Error
			if !errors.As(err, &e) || !strings.Contains(e.Msg, "invalid type") { // a type of C: the compiler has looked at it
				broken = append(broken, err)
			}
		},
		Importer: importer.ForCompiler(files, "gc", func(path string) (io.ReadCloser, error) {
			if exports[path] == "" {
				return nil, fmt.Errorf("nothing is known of %s", path)
			}
			return os.Open(exports[path])
		}),
	}
	var out []checkedPackage
	for _, l := range ours {
		p := checkedPackage{info: &types.Info{Uses: map[*ast.Ident]types.Object{}, Defs: map[*ast.Ident]types.Object{}}}
		var list []*ast.File
		for _, name := range append(l.GoFiles, l.CgoFiles...) {
			f, err := parser.ParseFile(files, filepath.Join(l.Dir, name), nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, f)
			p.sources = append(p.sources, source{strings.TrimPrefix(l.ImportPath, "hsmbridge/") + "/" + name, f})
		}
		p.types, _ = conf.Check(l.ImportPath, files, list, p.info) // its error is the first of those that are kept
		if len(broken) > 0 {
			t.Fatal(broken)
		}
		out = append(out, p)
	}
	const least = 20
	if len(out) < least {
		t.Fatalf("%d packages were found: that is not the tree", len(out))
	}
	return out
}

// TestWhoAuthorizes finds every place that gives an importer its Authorize.
func TestWhoAuthorizes(t *testing.T) {
	found := map[string]bool{}
	for _, s := range sources(t) {
		if onlyForTests(s.folder()) {
			continue
		}
		for _, d := range s.Decls {
			ast.Inspect(d, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.KeyValueExpr:
					if id, ok := n.Key.(*ast.Ident); ok && id.Name == "Authorize" {
						found[s.name+" "+function(d)] = true
					}
				case *ast.AssignStmt:
					for _, l := range n.Lhs {
						if sel, ok := l.(*ast.SelectorExpr); ok && sel.Sel.Name == "Authorize" {
							found[s.name+" "+function(d)] = true
						}
					}
				}
				return true
			})
		}
	}
	compare(t, found, authorizers(), "says who authorizes a wrap")
}

// TestOneWayToTheToken holds that no package but hsm can call a PKCS#11 module, and that what is for tests only is in no program.
func TestOneWayToTheToken(t *testing.T) {
	for _, s := range sources(t) {
		for _, i := range s.Imports {
			path := strings.Trim(i.Path.Value, `"`)
			switch {
			case (path == "C" || strings.HasPrefix(path, "github.com/miekg/pkcs11") || path == "plugin") && s.folder() != "hsm" && !onlyForTests(s.folder()):
				t.Errorf("%s imports %q: only package hsm calls PKCS#11", s.name, path)
			case strings.HasPrefix(path, "hsmbridge/") && onlyForTests(strings.TrimPrefix(path, "hsmbridge/")) && !onlyForTests(s.folder()):
				t.Errorf("%s imports %q, which is for tests", s.name, path)
			}
		}
		for _, d := range s.Decls {
			if mentions(d, "WrapKey", "WrapKeyAuthenticated") {
				t.Errorf("%s %s calls the binding's WrapKey: there is one way to it, library.wrap", s.name, function(d))
			}
		}
	}
}

func compare(t *testing.T, found map[string]bool, table map[string]string, what string) {
	t.Helper()
	for _, at := range slices.Sorted(maps.Keys(found)) {
		if table[at] == "" {
			t.Errorf("%s %s and is not in the table: what decides whether it may?", at, what)
		}
	}
	for at := range table {
		if !found[at] {
			t.Errorf("%s stands in the table and %s no more: take it out", at, what)
		}
	}
}
