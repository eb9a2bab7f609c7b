package terminal

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// hostile maps text that commands a terminal to the text that must be shown instead.
var hostile = map[string]string{
	"plain, tab\tand line\nfeed": "plain, tab\tand line\nfeed",
	"grün 日本 👩‍🔬":                "grün 日本 👩‍🔬",
	"\x1b]0;owned\a":             `\x1b]0;owned\x07`,
	"\rover":                     `\rover`,
	"\u009b31m":                  `\x9b31m`,
	"\x9b31m\xff":                `\x9b31m\xff`,
	"a\u202eb\u2066c":            `a\u202eb\u2066c`,
	"\U000e0041":                 `\U000e0041`,
	"\x7f\x00":                   `\x7f\x00`,
	"a\u2028b":                   `a\u2028b`,
}

func TestEscape(t *testing.T) {
	for in, want := range hostile {
		if got := string(Escape(nil, []byte(in))); got != want {
			t.Errorf("Escape(%q) = %q, want %q", in, got, want)
		}
		var b strings.Builder
		if n, err := fmt.Fprint(Writer{&b}, in); n != len(in) || err != nil || b.String() != want {
			t.Errorf("writing %q = %d, %v, and gives %q, want %q", in, n, err, b.String(), want)
		}
	}
}

// TestEscapeJSON checks that the result has no characters that command a terminal, and that it has
// the same meaning as JSON.
func TestEscapeJSON(t *testing.T) {
	for in := range hostile {
		var text strings.Builder
		enc := json.NewEncoder(&text)
		enc.SetEscapeHTML(false)
		enc.SetIndent("", "\t")
		testkit.Must(t, enc.Encode(map[string]string{in: in}))
		got := EscapeJSON(nil, []byte(text.String()))
		for _, r := range string(got) {
			if r != '\n' && r != '\t' && Commands(r) {
				t.Errorf("EscapeJSON(%q) = %q, which has %U", text.String(), got, r)
			}
		}
		var back map[string]string
		want := strings.ToValidUTF8(in, string(utf8.RuneError))
		if err := json.Unmarshal(got, &back); err != nil || utf8.ValidString(in) && back[want] != want {
			t.Errorf("EscapeJSON(%q) = %q, which reads as %q, %v", text.String(), got, back, err)
		}
	}
}
