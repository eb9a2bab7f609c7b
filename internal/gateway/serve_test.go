package gateway

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// noUpstream is a broker that cannot be reached.
type noUpstream struct{}

var errNoUpstream = errors.New("nobody there")

func (*noUpstream) Dial(context.Context) (net.Conn, error) { return nil, errNoUpstream }

func (*noUpstream) SignIn(context.Context, net.Conn, kmsg.Requestor, string) (time.Time, error) {
	return time.Time{}, errNoUpstream
}

// TestBrokerDown: if the broker is down, the client must not be refused.
func TestBrokerDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startInMemory(t, func(cfg *Config) { cfg.Upstream = (*noUpstream)(nil) })
		f.tokens.issue("ada-token", ada, time.Hour)
		c := f.dial(t)
		c.handshake(1)
		c.send(appendRequest(saslAuthenticate(1, oauthMessage("ada-token")), 1))
		if answer, err := c.frame(); err == nil {
			t.Errorf("login without a broker is answered with %x, want a closed connection", answer)
		}
		c = f.dial(t)
		c.send(appendRequest(apiVersions(3), 1))
		if answer, err := c.frame(); err == nil {
			t.Errorf("ApiVersions without a broker is answered with %x, want a closed connection", answer)
		}
	})
}

// TestBrokerStops closes the connection to the broker while a client is connected.
func TestBrokerStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startInMemory(t)
		f.tokens.issue("ada-token", ada, time.Hour)
		c := f.login(t, "ada-token")
		f.admin.Close()
		testkit.Must(t, f.broker.Close())
		c.wantClosed()
	})
}

// TestDrain stops the gateway while clients are connected, one in every state.
func TestDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startInMemory(t)
		f.claim(t, "weather", ada)
		f.tokens.issue("ada-token", ada, time.Hour)

		silent := f.dial(t)
		idle := f.login(t, "ada-token")
		waiting := f.login(t, "ada-token")
		waiting.send(appendRequest(waitingFetch(time.Minute), 1))
		half := f.login(t, "ada-token")
		request := appendRequest(produceRequest(9), 5)
		half.send(request[:len(request)/2])
		synctest.Wait()

		began := time.Now()
		done := make(chan struct{})
		go func() { f.stop(t); close(done) }()
		synctest.Wait()
		if err := tryDial(f); err == nil {
			t.Error("a stopping gateway takes connections")
		}
		silent.wantClosed()
		idle.wantClosed()
		time.Sleep(time.Second)
		half.send(request[len(request)/2:])
		response, err := half.response(produceRequest(9), 5)
		if err != nil {
			t.Errorf("a request that had begun: %v, want its answer", err)
		} else if topics := response.(*kmsg.ProduceResponse).Topics; len(topics) != 1 {
			t.Errorf("a request that had begun is answered with %v", response)
		}
		half.wantClosed()
		waiting.wantClosed()
		<-done
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("stopping took %v, want no more than the slow request", took)
		}
	})
}

// TestDrainTimeout stops the gateway while a client is in the middle of a request that it never
// completes.
func TestDrainTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startInMemory(t)
		f.tokens.issue("ada-token", ada, time.Hour)
		c := f.login(t, "ada-token")
		c.send(sized(1000, head(0, 9)))
		synctest.Wait()
		began := time.Now()
		f.stop(t)
		if took := time.Since(began); took != 5*time.Second {
			t.Errorf("stopping took %v, want the drain timeout of 5s", took)
		}
	})
}

// TestDrainDuringLogin stops the gateway while it waits for the Authenticator.
func TestDrainDuringLogin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startInMemory(t, func(cfg *Config) { cfg.FailureDelay = time.Hour })
		c := f.dial(t)
		c.handshake(1)
		c.send(appendRequest(saslAuthenticate(1, oauthMessage("no-token")), 1))
		synctest.Wait()
		go c.wantClosed()
		began := time.Now()
		f.stop(t)
		if took := time.Since(began); took != 0 {
			t.Errorf("stopping took %v, want no time", took)
		}
	})
}

func tryDial(f *front) error {
	conn, err := f.connect(context.Background())
	if err == nil {
		conn.Close()
	}
	return err
}

func waitingFetch(wait time.Duration) kmsg.Request {
	p := kmsg.NewFetchRequestTopicPartition()
	p.PartitionMaxBytes = 1 << 20
	topic := kmsg.NewFetchRequestTopic()
	topic.Topic, topic.Partitions = "weather", []kmsg.FetchRequestTopicPartition{p}
	fetch := kmsg.NewPtrFetchRequest()
	fetch.Version, fetch.MaxWaitMillis, fetch.MinBytes, fetch.MaxBytes = 4, int32(wait.Milliseconds()), 1, 1<<20
	fetch.Topics = []kmsg.FetchRequestTopic{topic}
	return fetch
}

// TestStopWhileProducing stops and restarts the gateway while a producer is connected. The producer
// may notice a delay only. Nothing may be lost or duplicated.
func TestStopWhileProducing(t *testing.T) {
	t.Parallel()
	f := start(t)
	f.claim(t, "weather", ada)
	f.tokens.issue("ada-token", ada, time.Hour)
	client := f.client(t, "ada-token")
	const events = 2000
	// If its very first connection breaks, the client concludes that the broker wants TLS.
	testkit.Must(t, client.ProduceSync(t.Context(), &kgo.Record{Topic: "weather", Value: []byte("first")}).FirstErr())
	var wg sync.WaitGroup
	for i := range events - 1 {
		wg.Add(1)
		client.Produce(t.Context(), &kgo.Record{Topic: "weather", Value: fmt.Append(nil, i)}, func(_ *kgo.Record, err error) {
			defer wg.Done()
			if err != nil {
				t.Errorf("produce: %v", err)
			}
		})
		if i == events/2 {
			f.restartGateway(t)
		}
	}
	wg.Wait()
	if got := f.count(t, "ada-token", "weather"); got != events {
		t.Errorf("consumed %d events, want %d", got, events)
	}
}

func TestTLS(t *testing.T) {
	certificate, _ := testkit.Certificate(t, time.Now().Add(time.Hour), "gateway.test")
	roots := x509.NewCertPool()
	roots.AddCert(certificate.Leaf)
	f := start(t, func(cfg *Config) {
		cfg.TLS = &tls.Config{Certificates: []tls.Certificate{certificate}}
		cfg.LoginTimeout = time.Second
	})
	f.claim(t, "weather", ada)
	f.tokens.issue("ada-token", ada, time.Hour)

	plaintext := f.dial(t)
	plaintext.send(appendRequest(apiVersions(0), 1))
	plaintext.wantClosed()

	f.connect = func(ctx context.Context) (net.Conn, error) {
		d := tls.Dialer{Config: &tls.Config{RootCAs: roots, ServerName: "gateway.test"}}
		return d.DialContext(ctx, "tcp", f.address)
	}
	client := f.client(t, "ada-token")
	value := bytes.Repeat([]byte("rain"), 200_000)
	testkit.Must(t, client.ProduceSync(t.Context(), &kgo.Record{Topic: "weather", Value: value}).FirstErr())
	if got := f.count(t, "ada-token", "weather"); got != 1 {
		t.Errorf("consumed %d events, want 1", got)
	}
	c := f.login(t, "ada-token")
	c.wantAlive()
	c.wantLogin("ada-token")
	c.wantAlive()
}

// TestMechanisms asks for a mechanism that does not exist, learns the supported ones, and continues
// with one of them on the same connection.
func TestMechanisms(t *testing.T) {
	for version := range int16(2) {
		f := start(t)
		f.tokens.issue("ada-token", ada, time.Hour)
		c := f.dial(t)
		response := c.ask(saslHandshake(version, "SCRAM-SHA-256")).(*kmsg.SASLHandshakeResponse)
		if response.ErrorCode != kerr.UnsupportedSaslMechanism.Code || fmt.Sprint(response.SupportedMechanisms) != "[OAUTHBEARER PLAIN]" {
			t.Errorf("handshake for SCRAM = error %d, mechanisms %v", response.ErrorCode, response.SupportedMechanisms)
		}
		if version == 1 {
			c.wantLogin("ada-token")
		} else {
			c.loginRaw("ada-token")
		}
		c.wantAlive()
	}
}

// TestRawRefusal: clients that use version 0 of the handshake get no Kafka error. kafka-python 2.0
// takes a closed connection for a network failure and retries forever. The mechanism's own message
// for a refusal stops it. The gateway sends that message for refusals only.
func TestRawRefusal(t *testing.T) {
	f := start(t)
	c := f.dial(t)
	c.handshake(0)
	c.send(frame(oauthMessage("no-token")))
	if answer, err := c.frame(); err != nil || string(answer) != `{"status":"invalid_token"}` {
		t.Errorf("a raw login with an unknown token is answered with %q, %v", answer, err)
	}
	c.wantClosed()

	c = f.dial(t)
	c.ask(saslHandshake(0, "PLAIN"))
	c.send(frame([]byte("\x00key-nobodys\x00secret")))
	if answer, err := c.frame(); err == nil {
		t.Errorf("a raw login with an unknown key is answered with %q, want a closed connection", answer)
	}

	f.tokens.setDown(true)
	c = f.dial(t)
	c.handshake(0)
	c.send(frame(oauthMessage("new-token")))
	if answer, err := c.frame(); err == nil {
		t.Errorf("a raw login while nobody can tell who it is: %q, want a closed connection", answer)
	}
}

// TestApiVersions sends ApiVersions in every version, before and after the login.
func TestApiVersions(t *testing.T) {
	f := start(t)
	f.tokens.issue("ada-token", ada, time.Hour)
	for _, loggedIn := range []bool{false, true} {
		for _, version := range []int16{0, 1, 2, 3, 4, 6, 99, 32767} {
			c := f.dial(t)
			if loggedIn {
				c = f.login(t, "ada-token")
			}
			request, want := apiVersions(version), int16(0)
			if version > 4 {
				request, want = apiVersions(0), kerr.UnsupportedVersion.Code
				c.send(frame(head(keyApiVersions, version), "whatever it may be"))
			} else {
				c.send(appendRequest(request, 7))
			}
			response, err := c.response(request, 7)
			if err != nil {
				t.Errorf("version %d, logged in %v: %v", version, loggedIn, err)
				continue
			}
			if got := response.(*kmsg.ApiVersionsResponse); got.ErrorCode != want || len(got.ApiKeys) == 0 {
				t.Errorf("version %d, logged in %v: error %d and %d keys, want error %d", version, loggedIn, got.ErrorCode, len(got.ApiKeys), want)
			}
		}
	}
}

// TestSubjectsAreNotAdministrators has a subject try requests that only the service may make.
func TestSubjectsAreNotAdministrators(t *testing.T) {
	f := start(t)
	f.claim(t, "weather", ada)
	f.claim(t, "foreign", bert)
	f.tokens.issue("ada-token", ada, time.Hour)
	client := f.client(t, "ada-token")
	admin := kadm.NewClient(client)
	ctx := t.Context()
	for name, try := range map[string]func() error{
		"make an ACL": func() error {
			results, err := admin.CreateACLs(ctx, kadm.NewACLs().Topics("foreign").Operations(kadm.OpAll).
				ResourcePatternType(kadm.ACLPatternLiteral).Allow("User:"+ada).AllowHosts("*"))
			return errors.Join(err, results[0].Err)
		},
		"see ACLs": func() error {
			results, err := admin.DescribeACLs(ctx, kadm.NewACLs().AnyResource().Operations().Allow().AllowHosts().Deny().DenyHosts().ResourcePatternType(kadm.ACLPatternAny))
			if err == nil {
				err = results[0].Err
			}
			return err
		},
		"delete an ACL": func() error {
			results, err := admin.DeleteACLs(ctx, kadm.NewACLs().Topics("foreign").Operations().Allow().AllowHosts().ResourcePatternType(kadm.ACLPatternAny))
			if err == nil {
				err = results[0].Err
			}
			return err
		},
		"make a topic": func() error {
			_, err := admin.CreateTopic(ctx, 1, 1, nil, "another")
			return err
		},
		"delete its own topic": func() error {
			_, err := admin.DeleteTopic(ctx, "weather")
			return err
		},
		"delete another's topic": func() error {
			_, err := admin.DeleteTopic(ctx, "foreign")
			return err
		},
		"configure its own topic": func() error {
			results, err := admin.AlterTopicConfigs(ctx, []kadm.AlterConfig{{Name: "retention.ms", Value: kadm.StringPtr("1")}}, "weather")
			return errors.Join(err, results[0].Err)
		},
		"configure the broker": func() error {
			results, err := admin.AlterBrokerConfigs(ctx, []kadm.AlterConfig{{Name: "message.max.bytes", Value: kadm.StringPtr("1")}})
			return errors.Join(err, results[0].Err)
		},
		"delete its own records": func() error {
			offsets := make(kadm.Offsets)
			offsets.AddOffset("weather", 0, 0, -1)
			results, err := admin.DeleteRecords(ctx, offsets)
			return errors.Join(err, results.Error())
		},
		"add partitions": func() error {
			results, err := admin.CreatePartitions(ctx, 1, "weather")
			return errors.Join(err, results.Error())
		},
		"read another's topic": func() error {
			results, err := admin.ListEndOffsets(ctx, "foreign")
			return errors.Join(err, results.Error())
		},
		"read the ledger": func() error {
			if _, err := f.admin.CreateTopic(ctx, 1, 1, nil, "_diaspora_ledger"); err != nil {
				t.Fatal(err)
			}
			results, err := admin.ListEndOffsets(ctx, "_diaspora_ledger")
			return errors.Join(err, results.Error())
		},
	} {
		t.Run(name, func(t *testing.T) {
			err := try()
			if err == nil || !strings.Contains(err.Error(), "AUTHORIZATION_FAILED") && !strings.Contains(err.Error(), "UNKNOWN_TOPIC_OR_PARTITION") {
				t.Errorf("= %v, want an authorization to fail", err)
			}
		})
	}
}

// TestFetchIsBounded: a client that asks for all data at once gets it in several answers.
func TestFetchIsBounded(t *testing.T) {
	f := start(t, func(cfg *Config) { cfg.MaxFetchBytes = 1 << 20 })
	f.claim(t, "weather", ada)
	f.tokens.issue("ada-token", ada, time.Hour)
	client := f.client(t, "ada-token", kgo.ProducerBatchCompression(kgo.NoCompression()))
	value := bytes.Repeat([]byte("rain"), 100_000)
	for range 20 {
		testkit.Must(t, client.ProduceSync(t.Context(), &kgo.Record{Topic: "weather", Value: value}).FirstErr())
	}
	fetch := waitingFetch(0).(*kmsg.FetchRequest)
	fetch.MaxBytes, fetch.Topics[0].Partitions[0].PartitionMaxBytes = 1<<31-1, 1<<31-1
	response := f.login(t, "ada-token").ask(fetch).(*kmsg.FetchResponse)
	if got := len(response.Topics[0].Partitions[0].RecordBatches); got == 0 || got > 2<<20 {
		t.Errorf("a fetch of everything returns %d bytes, want about 1 MiB of 8", got)
	}
	if got := f.count(t, "ada-token", "weather"); got != 20 {
		t.Errorf("consumed %d events, want 20", got)
	}
}

// TestLargeRequests sends produce requests that are several times as large as the buffers.
func TestLargeRequests(t *testing.T) {
	f := start(t)
	if _, err := f.admin.CreateTopic(t.Context(), 1, 1, map[string]*string{"max.message.bytes": kmsg.StringPtr("50000000")}, "weather"); err != nil {
		t.Fatal(err)
	}
	testkit.Must(t, grant(t.Context(), f.admin, "weather", ada))
	f.tokens.issue("ada-token", ada, time.Hour)
	client := f.client(t, "ada-token", kgo.ProducerBatchMaxBytes(40<<20), kgo.ProducerBatchCompression(kgo.NoCompression()))
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if err := client.ProduceSync(t.Context(), &kgo.Record{Topic: "weather", Value: make([]byte, 30<<20)}).FirstErr(); err != nil {
				t.Errorf("produce 30 MiB: %v", err)
			}
		})
	}
	wg.Wait()
	if got := f.count(t, "ada-token", "weather"); got != 4 {
		t.Errorf("consumed %d events, want 4", got)
	}
}
