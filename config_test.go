package diaspora

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/internal/trust"
)

func TestConfigsThatAreWrong(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	large, empty := filepath.Join(dir, "large"), filepath.Join(dir, "empty")
	testkit.Must(t, errors.Join(os.WriteFile(large, make([]byte, trust.MaxCABytes+1), 0o600), os.WriteFile(empty, []byte("no PEM"), 0o600)))
	here := []string{"127.0.0.1:9092"}
	for name, try := range map[string]struct {
		cfg  Config
		says string
	}{
		"no token source":          {Config{Brokers: here}, "TokenSource"},
		"negative dial timeout":    {Config{Brokers: here, TokenSource: canarySource(), DialTimeout: -1}, "DialTimeout"},
		"negative linger":          {Config{Brokers: here, TokenSource: canarySource(), Linger: -1}, "Linger"},
		"neither brokers nor URL":  {Config{TokenSource: canarySource()}, "neither"},
		"no URL but a strange one": {Config{TokenSource: canarySource(), URL: "host"}, "URL"},
		"URL that is not private":  {Config{TokenSource: canarySource(), URL: "http://diaspora.invalid"}, "not https"},
		"broker without port":      {Config{TokenSource: canarySource(), Brokers: []string{"127.0.0.1"}}, "host:port"},
		"broker without host":      {Config{TokenSource: canarySource(), Brokers: []string{":9092"}}, "host:port"},
		"broker with port 0":       {Config{TokenSource: canarySource(), Brokers: []string{"127.0.0.1:0"}}, "port"},
		"broker with large port":   {Config{TokenSource: canarySource(), Brokers: []string{"127.0.0.1:65536"}}, "port"},
		"broker with user":         {Config{TokenSource: canarySource(), Brokers: []string{"a@127.0.0.1:1"}}, "host:port"},
		"broker that is a URL":     {Config{TokenSource: canarySource(), Brokers: []string{"http://127.0.0.1:1"}}, "host:port"},
		"CA file that is not":      {Config{TokenSource: canarySource(), Brokers: here, CAFile: filepath.Join(dir, "nothing")}, "nothing"},
		"CA file is a folder":      {Config{TokenSource: canarySource(), Brokers: here, CAFile: dir}, "not a file"},
		"CA file is a device":      {Config{TokenSource: canarySource(), Brokers: here, CAFile: "/dev/zero"}, "not a file"},
		"CA file is large":         {Config{TokenSource: canarySource(), Brokers: here, CAFile: large}, "more than"},
		"CA file without PEM":      {Config{TokenSource: canarySource(), Brokers: here, CAFile: empty}, empty + " holds no PEM"},
		"CA without PEM":           {Config{TokenSource: canarySource(), Brokers: here, CA: []byte("x")}, "CA holds no PEM"},
		"fabric's CA without PEM": {Config{TokenSource: canarySource(), Discovery: &Discovery{Brokers: here, Security: "tls", CA: "x"}},
			"fabric's CA holds no PEM"},
		"plaintext fabric elsewhere": {Config{TokenSource: canarySource(), Discovery: &Discovery{Brokers: []string{"192.0.2.1:9092"}, Security: "plaintext"}},
			"no TLS"},
		"plaintext fabric partly elsewhere": {Config{TokenSource: canarySource(), Discovery: &Discovery{Brokers: append(here, "localhost.invalid:1"), Security: "plaintext"}},
			"no TLS"},
		"plaintext fabric, own brokers": {Config{TokenSource: canarySource(), Brokers: []string{"192.0.2.1:9092"}, Discovery: &Discovery{Brokers: here, Security: "plaintext"}},
			"no TLS"},
	} {
		_, err := Dial(within(t), try.cfg)
		if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), try.says) {
			t.Errorf("%s: Dial = %v, want ErrInvalid that says %q", name, err, try.says)
		}
		withoutCanary(t, err)
	}
}

func TestPlaintext(t *testing.T) {
	t.Parallel()
	for brokers, want := range map[string]bool{
		"127.0.0.1:1": true, "127.9.9.9:1": true, "[::1]:1": true, "localhost:1": true, "LOCALHOST:1": true,
		"[::ffff:127.0.0.1]:1": true,
		"192.0.2.1:1":          false, "localhost.example.org:1": false, "127.0.0.1.example.org:1": false, "0.0.0.0:1": false,
		"10.0.0.1:1": false, "127.0.0.1:1,192.0.2.1:1": false, "[fe80::1]:1": false,
	} {
		cfg := Config{TokenSource: canarySource(), Discovery: &Discovery{Brokers: strings.Split(brokers, ","), Security: "plaintext"}}
		if _, err := cfg.resolve(within(t)); (err == nil) != want {
			t.Errorf("a plaintext fabric at %s: %v, want allowed: %v", brokers, err, want)
		}
		cfg.InsecureAllowPlaintext = true
		if f, err := cfg.resolve(within(t)); err != nil || f.kafka.TLS != nil || !f.kafka.InsecureAllowPlaintext {
			t.Errorf("a plaintext fabric at %s, with InsecureAllowPlaintext: %v", brokers, err)
		}
		// If only Brokers is set, TLS is required except for loopback addresses.
		cfg = Config{TokenSource: canarySource(), Brokers: strings.Split(brokers, ",")}
		if f, err := cfg.resolve(within(t)); err != nil || (f.kafka.TLS == nil) != want {
			t.Errorf("brokers %s: %v, want plaintext: %v", brokers, err, want)
		}
	}
}

func TestDiscoveriesThatAreWrong(t *testing.T) {
	t.Parallel()
	good := func() Discovery {
		return Discovery{Brokers: []string{"127.0.0.1:9092"}, Security: "plaintext", MaxEventBytes: 1000,
			Globus: DiscoveryGlobus{Issuer: "https://auth.globus.org"}}
	}
	d := good()
	if err := d.validate(); err != nil {
		t.Fatalf("a good document: %v", err)
	}
	for name, change := range map[string]func(d *Discovery){
		"no brokers":         func(d *Discovery) { d.Brokers = nil },
		"many brokers":       func(d *Discovery) { d.Brokers = make([]string, 1001) },
		"bad broker":         func(d *Discovery) { d.Brokers = []string{strings.Repeat("x", 1000)} },
		"no security":        func(d *Discovery) { d.Security = "" },
		"unknown security":   func(d *Discovery) { d.Security = "ssl" },
		"negative limit":     func(d *Discovery) { d.MaxEventBytes = -1 },
		"issuer over http":   func(d *Discovery) { d.Globus.Issuer = "http://auth.globus.org" },
		"issuer with user":   func(d *Discovery) { d.Globus.Issuer = "https://a:b@auth.globus.org" },
		"issuer that is not": func(d *Discovery) { d.Globus.Issuer = "auth.globus.org" },
	} {
		d := good()
		change(&d)
		if err := d.validate(); !errors.Is(err, ErrInvalid) || len(err.Error()) > 400 {
			t.Errorf("%s: %v, want ErrInvalid in a few words", name, err)
		}
		_, s := endpoint(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			json.NewEncoder(w).Encode(d)
		})
		for what, cfg := range map[string]Config{"asked": {URL: s.URL}, "stored": {Discovery: &d}} {
			cfg.TokenSource = canarySource()
			if _, err := Dial(within(t), cfg); !errors.Is(err, ErrInvalid) {
				t.Errorf("%s, %s: Dial = %v, want ErrInvalid", name, what, err)
			}
		}
	}
}

// TestFabricIsAsked fails when a Config without a discovery document does not fetch it, even if the
// Config names the brokers.
func TestFabricIsAsked(t *testing.T) {
	t.Parallel()
	_, cluster := newCluster(t, kfake.SeedTopics(1, "weather"))
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(Discovery{Brokers: cluster.Brokers, Security: "plaintext", MaxEventBytes: 2000})
	}))
	defer s.Close()
	for name, brokers := range map[string][]string{"the fabric's brokers": nil, "own brokers": cluster.Brokers} {
		c, own := newCluster(t, kfake.SeedTopics(1, "weather"))
		newDoor(c, &own)
		if brokers != nil {
			brokers = own.Brokers
		}
		cfg := Config{URL: s.URL, Brokers: brokers, TokenSource: own.TokenSource}
		if brokers == nil {
			cfg.anonymous, cfg.TokenSource = true, nil
		}
		l := openLogger(t, cfg)
		if err := l.Log(within(t), Event{Topic: "weather", Value: make([]byte, 2000)}); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "at most 2000") {
			t.Errorf("%s: Log of a large event = %v, want ErrInvalid with the fabric's limit", name, err)
		}
	}
}

// TestTLS has brokers and ACL endpoints with trusted and with untrusted certificates.
func TestTLS(t *testing.T) {
	t.Parallel()
	good, goodPEM := testkit.Certificate(t, time.Now().Add(time.Hour), "127.0.0.1")
	_, otherPEM := testkit.Certificate(t, time.Now().Add(time.Hour), "127.0.0.1")
	elsewhere, elsewherePEM := testkit.Certificate(t, time.Now().Add(time.Hour), "broker.example.org")
	old, oldPEM := testkit.Certificate(t, time.Now().Add(-time.Hour), "127.0.0.1")
	file := filepath.Join(t.TempDir(), "ca.pem")
	testkit.Must(t, os.WriteFile(file, goodPEM, 0o600))
	for name, try := range map[string]struct {
		cert tls.Certificate
		cfg  Config
		says string // "" for no error
		hint string
	}{
		"CA":           {cert: good, cfg: Config{CA: goodPEM}},
		"CAFile":       {cert: good, cfg: Config{CAFile: file}},
		"fabric's CA":  {cert: good, cfg: Config{Discovery: &Discovery{Security: "tls", CA: string(goodPEM)}}},
		"all of them":  {cert: good, cfg: Config{CA: otherPEM, CAFile: file, Discovery: &Discovery{Security: "tls", CA: string(elsewherePEM)}}},
		"wrong CA":     {good, Config{CA: otherPEM}, "signed by 127.0.0.1, which this machine does not trust", "name the CA's file in DIASPORA_CA_FILE"},
		"system's CAs": {good, Config{Discovery: &Discovery{Security: "tls"}}, "signed by 127.0.0.1, which this machine does not trust", "name the CA's file in DIASPORA_CA_FILE"},
		"wrong host":   {elsewhere, Config{CA: elsewherePEM}, "for broker.example.org, not for 127.0.0.1", "use the name that the certificate has"},
		"expired":      {old, Config{CA: oldPEM}, "valid only from", "compare this machine's clock"},
	} {
		_, cluster := newCluster(t, kfake.TLS(&tls.Config{Certificates: []tls.Certificate{try.cert}}))
		server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprint(w, `{"topics":[]}`)
		}))
		server.TLS = &tls.Config{Certificates: []tls.Certificate{try.cert}}
		server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
		server.StartTLS()
		t.Cleanup(server.Close)

		cfg := try.cfg
		cfg.Brokers, cfg.anonymous = cluster.Brokers, true
		if cfg.Discovery != nil {
			cfg.Discovery.Brokers = cluster.Brokers
		}
		client, dialed := Dial(within(t), cfg)
		if dialed == nil {
			client.Close()
		}
		cfg.URL = server.URL
		_, asked := newClient(t, cfg).Topics(within(t))
		for what, err := range map[string]error{"Dial": dialed, "Topics": asked} {
			switch {
			case try.says == "" && err != nil:
				t.Errorf("%s: %s = %v", name, what, err)
			case try.says != "" && (!errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), try.says) || !strings.HasPrefix(Hint(err), try.hint)):
				t.Errorf("%s: %s = %v, want ErrInvalid that says %q and hints %q", name, what, err, try.says, try.hint)
			}
		}
	}

	// A server that speaks another protocol.
	other := testkit.Listen(t)
	go func() {
		for {
			conn, err := other.Accept()
			if err != nil {
				return
			}
			io.WriteString(conn, "220 mail.example.org\r\n")
			conn.Close()
		}
	}()
	cfg := Config{Brokers: []string{other.Addr().String()}, URL: "https://" + other.Addr().String(), CA: goodPEM, anonymous: true}
	_, dialed := Dial(within(t), Config{Brokers: cfg.Brokers, CA: goodPEM, anonymous: true})
	_, asked := newClient(t, cfg).Topics(within(t))
	for what, err := range map[string]error{"Dial": dialed, "Topics": asked} {
		if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "does not speak TLS") {
			t.Errorf("%s of what does not speak TLS = %v, want ErrInvalid in words", what, err)
		}
	}
}

func TestDial(t *testing.T) {
	t.Parallel()
	_, cfg := newCluster(t, kfake.SeedTopics(1, "weather"))
	client, err := Dial(within(t), cfg, kgo.ClientID("mine"), kgo.DefaultProduceTopic("weather"))
	testkit.Must(t, err)
	defer client.Close()
	if got := client.OptValue(kgo.ClientID); got != "mine" {
		t.Errorf("the client's ID is %v, want the caller's", got)
	}
	if err := client.ProduceSync(within(t), kgo.StringRecord("x")).FirstErr(); err != nil {
		t.Error(err)
	}
	if _, err := Dial(within(t), cfg, kgo.SeedBrokers()); err == nil {
		t.Error("Dial without brokers = nil")
	}
}

func TestDialWithATokenThatIsRefused(t *testing.T) {
	t.Parallel()
	c, cfg := newCluster(t)
	newDoor(c, &cfg).shut.Store(true)
	cfg.DialTimeout = time.Hour // does not apply to a rejected login
	cfg.Identity.Username, cfg.origin = "ada@example.edu", `profile "local"`
	_, err := Dial(within(t), cfg)
	want := fmt.Sprintf(`sign in to %s as ada@example.edu (profile "local"): not authenticated: %s; %s`, cfg.Brokers[0], refusal, defaultLogin)
	if !errors.Is(err, ErrUnauthenticated) || err.Error() != want {
		t.Errorf("Dial = %v\nwant  %s", err, want)
	}
	withoutCanary(t, err)
	for name, open := range map[string]func() error{
		"OpenLogger": func() error { _, err := OpenLogger(within(t), cfg); return err },
		"OpenConsumer": func() error {
			_, err := OpenConsumer(within(t), cfg, ConsumerOptions{Topics: []string{"x"}})
			return err
		},
	} {
		if err := open(); !errors.Is(err, ErrUnauthenticated) || Hint(err) != defaultLogin {
			t.Errorf("%s = %v, want ErrUnauthenticated with the hint", name, err)
		}
	}
}

// TestDialWaits fails when an outage counts as a rejected login, or is waited for longer than
// DialTimeout.
func TestDialWaits(t *testing.T) {
	t.Parallel()
	_, cfg := newCluster(t)
	var asked atomic.Int32
	cfg.anonymous = false
	cfg.TokenSource = sourceFunc(func(context.Context) (globus.Token, error) {
		if asked.Add(1) < 3 {
			return globus.Token{}, fmt.Errorf("refresh: %w", globus.ErrUnavailable)
		}
		return globus.Token{}, fmt.Errorf("refresh: %w", globus.ErrLoginRequired)
	})
	_, err := Dial(within(t), cfg)
	if !errors.Is(err, ErrUnauthenticated) || !errors.Is(err, globus.ErrLoginRequired) || asked.Load() != 3 {
		t.Errorf("Dial = %v after %d tries, want ErrUnauthenticated after 3", err, asked.Load())
	}

	silent := testkit.Listen(t) // accepts connections and sends nothing
	for name, address := range map[string]string{"silent": silent.Addr().String(), "gone": testkit.FreeAddress(t)} {
		cfg := Config{Brokers: []string{address}, anonymous: true, DialTimeout: 300 * time.Millisecond}
		ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second)
		_, err := Dial(ctx, cfg)
		if !errors.Is(err, ErrUnavailable) || ctx.Err() != nil || !strings.Contains(err.Error(), address) {
			t.Errorf("Dial of a broker that is %s = %v, want ErrUnavailable before the context ends", name, err)
		}
		cancel()
		cfg.DialTimeout = time.Hour
		ctx, cancel = context.WithTimeout(t.Context(), 100*time.Millisecond)
		if _, err := Dial(ctx, cfg); !errors.Is(err, ErrUnavailable) && !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Dial of a broker that is %s, whose context ends = %v", name, err)
		}
		cancel()
	}
}

// TestDialTimeoutIsNoContext fails when an unreachable broker is mistaken for the end of the
// caller's context. The timeouts of package net match context.DeadlineExceeded too.
func TestDialTimeoutIsNoContext(t *testing.T) {
	t.Parallel()
	_, cfg := newCluster(t)
	var dialed atomic.Int32
	cfg = Through(cfg, func(ctx context.Context, network, address string) (net.Conn, error) {
		var d net.Dialer
		if dialed.Add(1) <= 2 {
			d.Deadline = time.Now().Add(-time.Second)
		}
		return d.DialContext(ctx, network, address)
	}, 0)
	client, err := Dial(within(t), cfg)
	if err != nil {
		t.Fatalf("Dial of a broker that takes its time = %v, want that it is tried again", err)
	}
	client.Close()
	_, err = (&net.Dialer{Deadline: time.Now().Add(-time.Second)}).Dial("tcp", "127.0.0.1:9")
	if got := explain(fmt.Errorf("unable to dial: %w", err)); !errors.Is(got, ErrUnavailable) || !strings.Contains(got.Error(), "no broker can be reached") {
		t.Errorf("a connection that takes too long is explained as %v", got)
	}
}

type sourceFunc func(context.Context) (globus.Token, error)

func (f sourceFunc) Token(ctx context.Context) (globus.Token, error) { return f(ctx) }

// TestDiagnostics fails when the Kafka client's messages get lost, have too high a level, or
// contain the token.
func TestDiagnostics(t *testing.T) {
	t.Parallel()
	for _, level := range []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn} {
		c, cfg := newCluster(t, kfake.SeedTopics(1, "weather"))
		d := newDoor(c, &cfg)
		var out testkit.Text
		cfg.Diagnostics = slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: level}))
		l := openLogger(t, cfg)
		logValues(t, l, "weather", "event value")
		d.shut.Store(true)
		c.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) { return nil, errors.New("hang up"), true })
		l.Log(within(t), Event{Topic: "weather", Value: []byte("event value")})
		ended, end := context.WithCancel(t.Context())
		end()
		l.Close(ended)
		text := out.String()
		if strings.Contains(text, canary) || strings.Contains(text, "event value") {
			t.Errorf("level %v: the diagnostics hold the token or the event", level)
		}
		if strings.Contains(text, "flushing") {
			t.Errorf("level %v: the diagnostics speak of each flush", level)
		}
		if (level == slog.LevelDebug) != strings.Contains(text, "level=DEBUG") || strings.Contains(text, "level=ERROR") {
			t.Errorf("level %v: the diagnostics are\n%s", level, text)
		}
	}
}
