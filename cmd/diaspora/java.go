package main

import (
	"encoding/pem"
	"fmt"
	"strings"
	"unicode/utf16"

	"github.com/spf13/cobra"

	"github.com/diaspora-streams/diaspora"
)

// defaultJavaFile stands for the README's name of the file.
const defaultJavaFile = "<username>.properties"

// saveForJavaFlag is that of login, where the name of the file may be left out.
func saveForJavaFlag(cmd *cobra.Command, file *string) {
	cmd.Flags().StringVar(file, "save-for-java", "", "write an access key to `FILE`, for Java's Kafka clients and tools")
	cmd.Flags().Lookup("save-for-java").NoOptDefVal = defaultJavaFile
}

// fileNameOf makes a username fit to be the name of a file.
func fileNameOf(username string) string {
	name := strings.Map(func(r rune) rune {
		if r < 0x80 && (strings.ContainsRune("@._+-", r) || '0' <= r && r <= '9' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z') {
			return r
		}
		return '_'
	}, username)
	if name = strings.TrimLeft(name, ".-"); name == "" {
		return "diaspora"
	}
	return name
}

// javaProperties is the configuration of a stock Kafka client in Java, which the
// tools take as --command-config. Certificates of the fabric's own go into it as
// one line, as a properties file has them; ca is those, or "".
func javaProperties(key diaspora.NewAccessKey, discovery diaspora.Discovery, ca string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# Access key %s (%s) of Diaspora Streams: keep it to yourself.\n", propertyText(key.ID), propertyText(key.Name))
	set := func(name, value string) { fmt.Fprintf(&b, "%s=%s\n", name, propertyText(value)) }
	set("bootstrap.servers", strings.Join(discovery.Brokers, ","))
	set("security.protocol", securityProtocol(discovery))
	set("sasl.mechanism", "PLAIN")
	set("sasl.jaas.config", fmt.Sprintf("org.apache.kafka.common.security.plain.PlainLoginModule required username=%s password=%s;",
		jaasQuoted(key.ID), jaasQuoted(key.Secret.Reveal())))
	if discovery.Security == "tls" && ca != "" {
		set("ssl.truststore.type", "PEM")
		set("ssl.truststore.certificates", ca)
	}
	return b.String()
}

// propertyText is text as a .properties file has it in a value, by the rules of
// java.util.Properties: whatever would end the line, or be lost in a file of
// Latin-1, is escaped.
func propertyText(text string) string {
	var b strings.Builder
	for i, r := range text {
		switch {
		case r == '\\':
			b.WriteString(`\\`)
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\r':
			b.WriteString(`\r`)
		case r == '\t':
			b.WriteString(`\t`)
		case r == ' ' && i == 0: // would be skipped
			b.WriteString(`\ `)
		case ' ' <= r && r < 0x7f:
			b.WriteRune(r)
		default:
			for _, unit := range utf16.AppendRune(nil, r) {
				fmt.Fprintf(&b, `\u%04x`, unit)
			}
		}
	}
	return b.String()
}

// jaasQuoted is text as a quoted value of JAAS, whose escapes are those of Java's
// StreamTokenizer.
func jaasQuoted(text string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range text {
		switch {
		case r == '"' || r == '\\':
			b.WriteRune('\\')
			b.WriteRune(r)
		case r < ' ' || r == 0x7f:
			fmt.Fprintf(&b, `\%03o`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// certificates returns the certificates of a text, without what may stand between
// them, and without a line feed at the end.
func certificates(text string) string {
	var b strings.Builder
	for rest := []byte(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return strings.TrimSuffix(b.String(), "\n")
		}
		if block.Type == "CERTIFICATE" {
			b.Write(pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: block.Bytes}))
		}
	}
}

func securityProtocol(discovery diaspora.Discovery) string {
	if discovery.Security == "tls" {
		return "SASL_SSL"
	}
	return "SASL_PLAINTEXT"
}
