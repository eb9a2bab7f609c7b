//go:build clients

package interop

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"
	"github.com/diaspora-streams/diaspora/interop/clients"
)

// javaTools runs Apache Kafka's own tools, one after the other.
type javaTools struct {
	broker, jars string
	file         string // of the settings to sign in with, or empty
}

const kafkaTools = "org.apache.kafka.tools."

// javaClasses are the tools by the names of their scripts.
var javaClasses = map[string]string{
	"kafka-topics":              kafkaTools + "TopicCommand",
	"kafka-consumer-groups":     kafkaTools + "consumer.group.ConsumerGroupCommand",
	"kafka-groups":              kafkaTools + "GroupsCommand",
	"kafka-get-offsets":         kafkaTools + "GetOffsetShell",
	"kafka-configs":             "kafka.admin.ConfigCommand",
	"kafka-acls":                kafkaTools + "AclCommand",
	"kafka-log-dirs":            kafkaTools + "LogDirsCommand",
	"kafka-delete-records":      kafkaTools + "DeleteRecordsCommand",
	"kafka-broker-api-versions": kafkaTools + "BrokerApiVersionsCommand",
	"kafka-console-producer":    kafkaTools + "ConsoleProducer",
	"kafka-console-consumer":    kafkaTools + "consumer.ConsoleConsumer",
	"kafka-verifiable-producer": kafkaTools + "VerifiableProducer",
	"kafka-verifiable-consumer": kafkaTools + "VerifiableConsumer",
	"kafka-producer-perf-test":  kafkaTools + "ProducerPerformance",
	"kafka-consumer-perf-test":  kafkaTools + "ConsumerPerformance",
	"kafka-transactions":        kafkaTools + "TransactionsCommand",

	"kafka-console-share-consumer": kafkaTools + "consumer.ConsoleShareConsumer",
	"kafka-reassign-partitions":    kafkaTools + "reassign.ReassignPartitionsCommand",
	"kafka-leader-election":        kafkaTools + "LeaderElectionCommand",
	"kafka-features":               kafkaTools + "FeatureCommand",
	"kafka-client-metrics":         kafkaTools + "ClientMetricsCommand",
}

// command is the command that line stands for.
func (j javaTools) command(t *testing.T, line string) []string {
	t.Helper()
	words := strings.Fields(line)
	class, ok := javaClasses[words[0]]
	if !ok {
		t.Fatalf("unknown tool %s", words[0])
	}
	return javaTool(t, j.broker, j.jars, j.file, class, words[1:]...)
}

// run runs a tool to its end and returns what it printed.
func (j javaTools) run(t *testing.T, line, input string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), clientPatience)
	defer cancel()
	command := j.command(t, line)
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Stdin = strings.NewReader(input)
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		t.Fatalf("%s: does not end: %v\n%s", line, err, out)
	}
	return string(out)
}

// exceptions are the names of Java's exceptions.
var exceptions = regexp.MustCompile(`\w+(Exception|Error)\b`)

// complaint matches the name of an exception, and a line that a tool logs: no more than
// warnings and errors are logged.
var complaint = regexp.MustCompile(exceptions.String() + `|(?m)^(WARN|ERROR|FATAL)\b`)

// impatience is what a Java client says that takes long to sign in, on a busy machine.
var impatience = regexp.MustCompile(`(?m)^WARN .*Bootstrap broker .* disconnected.*$`)

// complains tells whether a tool has logged that something is wrong.
func complains(said string) bool {
	return complaint.MatchString(impatience.ReplaceAllString(said, ""))
}

// works runs a tool, which must say all of words and must not complain.
func (j javaTools) works(t *testing.T, line, input string, words ...string) {
	t.Helper()
	out := j.run(t, line, input)
	if complains(out) {
		t.Errorf("%s: complains:\n%s", line, out)
	}
	for _, word := range words {
		if !regexp.MustCompile(word).MatchString(out) {
			t.Errorf("%s: does not say %q:\n%s", line, word, out)
		}
	}
}

// refused runs a tool, which must fail with an exception and no other, and must say all of words.
// Most tools print the stack of the exception, so the stack is no complaint.
func (j javaTools) refused(t *testing.T, line, exception string, words ...string) {
	t.Helper()
	out := j.run(t, line, "")
	all := exceptions.FindAllString(out, -1)
	others := slices.DeleteFunc(slices.Clone(all), func(name string) bool {
		return name == exception || name == "ExecutionException" || name == "RuntimeException" // which wrap another
	})
	if !slices.Contains(all, exception) || len(others) != 0 {
		t.Errorf("%s: want %s only:\n%s", line, exception, out)
	}
	for _, word := range words {
		if !strings.Contains(out, word) {
			t.Errorf("%s: does not say %q:\n%s", line, word, out)
		}
	}
}

// TestClientsJavaTools runs the tools of Apache Kafka with the access key of a user who
// owns one topic. Each works, or says that it is not authorized.
func TestClientsJavaTools(t *testing.T) {
	parallel(t)
	if !chosen.MatchString("Java tools") || !present(t, dialect{name: "Java tools", needs: []string{"java", "mvn"}}) {
		return
	}
	f := start(t, fabric.Config{})
	s := inFabric(t, f)
	topic, other := claim(t, s.cfg, 1), claim(t, fabrictest.As(t, f, grace), 1)
	j := javaTools{broker: s.brokers[0], file: filepath.Join(t.TempDir(), "ada.properties")}
	var err error
	if j.jars, err = kafkaJars(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.createKey(t, topic, "--save-for-java="+j.file); err != nil {
		t.Fatal(err)
	}
	const count = 100
	j.works(t, "kafka-console-producer --sync --timeout 5 --topic "+topic, strings.Join(fabrictest.Numbers(0, count), "\n")+"\n")

	for _, protocol := range []string{"classic", "consumer"} {
		j.consumes(t, topic, protocol, count)
	}
	j.describes(t, topic, other, count)
	j.refuses(t, topic, other)
	j.deletes(t, topic, other)
	j.isNotPassedOn(t, topic)
}

// consumes reads a topic in a group, and sees to the group, in use and after.
func (j javaTools) consumes(t *testing.T, topic, protocol string, count int) {
	group, tool := topic+"-"+protocol, "kafka-consumer-groups --group "+topic+"-"+protocol
	member := run(t, nil, j.command(t, "kafka-console-consumer --from-beginning --topic "+topic+" --group "+group+" --command-property group.protocol="+protocol))
	late := time.After(clientPatience)
	for len(member.lines()) < count {
		select {
		case <-member.news:
		case <-member.ended:
			t.Fatalf("the console consumer ended: %v\n%s", member.err, member.said())
		case <-late:
			t.Fatalf("the console consumer has %d records of %d\n%s", len(member.lines()), count, member.said())
		}
	}
	j.works(t, tool+" --describe", "", topic+` +0 .* console-consumer`)
	j.works(t, tool+" --describe --members --verbose", "", group+` .* console-consumer +1 .*`+topic+`:0`)
	j.works(t, tool+" --describe --state", "", group+` .* Stable +1\b`)
	j.works(t, tool+" --reset-offsets --execute --to-earliest --topic "+topic, "", "can only be reset if the group .* is inactive")
	member.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-member.ended:
	case <-late:
		t.Fatal("the console consumer does not end")
	}
	if said := member.said(); complains(said) {
		t.Errorf("the console consumer complains:\n%s", said)
	}

	line := topic + ` +0 +`
	j.works(t, tool+" --describe", "", fmt.Sprintf(`%s%d +%d +0 `, line, count, count))
	j.works(t, tool+" --reset-offsets --dry-run --to-earliest --topic "+topic, "", line+`0\b`)
	j.works(t, tool+" --reset-offsets --execute --to-datetime 2001-01-01T00:00:00.000 --topic "+topic, "", line+`0\b`)
	for _, to := range []string{"--to-latest", "--to-offset 7"} {
		j.works(t, tool+" --reset-offsets --execute "+to+" --all-topics", "", line+`\d+\b`)
	}
	j.works(t, tool+" --reset-offsets --execute --shift-by -5 --topic "+topic+":0", "", line+`2\b`)
	j.works(t, tool+" --describe --offsets", "", line+`2 `)
	j.works(t, "kafka-verifiable-consumer --reset-policy earliest --max-messages 10 --topic "+topic+" --group-id "+topic+"-verifiable-"+protocol+" --group-protocol "+protocol, "",
		`"records_consumed"`, `"offsets_committed".*"success":true`, `"shutdown_complete"`)
	own := "kafka-consumer-groups --group " + topic + "-verifiable-" + protocol
	j.works(t, own+" --delete-offsets --topic "+topic, "", `Request succeeded for deleting offsets`)
	j.works(t, own+" --delete", "", `Deletion of requested consumer groups .*`+topic+`-verifiable-`+protocol+`.* was successful`)
	j.refused(t, own+" --describe", "GroupIdNotFoundException")
}

// describes asks for all that the owner of a topic may see, and tries the load tools.
func (j javaTools) describes(t *testing.T, topic, other string, count int) {
	j.works(t, "kafka-topics --list", "", `(?m)^`+topic+`$`)
	j.works(t, "kafka-topics --describe", "", `Topic: `+topic+`\s.*PartitionCount: 1\s.*ReplicationFactor`)
	j.works(t, "kafka-topics --describe --topic "+topic, "", `Partition: 0\s+Leader: \d`)
	j.refused(t, "kafka-topics --describe --topic "+other, "IllegalArgumentException") // "does not exist"
	j.works(t, "kafka-consumer-groups --list --state", "", topic+`-classic +Empty`, topic+`-consumer +Empty`)
	j.works(t, "kafka-consumer-groups --list --type", "", topic+`-classic +Classic`, topic+`-consumer +Consumer`)
	j.works(t, "kafka-groups --list", "", topic+`-classic +Classic +consumer`, topic+`-consumer +Consumer +consumer`)

	for when, want := range map[string]string{
		"-1": fmt.Sprint(count), "latest": fmt.Sprint(count), "-2": "0", "earliest": "0", "1": "0", "-3": `\d+`, "max-timestamp": `\d+`,
		"-4": "0", "earliest-local": "0",
	} {
		j.works(t, "kafka-get-offsets --time "+when, "", `(?m)^`+topic+`:0:`+want+`$`)
	}
	j.works(t, "kafka-get-offsets --time latest-tiered", "") // there is none, and so no line

	j.works(t, "kafka-configs --describe --entity-type topics --entity-name "+topic, "", `message\.timestamp\.type=LogAppendTime`)
	j.works(t, "kafka-configs --describe --all --entity-type topics --entity-name "+topic, "", `max\.message\.bytes=\d+`, `segment\.bytes=\d+`)
	j.works(t, "kafka-broker-api-versions", "", `Fetch\(1\).*usable: 1\d`, `ConsumerGroupHeartbeat\(68\).*usable: 1`)
	j.works(t, "kafka-transactions describe-producers --partition 0 --topic "+topic, "", `ProducerId\s+ProducerEpoch`)
	j.works(t, "kafka-verifiable-producer --max-messages 10 --topic "+topic, "", `"acked":10,`)
	j.works(t, "kafka-producer-perf-test --num-records 1000 --record-size 100 --throughput -1 --topic "+topic, "", `1000 records sent`)
	j.works(t, "kafka-consumer-perf-test --num-records 1000 --topic "+topic, "", `, \d{4}, `)
}

// refuses tries what takes an operator, or the ACL endpoint, and the topic of somebody else.
func (j javaTools) refuses(t *testing.T, topic, other string) {
	const noTopic, noGroup, noCluster = "TopicAuthorizationException", "GroupAuthorizationException", "ClusterAuthorizationException"
	free, alter := unique(t), "kafka-configs --alter --entity-type topics --entity-name "+topic
	for line, hint := range map[string]string{
		"kafka-topics --create --topic " + free:                         "claim " + free + `"`,
		"kafka-topics --create --partitions 4 --topic " + free:          "claim " + free + ` --partitions 4"`,
		"kafka-topics --create --topic " + topic:                        "claim " + topic + `"`,
		"kafka-topics --create --topic " + other:                        "claim " + other + `"`,
		"kafka-topics --delete --topic " + topic:                        "release " + topic + `"`,
		"kafka-topics --alter --partitions 3 --topic " + topic:          "set " + topic + ` --partitions 3"`,
		alter + " --add-config retention.ms=1000":                       "set " + topic + ` --retention TIME"`,
		alter + " --add-config retention.bytes=1000,segment.bytes=1000": "set " + topic + ` --max-bytes SIZE"; owners can change only`,
		alter + " --delete-config cleanup.policy":                       "set " + topic + ` --compact"`,
	} {
		j.refused(t, line, noTopic, `: run "diaspora topic `+hint)
	}
	for line, exception := range map[string]string{
		"kafka-console-consumer --topic " + other + " --group " + topic:                                                 noTopic,
		"kafka-console-consumer --topic " + other + " --group " + topic + " --command-property group.protocol=consumer": noTopic,
		"kafka-configs --describe --entity-type brokers --entity-default":                                               noCluster,
		"kafka-log-dirs --describe": noCluster,
		"kafka-acls --list":         noCluster,
		"kafka-acls --add --allow-principal User:ada --operation Read --topic " + topic: noCluster,
	} {
		j.refused(t, line, exception)
	}
}

// deletes deletes what the owner may delete: records and groups.
func (j javaTools) deletes(t *testing.T, topic, other string) {
	file := filepath.Join(t.TempDir(), "records.json")
	records := func(topic string, offset int) string {
		testkit.Must(t, os.WriteFile(file, fmt.Appendf(nil, `{"version": 1, "partitions": [{"topic": %q, "partition": 0, "offset": %d}]}`, topic, offset), 0o600))
		return "kafka-delete-records --offset-json-file " + file
	}
	j.works(t, records(topic, 7), "", `partition: `+topic+`-0\s+low_watermark: 7`)
	j.works(t, "kafka-get-offsets --time earliest --topic "+topic, "", `(?m)^`+topic+`:0:7$`)
	j.works(t, records(topic, -1), "", `partition: `+topic+`-0\s+low_watermark: \d+`)
	j.refused(t, records(other, 1), "TopicAuthorizationException")

	classic, consumer := topic+"-classic", topic+"-consumer"
	j.works(t, "kafka-consumer-groups --delete-offsets --topic "+topic+":0 --group "+classic, "", `Request succeeded for deleting offsets`, topic+` +0 +Successful`)
	j.works(t, "kafka-consumer-groups --delete --group "+classic+" --group "+consumer, "", `Deletion of requested consumer groups .*was successful`)
	if out := j.run(t, "kafka-consumer-groups --list", ""); strings.Contains(out, topic) {
		t.Errorf("the deleted groups are still listed:\n%s", out)
	}
	j.refused(t, "kafka-consumer-groups --delete --group "+classic, "GroupIdNotFoundException")
	j.refused(t, "kafka-consumer-groups --delete-offsets --topic "+topic+" --group "+classic, "GroupIdNotFoundException")
}

// isNotPassedOn tries what the gateway does not offer, because no client could be granted it.
// Each tool says that the broker does not support it, rather than that the connection broke.
func (j javaTools) isNotPassedOn(t *testing.T, topic string) {
	const unsupported = "UnsupportedVersionException"
	configs := filepath.Join(t.TempDir(), "reassign.json")
	testkit.Must(t, os.WriteFile(configs, []byte(`{"version": 1, "partitions": [{"topic": "`+topic+`", "partition": 0, "replicas": [1]}]}`), 0o600))
	for line, exception := range map[string]string{
		"kafka-configs --describe --entity-type users":                                                                   unsupported, // SCRAM users, quotas
		"kafka-configs --alter --add-config producer_byte_rate=1 --entity-type users --entity-name ada":                  unsupported,
		"kafka-configs --alter --add-config SCRAM-SHA-256=[password=x] --entity-type users --entity-name x":              unsupported,
		"kafka-leader-election --election-type preferred --all-topic-partitions":                                         unsupported,
		"kafka-reassign-partitions --list":                                                                               unsupported,
		"kafka-reassign-partitions --execute --reassignment-json-file " + configs:                                        unsupported,
		"kafka-client-metrics --list":                                                                                    unsupported,
		"kafka-producer-perf-test --num-records 1 --record-size 1 --throughput -1 --transactional-id x --topic " + topic: "TransactionalIdAuthorizationException",
	} {
		j.refused(t, line, exception)
	}
	j.works(t, "kafka-transactions list", "", `The node does not support LIST_TRANSACTIONS`)
	j.works(t, "kafka-transactions describe --transactional-id x", "", `failed due to authorization failure`)
	if groups := "kafka-configs --describe --entity-type groups"; engineIsApache {
		j.works(t, groups, "")
	} else {
		j.refused(t, groups, "InvalidRequestException") // groups have no settings
	}
	j.works(t, "kafka-features describe", "")
	j.works(t, "kafka-features upgrade --feature transaction.version=1", "", `The node does not support UPDATE_FEATURES`)
}

// checks are programs that ask a broker for what their client can, with an access key.
var checks = []struct {
	name, needs, program, requirements string
	quiet                              bool // the client logs nothing, unless something is wrong
}{
	{"confluent-kafka", "python3", "confluent-kafka/checks.py", "confluent-kafka/requirements.txt", true},
	{"kafka-python 2.0", "python3", "kafka-python/checks.py", "kafka-python/requirements-2.0.txt", false}, // it logs an error if it is closed while a fetch waits
	{"kafka-python 2.3", "python3", "kafka-python/checks.py", "kafka-python/requirements-2.3.txt", true},
	{"kafka-python 3.0", "python3", "kafka-python/checks.py", "kafka-python/requirements-3.0.txt", true},
	{"aiokafka", "python3", "aiokafka/checks.py", "aiokafka/requirements.txt", true},
	{"kafkajs", "node", "kafkajs/checks.js", "", true},
}

// TestClientsChecks runs these programs: offsets, positions by time, groups of both
// protocols, groups that have committed nothing, and administration.
func TestClientsChecks(t *testing.T) {
	parallel(t)
	f := start(t, fabric.Config{})
	s := inFabric(t, f)
	for _, c := range checks {
		if !chosen.MatchString(c.name) || !present(t, dialect{name: c.name, needs: []string{c.needs}}) {
			continue
		}
		topic := claim(t, s.cfg, 2)
		t.Run(c.name, func(t *testing.T) {
			signIn, err := s.signIn(t, "plain", topic)
			testkit.Must(t, err)
			runCheck(t, c.program, c.requirements, c.quiet, signIn.env)
		})
	}
}

// runCheck runs a program in JavaScript, or one in Python with what a requirements file
// pins. It must end well and, if it is a quiet one, say nothing on standard error.
func runCheck(t *testing.T, program, requirements string, quiet bool, env []string) {
	t.Helper()
	file := filepath.Join("clients", program)
	command := []string{"node", file}
	if requirements == "" {
		modules, err := nodeModules(t, filepath.Dir(file))
		testkit.Must(t, err)
		env = append(env, "NODE_PATH="+modules, "KAFKAJS_NO_PARTITIONER_WARNING=1")
	} else {
		venv, err := clients.VirtualEnv(filepath.Join("clients", requirements))
		testkit.Must(t, err)
		command = []string{filepath.Join(venv, "bin", "python"), "-B", "-u", file}
	}
	out, complaints := runToEnd(t, env, "", command[0], command[1:]...)
	if quiet && complaints != "" {
		t.Errorf("complaints:\n%s", complaints)
	}
	t.Logf("passed: %s", strings.Join(strings.Split(strings.TrimSpace(out), "\n"), ", "))
}

// logged matches a line that librdkafka logs. kcat's own talk has no level.
var logged = regexp.MustCompile(`(?m)^%([0-9]\||.*ERROR).*$`)

// TestClientsKcat has kcat, and with it the librdkafka of Debian, do what it can without
// a line of complaint. With -q it would log nothing at all.
func TestClientsKcat(t *testing.T) {
	parallel(t)
	if !chosen.MatchString("kcat") || !present(t, dialect{name: "kcat", needs: []string{"kcat"}}) {
		return
	}
	f := start(t, fabric.Config{})
	s := inFabric(t, f)
	topic := claim(t, s.cfg, 2)
	key, err := s.createKey(t, topic)
	testkit.Must(t, err)
	kcat := func(input, line string) string {
		t.Helper()
		out, complaints := runToEnd(t, nil, input, "kcat", append([]string{
			"-X", "log_level=7", "-b", s.brokers[0], "-X", "security.protocol=SASL_PLAINTEXT", "-X", "sasl.mechanism=PLAIN",
			"-X", "sasl.username=" + key.ID, "-X", "sasl.password=" + key.Secret,
		}, strings.Fields(line)...)...)
		if said := logged.FindString(complaints); said != "" {
			t.Errorf("kcat %s: complains: %s", line, said)
		}
		return out
	}
	equal := func(what, got, want string) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	var want string
	for i, codec := range []string{"none", "gzip", "snappy", "lz4", "zstd"} {
		lines := strings.Join(fabrictest.Numbers(100*i, 100*(i+1)), "\n") + "\n"
		kcat(lines, "-P -p 0 -X enable.idempotence=true -z "+codec+" -t "+topic)
		want += lines
	}
	equal("from the beginning", kcat("", "-C -e -p 0 -o beginning -t "+topic), want)
	equal("the last", kcat("", "-C -e -p 0 -o -1 -t "+topic), "499\n")
	equal("since 2001", kcat("", "-C -e -p 0 -o s@1000000000000 -t "+topic), want)
	equal("in a group", kcat("", "-G "+topic+" -c 500 -X auto.offset.reset=earliest "+topic), want)
	equal("in a group, by a pattern", kcat("", "-G "+topic+"-pattern -c 500 -X auto.offset.reset=earliest ^"+topic[:len(topic)-1]+".$"), want)
	equal("in the group again", kcat("", "-G "+topic+" -e -X auto.offset.reset=earliest "+topic), "")
	equal("offset by time", kcat("", "-Q -t "+topic+":0:1000000000000"), topic+" [0] offset 0\n")
	equal("last offset", kcat("", "-Q -t "+topic+":0:-1"), topic+" [0] offset 500\n")
	if listed := kcat("", "-L -t "+topic); !strings.Contains(listed, topic+`" with 2 partitions`) {
		t.Errorf("metadata: %s", listed)
	}
	if listed := kcat("", "-L"); !strings.Contains(listed, topic+`" with 2 partitions`) {
		t.Errorf("metadata of all topics: %s", listed)
	}
}

// runToEnd runs a program, which must end well, and returns what it printed and what it
// complained of.
func runToEnd(t *testing.T, env []string, input, name string, args ...string) (out, complaints string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), clientPatience)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(cmd.Environ(), env...)
	cmd.Stdin = strings.NewReader(input)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %s: %v\n%s%s", filepath.Base(name), strings.Join(args, " "), err, stdout.String(), stderr.String())
	}
	return stdout.String(), stderr.String()
}
