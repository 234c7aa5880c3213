package adopt

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"

	"hsmbridge/configs"
)

// ParseYAML reads a fleet, strictly. With [Problems] the fleet is there nevertheless, to look for what else is wrong with it.
func ParseYAML(text []byte) (f Fleet, err error) {
	defer func() { // the parser panics on some texts
		if p := recover(); p != nil {
			f, err = Fleet{}, fmt.Errorf("read the fleet: this YAML is no list of keys (%v)", p)
		}
	}()
	file, err := parser.ParseBytes(text, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		return f, fmt.Errorf("read the fleet: %w", err)
	}
	var bodies []ast.Node
	for _, doc := range file.Docs {
		if doc.Body != nil && doc.Body.Type() != ast.NullType {
			bodies = append(bodies, doc.Body)
		}
	}
	switch {
	case len(bodies) == 0:
		return f, errors.New("read the fleet: the file is empty: the managed keys are a list under keys")
	case len(bodies) > 1:
		return f, errors.New("read the fleet: the file has more than one document")
	}
	d := decoder{anchors: map[string]ast.Node{}, told: map[Problem]bool{}}
	d.read("the fleet", bodies[0], reflect.ValueOf(&f).Elem())
	return f, append(d.wrong, f.check()...).err()
}

// decoder makes a fleet of what the YAML parser found, and collects every mistake.
type decoder struct {
	wrong   Problems
	told    map[Problem]bool    // what is wrong with a value is told once, however often an alias stands for it
	anchors map[string]ast.Node // by name, as far as the file is read
	merges  int                 // that are under way
}

func (d *decoder) add(at ast.Node, format string, args ...any) {
	p := Problem{Line: lineOf(at), What: fmt.Sprintf(format, args...)}
	if !d.told[p] {
		d.told[p] = true
		d.wrong = append(d.wrong, p)
	}
}

// elementOf is what an element of a list is called.
const elementOf = "an element of "

// read sets v to what a node says, and says whether the node is of its type. A null sets nothing, as if the field were left out.
func (d *decoder) read(field string, at ast.Node, v reflect.Value) bool {
	n, ok := d.resolve(at)
	if !ok {
		return false
	}
	if n == nil || n.Type() == ast.NullType {
		return true
	}
	text, isText := scalar(n)
	switch v.Kind() {
	case reflect.Struct:
		if x, ok := v.Addr().Interface().(interface{ alone(text string) }); ok && isText {
			x.alone(text)
			return true
		}
		return d.readStruct(field, n, v)
	case reflect.Slice:
		return d.readList(field, n, v)
	case reflect.Map:
		return d.readMap(field, n, v)
	case reflect.Bool:
		b, ok := n.(*ast.BoolNode)
		if !ok {
			d.add(n, "%s has to be true or false", field)
			return false
		}
		v.SetBool(b.Value)
	default:
		if !isText {
			d.add(n, "%s has to be text", field)
			return false
		}
		v.SetString(text)
	}
	return true
}

func (d *decoder) readList(field string, n ast.Node, v reflect.Value) bool {
	list, ok := n.(*ast.SequenceNode)
	if !ok {
		d.add(n, "%s has to be a list, even of one: start each element with '- '", field)
		return false
	}
	out := reflect.MakeSlice(v.Type(), 0, len(list.Values))
	for _, e := range list.Values {
		found := len(d.wrong)
		one := reflect.New(v.Type().Elem()).Elem()
		fits := d.read(elementOf+field, e, one)
		row, isRow := one.Addr().Interface().(*Row)
		switch {
		case isRow:
			row.Line = lineOf(e)
			if !fits {
				row.tell("name", "token", "key_spec", "expires", "destinations")
			}
			for i := range d.wrong[found:] {
				if row.Name != "" && clean(row.Name) == row.Name {
					d.wrong[found+i].Name = row.Name
				}
			}
		case !fits:
			continue
		}
		out = reflect.Append(out, one)
	}
	v.Set(out)
	return true
}

func (d *decoder) readStruct(field string, n ast.Node, v reflect.Value) bool {
	known := fieldsOf(v.Type())
	row, isRow := v.Addr().Interface().(*Row)
	inside := "" // what the fields are in
	if _, isFleet := v.Addr().Interface().(*Fleet); !isFleet && (!isRow || field == "defaults") {
		inside = strings.TrimPrefix(field, elementOf) + ": "
	}
	return d.entries(field, n, "a mapping of "+strings.Join(known, ", "), func(key ast.Node, name string, value ast.Node) {
		if i := slices.Index(known, name); i >= 0 {
			if fits := d.read(inside+name, value, v.Field(i)); !fits && isRow {
				row.tell(name)
			}
			return
		}
		d.remember(value)
		meant := configs.Meant(name, known)
		if meant == "" {
			d.add(key, "%sthere is no field %q; there are %s", inside, name, strings.Join(known, ", "))
			return
		}
		d.add(key, "%sthere is no field %q, did you mean %s?", inside, name, meant)
		if isRow {
			row.tell(meant)
		}
	})
}

// readMap reads names with their texts.
func (d *decoder) readMap(field string, n ast.Node, v reflect.Value) bool {
	out := map[string]string{}
	fits := d.entries(field, n, "a mapping of NAME: VALUE", func(_ ast.Node, name string, value ast.Node) {
		text := ""
		if d.read(field+": "+name, value, reflect.ValueOf(&text).Elem()) {
			out[name] = text
		}
	})
	v.Set(reflect.ValueOf(out))
	return fits
}

// entries calls set with each entry of a mapping, those that are merged into it first, as its own prevail. It says whether the node is a mapping.
func (d *decoder) entries(field string, n ast.Node, what string, set func(key ast.Node, name string, value ast.Node)) bool {
	var list []*ast.MappingValueNode
	switch x := n.(type) {
	case *ast.MappingNode:
		list = x.Values
	case *ast.MappingValueNode:
		list = []*ast.MappingValueNode{x}
	default:
		d.add(n, "%s has to be %s", field, what)
		return false
	}
	seen := map[string]bool{}
	var own []*ast.MappingValueNode
	for _, e := range list {
		name := keyOf(e)
		switch {
		case seen[name]:
			d.add(e.Key, "%s is given twice in %s", name, field)
		case !e.Key.IsMergeKey():
			own = append(own, e)
		default:
			d.merge(field, e.Value, set)
		}
		seen[name] = true
	}
	for _, e := range own {
		set(e.Key, keyOf(e), e.Value)
	}
	return true
}

// merge reads the mapping behind a merge key.
func (d *decoder) merge(field string, at ast.Node, set func(key ast.Node, name string, value ast.Node)) {
	const most = 16
	d.merges++
	defer func() { d.merges-- }()
	switch n, ok := d.resolve(at); {
	case d.merges > most:
		d.add(at, "merge keys within one another, more than %d", most)
	case ok && n != nil:
		d.entries("what is merged into "+field, n, "one mapping", set)
	}
}

// resolve is the node that an anchor names or an alias stands for.
func (d *decoder) resolve(at ast.Node) (n ast.Node, ok bool) {
	n = at
	for range 16 {
		switch x := n.(type) {
		case *ast.AnchorNode:
			d.anchors[x.Name.GetToken().Value] = x.Value
			n = x.Value
		case *ast.AliasNode:
			name := x.Value.GetToken().Value
			if n = d.anchors[name]; n == nil {
				d.add(at, "the alias *%s stands for nothing that is anchored before it", name)
				return nil, false
			}
		case *ast.TagNode:
			if tag := x.GetToken().Value; tag != "!!str" {
				d.add(at, "the tag %s is refused: the type of a value is given by its field", tag)
				return nil, false
			}
			n = x.Value
		default:
			return n, true
		}
	}
	d.add(at, "an alias stands for itself")
	return nil, false
}

// remember notes the anchors in what is not read.
func (d *decoder) remember(n ast.Node) { ast.Walk(anchored(d.anchors), n) }

// anchored notes anchors by name.
type anchored map[string]ast.Node

// Visit does so with one node, and goes on with those in it.
func (a anchored) Visit(n ast.Node) ast.Visitor {
	if x, ok := n.(*ast.AnchorNode); ok {
		a[x.Name.GetToken().Value] = x.Value
	}
	return a
}

// scalar is a text, a number or a truth value as it is written: an external ID may be 0123.
func scalar(n ast.Node) (text string, ok bool) {
	switch x := n.(type) {
	case *ast.StringNode:
		return x.Value, true
	case *ast.LiteralNode:
		return x.Value.Value, true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		return x.GetToken().Value, true
	}
	return "", false
}

// keyOf is the key of an entry, as it is written.
func keyOf(e *ast.MappingValueNode) string {
	var key ast.Node = e.Key
	if x, ok := key.(*ast.MappingKeyNode); ok {
		key = x.Value
	}
	if text, ok := scalar(key); ok {
		return text
	}
	if t := key.GetToken(); t != nil {
		return t.Value
	}
	return ""
}

// lineOf is the line in which a person sees a node begin: a block mapping at its first key.
func lineOf(n ast.Node) int {
	switch x := n.(type) {
	case *ast.MappingNode:
		if len(x.Values) > 0 {
			return lineOf(x.Values[0].Key)
		}
	case *ast.MappingValueNode:
		return lineOf(x.Key)
	case *ast.AnchorNode:
		return x.Start.Position.Line
	}
	if t := n.GetToken(); t != nil && t.Position != nil {
		return t.Position.Line
	}
	return 0
}

// fieldsOf are the names of a struct's fields in YAML, in order. Those without one stand last.
func fieldsOf(t reflect.Type) []string {
	var names []string
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("yaml"), ",")
		if name == "" || name == "-" {
			break
		}
		names = append(names, name)
	}
	return names
}
