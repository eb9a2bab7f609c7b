package gateway

import (
	"context"
	"errors"
	"maps"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// shortSessions is a broker whose sessions expire, so that the gateway has to sign in again.
type shortSessions struct {
	Upstream
	session time.Duration
	logins  atomic.Int64
	err     atomic.Pointer[error] // the error of every login, if set
}

func (s *shortSessions) SignIn(ctx context.Context, nc net.Conn, conn kmsg.Requestor, subject string) (time.Time, error) {
	s.logins.Add(1)
	if err := s.err.Load(); err != nil {
		return time.Time{}, *err
	}
	if _, relays := conn.(relayRequestor); !relays {
		_, err := s.Upstream.SignIn(ctx, nc, conn, subject)
		return time.Now().Add(s.session), err
	}
	// The embedded broker takes no second login on a connection, so another request stands for it.
	request := kmsg.NewPtrListGroupsRequest()
	request.Version = 4 // flexible
	_, err := request.RequestWith(ctx, conn)
	return time.Now().Add(s.session), err
}

// TestBrokerSessionsAreRenewed keeps a client at work for fifty minutes on sessions of one minute.
// The client must not notice, and nothing may be logged.
func TestBrokerSessionsAreRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		upstream := &shortSessions{session: time.Minute}
		f := startInMemory(t, func(cfg *Config) {
			upstream.Upstream = cfg.Upstream
			cfg.Upstream = upstream
		})
		f.claim(t, "weather", ada)
		f.tokens.issue("ada-token", ada, 2*time.Hour)
		var dials atomic.Int64
		client := f.client(t, "ada-token", kgo.ConsumeTopics("weather"), kgo.ProducerLinger(0),
			kgo.MetadataMaxAge(time.Hour), kgo.WithHooks(countDials(&dials)))
		fiftyMinutes(t, client)
		if n := upstream.logins.Load(); n < 98 {
			t.Errorf("%d logins in fifty minutes, want one for each of two connections every minute", n)
		}
		if n := dials.Load(); n > 5 {
			t.Errorf("%d connections, want no more than the first", n)
		}
		client.Close()
		f.stop(t)
	})
}

// TestBrokerSessionLost: a connection whose broker session cannot be renewed is closed. The client
// must take that for an outage, never for a refusal.
func TestBrokerSessionLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		upstream := &shortSessions{session: time.Minute}
		f := startInMemory(t, func(cfg *Config) {
			upstream.Upstream = cfg.Upstream
			cfg.Upstream = upstream
		})
		f.tokens.issue("ada-token", ada, time.Hour)
		c := f.login(t, "ada-token")
		c.wantAlive()
		refused := errors.New("the broker refuses the gateway")
		upstream.err.Store(&refused)
		time.Sleep(time.Minute - time.Second)
		c.wantAlive()
		time.Sleep(2 * time.Second)
		c.SetDeadline(time.Now().Add(impatience))
		go c.send(appendRequest(apiVersions(3), 1))
		c.wantClosed()
		if s := f.gateway.Stats(); s.Refused != 0 {
			t.Errorf("%d logins refused, want none", s.Refused)
		}
	})
}

// silentBroker accepts connections and sends nothing.
type silentBroker struct{}

func (silentBroker) Dial(context.Context) (net.Conn, error) {
	ours, theirs := net.Pipe()
	go func() {
		defer theirs.Close()
		for buf := make([]byte, 1024); ; {
			if _, err := theirs.Read(buf); err != nil {
				return
			}
		}
	}()
	return ours, nil
}

func (silentBroker) SignIn(ctx context.Context, _ net.Conn, conn kmsg.Requestor, _ string) (time.Time, error) {
	_, err := kmsg.NewPtrSASLHandshakeRequest().RequestWith(ctx, conn)
	return time.Time{}, err
}

// TestSilentBroker: a login ends within LoginTimeout, whatever the broker does.
func TestSilentBroker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startInMemory(t, func(cfg *Config) { cfg.Upstream = silentBroker{} })
		f.tokens.issue("ada-token", ada, time.Hour)
		c := f.dial(t)
		c.handshake(1)
		go c.send(appendRequest(saslAuthenticate(1, oauthMessage("ada-token")), 1))
		if d := c.lifetime(); d > 16*time.Second { // LoginTimeout's default, and a margin
			t.Errorf("the login took %v", d)
		}
	})
}

// newerBroker offers requests and versions that the gateway does not know.
type newerBroker struct{ silentBroker }

func (newerBroker) Dial(context.Context) (net.Conn, error) {
	ours, theirs := net.Pipe()
	go func() {
		defer theirs.Close()
		from := &frameReader{r: theirs}
		for {
			size, err := from.size()
			if err != nil {
				return
			}
			from.discard(4)
			request, err := from.readN(size)
			if err != nil {
				return
			}
			h := parseHeader(request)
			response := kmsg.NewPtrApiVersionsResponse()
			response.Version = h.version
			for _, offer := range [][3]int16{
				{0, 3, 99}, {1, 4, 18}, // produce is newer than the gateway, fetch is not
				{2, 100, 110}, {4, 0, 9}, {38, 1, 3}, {99, 0, 0}, // ListOffsets too new; a request between brokers; delegation tokens; an unknown key
			} {
				key := kmsg.NewApiVersionsResponseApiKey()
				key.ApiKey, key.MinVersion, key.MaxVersion = offer[0], offer[1], offer[2]
				response.ApiKeys = append(response.ApiKeys, key)
			}
			feature := kmsg.NewApiVersionsResponseSupportedFeature()
			feature.Name, feature.MaxVersion = "a.feature", 7
			response.SupportedFeatures = append(response.SupportedFeatures, feature)
			if _, err := theirs.Write(appendResponse(nil, h.correlation, response)); err != nil {
				return
			}
		}
	}()
	return ours, nil
}

// TestNewerBroker: the gateway offers clients only requests that it supports itself. Otherwise they
// would send others, which would end their connections.
func TestNewerBroker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startInMemory(t, func(cfg *Config) { cfg.Upstream = newerBroker{} })
		response := f.dial(t).ask(apiVersions(3)).(*kmsg.ApiVersionsResponse)
		got := map[int16][2]int16{}
		for _, r := range response.ApiKeys {
			got[r.ApiKey] = [2]int16{r.MinVersion, r.MaxVersion}
		}
		produce := kmsg.NewPtrProduceRequest()
		if want := map[int16][2]int16{0: {3, produce.MaxVersion()}, 1: {4, 18}, 17: {0, 1}, 36: {0, 2}}; !maps.Equal(got, want) {
			t.Errorf("the client is told of %v, want %v", got, want)
		}
		if len(response.SupportedFeatures) != 1 || response.SupportedFeatures[0].MaxVersion != 7 {
			t.Errorf("the client is told of features %v", response.SupportedFeatures)
		}
	})
}
