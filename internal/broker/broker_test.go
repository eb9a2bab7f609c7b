package broker

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora/internal/testkit"
)

const advertised = "gateway.example:9092"

const ada = "ada00000-0000-4000-8000-000000000001"

func open(t testing.TB, cfg Config) *Broker {
	t.Helper()
	cfg.Advertise = advertised
	b, err := Open(cfg)
	testkit.Must(t, err)
	t.Cleanup(func() { b.Close() })
	return b
}

// admin returns a client that is the super user.
func (b *Broker) admin(t testing.TB, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	client, err := kgo.NewClient(append(b.AdminOpts(), opts...)...)
	testkit.Must(t, err)
	t.Cleanup(client.Close)
	return client
}

func (b *Broker) signedIn(t testing.TB, subject string) net.Conn {
	t.Helper()
	conn, err := b.Dial(t.Context())
	testkit.Must(t, err)
	t.Cleanup(func() { conn.Close() })
	if _, err := b.SignIn(t.Context(), conn, requestor{conn}, subject); err != nil {
		t.Fatal(err)
	}
	return conn
}

// requestor makes requests on a connection, one after another.
type requestor struct{ conn net.Conn }

func (r requestor) Request(_ context.Context, request kmsg.Request) (kmsg.Response, error) {
	if _, err := r.conn.Write(kmsg.NewRequestFormatter().AppendRequest(nil, request, 0)); err != nil {
		return nil, err
	}
	var header [8]byte // size and correlation ID
	if _, err := io.ReadFull(r.conn, header[:]); err != nil {
		return nil, err
	}
	body := make([]byte, binary.BigEndian.Uint32(header[:])-4)
	if _, err := io.ReadFull(r.conn, body); err != nil {
		return nil, err
	}
	response := request.ResponseKind()
	if response.IsFlexible() && response.Key() != kmsg.ApiVersions.Int16() {
		body = body[1:] // no tagged fields
	}
	return response, response.ReadFrom(body)
}

func makeTopic(t testing.TB, client *kgo.Client, topic string) {
	t.Helper()
	if _, err := kadm.NewClient(client).CreateTopic(t.Context(), 1, 1, nil, topic); err != nil {
		t.Fatal(err)
	}
}

func produce(t testing.TB, client *kgo.Client, topic string, values ...string) {
	t.Helper()
	for _, value := range values {
		testkit.Must(t, client.ProduceSync(t.Context(), &kgo.Record{Topic: topic, Value: []byte(value)}).FirstErr())
	}
}

func TestRecordsSurviveClose(t *testing.T) {
	dir := t.TempDir()
	for round := range 3 {
		b := open(t, Config{Dir: dir, SyncWrites: round == 1})
		client := b.admin(t, kgo.ConsumeTopics("weather"), kgo.ConsumerGroup("group"), kgo.DisableAutoCommit())
		if round == 0 {
			makeTopic(t, client, "weather")
		}
		produce(t, client, "weather", fmt.Sprint(round))
		records := client.PollFetches(t.Context()).Records()
		if len(records) != 1 || string(records[0].Value) != fmt.Sprint(round) || records[0].Offset != int64(round) {
			t.Fatalf("round %d: consumed %v, want the new record only", round, records)
		}
		testkit.Must(t, client.CommitRecords(t.Context(), records...))
		client.Close()
		testkit.Must(t, b.Close())
		if err := b.Close(); err != nil {
			t.Errorf("second Close = %v", err)
		}
	}
}

func TestInMemory(t *testing.T) {
	b := open(t, Config{})
	client := b.admin(t, kgo.ConsumeTopics("weather"))
	makeTopic(t, client, "weather")
	if err := client.ProduceSync(t.Context(), kgo.StringRecord("rain")).FirstErr(); err == nil {
		t.Error("produce without a topic = nil, want an error")
	}
	produce(t, client, "weather", "rain")
}

func TestTopicsAreNotMadeByThemselves(t *testing.T) {
	b := open(t, Config{})
	client := b.admin(t, kgo.AllowAutoTopicCreation(), kgo.UnknownTopicRetries(0))
	if err := client.ProduceSync(t.Context(), &kgo.Record{Topic: "weather"}).FirstErr(); err == nil {
		t.Error("produce to a topic that nobody made = nil, want an error")
	}
}

// TestMetadataNamesTheGateway: clients connect where Metadata tells them to.
func TestMetadataNamesTheGateway(t *testing.T) {
	b := open(t, Config{ClusterID: "test"})
	metadata, err := kadm.NewClient(b.admin(t)).Metadata(t.Context())
	testkit.Must(t, err)
	if len(metadata.Brokers) != 1 || metadata.Brokers[0].Host != "gateway.example" || metadata.Brokers[0].Port != 9092 || metadata.Cluster != "test" {
		t.Errorf("metadata of cluster %q names %v, want one broker at %s", metadata.Cluster, metadata.Brokers, advertised)
	}
}

func TestOpenRefuses(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	testkit.Must(t, os.WriteFile(file, nil, 0o600))
	damaged := t.TempDir()
	b := open(t, Config{Dir: damaged})
	makeTopic(t, b.admin(t), "weather")
	testkit.Must(t, b.Close())
	names, err := filepath.Glob(filepath.Join(damaged, "meta", "*.log"))
	if err != nil || len(names) != 1 {
		t.Fatalf("the journal is %v, %v; want one file", names, err)
	}
	content := testkit.ReadFile(t, names[0])
	content[60] ^= 1
	testkit.Must(t, os.WriteFile(names[0], content, 0o600))
	busy := t.TempDir()
	open(t, Config{Dir: busy})
	for _, test := range []struct {
		name string
		cfg  Config
		want string
	}{
		{"no address", Config{}, "advertised address"},
		{"no port", Config{Advertise: "localhost"}, "advertised address"},
		{"no host", Config{Advertise: ":9092"}, "advertised address"},
		{"port 0", Config{Advertise: "localhost:0"}, "advertised address"},
		{"named port", Config{Advertise: "localhost:kafka"}, "advertised address"},
		{"a file", Config{Advertise: advertised, Dir: file}, "not a directory"},
		{"below a file", Config{Advertise: advertised, Dir: filepath.Join(file, "dir")}, "not a directory"},
		{"damaged", Config{Advertise: advertised, Dir: damaged}, filepath.Base(names[0])},
		{"in use", Config{Advertise: advertised, Dir: busy}, ErrInUse.Error()},
	} {
		b, err := Open(test.cfg)
		if err == nil {
			b.Close()
		}
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: Open = %v, want an error with %q", test.name, err, test.want)
		}
		if test.name == "in use" && !errors.Is(err, ErrInUse) {
			t.Errorf("%s: errors.Is(%v, ErrInUse) = false", test.name, err)
		}
	}
	content[60] ^= 1
	testkit.Must(t, os.WriteFile(names[0], content, 0o600))
	open(t, Config{Dir: damaged}) // the lock must be free again
}

// TestFilesArePrivate: other users of the machine cannot read the files.
func TestFilesArePrivate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	b := open(t, Config{Dir: dir})
	makeTopic(t, b.admin(t), "weather")
	produce(t, b.admin(t), "weather", "rain")
	testkit.CheckPrivate(t, dir)
}

// TestSignInIsTheSubject: a connection has the rights of its subject and no others.
func TestSignInIsTheSubject(t *testing.T) {
	b := open(t, Config{})
	client := b.admin(t)
	makeTopic(t, client, "weather")
	makeTopic(t, client, "foreign")
	acls := kadm.NewACLs().Topics("weather").Operations(kadm.OpRead).ResourcePatternType(kadm.ACLPatternLiteral).Allow("User:" + ada).AllowHosts("*")
	if _, err := kadm.NewClient(client).CreateACLs(t.Context(), acls); err != nil {
		t.Fatal(err)
	}
	conn := b.signedIn(t, ada)
	request := kmsg.NewPtrMetadataRequest()
	request.Version = 1
	response, err := request.RequestWith(t.Context(), requestor{conn})
	testkit.Must(t, err)
	if len(response.Topics) != 1 || *response.Topics[0].Topic != "weather" {
		t.Errorf("the subject sees %v, want its own topic", response.Topics)
	}
	if _, err := b.SignIn(t.Context(), conn, requestor{conn}, "bert"); err == nil {
		t.Error("SignIn as another subject = nil, want an error")
	}
}

func TestSignInRefusesNames(t *testing.T) {
	b := open(t, Config{})
	for _, subject := range []string{"", "*", "(super user)", "a b", "a,b", "a=b", "a\x00b", "a\nb", "-", "é", strings.Repeat("a", 129)} {
		conn, err := b.Dial(t.Context())
		testkit.Must(t, err)
		if _, err := b.SignIn(t.Context(), conn, requestor{conn}, subject); err == nil {
			t.Errorf("SignIn(%q) = nil, want an error", subject)
		}
		conn.Close()
	}
}

// TestNobodyIsSignedInByDialing: a new connection accepts ApiVersions only.
func TestNobodyIsSignedInByDialing(t *testing.T) {
	b := open(t, Config{})
	conn, err := b.Dial(t.Context())
	testkit.Must(t, err)
	defer conn.Close()
	if _, err := kmsg.NewPtrApiVersionsRequest().RequestWith(t.Context(), requestor{conn}); err != nil {
		t.Errorf("ApiVersions = %v", err)
	}
	if _, err := kmsg.NewPtrMetadataRequest().RequestWith(t.Context(), requestor{conn}); err == nil {
		t.Error("Metadata without signing in = nil, want a closed connection")
	}
}

// TestOldProduce: the versions of Produce that are offered only so that librdkafka compresses close
// the connection, as they do in Apache Kafka.
func TestOldProduce(t *testing.T) {
	b := open(t, Config{})
	conn := b.signedIn(t, ada)
	versions, err := kmsg.NewPtrApiVersionsRequest().RequestWith(t.Context(), requestor{conn})
	testkit.Must(t, err)
	for _, offered := range versions.ApiKeys {
		if offered.ApiKey == kmsg.Produce.Int16() && (offered.MinVersion != 0 || offered.MaxVersion < 3) {
			t.Errorf("Produce is offered in versions %d to %d, want 0 to at least 3", offered.MinVersion, offered.MaxVersion)
		}
	}
	for version := range int16(3) {
		conn := b.signedIn(t, ada)
		request := kmsg.NewPtrProduceRequest()
		request.Version, request.Acks = version, -1
		if _, err := request.RequestWith(t.Context(), requestor{conn}); err == nil {
			t.Errorf("Produce version %d = nil, want a closed connection", version)
		}
	}
}

func TestAfterClose(t *testing.T) {
	b := open(t, Config{Dir: t.TempDir()})
	idle := b.signedIn(t, ada)
	fresh, err := b.Dial(t.Context())
	testkit.Must(t, err)
	testkit.Must(t, b.Close())
	if _, err := idle.Read(make([]byte, 1)); err == nil {
		t.Error("a connection is open after Close")
	}
	if _, err := b.Dial(t.Context()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Dial after Close = %v, want %v", err, net.ErrClosed)
	}
	if _, err := b.SignIn(t.Context(), fresh, requestor{fresh}, "bert"); err == nil {
		t.Error("SignIn after Close = nil, want an error")
	}
}

// TestNearlyFullDisk: below the reserve, nothing that needs space is acknowledged, and records can
// still be read and deleted.
func TestNearlyFullDisk(t *testing.T) {
	var said bytes.Buffer
	b := open(t, Config{Dir: t.TempDir(), Diagnostics: slog.New(slog.NewTextHandler(&said, nil))})
	client := b.admin(t, kgo.RecordRetries(0), kgo.RequestRetries(0), kgo.ConsumerGroup("group"), kgo.ConsumeTopics("weather"), kgo.DisableAutoCommit())
	admin := kadm.NewClient(client)
	makeTopic(t, client, "weather")
	makeTopic(t, client, "old")
	produce(t, client, "weather", "rain")

	left := func(bytes int64) {
		b.space.free = func() (int64, error) { return bytes, nil }
		b.space.measured.Store(0)
	}
	left(reserveBytes - 1)
	produce(t, client, "weather", "sleet") // the super user has a smaller reserve
	if !b.space.lowFor(caller{principal: "User:" + ada}) {
		t.Error("others may write, want only the super user to")
	}
	left(superReserveBytes - 1)
	err := client.ProduceSync(t.Context(), &kgo.Record{Topic: "weather", Value: []byte("snow")}).FirstErr()
	if !errors.Is(err, kerr.KafkaStorageError) {
		t.Errorf("produce = %v, want %v", err, kerr.KafkaStorageError)
	}
	if _, err := admin.CreateTopic(t.Context(), 1, 1, nil, "new"); !errors.Is(err, kerr.KafkaStorageError) {
		t.Errorf("create a topic = %v, want %v", err, kerr.KafkaStorageError)
	}
	left(reserveBytes - 1)
	var records []*kgo.Record
	for len(records) < 2 && t.Context().Err() == nil {
		records = append(records, client.PollFetches(t.Context()).Records()...)
	}
	if string(records[0].Value) != "rain" {
		t.Errorf("consumed %v, want what was acknowledged", records)
	}
	commit := kmsg.NewPtrOffsetCommitRequest()
	commit.Group = "other"
	topic, partition := kmsg.NewOffsetCommitRequestTopic(), kmsg.NewOffsetCommitRequestTopicPartition()
	topic.Topic, partition.Offset = "weather", 1
	topic.Partitions = append(topic.Partitions, partition)
	commit.Topics, commit.Version = append(commit.Topics, topic), 8
	conn, err := b.connect(caller{principal: "User:x", super: true})
	testkit.Must(t, err)
	defer conn.Close()
	committed, err := commit.RequestWith(t.Context(), requestor{conn})
	if err != nil || committed.Topics[0].Partitions[0].ErrorCode != kerr.CoordinatorNotAvailable.Code {
		t.Errorf("commit = %v, %v; want %v", committed, err, kerr.CoordinatorNotAvailable)
	}
	if _, err := admin.DeleteTopics(t.Context(), "old"); err != nil {
		t.Errorf("delete a topic = %v", err)
	}

	left(reserveBytes)
	produce(t, client, "weather", "snow")
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if n := strings.Count(said.String(), "nearly full"); n != 1 {
		t.Errorf("the diagnostics say it %d times, want once:\n%s", n, &said)
	}
}

// TestDeletedTopicsStayDeleted, including those whose files are left after a crash.
func TestDeletedTopicsStayDeleted(t *testing.T) {
	dir := t.TempDir()
	b := open(t, Config{Dir: dir})
	client := b.admin(t)
	for _, topic := range []string{"gone", "interrupted", "kept"} {
		makeTopic(t, client, topic)
		produce(t, client, topic, "rain")
	}
	if _, err := kadm.NewClient(client).DeleteTopics(t.Context(), "gone"); err != nil {
		t.Fatal(err)
	}
	interrupted := b.topics.named("interrupted").topicRecord
	interrupted.Deleting = true
	entry, err := interrupted.entry()
	if err == nil {
		err = b.meta.Append(entry) // nothing more happens, as if the process had been killed here
	}
	testkit.Must(t, err)
	client.Close()
	testkit.Must(t, b.Close())

	again := open(t, Config{Dir: dir})
	var names []string
	for _, topic := range again.topics.all() {
		names = append(names, topic.Name)
	}
	if !slices.Equal(names, []string{"kept"}) {
		t.Errorf("topics are %v, want the one that was not deleted", names)
	}
	files, err := os.ReadDir(filepath.Join(dir, "topics"))
	if err != nil || len(files) != 1 {
		t.Errorf("%d directories of partitions, %v; want 1", len(files), err)
	}
}

func BenchmarkSignIn(b *testing.B) {
	broker := open(b, Config{Dir: b.TempDir()})
	for b.Loop() {
		conn, err := broker.Dial(b.Context())
		testkit.Must(b, err)
		if _, err := broker.SignIn(b.Context(), conn, requestor{conn}, ada); err != nil {
			b.Fatal(err)
		}
		conn.Close()
	}
}
