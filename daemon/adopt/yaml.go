package adopt

import (
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml/ast"

	"hsmbridge/configs"
)

// ParseYAML reads a fleet, strictly, in the plain subset of YAML that a configuration is written in: what rows share stands under defaults. With [Problems] the
// fleet is there nevertheless, to look for what else is wrong with it.
func ParseYAML(text []byte) (Fleet, error) {
	var f Fleet
	root, problems := configs.PlainYAML(text)
	if len(problems) > 0 {
		var wrong Problems
		for _, p := range problems {
			wrong = append(wrong, Problem{Line: p.Line, What: p.Message})
		}
		return f, wrong
	}
	var d decoder
	if root != nil && root.Type() != ast.NullType {
		d.read("the fleet", root, reflect.ValueOf(&f).Elem())
	}
	if len(f.Keys) == 0 && len(d.wrong) == 0 {
		return f, errNoKeys("they are a list under keys")
	}
	return f, append(d.wrong, f.check()...).err()
}

// decoder makes a fleet of what the YAML parser found, and collects every mistake.
type decoder struct{ wrong Problems }

func (d *decoder) add(at ast.Node, format string, args ...any) {
	d.wrong = append(d.wrong, Problem{Line: lineOf(at), What: fmt.Sprintf(format, args...)})
}

// elementOf is what an element of a list is called.
const elementOf = "an element of "

// read sets v to what a node says, and says whether the node is of its type. A null sets nothing, as if the field were left out.
func (d *decoder) read(field string, n ast.Node, v reflect.Value) bool {
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
	if isRow {
		row.Line = lineOf(n)
	}
	inside := "" // what the fields are in
	if _, isFleet := v.Addr().Interface().(*Fleet); !isFleet && (!isRow || field == "defaults") {
		inside = strings.TrimPrefix(field, elementOf) + ": "
	}
	return d.entries(field, n, "a mapping of "+strings.Join(known, ", "), func(key ast.Node, name string, value ast.Node) {
		if i := slices.Index(known, name); i >= 0 {
			switch fits := d.read(inside+name, value, v.Field(i)); {
			case isRow && !fits:
				row.tell(name)
			case isRow && name == "multi_region":
				_, given := value.(*ast.BoolNode)
				row.single = given && !row.MultiRegion
			}
			return
		}
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
		if d.read(field+": "+shown(name), value, reflect.ValueOf(&text).Elem()) {
			out[name] = text
		}
	})
	v.Set(reflect.ValueOf(out))
	return fits
}

// entries calls set with each entry of a mapping, and says whether the node is one.
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
	for _, e := range list {
		name := keyOf(e)
		if seen[name] {
			d.add(e.Key, "%s is given twice in %s", shown(name), field)
			continue
		}
		seen[name] = true
		set(e.Key, name, e.Value)
	}
	return true
}

// shown is a name from the file as it can stand in a line: one with other characters than letters, digits and the like stands in quotes.
func shown(name string) string {
	if name != "" && clean(name) == name {
		return name
	}
	return strconv.Quote(name)
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
	if text, ok := scalar(e.Key); ok {
		return text
	}
	if t := e.Key.GetToken(); t != nil {
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
