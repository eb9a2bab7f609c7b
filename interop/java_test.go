//go:build clients

package interop

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/interop/clients"
)

// olderJava returns a folder with versions of Java's client, each in a folder of its own.
func olderJava(t *testing.T) string {
	t.Helper()
	const pom = "clients/java/pom.xml"
	dir, err := clients.Installed("java-clients", pom, func(dir string) error {
		return clients.Quietly("mvn", "-q", "-B", "-f", pom, "-Djars="+dir, "package")
	})
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestClientsJavaVersions has versions of Java's client that people still have produce and consume, with
// an access key and, those that can fetch them, with tokens for one, by the lines of docs/clients.md.
func TestClientsJavaVersions(t *testing.T) {
	parallel(t)
	if !chosen.MatchString("Java clients") || !present(t, dialect{name: "Java clients", needs: []string{"java", "mvn"}}) {
		return
	}
	older := olderJava(t)
	newest, err := kafkaJars()
	if err != nil {
		t.Fatal(err)
	}
	f := start(t, fabric.Config{})
	s := inFabric(t, f)
	page := pageSection(t, "Java, with tokens")
	lines := page.blocks(t, "properties", 2)
	withSettings, withOptions := lines[0], lines[1]
	inSecured := strings.Replace(withOptions, "oauthbearer.OAuthBearerLoginCallbackHandler", "oauthbearer.secured.OAuthBearerLoginCallbackHandler", 1)
	var tool javaClientTool
	for _, version := range []struct {
		name, jars string
		tokens     []string
	}{
		{"2.8", "", nil},
		{"3.3", "", []string{inSecured}},
		{"3.9", "", []string{withOptions}},
		{"4.x", newest + "/*", []string{withSettings, withOptions}},
	} {
		if version.jars == "" {
			version.jars = filepath.Join(older, version.name, "*") + ":" + filepath.Join(older, "all", "*")
		}
		t.Run(version.name, func(t *testing.T) {
			e := newExample(t, s)
			signIn := []string{filepath.Join(e.dir, "key.properties")}
			if _, err := s.createKey(t, e.topic+"_java", "--save-for-java="+signIn[0]); err != nil {
				t.Fatal(err)
			}
			for i, lines := range version.tokens {
				signIn = append(signIn, e.write(t, fmt.Sprintf("tokens-%d.properties", i), lines))
			}
			for _, file := range signIn {
				tool = javaClientTool{version.jars, e, file}
				tool.produces(t)
			}
			tool.consumes(t, len(signIn))
		})
	}
	tool.example = tool.wrong(t)
	tool.file = tool.write(t, "tokens.properties", withOptions)
	p := run(t, nil, tool.command("VerifiableProducer", "producer", "--max-messages", "1"))
	p.awaitSaid(t, page.onWrongSecret(t))
}

// javaClientTool is a version of Java's client, in a tool that reports what is acknowledged and consumed.
type javaClientTool struct {
	jars string
	example
	file string // of the settings to sign in with
}

// command is the tool; of is the kind of settings that it takes.
func (j javaClientTool) command(tool, of string, args ...string) []string {
	command := []string{"java", "-Xmx96m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
		"-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls=" + j.tokenURL, "-cp", j.jars, kafkaTools + tool,
		"--bootstrap-server", j.brokers[0], "--topic", j.topic, "--" + of + ".config", j.file}
	return append(command, args...)
}

// produces produces one record.
func (j javaClientTool) produces(t *testing.T) {
	t.Helper()
	command := j.command("VerifiableProducer", "producer", "--max-messages", "1")
	if out, complaints := runToEnd(t, nil, "", command[0], command[1:]...); !strings.Contains(out, `"acked":1,`) {
		t.Errorf("%s: nothing is acknowledged:\n%s%s", filepath.Base(j.file), out, complaints)
	}
}

// consumes consumes the topic, which has n records.
func (j javaClientTool) consumes(t *testing.T, n int) {
	t.Helper()
	command := j.command("VerifiableConsumer", "consumer", "--group-id", j.topic, "--reset-policy", "earliest", "--max-messages", fmt.Sprint(n))
	if out, complaints := runToEnd(t, nil, "", command[0], command[1:]...); !strings.Contains(out, `"records_consumed","count":`+fmt.Sprint(n)) {
		t.Errorf("%s: %d records are not consumed:\n%s%s", filepath.Base(j.file), n, out, complaints)
	}
}
