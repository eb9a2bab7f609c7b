// Package kafka has the template for the settings of Apache Kafka behind a gateway.
package kafka

import (
	_ "embed"
	"fmt"
	"regexp"
	"strings"
)

//go:embed server.properties
var template string

var placeholder = regexp.MustCompile(`@([A-Z_]+)@`)

// ServerProperties returns the settings of one node: the template server.properties, with each @NAME@ replaced by the value
// of that name. A line with a value of "" is left out with its comment, and Kafka's default holds. ServerProperties fails if a value is
// missing, or has characters that would end a quoted text or that Kafka would take for others.
func ServerProperties(values map[string]string) (string, error) {
	var text, comment strings.Builder // comment is that of the lines that follow
lines:
	for line := range strings.Lines(template) {
		for _, match := range placeholder.FindAllStringSubmatch(line, -1) {
			value, ok := values[match[1]]
			switch {
			case !ok:
				return "", fmt.Errorf("there is no value for %s", match[0])
			case value == "":
				comment.Reset()
				continue lines
			case strings.ContainsFunc(value, func(r rune) bool { return r <= ' ' || r >= 0x7f || strings.ContainsRune(`"\`, r) }):
				return "", fmt.Errorf("the value for %s has a space, a quote, a backslash, or other characters than those of ASCII", match[0])
			}
			line = strings.Replace(line, match[0], value, 1)
		}
		if strings.HasPrefix(line, "#") {
			comment.WriteString(line)
			continue
		}
		text.WriteString(comment.String())
		comment.Reset()
		text.WriteString(line)
	}
	return text.String(), nil
}
