package gateway

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// echo is a broker that answers a Produce with the request itself.
type echo struct{ address string }

func (e echo) Dial(ctx context.Context) (net.Conn, error) {
	if e.address != "" {
		return new(net.Dialer).DialContext(ctx, "tcp", e.address)
	}
	ours, theirs := net.Pipe()
	go serveEcho(theirs)
	return ours, nil
}

func (echo) SignIn(context.Context, net.Conn, kmsg.Requestor, string) (time.Time, error) {
	return time.Time{}, nil
}

// startEcho serves on a port of the loopback until the test ends.
func startEcho(t *testing.T) echo {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	testkit.Must(t, err)
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go serveEcho(conn)
		}
	}()
	return echo{ln.Addr().String()}
}

func serveEcho(conn net.Conn) {
	defer conn.Close()
	from := &frameReader{r: conn}
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
		answer := frame(h.correlation, request)
		if h.key == keyApiVersions {
			response := kmsg.NewPtrApiVersionsResponse()
			response.Version = h.version
			key := kmsg.NewApiVersionsResponseApiKey()
			key.ApiKey, key.MinVersion, key.MaxVersion = keyProduce, 3, 9
			response.ApiKeys = append(response.ApiKeys, key)
			answer = appendResponse(nil, h.correlation, response)
		}
		if _, err := conn.Write(answer); err != nil {
			return
		}
	}
}

// overTLS makes the front serve with TLS, and returns what makes a client's connection of it.
func overTLS(t *testing.T) (server *tls.Config, client func(net.Conn) net.Conn) {
	certificate, _ := testkit.Certificate(t, time.Now().Add(time.Hour), "127.0.0.1")
	roots := x509.NewCertPool()
	roots.AddCert(certificate.Leaf)
	return &tls.Config{Certificates: []tls.Certificate{certificate}}, func(conn net.Conn) net.Conn {
		return tls.Client(conn, &tls.Config{RootCAs: roots, ServerName: "127.0.0.1"})
	}
}

// TestFramesOfEverySize sends requests of many sizes without waiting, and gets them back unchanged and
// in order, on each way that a frame can take.
func TestFramesOfEverySize(t *testing.T) {
	server, client := overTLS(t)
	for _, way := range []struct {
		name     string
		upstream echo
		tls      bool
		busy     bool // no answer can be spliced
	}{
		{"TCP", startEcho(t), false, false},
		{"TCP without splicing", startEcho(t), false, true},
		{"TLS", startEcho(t), true, false},
		{"broker in memory", echo{}, false, false},
		{"TLS, broker in memory", echo{}, true, false},
	} {
		t.Run(way.name, func(t *testing.T) {
			f := start(t, func(cfg *Config) {
				cfg.Upstream = way.upstream
				if way.tls {
					cfg.TLS = server
				}
			})
			f.tokens.issue("ada-token", ada, time.Hour)
			if way.busy {
				testkit.Must(t, f.gateway.splices.Acquire(t.Context(), maxSplices))
			}
			conn, err := f.connect(t.Context())
			testkit.Must(t, err)
			if way.tls {
				conn = client(conn)
			}
			c := newRaw(t, conn, nil)
			c.wantLogin("ada-token")
			c.SetDeadline(time.Now().Add(time.Minute))

			random := rand.NewChaCha8([32]byte{1})
			overhead := len(appendRequest(produceRequest(7), 1)) - 100
			var requests [][]byte
			for _, size := range []int{
				overhead, firstBytes - 8, firstBytes - 1, firstBytes, firstBytes + 1, firstBytes + 7, 1000,
				readerBytes - 8, readerBytes - 1, readerBytes, readerBytes + 1, 8 << 10, 16 << 10, 20_000,
				chunkBytes - 9, chunkBytes - 8, chunkBytes - 7, chunkBytes, chunkBytes + 1, chunkBytes + firstBytes, 2 * chunkBytes, 2*chunkBytes + 1,
				1 << 20, 1<<20 + 1, 5 << 20, 100,
			} {
				p := produceRequest(7)
				p.Topics[0].Partitions[0].Records = make([]byte, max(0, size-overhead))
				random.Read(p.Topics[0].Partitions[0].Records)
				requests = append(requests, appendRequest(p, int32(size)))
			}
			sent := make(chan error, 1)
			go func() {
				_, err := c.Write(bytes.Join(requests, nil))
				sent <- err
			}()
			for _, request := range requests {
				want := frame(request[8:12], request[4:])
				got := make([]byte, len(want))
				if _, err := io.ReadFull(c, got); err != nil {
					t.Fatalf("the answer to a request of %d bytes: %v", len(request), err)
				}
				if !bytes.Equal(got, want) {
					t.Fatalf("the answer to a request of %d bytes is another", len(request))
				}
			}
			testkit.Must(t, <-sent)
		})
	}
}

// TestStopDoesNotWaitForReaders: clients that do not read their answers cannot delay the end of a
// gateway, whatever way the answers take.
func TestStopDoesNotWaitForReaders(t *testing.T) {
	server, client := overTLS(t)
	for _, encrypted := range []bool{false, true} {
		f := start(t, func(cfg *Config) {
			cfg.Upstream = startEcho(t)
			cfg.DrainTimeout = 100 * time.Millisecond
			if encrypted {
				cfg.TLS = server
			}
		})
		f.tokens.issue("ada-token", ada, time.Hour)
		for range 3 {
			conn, err := f.connect(t.Context())
			testkit.Must(t, err)
			if encrypted {
				conn = client(conn)
			}
			c := newRaw(t, conn, nil)
			c.wantLogin("ada-token")
			p := produceRequest(7)
			p.Topics[0].Partitions[0].Records = make([]byte, 20<<20)
			c.send(appendRequest(p, 1))
			// The gateway has begun to write an answer that is too large for the buffers of a connection.
			_, err = conn.Read(make([]byte, 1))
			testkit.Must(t, err)
		}
		began := time.Now()
		f.stopGateway(t)
		f.stopGateway = func(testing.TB) {}
		if took := time.Since(began); took > 4*time.Second {
			t.Errorf("with TLS %v: the gateway stops after %v", encrypted, took)
		}
	}
}
