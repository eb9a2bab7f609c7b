package fabrictest

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// Thief is somebody who wants tokens. It listens on 127.0.0.1, and has a certificate for
// the names that it was given.
type Thief struct {
	CA     string // PEM of its certificate, for discovery documents
	CAFile string // the same in a file, for DIASPORA_CA_FILE

	https, http *httptest.Server
	gateway     net.Listener
	proxy       net.Listener
	secure      *tls.Config

	mu       sync.Mutex // guards the fields below
	document diaspora.Discovery
	leads    string   // where the gateway sends clients
	loot     []string // all secrets that it was shown, with where
	asked    []string // paths that were requested
}

// NewThief starts one. Its certificate is for these names and 127.0.0.1.
func NewThief(t testkit.TB, names ...string) *Thief {
	t.Helper()
	th := &Thief{}
	certificate, pemBytes := testkit.Certificate(t, time.Now().Add(time.Hour), append(names, "127.0.0.1")...)
	th.CA, th.CAFile = string(pemBytes), filepath.Join(t.TempDir(), "thief.pem")
	testkit.Must(t, os.WriteFile(th.CAFile, pemBytes, 0o600))
	th.secure = &tls.Config{Certificates: []tls.Certificate{certificate}}
	th.https = httptest.NewUnstartedServer(http.HandlerFunc(th.serveHTTP))
	th.https.TLS = th.secure.Clone()
	th.https.StartTLS()
	t.Cleanup(th.https.Close)
	th.http = httptest.NewServer(http.HandlerFunc(th.serveHTTP))
	t.Cleanup(th.http.Close)
	th.gateway = th.accept(t, func(conn net.Conn) { th.serveKafka(tls.Server(conn, th.secure)) })
	th.proxy = th.accept(t, th.serveProxy)
	th.leads = th.Gateway()
	return th
}

// accept serves connections until the test ends.
func (th *Thief) accept(t testkit.TB, serve func(net.Conn)) net.Listener {
	t.Helper()
	ln := testkit.Listen(t)
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				serve(conn)
			}()
		}
	}()
	return ln
}

// HTTPS is where the ACL endpoint and Globus Auth listen with TLS, as host:port.
func (th *Thief) HTTPS() string { return th.https.Listener.Addr().String() }

// HTTP is where they listen without TLS, as host:port.
func (th *Thief) HTTP() string { return th.http.Listener.Addr().String() }

// Gateway is where the gateway listens, as host:port. It speaks TLS.
func (th *Thief) Gateway() string { return th.gateway.Addr().String() }

// Proxy is the URL of a proxy that leads to the thief, whichever host was asked for.
func (th *Thief) Proxy() string { return "http://" + th.proxy.Addr().String() }

// Says sets the discovery document.
func (th *Thief) Says(d diaspora.Discovery) {
	th.mu.Lock()
	defer th.mu.Unlock()
	th.document = d
}

// Leads has the gateway say that all brokers are at an address.
func (th *Thief) Leads(address string) {
	th.mu.Lock()
	defer th.mu.Unlock()
	th.leads = address
}

// Loot returns each secret that the thief was shown, after where.
func (th *Thief) Loot() []string {
	th.mu.Lock()
	defer th.mu.Unlock()
	return append([]string(nil), th.loot...)
}

// Asked returns the paths that the ACL endpoint and Globus Auth were asked for.
func (th *Thief) Asked() []string {
	th.mu.Lock()
	defer th.mu.Unlock()
	return append([]string(nil), th.asked...)
}

func (th *Thief) take(where, secret string) {
	th.mu.Lock()
	defer th.mu.Unlock()
	th.loot = append(th.loot, where+": "+secret)
}

// serveHTTP is the ACL endpoint and Globus Auth in one.
func (th *Thief) serveHTTP(w http.ResponseWriter, r *http.Request) {
	th.mu.Lock()
	th.asked = append(th.asked, r.URL.Path)
	document := th.document
	th.mu.Unlock()
	if secret := r.Header.Get("Authorization"); secret != "" {
		th.take(r.Host+r.URL.Path, secret)
	}
	if body, _ := io.ReadAll(r.Body); len(body) > 0 {
		th.take(r.Host+r.URL.Path, string(body))
	}
	w.Header().Set("Content-Type", "application/json")
	switch r.URL.Path {
	case "/.well-known/diaspora":
		json.NewEncoder(w).Encode(document)
	case "/v2/oauth2/token":
		json.NewEncoder(w).Encode(map[string]any{
			"access_token": "thief-at", "refresh_token": "thief-rt", "token_type": "Bearer", "expires_in": 3600,
			"resource_server": document.Globus.ResourceServer, "scope": document.Globus.Scope,
		})
	case "/v1/identity":
		io.WriteString(w, `{"subject":"cecbec21-8ed7-5287-af26-023cff2818b6","username":"ada@example.edu"}`)
	default:
		io.WriteString(w, "{}")
	}
}

// serveProxy answers CONNECT by a way to the thief's own endpoint.
func (th *Thief) serveProxy(conn net.Conn) {
	var head []byte
	for one := make([]byte, 1); !bytes.HasSuffix(head, []byte("\r\n\r\n")); head = append(head, one[0]) {
		if _, err := conn.Read(one); err != nil {
			return
		}
	}
	own, err := net.Dial("tcp", th.HTTPS())
	if err != nil {
		return
	}
	defer own.Close()
	io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\n")
	go io.Copy(own, conn)
	io.Copy(conn, own)
}

// serveKafka lets everybody in, and leads them to other brokers.
func (th *Thief) serveKafka(conn net.Conn) {
	for {
		var size [4]byte
		if _, err := io.ReadFull(conn, size[:]); err != nil {
			return
		}
		frame := make([]byte, binary.BigEndian.Uint32(size[:]))
		if _, err := io.ReadFull(conn, frame); err != nil {
			return
		}
		if _, secret, ok := bytes.Cut(frame, []byte("auth=Bearer ")); ok {
			th.take("Kafka", string(bytes.Trim(secret, "\x01\x00")))
		}
		if _, err := conn.Write(th.answer(frame)); err != nil {
			return
		}
	}
}

// answer answers a request: those that a client sends before it produces or consumes.
func (th *Thief) answer(frame []byte) []byte {
	key, version, id := int16(binary.BigEndian.Uint16(frame)), int16(binary.BigEndian.Uint16(frame[2:])), frame[4:8]
	th.mu.Lock()
	host, port, _ := net.SplitHostPort(th.leads)
	th.mu.Unlock()
	resp := kmsg.ResponseForKey(key)
	switch resp := resp.(type) {
	case *kmsg.ApiVersionsResponse:
		if version > 0 {
			version, resp.ErrorCode = 0, 35 // UNSUPPORTED_VERSION, in the layout of version 0
		}
		for key, most := range map[int16]int16{3: 8, 17: 1, 18: 0, 36: 1} {
			k := kmsg.NewApiVersionsResponseApiKey()
			k.ApiKey, k.MaxVersion = key, most
			resp.ApiKeys = append(resp.ApiKeys, k)
		}
	case *kmsg.SASLHandshakeResponse:
		resp.SupportedMechanisms = []string{"OAUTHBEARER"}
	case *kmsg.MetadataResponse:
		b := kmsg.NewMetadataResponseBroker()
		b.NodeID, b.Host = 1, host
		for _, digit := range []byte(port) {
			b.Port = b.Port*10 + int32(digit-'0')
		}
		resp.Brokers, resp.ControllerID = []kmsg.MetadataResponseBroker{b}, 1
		p := kmsg.NewMetadataResponseTopicPartition()
		p.Leader, p.Replicas, p.ISR = 1, []int32{1}, []int32{1}
		topic := kmsg.NewMetadataResponseTopic()
		topic.Topic, topic.Partitions = kmsg.StringPtr("weather"), []kmsg.MetadataResponseTopicPartition{p}
		resp.Topics = []kmsg.MetadataResponseTopic{topic}
	}
	resp.SetVersion(version)
	body := resp.AppendTo(append([]byte(nil), id...))
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)
}

// String tells what the thief has, for failures of tests.
func (th *Thief) String() string { return strings.Join(th.Loot(), "\n") }
