package main

import (
	"cmp"
	"encoding/pem"
	"fmt"
	"strings"
	"unicode/utf16"

	"github.com/spf13/cobra"

	"github.com/diaspora-streams/diaspora"
)

// defaultJavaFile is a placeholder for the default name of the file, which contains the username.
const defaultJavaFile = "<username>.properties"

// saveForJavaFlag adds the flag to login, where the name of the file is optional.
func saveForJavaFlag(cmd *cobra.Command, file *string) {
	cmd.Flags().StringVar(file, "save-for-java", "", "write an access key to `FILE`, for Kafka's Java clients and tools")
	cmd.Flags().Lookup("save-for-java").NoOptDefVal = defaultJavaFile
}

// fileNameOf replaces the characters of a username that are not safe in a file name.
func fileNameOf(username string) string {
	return cmp.Or(strings.TrimLeft(plainName(username, "@._+-", '_'), ".-"), "diaspora")
}

// javaProperties returns the configuration of a stock Kafka client in Java, which
// Kafka's tools read with --command-config. ca has the fabric's own certificates,
// or is ""; they are part of the configuration, as one line.
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

// propertyText escapes a value for a .properties file, by the rules of
// java.util.Properties: characters that would end the line, or that Latin-1 does
// not have.
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

// jaasQuoted quotes a value for a JAAS configuration. The escapes are those of
// Java's StreamTokenizer.
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

// certificates returns the PEM certificates in a text, without any text between
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
