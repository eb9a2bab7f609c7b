//go:build kafka && clients

package interop

import (
	"cmp"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/diaspora-streams/diaspora/internal/globusdev"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// authority writes a certificate for 127.0.0.1, its key, and the certificate of the authority
// that has signed it.
func authority(t *testing.T) (ca, cert, key string) {
	t.Helper()
	dir := t.TempDir()
	write := func(name, kind string, der []byte) string {
		file := filepath.Join(dir, name)
		testkit.Must(t, os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
		return file
	}
	sign := func(template, parent *x509.Certificate, signer *ecdsa.PrivateKey) (*ecdsa.PrivateKey, *x509.Certificate) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		testkit.Must(t, err)
		if signer == nil {
			parent, signer = template, key
		}
		template.SerialNumber, template.NotBefore, template.NotAfter = big.NewInt(time.Now().UnixNano()), time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
		der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
		testkit.Must(t, err)
		made, err := x509.ParseCertificate(der)
		testkit.Must(t, err)
		return key, made
	}
	rootKey, root := sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: "fabric"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, nil, nil)
	leafKey, leaf := sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: "gateway"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, root, rootKey)
	keyDER, err := x509.MarshalPKCS8PrivateKey(leafKey)
	testkit.Must(t, err)
	return write("ca.pem", "CERTIFICATE", root.Raw), write("cert.pem", "CERTIFICATE", leaf.Raw), write("key.pem", "PRIVATE KEY", keyDER)
}

// overTLS is a place behind a gateway and an ACL endpoint with TLS, and certificates of an authority that nobody knows.
func overTLS(t *testing.T) (at place, ca string) {
	t.Helper()
	s := newSite(t)
	ca, cert, key := authority(t)
	address := testkit.FreeAddress(t)
	url := "https://" + address
	for name, value := range map[string]any{"public-url": url, "acl-listen": address, "tls-cert-file": cert, "tls-key-file": key, "acl-ca-file": ca} {
		s.settings[name] = value
	}
	s.serve(t)
	login, err := s.people.Login(testkit.Within(t), ada)
	testkit.Must(t, err)
	token, _ := login.Token(globusdev.ResourceServerID)
	cfg := s.as(t, ada, url)
	cfg.CAFile = ca
	return place{
		brokers: s.settings["acl-bootstrap"].([]string), tokenURL: url + "/v1/token", cfg: cfg, bin: s.program,
		login: []string{"DIASPORA_URL=" + url, "DIASPORA_REFRESH=" + token.RefreshToken.Reveal(), "DIASPORA_CONFIG_DIR=" + t.TempDir(), "DIASPORA_CA_FILE=" + ca},
	}, ca
}

// TestSoftwareTLS runs the examples of docs/clients.md, changed as the page says for TLS and an authority
// of the fabric's own. @CA@ stands for the file of its certificates.
func TestSoftwareTLS(t *testing.T) {
	at, ca := overTLS(t)
	in := func(text string, changes ...string) string {
		for i := 0; i < len(changes); i += 2 {
			if !strings.Contains(text, changes[i]) {
				t.Fatalf("the example has no %q:\n%s", changes[i], text)
			}
			text = strings.ReplaceAll(text, changes[i], strings.ReplaceAll(changes[i+1], "@CA@", ca))
		}
		return text
	}
	const plain = "SASL_PLAINTEXT"
	for _, s := range []struct {
		software
		changes []string
	}{
		{software{"aiokafka", []string{"python3"}, startAiokafka, ""}, []string{
			`"` + plain + `"`, `"SASL_SSL", ssl_context=aiokafka.helpers.create_ssl_context(cafile="@CA@")`, "import asyncio", "import asyncio, aiokafka.helpers"}},
		{software{"rsyslog", []string{"apt-get", "dpkg"}, startRsyslog, pageEvent}, []string{`"security.protocol=` + plain + `"`, `"security.protocol=SASL_SSL", "ssl.ca.location=@CA@"`}},
		{software{"syslog-ng", []string{"apt-get", "dpkg"}, startSyslogNG, pageEvent}, []string{`("` + plain + `")`, `("SASL_SSL") ssl.ca.location("@CA@")`}},
		{software{"sarama", nil, startGo, ""}, []string{
			"config.Net.SASL.Enable = true", "config.Net.SASL.Enable, config.Net.TLS.Enable, config.Net.TLS.Config = true, true, trust", "type printer struct{}", goTrust + "type printer struct{}",
			`"log"`, goTrustImports}},
		{software{"kafka-go", nil, startGo, ""}, []string{
			"SASL: key", "SASL: key, TLS: trust", "SASLMechanism: key", "SASLMechanism: key, TLS: trust", "func main()", goTrust + "func main()", `"log"`, goTrustImports}},
		{software{"@platformatic/kafka", []string{"npm"}, startPlatformatic, ""}, []string{
			"clientId:", "tls: { ca: readFileSync('@CA@') }, clientId:", "import {", "import { readFileSync } from 'node:fs'\nimport {"}},
		{software{"OpenTelemetry collector", nil, startCollector, `"{\"temperature\": 21.5}"`}, []string{"    auth:\n", "    tls: {ca_file: @CA@}\n    auth:\n"}},
		{software{"gcn-kafka", []string{"python3"}, startGCN, ""}, []string{`"security.protocol": "` + plain + `"`, `"ssl.ca.location": "@CA@", "https.ca.location": "@CA@"`}},
		{software{"faust", []string{"python3"}, startFaust, ""}, []string{
			`mechanism="PLAIN"`, `mechanism="PLAIN", ssl_context=ssl.create_default_context(cafile="@CA@")`, "import faust\n", "import faust, ssl\n"}},
	} {
		if !chosen.MatchString(s.heading) || !present(t, dialect{name: s.heading, needs: s.needs}) {
			continue
		}
		t.Run(s.heading, func(t *testing.T) {
			page, e := pageSection(t, s.heading), newExample(t, at)
			page.text = in(page.text, s.changes...)
			if s.heading == "faust" {
				e.claimAlso(t, "_counts")
			}
			p := s.started(t, page, e)
			e.holds(t, cmp.Or(s.ships, pageEvent), p)
			if s.ships == "" {
				p.awaitSaid(t, pageEvent)
			}
			p.kill()
		})
	}
}

// TestSoftwareTLSHop is the same for hop, with a key and with a token.
func TestSoftwareTLSHop(t *testing.T) {
	at, ca := overTLS(t)
	page := pageSection(t, "hop")
	settings := strings.Replace(page.block(t, "toml"), `protocol = "SASL_PLAINTEXT"`, `ssl_ca_location = "`+ca+`"`, 1)
	tryHop(t, at, page, settings)
	tryHop(t, at, page, fetchingToken(settings))
}

// TestSoftwareTLSJava has versions of Java's client trust the certificates that are in the file of
// --save-for-java, and fetch tokens with the further settings that docs/clients.md has for that.
func TestSoftwareTLSJava(t *testing.T) {
	at, ca := overTLS(t)
	trust := strings.NewReplacer("SASL_PLAINTEXT", "SASL_SSL", ";\n", ` ssl.truststore.type="PEM" ssl.truststore.location="`+ca+`";`+
		"\nssl.truststore.type=PEM\nssl.truststore.location="+ca+"\n")
	for name, version := range javaVersions(t) {
		t.Run(name, func(t *testing.T) {
			tool := javaClientTool{version.jars, newExample(t, at), ""}
			tool.file = tool.keyForJava(t)
			tool.produces(t)
			tool.consumes(t, 1)
			for _, lines := range version.tokens {
				tool.file = tool.write(t, "tokens.properties", trust.Replace(lines))
				tool.produces(t)
			}
		})
	}
}

// TestPythonOriginalTLS runs scripts for the original, which sign in without TLS, in a fabric with TLS.
func TestPythonOriginalTLS(t *testing.T) {
	if !present(t, loggerPrograms) {
		return
	}
	at, _ := overTLS(t)
	for _, version := range kafkaPythons {
		t.Run(version, func(t *testing.T) {
			newScript(t, at, version).runsOldAddresses(t)
			newScript(t, at, version).runsOurExamples(t)
			newScript(t, at, version).withLogin(t).claimsTopics(t)
		})
	}
}

const (
	goTrustImports = `"log"
	"crypto/tls"
	"crypto/x509"
	"os"`
	goTrust = `var trust = func() *tls.Config {
	pem, err := os.ReadFile("@CA@")
	pool := x509.NewCertPool()
	if err != nil || !pool.AppendCertsFromPEM(pem) {
		log.Fatal(err)
	}
	return &tls.Config{RootCAs: pool}
}()

`
)
