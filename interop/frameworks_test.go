//go:build clients

package interop

import (
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"
	"github.com/diaspora-streams/diaspora/interop/clients"
)

// frameworks returns the jars of Kafka Connect and Kafka Streams.
func frameworks(t *testing.T) string {
	t.Helper()
	const pom = "clients/java/frameworks.xml"
	dir, err := clients.Installed("frameworks", pom, func(dir string) error {
		return clients.Quietly("mvn", "-q", "-B", "-f", pom, "dependency:copy-dependencies", "-DoutputDirectory="+dir)
	})
	testkit.Must(t, err)
	return dir
}

// framework is the beginning of a command that runs one of them.
func framework(jars string) []string {
	return []string{"java", "-Xmx256m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
		"-Dorg.slf4j.simpleLogger.log.org.apache.kafka.connect.runtime.rest.RestServer=info", "-cp", jars + "/*"}
}

// claimAlso claims a topic of which the name begins with that of the example.
func (e example) claimAlso(t *testing.T, suffix string) {
	t.Helper()
	if _, err := fabrictest.Client(t, e.cfg).Claim(testkit.Within(t), diaspora.ClaimRequest{Name: e.topic + suffix, Partitions: 1, RetentionMS: -1}); err != nil {
		t.Fatal(err)
	}
}

// TestSoftwareConnect runs Kafka Connect as docs/clients.md shows it, and tries what it says of
// distributed mode.
func TestSoftwareConnect(t *testing.T) {
	parallel(t)
	if !chosen.MatchString("Kafka Connect") || !present(t, dialect{name: "Kafka Connect", needs: []string{"java", "mvn"}}) {
		return
	}
	jars := frameworks(t)
	f := start(t, fabric.Config{})
	at, page := inFabric(t, f), pageSection(t, "Kafka Connect")
	connectors := page.blocks(t, "json", 2)
	connect := func(t *testing.T, e example, mode, settings string, connectors ...string) *program {
		t.Helper()
		found, err := filepath.Glob(filepath.Join(jars, "connect-file-*.jar"))
		if err != nil || len(found) != 1 {
			t.Fatalf("the connectors for files: %q, %v", found, err)
		}
		testkit.Must(t, os.Symlink(found[0], filepath.Join(e.dir, "connect-file.jar")))
		command := append(framework(jars), "org.apache.kafka.connect.cli."+mode, e.write(t, "worker.properties", settings+"listeners=http://127.0.0.1:0\n"))
		for i, connector := range connectors {
			command = append(command, e.write(t, strconv.Itoa(i)+".json", connector))
		}
		return run(t, nil, command)
	}

	t.Run("standalone", func(t *testing.T) {
		e, settings := newExample(t, at), page.block(t, "properties")
		e.append(t, "readings.log", pageEvent+"\n")
		p := connect(t, e, "ConnectStandalone", settings, connectors...)
		e.holds(t, pageEvent, p)
		p.awaitFile(t, filepath.Join(e.dir, "archive.txt"), pageEvent+"\n")
		p.kill()
		p = connect(t, e.wrong(t), "ConnectStandalone", settings, connectors...)
		p.awaitSaid(t, page.onWrongSecret(t))
		p.kill()
	})

	t.Run("distributed", func(t *testing.T) {
		e := newExample(t, at)
		settings, _, _ := strings.Cut(page.block(t, "properties"), "offset.storage.file.filename")
		settings += "plugin.path=/opt/connectors/connect-file.jar\ngroup.id=analysis\nconfig.storage.topic=weather_configs\n" +
			"offset.storage.topic=weather_offsets\nstatus.storage.topic=weather_status\noffset.storage.partitions=1\nstatus.storage.partitions=1\n"
		topics := []string{"_configs", "_offsets", "_status"}
		for _, name := range topics {
			e.claimAlso(t, name)
		}
		p := connect(t, e, "ConnectDistributed", settings)
		p.awaitSaid(t, "required to have 'cleanup.policy=compact'")
		p.kill()
		if !engineIsApache {
			return
		}
		compact := true
		for _, name := range topics {
			_, err := fabrictest.Client(t, e.cfg).Set(testkit.Within(t), e.topic+name, diaspora.TopicSettings{Compact: &compact})
			testkit.Must(t, err)
		}
		testkit.Must(t, os.Remove(filepath.Join(e.dir, "connect-file.jar")))
		e.append(t, "readings.log", pageEvent+"\n")
		p = connect(t, e, "ConnectDistributed", settings)
		p.awaitSaid(t, "REST server listening at")
		url := restServer.FindStringSubmatch(p.said())[1] + "connectors"
		for ctx := testkit.Within(t); ; { // it answers 503 until it knows what its topics have
			request, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader(e.fill(connectors[0])))
			testkit.Must(t, err)
			request.Header.Set("Content-Type", "application/json")
			response, err := http.DefaultClient.Do(request)
			if err != nil {
				t.Fatalf("%v\n%s", err, end(p.said()))
			}
			response.Body.Close()
			if response.StatusCode == http.StatusCreated {
				break
			}
		}
		e.holds(t, pageEvent, p)
		p.stop(t)

		// The next worker finds in those topics which connector there is, and which lines it has sent.
		const next = `{"temperature": 22.0}`
		testkit.Must(t, os.Remove(filepath.Join(e.dir, "connect-file.jar")))
		e.append(t, "readings.log", next+"\n")
		p = connect(t, e, "ConnectDistributed", settings)
		consumer := fabrictest.OpenConsumer(t, e.cfg, diaspora.ConsumerOptions{Topics: []string{e.topic}})
		if got := values(fabrictest.Read(t, consumer, 2)); got != pageEvent+" "+next {
			t.Errorf("the topic has %s, want each line once", got)
		}
		p.kill()
	})
}

var restServer = regexp.MustCompile(`REST server listening at (http://[^,\s]+)`)

// awaitFile waits until a file that the program writes has the text.
func (p *program) awaitFile(t *testing.T, file, text string) {
	t.Helper()
	late := time.After(clientPatience)
	for {
		if data, err := os.ReadFile(file); err == nil && string(data) == text {
			return
		}
		select {
		case <-p.ended:
			t.Fatalf("%s ended: %v\n%s", p.cmd.Args[0], p.err, end(p.said()))
		case <-late:
			t.Fatalf("%s has not %q\n%s", file, text, end(p.said()))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// TestSoftwareStreams runs the program of docs/clients.md with Kafka Streams, and tries what the page
// says of state.
func TestSoftwareStreams(t *testing.T) {
	parallel(t)
	if !chosen.MatchString("Kafka Streams") || !present(t, dialect{name: "Kafka Streams", needs: []string{"javac", "mvn"}}) {
		return
	}
	jars := frameworks(t)
	f := start(t, fabric.Config{})
	at, page := inFabric(t, f), pageSection(t, "Kafka Streams")

	t.Run("stateless", func(t *testing.T) {
		e := newExample(t, at)
		alerts := e
		alerts.topic += "_alerts"
		e.claimAlso(t, "_alerts")
		fabrictest.Log(t, fabrictest.OpenLogger(t, e.cfg), e.topic, `{"pressure": 1013}`, pageEvent)
		key := testkit.ReadFile(t, e.keyForJava(t))
		p := run(t, nil, append(framework(jars), e.write(t, "Alerts.java", page.block(t, "java"))))

		alerts.holds(t, pageEvent, p)
		p.kill()
		wrong := e.wrong(t)
		wrong.write(t, "key.properties", regexp.MustCompile("dks_[^\"]+").ReplaceAllString(string(key), wrong.key.Secret))
		p = run(t, nil, append(framework(jars), wrong.write(t, "Alerts.java", page.block(t, "java"))))
		p.awaitSaid(t, page.onWrongSecret(t))
		p.kill()
	})
	counts := func(t *testing.T, e example, how string) *program {
		t.Helper()
		settings := testkit.ReadFile(t, e.keyForJava(t))
		event := diaspora.Event{Topic: e.topic, Key: []byte("key"), Value: []byte("x")}
		testkit.Must(t, fabrictest.OpenLogger(t, e.cfg).Log(testkit.Within(t), event))
		file := e.write(t, "settings.properties", string(settings)+"bootstrap.servers=127.0.0.1:9092\napplication.id=analysis\nauto.offset.reset=earliest\nstate.dir="+e.dir+"\n")
		return run(t, nil, append(framework(jars), "clients/streams/Counts.java", file, e.topic, e.topic+"_counts", how))
	}
	for how, words := range map[string]string{
		"unlogged":     "",
		"counts":       "Could not create topic",
		"regrouped":    "Not authorized to access topics",
		"exactly-once": "TransactionalIdAuthorizationException",
	} {
		t.Run(how, func(t *testing.T) {
			e := newExample(t, at)
			e.claimAlso(t, "_counts")
			p := counts(t, e, how)
			if words == "" {
				e.topic += "_counts"
				e.holds(t, "1", p)
			} else {
				p.awaitSaid(t, words)
			}
			p.kill()
		})
	}
	if engineIsApache {
		t.Run("allowed", func(t *testing.T) {
			e := newExample(t, at)
			e.claimAlso(t, "_counts")
			person, err := fabrictest.Client(t, e.cfg).Identity(testkit.Within(t))
			testkit.Must(t, err)
			acl := kadm.NewACLs().Topics(e.topic + "-").ResourcePatternType(kadm.ACLPatternPrefixed).Operations(kadm.OpAll).
				Allow("User:" + person.Subject).AllowHosts("*")
			if created, err := fabrictest.Admin(t, f).CreateACLs(testkit.Within(t), acl); err != nil || created[0].Err != nil {
				t.Fatal(created, err)
			}
			p := counts(t, e, "regrouped")
			e.topic += "_counts"
			e.holds(t, "1", p)
			p.kill()
		})
	}
}

// TestSoftwareFaust runs the program of docs/clients.md with faust, twice, since its table has to survive.
func TestSoftwareFaust(t *testing.T) {
	parallel(t)
	if !chosen.MatchString("faust") || !present(t, dialect{name: "faust", needs: []string{"python3"}}) {
		return
	}
	f := start(t, fabric.Config{})
	page, e := pageSection(t, "faust"), newExample(t, inFabric(t, f))
	e.claimAlso(t, "_counts")
	p := startFaust(t, page, e)
	counted := p.awaitCount(t, 0)
	p.cmd.Process.Signal(syscall.SIGTERM) // faust commits as it ends
	<-p.ended
	p = startFaust(t, page, e)
	p.awaitCount(t, counted)
	p.kill()

	p = startFaust(t, page, e.wrong(t))
	p.awaitSaid(t, page.onWrongSecret(t))
	p.kill()
	page.text = strings.Replace(page.text, "    topic_disable_leader=True,\n    topic_allow_declare=False,\n", "", 1)
	p = startFaust(t, page, e)
	p.awaitSaid(t, "Cannot create topic")
	p.kill()
}

// startFaust starts a worker that knows of its tables what is in their topics.
func startFaust(t *testing.T, page section, e example) *program {
	t.Helper()
	command := []string{python(t, "faust/requirements.txt"), e.write(t, "beamline.py", page.block(t, "python"))}
	return run(t, nil, append(command, "--datadir="+t.TempDir(), "worker", "--loglevel=warn", "--without-web"))
}

var eventCount = regexp.MustCompile(`\b(\d+) ` + regexp.QuoteMeta(pageEvent))

// awaitCount waits for the first count that the program prints, which must be larger than one from before.
func (p *program) awaitCount(t *testing.T, before int) int {
	t.Helper()
	p.awaitSaid(t, pageEvent)
	match := eventCount.FindStringSubmatch(p.said())
	if match == nil {
		t.Fatalf("the program counts nothing:\n%s", end(p.said()))
	}
	count, err := strconv.Atoi(match[1])
	if err != nil || count <= before {
		t.Fatalf("the program counts %d, %v, want more than %d:\n%s", count, err, before, end(p.said()))
	}
	return count
}
