package main

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf16"

	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/accesskey"
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"
)

func aKey() diaspora.NewAccessKey {
	return diaspora.NewAccessKey{
		AccessKey: diaspora.AccessKey{ID: "key-abcdefghij234567", Name: "laptop", Read: true, Write: true},
		Secret:    "dks_secret",
	}
}

// TestJavaProperties checks the exact text of the file, because other people's programs read it.
func TestJavaProperties(t *testing.T) {
	d := diaspora.Discovery{Brokers: []string{"127.0.0.1:9092"}, Security: "plaintext"}
	const plaintext = `# Access key key-abcdefghij234567 (laptop) of Diaspora Streams: keep it to yourself.
bootstrap.servers=127.0.0.1:9092
security.protocol=SASL_PLAINTEXT
sasl.mechanism=PLAIN
sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required username="key-abcdefghij234567" password="dks_secret";
`
	if got := javaProperties(aKey(), d, ""); got != plaintext {
		t.Errorf("on one machine:\n%s\nwant\n%s", got, plaintext)
	}
	d = diaspora.Discovery{Brokers: []string{"a.example.org:9092", "b.example.org:9092"}, Security: "tls"}
	secure := strings.NewReplacer("SASL_PLAINTEXT", "SASL_SSL", "127.0.0.1:9092", "a.example.org:9092,b.example.org:9092").Replace(plaintext)
	if got := javaProperties(aKey(), d, ""); got != secure {
		t.Errorf("with a certificate that the system trusts:\n%s\nwant\n%s", got, secure)
	}
	const pem = "-----BEGIN CERTIFICATE-----\nMIIBAQ==\n-----END CERTIFICATE-----\n"
	d.CA = "the fabric's own\n" + pem
	one := `-----BEGIN CERTIFICATE-----\nMIIBAQ==\n-----END CERTIFICATE-----`
	trusting := secure + "ssl.truststore.type=PEM\nssl.truststore.certificates=" + one + `\n` + one + "\n"
	if got := javaProperties(aKey(), d, certificates(d.CA+"\nand another\r\n"+strings.ReplaceAll(pem, "\n", "\r\n"))); got != trusting {
		t.Errorf("with certificates of its own:\n%s\nwant\n%s", got, trusting)
	}
}

// TestJavaPropertiesAddNothing puts text into every value that would add a setting, or an option of the login
// module, if it were not escaped.
func TestJavaPropertiesAddNothing(t *testing.T) {
	const evil = "x\nmetric.reporters=evil\rsasl.jaas.config=evil\u2028\x1b[31m\\\" other=\"y"
	key := aKey()
	key.ID, key.Name, key.Secret = evil, evil, globus.Secret(evil)
	d := diaspora.Discovery{Brokers: []string{" " + evil}, Security: "tls", CA: evil +
		"\n-----BEGIN CERTIFICATE-----\nMIIB\rmetric.reporters=evil\nAQ==\n-----END CERTIFICATE-----\n-----BEGIN CERTIFICATE-----\nevil: 1\n\nMIIBAQ==\n-----END CERTIFICATE-----\n"}
	text := javaProperties(key, d, certificates(d.CA+"\n"+evil))
	got := loadProperties(t, text)
	want := map[string]string{
		"bootstrap.servers": " " + evil,
		"security.protocol": "SASL_SSL",
		"sasl.mechanism":    "PLAIN",
		"sasl.jaas.config": "org.apache.kafka.common.security.plain.PlainLoginModule required username=" + jaasQuoted(evil) +
			" password=" + jaasQuoted(evil) + ";",
		"ssl.truststore.type":         "PEM",
		"ssl.truststore.certificates": "-----BEGIN CERTIFICATE-----\nMIIBAQ==\n-----END CERTIFICATE-----",
	}
	if !maps.Equal(got, want) {
		t.Errorf("the file\n%s\nhas the settings %q, want %q", text, got, want)
	}
	if want := `"x\012metric.reporters=evil\015sasl.jaas.config=evil` + "\u2028" + `\033[31m\\\" other=\"y"`; jaasQuoted(evil) != want {
		t.Errorf("jaasQuoted = %s, want %s", jaasQuoted(evil), want)
	}
}

// loadProperties parses a file in Latin-1 as java.util.Properties does.
func loadProperties(t *testing.T, text string) map[string]string {
	t.Helper()
	settings := make(map[string]string)
	for line := range strings.FieldsFuncSeq(text, func(r rune) bool { return r == '\n' || r == '\r' }) {
		if line = strings.TrimLeft(line, " \t\f"); line == "" || line[0] == '#' || line[0] == '!' {
			continue
		}
		name, value, _ := strings.Cut(line, "=") // our names contain no escaped characters
		value = strings.TrimLeft(value, " \t\f")
		var units []uint16
		for i := 0; i < len(value); i++ {
			c := value[i]
			if c >= 0x80 {
				t.Errorf("line %q is not ASCII", line)
			}
			if c != '\\' {
				units = append(units, uint16(c))
				continue
			}
			if i++; i == len(value) {
				t.Fatalf("line %q goes on in the next one", line)
			}
			switch c := value[i]; c {
			case 'n', 'r', 't':
				units = append(units, map[byte]uint16{'n': '\n', 'r': '\r', 't': '\t'}[c])
			case 'u':
				n, err := strconv.ParseUint(value[i+1:i+5], 16, 16)
				testkit.Must(t, err)
				units = append(units, uint16(n))
				i += 4
			default:
				units = append(units, uint16(c))
			}
		}
		settings[name] = string(utf16.Decode(units))
	}
	return settings
}

func TestLibrdkafkaProperties(t *testing.T) {
	d := diaspora.Discovery{Brokers: []string{"a.example.org:9092"}, Security: "tls"}
	const want = "bootstrap.servers=a.example.org:9092\nsecurity.protocol=SASL_SSL\nsasl.mechanism=PLAIN\n" +
		"sasl.username=key-abcdefghij234567\nsasl.password=dks_secret\n"
	if got := librdkafkaProperties(aKey(), d); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestFileNameOf(t *testing.T) {
	for username, want := range map[string]string{
		"ada@example.edu":  "ada@example.edu",
		"../../etc/passwd": "_.._etc_passwd",
		"a b\n":            "a_b_",
		"":                 "diaspora",
		"...":              "diaspora",
		"-rf":              "rf",
		"ü@example.org":    "_@example.org",
	} {
		if got := fileNameOf(username); got != want {
			t.Errorf("fileNameOf(%q) = %q, want %q", username, got, want)
		}
	}
}

func TestParseExpiry(t *testing.T) {
	now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	for text, want := range map[string]time.Time{
		"90d":                  now.AddDate(0, 0, 90),
		"1d12h":                now.Add(36 * time.Hour),
		"2027-01-31":           time.Date(2027, 1, 31, 0, 0, 0, 0, time.UTC),
		"2027-01-31T10:00:00Z": time.Date(2027, 1, 31, 10, 0, 0, 0, time.UTC),
	} {
		if got, err := parseExpiry(text, now); err != nil || !got.Equal(want) {
			t.Errorf("parseExpiry(%q) = %v, %v, want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "never", "90", "2h ago", "yesterday", "now", "2026-11-24", "2020-01-01", "1000000d"} {
		if got, err := parseExpiry(text, now); err == nil {
			t.Errorf("parseExpiry(%q) = %v, want an error", text, got)
		}
	}
}

// TestKcatFile checks the limits of kcat: it reads lines of up to 511 bytes, and trims their ends.
func TestKcatFile(t *testing.T) {
	d := diaspora.Discovery{Brokers: []string{"a.example.org:9092"}, Security: "tls"}
	const want = "# Access key key-abcdefghij234567 (laptop) of Diaspora Streams: keep it to yourself.\n" +
		"bootstrap.servers=a.example.org:9092\nsecurity.protocol=SASL_SSL\nsasl.mechanism=PLAIN\n" +
		"sasl.username=key-abcdefghij234567\nsasl.password=dks_secret\n"
	if got, err := kcatFile(aKey(), d, ""); err != nil || got != want {
		t.Errorf("got\n%s%v\nwant\n%s", got, err, want)
	}
	if got, err := kcatFile(aKey(), d, "/a b/ca.pem"); err != nil || got != want+"ssl.ca.location=/a b/ca.pem\n" {
		t.Errorf("with a CA:\n%s%v", got, err)
	}
	for range 100 {
		d.Brokers = append(d.Brokers, "broker.example.org:9092")
	}
	got, err := kcatFile(aKey(), d, "")
	testkit.Must(t, err)
	for line := range strings.Lines(got) {
		if name, value, _ := strings.Cut(line, "="); len(line) > maxKcatLine || name == "bootstrap.servers" && !strings.HasPrefix(value, "a.example.org:9092,broker.example.org:9092,") {
			t.Errorf("the line has %d bytes: %s", len(line), line)
		}
	}
	if d.Brokers[100] != "broker.example.org:9092" || len(d.Brokers) != 101 {
		t.Error("the brokers were changed")
	}
	for _, ca := range []string{"/x\ny", "/x\\:y", "/x ", "/" + strings.Repeat("x", 500)} {
		if got, err := kcatFile(aKey(), d, ca); err == nil {
			t.Errorf("the CA file %q is taken:\n%s", ca, got)
		}
	}
}

// TestEnvFile writes a key file, with certificates next to it, and parses it with the package that reads such files.
func TestEnvFile(t *testing.T) {
	const pem = "-----BEGIN CERTIFICATE-----\nMIIBAQ==\n-----END CERTIFICATE-----"
	file := filepath.Join(t.TempDir(), "array.env")
	ca, err := saveCertificates(file, pem)
	if err != nil || !filepath.IsAbs(ca) {
		t.Fatal(ca, err)
	}
	if data, err := os.ReadFile(ca); err != nil || string(data) != pem+"\n" {
		t.Errorf("%s has %q, %v", ca, data, err)
	}
	if again, err := saveCertificates(file, pem); err != nil || again != ca {
		t.Errorf("the same certificates again: %s, %v", again, err)
	}
	if _, err := saveCertificates(file, pem+"\n"+pem); !errors.Is(err, diaspora.ErrConflict) {
		t.Errorf("other certificates replace them: %v", err)
	}
	if _, err := saveCertificates("-", pem); !errors.Is(err, diaspora.ErrInvalid) {
		t.Errorf("certificates next to the output: %v", err)
	}
	key := aKey()
	key.Secret = "dks_0123456789abcdefghijABCDEFGHIJ_-0123456789a"
	text, err := envFile(key, " https://h.example.org/acl\n", ca, []string{"a:9092", "[::1]:9092"})
	testkit.Must(t, err)
	if !strings.Contains(text, "\n# brokers: a:9092,[::1]:9092\n") {
		t.Errorf("the brokers are not in\n%s", text)
	}
	testkit.Must(t, os.WriteFile(file, []byte(text), 0o600))
	read, err := accesskey.Read(file)
	if err != nil || read.Get("DIASPORA_URL") != "https://h.example.org/acl" || read.Get("DIASPORA_CA_FILE") != ca ||
		read.Get(accesskey.IDVariable) != key.ID || read.Get(accesskey.SecretVariable) != key.Secret.Reveal() {
		t.Errorf("Read = %v, %v of\n%s", read, err, text)
	}
}

// TestSecretFile checks that a file appears with its whole content or not at all, that only its owner can read it,
// and that it replaces no other file.
func TestSecretFile(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "x.properties")
	content := func() string {
		data, _ := os.ReadFile(name)
		return string(data)
	}
	f, err := newSecretFile(name)
	testkit.Must(t, err)
	if content() != "" {
		t.Error("the file is there before it is whole")
	}
	f.discard()
	first, err := newSecretFile(name)
	testkit.Must(t, err)
	second, err := newSecretFile(name)
	testkit.Must(t, err)
	testkit.Must(t, first.save([]byte("first")))
	first.discard() // has no effect on the file after save
	if err := second.save([]byte("second")); !errors.Is(err, diaspora.ErrConflict) {
		t.Errorf("a file that was made meanwhile is replaced: %v", err)
	}
	second.discard()
	info, err := os.Stat(name)
	if err != nil || content() != "first" || info.Mode().Perm() != 0o600 {
		t.Errorf("the file is %q with mode %v, %v", content(), info.Mode(), err)
	}
	if _, err := newSecretFile(name); !errors.Is(err, diaspora.ErrConflict) {
		t.Errorf("a file that exists is taken: %v", err)
	}
	testkit.Must(t, os.Symlink(filepath.Join(dir, "nowhere"), filepath.Join(dir, "link")))
	if _, err := newSecretFile(filepath.Join(dir, "link")); !errors.Is(err, diaspora.ErrConflict) {
		t.Errorf("a link that leads nowhere is taken: %v", err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 2 {
		t.Errorf("the folder has %v", entries)
	}
}

// TestKeyMayNot checks that errors with an access key say what the key may do, and that the topic may be mistyped: a
// key cannot ask who owns a topic.
func TestKeyMayNot(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.must(t, "topic", "claim", "scans")
	d.must(t, "topic", "claim", "snow")
	files := t.TempDir()
	key := func(name string, args ...string) string {
		file := filepath.Join(files, name+".env")
		d.must(t, append([]string{"key", "create", name, "--save-env", file}, args...)...)
		return file
	}
	all, writer, scans := key("all"), key("writer", "--write"), key("scans", "--topic", "scans")
	says := func(file string, want []string, args ...string) {
		t.Helper()
		d.err.Reset()
		d.vars["DIASPORA_KEY_FILE"] = file
		if code := d.types(t.Context(), args...); code != 4 {
			t.Errorf("%v exits with %d, want 4", args, code)
		}
		for _, text := range want {
			if !strings.Contains(d.err.String(), text) {
				t.Errorf("%v says %q, want %q", args, d.err.String(), text)
			}
		}
		d.must(t, "spool", "discard", "scnas", "--yes", "-q")
	}
	unknown := []string{
		`topic "scnas": no topic scnas that the access key key-`, " may write to: it is mistyped, not claimed, or not its owner's\n",
		"\nhint: use an access key that may, or claim it", `spool discard scnas --to FILE`,
	}
	says(all, unknown, "produce", "scnas", "--value", "1")
	says(scans, []string{" may write to: it may read and write scans; did you mean scans?\n"}, "produce", "scnas", "--value", "1")

	// A consumer leaves nothing in the spool.
	d.err.Reset()
	d.vars["DIASPORA_KEY_FILE"] = writer
	if code := d.types(t.Context(), "consume", "scans", "--exit"); code != 4 {
		t.Errorf("consume with a key that may not read exits with %d, want 4", code)
	}
	const want = "may not read it, it may write only\nhint: use an access key that may read (\"diaspora key create NAME --topic scans --read\", where somebody is logged in who may read it), or unset DIASPORA_KEY_FILE to read with your login\n"
	if !strings.HasSuffix(d.err.String(), want) {
		t.Errorf("consume says %q, want %q", d.err.String(), want)
	}

	// A watch reports it while it is running.
	d.err.Reset()
	d.vars["DIASPORA_KEY_FILE"] = all
	dir := t.TempDir()
	put(t, dir, "a.json", "1")
	d.watching(t, 4, func() bool {
		return strings.Contains(d.err.String(), unknown[1][:len(unknown[1])-1]+"; 1 event waits in ") && strings.Contains(d.err.String(), unknown[2])
	}, "scnas", "--watch", dir, "--settle", "0")
}

// TestDeniedByAnOperator: the owner of a topic need not claim it, nor ask its owner, if an operator denies the access.
func TestDeniedByAnOperator(t *testing.T) {
	d := newDesk(t)
	d.must(t, "topic", "claim", "scans")
	file := filepath.Join(t.TempDir(), "key.env")
	d.must(t, "key", "create", "k", "--topic", "scans", "--save-env", file)
	key, err := accesskey.Read(file)
	testkit.Must(t, err)
	cfg, err := d.config()
	testkit.Must(t, err)
	owner := "User:" + cfg.Identity.Subject
	deny := kadm.NewACLs().Topics("scans").ResourcePatternType(kadm.ACLPatternLiteral).Operations(kadm.OpAll).
		Deny(owner, owner+"."+key.Get(accesskey.IDVariable)).DenyHosts("*")
	created, err := fabrictest.Admin(t, d.fabric).CreateACLs(t.Context(), deny)
	if err != nil || created[0].Err != nil {
		t.Fatal(err, created)
	}
	denied := func(want ...string) {
		t.Helper()
		for _, args := range [][]string{{"produce", "scans", "--value", "1", "--no-spool"}, {"consume", "scans", "--from", "start", "--exit"}} {
			d.err.Reset()
			if code := d.types(t.Context(), args...); code != 4 {
				t.Errorf("%v exits with %d, want 4", args, code)
			}
			for _, text := range want {
				if !strings.Contains(d.err.String(), text) || strings.Contains(d.err.String(), "claim it") {
					t.Errorf("%v says %q, want %q, and nothing about claiming it", args, d.err.String(), text)
				}
			}
		}
	}
	denied(` topic "scans": an operator of the fabric denies you the access, although scans is yours`, "\nhint: ask an operator for the reason\n")
	d.vars["DIASPORA_KEY_FILE"] = file
	denied(" is for it, but has no access: the topic was released or handed over, or is not shared any more, or an operator of the fabric denies the access", "\nhint: look at it with \"diaspora topic show scans\"")
}
