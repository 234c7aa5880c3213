package audit_test

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"reflect"
	"strings"
	"testing"

	"hsmbridge/daemon/audit"
)

const (
	docs  = "../../docs/audit.md"
	begin = "<!-- begin: written by go test ./daemon/audit -update -->\n"
	end   = "<!-- end -->\n"
)

// TestDocs holds the tables of docs/audit.md to the typed structs in kinds.go, comments included.
func TestDocs(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(docs)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := bytes.Cut(text, []byte(begin))
	_, after, ok2 := bytes.Cut(rest, []byte(end))
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the tables: %s ... %s", docs, begin, end)
	}
	want := bytes.Join([][]byte{before, []byte(begin), []byte(tables(t)), []byte(end), after}, nil)
	if bytes.Equal(want, text) {
		return
	}
	if !*update {
		t.Fatalf("%s does not say what kinds.go says: run go test ./daemon/audit -update", docs)
	}
	if err := os.WriteFile(docs, want, 0o600); err != nil { //nolint:gosec // a constant name
		t.Fatal(err)
	}
}

// source is what kinds.go says beyond its types.
type source struct {
	comments map[int]string // of code lines
	order    []string       // kinds as they stand there
	says     map[string]string
	group    map[string]string
	fields   map[string]string // Struct.Field
}

func tables(t *testing.T) string {
	t.Helper()
	s := readSource(t)
	byType := map[string][]string{}
	var types []string
	var b strings.Builder
	group := ""
	infos := map[string]audit.KindInfo{}
	for _, k := range audit.Kinds() {
		infos[string(k.Kind)] = k
	}
	for _, kind := range s.order {
		k, ok := infos[kind]
		if !ok {
			t.Fatalf("the kind %s stands in kinds.go and is none", kind)
		}
		delete(infos, kind)
		if s.group[kind] != group {
			group = s.group[kind]
			fmt.Fprintf(&b, "\n**%s**\n\n| kind | says | fields |\n|---|---|---|\n", strings.ToUpper(group[:1])+group[1:])
		}
		if s.says[kind] == "" {
			t.Errorf("the kind %s has no comment", kind)
		}
		name := typeName(t, k)
		if _, there := byType[name]; !there {
			types = append(types, name)
		}
		byType[name] = k.Fields
		of := "–"
		if len(k.Fields) > 0 {
			of = name
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", kind, s.says[kind], of)
	}
	if len(infos) > 0 {
		t.Errorf("these kinds were not found in kinds.go: %v", infos)
	}
	b.WriteString("\n**Fields**\n\n| of | field | value |\n|---|---|---|\n")
	for _, name := range types {
		for _, f := range byType[name] {
			says, ok := s.fields[name+"."+f]
			if !ok || says == "" {
				t.Errorf("the field %s of %s has no comment", f, name)
			}
			fmt.Fprintf(&b, "| %s | `%s` | %s |\n", name, f, says)
		}
	}
	b.WriteByte('\n')
	return b.String()
}

func typeName(t *testing.T, k audit.KindInfo) string {
	t.Helper()
	if len(k.Fields) == 0 {
		return "None"
	}
	return reflect.TypeOf(sample(t, k).Data).Elem().Name()
}

func readSource(t *testing.T) source {
	t.Helper()
	set := token.NewFileSet()
	f, err := parser.ParseFile(set, "kinds.go", nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	s := source{map[int]string{}, nil, map[string]string{}, map[string]string{}, map[string]string{}}
	for _, g := range f.Comments {
		for _, c := range g.List {
			s.comments[set.Position(c.Pos()).Line] = strings.TrimSpace(strings.TrimPrefix(c.Text, "//"))
		}
	}
	line := func(n ast.Node) int { return set.Position(n.Pos()).Line }
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.TypeSpec:
			st, ok := n.Type.(*ast.StructType)
			if !ok {
				return true
			}
			for _, field := range st.Fields.List {
				if field.Tag == nil {
					continue
				}
				name, _, _ := strings.Cut(reflect.StructTag(strings.Trim(field.Tag.Value, "`")).Get("json"), ",")
				s.fields[n.Name.Name+"."+name] = s.comments[line(field)]
			}
		case *ast.CompositeLit:
			group := ""
			for _, e := range n.Elts {
				kv, ok := e.(*ast.KeyValueExpr)
				if !ok {
					return true
				}
				key, ok := kv.Key.(*ast.BasicLit)
				if !ok {
					return true
				}
				kind := strings.Trim(key.Value, `"`)
				if c := s.comments[line(kv)-1]; c != "" && s.says[lastKind(s.order)] != c {
					group = c
				}
				s.order, s.says[kind], s.group[kind] = append(s.order, kind), s.comments[line(kv)], group
			}
		}
		return true
	})
	return s
}

func lastKind(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return list[len(list)-1]
}
