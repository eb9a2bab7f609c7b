//go:build clients

package interop

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/interop/clients"
)

// olderJava returns a folder with versions of Java's client, each in a folder of its own.
func olderJava(t *testing.T) string {
	t.Helper()
	const pom = "clients/java/pom.xml"
	dir, err := clients.Installed("java-clients", pom, func(dir string) error {
		return clients.Quietly("mvn", "-q", "-B", "-f", pom, "-Djars="+dir, "package")
	})
	testkit.Must(t, err)
	return dir
}

// javaVersion is a version of Java's client, and the lines with which it fetches tokens.
type javaVersion struct {
	name, jars string
	tokens     []string
}

// javaVersions returns those that people have. The lines are of docs/clients.md.
func javaVersions(t *testing.T) map[string]javaVersion {
	t.Helper()
	newest, err := kafkaJars()
	testkit.Must(t, err)
	older := olderJava(t)
	jars := func(version string) string {
		return filepath.Join(older, version, "*") + ":" + filepath.Join(older, "all", "*")
	}
	lines := pageSection(t, "Java, with tokens").blocks(t, "properties", 2)
	settings, options := lines[0], lines[1]
	secured := strings.Replace(options, "oauthbearer.OAuthBearerLoginCallbackHandler", "oauthbearer.secured.OAuthBearerLoginCallbackHandler", 1)
	return map[string]javaVersion{
		"2.8": {"2.8", jars("2.8"), nil},
		"3.3": {"3.3", jars("3.3"), []string{secured}},
		"3.9": {"3.9", jars("3.9"), []string{options}},
		"4.x": {"4.x", newest + "/*", []string{settings}},
		// What 4.1 warns of still works.
		"4.x as 3.9": {"4.x as 3.9", newest + "/*", []string{options}},
	}
}

// TestClientsJavaVersions has versions of Java's client produce and consume, with an access key and, those that
// can fetch them, with tokens for one.
func TestClientsJavaVersions(t *testing.T) { tryJavaVersions(t, "2.8", "3.9", "4.x") }

// TestSoftwareJavaVersions is the same for what fewer people have.
func TestSoftwareJavaVersions(t *testing.T) { tryJavaVersions(t, "3.3", "4.x as 3.9") }

func tryJavaVersions(t *testing.T, names ...string) {
	parallel(t)
	if !chosen.MatchString("Java clients") || !present(t, dialect{name: "Java clients", needs: []string{"java", "mvn"}}) {
		return
	}
	versions := javaVersions(t)
	f := start(t, fabric.Config{})
	at := inFabric(t, f)
	for _, name := range names {
		version := versions[name]
		t.Run(name, func(t *testing.T) {
			e := newExample(t, at)
			signIn := []string{e.keyForJava(t)}
			for _, lines := range version.tokens {
				signIn = append(signIn, e.write(t, "tokens.properties", lines))
			}
			for _, file := range signIn {
				javaClientTool{version.jars, e, file}.produces(t)
			}
			javaClientTool{version.jars, e, signIn[0]}.consumes(t, len(signIn))
		})
	}
	version, wrong := versions["4.x"], newExample(t, at).wrong(t)
	tool := javaClientTool{version.jars, wrong, wrong.write(t, "tokens.properties", version.tokens[0])}
	p := run(t, nil, tool.command("VerifiableProducer", "producer", "--max-messages", "1"))
	p.awaitSaid(t, pageSection(t, "Java, with tokens").onWrongSecret(t))
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
