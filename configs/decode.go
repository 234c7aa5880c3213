package configs

import (
	"cmp"
	"encoding"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"hsmbridge/hsm/pkcs11uri"
)

// maxProblems is how many mistakes are listed. A file with more is not a configuration.
const maxProblems = 200

// decoder walks the YAML tree beside the Go types and collects every mistake.
type decoder struct {
	source   source
	problems []Problem
	read     []byte                    // what was read from other files
	at       map[string]position       // where each value stands that was read without a mistake, by path
	fields   map[reflect.Type][]string // the names of a struct's fields
}

func newDecoder() *decoder {
	return &decoder{at: make(map[string]position), fields: make(map[reflect.Type][]string)}
}

// add notes a mistake.
func (d *decoder) add(at position, path, format string, args ...any) {
	if len(d.problems) > maxProblems {
		return
	}
	p := Problem{Line: at.line, Column: at.column, Path: shorten(path), Message: shorten(fmt.Sprintf(format, args...))}
	if len(d.problems) == maxProblems {
		p.Message = fmt.Sprintf("more than %d mistakes: the rest are not listed", maxProblems)
	}
	p.excerpt, p.caret = d.source.excerpt(at)
	d.problems = append(d.problems, p)
}

// shorten cuts a text which quotes something very long from the file.
func shorten(s string) string {
	const most = 600
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + " ..."
}

func (d *decoder) sorted() []Problem {
	slices.SortStableFunc(d.problems, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	return d.problems
}

// decode reads node into v, a settable value of one of the configuration's types.
func (d *decoder) decode(path string, node *node, v reflect.Value) {
	found := len(d.problems)
	text, isText := v.Addr().Interface().(encoding.TextUnmarshaler)
	if node.kind == kindMapping && v.Kind() == reflect.Struct && d.fieldNames(v.Type())[0] != "" {
		isText = false // a text or a mapping: a destination
	}
	switch kind := v.Kind(); {
	case kind == reflect.Pointer: // given or not, which its zero value would not tell
		v.Set(reflect.New(v.Type().Elem()))
		d.decode(path, node, v.Elem())
	case kind == reflect.Slice && (node.kind == kindList || !isText):
		d.decodeSlice(path, node, v)
	case isText:
		d.decodeText(path, node, text)
	case kind == reflect.Struct:
		d.decodeStruct(path, node, v)
	case kind == reflect.Map:
		d.decodeMap(path, node, v)
	case kind == reflect.Int:
		d.decodeNumber(path, node, v)
	case kind == reflect.Bool:
		if node.kind == kindTrue || node.kind == kindFalse {
			v.SetBool(node.kind == kindTrue)
		} else {
			d.wrongType(path, node, "true or false")
		}
	default:
		if s, ok := d.text(path, node); ok {
			v.SetString(s)
		}
	}
	if len(d.problems) == found {
		d.at[path] = node.at
	}
}

// decodeNumber reads a whole number.
func (d *decoder) decodeNumber(path string, node *node, v reflect.Value) {
	if node.kind == kindInteger {
		if i, err := strconv.ParseInt(node.text, 10, 32); err == nil {
			v.SetInt(i)
			return
		}
	}
	d.wrongType(path, node, "a whole number")
}

func (d *decoder) decodeStruct(path string, node *node, v reflect.Value) {
	if node.kind != kindMapping {
		d.wrongType(path, node, "a mapping of "+strings.Join(fieldNames(v.Type()), ", "))
		return
	}
	if x, ok := v.Addr().Interface().(interface{ setDefaults() }); ok {
		x.setDefaults()
	}
	names := d.fieldNames(v.Type())
	var meant []string // by keys that no field has
	seen := make([]bool, len(names))
	for e := 0; e < len(node.children); e += 2 {
		if len(d.problems) > maxProblems {
			return
		}
		key, value := &node.children[e], &node.children[e+1]
		name := key.text
		i := slices.Index(names, name)
		switch {
		case i < 0:
			meant = append(meant, d.unknownKey(path, key, names))
			continue
		case seen[i]:
			d.add(key.at, join(path, name), "%s is given twice", name)
		default:
			d.decodeField(join(path, name), name, value, v, i)
		}
		seen[i] = true
	}
	for i, name := range names {
		if !seen[i] && !slices.Contains(meant, name) && required(v.Type().Field(i)) {
			d.add(node.at, join(path, name), "%s is missing%s", name, whyRequired(name))
		}
	}
}

// decodeField reads a field of a struct. The ARN of a destination is read like a destination that is only its ARN.
func (d *decoder) decodeField(path, name string, node *node, v reflect.Value, i int) {
	dest, ok := v.Addr().Interface().(*Destination)
	if !ok || name != "arn" {
		d.decode(path, node, v.Field(i))
		return
	}
	found := len(d.problems)
	d.decodeText(path, node, dest)
	if len(d.problems) == found {
		d.at[path] = node.at
	}
}

// unknownKey names a key that no field has, and returns the field that was probably meant. It never shows the key's
// value, which may be a PIN.
func (d *decoder) unknownKey(path string, key *node, known []string) (meant string) {
	name, at := key.text, key.at
	if isSecretName(name) {
		d.add(at, join(path, name), "%s is refused, because a PIN never stands in a configuration: use pin_file, pin_command, pin_prompt or pin_credential of a token, and change a PIN that stood here", name)
		return ""
	}
	for _, k := range known {
		if near(name, k) {
			d.add(at, join(path, name), "unknown key %q: did you mean %s?", name, k)
			return k
		}
	}
	d.add(at, join(path, name), "unknown key %q: %s takes %s", name, cmp.Or(path, "the configuration"), strings.Join(known, ", "))
	return ""
}

func (d *decoder) decodeSlice(path string, node *node, v reflect.Value) {
	if node.kind != kindList {
		d.wrongType(path, node, "a list, even of one: start each element with '- '")
		return
	}
	v.Set(reflect.MakeSlice(v.Type(), len(node.children), len(node.children)))
	for i := range node.children {
		if len(d.problems) > maxProblems {
			return
		}
		d.decode(element(path, i), &node.children[i], v.Index(i))
	}
	if len(node.children) == 0 {
		v.SetZero() // an empty list is like none
	}
}

func (d *decoder) decodeMap(path string, node *node, v reflect.Value) {
	if node.kind != kindMapping {
		d.wrongType(path, node, "a mapping of NAME: VALUE")
		return
	}
	result := make(map[string]string, len(node.children)/2)
	for e := 0; e < len(node.children); e += 2 {
		if len(d.problems) > maxProblems {
			return
		}
		key, value := &node.children[e], &node.children[e+1]
		name, ok := d.text(path, key)
		if !ok {
			continue
		}
		if _, twice := result[name]; twice {
			d.add(key.at, join(path, name), "%s is given twice", name)
			continue
		}
		result[name] = ""
		if text, ok := d.text(join(path, name), value); ok {
			result[name] = text
			d.at[join(path, name)] = key.at
		}
	}
	if len(result) > 0 {
		v.Set(reflect.ValueOf(result))
	}
}

// decodeText reads a text with a form of its own; its mistakes may have an offset in the text.
func (d *decoder) decodeText(path string, node *node, v encoding.TextUnmarshaler) {
	s, ok := d.text(path, node)
	if !ok {
		return
	}
	err := v.UnmarshalText([]byte(s))
	var inText *textError
	var inURI *pkcs11uri.Error
	switch {
	case err == nil:
	case errors.As(err, &inText):
		d.add(d.inside(node, s, inText.offset), path, "%s", inText.reason)
	case errors.As(err, &inURI):
		d.add(d.inside(node, s, inURI.Offset), path, "PKCS #11 URI: %s", inURI.Reason)
	default:
		d.add(node.at, path, "%v", err)
	}
}

// text is a scalar that is text, and not a number, a truth value or nothing.
func (d *decoder) text(path string, node *node) (string, bool) {
	if node.kind == kindText {
		return node.text, true
	}
	d.wrongType(path, node, "text")
	return "", false
}

// wrongType says what a field takes instead of what stands there.
func (d *decoder) wrongType(path string, node *node, want string) {
	at := node.at
	field := cmp.Or(path[strings.LastIndexByte(path, '.')+1:], "the configuration")
	switch {
	case node.kind == kindNull:
		d.add(at, path, "%s has no value: give it %s, or leave the key out", field, want)
	case node.isScalar():
		switch {
		case want == "text" && slices.Contains([]string{"expires", "watch_every", "renew_before", "rotate_every", "drill_every", "valid_for", "standing", "every", "jobs"}, field):
			d.add(at, path, "%s has to be a length of time with a unit, as in 90d or 12h", field)
		case want == "text" && field == "call_timeout":
			d.add(at, path, "%s has to be a length of time with a unit, as in 30s or 2m", field)
		case want == "text" && field == "rate":
			d.add(at, path, "%s has to be a number of requests in a time, as in 1/s or 30/m", field)
		case want == "text":
			d.add(at, path, "%s has to be text: put it in quotes", field)
		default:
			d.add(at, path, "%s has to be %s", field, want)
		}
	case node.kind == kindList:
		d.add(at, path, "%s has to be %s, not a list", field, want)
	default:
		d.add(at, path, "%s has to be %s, not a mapping", field, want)
	}
}

// inside is the position of a byte offset in the text of a node. It is the node's own where the text
// is not written in the file as it is: with escapes, or in several lines.
func (d *decoder) inside(node *node, text string, offset int) position {
	at := node.at
	column := at.column
	if node.quoted {
		column++
	}
	line := d.source.line(at)
	for i := 1; i < column && line != ""; i++ {
		_, size := utf8.DecodeRuneInString(line)
		line = line[size:]
	}
	if !strings.HasPrefix(line, text) || offset > len(text) {
		return at
	}
	return position{at.line, column + utf8.RuneCountInString(text[:offset])}
}

// fieldNames is [fieldNames], which is done once for each type.
func (d *decoder) fieldNames(t reflect.Type) []string {
	if d.fields[t] == nil {
		d.fields[t] = fieldNames(t)
	}
	return d.fields[t]
}

// fieldNames lists a struct's keys in YAML, in order.
func fieldNames(t reflect.Type) []string {
	n := t.NumField()
	for n > 1 && !t.Field(n-1).IsExported() {
		n-- // what is not read stands last
	}
	names := make([]string, n)
	for i := range names {
		names[i], _, _ = strings.Cut(t.Field(i).Tag.Get("yaml"), ",")
	}
	return names
}

func required(f reflect.StructField) bool {
	return slices.Contains(strings.Split(f.Tag.Get("jsonschema"), ","), "required")
}

// whyRequired adds to "X is missing" what a person has to decide.
func whyRequired(name string) string {
	switch name {
	case "expires":
		return ": say when KMS deletes the imported material, at most 365d (expires: 90d), or that it never does (expires: never); AWS's own default is that it expires"
	case "uri":
		return `: name it by a PKCS #11 URI such as "pkcs11:token=LABEL" or "pkcs11:object=LABEL;type=secret-key"`
	case "arn":
		return ": a destination is a KMS key, " + destinationParts
	case "destinations":
		return ": list the ARNs of the KMS keys into which this key may go"
	}
	return ""
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// near says whether a name is a slip of the finger away from a known one: they share a beginning or an end, and without it
// at most two characters are left of either. Case, and '-' for '_', do not count.
func near(name, known string) bool {
	fold := func(s string) string { return strings.ReplaceAll(strings.ToLower(s), "-", "_") }
	a, b := fold(name), fold(known)
	for a != "" && b != "" && a[0] == b[0] {
		a, b = a[1:], b[1:]
	}
	for a != "" && b != "" && a[len(a)-1] == b[len(b)-1] {
		a, b = a[:len(a)-1], b[:len(b)-1]
	}
	return len(a) <= 2 && len(b) <= 2 && len(b) < len(known)
}
