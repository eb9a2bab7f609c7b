//go:build clients && !kafka

package interop

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/diaspora-streams/diaspora/internal/broker"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// serveOperators serves an engine without a gateway, to clients that no ACL binds. It
// returns the address.
func serveOperators(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	testkit.Must(t, err)
	b, err := broker.Open(broker.Config{Dir: t.TempDir(), Advertise: listener.Addr().String()})
	testkit.Must(t, err)
	t.Cleanup(func() {
		if err := errors.Join(listener.Close(), b.Close()); err != nil {
			t.Error(err)
		}
	})
	relay := func(to, from net.Conn) {
		io.Copy(to, from)
		to.Close()
		from.Close()
	}
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			inner, err := dialEngine(context.Background(), b, "")
			if err != nil {
				client.Close()
				continue
			}
			go relay(inner, client)
			go relay(client, inner)
		}
	}()
	return listener.Addr().String()
}

// TestClientsJavaOperator runs those tools of Apache Kafka that take an operator.
func TestClientsJavaOperator(t *testing.T) {
	parallel(t)
	if !chosen.MatchString("Java tools") || !present(t, dialect{name: "Java tools", needs: []string{"java", "mvn"}}) {
		return
	}
	jars, err := kafkaJars()
	testkit.Must(t, err)
	j := javaTools{broker: serveOperators(t), jars: jars}
	topic := unique(t)
	j.changesTopics(t, topic)
	j.deletesGroups(t, topic)
	j.changesACLs(t, topic)
	j.asksTheCluster(t, topic)
	j.isNotOffered(t, topic)
	j.works(t, "kafka-topics --delete --topic "+topic, "")
	j.refused(t, "kafka-topics --describe --topic "+topic, "IllegalArgumentException") // "does not exist"
}

// changesTopics makes a topic, gives it partitions and settings, and deletes records.
func (j javaTools) changesTopics(t *testing.T, topic string) {
	j.works(t, "kafka-topics --create --partitions 2 --replication-factor 1 --config retention.ms=3600000 --topic "+topic, "", "Created topic "+topic)
	j.works(t, "kafka-topics --create --if-not-exists --partitions 2 --topic "+topic, "")
	j.refused(t, "kafka-topics --create --partitions 2 --topic "+topic, "TopicExistsException")
	j.refused(t, "kafka-topics --create --topic "+topic+"-wide --replication-factor 3", "InvalidReplicationFactorException")
	j.refused(t, "kafka-topics --create --topic "+topic+"-compact --config cleanup.policy=compact", "InvalidConfigurationException")
	j.works(t, "kafka-topics --alter --partitions 3 --topic "+topic, "")
	j.refused(t, "kafka-topics --alter --partitions 1 --topic "+topic, "InvalidPartitionsException")
	j.works(t, "kafka-topics --describe --topic "+topic, "", `PartitionCount: 3\b.*retention.ms=3600000`, `Partition: 2\s+Leader: 0\s+Replicas: 0\s+Isr: 0`)
	if out := j.run(t, "kafka-topics --describe --under-replicated-partitions", ""); strings.TrimSpace(out) != "" {
		t.Errorf("under-replicated partitions: %s", out)
	}

	configs := "--entity-type topics --entity-name " + topic
	j.works(t, "kafka-configs --alter --add-config retention.ms=7200000,max.message.bytes=2000000 "+configs, "", "Completed updating")
	j.works(t, "kafka-configs --describe "+configs, "", `retention\.ms=7200000 sensitive=false synonyms=\{DYNAMIC_TOPIC_CONFIG:retention\.ms=7200000`, `max\.message\.bytes=2000000`)
	j.works(t, "kafka-configs --alter --delete-config max.message.bytes "+configs, "", "Completed updating")
	j.refused(t, "kafka-configs --alter --add-config retention.ms=soon "+configs, "InvalidConfigurationException")
	j.refused(t, "kafka-configs --alter --add-config no.such.config=1 "+configs, "InvalidConfigurationException")

	j.works(t, "kafka-producer-perf-test --num-records 300 --record-size 10 --throughput -1 --topic "+topic, "", `300 records sent`)
	records := filepath.Join(t.TempDir(), "records.json")
	testkit.Must(t, os.WriteFile(records, []byte(`{"version": 1, "partitions": [{"topic": "`+topic+`", "partition": 0, "offset": -1}]}`), 0o600))
	j.works(t, "kafka-delete-records --offset-json-file "+records, "", `partition: `+topic+`-0\s+low_watermark: \d+`)
	start, end := j.run(t, "kafka-get-offsets --time earliest --topic-partitions "+topic+":0", ""), j.run(t, "kafka-get-offsets --time latest --topic-partitions "+topic+":0", "")
	if start != end {
		t.Errorf("all records of a partition are deleted, and it begins at %q and ends at %q", start, end)
	}
}

// deletesGroups deletes the offsets of a group, and groups.
func (j javaTools) deletesGroups(t *testing.T, topic string) {
	j.works(t, "kafka-verifiable-producer --max-messages 30 --topic "+topic, "", `"acked":30,`)
	for _, protocol := range []string{"classic", "consumer"} {
		tool := "kafka-consumer-groups --group " + topic + "-" + protocol
		j.works(t, "kafka-verifiable-consumer --reset-policy earliest --max-messages 10 --topic "+topic+" --group-id "+topic+"-"+protocol+" --group-protocol "+protocol, "", `"shutdown_complete"`)
		// A partition of the topic may begin at 300, so this does not look for the offset 10.
		j.works(t, tool+" --describe --offsets", "", topic+` +\d +\d+ +\d+ +\d+ `)
		j.works(t, tool+" --delete-offsets --topic "+topic, "", `Request succeeded for deleting offsets`)
		j.works(t, tool+" --delete", "", `Deletion of requested consumer groups .* was successful`)
		j.refused(t, tool+" --describe", "GroupIdNotFoundException")
		j.refused(t, tool+" --delete", "GroupIdNotFoundException")
	}
}

// changesACLs adds, lists and removes ACLs.
func (j javaTools) changesACLs(t *testing.T, topic string) {
	acl := " --allow-principal User:ada --operation Read --topic " + topic
	j.works(t, "kafka-acls --list --topic "+topic, "")
	j.works(t, "kafka-acls --add"+acl, "", `principal=User:ada, host=\*, operation=READ, permissionType=ALLOW`)
	j.works(t, "kafka-acls --list --topic "+topic, "", `principal=User:ada, host=\*, operation=READ, permissionType=ALLOW`)
	j.works(t, "kafka-acls --remove --force"+acl, "")
	if out := j.run(t, "kafka-acls --list --topic "+topic, ""); strings.Contains(out, "User:ada") {
		t.Errorf("the ACL is removed, and listed:\n%s", out)
	}
}

// asksTheCluster asks what only an operator may know.
func (j javaTools) asksTheCluster(t *testing.T, topic string) {
	j.works(t, "kafka-log-dirs --describe --topic-list "+topic, "", `"partition":"`+topic+`-2","size":\d+`)
	j.works(t, "kafka-configs --describe --entity-type brokers --entity-name 0 --all", "", `log\.retention\.hours=168`)
	j.works(t, "kafka-configs --describe --entity-type brokers --entity-default", "")
	j.works(t, "kafka-reassign-partitions --list", "", `No partition reassignments found`)
}

// isNotOffered tries what the engine does not have. Each tool fails, and says why.
func (j javaTools) isNotOffered(t *testing.T, topic string) {
	// Without --timeout-ms the share consumer logs the same, and goes on to wait for records.
	j.refused(t, "kafka-console-share-consumer --timeout-ms 1000 --group "+topic+"-share --topic "+topic, "UnsupportedVersionException")
	j.refused(t, "kafka-configs --describe --entity-type users", "UnsupportedVersionException") // quotas
	j.refused(t, "kafka-producer-perf-test --num-records 1 --record-size 1 --throughput -1 --transactional-id x --topic "+topic, "TransactionalIdAuthorizationException")
	j.works(t, "kafka-transactions list", "", `The node does not support LIST_TRANSACTIONS`)
	j.works(t, "kafka-transactions describe --transactional-id x", "", `failed due to authorization failure`)
}

// operatorChecks are programs that administer a broker.
var operatorChecks = []struct {
	name, needs, program, requirements string
	quiet                              bool // the client logs nothing, unless something is wrong
}{
	{"confluent-kafka", "python3", "confluent-kafka/administer.py", "confluent-kafka/requirements.txt", true},
	{"kafka-python 2.0", "python3", "kafka-python/administer.py", "kafka-python/requirements-2.0.txt", true},
	{"kafka-python 2.3", "python3", "kafka-python/administer.py", "kafka-python/requirements-2.3.txt", true},
	{"kafka-python 3.0", "python3", "kafka-python/administer.py", "kafka-python/requirements-3.0.txt", true},
	{"aiokafka", "python3", "aiokafka/administer.py", "aiokafka/requirements.txt", true},
	{"kafkajs", "node", "kafkajs/administer.js", "", true},
}

// TestClientsOperator has clients make, change and delete topics, groups and ACLs.
func TestClientsOperator(t *testing.T) {
	parallel(t)
	var address string
	for _, c := range operatorChecks {
		if !chosen.MatchString(c.name) || !present(t, dialect{name: c.name, needs: []string{c.needs}}) {
			continue
		}
		if address == "" {
			address = serveOperators(t)
		}
		t.Run(c.name, func(t *testing.T) {
			runCheck(t, c.program, c.requirements, c.quiet, []string{"BOOTSTRAP=" + address, "TOPIC=" + unique(t)})
		})
	}
}
