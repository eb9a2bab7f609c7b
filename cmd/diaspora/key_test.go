package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/diaspora-streams/diaspora"
)

func aKey() diaspora.NewAccessKey {
	return diaspora.NewAccessKey{
		AccessKey: diaspora.AccessKey{ID: "key-abcdefghij234567", Name: "laptop", Read: true, Write: true},
		Secret:    "dks_secret",
	}
}

// TestJavaProperties holds the file word for word: other people's programs read it.
func TestJavaProperties(t *testing.T) {
	d := diaspora.Discovery{Brokers: []string{"127.0.0.1:9092"}, Security: "plaintext"}
	const plaintext = `# Access key key-abcdefghij234567 (laptop) of Diaspora Streams: keep it to yourself.
bootstrap.servers=127.0.0.1:9092
security.protocol=SASL_PLAINTEXT
sasl.mechanism=PLAIN
sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required username="key-abcdefghij234567" password="dks_secret";
`
	if got := javaProperties(aKey(), d, nil); got != plaintext {
		t.Errorf("on one machine:\n%s\nwant\n%s", got, plaintext)
	}
	d = diaspora.Discovery{Brokers: []string{"a.example.org:9092", "b.example.org:9092"}, Security: "tls"}
	secure := strings.NewReplacer("SASL_PLAINTEXT", "SASL_SSL", "127.0.0.1:9092", "a.example.org:9092,b.example.org:9092").Replace(plaintext)
	if got := javaProperties(aKey(), d, nil); got != secure {
		t.Errorf("with a certificate that the system trusts:\n%s\nwant\n%s", got, secure)
	}
	const pem = "-----BEGIN CERTIFICATE-----\nMIIB\nAQ==\n-----END CERTIFICATE-----\n"
	d.CA = "the fabric's own\n" + pem
	one := `-----BEGIN CERTIFICATE-----\nMIIB\nAQ==\n-----END CERTIFICATE-----`
	trusting := secure + "ssl.truststore.type=PEM\nssl.truststore.certificates=" + one + `\n` + one + "\n"
	if got := javaProperties(aKey(), d, []byte("and another\r\n"+strings.ReplaceAll(pem, "\n", "\r\n"))); got != trusting {
		t.Errorf("with certificates of its own:\n%s\nwant\n%s", got, trusting)
	}
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

// TestSecretFile holds that a file is there whole, for its owner only, or not at all.
func TestSecretFile(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "x.properties")
	if err := os.WriteFile(name, []byte("old"), 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := newSecretFile(name)
	if err != nil {
		t.Fatal(err)
	}
	f.discard()
	if got, err := os.ReadFile(name); err != nil || string(got) != "old" {
		t.Errorf("after discard the file is %q, %v", got, err)
	}
	if f, err = newSecretFile(name); err != nil {
		t.Fatal(err)
	}
	if err := f.save([]byte("new")); err != nil {
		t.Fatal(err)
	}
	f.discard() // after save it does nothing
	got, err := os.ReadFile(name)
	info, errStat := os.Stat(name)
	if err != nil || errStat != nil || string(got) != "new" || info.Mode().Perm() != 0o600 {
		t.Errorf("the file is %q with mode %v", got, info.Mode())
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("the folder has %v", entries)
	}
}
