package interop

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/internal/claims"
	"github.com/diaspora-streams/diaspora/internal/globusdev"
	"github.com/diaspora-streams/diaspora/internal/inside"
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"
)

// rawConn is a connection to a gateway on which a test decides about every byte.
type rawConn struct {
	t testing.TB
	net.Conn
}

// signedInWire returns a connection that is signed in.
func signedInWire(t *testing.T, cfg diaspora.Config, broker string) rawConn {
	t.Helper()
	token, err := cfg.TokenSource.Token(testkit.Within(t))
	testkit.Must(t, err)
	return signInWire(t, broker, "OAUTHBEARER", "n,,\x01auth=Bearer "+token.AccessToken.Reveal()+"\x01\x01")
}

// keyWire returns a connection that is signed in with an access key.
func keyWire(t *testing.T, key diaspora.NewAccessKey, broker string) rawConn {
	t.Helper()
	return signInWire(t, broker, "PLAIN", "\x00"+key.ID+"\x00"+key.Secret.Reveal())
}

func signInWire(t *testing.T, broker, mechanism, message string) rawConn {
	t.Helper()
	conn, err := new(net.Dialer).DialContext(testkit.Within(t), "tcp", broker)
	testkit.Must(t, err)
	t.Cleanup(func() { conn.Close() })
	w := rawConn{t, conn}
	w.signIn(mechanism, message)
	return w
}

// signIn signs a connection in.
func (w rawConn) signIn(mechanism, message string) {
	w.t.Helper()
	handshake := kmsg.NewPtrSASLHandshakeRequest()
	handshake.Version, handshake.Mechanism = 1, mechanism
	login := kmsg.NewPtrSASLAuthenticateRequest()
	login.Version, login.SASLAuthBytes = 1, []byte(message)
	w.ask(handshake)
	testkit.Must(w.t, kerr.ErrorForCode(w.ask(login).(*kmsg.SASLAuthenticateResponse).ErrorCode))
}

// ask sends a request, and returns its answer.
func (w rawConn) ask(request kmsg.Request) kmsg.Response {
	w.t.Helper()
	answer, _, err := w.try(request)
	testkit.Must(w.t, err)
	return answer
}

// try sends a request, and returns its answer, also as the bytes that came. The error says that
// there was none.
func (w rawConn) try(request kmsg.Request) (answer kmsg.Response, body []byte, err error) {
	if err := w.send(request); err != nil {
		return nil, nil, err
	}
	return w.answer(request)
}

func (w rawConn) send(request kmsg.Request) error {
	w.SetDeadline(time.Now().Add(testkit.Patience))
	_, err := w.Write(kmsg.NewRequestFormatter().AppendRequest(nil, request, 1))
	return err
}

// answer reads the answer to a request that was sent.
func (w rawConn) answer(request kmsg.Request) (answer kmsg.Response, body []byte, err error) {
	var size [4]byte
	if _, err := io.ReadFull(w, size[:]); err != nil {
		return nil, nil, err
	}
	frame := make([]byte, binary.BigEndian.Uint32(size[:]))
	if _, err := io.ReadFull(w, frame); err != nil {
		return nil, nil, err
	}
	answer, body = request.ResponseKind(), frame[4:]
	if answer.IsFlexible() && answer.Key() != int16(kmsg.ApiVersions) {
		body = body[1:] // no tags
	}
	return answer, body, answer.ReadFrom(body)
}

// TestHalfRequests: many connections announce large requests and send next to nothing of
// them. A broker that made room for all of that would need more memory than it has.
func TestHalfRequests(t *testing.T) {
	parallel(t)
	f := start(t, fabric.Config{})
	cfg := fabrictest.As(t, f, ada)
	partition := kmsg.NewProduceRequestTopicPartition()
	partition.Records = make([]byte, 1<<20-1000)
	request := kmsg.NewPtrProduceRequest()
	request.Version, request.Acks, request.TimeoutMillis = 9, -1, 1000
	request.Topics = []kmsg.ProduceRequestTopic{{Topic: "weather", Partitions: []kmsg.ProduceRequestTopicPartition{partition}}}
	half := kmsg.NewRequestFormatter().AppendRequest(nil, request, 1)[:70_000] // of a megabyte
	for range 800 {
		w := signedInWire(t, cfg, f.Discovery().Brokers[0])
		if _, err := w.Write(half); err != nil {
			t.Fatal(err)
		}
	}
	// Another one's events pass meanwhile.
	other := fabrictest.As(t, f, grace)
	others := claim(t, other, 1)
	fabrictest.Log(t, fabrictest.OpenLogger(t, other), others, "still here")
	consumer := fabrictest.OpenConsumer(t, other, diaspora.ConsumerOptions{Topics: []string{others}})
	if got := values(fabrictest.Read(t, consumer, 1)); got != "still here" {
		t.Errorf("read %q", got)
	}
}

// newcomer is a person whom the fabric has not seen before, not even on an old cluster.
func newcomer(t *testing.T, f *fabric.Fabric) diaspora.Config {
	t.Helper()
	username := strings.ToLower(unique(t)) + "@example.edu"
	if _, err := inside.Of(f).Globus.AddUser(globusdev.User{Identity: globusdev.Identity{Username: username}}); err != nil {
		t.Fatal(err)
	}
	return fabrictest.As(t, f, username)
}

// ledgerEnd returns how many records the ledger has.
func ledgerEnd(t *testing.T, f *fabric.Fabric) int64 {
	t.Helper()
	ends, err := fabrictest.Admin(t, f).ListEndOffsets(testkit.Within(t), claims.LedgerTopic)
	testkit.Must(t, err)
	end, _ := ends.Lookup(claims.LedgerTopic, 0)
	return end.Offset
}

// TestLedgerGrowth: a person who makes and revokes access keys in a loop, several at once, and has
// each revoked by several requests, adds to the ledger for an hour what an hour allows. There was
// no end to it: 11,574 records in 5 s on an Apache Kafka.
func TestLedgerGrowth(t *testing.T) {
	parallel(t)
	const perHour = 2000 // the default
	f := start(t, fabric.Config{})
	attacker := fabrictest.Client(t, newcomer(t, f))
	before := ledgerEnd(t, f)
	deadline := time.Now().Add(testkit.Patience)
	refusals := make(chan error, 8)
	var wg sync.WaitGroup
	for worker := range cap(refusals) {
		wg.Go(func() {
			for n := 0; time.Now().Before(deadline); n++ {
				key, err := attacker.CreateKey(t.Context(), diaspora.AccessKeyRequest{Name: fmt.Sprint("k", worker, "-", n), Read: true, Write: true})
				if err != nil {
					refusals <- err
					return
				}
				var revoking sync.WaitGroup
				for range 3 {
					revoking.Go(func() {
						if err := attacker.RevokeKey(t.Context(), key.ID); err != nil {
							t.Error(err)
						}
					})
				}
				revoking.Wait()
			}
			refusals <- errors.New("not refused")
		})
	}
	wg.Wait()
	for range cap(refusals) {
		wantError(t, "a loop over keys", <-refusals, diaspora.ErrPermission, "the limit is 2000 (max-records-per-hour)", "ask the operators of this fabric")
	}
	// Each worker may have one key left to revoke.
	if added := ledgerEnd(t, f) - before; added > perHour+8 {
		t.Errorf("the ledger has %d records more, want at most %d", added, perHour+8)
	}
	_, err := attacker.Claim(testkit.Within(t), diaspora.ClaimRequest{Name: unique(t)})
	wantError(t, "a claim afterwards", err, diaspora.ErrPermission, "max-records-per-hour")
	claim(t, fabrictest.As(t, f, grace), 1) // another one is not affected
}

// TestPartitionGrowth: a person who claims topics of as many partitions as one may have comes to an
// end. 3,800 partitions took 8 s, and a thousand topics could have a hundred each.
func TestPartitionGrowth(t *testing.T) {
	parallel(t)
	f := start(t, fabric.Config{})
	attacker := fabrictest.Client(t, newcomer(t, f))
	partitions, name := 0, unique(t)
	var refusal error
	for n := 0; refusal == nil && n < 40; n++ {
		var topic diaspora.Topic
		topic, refusal = attacker.Claim(testkit.Within(t), diaspora.ClaimRequest{Name: fmt.Sprint(name, n), Partitions: 100})
		partitions += topic.Partitions
	}
	if partitions != 2000 {
		t.Errorf("one person has %d partitions, want 2000", partitions)
	}
	wantError(t, "one more", refusal, diaspora.ErrPermission, "the limit is 2000 (max-partitions)", "ask the operators of this fabric")
	claim(t, fabrictest.As(t, f, grace), 1)
	topics, err := attacker.Topics(testkit.Within(t))
	testkit.Must(t, err)
	for _, topic := range topics.Topics {
		if err := attacker.Release(testkit.Within(t), topic.Name); err != nil {
			t.Error(err)
		}
	}
}
