package configs

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// document parses data as one YAML document and returns its root; nil with a problem added if there is none.
func (d *decoder) document(data []byte) *node {
	body := d.parse(data)
	if body == nil {
		if len(d.problems) == 0 {
			d.add(position{1, 1}, "", "the file holds comments only; hsmbridge config init writes a configuration to start from")
		}
		return nil
	}
	root := fromAST(body)
	return &root
}

// PlainYAML parses data as one document of the plain subset of YAML in which configurations are written, for other files that are like them. The root is
// nil where there are problems, which are all that are found, and where there is nothing but comments.
func PlainYAML(data []byte) (root ast.Node, problems []Problem) {
	d := newDecoder()
	if !d.readable(data) {
		return nil, d.sorted()
	}
	d.source = newSource(data)
	root = d.parse(data)
	return root, d.sorted()
}

// parse parses data as one YAML document; nil with a problem added, or without where there is nothing but comments.
func (d *decoder) parse(data []byte) ast.Node {
	tokens := lexer.Tokenize(string(data))
	if !d.plain(tokens) {
		return nil
	}
	file, err := parseTokens(tokens)
	if err != nil {
		d.addSyntax(err)
		return nil
	}
	if len(file.Docs) == 0 {
		return nil
	}
	return file.Docs[0].Body
}

// parseTokens calls the YAML parser. It is a library of some size that reads a file from outside: should it panic, the file is
// refused like any other that is not YAML.
func parseTokens(tokens token.Tokens) (file *ast.File, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("the YAML parser gave up: %v", r)
		}
	}()
	return parser.Parse(tokens, 0, parser.AllowDuplicateMapKey())
}

// addSyntax adds what the YAML parser says.
func (d *decoder) addSyntax(err error) {
	var syntax *yaml.SyntaxError
	if !errors.As(err, &syntax) || syntax.Token == nil {
		d.add(position{1, 1}, "", "this is not YAML: %v", err)
		return
	}
	at, message := tokenPosition(syntax.Token), syntax.Message
	if before, _, found := strings.Cut(d.source.line(at), "\t"); found {
		at.column, message = utf8.RuneCountInString(before)+1, "a tab: YAML wants spaces, and \\t in double quotes"
	} else if strings.Contains(message, "value is not allowed in this context") {
		message += ": look at the indentation, and for a missing quote or colon"
	}
	d.add(at, "", "this is not YAML: %s", message)
}

func tokenPosition(t *token.Token) position {
	if t == nil || t.Position == nil {
		return position{1, 1}
	}
	return position{t.Position.Line, max(t.Position.Column, 1)}
}

// The YAML parser works recursively, through the levels of nesting and also through the keys of a block mapping, and takes
// minutes and gigabytes for a hostile file of 1 MiB. Both limits are several times what a configuration has.
const (
	maxDepth = 16
	maxKeys  = 500 // of one block mapping: environment variables are the most there can be
)

// plain refuses the parts of YAML that a configuration does without, a second document, and nesting without end.
func (d *decoder) plain(tokens token.Tokens) bool {
	plain, content, ended := true, false, false
	var n nesting
	for _, t := range tokens {
		reason := refusedToken(t.Type)
		switch {
		case t.Type == token.CommentType:
			continue
		case reason != "":
			d.add(tokenPosition(t), "", "%s", reason)
			if plain = false; t.Type == token.DirectiveType {
				return false // what follows it in the line is not content
			}
			continue
		case t.Type == token.DocumentEndType:
			ended = true
			continue
		case ended, t.Type == token.DocumentHeaderType && content:
			d.add(tokenPosition(t), "", "a second YAML document: the file is one")
			return false
		case t.Type == token.DocumentHeaderType:
			continue
		}
		content = true
		if excess := n.add(t); excess != "" {
			d.add(tokenPosition(t), "", "%s", excess)
			return false
		}
	}
	return plain
}

// refusedToken says why a configuration does without a part of YAML; empty for the others.
func refusedToken(t token.Type) string {
	switch t { //nolint:exhaustive // all others are allowed
	case token.AnchorType, token.AliasType, token.MergeKeyType:
		return "anchors, aliases and merge keys are refused: write the value where it is used, so that who approves it reads it there"
	case token.TagType:
		return "tags are refused: the type of a value is given by its field"
	case token.DirectiveType:
		return "directives are refused: the file is YAML 1.2 as it is"
	case token.MappingKeyType:
		return "'?' keys are refused: write KEY: VALUE"
	}
	return ""
}

// nesting counts the collections that are open.
type nesting struct {
	flow  int     // brackets and braces
	block []level // block collections, outermost first
}

// level is a block collection: a list whose dashes, or a mapping whose keys, stand in a column.
type level struct {
	column, keys int // keys is 0 for a list
}

// add follows a token and says which limit it exceeds, empty if none.
func (n *nesting) add(t *token.Token) (excess string) {
	switch t.Type { //nolint:exhaustive // the other tokens do not nest
	case token.SequenceStartType, token.MappingStartType:
		n.flow++
	case token.SequenceEndType, token.MappingEndType:
		n.flow--
	case token.SequenceEntryType:
		n.open(level{column: tokenPosition(t).column})
	case token.MappingValueType:
		n.open(level{column: tokenPosition(t.Prev).column, keys: 1}) // the key before the colon
	}
	switch {
	case n.flow+len(n.block) > maxDepth:
		return fmt.Sprintf("nested deeper than %d levels, which no field is", maxDepth)
	case len(n.block) > 0 && n.block[len(n.block)-1].keys > maxKeys:
		return fmt.Sprintf("more than %d keys in one mapping, which no field has", maxKeys)
	}
	return ""
}

// open starts a collection or goes on with one. A list may stand in the column of the key that it belongs to.
func (n *nesting) open(l level) {
	if n.flow > 0 {
		return
	}
	isList := l.keys == 0
	for len(n.block) > 0 {
		last := &n.block[len(n.block)-1]
		lastIsList := last.keys == 0
		if last.column == l.column && lastIsList == isList {
			last.keys += l.keys
			return
		}
		if last.column < l.column || last.column == l.column && isList {
			break
		}
		n.block = n.block[:len(n.block)-1]
	}
	n.block = append(n.block, l)
}
