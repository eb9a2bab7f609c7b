package diaspora

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
)

func TestConfigsThatAreWrong(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	large, empty := filepath.Join(dir, "large"), filepath.Join(dir, "empty")
	if err := errors.Join(os.WriteFile(large, make([]byte, maxCABytes+1), 0o600), os.WriteFile(empty, []byte("no PEM"), 0o600)); err != nil {
		t.Fatal(err)
	}
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

// TestPipeAsAFile fails when a pipe is read without a size limit.
func TestPipeAsAFile(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(name, 0o600); err != nil {
		t.Fatal(err)
	}
	for size, want := range map[int]bool{100: true, 101: false, 1 << 20: false} {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		go func() {
			defer cancel()
			f, err := os.OpenFile(name, os.O_WRONLY, 0)
			if err != nil {
				t.Error(err)
				return
			}
			_, _ = f.Write(make([]byte, size)) // the reader may stop early
			f.Close()
		}()
		data, err := readBounded(name, 100)
		if (err == nil) != want || len(data) > 100 {
			t.Errorf("readBounded of %d bytes in a pipe, with a bound of 100: %d bytes, %v", size, len(data), err)
		}
		<-ctx.Done()
	}
}
