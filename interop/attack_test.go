package interop

import (
	"encoding/binary"
	"io"
	"net"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/fabric"
)

// rawConn is a connection to a gateway on which a test decides about every byte.
type rawConn struct {
	t testing.TB
	net.Conn
}

// signedInWire returns a connection that is signed in.
func signedInWire(t *testing.T, cfg diaspora.Config, broker string) rawConn {
	t.Helper()
	token, err := cfg.TokenSource.Token(within(t))
	if err != nil {
		t.Fatal(err)
	}
	return signInWire(t, broker, "OAUTHBEARER", "n,,\x01auth=Bearer "+token.AccessToken.Reveal()+"\x01\x01")
}

// keyWire returns a connection that is signed in with an access key.
func keyWire(t *testing.T, key diaspora.NewAccessKey, broker string) rawConn {
	t.Helper()
	return signInWire(t, broker, "PLAIN", "\x00"+key.ID+"\x00"+key.Secret.Reveal())
}

func signInWire(t *testing.T, broker, mechanism, message string) rawConn {
	t.Helper()
	conn, err := new(net.Dialer).DialContext(within(t), "tcp", broker)
	if err != nil {
		t.Fatal(err)
	}
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
	if err := kerr.ErrorForCode(w.ask(login).(*kmsg.SASLAuthenticateResponse).ErrorCode); err != nil {
		w.t.Fatal(err)
	}
}

// ask sends a request, and returns its answer.
func (w rawConn) ask(request kmsg.Request) kmsg.Response {
	w.t.Helper()
	answer, _, err := w.try(request)
	if err != nil {
		w.t.Fatal(err)
	}
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
	w.SetDeadline(time.Now().Add(patience))
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
	cfg := as(t, f, ada)
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
	other := as(t, f, grace)
	others := claim(t, other, 1)
	log(t, openLogger(t, other), others, "still here")
	consumer := openConsumer(t, other, diaspora.ConsumerOptions{Topics: []string{others}})
	if got := values(read(t, consumer, 1)); got != "still here" {
		t.Errorf("read %q", got)
	}
}
