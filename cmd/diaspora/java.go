package main

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"unicode/utf16"

	"github.com/spf13/cobra"

	"github.com/diaspora-streams/diaspora"
)

// defaultJavaFile stands for the README's name of the file.
const defaultJavaFile = "<username>.properties"

func saveForJavaFlag(cmd *cobra.Command, file *string) {
	cmd.Flags().StringVar(file, "save-for-java", "", "write a `FILE` with an access key that Java's Kafka clients and tools take")
	cmd.Flags().Lookup("save-for-java").NoOptDefVal = defaultJavaFile
}

// savedKey is a key that is in a file.
type savedKey struct {
	key  diaspora.NewAccessKey
	file string
}

// saveForJava makes an access key and writes it into a file, which is tried
// before: a key without the file would be of no use to anybody. Without a name the
// key is named for the machine.
func (e *env) saveForJava(ctx context.Context, client *diaspora.Client, req diaspora.AccessKeyRequest, file string) (saved savedKey, err error) {
	discovery, err := client.Discover(ctx)
	if err != nil {
		return savedKey{}, err
	}
	ca, err := e.caFile()
	if err != nil {
		return savedKey{}, err
	}
	if file == defaultJavaFile {
		id, err := client.Identity(ctx)
		if err != nil {
			return savedKey{}, err
		}
		file = fileNameOf(id.Username) + ".properties"
	}
	secret, err := newSecretFile(file)
	if err != nil {
		return savedKey{}, fmt.Errorf("save for Java: %w", err)
	}
	defer secret.discard()
	if req.Name == "" {
		if req.Name, err = freeKeyName(ctx, client, machineKeyName()); err != nil {
			return savedKey{}, err
		}
	}
	key, err := client.CreateKey(ctx, req)
	if err != nil {
		return savedKey{}, err
	}
	if err := secret.save([]byte(javaProperties(key, discovery, ca))); err != nil {
		return savedKey{}, errors.Join(fmt.Errorf("save for Java: %w", err), e.discardKey(ctx, client, key))
	}
	return savedKey{key, file}, nil
}

// caFile returns the certificates of DIASPORA_CA_FILE.
func (e *env) caFile() ([]byte, error) {
	name := e.getenv("DIASPORA_CA_FILE")
	if name == "" {
		return nil, nil
	}
	return os.ReadFile(name)
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
// one line, as a properties file has them.
func javaProperties(key diaspora.NewAccessKey, discovery diaspora.Discovery, ca []byte) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# Access key %s (%s) of Diaspora Streams: keep it to yourself.\n", propertyText(key.ID), propertyText(key.Name))
	set := func(name, value string) { fmt.Fprintf(&b, "%s=%s\n", name, propertyText(value)) }
	set("bootstrap.servers", strings.Join(discovery.Brokers, ","))
	set("security.protocol", securityProtocol(discovery))
	set("sasl.mechanism", "PLAIN")
	set("sasl.jaas.config", fmt.Sprintf("org.apache.kafka.common.security.plain.PlainLoginModule required username=%s password=%s;",
		jaasQuoted(key.ID), jaasQuoted(key.Secret.Reveal())))
	if trust := certificates(discovery.CA + "\n" + string(ca)); discovery.Security == "tls" && trust != "" {
		set("ssl.truststore.type", "PEM")
		set("ssl.truststore.certificates", trust)
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

// librdkafkaProperties is the configuration of a client that is made of librdkafka.
func librdkafkaProperties(key diaspora.NewAccessKey, discovery diaspora.Discovery) string {
	text := fmt.Sprintf("bootstrap.servers=%s\nsecurity.protocol=%s\nsasl.mechanism=PLAIN\nsasl.username=%s\nsasl.password=%s\n",
		strings.Join(discovery.Brokers, ","), securityProtocol(discovery), key.ID, key.Secret.Reveal())
	if discovery.Security == "tls" && discovery.CA != "" {
		text += "# ssl.ca.location=FILE with the fabric's certificates, the field \"ca\" of /.well-known/diaspora\n"
	}
	return text
}

func securityProtocol(discovery diaspora.Discovery) string {
	if discovery.Security == "tls" {
		return "SASL_SSL"
	}
	return "SASL_PLAINTEXT"
}

// secretFile is a file for its owner only, which appears whole or not at all.
type secretFile struct {
	name string
	temp *os.File
}

func newSecretFile(name string) (*secretFile, error) {
	if info, err := os.Stat(name); err == nil && !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a file", name)
	}
	temp, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+"-*") // 0600
	if err != nil {
		return nil, err
	}
	return &secretFile{name, temp}, nil
}

// save puts the data into the file, in place of what is there.
func (f *secretFile) save(data []byte) error {
	_, err := f.temp.Write(data)
	if err := errors.Join(err, f.temp.Sync(), f.temp.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.temp.Name(), f.name); err != nil {
		return err
	}
	folder, err := os.Open(filepath.Dir(f.name))
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}

// discard leaves nothing behind of a file that was not saved.
func (f *secretFile) discard() {
	f.temp.Close()
	os.Remove(f.temp.Name())
}
