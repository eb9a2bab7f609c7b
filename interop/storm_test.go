//go:build !kafka

package interop

import (
	"context"
	"net/http"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl/oauth"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/internal/globusdev"
	"github.com/diaspora-streams/diaspora/internal/inside"
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"
)

// introspection is where Globus is asked about tokens.
const introspection = "/v2/oauth2/token/introspect"

// The tests here are of the gateway and Globus, over the embedded broker only: the engine has
// no part in them, and they take their time.

// questions counts how often Globus has answered about a token.
func questions(f *fabric.Fabric) (n int) {
	for _, r := range inside.Of(f).Globus.Requests() {
		if r.Path == introspection && r.Status == http.StatusOK {
			n++
		}
	}
	return n
}

// logOnce opens a connection, signs in, logs an event and leaves.
func logOnce(ctx context.Context, cfg diaspora.Config, topic string) error {
	logger, err := diaspora.OpenLogger(ctx, cfg)
	if err != nil {
		return err
	}
	if err := logger.Log(ctx, diaspora.Event{Topic: topic, Value: []byte("x")}); err != nil {
		logger.Close(ctx)
		return err
	}
	return logger.Close(ctx)
}

// TestKnownTokensAreNotAskedAbout connects again and again with a token that the
// fabric was told about a moment ago.
func TestKnownTokensAreNotAskedAbout(t *testing.T) {
	parallel(t)
	f := start(t, fabric.Config{RevocationInterval: 10 * time.Hour}) // and answers are fresh for an hour
	cfg := fabrictest.As(t, f, ada)
	topic := claim(t, cfg, 1)
	testkit.Must(t, logOnce(testkit.Within(t), cfg, topic))
	before := questions(f)
	for range 20 {
		testkit.Must(t, logOnce(testkit.Within(t), cfg, topic))
	}
	if asked := questions(f) - before; asked != 0 {
		t.Errorf("Globus was asked %d times about a token that is known", asked)
	}
}

// TestGlobusIsSlow: while Globus answers after five seconds, who is known comes and
// goes, though nobody's answers are fresh; who is not waits, and gets in.
func TestGlobusIsSlow(t *testing.T) {
	parallel(t)
	f, known, newcomer := acquainted(t, globusdev.Failure{Path: introspection, Delay: 5 * time.Second})
	topic := claim(t, known, 1)
	in := make(chan error, 1)
	go func() {
		logger, err := diaspora.OpenLogger(testkit.Within(t), newcomer)
		if err == nil {
			err = logger.Close(testkit.Within(t))
		}
		in <- err
	}()
	for logins := 0; ; logins++ {
		select {
		case err := <-in:
			if err != nil {
				t.Errorf("OpenLogger of a newcomer while Globus is slow: %v", err)
			}
			if logins == 0 {
				t.Error("a newcomer was in before somebody who is known")
			}
			t.Logf("%d logins of somebody who is known before the newcomer's", logins)
			return
		default:
		}
		if err := logOnce(testkit.Within(t), known, topic); err != nil {
			t.Fatalf("login %d of somebody who is known, after %d answers of Globus: %v", logins, questions(f), err)
		}
	}
}

// TestGlobusIsSilent: Globus takes questions and never answers. Who is known does not
// notice. Who is not is cut off, which clients take for a failure of the network.
func TestGlobusIsSilent(t *testing.T) {
	parallel(t)
	f, known, newcomer := acquainted(t, globusdev.Failure{Path: introspection, Delay: 10 * time.Minute})
	topic := claim(t, known, 1)
	before := questions(f)
	for range 10 {
		if err := logOnce(testkit.Within(t), known, topic); err != nil {
			t.Fatalf("login of somebody who is known: %v", err)
		}
	}
	token, err := newcomer.TokenSource.Token(testkit.Within(t))
	testkit.Must(t, err)
	plain, err := kgo.NewClient(kgo.SeedBrokers(f.Brokers()...), kgo.RetryTimeout(time.Second),
		kgo.SASL(oauth.Auth{Token: token.AccessToken.Reveal()}.AsMechanism()))
	testkit.Must(t, err)
	defer plain.Close()
	if err := plain.Ping(testkit.Within(t)); err == nil || !kgo.IsRetryableBrokerErr(err) {
		t.Errorf("Ping of a newcomer while Globus is silent: %v, want an error that is tried again", err)
	}
	if asked := questions(f) - before; asked != 0 {
		t.Fatalf("Globus has answered %d questions, and was to be silent", asked)
	}
}

// acquainted returns a fabric that goes by what Globus said ten milliseconds ago, no
// longer, with somebody whom it knows, and one whom it does not. From here on,
// Globus fails so.
func acquainted(t *testing.T, failure globusdev.Failure) (f *fabric.Fabric, known, newcomer diaspora.Config) {
	t.Helper()
	f = start(t, fabric.Config{RevocationInterval: 100 * time.Millisecond})
	known = fabrictest.As(t, f, ada)
	testkit.Must(t, logOnce(testkit.Within(t), known, claim(t, known, 1)))
	login := fabrictest.Login(t, f, grace)
	testkit.Must(t, inside.Of(f).Globus.FailNext(1_000_000, failure))
	return f, known, fabrictest.WithToken(f, login)
}
