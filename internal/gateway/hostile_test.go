package gateway

import (
	"math/rand/v2"
	"reflect"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora/internal/broker"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// TestNonsenseFromASubject sends well-formed requests that make no sense, from a subject that may
// read and write one topic and join any group. The broker runs in this process. It must not panic,
// neither now nor when it opens its data again.
func TestNonsenseFromASubject(t *testing.T) {
	f := start(t)
	f.claim(t, "weather", ada)
	f.claim(t, "foreign", bert)
	f.tokens.issue("ada-token", ada, time.Hour)
	f.tokens.issue("bert-token", bert, time.Hour)
	bystander := f.client(t, "bert-token")
	for seed := range uint64(20) {
		f.nonsense(t, seed, 200)
		testkit.Must(t, bystander.ProduceSync(t.Context(), &kgo.Record{Topic: "foreign", Value: []byte("rain")}).FirstErr())
	}
	if got := f.count(t, "bert-token", "foreign"); got != 20 {
		t.Errorf("another subject's topic has %d records, want 20", got)
	}
	f.stop(t)
	again, err := broker.Open(broker.Config{Dir: f.dir, Advertise: f.address})
	testkit.Must(t, err)
	if err := again.Close(); err != nil {
		t.Error(err)
	}
}

func FuzzNonsenseFromASubject(f *testing.F) {
	front := start(f)
	front.claim(f, "weather", ada)
	front.tokens.issue("ada-token", ada, 24*time.Hour)
	f.Add(uint64(0))
	f.Fuzz(func(t *testing.T, seed uint64) { front.nonsense(t, seed, 50) })
}

// nonsense sends n requests.
func (f *front) nonsense(t testing.TB, seed uint64, n int) {
	t.Helper()
	keys := f.advertised(t)
	b := bodies{rand: rand.New(rand.NewPCG(seed, 0)), topicID: f.topicID(t, "weather")}
	var c *raw
	defer func() {
		if c != nil {
			c.Close()
		}
	}()
	for i := range int32(n) {
		if c == nil {
			c = f.login(t, "ada-token")
		}
		k := keys[b.rand.IntN(len(keys))]
		if k.ApiKey == keySaslHandshake || k.ApiKey == keySaslAuthenticate {
			continue
		}
		request := b.request(k.ApiKey, k.MinVersion+int16(b.rand.IntN(int(k.MaxVersion-k.MinVersion)+1)))
		c.SetDeadline(time.Now().Add(30 * time.Millisecond)) // some requests wait forever
		c.send(appendRequest(request, i))
		response, err := c.response(request, i)
		if err != nil {
			c.Close()
			c = nil
			continue
		}
		if k.ApiKey != keyApiVersions {
			b.harvest(reflect.ValueOf(response).Elem())
		}
	}
}

// advertised are the requests that the broker offers.
func (f *front) advertised(t testing.TB) []kmsg.ApiVersionsResponseApiKey {
	t.Helper()
	return f.dial(t).ask(apiVersions(3)).(*kmsg.ApiVersionsResponse).ApiKeys
}

// TestForgedProxyHeader: a client that is not a trusted proxy cannot pass for another address.
func TestForgedProxyHeader(t *testing.T) {
	f := start(t)
	c := f.dial(t)
	c.send([]byte("\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\xc0\x00\x02\x07\xc6\x33\x64\x01\x1f\x90\x23\x84"))
	c.wantClosed()
	if got := f.gateway.Stats().BadRequests; got != 1 {
		t.Errorf("Stats.BadRequests = %d, want 1", got)
	}
}
