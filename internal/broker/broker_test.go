package broker

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

const advertised = "gateway.example:9092"

const ada = "ada00000-0000-4000-8000-000000000001"

func open(t testing.TB, cfg Config) *Broker {
	t.Helper()
	cfg.Advertise = advertised
	b, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

// admin is a client that is the super user.
func (b *Broker) admin(t testing.TB, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	client, err := kgo.NewClient(append(b.AdminOpts(), opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

func (b *Broker) signedIn(t testing.TB, subject string) net.Conn {
	t.Helper()
	conn, err := b.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if _, err := b.SignIn(t.Context(), requestor{conn}, subject); err != nil {
		t.Fatal(err)
	}
	return conn
}

// requestor makes requests that are not flexible, one after the other.
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
	return response, response.ReadFrom(body)
}

func makeTopic(t testing.TB, client *kgo.Client, topic string) {
	t.Helper()
	if _, err := kadm.NewClient(client).CreateTopic(t.Context(), 1, 1, nil, topic); err != nil {
		t.Fatal(err)
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
		if err := client.ProduceSync(t.Context(), &kgo.Record{Topic: "weather", Value: fmt.Append(nil, round)}).FirstErr(); err != nil {
			t.Fatal(err)
		}
		records := client.PollFetches(t.Context()).Records()
		if len(records) != 1 || string(records[0].Value) != fmt.Sprint(round) || records[0].Offset != int64(round) {
			t.Fatalf("round %d: consumed %v, want the new record only", round, records)
		}
		if err := client.CommitRecords(t.Context(), records...); err != nil {
			t.Fatal(err)
		}
		client.Close()
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		if err := b.Close(); err != nil {
			t.Errorf("second Close = %v", err)
		}
	}
}

func TestInMemory(t *testing.T) {
	b := open(t, Config{})
	client := b.admin(t, kgo.ConsumeTopics("weather"))
	makeTopic(t, client, "weather")
	if err := client.ProduceSync(t.Context(), kgo.StringRecord("rain"), &kgo.Record{Topic: "weather"}).FirstErr(); err == nil {
		t.Error("produce without a topic = nil, want an error")
	}
	if err := client.ProduceSync(t.Context(), &kgo.Record{Topic: "weather"}).FirstErr(); err != nil {
		t.Error(err)
	}
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
	if err != nil {
		t.Fatal(err)
	}
	if len(metadata.Brokers) != 1 || metadata.Brokers[0].Host != "gateway.example" || metadata.Brokers[0].Port != 9092 || metadata.Cluster != "test" {
		t.Errorf("metadata of cluster %q names %v, want one broker at %s", metadata.Cluster, metadata.Brokers, advertised)
	}
}

func TestOpenRefuses(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	damaged := t.TempDir()
	if err := os.WriteFile(filepath.Join(damaged, "meta.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
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
		{"damaged", Config{Advertise: advertised, Dir: damaged}, "meta.json"},
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
	if err := os.Remove(filepath.Join(damaged, "meta.json")); err != nil {
		t.Fatal(err)
	}
	open(t, Config{Dir: damaged}) // the lock is free again
}

// TestFilesArePrivate: records are nobody else's on the machine.
func TestFilesArePrivate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	open(t, Config{Dir: dir})
	info, err := os.Stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Mode().Perm(); got != 0o700 {
		t.Errorf("the data directory has mode %o, want 700", got)
	}
}

// TestPasswordsStayInMemory looks for the super user's password on disk, while
// the broker runs and afterwards, and for any user once it has stopped.
func TestPasswordsStayInMemory(t *testing.T) {
	dir := t.TempDir()
	b := open(t, Config{Dir: dir})
	b.signedIn(t, ada)
	search := func(when, what string) {
		t.Helper()
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			content, err := os.ReadFile(path)
			if bytes.Contains(content, []byte(what)) {
				t.Errorf("%s, %s contains %q", when, path, what)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	search("while open", b.password)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	search("after Close", b.password)
	search("after Close", ada)
	search("after Close", superUser)
}

// TestAfterACrash opens what a process left that had no time for anything. Its
// users are still in the directory, and must not be taken for this one's.
func TestAfterACrash(t *testing.T) {
	dir, left := t.TempDir(), t.TempDir()
	b := open(t, Config{Dir: dir})
	client := b.admin(t)
	makeTopic(t, client, "weather")
	if err := client.ProduceSync(t.Context(), &kgo.Record{Topic: "weather", Value: []byte("rain")}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	b.signedIn(t, ada)
	if err := os.CopyFS(left, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(left, "sasl.json")); err != nil {
		t.Fatalf("the test is out of date: %v", err)
	}

	again := open(t, Config{Dir: left})
	records := again.admin(t, kgo.ConsumeTopics("weather")).PollFetches(t.Context()).Records()
	if len(records) != 1 || string(records[0].Value) != "rain" {
		t.Errorf("consumed %v, want the one record", records)
	}
	again.signedIn(t, ada)
}

// TestSignInOfMany signs in many subjects at once, some of them several times.
func TestSignInOfMany(t *testing.T) {
	b := open(t, Config{Dir: t.TempDir()})
	var wg sync.WaitGroup
	for i := range 600 {
		wg.Go(func() {
			conn, err := b.Dial(t.Context())
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			if _, err := b.SignIn(t.Context(), requestor{conn}, fmt.Sprintf("subject-%d", i%200)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	users, err := kadm.NewClient(b.admin(t)).DescribeUserSCRAMs(t.Context())
	if err != nil || len(users) != 201 {
		t.Errorf("%d users, %v; want 200 and the super user", len(users), err)
	}
}

// TestSignInIsTheSubject: ACLs of the subject hold on the connection, and none
// but the subject's.
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
	if err != nil {
		t.Fatal(err)
	}
	if len(response.Topics) != 1 || *response.Topics[0].Topic != "weather" {
		t.Errorf("the subject sees %v, want its own topic", response.Topics)
	}
}

func TestSignInRefusesNames(t *testing.T) {
	b := open(t, Config{})
	for _, subject := range []string{"", "*", superUser, "a b", "a,b", "a=b", "a\x00b", "a\nb", "-", "é", strings.Repeat("a", 129)} {
		conn, err := b.Dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.SignIn(t.Context(), requestor{conn}, subject); err == nil {
			t.Errorf("SignIn(%q) = nil, want an error", subject)
		}
		conn.Close()
	}
}

// TestNobodyIsSignedInByDialing sends a request on a fresh connection.
func TestNobodyIsSignedInByDialing(t *testing.T) {
	b := open(t, Config{})
	conn, err := b.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := kmsg.NewPtrMetadataRequest().RequestWith(t.Context(), requestor{conn}); err == nil {
		t.Error("Metadata without signing in = nil, want a closed connection")
	}
}

func TestAfterClose(t *testing.T) {
	b := open(t, Config{Dir: t.TempDir()})
	idle := b.signedIn(t, ada)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := idle.Read(make([]byte, 1)); err == nil {
		t.Error("a connection is open after Close")
	}
	if _, err := b.Dial(t.Context()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Dial after Close = %v, want %v", err, net.ErrClosed)
	}
	ours, theirs := net.Pipe()
	defer ours.Close()
	defer theirs.Close()
	if _, err := b.SignIn(t.Context(), requestor{ours}, "bert"); err == nil {
		t.Error("SignIn after Close = nil, want an error")
	}
}

// TestDiskFull: what could not be written is not acknowledged, and somebody is told.
func TestDiskFull(t *testing.T) {
	if _, err := os.Stat("/dev/full"); err != nil {
		t.Logf("cannot play a full disk here: %v", err)
		return
	}
	dir := t.TempDir()
	partition := filepath.Join(dir, "partitions", "weather-0")
	if err := os.MkdirAll(partition, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/dev/full", filepath.Join(partition, "0.dat")); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	b := open(t, Config{Dir: dir, Diagnostics: slog.New(slog.NewTextHandler(&log, nil))})
	client := b.admin(t)
	makeTopic(t, client, "weather")
	if err := client.ProduceSync(t.Context(), &kgo.Record{Topic: "weather", Value: []byte("rain")}).FirstErr(); err == nil {
		t.Error("produce on a full disk = nil, want an error")
	}
	makeTopic(t, client, "other")
	if err := client.ProduceSync(t.Context(), &kgo.Record{Topic: "other", Value: []byte("rain")}).FirstErr(); err != nil {
		t.Errorf("produce where there is room = %v", err)
	}
	client.Close()
	b.Close()
	if !strings.Contains(log.String(), "no space left on device") {
		t.Errorf("diagnostics do not tell of the full disk: %s", log.String())
	}
}

func BenchmarkSignIn(b *testing.B) {
	broker := open(b, Config{Dir: b.TempDir()})
	for b.Loop() {
		conn, err := broker.Dial(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		if _, err := broker.SignIn(b.Context(), requestor{conn}, ada); err != nil {
			b.Fatal(err)
		}
		conn.Close()
	}
}
