package kafka

import (
	"strings"
	"testing"
)

// TestServerProperties fails if a placeholder stays, if a line without a value does, or if a value may end its quotes.
func TestServerProperties(t *testing.T) {
	t.Parallel()
	values := map[string]string{}
	for _, match := range placeholder.FindAllStringSubmatch(template, -1) {
		values[match[1]] = "value-of-" + match[1]
	}
	values["INTERNAL_PARTITIONS"] = ""
	text, err := ServerProperties(values)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(text) {
		if placeholder.MatchString(line) || !strings.HasPrefix(line, "#") && strings.Contains(line, "num.partitions") {
			t.Errorf("a line is %q", line)
		}
	}
	for _, want := range []string{"\nnode.id=value-of-ID\n", `user_value-of-ADMIN="value-of-ADMIN_PASSWORD" user_value-of-GATEWAY="value-of-GATEWAY_PASSWORD";`} {
		if !strings.Contains(text, want) {
			t.Errorf("the settings do not have %q:\n%s", want, text)
		}
	}
	if strings.Contains(text, "internal partitions") {
		t.Error("the comment of settings that are left out stays")
	}
	for _, bad := range []string{`a"b`, `a\b`, "a b", "a\nb", "é"} {
		values["ADMIN_PASSWORD"] = bad
		if _, err := ServerProperties(values); err == nil || !strings.Contains(err.Error(), "@ADMIN_PASSWORD@") {
			t.Errorf("with the password %q: %v, want an error about it", bad, err)
		}
	}
	delete(values, "ADMIN_PASSWORD")
	if _, err := ServerProperties(values); err == nil {
		t.Error("ServerProperties accepts a missing value")
	}
}
