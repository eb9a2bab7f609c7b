//go:build clients

package interop

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/internal/inside"
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"
	"github.com/diaspora-streams/diaspora/interop/clients"
)

const loggerFolder = "../clients/diaspora_logger"

// originalReadme has the code blocks of the README of diaspora_logger 0.0.8.
const originalReadme = "testdata/diaspora-logger-readme.md"

// script is a user who runs Python code for the original.
type script struct {
	at      place
	version string // of kafka-python
	topic   string
	dir     string // the working directory, and that of the profiles
	venv    string
	env     []string
}

// newScript prepares a user who has logged in to nothing.
func newScript(t *testing.T, at place, version string) script {
	t.Helper()
	venv, err := clients.VirtualEnv("clients/kafka-python/requirements-" + version + ".txt")
	testkit.Must(t, err)
	s := script{at: at, version: version, topic: claim(t, at.cfg, 1), dir: t.TempDir(), venv: venv}
	s.env = []string{
		"PATH=" + filepath.Join(venv, "bin") + ":" + filepath.Dir(at.bin) + ":" + os.Getenv("PATH"),
		"PYTHONPATH=" + absolute(t, pythonFolder) + ":" + absolute(t, loggerFolder), "PYTHONDONTWRITEBYTECODE=1",
		"DIASPORA_URL=" + at.cfg.URL, "DIASPORA_CONFIG_DIR=" + filepath.Join(s.dir, "config"), "DISPLAY=",
	}
	return s
}

// shell runs lines of a shell and then Python code.
func (s script) shell(t *testing.T, lines, code string) *program {
	t.Helper()
	lines = "cd " + s.dir + "\n" + lines + "\nexec python -u -c \"$CODE\""
	return run(t, append(s.env, "CODE="+code), []string{"bash", "-euc", lines})
}

// endsWell waits until a program ends well, and returns what it printed.
func endsWell(t *testing.T, p *program) string {
	t.Helper()
	p.stdin.Close()
	select {
	case <-p.ended:
	case <-time.After(clientPatience):
		t.Fatalf("the program does not end:\n%s", p.said())
	}
	if p.err != nil {
		t.Fatalf("%v\n%s", p.err, p.said())
	}
	return p.said()
}

// kafkaPythons are versions of kafka-python, as the lock files call them.
var kafkaPythons = []string{"2.0", "2.3", "3.0"}

// loggerPrograms is what diaspora_logger needs to be tested.
var loggerPrograms = dialect{name: "diaspora_logger", needs: []string{"python3", "bash", "curl"}}

// TestPythonOriginal runs scripts for the original with each version of kafka-python.
func TestPythonOriginal(t *testing.T) {
	parallel(t)
	if !present(t, loggerPrograms) {
		return
	}
	at := inFabric(t, start(t, fabric.Config{}))
	for _, version := range kafkaPythons {
		t.Run(version, func(t *testing.T) {
			parallel(t)
			newScript(t, at, version).runsUnitTests(t)
			newScript(t, at, version).runsReadme(t)
			newScript(t, at, version).runsOldAddresses(t)
			newScript(t, at, version).runsOurExamples(t)
			newScript(t, at, version).keepsToken(t)
			newScript(t, at, version).reportsLostEvents(t, version)
			newScript(t, at, version).reportsRefusedKey(t)
		})
	}
}

// reportsLostEvents sends events to a topic that nobody has claimed, and only flushes, as many scripts do. kafka-python 2.0
// raises an error in send instead.
func (s script) reportsLostEvents(t *testing.T, version string) {
	said := endsWell(t, s.withLogin(t).shell(t, "", `
from kafka.errors import KafkaTimeoutError
from diaspora_logger import DiasporaLogger
logger = DiasporaLogger(max_block_ms=5000)
try:
    for n in range(3):
        logger.send("`+s.topic+`_nobody", {"n": n})
except KafkaTimeoutError as e:
    print("raised", e)
logger.flush()
`))
	if version == "2.0" {
		if !strings.Contains(said, "raised") {
			t.Errorf("the script says %q", said)
		}
		return
	}
	want := `an event for topic "` + s.topic + `_nobody" was not logged`
	if strings.Count(said, want) != 1 || !strings.Contains(said, `run "diaspora topic claim `+s.topic+`_nobody"`) {
		t.Errorf("the script says %q; want once %q, and what to do", said, want)
	}
}

// reportsRefusedKey uses a revoked access key. kafka-python itself would try again until it times out.
func (s script) reportsRefusedKey(t *testing.T) {
	t.Helper()
	file, name := filepath.Join(s.dir, "key.env"), keyName(s.topic)
	login := s.withLogin(t).env
	_, err := s.at.diaspora(login, "key", "create", name, "--write", "--save-env", file)
	testkit.Must(t, err)
	_, err = s.at.diaspora(login, "key", "revoke", name)
	testkit.Must(t, err)
	s.env = append(s.env, "DIASPORA_KEY_FILE="+file)
	began := time.Now()
	p := s.shell(t, "", "from diaspora_logger import DiasporaLogger; DiasporaLogger()")
	<-p.ended
	if want := ".Unauthenticated: sign in to " + s.at.cfg.URL + ": the access key was revoked; make another"; p.err == nil || !strings.Contains(p.said(), want) {
		t.Errorf("with a revoked key, the script ends with %v and says %q; want %q", p.err, p.said(), want)
	}
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("the script took %v to say that the key is revoked", took)
	}
}

// runsUnitTests runs the tests of the package itself.
func (s script) runsUnitTests(t *testing.T) {
	runToEnd(t, s.env, "", filepath.Join(s.venv, "bin", "python"), "-m", "unittest", "discover", "-s", filepath.Join(loggerFolder, "tests"))
}

// runsReadme runs the code of the original's README.
func (s script) runsReadme(t *testing.T) {
	blocks := section{"the original's README", string(testkit.ReadFile(t, originalReadme))}
	python, shell := blocks.blocks(t, "python", 3), blocks.blocks(t, "bash", 2)
	fill := func(text string, pairs ...string) string {
		filled := strings.NewReplacer(pairs...).Replace(text)
		if filled == text {
			t.Fatalf("the README has none of %q in %q", pairs, text)
		}
		return filled
	}

	want := blocks.block(t, "")
	withoutJava := strings.Join(slices.DeleteFunc(strings.SplitAfter(want, "\n"), func(line string) bool { return strings.HasPrefix(line, "Java") }), "")
	login := printed(t, withoutJava, s.logsIn(t, ada, python[0]))
	s.claimsByForm(t, login)
	export := fill(shell[1], "<Globus-Auth-refresh-token>", login["refresh-token"])

	p := s.shell(t, export, fill(python[1], "<claimed-topic>", s.topic))
	if out := endsWell(t, p); !strings.Contains(out, "topic='"+s.topic+"'") || !strings.Contains(out, "offset 1") {
		t.Errorf("the producer of the README prints %q", out)
	}
	if got := values(fabrictest.ReadAll(t, s.at.cfg, s.topic)); got != `{"message": "Synchronous message"} {"message": "Asynchronous message"}` {
		t.Errorf("the topic has %q", got)
	}
	consumer := s.shell(t, export, fill(python[2], "<consumer-topic>", s.topic, "<some-group-id-of-your-choice>", s.topic))
	s.reads(t, consumer)
}

var curlCommand = regexp.MustCompile(`(?s)with curl:\n(.*)`)

// claimsByForm claims a topic with what the login has printed, as the README says, and once more with the curl
// command in the answer. That command signs in with the login that Python has stored.
func (s script) claimsByForm(t *testing.T, login map[string]string) {
	t.Helper()
	form := url.Values{"subject": {login["subject-claim"]}, "token": {login["access-token"]}, "topic": {s.topic + "_form"}}
	response, err := http.PostForm(s.at.cfg.URL+"/acl", form)
	testkit.Must(t, err)
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	testkit.Must(t, err)
	command := curlCommand.FindSubmatch(answer)
	if response.StatusCode != http.StatusCreated || command == nil {
		t.Fatalf("the form answers %s: %s", response.Status, answer)
	}
	out, _ := runToEnd(t, s.env, "", "bash", "-euc", string(command[1]))
	if want := s.topic + "_form was yours already"; !strings.Contains(out, want) {
		t.Errorf("the curl command of the form prints %q, want %q", out, want)
	}
}

// withLogin returns the script with a login in its environment, and without a stored one.
func (s script) withLogin(t *testing.T) script {
	t.Helper()
	c, err := s.at.signIn(t, "oauth", s.topic)
	testkit.Must(t, err)
	s.env = append(slices.Clone(s.env), c.env...)
	return s
}

// oldAddresses uses DiasporaLogger in each of the ways in which the original can be used, and as a KafkaProducer.
const oldAddresses = `
import os
from diaspora_logger import DiasporaLogger
topic = os.environ["TOPIC"]
token = os.getenv("DIASPORA_REFRESH")
logger = DiasporaLogger(bootstrap_servers=["52.200.217.146:9093", "54.210.46.108:9094"], refresh_token=token)
logger.send(topic, {"n": 1}).get(timeout=60)
assert logger.partitions_for(topic) == {0} and logger._producer.config["acks"] == -1
logger.flush()
logger.close()
logger = DiasporaLogger(["52.200.217.146:9093"], token)
logger.send(topic, value={"n": 2}, key=b"k").get(timeout=60)
logger.close()
logger = DiasporaLogger(bootstrap_servers=os.environ["BOOTSTRAP"], value_serializer=str.encode, key_serializer=str.encode, linger_ms=7)
assert logger.config["linger_ms"] == 7
logger.send(topic, value="three", key="k").get(timeout=60)
logger.close()
`

// runsOldAddresses runs a script with the brokers of the original fabric in it.
func (s script) runsOldAddresses(t *testing.T) {
	out := endsWell(t, s.withLogin(t).shell(t, "", oldAddresses))
	for _, line := range []string{"<string>:6: ", "<string>:11: "} {
		if want := line + "UserWarning: diaspora_logger: the brokers of the original fabric are replaced by those of " + s.at.cfg.URL; !strings.Contains(out, want) {
			t.Errorf("the script prints %q, want %q", out, want)
		}
	}
	if n := strings.Count(out, "UserWarning"); n != 2 || strings.Contains(out, "<string>:6: Deprecation") {
		t.Errorf("the script prints %d warnings, want 2:\n%s", n, out)
	}
	if got := values(fabrictest.ReadAll(t, s.at.cfg, s.topic)); got != `{"n": 1} {"n": 2} three` {
		t.Errorf("the topic has %q", got)
	}
}

// ourExamples returns the Python code in the README of diaspora_logger: a consumer with one changed line, and a
// producer that uses diaspora_streams.
func (s script) ourExamples(t *testing.T) (consumer, producer string) {
	t.Helper()
	readme := testkit.ReadFile(t, filepath.Join(loggerFolder, "README.md"))
	examples := section{"the README of diaspora_logger", string(readme)}.blocks(t, "python", 2)
	name := strings.NewReplacer(`"weather"`, fmt.Sprintf("%q", s.topic), `"analysis"`, fmt.Sprintf("%q", s.topic))
	return name.Replace(examples[0]), name.Replace(examples[1])
}

// runsOurExamples runs the code in the README of diaspora_logger.
func (s script) runsOurExamples(t *testing.T) {
	s = s.withLogin(t)
	code, producer := s.ourExamples(t)
	consumer := s.shell(t, "", code)
	s.reads(t, consumer)
	if want := "the brokers of the original fabric are replaced"; !strings.Contains(consumer.said(), want) {
		t.Errorf("the consumer does not print %q:\n%s", want, consumer.said())
	}
	if s.version == "2.0" {
		return // needs api_version, as docs/clients.md says
	}
	endsWell(t, s.shell(t, "", producer))
	if got := values(fabrictest.ReadAll(t, s.at.cfg, s.topic)); !strings.HasSuffix(got, `{"temperature":21.5}`) {
		t.Errorf("the topic has %q", got)
	}
}

// keepsToken runs the consumer without the changed line. It reaches a broker that is not among the hosts for which
// the token is meant, and that would accept the token.
func (s script) keepsToken(t *testing.T) {
	s = s.withLogin(t)
	elsewhere := s.at.fabric.Discovery()
	elsewhere.Brokers, elsewhere.Security = []string{"kafka.example.org:9093"}, "tls"
	profile := diaspora.Profile{Name: "elsewhere", URL: s.at.cfg.URL, Discovery: elsewhere}
	testkit.Must(t, diaspora.OpenProfiles(filepath.Join(s.dir, "config")).Save(profile))
	s.env = append(s.env, "DIASPORA_CONFIG_DIR="+filepath.Join(s.dir, "config"), "DIASPORA_BOOTSTRAP="+elsewhere.Brokers[0],
		"GLOBUS_SDK_SERVICE_URL_AUTH="+s.at.fabric.GlobusURL())
	_, port, err := net.SplitHostPort(s.at.brokers[0])
	testkit.Must(t, err)
	code, _ := s.ourExamples(t)
	code = strings.NewReplacer("52.200.217.146:9093", "localhost:"+port,
		"import GlobusAuthTokenProvider, KafkaConsumer", "import GlobusAuthTokenProvider\nfrom kafka import KafkaConsumer").Replace(code)
	p := s.shell(t, "", code)
	logger := fabrictest.OpenLogger(t, s.at.cfg)
	p.awaitSaidAbout(t, "UserWarning: diaspora_logger: the scope "+elsewhere.Globus.Scope+" names no host, and nobody has confirmed", func() {
		if fabrictest.Log(t, logger, s.topic, loggerEvent); strings.Contains(p.said(), loggerEvent) {
			t.Fatal("the consumer is signed in")
		}
	})
}

// reads waits until a consumer prints an event that is logged after it has started.
func (s script) reads(t *testing.T, consumer *program) {
	t.Helper()
	logger := fabrictest.OpenLogger(t, s.at.cfg)
	consumer.awaitSaidAbout(t, loggerEvent, func() { fabrictest.Log(t, logger, s.topic, loggerEvent) })
}

// loggerEvent is an event that no script sends.
const loggerEvent = "an event for the consumer"

var (
	authorizeAddress = regexp.MustCompile(`http://\S+/v2/oauth2/authorize\?\S+`)
	loginCode        = regexp.MustCompile(`dev-code-[A-Za-z0-9_-]+`)
)

// logsIn runs code that logs in, opens the address that it prints, and pastes the code from that page.
func (s script) logsIn(t *testing.T, username, code string) string {
	t.Helper()
	p := s.shell(t, "", code)
	p.awaitSaid(t, "&prompt=login")
	address, err := url.Parse(authorizeAddress.FindString(p.said()))
	testkit.Must(t, err)
	query := address.Query()
	query.Set("dev_user", username)
	address.RawQuery = query.Encode()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, address.String(), nil)
	testkit.Must(t, err)
	request.Header.Set("Authorization", "Bearer "+inside.Of(s.at.fabric).GlobusSecret.Reveal())
	response, err := http.DefaultClient.Do(request)
	testkit.Must(t, err)
	defer response.Body.Close()
	page, err := io.ReadAll(response.Body)
	testkit.Must(t, err)
	pasted := string(loginCode.Find(page))
	fmt.Fprintf(p.stdin, " %s \n", pasted)
	// A terminal shows what the user types.
	return strings.Replace(loginNote.ReplaceAllString(endsWell(t, p), ""), "code here: ", "code here: "+pasted+"\n", 1)
}

var (
	loginNote   = regexp.MustCompile(`(?m)^diaspora_logger: .*\n`)
	placeholder = regexp.MustCompile(`<[^<>]+>`)
)

// printed compares the output of a login with the README's, and returns what stands for its placeholders.
func printed(t *testing.T, want, said string) map[string]string {
	t.Helper()
	got := map[string]string{}
	pattern, names := regexp.QuoteMeta(strings.TrimSpace(want)), []string{}
	pattern = placeholder.ReplaceAllStringFunc(pattern, func(name string) string {
		names = append(names, strings.Trim(name, "<>"))
		return `(\S+)`
	})
	match := regexp.MustCompile("^" + pattern + "\n$").FindStringSubmatch(said)
	if match == nil {
		t.Fatalf("the login prints\n%s\nwant\n%s", said, want)
	}
	for i, name := range names {
		if before, ok := got[name]; ok && before != match[i+1] {
			t.Errorf("the login prints two values for %s", name)
		}
		got[name] = match[i+1]
	}
	return got
}

// TestPythonOriginalLogin stores logins with Python that the command then uses, and claims topics.
func TestPythonOriginalLogin(t *testing.T) {
	parallel(t)
	if !present(t, loggerPrograms) {
		return
	}
	s := newScript(t, inFabric(t, start(t, fabric.Config{})), "3.0")
	const logIn = "from diaspora_logger import request_token_workflow\nrequest_token_workflow()"
	s.logsIn(t, ada, logIn)
	name := strings.ReplaceAll(strings.TrimPrefix(s.at.cfg.URL, "http://"), ":", "-")
	s.is(t, ada, name)
	for _, file := range []string{"current", "profiles/" + name + ".json", "tokens/" + name + ".json"} {
		info, err := os.Stat(filepath.Join(s.dir, "config", file))
		testkit.Must(t, err)
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v, want 0600", file, info.Mode())
		}
	}
	s.env = append(s.env, "DIASPORA_URL=") // the profile says which fabric it is
	s.claimsTopics(t)

	s.logsIn(t, grace, logIn)
	s.is(t, grace, name+"-grace")
	s.logsIn(t, grace, logIn)
	s.is(t, grace, name+"-grace")
	s.env = append(s.env, "DIASPORA_PROFILE="+name)
	s.is(t, ada, name)

	p := s.shell(t, "", logIn)
	p.awaitSaid(t, "&prompt=login")
	fmt.Fprintln(p.stdin, "dev-code-of-somebody-else")
	<-p.ended
	if want := "LoginRequired: exchange the authorization code: Globus Auth does not accept this code"; p.err == nil || !strings.Contains(p.said(), want) {
		t.Errorf("with a wrong code, the login ends with %v and prints %q, want %q", p.err, p.said(), want)
	}
	s.is(t, ada, name)
}

// is fails unless a login is that of a user, and a profile has it.
func (s script) is(t *testing.T, username, profile string) {
	t.Helper()
	out, _ := runToEnd(t, s.env, "", s.at.bin, "whoami")
	for _, want := range []string{username, "profile " + profile + "\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("diaspora whoami prints %q, want %q", out, want)
		}
	}
}

// claimsTopics claims topics with the stored login.
func (s script) claimsTopics(t *testing.T) {
	t.Helper()
	out, _ := runToEnd(t, s.env, "", s.at.bin, "whoami", "--subject")
	subject := strings.TrimSpace(out)
	claims := func(sub string, topics ...string) *program {
		code := fmt.Sprintf("from diaspora_logger import claim_topics\nclaim_topics(%q, *%q.split())", sub, strings.Join(topics, " "))
		return s.shell(t, "", code)
	}
	one, other := s.topic+"_1", s.topic+"_2"
	out = endsWell(t, claims(subject, one, other))
	for _, topic := range []string{one, other} {
		if want := "Topic " + topic + " is yours."; !strings.Contains(out, want) {
			t.Errorf("claim_topics prints %q, want %q", out, want)
		}
		fabrictest.Log(t, fabrictest.OpenLogger(t, s.at.cfg), topic, "x")
	}
	if out, want := endsWell(t, claims(subject)), s.at.cfg.URL+"/acl?subject="+subject; !strings.Contains(out, "none is claimed") || !strings.Contains(out, want) {
		t.Errorf("claim_topics without a topic prints %q, want %q", out, want)
	}
	for sub, want := range map[string]string{
		strings.Repeat("0", 8) + subject[8:]: "the access token belongs to somebody other than the subject claim",
		subject:                              `claim topic '_x': `,
	} {
		p := claims(sub, "_x")
		<-p.ended
		if p.err == nil || !strings.Contains(p.said(), want) {
			t.Errorf("claim_topics(%q) ends with %v and prints %q, want %q", sub, p.err, p.said(), want)
		}
	}
}

// TestPythonOriginalJava has Kafka's Java clients use the file that a login writes.
func TestPythonOriginalJava(t *testing.T) {
	parallel(t)
	if !present(t, dialect{name: "diaspora_logger for Java", needs: append([]string{"java", "mvn"}, loggerPrograms.needs...)}) {
		return
	}
	s := newScript(t, inFabric(t, start(t, fabric.Config{})), "3.0")
	const logIn = "from diaspora_logger import request_token_workflow\nrequest_token_workflow(save_for_java=True)"
	readme := section{"the original's README", string(testkit.ReadFile(t, originalReadme))}
	file := filepath.Join(s.dir, "ada.properties")
	testkit.Must(t, os.WriteFile(file, []byte("security.protocol=SASL_PLAINTEXT\n"), 0o644)) // as the original wrote it
	printed(t, readme.block(t, ""), s.logsIn(t, ada, logIn))
	t.Cleanup(func() { s.revokesKey(t, file) })
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%s: %v, %v, want mode 0600", file, info.Mode(), err)
	}
	jars, err := kafkaJars()
	testkit.Must(t, err)
	tool := func(class, input string, args ...string) string {
		command := javaTool(t, s.at.brokers[0], jars, file, javaClasses[class], append([]string{"--topic", s.topic}, args...)...)
		out, _ := runToEnd(t, nil, input, command[0], command[1:]...)
		return out
	}
	tool("kafka-console-producer", "from Java\n", "--sync", "--timeout", "5")
	if out := tool("kafka-console-consumer", "", "--from-beginning", "--max-messages", "1"); out != "from Java\n" {
		t.Errorf("the consumer prints %q", out)
	}
}

var keyID = regexp.MustCompile(`key-[a-z0-9]{16}`)

// revokesKey ends the access key in a file.
func (s script) revokesKey(t *testing.T, file string) {
	id := keyID.FindString(string(testkit.ReadFile(t, file)))
	ctx, cancel := context.WithTimeout(context.Background(), testkit.Patience)
	defer cancel()
	if err := fabrictest.Client(t, s.at.cfg).RevokeKey(ctx, id); err != nil {
		t.Error(err)
	}
}

// TestPythonOriginalInstall installs the package where the original is installed.
func TestPythonOriginalInstall(t *testing.T) {
	parallel(t)
	if !present(t, loggerPrograms) {
		return
	}
	tools := python(t, "diaspora_logger/requirements.txt")
	dir := t.TempDir()
	wheels, env := filepath.Join(dir, "wheels"), filepath.Join(dir, "env")
	build := []string{"-m", "pip", "wheel", "--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", wheels}
	for _, folder := range []string{pythonFolder, loggerFolder} {
		source := filepath.Join(dir, filepath.Base(folder)) // a build writes into its folder
		testkit.Must(t, os.CopyFS(source, os.DirFS(folder)))
		build = append(build, source)
	}
	runToEnd(t, nil, "", tools, build...)

	// The original and kafka-python, as pip has installed them.
	runToEnd(t, nil, "", "python3", "-m", "venv", "--without-pip", env)
	there, err := filepath.Glob(filepath.Join(filepath.Dir(filepath.Dir(tools)), "lib", "python*", "site-packages"))
	testkit.Must(t, err)
	empty, err := filepath.Glob(filepath.Join(env, "lib", "python*", "site-packages"))
	testkit.Must(t, err)
	for _, name := range []string{"diaspora_logger", "diaspora_logger-0.0.8.dist-info", "kafka", "kafka_python-3.0.12.dist-info"} {
		testkit.Must(t, os.CopyFS(filepath.Join(empty[0], name), os.DirFS(filepath.Join(there[0], name))))
	}

	interpreter := filepath.Join(env, "bin", "python")
	pip := []string{"-m", "pip", "--python", interpreter, "install", "--no-index", "--find-links", wheels}
	runToEnd(t, nil, "", tools, append(pip, "diaspora_logger>0.0.8")...)
	if out, _ := runToEnd(t, nil, "", tools, append(pip, "diaspora_logger")...); !strings.Contains(out, "Requirement already satisfied: diaspora_logger") {
		t.Errorf("pip install diaspora_logger prints %q", out)
	}
	const code = "import diaspora_logger.examples, importlib.metadata as m; print(m.version('diaspora_logger'), diaspora_logger.KafkaConsumer.__name__)"
	if out, _ := runToEnd(t, nil, "", interpreter, "-c", code); out != "0.1.0 KafkaConsumer\n" {
		t.Errorf("what is installed prints %q", out)
	}
	left, err := filepath.Glob(filepath.Join(empty[0], "diaspora_logger*"))
	testkit.Must(t, err)
	if len(left) != 2 || filepath.Base(left[1]) != "diaspora_logger-0.1.0.dist-info" {
		t.Errorf("the environment has %q, want the new package only", left)
	}
}
