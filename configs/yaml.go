package configs

import (
	"errors"
	"fmt"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// document parses data as one YAML document and returns its root; nil with a problem added if there is none.
func (d *decoder) document(data []byte) ast.Node {
	tokens := lexer.Tokenize(string(data))
	if !d.plain(tokens) {
		return nil
	}
	file, err := parseTokens(tokens)
	if err != nil {
		d.addSyntax(err)
		return nil
	}
	if len(file.Docs) == 0 || file.Docs[0].Body == nil {
		d.add(position{1, 1}, "", "the file holds comments only; hsmbridge config init writes a configuration to start from")
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
	message := syntax.Message
	switch {
	case strings.Contains(message, "'\t'"):
		message = "a tab in the indentation: YAML wants spaces"
	case strings.Contains(message, "value is not allowed in this context"):
		message += ": look at the indentation, and for a missing quote or colon"
	}
	d.add(tokenPosition(syntax.Token), "", "this is not YAML: %s", message)
}

func tokenPosition(t *token.Token) position {
	if t == nil || t.Position == nil {
		return position{1, 1}
	}
	return position{t.Position.Line, max(t.Position.Column, 1)}
}

// maxDepth is the deepest nesting that is parsed, several times what the configuration has. The parser works recursively.
const maxDepth = 16

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
			plain = false
			continue
		case t.Type == token.DocumentEndType:
			ended = true
			continue
		case ended, t.Type == token.DocumentHeaderType && content:
			d.add(tokenPosition(t), "", "a second YAML document: a configuration is one")
			return false
		case t.Type == token.DocumentHeaderType:
			continue
		}
		content = true
		if n.add(t); n.depth() > maxDepth {
			d.add(tokenPosition(t), "", "nested deeper than %d levels, which no field of the configuration is", maxDepth)
			return false
		}
	}
	return plain
}

// refusedToken says why a configuration does without a part of YAML; empty for the others.
func refusedToken(t token.Type) string {
	switch t { //nolint:exhaustive // all others are allowed
	case token.AnchorType, token.AliasType, token.MergeKeyType:
		return "anchors, aliases and merge keys are refused: write the value where it is used, so that who approves the configuration reads it there"
	case token.TagType:
		return "tags are refused: the type of a value is given by its field"
	case token.DirectiveType:
		return "directives are refused: the configuration is YAML 1.2 as it is"
	case token.MappingKeyType:
		return "'?' keys are refused: write KEY: VALUE"
	}
	return ""
}

// nesting counts the collections that are open.
type nesting struct {
	flow  int   // brackets and braces
	block []int // columns of the keys and dashes of block collections, outermost first
}

func (n *nesting) add(t *token.Token) {
	switch t.Type { //nolint:exhaustive // the other tokens do not nest
	case token.SequenceStartType, token.MappingStartType:
		n.flow++
	case token.SequenceEndType, token.MappingEndType:
		n.flow--
	case token.SequenceEntryType:
		n.open(tokenPosition(t).column)
	case token.MappingValueType:
		n.open(tokenPosition(t.Prev).column) // the key before the colon
	}
}

func (n *nesting) open(column int) {
	if n.flow > 0 {
		return
	}
	for len(n.block) > 0 && n.block[len(n.block)-1] >= column {
		n.block = n.block[:len(n.block)-1]
	}
	n.block = append(n.block, column)
}

func (n *nesting) depth() int { return n.flow + len(n.block) }
