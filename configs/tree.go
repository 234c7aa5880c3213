package configs

import (
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/token"
)

// node is a value in the file, as either of the two readers of YAML sees it: [decoder.document] or [readSimple].
type node struct {
	kind     kind
	quoted   bool     // a text that stands in quotes
	at       position // where a person sees it begin: at the first key of a block mapping, not at its colon
	text     string   // of a scalar, as it is written; a text without its quotes
	children []node   // of a list its elements, of a mapping its keys and values in turn
}

// kind is what a node is.
type kind uint8

const (
	kindOther kind = iota // nothing that a configuration has
	kindText
	kindInteger
	kindTrue
	kindFalse
	kindNull
	kindScalar // another number
	kindList
	kindMapping
)

func (n *node) isScalar() bool { return n.kind >= kindText && n.kind <= kindScalar }

// fromAST makes nodes of what the YAML parser found.
func fromAST(of ast.Node) node {
	if of == nil {
		return node{kind: kindNull, at: position{1, 1}}
	}
	n := node{at: nodePosition(of)}
	switch x := of.(type) {
	case *ast.MappingNode:
		n.kind = kindMapping
		n.children = make([]node, 0, 2*len(x.Values))
		for _, e := range x.Values {
			n.children = append(n.children, fromKey(e), fromAST(e.Value))
		}
	case *ast.MappingValueNode:
		n.kind = kindMapping
		n.children = []node{fromKey(x), fromAST(x.Value)}
	case *ast.SequenceNode:
		n.kind = kindList
		n.children = make([]node, 0, len(x.Values))
		for _, e := range x.Values {
			n.children = append(n.children, fromAST(e))
		}
	case *ast.StringNode:
		t := x.GetToken().Type
		n.kind, n.text, n.quoted = kindText, x.Value, t == token.DoubleQuoteType || t == token.SingleQuoteType
	case *ast.LiteralNode:
		n.kind, n.text = kindText, x.Value.Value
	case *ast.IntegerNode:
		n.kind, n.text = kindInteger, x.GetToken().Value
	case *ast.BoolNode:
		n.kind = kindFalse
		if x.Value {
			n.kind = kindTrue
		}
		n.text = x.GetToken().Value
	case *ast.NullNode:
		n.kind = kindNull
	case ast.ScalarNode:
		n.kind = kindScalar
	}
	return n
}

// fromKey is the key of a mapping. Its text is what is written, whatever it is.
func fromKey(e *ast.MappingValueNode) node {
	n := fromAST(e.Key)
	if t := e.Key.GetToken(); t != nil && n.kind != kindText {
		n.text = t.Value
	}
	return n
}

// nodePosition is where a person sees the node begin.
func nodePosition(of ast.Node) position {
	switch n := of.(type) {
	case *ast.MappingNode:
		if n.Start != nil && n.Start.Type != token.MappingStartType && len(n.Values) > 0 {
			return nodePosition(n.Values[0])
		}
	case *ast.MappingValueNode:
		return nodePosition(n.Key)
	}
	return tokenPosition(of.GetToken())
}
