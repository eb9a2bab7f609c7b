package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kversion"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/bench/measure"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/globusdev"
)

// site is one engine with a gateway in front of it, where the clients sign in.
type site struct {
	name string
	up   *measure.Up // nil for Apache Kafka
	cfg  diaspora.Config
	args []string
	path string // the binary
	stop func() error
}

// open starts a build with empty data.
func (b *bench) open(ctx context.Context, of build, args ...string) (*site, error) {
	s := &site{name: of.name, path: of.path, args: args}
	return s, s.start(ctx, filepath.Join(b.Dir, of.name))
}

func (s *site) start(ctx context.Context, home string) (err error) {
	if s.up, err = measure.StartUp(ctx, s.path, home, s.args...); err != nil {
		return fmt.Errorf("%s: %w", s.name, err)
	}
	s.stop = s.up.Stop
	if s.cfg, err = s.up.Config(); err != nil {
		return errors.Join(err, s.up.Stop())
	}
	client, err := diaspora.NewClient(s.cfg)
	if err != nil {
		return errors.Join(err, s.up.Stop())
	}
	found, err := client.Discover(ctx)
	if err != nil {
		return errors.Join(err, s.up.Stop())
	}
	s.cfg.Brokers = found.Brokers
	return nil
}

// again restarts the process after it has ended.
func (s *site) again(ctx context.Context) error { return s.start(ctx, s.up.Home) }

// close stops the process and removes its data.
func (s *site) close() error {
	err := s.stop()
	if s.up != nil {
		err = errors.Join(err, os.RemoveAll(s.up.Home))
	}
	return err
}

// broker returns the first seed broker, for single requests, and its client. The request versions
// are limited to those of Kafka 3.9, which refer to topics by name.
func (s *site) broker(ctx context.Context) (*kgo.Client, *kgo.Broker, error) {
	client, err := measure.Dial(ctx, s.cfg, kgo.MaxVersions(kversion.V3_9_0()))
	if err != nil {
		return nil, nil, err
	}
	return client, client.SeedBrokers()[0], nil
}

// token logs a user in at the site's Globus Auth. That one asks for no password: its login page
// lets whoever started it choose who they are.
func (s *site) token(ctx context.Context, username string) (globus.Secret, error) {
	found := s.cfg.Discovery.Globus
	client, err := globus.New(globus.Config{Issuer: found.Issuer, ClientID: found.ClientID})
	if err != nil {
		return "", err
	}
	login, err := client.Login(ctx, globus.LoginOptions{
		Scopes:  []string{found.Scope},
		Out:     io.Discard,
		Getenv:  func(name string) string { return map[string]string{"DISPLAY": ":0"}[name] }, // pretend that there is a browser
		Timeout: 10 * time.Second,
		Address: s.withTicket,
		Browser: func(address string) error {
			response, err := http.Get(address + "&dev_user=" + url.QueryEscape(username))
			if err != nil {
				return err
			}
			return response.Body.Close()
		},
	})
	if err != nil {
		return "", err
	}
	token, _ := login.Token(found.ResourceServer)
	return token.AccessToken, nil
}

// withTicket adds a ticket to the address of a login. Builds that keep a secret in their
// configuration folder ask for it; older builds have no such file and need no ticket.
func (s *site) withTicket(address string) (string, error) {
	line, err := os.ReadFile(filepath.Join(s.up.Home, "config", "globus", "local"))
	if errors.Is(err, fs.ErrNotExist) {
		return address, nil
	}
	if err != nil {
		return "", err
	}
	secret, err := globusdev.ParseSecretHeader(string(line))
	if err != nil {
		return "", err
	}
	return globusdev.WithTicket(secret, address, time.Now())
}

// names returns n topic names with the prefix.
func names(prefix string, n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = fmt.Sprintf("%s_%d", prefix, i)
	}
	return all
}
