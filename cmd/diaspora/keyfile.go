package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/pflag"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/accesskey"
	"github.com/diaspora-streams/diaspora/internal/disk"
)

// keyFile says to which file an access key is saved, and in which format.
type keyFile struct {
	kind keyFileKind
	name string // "-" is standard output
}

// keyFileKind is the format of a key file. Files for kcat and Java are configuration files of these
// clients; only forEnv is a key file in the sense of package accesskey.
type keyFileKind int

const (
	noKeyFile keyFileKind = iota
	forKcat
	forJava
	forEnv
)

// keyFileOf returns the file that the flags name.
func keyFileOf(flags *pflag.FlagSet) (f keyFile, err error) {
	for kind, flag := range []string{forKcat: "save-for-kcat", forJava: "save-for-java", forEnv: "save-env"} {
		switch {
		case flag == "" || !flags.Changed(flag):
			continue
		case f.kind != noKeyFile:
			return f, misuse("make a separate key for each client, so that you can revoke one without the others", "key create: --save-for-kcat, --save-for-java and --save-env exclude each other")
		}
		if f.kind, f.name = keyFileKind(kind), flags.Lookup(flag).Value.String(); f.name == "" {
			return f, misuse("", "key create: --%s: the name of the file is empty", flag)
		}
	}
	return f, nil
}

// exampleCommand returns a command that uses the key file.
func (k keyFileKind) exampleCommand(saved savedKey) string {
	kcat, tool, verb := "-P", "producer", "produce"
	if !saved.key.Write {
		kcat, tool, verb = "-C", "consumer", "consume"
	}
	switch topic := keyTopic(saved.key); k {
	case forKcat:
		return fmt.Sprintf("kcat -F %s %s -t %s", saved.file, kcat, topic)
	case forJava:
		return fmt.Sprintf("kafka-console-%s --bootstrap-server %s --command-config %s --topic %s", tool, saved.broker, saved.file, topic)
	default:
		return fmt.Sprintf("DIASPORA_KEY_FILE=%s diaspora %s %s", saved.file, verb, topic)
	}
}

// keyTopic returns a topic for an example command: one that the key is for, or a placeholder.
func keyTopic(key diaspora.NewAccessKey) string {
	if len(key.Topics) > 0 {
		return key.Topics[0]
	}
	return "TOPIC"
}

// savedKey is a key that was saved to a file.
type savedKey struct {
	key  diaspora.NewAccessKey
	file string
	ca   string // name of the file with the fabric's certificates, or ""

	broker string // address of one of the fabric's brokers
}

// saveKey creates an access key and writes it to a file. It creates a temporary file and tries the format before
// it creates the key, because nobody could use a key that was not saved. If writing fails all the same, it
// revokes the key. If req has no name, the key is named after this machine.
func (e *env) saveKey(ctx context.Context, cfg diaspora.Config, client *diaspora.Client, req diaspora.AccessKeyRequest, file keyFile) (saved savedKey, err error) {
	discovery, err := client.Discover(ctx)
	if err != nil {
		return savedKey{}, err
	}
	own, err := e.extraCAs(discovery)
	if err != nil {
		return savedKey{}, err
	}
	if file.name == defaultJavaFile {
		id, err := client.Identity(ctx)
		if err != nil {
			return savedKey{}, err
		}
		file.name = fileNameOf(id.Username) + ".properties"
	}
	saved.file, saved.broker = file.name, discovery.Brokers[0]
	write, discard, err := e.prepareKeyFile(file.name)
	if err != nil {
		return savedKey{}, fmt.Errorf("save the access key: %w; no key was made", err)
	}
	defer discard()
	if own != "" && file.kind != forJava { // a file for Java includes the certificates
		if saved.ca, err = saveCertificates(file.name, own); err != nil {
			return savedKey{}, fmt.Errorf("save the certificates of the fabric: %w; no key was made", err)
		}
	}
	text := func(key diaspora.NewAccessKey) (string, error) {
		switch file.kind {
		case forJava:
			return javaProperties(key, discovery, own), nil
		case forKcat:
			return kcatFile(key, discovery, saved.ca)
		}
		return envFile(key, cfg.URL, saved.ca, discovery.Brokers)
	}
	sample := diaspora.NewAccessKey{AccessKey: diaspora.AccessKey{ID: "key-aaaaaaaaaaaaaaaa", Name: "x"}, Secret: "x"}
	if _, err := text(sample); err != nil { // for instance because kcat cannot read the path of the certificates
		return savedKey{}, fmt.Errorf("save the access key: %w; no key was made", err)
	}
	if req.Name == "" {
		if req.Name, err = freeKeyName(ctx, client, machineKeyName(file.kind)); err != nil {
			return savedKey{}, err
		}
	}
	if saved.key, err = client.CreateKey(ctx, req); err != nil {
		return savedKey{}, explainCreateError(err, req.Name)
	}
	content, err := text(saved.key)
	if err == nil {
		err = write([]byte(content))
	}
	if err != nil {
		return savedKey{}, errors.Join(fmt.Errorf("save the access key: %w", err), e.discardKey(ctx, client, saved.key))
	}
	return saved, nil
}

// explainCreateError adds a hint if a key of this name exists, or if a key may have been created although the response
// with its secret was lost.
func explainCreateError(err error, name string) error {
	if errors.Is(err, diaspora.ErrConflict) && strings.Contains(err.Error(), "of this name") {
		return hinted(err, fmt.Sprintf("to end the other one: diaspora key revoke %s", name))
	}
	if !errors.Is(err, diaspora.ErrUnavailable) && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return hinted(err, `if "diaspora key list" has the key now, nobody has its secret: revoke it with "diaspora key revoke NAME"`)
}

// prepareKeyFile returns write, which writes the key file, and discard, which removes the
// temporary file behind it. After write has succeeded, discard does nothing. If name is -, write prints to standard output.
func (e *env) prepareKeyFile(name string) (write func([]byte) error, discard func(), err error) {
	if name == "-" {
		if e.json() {
			return nil, nil, misuse("", "-o json cannot be combined with - (standard output) as the file")
		}
		return func(content []byte) error { return e.printf("%s", content) }, func() {}, nil
	}
	f, err := newSecretFile(name)
	if err != nil {
		return nil, nil, err
	}
	return f.save, f.discard, nil
}

// extraCAs returns the certificates that a client of this fabric has to trust in addition to its
// system's. It returns "" if there are none.
func (e *env) extraCAs(discovery diaspora.Discovery) (string, error) {
	var more []byte
	if name := e.getenv("DIASPORA_CA_FILE"); name != "" {
		var err error
		if more, err = os.ReadFile(name); err != nil {
			return "", err
		}
	}
	return certificates(discovery.CA + "\n" + string(more)), nil
}

// saveCertificates writes certificates to a file next to a key file, and returns the absolute path of that file.
func saveCertificates(keyFile, certificates string) (string, error) {
	if keyFile == "-" {
		return "", misuse("name a file instead of -", "the certificates of this fabric need a file next to the key file, so the key cannot go to standard output")
	}
	name, err := filepath.Abs(keyFile + ".ca.pem")
	if err != nil {
		return "", err
	}
	content := []byte(certificates + "\n")
	if there, err := os.ReadFile(name); err == nil && bytes.Equal(there, content) {
		return name, nil
	}
	f, err := newSecretFile(name)
	if err != nil {
		return "", err
	}
	defer f.discard()
	return name, f.save(content)
}

// envFile returns a key file for DIASPORA_KEY_FILE and for shells. The brokers are in a comment: this program
// gets them from the fabric, but people may set up other clients from the file.
func envFile(key diaspora.NewAccessKey, address, ca string, brokers []string) (string, error) {
	return accesskey.Format(fmt.Sprintf("Access key %s (%s) of Diaspora Streams: keep it to yourself.\nbrokers: %s", key.ID, key.Name, strings.Join(brokers, ",")), func(name string) string {
		switch name {
		case "DIASPORA_URL":
			return strings.TrimSpace(address)
		case "DIASPORA_CA_FILE":
			return ca
		case accesskey.IDVariable:
			return key.ID
		case accesskey.SecretVariable:
			return key.Secret.Reveal()
		}
		return ""
	})
}

// maxKcatLine is the longest line that kcat can read from its file.
const maxKcatLine = 500

// kcatFile returns the configuration of a client that uses librdkafka, for kcat -F. Brokers that would make a
// line too long for kcat are left out.
func kcatFile(key diaspora.NewAccessKey, discovery diaspora.Discovery, ca string) (string, error) {
	if strings.ContainsAny(ca, "\\\n\r") || strings.TrimSpace(ca) != ca || len(ca) > maxKcatLine-len("ssl.ca.location=") {
		return "", fmt.Errorf("kcat cannot use the path %q of the certificates: it is too long, or has a backslash, a line break, or spaces at an end", ca)
	}
	for n := range discovery.Brokers {
		if n > 0 && len(strings.Join(discovery.Brokers[:n+1], ",")) > maxKcatLine-len("bootstrap.servers=") {
			discovery.Brokers = discovery.Brokers[:n]
			break
		}
	}
	text := fmt.Sprintf("# Access key %s (%s) of Diaspora Streams: keep it to yourself.\n%s", key.ID, key.Name, librdkafkaProperties(key, discovery))
	if discovery.Security == "tls" && ca != "" {
		text += "ssl.ca.location=" + ca + "\n"
	}
	return text, nil
}

// librdkafkaProperties returns the settings of a client that uses librdkafka.
func librdkafkaProperties(key diaspora.NewAccessKey, discovery diaspora.Discovery) string {
	return fmt.Sprintf("bootstrap.servers=%s\nsecurity.protocol=%s\nsasl.mechanism=PLAIN\nsasl.username=%s\nsasl.password=%s\n",
		strings.Join(discovery.Brokers, ","), securityProtocol(discovery), key.ID, key.Secret.Reveal())
}

// secretFile creates a file that only its owner can read. The file appears with its whole content or not at all,
// and does not replace an existing file. (Without hard links, it replaces one that is created at that moment.)
type secretFile struct {
	name string
	temp *os.File
}

func newSecretFile(name string) (*secretFile, error) {
	if _, err := os.Lstat(name); err == nil {
		return nil, errFileExists(name)
	}
	temp, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+"-*") // 0600
	if err != nil {
		return nil, err
	}
	return &secretFile{name, temp}, nil
}

func errFileExists(name string) error {
	return fail(diaspora.ErrConflict, fmt.Sprintf("name another file, and move it here afterwards: mv FILE %s", shellWord(name)), "%s exists already", name)
}

// save writes the data, and gives the file its name.
func (f *secretFile) save(data []byte) error {
	_, err := f.temp.Write(data)
	if err := errors.Join(err, f.temp.Sync(), f.temp.Close()); err != nil {
		return err
	}
	// Link fails if the name exists; Rename would replace that file.
	switch err := os.Link(f.temp.Name(), f.name); {
	case errors.Is(err, fs.ErrExist):
		return errFileExists(f.name)
	case err != nil: // some file systems have no hard links
		if _, err := os.Lstat(f.name); err == nil {
			return errFileExists(f.name)
		}
		if err := os.Rename(f.temp.Name(), f.name); err != nil {
			return err
		}
	}
	return disk.SyncFolder(filepath.Dir(f.name))
}

// discard removes the temporary file. A file that was saved stays.
func (f *secretFile) discard() {
	f.temp.Close()
	os.Remove(f.temp.Name())
}
