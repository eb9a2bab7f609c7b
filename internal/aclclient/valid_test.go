package aclclient

import (
	"strings"
	"testing"
)

func TestRedactURL(t *testing.T) {
	t.Parallel()
	for raw, want := range map[string]string{
		"https://host/path?token=x#y":           "https://host/path",
		"https://user:secret@host:1/a%20b":      "https://host:1/a%20b",
		"/only/a/path?token=x":                  "/only/a/path",
		"mailto:secret":                         "mailto:",
		"http://%zz/":                           "?",
		"https://h/" + strings.Repeat("x", 500): "https://h/" + strings.Repeat("x", 190) + "…",
	} {
		if got := RedactURL(raw); got != want {
			t.Errorf("RedactURL(%q) = %q, want %q", raw, got, want)
		}
	}
}
