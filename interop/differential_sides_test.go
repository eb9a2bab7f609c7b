//go:build kafka

package interop

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/sasl/plain"

	"github.com/diaspora-streams/diaspora/internal/apache"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// side is one of the two clusters that are compared.
type side interface {
	String() string
	// node returns the ID of the only broker.
	node() int32
	// dial connects and signs in: as a subject or, if subject is "", as the super user.
	dial(ctx context.Context, subject string) (*wire, error)
	// settle waits until the broker has applied all changes that have been answered.
	settle(ctx context.Context) error
	// epoch returns the leader epoch of partitions that are created now.
	epoch() int32
}

// embedded is the embedded engine, in its own process with one data directory.
type embedded struct {
	dir     string
	cmd     *exec.Cmd
	stdin   io.Closer
	address string
	stderr  outset
	starts  int32 // number of starts, which is the engine's leader epoch
}

func startEmbedded(t testing.TB) *embedded {
	t.Helper()
	e := &embedded{dir: t.TempDir()}
	t.Cleanup(e.stop)
	testkit.Must(t, e.start())
	return e
}

func (e *embedded) String() string { return "embedded engine" }

func (e *embedded) node() int32 { return 0 }

func (e *embedded) epoch() int32 { return e.starts }

func (e *embedded) start() error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	e.cmd = exec.Command(exe)
	e.cmd.Env = append(os.Environ(), engineDirEnv+"="+e.dir)
	e.cmd.Stderr = &e.stderr
	stdout, err := e.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if e.stdin, err = e.cmd.StdinPipe(); err != nil {
		return err
	}
	if err := e.cmd.Start(); err != nil {
		return err
	}
	e.address, err = bufio.NewReader(stdout).ReadString('\n')
	e.address = strings.TrimSpace(e.address)
	if err != nil {
		return fmt.Errorf("the embedded engine does not start: %w\n%s", err, e.stderr.String())
	}
	return e.learnEpoch(context.Background())
}

// learnEpoch requests the leader epoch of a topic. It creates the topic the first time.
func (e *embedded) learnEpoch(ctx context.Context) error {
	c, err := e.dial(ctx, "")
	if err != nil {
		return err
	}
	defer c.conn.Close()
	if err := makeTopic(ctx, c, epochTopic); err != nil {
		return err
	}
	topic := kmsg.NewMetadataRequestTopic()
	topic.Topic = pointer(epochTopic)
	ask := kmsg.NewPtrMetadataRequest()
	ask.Version, ask.Topics = 9, append(ask.Topics, topic)
	answer, err := ask.RequestWith(ctx, c)
	if err != nil {
		return err
	}
	if len(answer.Topics) != 1 || len(answer.Topics[0].Partitions) != 1 {
		return fmt.Errorf("metadata of %s: %+v", epochTopic, answer)
	}
	e.starts = answer.Topics[0].Partitions[0].LeaderEpoch
	return nil
}

// stop stops the engine cleanly, if it is running.
func (e *embedded) stop() {
	if e.cmd == nil || e.cmd.ProcessState != nil {
		return
	}
	e.stdin.Close()
	giveUp := time.AfterFunc(answerPatience, func() { e.cmd.Process.Kill() })
	defer giveUp.Stop()
	e.cmd.Wait()
}

// restart stops the engine, cleanly or by kill -9, and starts it again.
func (e *embedded) restart(kill bool) error {
	if kill {
		e.cmd.Process.Kill()
		e.cmd.Wait()
	}
	e.stop()
	return e.start()
}

// crashed restarts the engine if it has ended by itself, and describes how it ended.
func (e *embedded) crashed() string {
	conn, err := net.Dial("tcp", e.address)
	if err == nil {
		conn.Close()
		return ""
	}
	e.cmd.Wait()
	said := fmt.Sprintf("%v\n%s", e.cmd.ProcessState, e.stderr.String())
	if err := e.start(); err != nil {
		said += fmt.Sprintf("\nand does not start again: %v", err)
		os.RemoveAll(e.dir)
		if err := e.start(); err != nil {
			said += fmt.Sprintf("\nnor over an empty directory: %v", err)
		}
	}
	return said
}

func (e *embedded) dial(ctx context.Context, subject string) (*wire, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", e.address)
	if err != nil {
		return nil, err
	}
	if _, err := fmt.Fprintln(conn, subject); err != nil {
		return nil, err
	}
	return &wire{conn: conn}, nil
}

// settle does nothing, because the engine has applied a change when it answers.
func (e *embedded) settle(context.Context) error { return nil }

// outset keeps the beginning of what is written, which contains the cause of a panic.
type outset struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *outset) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.buf.Len() < 4<<10 {
		b.buf.Write(p[:min(len(p), 4<<10)])
	}
	return len(p), nil
}

// String returns what was written since the last call.
func (b *outset) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	defer b.buf.Reset()
	return b.buf.String()
}

// kafkaSide is the Apache Kafka that "make kafka-up" has started.
type kafkaSide struct {
	address  string
	password plain.Auth
	gateway  *apache.Broker
	barrier  *wire
	topic    string // topic for settle, which changes its retention.ms each time
	passed   int
}

// epochTopic is a topic with which the leader epoch of the embedded engine is determined.
const epochTopic = "differential-epoch"

func startKafka(t testing.TB) *kafkaSide {
	t.Helper()
	d := describe(t)
	if len(d.Nodes) != 1 {
		t.Fatalf("the Apache Kafka that is up has %d nodes; the differential suite needs `make kafka-like-embedded`", len(d.Nodes))
	}
	password := testkit.ReadFile(t, d.Admin.PasswordFile)
	keys, err := apache.OpenKeys(apache.KeysConfig{
		File:     filepath.Join(filepath.Dir(d.JWKSFile), "signing-keys.json"),
		JWKSFile: d.JWKSFile,
	})
	testkit.Must(t, err)
	gateway, err := apache.New(apache.Config{Address: d.Nodes[0].Listener, Issuer: d.Issuer, Audience: d.Audience, Keys: keys})
	testkit.Must(t, err)
	k := &kafkaSide{address: d.Admin.Brokers[0], password: plain.Auth{User: d.Admin.Username, Pass: string(password)}, gateway: gateway,
		topic: "differential-" + strings.ToLower(rand.Text()[:8])}
	testkit.Must(t, k.warmUp(t.Context()))
	testkit.Must(t, k.comparable(t.Context()))
	t.Cleanup(k.close)
	return k
}

func (k *kafkaSide) String() string { return "Apache Kafka" }

func (k *kafkaSide) node() int32 { return 1 }

func (k *kafkaSide) epoch() int32 { return 0 }

func (k *kafkaSide) dial(ctx context.Context, subject string) (*wire, error) {
	if subject != "" {
		conn, err := k.gateway.Dial(ctx)
		if err != nil {
			return nil, err
		}
		w := &wire{conn: conn}
		_, err = k.gateway.SignIn(ctx, conn, w, subject)
		return w, err
	}
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", k.address)
	if err != nil {
		return nil, err
	}
	w := &wire{conn: conn}
	return w, signIn(ctx, w, k.password.AsMechanism())
}

// warmUp creates the topic for settle, and waits until Kafka has created its topic for committed
// offsets and gives out producer IDs.
func (k *kafkaSide) warmUp(ctx context.Context) (err error) {
	if k.barrier, err = k.dial(ctx, ""); err != nil {
		return err
	}
	if err := makeTopic(ctx, k.barrier, k.topic); err != nil {
		return err
	}
	for deadline := time.Now().Add(testkit.Patience); ; {
		commit := kmsg.NewPtrOffsetCommitRequest()
		commit.Version, commit.Group, commit.Generation = 8, "differential", -1
		partition := kmsg.NewOffsetCommitRequestTopicPartition()
		committed := kmsg.NewOffsetCommitRequestTopic()
		committed.Topic, committed.Partitions = k.topic, append(committed.Partitions, partition)
		commit.Topics = append(commit.Topics, committed)
		answer, err := commit.RequestWith(ctx, k.barrier)
		if err != nil {
			return err
		}
		producer, err := kmsg.NewPtrInitProducerIDRequest().RequestWith(ctx, k.barrier)
		if err != nil {
			return err
		}
		code := cmp.Or(kerr.ErrorForCode(answer.Topics[0].Partitions[0].ErrorCode), kerr.ErrorForCode(producer.ErrorCode))
		if code == nil {
			return k.settle(ctx)
		}
		find := kmsg.NewPtrFindCoordinatorRequest() // makes Kafka create the topic
		find.Version, find.CoordinatorKeys = 4, []string{commit.Group}
		if _, err := find.RequestWith(ctx, k.barrier); err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("Kafka's coordinator does not start: %w", code)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// makeTopic creates a topic if it does not exist.
func makeTopic(ctx context.Context, c *wire, name string) error {
	topic := kmsg.NewCreateTopicsRequestTopic()
	topic.Topic, topic.NumPartitions, topic.ReplicationFactor = name, 1, 1
	create := kmsg.NewPtrCreateTopicsRequest()
	create.Version, create.TimeoutMillis, create.Topics = 7, 10_000, append(create.Topics, topic)
	created, err := create.RequestWith(ctx, c)
	if err != nil {
		return err
	}
	if err := kerr.ErrorForCode(created.Topics[0].ErrorCode); err != nil && err != kerr.TopicAlreadyExists {
		return err
	}
	return nil
}

// settle relies on the order in which Kafka's broker applies changes. A change is visible in
// metadata before the logs and the coordinators know it, but each change is applied completely
// before the next one begins. Two changes may be applied together. So settle makes two further
// changes and waits for both.
func (k *kafkaSide) settle(ctx context.Context) error {
	for range 2 {
		k.passed++
		value := fmt.Sprint(1_000_000_000 + (time.Now().UnixMilli()*1000+int64(k.passed))%1_000_000_000)
		resource := kmsg.NewIncrementalAlterConfigsRequestResource()
		resource.ResourceType, resource.ResourceName = kmsg.ConfigResourceTypeTopic, k.topic
		config := kmsg.NewIncrementalAlterConfigsRequestResourceConfig()
		config.Name, config.Value = "retention.ms", &value
		resource.Configs = append(resource.Configs, config)
		alter := kmsg.NewPtrIncrementalAlterConfigsRequest()
		alter.Version, alter.Resources = 1, append(alter.Resources, resource)
		altered, err := alter.RequestWith(ctx, k.barrier)
		if err != nil {
			return err
		}
		if err := kerr.ErrorForCode(altered.Resources[0].ErrorCode); err != nil {
			return err
		}
		if err := k.awaitBarrier(ctx, value); err != nil {
			return err
		}
	}
	return nil
}

func (k *kafkaSide) awaitBarrier(ctx context.Context, value string) error {
	resource := kmsg.NewDescribeConfigsRequestResource()
	resource.ResourceType, resource.ResourceName, resource.ConfigNames = kmsg.ConfigResourceTypeTopic, k.topic, []string{"retention.ms"}
	for deadline := time.Now().Add(testkit.Patience); time.Now().Before(deadline); {
		ask := kmsg.NewPtrDescribeConfigsRequest()
		ask.Version, ask.Resources = 4, append(ask.Resources, resource)
		answer, err := ask.RequestWith(ctx, k.barrier)
		if err != nil {
			return err
		}
		for _, c := range answer.Resources[0].Configs {
			if c.Value != nil && *c.Value == value {
				return nil
			}
		}
		time.Sleep(time.Millisecond)
	}
	return fmt.Errorf("Kafka does not apply changes")
}

// close deletes the topic for settle.
func (k *kafkaSide) close() {
	topics := kmsg.NewPtrDeleteTopicsRequest()
	topics.Version, topics.TimeoutMillis, topics.TopicNames = 5, 5000, []string{k.topic}
	topics.RequestWith(context.Background(), k.barrier)
	k.barrier.conn.Close()
}

// likeEmbedded are broker settings that make an Apache Kafka comparable with the embedded engine,
// as set by "make kafka-like-embedded".
var likeEmbedded = map[string]string{
	"log.message.timestamp.type":      "LogAppendTime",
	"log.segment.bytes":               "67108864",
	"group.consumer.migration.policy": "disabled",
}

// comparable checks that Kafka has the settings that the comparison needs.
func (k *kafkaSide) comparable(ctx context.Context) error {
	resource := kmsg.NewDescribeConfigsRequestResource()
	resource.ResourceType, resource.ResourceName = kmsg.ConfigResourceTypeBroker, fmt.Sprint(k.node())
	resource.ConfigNames = slices.Collect(maps.Keys(likeEmbedded))
	ask := kmsg.NewPtrDescribeConfigsRequest()
	ask.Version, ask.Resources = 4, append(ask.Resources, resource)
	answer, err := ask.RequestWith(ctx, k.barrier)
	if err != nil {
		return err
	}
	for _, c := range answer.Resources[0].Configs {
		if want := likeEmbedded[c.Name]; c.Value == nil || !strings.EqualFold(*c.Value, want) {
			return fmt.Errorf("Apache Kafka does not have %s=%s, which the differential suite needs; start it with `make kafka-down kafka-like-embedded`", c.Name, want)
		}
	}
	return nil
}
