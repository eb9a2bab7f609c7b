package doctor

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// authority is a CA that signs certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  string
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{Organization: []string{"Test Authority"}},
		NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(1000 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	a.key = newKey(t)
	der, err := x509.CreateCertificate(rand.Reader, template, template, a.key.Public(), a.key)
	if err == nil {
		a.cert, err = x509.ParseCertificate(der)
	}
	testkit.Must(t, err)
	a.pem = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	return a
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	testkit.Must(t, err)
	return key
}

// certificate returns a certificate for a host, or for this machine if host is "".
func (a *authority) certificate(t *testing.T, host string, left time.Duration) tls.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "server"},
		NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: time.Now().Add(left),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if host == "" {
		template.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
	} else {
		template.DNSNames = []string{host}
	}
	key := newKey(t)
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	testkit.Must(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// front is a TLS proxy before a fabric, as operators may run one. Its certificates may be wrong,
// and it may answer with pages of its own.
type front struct {
	acl, gateway tls.Certificate
	ca           string                  // the CA that clients are told to trust
	page         map[string]http.Handler // handlers that replace the fabric's, by path
}

// standBehind puts the fabric behind a front, and logs ada in through it.
func (w *world) standBehind(f front) {
	w.Helper()
	kafka := w.between(&tls.Config{Certificates: []tls.Certificate{f.gateway}}, nil)
	d := w.fabric.Discovery()
	d.Brokers, d.Security, d.CA = []string{kafka}, "tls", f.ca
	document, err := json.Marshal(d)
	testkit.Must(w, err)
	behind, err := url.Parse(w.fabric.URL())
	testkit.Must(w, err)
	proxy := &httputil.ReverseProxy{ErrorLog: log.New(io.Discard, "", 0), Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(behind) }}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		switch page := f.page[r.URL.Path]; {
		case page != nil:
			page.ServeHTTP(rw, r)
		case r.URL.Path == "/.well-known/diaspora":
			rw.Header().Set("Content-Type", "application/json")
			rw.Write(document)
		default:
			proxy.ServeHTTP(rw, r)
		}
	}))
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.TLS = &tls.Config{Certificates: []tls.Certificate{f.acl}}
	server.StartTLS()
	w.Cleanup(server.Close)
	w.store(server.URL, d)
}

// between listens in front of the gateway, and replaces the gateway's address with its own in
// responses of the cluster. The responses may be rewritten.
func (w *world) between(secure *tls.Config, rewrite func(frame []byte) []byte) (address string) {
	w.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	testkit.Must(w, err)
	address = ln.Addr().String()
	gateway := w.fabric.Brokers()[0]
	if rewrite == nil {
		rewrite = func(frame []byte) []byte { return bytes.ReplaceAll(frame, kafkaHost(gateway), kafkaHost(address)) }
	}
	if secure != nil {
		ln = tls.NewListener(ln, secure)
	}
	var open sync.WaitGroup
	open.Go(func() {
		for {
			client, err := ln.Accept()
			if err != nil {
				return
			}
			open.Go(func() { relay(client, gateway, rewrite) })
		}
	})
	w.Cleanup(func() { ln.Close(); open.Wait() })
	return address
}

// kafkaHost encodes an address as in the cluster's responses: host, then port.
func kafkaHost(address string) []byte {
	at := netip.MustParseAddrPort(address)
	return binary.BigEndian.AppendUint32([]byte(at.Addr().String()), uint32(at.Port()))
}

// relay forwards frames until one side disconnects.
func relay(client net.Conn, gateway string, rewrite func([]byte) []byte) {
	defer client.Close()
	server, err := net.Dial("tcp", gateway)
	if err != nil {
		return
	}
	defer server.Close()
	var one sync.WaitGroup
	one.Go(func() { io.Copy(server, client); server.Close() })
	for {
		head := make([]byte, 4)
		if _, err := io.ReadFull(server, head); err != nil {
			break
		}
		frame := make([]byte, binary.BigEndian.Uint32(head))
		if _, err := io.ReadFull(server, frame); err != nil {
			break
		}
		if _, err := client.Write(append(head, rewrite(frame)...)); err != nil {
			break
		}
	}
	client.Close()
	one.Wait()
}

// names is a DNS server. It knows the given names, does not answer queries for names below
// "silent", and answers that all others do not exist.
func (w *world) names(known map[string]netip.Addr) {
	w.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	testkit.Must(w, err)
	var serving sync.WaitGroup
	serving.Go(func() {
		buf := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			if answer := nameAnswer(buf[:n], known); answer != nil {
				conn.WriteTo(answer, from)
			}
		}
	})
	w.Cleanup(func() { conn.Close(); serving.Wait() })
	w.cfg.Resolver = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", conn.LocalAddr().String())
	}}
}

// nameAnswer answers a query with one question (RFC 1035).
func nameAnswer(query []byte, known map[string]netip.Addr) []byte {
	var labels []string
	at := 12
	for query[at] != 0 {
		n := int(query[at])
		labels = append(labels, string(query[at+1:at+1+n]))
		at += 1 + n
	}
	kind := binary.BigEndian.Uint16(query[at+1:])
	name := strings.Join(labels, ".")
	if strings.HasSuffix(name, ".silent") {
		return nil
	}
	answer := bytes.Clone(query[:at+5])
	addr, found := known[name]
	flags := uint16(0x8180)
	if !found {
		flags |= 3 // no such name
	}
	binary.BigEndian.PutUint16(answer[2:], flags)
	binary.BigEndian.PutUint32(answer[8:], 0) // no other records
	const typeA = 1
	if !found || kind != typeA {
		return answer
	}
	binary.BigEndian.PutUint16(answer[6:], 1)
	answer = append(answer, 0xc0, 12, 0, typeA, 0, 1, 0, 0, 0, 60, 0, 4)
	return append(answer, addr.AsSlice()...)
}

// silent returns an address that accepts connections and never sends anything.
func (w *world) silent() string {
	w.Helper()
	return testkit.Listen(w).Addr().String()
}

func port(address string) string { return strconv.Itoa(int(netip.MustParseAddrPort(address).Port())) }

// front returns a front without faults, except for those that change makes.
func (w *world) front(change func(*front, *authority)) front {
	w.Helper()
	a := newAuthority(w.T)
	f := front{acl: a.certificate(w.T, "", 100*24*time.Hour), gateway: a.certificate(w.T, "", 100*24*time.Hour), ca: a.pem}
	change(&f, a)
	return f
}

// page replaces a page of the fabric.
func (w *world) page(path string, status int, contentType, body string) {
	w.Helper()
	w.standBehind(w.front(func(f *front, _ *authority) {
		f.page = map[string]http.Handler{path: http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
			rw.Header().Set("Content-Type", contentType)
			rw.WriteHeader(status)
			rw.Write([]byte(body))
		})}
	}))
}

// bootstrap replaces the fabric's bootstrap addresses.
func (w *world) bootstrap(addresses ...string) {
	w.vars["DIASPORA_BOOTSTRAP"] = strings.Join(addresses, ",")
}

// lie rewrites responses of the cluster.
func (w *world) lie(truth, lie string) {
	w.Helper()
	var address string
	gateway := kafkaHost(w.fabric.Brokers()[0])
	address = w.between(nil, func(frame []byte) []byte {
		frame = bytes.ReplaceAll(frame, gateway, kafkaHost(address))
		return bytes.ReplaceAll(frame, []byte(truth), []byte(lie))
	})
	w.bootstrap(address)
}
