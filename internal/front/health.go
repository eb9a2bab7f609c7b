package front

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora/internal/proxyproto"
)

// Probe checks from the same machine whether a part of the service is healthy, as containers do.
type Probe struct {
	Listen   string // where the part listens
	CertFile string // its certificate; "" if it listens without TLS

	// TrustedProxies are as in [Config]. If they include the address of the probe, the part expects
	// the PROXY protocol.
	TrustedProxies []netip.Prefix
}

// ACL returns nil if the ACL endpoint is healthy.
func (p Probe) ACL(ctx context.Context) error {
	config, err := p.tls()
	if err != nil {
		return err
	}
	scheme := "http"
	if config != nil {
		scheme = "https"
	}
	return p.explain(askHealth(ctx, scheme+"://"+p.address(), &http.Transport{DialContext: p.dial, TLSClientConfig: config}))
}

// ProbeURL returns nil if the ACL endpoint at a URL is healthy. roots are the authorities to trust.
func ProbeURL(ctx context.Context, address string, roots *x509.CertPool) error {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.User != nil {
		return fmt.Errorf("%q is not a URL such as http://127.0.0.1:9090", address)
	}
	return askHealth(ctx, u.Scheme+"://"+u.Host, &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}})
}

// askHealth sends the request. It follows no redirect and uses no proxy.
func askHealth(ctx context.Context, base string, transport *http.Transport) error {
	transport.DisableKeepAlives = true
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/healthz", nil)
	if err != nil {
		return err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return probeError(ctx, err)
	}
	defer resp.Body.Close()
	var health struct {
		Status string            `json:"status"`
		Checks map[string]string `json:"checks"`
	}
	const most = 64 << 10
	err = json.NewDecoder(io.LimitReader(resp.Body, most)).Decode(&health)
	switch {
	case err != nil || health.Status == "":
		return fmt.Errorf("something other than an ACL endpoint answers, with status %d", resp.StatusCode)
	case resp.StatusCode == http.StatusOK && health.Status == "ok":
		return nil
	}
	var bad []string
	for _, part := range slices.Sorted(maps.Keys(health.Checks)) {
		if health.Checks[part] != "ok" {
			bad = append(bad, part+": "+health.Checks[part])
		}
	}
	return errors.New(cmp.Or(strings.Join(bad, ", "), health.Status))
}

// Gateway returns nil if the gateway answers the first request of a login. The answer does not depend on
// the broker: restarting a gateway does not help if the broker is down.
func (p Probe) Gateway(ctx context.Context) error {
	config, err := p.tls()
	if err != nil {
		return err
	}
	conn, err := p.dial(ctx, "tcp", p.address())
	if err != nil {
		return probeError(ctx, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if config != nil {
		secure := tls.Client(conn, config)
		if err := secure.HandshakeContext(ctx); err != nil {
			return p.explain(probeError(ctx, err))
		}
		conn = secure
	}
	request := kmsg.NewPtrSASLHandshakeRequest()
	request.Version, request.Mechanism = 1, "OAUTHBEARER"
	const correlation = 1
	frame := kmsg.NewRequestFormatter(kmsg.FormatterClientID("diaspora-healthcheck")).AppendRequest(nil, request, correlation)
	if _, err := conn.Write(frame); err != nil {
		return probeError(ctx, err)
	}
	var head [10]byte // size, correlation ID, error code
	if _, err := io.ReadFull(bufio.NewReader(conn), head[:]); err != nil {
		return probeError(ctx, err)
	}
	if binary.BigEndian.Uint32(head[4:]) != correlation || binary.BigEndian.Uint16(head[8:]) != 0 {
		return errors.New("something other than a gateway answers")
	}
	return nil
}

// address returns where to connect on this machine.
func (p Probe) address() string {
	host, port, err := net.SplitHostPort(p.Listen)
	if ip, parse := netip.ParseAddr(host); err == nil && (host == "" || parse == nil && ip.IsUnspecified()) {
		return net.JoinHostPort("127.0.0.1", port)
	}
	return p.Listen
}

func (p Probe) dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	own, _ := netip.ParseAddrPort(conn.LocalAddr().String())
	if slices.ContainsFunc(p.TrustedProxies, func(n netip.Prefix) bool { return n.Contains(own.Addr().Unmap()) }) {
		_, err = io.WriteString(conn, proxyproto.Local)
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

// tls returns a configuration that accepts only the certificate in the file: it identifies the process on
// this machine, whatever its name is in DNS. It returns nil without a certificate.
func (p Probe) tls() (*tls.Config, error) {
	if p.CertFile == "" {
		return nil, nil
	}
	_, text, err := ReadCA(p.CertFile)
	if err != nil {
		return nil, fmt.Errorf("tls-cert-file: %w", err)
	}
	leaf, err := firstCertificate([]byte(text))
	if err != nil {
		return nil, fmt.Errorf("tls-cert-file: %s: %w", p.CertFile, err)
	}
	config := &tls.Config{RootCAs: x509.NewCertPool(), MinVersion: tls.VersionTLS12}
	config.RootCAs.AddCert(leaf)
	switch {
	case len(leaf.DNSNames) > 0:
		config.ServerName = leaf.DNSNames[0]
	case len(leaf.IPAddresses) > 0:
		config.ServerName = leaf.IPAddresses[0].String()
	default:
		return nil, fmt.Errorf("tls-cert-file: %s contains no host name, so clients refuse it", p.CertFile)
	}
	return config, nil
}

// explain replaces the error for another certificate.
func (p Probe) explain(err error) error {
	if unknown := (x509.UnknownAuthorityError{}); errors.As(err, &unknown) {
		return fmt.Errorf("the certificate that it presents is not the one in %s", p.CertFile)
	}
	return err
}

// probeError replaces the error of a probe that ran out of time.
func probeError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("the connection was closed without an answer")
	}
	return err
}
