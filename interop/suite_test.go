// Package interop is what a fabric promises, as tests that run over both engines:
// the embedded broker in `go test ./...`, and an Apache Kafka in `make test-kafka`,
// which sets the build tag kafka. A difference between the two is a defect, or is
// written down in docs/engines.md.
package interop

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/globus"
)

const (
	ada   = "ada@example.edu"
	grace = "grace@example.org"
)

// patience bounds what a test waits for.
const patience = 90 * time.Second

// start starts a fabric over the engine under test.
func start(t *testing.T, cfg fabric.Config) *fabric.Fabric {
	t.Helper()
	useEngine(t, &cfg)
	f, err := fabric.Start(within(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return f
}

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// unique returns a name that no other test, and no earlier run, has used: the
// cluster under test may be an old one.
func unique(t *testing.T) string {
	name := strings.Map(func(r rune) rune {
		if strings.ContainsRune("/ -.@", r) {
			return '_'
		}
		return r
	}, t.Name())
	return name + "_" + rand.Text()[:8]
}

func as(t *testing.T, f *fabric.Fabric, username string) diaspora.Config {
	t.Helper()
	cfg, err := f.As(within(t), username)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func client(t *testing.T, cfg diaspora.Config) *diaspora.Client {
	t.Helper()
	c, err := diaspora.NewClient(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// claim claims a topic of a new name.
func claim(t *testing.T, cfg diaspora.Config, partitions int) string {
	t.Helper()
	name := unique(t)
	claimAgain(t, cfg, name, partitions)
	return name
}

func claimAgain(t *testing.T, cfg diaspora.Config, name string, partitions int) {
	t.Helper()
	if _, err := client(t, cfg).Claim(within(t), diaspora.ClaimRequest{Name: name, Partitions: partitions}); err != nil {
		t.Fatal(err)
	}
}

func openLogger(t *testing.T, cfg diaspora.Config) *diaspora.Logger {
	t.Helper()
	logger, err := diaspora.OpenLogger(within(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// Some tests leave events behind that nobody will ever take.
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		logger.Close(ctx)
	})
	return logger
}

// log logs values in one call.
func log(t *testing.T, logger *diaspora.Logger, topic string, values ...string) {
	t.Helper()
	var events []diaspora.Event
	for _, value := range values {
		events = append(events, diaspora.Event{Topic: topic, Value: []byte(value)})
	}
	if err := logger.Log(within(t), events...); err != nil {
		t.Fatal(err)
	}
}

func openConsumer(t *testing.T, cfg diaspora.Config, options diaspora.ConsumerOptions) *diaspora.Consumer {
	t.Helper()
	consumer, err := diaspora.OpenConsumer(within(t), cfg, options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		consumer.Close(ctx)
	})
	return consumer
}

// read reads at most n records, or until the Consumer ends by itself.
func read(t *testing.T, consumer *diaspora.Consumer, n int) (records []diaspora.Record) {
	t.Helper()
	for record, err := range consumer.Records(within(t)) {
		if err != nil {
			t.Fatalf("after %d records: %v", len(records), err)
		}
		if records = append(records, record); len(records) == n {
			break
		}
	}
	return records
}

const everything = 1 << 30

// readAll reads all that is in a topic now.
func readAll(t *testing.T, cfg diaspora.Config, topic string) []diaspora.Record {
	t.Helper()
	consumer := openConsumer(t, cfg, diaspora.ConsumerOptions{Topics: []string{topic}, Until: diaspora.End})
	return read(t, consumer, everything)
}

func values(records []diaspora.Record) string {
	var all []string
	for _, r := range records {
		all = append(all, string(r.Value))
	}
	return strings.Join(all, " ")
}

// withToken is the configuration of a client with a login's access token alone.
func withToken(f *fabric.Fabric, login *globus.Login) diaspora.Config {
	token, _ := login.Token(f.Discovery().Globus.ResourceServer)
	return diaspora.Config{URL: f.URL(), Brokers: f.Brokers(), Identity: login.Identity, TokenSource: fixed(token)}
}

type fixed globus.Token

func (f fixed) Token(context.Context) (globus.Token, error) { return globus.Token(f), nil }

// wantError fails unless err is of the condition and says the words.
func wantError(t *testing.T, what string, err, condition error, words ...string) {
	t.Helper()
	if !errors.Is(err, condition) {
		t.Errorf("%s: %v, want an error that is %q", what, err, condition)
		return
	}
	for _, w := range words {
		if said := err.Error() + diaspora.Hint(err); !strings.Contains(said, w) {
			t.Errorf("%s: %q does not say %q", what, said, w)
		}
	}
}

func numbers(from, to int) (all []string) {
	for i := from; i < to; i++ {
		all = append(all, fmt.Sprint(i))
	}
	return all
}
