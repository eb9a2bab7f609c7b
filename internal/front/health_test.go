package front

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/internal/proxyproto"
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"
)

// relay serves a listener by passing each connection on to an address.
func relay(t *testing.T, ln net.Listener, to string) string {
	t.Helper()
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			client, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer client.Close()
				server, err := net.Dial("tcp", to)
				if err != nil {
					return
				}
				defer server.Close()
				go func() { io.Copy(server, client); server.Close() }()
				io.Copy(client, server)
			}()
		}
	}()
	return ln.Addr().String()
}

// issued returns a certificate for a host, as an authority signs it, with the authority's own behind it.
func issued(t *testing.T, authority tls.Certificate, host string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	testkit.Must(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{host}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, authority.Leaf, key.Public(), authority.PrivateKey)
	testkit.Must(t, err)
	return tls.Certificate{Certificate: [][]byte{der, authority.Certificate[0]}, PrivateKey: key}
}

// certificateFile writes a certificate, and those behind it, to a file.
func certificateFile(t *testing.T, cert tls.Certificate) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "fullchain.pem")
	var text []byte
	for _, der := range cert.Certificate {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	testkit.Must(t, os.WriteFile(name, text, 0o600))
	return name
}

// TestProbe probes the ACL endpoint and the gateway of a fabric: directly, behind TLS, and behind a listener that expects the
// PROXY protocol.
func TestProbe(t *testing.T) {
	f := fabrictest.Start(t, fabric.Config{})
	authority, _ := testkit.Certificate(t, time.Now().Add(time.Hour), "authority")
	good, other := issued(t, authority, "*.streams.lab.test"), issued(t, authority, "*.streams.lab.test")
	old, _ := testkit.Certificate(t, time.Now().Add(-time.Hour), "127.0.0.1")
	here := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	for part, c := range map[string]struct {
		address string
		probe   func(Probe, context.Context) error
	}{
		"ACL endpoint": {strings.TrimPrefix(f.URL(), "http://"), Probe.ACL},
		"gateway":      {f.Brokers()[0], Probe.Gateway},
	} {
		t.Run(part, func(t *testing.T) {
			plain := func() net.Listener { return testkit.Listen(t) }
			secure := func(cert tls.Certificate) net.Listener {
				return tls.NewListener(plain(), &tls.Config{Certificates: []tls.Certificate{cert}})
			}
			proxied := func() net.Listener {
				return proxyproto.Listen(plain(), proxyproto.Config{Trusted: here, Timeout: testkit.Patience})
			}
			anywhere := "0.0.0.0:" + c.address[strings.LastIndexByte(c.address, ':')+1:]
			for name, try := range map[string]struct {
				probe Probe
				says  string // "" if it is healthy
			}{
				"plaintext":           {Probe{Listen: c.address}, ""},
				"on all addresses":    {Probe{Listen: anywhere}, ""},
				"TLS":                 {Probe{Listen: relay(t, secure(good), c.address), CertFile: certificateFile(t, good)}, ""},
				"another certificate": {Probe{Listen: relay(t, secure(other), c.address), CertFile: certificateFile(t, good)}, "the certificate that it presents is not the one in "},
				"expired":             {Probe{Listen: relay(t, secure(old), c.address), CertFile: certificateFile(t, old)}, "expired"},
				"no TLS there":        {Probe{Listen: c.address, CertFile: certificateFile(t, good)}, ""},
				"no certificate":      {Probe{Listen: c.address, CertFile: "/nowhere"}, "tls-cert-file: open /nowhere"},
				"PROXY protocol":      {Probe{Listen: relay(t, proxied(), c.address), TrustedProxies: here}, ""},
				"nobody listens":      {Probe{Listen: testkit.FreeAddress(t)}, "connection refused"},
			} {
				err := c.probe(try.probe, testkit.Within(t))
				if name == "no TLS there" { // the text is that of Go
					if err == nil {
						t.Errorf("%s: healthy", name)
					}
				} else if try.says == "" && err != nil || try.says != "" && (err == nil || !strings.Contains(err.Error(), try.says)) {
					t.Errorf("%s: %v, want %q", name, err, try.says)
				}
			}
			silent := testkit.Listen(t)
			late := errors.New("too late")
			ctx, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, late)
			defer cancel()
			if err := c.probe(Probe{Listen: silent.Addr().String()}, ctx); err != late {
				t.Errorf("of a listener that does not answer: %v", err)
			}
		})
	}
}

// TestProbeAnswers checks what each answer of /healthz means.
func TestProbeAnswers(t *testing.T) {
	for name, c := range map[string]struct {
		status     int
		body, says string
	}{
		"healthy":         {200, `{"status":"ok","checks":{"ledger":"ok"}}`, ""},
		"unhealthy":       {503, `{"status":"unavailable","checks":{"ledger":"unavailable","other":"ok"}}`, "ledger: unavailable"},
		"no parts":        {503, `{"status":"unavailable"}`, "unavailable"},
		"ok, with status": {503, `{"status":"ok"}`, "ok"},
		"a page":          {200, "<html>", "something other than an ACL endpoint answers, with status 200"},
		"a redirect":      {302, "", "something other than an ACL endpoint answers, with status 302"},
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/healthz" {
				t.Errorf("it requests %s", r.URL)
			}
			w.Header().Set("Location", "/healthz")
			w.WriteHeader(c.status)
			io.WriteString(w, c.body)
		}))
		err := ProbeURL(testkit.Within(t), server.URL+"/", nil)
		if (err == nil) != (c.says == "") || err != nil && err.Error() != c.says {
			t.Errorf("%s: %v, want %q", name, err, c.says)
		}
		server.Close()
	}
	for _, address := range []string{"127.0.0.1:9090", "ftp://127.0.0.1", "http://", "http://a:b@127.0.0.1"} {
		if err := ProbeURL(t.Context(), address, nil); err == nil || !strings.Contains(err.Error(), "is not a URL such as") {
			t.Errorf("%s: %v", address, err)
		}
	}
}
