package configs

import "strings"

// readSimple reads the part of YAML in which nearly every configuration is written: block mappings and lists, scalars and flow collections
// of one line, comments. It is some twenty times as fast as the YAML parser, which a file of ten thousand keys shows at each start.
//
// It reads a file wholly or not at all: ok is false for everything that it does not know for certain, and then the YAML parser says what it
// is, and what is wrong with it. What it does read is what the parser reads, positions included; FuzzSimple holds both against each other.
func readSimple(data []byte) (root *node, ok bool) {
	r := simpleReader{text: string(data)}
	if !r.next() || r.column != 1 {
		return nil, false
	}
	n, ok := r.block(1, 0)
	if !ok || !r.end {
		return nil, false
	}
	return &n, true
}

// Far within the limits of the YAML parser's callers, so that what is refused there is refused there.
const (
	simpleDepth = maxDepth / 2
	simpleKeys  = maxKeys / 2
)

// simpleReader stands at a line with content.
type simpleReader struct {
	text   string
	rest   string // the line, from column on, without spaces at its end
	line   int    // from 1
	column int    // from 1
	end    bool   // there is no line any more
	nodes  []node // of the collections that are open
}

// next goes to the next line that has more than a comment.
func (r *simpleReader) next() bool {
	for r.text != "" {
		line, rest, found := strings.Cut(r.text, "\n")
		if !found {
			rest = ""
		}
		r.text = rest
		r.line++
		content := strings.TrimLeft(line, " ")
		if content == "" {
			continue
		}
		if content[0] == '#' {
			if strings.ContainsAny(content, "\r\t") {
				return false
			}
			continue
		}
		r.column = len(line) - len(content) + 1
		r.rest = content
		return true
	}
	r.rest, r.column, r.end = "", 0, true
	return true
}

// skip goes on in the line.
func (r *simpleReader) skip(n int) {
	r.rest = r.rest[n:]
	r.column += n
}

func (r *simpleReader) here() position { return position{r.line, r.column} }

// block reads the collection that begins here, and goes to the line behind it.
func (r *simpleReader) block(column, depth int) (node, bool) {
	switch {
	case depth > simpleDepth || r.column != column:
		return node{}, false
	case strings.HasPrefix(r.rest, "- "):
		return r.list(column, depth+1)
	default:
		return r.mapping(column, depth+1)
	}
}

// close makes the nodes since mark the children of one.
func (r *simpleReader) close(n node, mark int) node {
	n.children = append([]node(nil), r.nodes[mark:]...)
	r.nodes = r.nodes[:mark]
	return n
}

func (r *simpleReader) list(column, depth int) (node, bool) {
	n, mark := node{kind: kindList, at: r.here()}, len(r.nodes)
	for !r.end && r.column == column && strings.HasPrefix(r.rest, "- ") {
		r.skip(2)
		var element node
		var ok bool
		switch {
		case r.rest == "" || r.rest[0] == ' ' || r.rest[0] == '-':
			return n, false
		case r.startsKey():
			element, ok = r.mapping(r.column, depth+1)
		default:
			element, ok = r.value(column, depth)
		}
		if !ok {
			return n, false
		}
		r.nodes = append(r.nodes, element)
	}
	return r.close(n, mark), r.end || r.column < column || r.column == column && depth > 1
}

// mapping reads a block mapping whose keys stand in a column.
func (r *simpleReader) mapping(column, depth int) (node, bool) {
	n, mark := node{kind: kindMapping, at: r.here()}, len(r.nodes)
	if depth > simpleDepth {
		return n, false
	}
	for !r.end && r.column == column {
		length := keyLength(r.rest)
		if length == 0 || len(r.nodes)-mark >= 2*simpleKeys {
			return n, false
		}
		key := node{kind: kindText, at: r.here(), text: r.rest[:length]}
		r.skip(length + 1)
		var value node
		var ok bool
		if spaces := countSpaces(r.rest); spaces < len(r.rest) && r.rest[spaces] != '#' {
			r.skip(spaces)
			value, ok = r.value(column, depth)
		} else {
			ok = r.comment() && r.next() && !r.end
			switch {
			case !ok:
			case r.column > column, r.column == column && strings.HasPrefix(r.rest, "- "): // a list may stand below its key
				value, ok = r.block(r.column, depth)
			default:
				ok = false // no value
			}
		}
		if !ok {
			return n, false
		}
		r.nodes = append(r.nodes, key, value)
	}
	return r.close(n, mark), r.end || r.column < column
}

// startsKey says whether a key with its colon begins here.
func (r *simpleReader) startsKey() bool { return keyLength(r.rest) > 0 }

// keyLength is the length of the key of a mapping, 0 if none begins here: letters, digits and '_', and a colon with a space or nothing behind it.
func keyLength(s string) int {
	n := 0
	for n < len(s) && (isLetter(s[n]) || n > 0 && (isDigit(s[n]) || s[n] == '-' || s[n] == '.')) {
		n++
	}
	if n == 0 || n == len(s) || s[n] != ':' || n+1 < len(s) && s[n+1] != ' ' || isReserved(s[:n]) {
		return 0
	}
	return n
}

// value reads what stands in one line, and goes to the next line. That is not further in than the collection: the value ends with its line.
func (r *simpleReader) value(column, depth int) (node, bool) {
	n, ok := r.inline(depth, false)
	if !ok || !r.comment() || !r.next() {
		return n, false
	}
	return n, r.end || r.column <= column
}

// comment holds if there is nothing more in the line but a comment. Spaces at the end of a line are left to the parser.
func (r *simpleReader) comment() bool {
	spaces := countSpaces(r.rest)
	return r.rest == "" || spaces < len(r.rest) && spaces > 0 && r.rest[spaces] == '#' && !strings.ContainsAny(r.rest, "\r\t")
}

// inline reads a scalar, or a collection in brackets.
func (r *simpleReader) inline(depth int, flow bool) (node, bool) {
	if r.rest == "" || depth > simpleDepth {
		return node{}, false
	}
	switch c := r.rest[0]; c {
	case '"', '\'':
		n := 1
		for n < len(r.rest) && r.rest[n] != c {
			if r.rest[n] < ' ' || r.rest[n] > '~' || r.rest[n] == '\\' {
				return node{}, false
			}
			n++
		}
		if n == len(r.rest) || n+1 < len(r.rest) && r.rest[n+1] == c {
			return node{}, false
		}
		s := node{kind: kindText, quoted: true, at: r.here(), text: r.rest[1:n]}
		r.skip(n + 1)
		return s, true
	case '[':
		return r.flow(node{kind: kindList, at: r.here()}, ']', depth+1)
	case '{':
		return r.flow(node{kind: kindMapping, at: r.here()}, '}', depth+1)
	}
	return r.plain(flow)
}

// flow reads a collection in brackets.
func (r *simpleReader) flow(n node, closing byte, depth int) (node, bool) {
	mark := len(r.nodes)
	r.skip(1)
	for first := true; ; first = false {
		r.skip(countSpaces(r.rest))
		if first && r.rest != "" && r.rest[0] == closing {
			break
		}
		if closing == '}' {
			length := keyLength(r.rest)
			if length == 0 || length+2 > len(r.rest) {
				return n, false
			}
			r.nodes = append(r.nodes, node{kind: kindText, at: r.here(), text: r.rest[:length]})
			r.skip(length + 1)
			r.skip(countSpaces(r.rest))
		}
		element, ok := r.inline(depth, true)
		if !ok {
			return n, false
		}
		r.nodes = append(r.nodes, element)
		r.skip(countSpaces(r.rest))
		switch {
		case r.rest == "":
			return n, false
		case r.rest[0] == ',':
			r.skip(1)
			continue
		case r.rest[0] != closing:
			return n, false
		}
		break
	}
	r.skip(1)
	return r.close(n, mark), true
}

// plain reads a scalar without quotes: a text, a whole number or a truth value. Everything that looks like anything else is left to the parser.
func (r *simpleReader) plain(flow bool) (node, bool) {
	s := r.rest
	if !isLetter(s[0]) && !isDigit(s[0]) && s[0] != '/' {
		return node{}, false
	}
	n := 1
	for n < len(s) {
		c := s[n]
		inText := isLetter(c) || isDigit(c) || c == '-' || c == '.' || c == '/' || c == '@' || c == '+' || c == '='
		switch {
		case inText:
		case c == ':' && !flow && n+1 < len(s) && s[n+1] != ' ':
		case c == ' ' && n+1 < len(s) && (isLetter(s[n+1]) || isDigit(s[n+1])):
		default:
			c = 0
		}
		if c == 0 {
			break
		}
		n++
	}
	t := node{kind: kindText, at: r.here(), text: s[:n]}
	switch {
	case t.text == "true":
		t.kind = kindTrue
	case t.text == "false":
		t.kind = kindFalse
	case isReserved(t.text):
		return t, false
	case isDigit(s[0]):
		switch {
		case isWhole(t.text):
			t.kind = kindInteger
		case !isTextAfterDigits(t.text):
			return t, false
		}
	}
	r.skip(n)
	return t, true
}

// isWhole holds for a whole number of a few digits, written as everybody writes it.
func isWhole(s string) bool {
	const few = 9
	for i := range len(s) {
		if !isDigit(s[i]) {
			return false
		}
	}
	return len(s) <= few && (s[0] != '0' || s == "0")
}

// isTextAfterDigits holds for what begins with a digit and is no number in any way of writing one: 90d, 0.25/s, 127.0.0.1:9464.
func isTextAfterDigits(s string) bool {
	if s[0] == '0' && len(s) > 1 && isLetter(s[1]) {
		return false // 0x, 0o, 0b
	}
	for i := range len(s) {
		if c := s[i]; c != 'e' && c != 'E' && c != '_' && isLetter(c) || c == '/' || c == ':' || c == '@' || c == '=' || c == ' ' {
			return true
		}
	}
	return false
}

// isReserved holds for words that YAML, in one version or another, takes for something other than text.
func isReserved(s string) bool {
	const longest = 5
	if len(s) > longest {
		return false
	}
	switch strings.ToLower(s) {
	case "null", "true", "false", "yes", "no", "on", "off", "y", "n", "inf", "nan":
		return true
	}
	return false
}

func countSpaces(s string) int { return len(s) - len(strings.TrimLeft(s, " ")) }

func isLetter(c byte) bool { return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || c == '_' }

func isDigit(c byte) bool { return '0' <= c && c <= '9' }
