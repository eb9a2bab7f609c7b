//go:build clients

package interop

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/globusdev"
	"github.com/diaspora-streams/diaspora/internal/inside"
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"
	"github.com/diaspora-streams/diaspora/interop/clients"
)

// place is where the clients under test are and what they are given.
type place struct {
	brokers  []string
	tokenURL string
	cfg      diaspora.Config // of the person whose keys they are; the topics are Ada's
	username string          // of that person, if fabric is not nil; default: Ada
	bin      string          // the diaspora command

	fabric *fabric.Fabric // nil if it is another process
	login  []string       // names the login in the environment, if fabric is nil
}

// inFabric is a place in a fabric of this process.
func inFabric(t *testing.T, f *fabric.Fabric) place {
	t.Helper()
	return place{brokers: f.Brokers(), tokenURL: f.Discovery().TokenURL, cfg: fabrictest.As(t, f, ada), bin: buildCommand(t), fabric: f}
}

// dialect is a client in another language and one of its ways to sign in. The
// programs do one of two things, with TOPIC and GROUP in the environment: produce
// each line of standard input, or print each record that they consume.
type dialect struct {
	name  string
	needs []string // programs that must be installed

	// words are what the producer and the consumer must say when what they
	// signed in with is revoked.
	words string

	// persists says that the programs go on trying after a refusal, some of them until
	// their own delivery timeout or for ever.
	persists bool

	// acks says that the producer prints each line as it is acknowledged. The
	// others say at their end only whether all are.
	acks bool

	// start installs the client and returns its commands.
	start func(t *testing.T, s place, topic string) (commands, error)
}

type commands struct {
	produce, consume []string
	env              []string
	revoke           func() error  // what the client has signed in with
	every            time.Duration // how often the producer gets a line; default: 100 ms
}

// pythonClient runs a program in a virtual environment of its own.
func pythonClient(program, requirements, signIn string, env ...string) func(*testing.T, place, string) (commands, error) {
	return func(t *testing.T, s place, topic string) (commands, error) {
		venv, err := clients.VirtualEnv(filepath.Join("clients", requirements))
		if err != nil {
			return commands{}, err
		}
		command := []string{filepath.Join(venv, "bin", "python"), "-u", filepath.Join("clients", program)}
		c, err := s.signIn(t, signIn, topic)
		c.produce, c.consume = append(command, "produce"), append(command, "consume")
		c.env = append(c.env, "PYTHONPATH="+absolute(t, "../clients/python"), "PYTHONDONTWRITEBYTECODE=1")
		c.env = append(c.env, env...)
		return c, err
	}
}

func nodeClient(signIn string) func(*testing.T, place, string) (commands, error) {
	return func(t *testing.T, s place, topic string) (commands, error) {
		modules, err := nodeModules(t, "clients/kafkajs")
		if err != nil {
			return commands{}, err
		}
		command := []string{"node", "clients/kafkajs/client.js"}
		c, err := s.signIn(t, signIn, topic)
		c.produce, c.consume = append(command, "produce"), append(command, "consume")
		c.env = append(c.env, "NODE_PATH="+modules, "KAFKAJS_NO_PARTITIONER_WARNING=1", "DIASPORA="+s.bin)
		return c, err
	}
}

// javaClient is the stock console tools, with the file that the command writes.
func javaClient(protocol string) func(*testing.T, place, string) (commands, error) {
	return func(t *testing.T, s place, topic string) (commands, error) {
		jars, err := kafkaJars()
		if err != nil {
			return commands{}, err
		}
		file := filepath.Join(t.TempDir(), "ada.properties")
		key, err := s.createKey(t, topic, "--save-for-java="+file)
		if err != nil {
			return commands{}, err
		}
		tool := func(class string, args ...string) []string {
			return javaTool(t, s.brokers[0], jars, file, class, append([]string{"--topic", topic}, args...)...)
		}
		return commands{
			produce: tool(javaClasses["kafka-console-producer"], "--sync", "--timeout", "5"),
			consume: tool(javaClasses["kafka-console-consumer"], "--from-beginning", "--group", topic, "--command-property", "group.protocol="+protocol),
			revoke:  func() error { return fabrictest.Client(t, s.cfg).RevokeKey(testkit.Within(t), key.ID) },
		}, nil
	}
}

// javaTool is the command that runs one of Apache Kafka's own tools.
func javaTool(t *testing.T, broker, jars, properties, class string, args ...string) []string {
	archive, err := javaArchive(jars)
	testkit.Must(t, err)
	command := append(java(jars), "-XX:SharedArchiveFile="+archive, "-Dlog4j2.configurationFile="+absolute(t, "clients/java/log4j2.properties"), class, "--bootstrap-server", broker)
	if properties != "" {
		command = append(command, "--command-config", properties)
	}
	return append(command, args...)
}

// kcatClient takes the lines that `diaspora key create` prints.
func kcatClient(t *testing.T, s place, topic string) (commands, error) {
	c, err := s.signIn(t, "oauth", topic)
	if err != nil {
		return c, err
	}
	out, err := s.diaspora(c.env, "key", "create", keyName(topic))
	if err != nil {
		return c, err
	}
	_, conf, _ := strings.Cut(out, "# kcat.conf")
	_, conf, _ = strings.Cut(conf, "\nbootstrap")
	conf, _, _ = strings.Cut("bootstrap"+conf, "\n#")
	file := filepath.Join(t.TempDir(), "kcat.conf")
	if err := os.WriteFile(file, []byte(conf+"\n"), 0o600); err != nil {
		return c, err
	}
	command := []string{"kcat", "-F", file, "-E", "-X", "reconnect.backoff.max.ms=1000"}
	return commands{
		every:   10 * time.Millisecond,                                                                    // it reads its input by the kilobyte
		produce: append(command, "-P", "-t", topic, "-X", "enable.idempotence=true", "-X", "linger.ms=5"), // without, a broker that is killed may break the order
		consume: append(command, "-G", topic, "-u", "-X", "auto.offset.reset=earliest", topic),
		revoke: func() error {
			_, err := s.diaspora(c.env, "key", "revoke", keyName(topic))
			return err
		},
	}, nil
}

func keyName(topic string) string { return topic[max(0, len(topic)-60):] }

// signIn returns what a program needs in its environment to sign in.
func (s place) signIn(t *testing.T, how, topic string) (c commands, err error) {
	c.env = []string{"SIGN_IN=" + how, "TOPIC=" + topic, "GROUP=" + topic, "BOOTSTRAP=" + strings.Join(s.brokers, ",")}
	if how != "oauth" {
		key, err := s.createKey(t, topic)
		c.env = append(c.env, "KEY_ID="+key.ID, "KEY_SECRET="+key.Secret, "TOKEN_URL="+s.tokenURL)
		c.revoke = func() error { return fabrictest.Client(t, s.cfg).RevokeKey(testkit.Within(t), key.ID) }
		return c, err
	}
	if s.fabric == nil {
		c.env = append(c.env, s.login...)
		return c, nil
	}
	login, err := s.fabric.Login(testkit.Within(t), cmp.Or(s.username, ada))
	if err != nil {
		return c, err
	}
	token, _ := login.Token(globusdev.ResourceServerID)
	dir := t.TempDir()
	c.env = append(c.env, "DIASPORA_URL="+s.fabric.URL(), "DIASPORA_REFRESH="+token.RefreshToken.Reveal(), "DIASPORA_CONFIG_DIR="+dir)
	c.revoke = func() error { return revokeTokens(s.fabric, filepath.Join(dir, "tokens")) }
	return c, nil
}

// revokeTokens ends the tokens in all token files of a folder.
func revokeTokens(f *fabric.Fabric, dir string) error {
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil || len(files) == 0 {
		return fmt.Errorf("token files in %s: %v", dir, err)
	}
	for _, file := range files {
		token, err := storedToken(file)
		if err != nil {
			return err
		}
		if err := errors.Join(inside.Of(f).Globus.Revoke(token.RefreshToken), inside.Of(f).Globus.Revoke(token.AccessToken)); err != nil {
			return err
		}
	}
	return nil
}

// storedToken reads the cluster's token in a token file.
func storedToken(file string) (globus.Token, error) {
	store, err := globus.OpenStore(file)
	if err != nil {
		return globus.Token{}, err
	}
	login, err := store.Load()
	if err != nil {
		return globus.Token{}, err
	}
	token, _ := login.Token(globusdev.ResourceServerID)
	return token, nil
}

type keyDocument struct{ ID, Secret string }

// createKey makes an access key with the command.
func (s place) createKey(t *testing.T, topic string, flags ...string) (key keyDocument, err error) {
	c, err := s.signIn(t, "oauth", topic)
	if err != nil {
		return key, err
	}
	out, err := s.diaspora(c.env, append([]string{"key", "create", keyName(topic), "-o", "json"}, flags...)...)
	if err == nil {
		err = json.Unmarshal([]byte(out), &key)
	}
	return key, err
}

// diaspora runs the command.
func (s place) diaspora(env []string, args ...string) (string, error) {
	cmd := exec.Command(s.bin, args...)
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("diaspora %s: %w%s", args[0], err, stderrOf(err))
	}
	return string(out), nil
}

func stderrOf(err error) string {
	if e := (*exec.ExitError)(nil); errors.As(err, &e) {
		return ": " + string(e.Stderr)
	}
	return ""
}

const revokedToken, revokedKey = "revoked", "revoked"

var dialects = []dialect{
	{"kafka-python 2.0", []string{"python3"}, "AuthenticationFailed", true, true, pythonClient("kafka-python/client.py", "kafka-python/requirements-2.0.txt", "oauth")},
	{"kafka-python 2.3", []string{"python3"}, revokedToken, true, true, pythonClient("kafka-python/client.py", "kafka-python/requirements-2.3.txt", "oauth")},
	{"kafka-python 3.0", []string{"python3"}, revokedToken, true, true, pythonClient("kafka-python/client.py", "kafka-python/requirements-3.0.txt", "oauth")},
	{"confluent-kafka oauth", []string{"python3"}, revokedToken, false, true, pythonClient("confluent-kafka/client.py", "confluent-kafka/requirements.txt", "oauth")},
	{"confluent-kafka plain", []string{"python3"}, revokedKey, false, true, pythonClient("confluent-kafka/client.py", "confluent-kafka/requirements.txt", "plain")},
	{"confluent-kafka oidc", []string{"python3"}, revokedKey, false, true, pythonClient("confluent-kafka/client.py", "confluent-kafka/requirements.txt", "oidc")},
	{"kafkajs oauth", []string{"node", "npm"}, revokedToken, false, true, nodeClient("oauth")},
	{"kafkajs plain", []string{"node", "npm"}, revokedKey, false, true, nodeClient("plain")},
	{"Java console", []string{"java", "mvn"}, revokedKey, true, false, javaClient("classic")},
	{"kcat", []string{"kcat"}, revokedKey, true, false, kcatClient},
}

// outageDialects work on in the tests that take the broker away, beside dialects. Clients
// of both kinds sign in alike, and so many programs make the other tests slow.
var outageDialects = []dialect{
	{"confluent-kafka KIP-848", []string{"python3"}, revokedKey, false, true, pythonClient("confluent-kafka/client.py", "confluent-kafka/requirements.txt", "plain", "GROUP_PROTOCOL=consumer")},
	{"Java console KIP-848", []string{"java", "mvn"}, revokedKey, true, false, javaClient("consumer")},
	{"aiokafka", []string{"python3"}, revokedKey, true, true, pythonClient("aiokafka/client.py", "aiokafka/requirements.txt", "plain")},
}

// clientPatience bounds what a test waits for: many programs start at once.
const clientPatience = 3 * time.Minute

// stream is one client's producer and consumer at work on a topic.
type stream struct {
	dialect
	commands
	topic              string
	producer, consumer *program
	feeding            sync.WaitGroup
	stopFeeding        context.CancelFunc

	mu   sync.Mutex // guards sent
	sent int        // lines given to the producer: 0, 1, 2, …
}

// before is how many events a Logger writes to a topic first. Every client must be able to read
// them.
const before = 100

// startStreams starts clients, each on a topic of its own.
func startStreams(t *testing.T, s place, all []dialect) []*stream {
	t.Helper()
	if s.fabric != nil {
		testkit.Must(t, inside.Of(s.fabric).Globus.SetRefreshMode(globusdev.RefreshRotate))
	}
	var streams []*stream
	logger := fabrictest.OpenLogger(t, s.cfg)
	for _, d := range all {
		if !chosen.MatchString(d.name) || !present(t, d) {
			continue
		}
		topic := claim(t, s.cfg, 1)
		fabrictest.Log(t, logger, topic, fabrictest.Numbers(-before, 0)...)
		c, err := d.start(t, s, topic)
		if err != nil {
			t.Fatalf("%s: %v", d.name, err)
		}
		streams = append(streams, &stream{dialect: d, commands: c, topic: topic})
	}
	for _, s := range streams {
		s.producer, s.consumer = run(t, s.env, s.produce), run(t, s.env, s.consume)
		ctx, stop := context.WithCancel(t.Context())
		s.stopFeeding = stop
		s.feeding.Go(func() { s.feed(ctx) })
		t.Cleanup(func() { stop(); s.feeding.Wait() })
	}
	return streams
}

// chosen are the clients to test: those whose names match the expression in CLIENT.
var chosen = regexp.MustCompile(os.Getenv("CLIENT"))

// present reports whether what a client runs on is installed. In CI it must be.
func present(t *testing.T, d dialect) bool {
	t.Helper()
	for _, program := range d.needs {
		if _, err := exec.LookPath(program); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatalf("%s: %v", d.name, err)
			}
			t.Logf("\n\n*** NOT TESTED: %s, since %s is not installed ***\n", d.name, program)
			return false
		}
	}
	return true
}

// feed gives the producer a line now and then, and ends its input when told to.
func (s *stream) feed(ctx context.Context) {
	defer s.producer.stdin.Close()
	tick := time.NewTicker(cmp.Or(s.every, 100*time.Millisecond))
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-s.producer.ended:
			return
		case <-tick.C:
		}
		s.mu.Lock()
		s.sent = n + 1
		s.mu.Unlock()
		if _, err := fmt.Fprintln(s.producer.stdin, n); err != nil {
			return
		}
	}
}

func (s *stream) sentLines() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sent
}

// awaitConsumed waits until the consumer has the record n.
func (s *stream) awaitConsumed(t *testing.T, n int) {
	t.Helper()
	late := time.After(clientPatience)
	for !s.consumer.has(strconv.Itoa(n)) {
		select {
		case <-s.consumer.news:
		case <-s.consumer.ended:
			if !s.consumer.has(strconv.Itoa(n)) {
				s.fatal(t, "the consumer ended (%v) without record %d", s.consumer.err, n)
			}
		case <-s.producer.ended:
			if s.producer.err != nil {
				s.fatal(t, "the producer ended: %v", s.producer.err)
			}
			select { // it has done its work
			case <-s.consumer.news:
			case <-s.consumer.ended:
			case <-late:
				s.fatal(t, "record %d is not consumed", n)
			}
		case <-late:
			s.fatal(t, "record %d of %d is not consumed", n, s.sentLines())
		}
	}
}

// awaitMore waits until every consumer has some of the records that come from now on.
func awaitMore(t *testing.T, streams []*stream) {
	t.Helper()
	last := make([]int, len(streams))
	for i, s := range streams {
		last[i] = s.sentLines() + 20
	}
	for i, s := range streams {
		s.awaitConsumed(t, last[i])
	}
}

func (s *stream) fatal(t *testing.T, format string, args ...any) {
	t.Helper()
	t.Fatalf("%s: %s\nproducer: %s\nconsumer: %s", s.name, fmt.Sprintf(format, args...), end(s.producer.said()), end(s.consumer.said()))
}

// end is what a program said last.
func end(text string) string { return text[max(0, len(text)-4000):] }

// finishAll ends the work of all, and compares what is acknowledged, stored and
// consumed.
func finishAll(t *testing.T, streams []*stream, cfg diaspora.Config) {
	t.Helper()
	for _, s := range streams {
		s.stopFeeding()
	}
	for _, s := range streams {
		s.finish(t)
		s.check(t, cfg, true)
	}
}

// finish waits for the producer, whose input ends, to say that all is acknowledged,
// and for all to be consumed.
func (s *stream) finish(t *testing.T) {
	t.Helper()
	s.feeding.Wait()
	select {
	case <-s.producer.ended:
	case <-time.After(clientPatience):
		s.fatal(t, "the producer does not end")
	}
	if s.producer.err != nil {
		s.fatal(t, "the producer: %v", s.producer.err)
	}
	n := s.sentLines()
	if got := len(s.producer.lines()); s.acks && got != n {
		s.fatal(t, "the producer ended well with %d of %d records acknowledged", got, n)
	}
	s.awaitConsumed(t, n-1)
}

// check compares what is acknowledged with what the cluster has and, if the work
// is complete, with what was consumed.
func (s *stream) check(t *testing.T, cfg diaspora.Config, complete bool) {
	t.Helper()
	acknowledged := s.producer.lines()
	if !s.acks && complete {
		acknowledged = fabrictest.Numbers(0, s.sentLines())
	}
	stored := map[string]int{}
	last, disorder := -before-1, 0
	for _, r := range fabrictest.ReadAll(t, cfg, s.topic) {
		n, err := strconv.Atoi(string(r.Value))
		if err != nil {
			t.Errorf("%s: the cluster has %q", s.name, r.Value)
		}
		if stored[string(r.Value)]++; stored[string(r.Value)] == 1 {
			if n < last {
				disorder++
			}
			last = n
		}
	}
	lost, repeats := 0, 0
	for _, line := range acknowledged {
		if stored[line] == 0 {
			lost++
		}
	}
	for _, n := range stored {
		repeats += n - 1
	}
	unread := 0
	if complete {
		for line := range stored {
			if !s.consumer.has(line) {
				unread++
			}
		}
	}
	if lost != 0 || unread != 0 || disorder != 0 {
		t.Errorf("%s: %d acknowledged records are lost, %d not consumed, %d out of order", s.name, lost, unread, disorder)
	}
	t.Logf("%-22s %5d acknowledged, %d lost, %d repeated by the producer, %d consumed twice", s.name, len(acknowledged), lost, repeats, s.consumer.repeats())
}

// tokenLifetime is how long a login or a key lasts in TestClientsThroughExpiry.
// Less than 15 s tests something else: kafkajs logs in again ten seconds ahead of
// the end, with each request if there are fewer, and librdkafka after 80 and 90
// percent, which leaves a busy machine 1.5 s.
func tokenLifetime(t *testing.T) time.Duration {
	value := os.Getenv("TOKENS")
	if value == "" {
		return 15 * time.Second
	}
	lifetime, err := time.ParseDuration(value)
	if err != nil {
		t.Fatalf("TOKENS: %v", err)
	}
	return lifetime
}

// TestClientsThroughExpiry has every client at work for two and a half times as
// long as what it signed in with is good.
func TestClientsThroughExpiry(t *testing.T) {
	parallel(t)
	lifetime := tokenLifetime(t)
	f := start(t, fabric.Config{Dir: t.TempDir(), AccessTokenLifetime: lifetime, RevocationInterval: time.Second})
	streams := startStreams(t, inFabric(t, f), dialects)
	for _, s := range streams {
		s.awaitConsumed(t, 0)
	}
	began := time.Now()
	for time.Since(began) < 5*lifetime/2 {
		for _, s := range streams {
			s.awaitConsumed(t, s.sentLines()-1)
		}
	}
	t.Logf("tokens of %v; %v since the last client has started", lifetime, time.Since(began).Round(time.Second))
	finishAll(t, streams, fabrictest.As(t, f, ada))
}

// TestClientsThroughRestart takes the broker away from under every client.
func TestClientsThroughRestart(t *testing.T) {
	parallel(t)
	config := fabric.Config{Dir: t.TempDir()}
	f := start(t, config)
	streams := startStreams(t, inFabric(t, f), slices.Concat(dialects, outageDialects))
	for _, s := range streams {
		s.awaitConsumed(t, 20)
	}
	f = stopBroker(t, f, config)()
	awaitMore(t, streams)
	finishAll(t, streams, fabrictest.As(t, f, ada))
}

// TestClientsRevoked revokes what each client has signed in with: it is cut off
// within the bound, says why, and those that can tell a refusal from an outage end.
func TestClientsRevoked(t *testing.T) {
	parallel(t)
	// A fifth of what a fabric on one machine promises: a busy machine needs some. To
	// say so takes clients longer than to be cut off: they have to connect again.
	const interval, cut, saying = 2 * time.Second, 10 * time.Second, 45 * time.Second
	f := start(t, fabric.Config{RevocationInterval: interval})
	streams := startStreams(t, inFabric(t, f), dialects)
	for _, s := range streams {
		s.awaitConsumed(t, 20)
	}
	var refusals []*refusal
	revoked := time.Now()
	for _, s := range streams {
		if err := s.revoke(); err != nil {
			t.Errorf("%s: revoke: %v", s.name, err)
		}
		refusals = append(refusals, s.watch(t, "producer", s.producer), s.watch(t, "consumer", s.consumer))
	}
	cfg := fabrictest.As(t, f, ada)
	for _, r := range refusals {
		select {
		case <-r.done:
		case <-time.After(clientPatience):
			r.fatal(t, "the %s goes on after the revocation: %q is not said, or it does not end", r.what, r.words)
		}
		if last := r.p.lastLine().Sub(revoked); last > cut {
			t.Errorf("%s: the %s gets records through for %v after the revocation, want %v at most", r.name, r.what, last, cut)
		}
		if r.said == 0 || r.said > saying {
			t.Errorf("%s: the %s says %q after %v, want it within %v (0 is never)\n%s", r.name, r.what, r.words, r.said, saying, end(r.p.said()))
		}
		if !r.persists && r.p.err == nil {
			t.Errorf("%s: the %s ends as if all were well", r.name, r.what)
		}
		t.Logf("%-22s %s refused after %v: %s", r.name, r.what, r.said.Round(100*time.Millisecond), sentence(r.p.said(), r.words))
	}
	for _, s := range streams {
		s.check(t, cfg, false)
	}
}

// refusal is what becomes of a program that is revoked.
type refusal struct {
	*stream
	what string
	p    *program
	done chan struct{} // closed when it has said why and, unless it persists, has ended
	said time.Duration // after how long it said so; set before done is closed, 0 if never
}

// watch waits until a program says why it is refused, or the test ends.
func (s *stream) watch(t *testing.T, what string, p *program) *refusal {
	r := &refusal{stream: s, what: what, p: p, done: make(chan struct{})}
	began := time.Now()
	go func() {
		defer close(r.done)
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			if r.said == 0 && strings.Contains(p.said(), s.words) {
				r.said = time.Since(began)
			}
			if r.said != 0 && s.persists {
				return
			}
			select {
			case <-p.ended:
				if r.said == 0 && strings.Contains(p.said(), s.words) {
					r.said = time.Since(began)
				}
				return
			case <-t.Context().Done():
				return
			case <-tick.C:
			}
		}
	}()
	return r
}

// sentence is the line of a text that has the words.
func sentence(text, words string) string {
	for line := range strings.Lines(text) {
		if strings.Contains(line, words) {
			return strings.TrimSpace(line)
		}
	}
	return ""
}

// program is a running client.
type program struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stderr tail
	news   chan struct{} // gets one when there are lines
	ended  chan struct{}
	err    error // how it ended; set before ended is closed

	mu   sync.Mutex // guards the fields below
	seen map[string]int
	all  []string
	last time.Time // when the last of all came
}

// run starts a program, which ends with the test at the latest.
func run(t *testing.T, env, command []string) *program {
	t.Helper()
	p := &program{cmd: exec.Command(command[0], command[1:]...), news: make(chan struct{}, 1), ended: make(chan struct{}), seen: map[string]int{}}
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stderr = &p.stderr
	var err error
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	stdout, err := p.cmd.StdoutPipe()
	testkit.Must(t, err)
	testkit.Must(t, p.cmd.Start())
	go func() {
		defer close(p.ended)
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			p.add(lines.Text())
		}
		p.err = p.cmd.Wait()
	}()
	t.Cleanup(func() {
		p.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-p.ended:
		case <-time.After(10 * time.Second):
			p.cmd.Process.Kill()
			<-p.ended
		}
	})
	return p
}

// add takes a line of the program's output. Numbers are records; the rest is talk.
func (p *program) add(line string) {
	if _, err := strconv.Atoi(line); err != nil {
		fmt.Fprintln(&p.stderr, line)
		return
	}
	p.mu.Lock()
	if p.seen[line]++; p.seen[line] == 1 {
		p.all = append(p.all, line)
	}
	p.last = time.Now()
	p.mu.Unlock()
	select {
	case p.news <- struct{}{}:
	default:
	}
}

func (p *program) has(line string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.seen[line] > 0
}

func (p *program) lines() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.all...)
}

func (p *program) lastLine() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.last
}

func (p *program) repeats() (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, times := range p.seen {
		n += times - 1
	}
	return n
}

func (p *program) said() string { return p.stderr.String() }

// tail keeps the end of what is written to it.
type tail struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (t *tail) Write(data []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf.Write(data)
	const limit = 1 << 20
	if over := t.buf.Len() - limit; over > 0 {
		t.buf.Next(over)
	}
	return len(data), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.buf.String()
}
