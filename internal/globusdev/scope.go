package globusdev

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

const (
	maxScopeBytes = 8 << 10 // of the whole scope parameter
	maxScopes     = 100     // number of names, including those in brackets
	maxScopeDepth = 10      // nesting depth of brackets
)

// scopeNode is a requested scope, and the scopes that are requested as its dependencies:
//
//	scope := ["*"] name ["[" scope (" " scope)* "]"]
type scopeNode struct {
	name     string
	optional bool // "*": can be rescinded separately
	children []*scopeNode
}

var errScope = errors.New("malformed scope")

// parseScopes parses a space-separated list of scopes. It merges scopes that are named twice at the
// same level. The list may be empty.
func parseScopes(text string) ([]*scopeNode, error) {
	if len(text) > maxScopeBytes {
		return nil, fmt.Errorf("%w: longer than %d bytes", errScope, maxScopeBytes)
	}
	p := scopeParser{rest: text}
	nodes, err := p.list(nil)
	if err != nil {
		return nil, err
	}
	if p.rest != "" {
		return nil, fmt.Errorf("%w: ] without [", errScope)
	}
	return nodes, nil
}

type scopeParser struct {
	rest  string
	count int
}

// list parses scopes up to the end or to an unmatched bracket. path has the names of the enclosing
// scopes.
func (p *scopeParser) list(path []string) ([]*scopeNode, error) {
	var nodes []*scopeNode
	for {
		p.rest = strings.TrimLeft(p.rest, " ")
		if p.rest == "" || p.rest[0] == ']' {
			return nodes, nil
		}
		node, err := p.scope(path)
		if err != nil {
			return nil, err
		}
		nodes = mergeScope(nodes, node)
		if p.rest != "" && p.rest[0] != ' ' && p.rest[0] != ']' {
			return nil, fmt.Errorf("%w: a space is missing", errScope)
		}
	}
}

func (p *scopeParser) scope(path []string) (*scopeNode, error) {
	if p.count++; p.count > maxScopes {
		return nil, fmt.Errorf("%w: more than %d scopes", errScope, maxScopes)
	}
	node := &scopeNode{}
	p.rest, node.optional = strings.CutPrefix(p.rest, "*")
	end := strings.IndexFunc(p.rest, func(r rune) bool { return !isScopeRune(r) })
	if end < 0 {
		end = len(p.rest)
	}
	node.name, p.rest = p.rest[:end], p.rest[end:]
	switch {
	case node.name == "":
		return nil, fmt.Errorf("%w: a name is missing", errScope)
	case slices.Contains(path, node.name):
		return nil, fmt.Errorf("%w: a scope depends on itself", errScope)
	}
	inner, bracketed := strings.CutPrefix(p.rest, "[")
	if !bracketed {
		return node, nil
	}
	if len(path) >= maxScopeDepth {
		return nil, fmt.Errorf("%w: more than %d brackets deep", errScope, maxScopeDepth)
	}
	p.rest = inner
	var err error
	if node.children, err = p.list(append(path, node.name)); err != nil {
		return nil, err
	}
	if len(node.children) == 0 {
		return nil, fmt.Errorf("%w: nothing between brackets", errScope)
	}
	var closed bool
	if p.rest, closed = strings.CutPrefix(p.rest, "]"); !closed {
		return nil, fmt.Errorf("%w: [ without ]", errScope)
	}
	return node, nil
}

// isScopeRune reports whether a scope's name may contain r: the characters of RFC 6749, section
// 3.3, except those of the grammar.
func isScopeRune(r rune) bool {
	return r > ' ' && r < 0x7f && !strings.ContainsRune(`"\[]*`, r)
}

// mergeScope adds node to nodes. A scope that is requested both as optional and as required is
// required.
func mergeScope(nodes []*scopeNode, node *scopeNode) []*scopeNode {
	for _, have := range nodes {
		if have.name == node.name {
			have.optional = have.optional && node.optional
			for _, child := range node.children {
				have.children = mergeScope(have.children, child)
			}
			return nodes
		}
	}
	return append(nodes, node)
}

// formatScopes is the inverse of parseScopes.
func formatScopes(nodes []*scopeNode) string {
	var b strings.Builder
	writeScopes(&b, nodes)
	return b.String()
}

func writeScopes(b *strings.Builder, nodes []*scopeNode) {
	for i, node := range nodes {
		if i > 0 {
			b.WriteByte(' ')
		}
		if node.optional {
			b.WriteByte('*')
		}
		b.WriteString(node.name)
		if len(node.children) > 0 {
			b.WriteByte('[')
			writeScopes(b, node.children)
			b.WriteByte(']')
		}
	}
}
