//go:build unix

package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl/oauth"
	"github.com/twmb/franz-go/pkg/sasl/plain"

	"github.com/diaspora-streams/diaspora/bench/measure"
)

const (
	subject    = "ada00000-0000-4000-8000-000000000001" // as whom the client signs in at the gateway
	partitions = 6
)

// brokerSettings keep what was produced small, because it is often in memory.
const brokerSettings = `log.retention.check.interval.ms=1000
log.segment.delete.delay.ms=0
`

// cluster is a part of the file cluster.json, which deploy/kafka/cluster creates.
type cluster struct {
	Issuer   string
	Audience string
	JWKSFile string `json:"jwks_file"`
	Admin    struct {
		Brokers      []string
		Username     string
		PasswordFile string `json:"password_file"`
	}
	Nodes []struct{ Listener string }
}

// site is an Apache Kafka with topics, and the relays that stand in front of it.
type site struct {
	bench
	kafka     cluster
	superUser kgo.Opt // signs in at the broker
	roots     *x509.CertPool
	stops     []func() error
}

// relay is a process between client and broker.
type relay struct {
	name string
	pid  int // 0 if there is no such process
	opts []kgo.Opt
}

// cpu returns the processor time that the relay has used.
func (r relay) cpu() (time.Duration, error) {
	if r.pid == 0 {
		return 0, nil
	}
	return measure.CPU(r.pid)
}

func topic(what string, size int) string { return fmt.Sprintf("relay_%s_%d", what, size) }

func openSite(ctx context.Context, b bench) (*site, error) {
	s := &site{bench: b}
	if err := s.open(ctx); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

func (s *site) open(ctx context.Context) error {
	settings := filepath.Join(s.Dir, "relay.properties")
	if err := os.WriteFile(settings, []byte(brokerSettings), 0o600); err != nil {
		return err
	}
	kafka := filepath.Join(s.Dir, "kafka")
	s.stops = append(s.stops, func() error {
		_, err := measure.KafkaCluster(kafka, "clean")
		return err
	})
	if _, err := measure.KafkaCluster(kafka, "start", "1", settings); err != nil {
		return err
	}
	data, err := os.ReadFile(filepath.Join(kafka, "cluster.json"))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, &s.kafka); err != nil {
		return err
	}
	password, err := os.ReadFile(s.kafka.Admin.PasswordFile)
	if err != nil {
		return err
	}
	s.superUser = kgo.SASL(plain.Auth{User: s.kafka.Admin.Username, Pass: strings.TrimSpace(string(password))}.AsMechanism())
	return errors.Join(s.createTopics(ctx), s.createCertificate())
}

// createTopics creates the topics, and lets the client use them as itself.
func (s *site) createTopics(ctx context.Context) error {
	client, err := kgo.NewClient(s.past().opts...)
	if err != nil {
		return err
	}
	defer client.Close()
	admin := kadm.NewClient(client)
	for _, l := range loads {
		for what, settings := range map[string]map[string]*string{
			consumed: {},
			produced: {"segment.bytes": kadm.StringPtr("67108864"), "retention.bytes": kadm.StringPtr("67108864")},
		} {
			name := topic(what, l.size)
			if _, err := admin.CreateTopic(ctx, partitions, 1, settings, name); err != nil {
				return err
			}
			acls := kadm.NewACLs().Topics(name).ResourcePatternType(kadm.ACLPatternLiteral).Operations(kadm.OpRead, kadm.OpWrite, kadm.OpDescribe).
				Allow("User:" + subject).AllowHosts("*")
			results, err := admin.CreateACLs(ctx, acls)
			if err != nil {
				return err
			}
			for _, r := range results {
				if r.Err != nil {
					return r.Err
				}
			}
		}
	}
	return nil
}

// createCertificate creates the certificate of both relays, as the file that HAProxy reads.
func (s *site) createCertificate() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(48 * time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate})
	s.roots = x509.NewCertPool()
	s.roots.AppendCertsFromPEM(text)
	return os.WriteFile(s.certificateFile(), append(text, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})...), 0o600)
}

func (s *site) certificateFile() string { return filepath.Join(s.Dir, "relay.pem") }

// close stops whatever the site has started.
func (s *site) close() error {
	var errs []error
	for i := len(s.stops) - 1; i >= 0; i-- {
		errs = append(errs, s.stops[i]())
	}
	return errors.Join(errs...)
}

// past is the way to the broker without a relay.
func (s *site) past() relay {
	return relay{name: "no gateway", opts: []kgo.Opt{kgo.SeedBrokers(s.kafka.Admin.Brokers...), s.superUser}}
}

// through returns the options of a client that connects to address, whatever address the broker
// advertises.
func (s *site) through(address string, encrypted bool, login kgo.Opt) []kgo.Opt {
	return []kgo.Opt{kgo.SeedBrokers(address), login, kgo.Dialer(func(ctx context.Context, _, _ string) (net.Conn, error) {
		if !encrypted {
			return new(net.Dialer).DialContext(ctx, "tcp", address)
		}
		d := tls.Dialer{Config: &tls.Config{RootCAs: s.roots, MinVersion: tls.VersionTLS13}}
		conn, err := d.DialContext(ctx, "tcp", address)
		if err != nil {
			return nil, err
		}
		if used := conn.(*tls.Conn).ConnectionState().CipherSuite; used != tls.TLS_AES_128_GCM_SHA256 {
			return nil, errors.Join(fmt.Errorf("%s selects the cipher %s", address, tls.CipherSuiteName(used)), conn.Close())
		}
		return conn, nil
	})}
}

// startGateway starts a gateway in front of the broker.
func (s *site) startGateway(encrypted bool) (relay, error) {
	cfg := gatewayConfig{
		Broker: s.kafka.Nodes[0].Listener, Issuer: s.kafka.Issuer, Audience: s.kafka.Audience,
		KeysFile: filepath.Join(s.Dir, "signing-keys.json"), JWKSFile: s.kafka.JWKSFile,
	}
	if encrypted {
		cfg.CertificateFile = s.certificateFile()
	}
	if s.profiles != "" {
		cfg.ProfileFile = filepath.Join(s.profiles, fmt.Sprintf("gateway-tls-%v.pprof", encrypted))
	}
	g, err := startGateway(cfg)
	if err != nil {
		return relay{}, err
	}
	s.stops = append(s.stops, g.stop)
	return relay{"gateway", g.pid, s.through(g.address, encrypted, kgo.SASL(oauth.Auth{Token: subject}.AsMechanism()))}, nil
}

// startHAProxy starts HAProxy in front of the broker.
func (s *site) startHAProxy(ctx context.Context) (relay, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return relay{}, err
	}
	address := ln.Addr().String()
	if err := ln.Close(); err != nil {
		return relay{}, err
	}
	file := filepath.Join(s.Dir, "haproxy.cfg")
	err = os.WriteFile(file, fmt.Appendf(nil, `global
    ssl-default-bind-options ssl-min-ver TLSv1.3
    ssl-default-bind-ciphersuites TLS_AES_128_GCM_SHA256
defaults
    mode tcp
    timeout connect 10s
    timeout client 10m
    timeout server 10m
listen kafka
    bind %s ssl crt %s
    server broker %s
`, address, s.certificateFile(), s.kafka.Admin.Brokers[0]), 0o600)
	if err != nil {
		return relay{}, err
	}
	// Without the setting nbthread it has a thread for each core.
	cmd := exec.Command("haproxy", "-db", "-f", file)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return relay{}, fmt.Errorf("start HAProxy (on Debian: apt-get install haproxy): %w", err)
	}
	s.stops = append(s.stops, func() error {
		err := cmd.Process.Kill()
		cmd.Wait()
		return err
	})
	for range 100 {
		var conn net.Conn
		if conn, err = new(net.Dialer).DialContext(ctx, "tcp", address); err == nil {
			return relay{"HAProxy", cmd.Process.Pid, s.through(address, true, s.superUser)}, conn.Close()
		}
		time.Sleep(20 * time.Millisecond)
	}
	return relay{}, fmt.Errorf("HAProxy does not listen: %w", err)
}

// fill produces the events that are consumed, uncompressed.
func (s *site) fill(ctx context.Context, size, n int) error {
	client, err := kgo.NewClient(append(s.past().opts, kgo.DefaultProduceTopic(topic(consumed, size)), kgo.ProducerBatchCompression(kgo.NoCompression()))...)
	if err != nil {
		return err
	}
	defer client.Close()
	values := measure.Payloads(size)
	_, err = measure.Produce(ctx, client, func(i int) *kgo.Record { return &kgo.Record{Value: values[i%len(values)]} })(n)
	return err
}
