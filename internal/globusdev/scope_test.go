package globusdev

import (
	"errors"
	"strings"
	"testing"
)

func TestParseScopes(t *testing.T) {
	tests := []struct{ text, want string }{ // want "!" means an error
		{"", ""},
		{"   ", ""},
		{"openid", "openid"},
		{" openid  email ", "openid email"},
		{"*openid", "*openid"},
		{Scope, Scope},
		{"a[b]", "a[b]"},
		{"a[b *c]", "a[b *c]"},
		{"a[ b  c ] d", "a[b c] d"},
		{"a[*b[c d] e] f", "a[*b[c d] e] f"},
		{"a a", "a"},
		{"a *a", "a"},
		{"*a *a", "*a"},
		{"a[b] a[c] a[b[d]]", "a[b[d] c]"},
		{"a[b] b[a]", "a[b] b[a]"},
		{"urn:globus:auth:scope:transfer.api.globus.org:all[*https://auth.globus.org/scopes/x/data_access]", "urn:globus:auth:scope:transfer.api.globus.org:all[*https://auth.globus.org/scopes/x/data_access]"},
		{"*", "!"},
		{"**a", "!"},
		{"* a", "!"},
		{"a*", "!"},
		{"a[", "!"},
		{"a]", "!"},
		{"]", "!"},
		{"[a]", "!"},
		{"a[]", "!"},
		{"a[ ]", "!"},
		{"a[b", "!"},
		{"a[b]]", "!"},
		{"a[b]c", "!"},
		{"a [b]", "!"},
		{"a[b][c]", "!"},
		{"a[*]", "!"},
		{"a[a]", "!"},
		{"a[b[a]]", "!"},
		{"a\tb", "!"},
		{"a\nb", "!"},
		{"é", "!"},
		{`a"b`, "!"},
		{`a\b`, "!"},
		{"a\x00", "!"},
		{"\xff", "!"},
		{strings.Repeat("a[", 11) + "b" + strings.Repeat("]", 11), "!"},
		{strings.Repeat("x", maxScopeBytes+1), "!"},
	}
	for _, tt := range tests {
		nodes, err := parseScopes(tt.text)
		got := formatScopes(nodes)
		if err != nil {
			got = "!"
			if !errors.Is(err, errScope) {
				t.Errorf("parseScopes(%q): %v", clip(tt.text), err)
			}
		}
		if got != tt.want {
			t.Errorf("parseScopes(%q) = %q, want %q", clip(tt.text), clip(got), clip(tt.want))
		}
	}
}

func TestParseScopesBounds(t *testing.T) {
	list := func(n int) string {
		var b strings.Builder
		for i := range n {
			b.WriteString(" s")
			b.WriteString(strings.Repeat("x", i%60))
		}
		return b.String()
	}
	if _, err := parseScopes(list(maxScopes)); err != nil {
		t.Errorf("%d scopes: %v", maxScopes, err)
	}
	if _, err := parseScopes(list(maxScopes + 1)); err == nil {
		t.Errorf("%d scopes are accepted", maxScopes+1)
	}
	deep := func(n int) string {
		var b strings.Builder
		for i := range n {
			b.WriteString(strings.Repeat("x", i+1) + "[")
		}
		return b.String() + "leaf" + strings.Repeat("]", n)
	}
	if _, err := parseScopes(deep(maxScopeDepth)); err != nil {
		t.Errorf("%d brackets deep: %v", maxScopeDepth, err)
	}
	if _, err := parseScopes(deep(maxScopeDepth + 1)); err == nil {
		t.Errorf("%d brackets deep are accepted", maxScopeDepth+1)
	}
}

// FuzzParseScopes checks that accepted scopes can be formatted and parsed again, within limits.
func FuzzParseScopes(f *testing.F) {
	for _, seed := range []string{"", "a", "*a[b *c[d]] e", "a[b] a[c]", "a[", "]", "a[a]", testScopes, strings.Repeat("a[", 20)} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		nodes, err := parseScopes(text)
		if err != nil {
			if nodes != nil || !errors.Is(err, errScope) {
				t.Fatalf("parseScopes(%q) = %v, %v", text, nodes, err)
			}
			return
		}
		canonical := formatScopes(nodes)
		again, err := parseScopes(canonical)
		if err != nil {
			t.Fatalf("parseScopes(%q), made from %q: %v", canonical, text, err)
		}
		if got := formatScopes(again); got != canonical {
			t.Fatalf("%q became %q", canonical, got)
		}
		checkScopes(t, nodes, nil)
	})
}

func checkScopes(t *testing.T, nodes []*scopeNode, path []string) {
	seen := map[string]bool{}
	for _, node := range nodes {
		if node.name == "" || strings.ContainsAny(node.name, "[]* ") || seen[node.name] {
			t.Fatalf("scope %q below %v", node.name, path)
		}
		for _, above := range path {
			if above == node.name {
				t.Fatalf("scope %q depends on itself", node.name)
			}
		}
		seen[node.name] = true
		checkScopes(t, node.children, append(path, node.name))
	}
}
