// Package fabrictest is what the tests of several packages share that need a fabric. Only tests import it.
//
//   - [Start] starts a fabric and [As] signs a user in; [Claim], [OpenLogger], [OpenConsumer] and [ReadAll]
//     do what that user does with a topic.
//   - [WithToken], [StoredLogin], [CreateKey], [Exchange], [ByPlain] and [ByToken] are ways to sign in, and [Kafka]
//     returns a plain Kafka client that uses one.
//   - [Admin] returns a Kafka client to which ACLs do not apply.
//   - [Thief] is an attacker: an ACL endpoint whose discovery document says whatever a test wants, a Globus
//     Auth and a gateway. They take every secret that they are shown, and keep it.
package fabrictest

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/oauth"
	"github.com/twmb/franz-go/pkg/sasl/plain"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/globusdev"
	"github.com/diaspora-streams/diaspora/internal/inside"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// Ada and Grace are users whom every fabric knows.
const (
	Ada   = "ada@example.edu"
	Grace = "grace@example.org"
)

// Start starts a fabric, which must close without an error when the test ends.
func Start(t testing.TB, cfg fabric.Config) *fabric.Fabric {
	t.Helper()
	f, err := fabric.Start(testkit.Within(t), cfg)
	testkit.Must(t, err)
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return f
}

// As returns the configuration of a user who is signed in.
func As(t testing.TB, f *fabric.Fabric, username string) diaspora.Config {
	t.Helper()
	cfg, err := f.As(testkit.Within(t), username)
	testkit.Must(t, err)
	return cfg
}

// Login returns a new login of a user.
func Login(t testing.TB, f *fabric.Fabric, username string) *globus.Login {
	t.Helper()
	login, err := f.Login(testkit.Within(t), username)
	testkit.Must(t, err)
	return login
}

// Client returns a client of the ACL endpoint.
func Client(t testing.TB, cfg diaspora.Config) *diaspora.Client {
	t.Helper()
	c, err := diaspora.NewClient(cfg)
	testkit.Must(t, err)
	return c
}

// Claim claims a topic with a number of partitions, or with the default number.
func Claim(t testing.TB, cfg diaspora.Config, name string, partitions ...int) {
	t.Helper()
	req := diaspora.ClaimRequest{Name: name}
	if len(partitions) > 0 {
		req.Partitions = partitions[0]
	}
	_, err := Client(t, cfg).Claim(testkit.Within(t), req)
	testkit.Must(t, err)
}

// OpenLogger opens a Logger that is closed when the test ends.
func OpenLogger(t testing.TB, cfg diaspora.Config) *diaspora.Logger {
	t.Helper()
	logger, err := diaspora.OpenLogger(testkit.Within(t), cfg)
	testkit.Must(t, err)
	t.Cleanup(func() {
		// Some tests leave events behind that can never be sent, so Close must not wait for long.
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		logger.Close(ctx)
	})
	return logger
}

// OpenConsumer opens a Consumer that is closed when the test ends.
func OpenConsumer(t testing.TB, cfg diaspora.Config, options diaspora.ConsumerOptions) *diaspora.Consumer {
	t.Helper()
	consumer, err := diaspora.OpenConsumer(testkit.Within(t), cfg, options)
	testkit.Must(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		consumer.Close(ctx)
	})
	return consumer
}

// Read reads n records, or fewer if the Consumer ends by itself.
func Read(t testing.TB, consumer *diaspora.Consumer, n int) (records []diaspora.Record) {
	t.Helper()
	for record, err := range consumer.Records(testkit.Within(t)) {
		if err != nil {
			t.Fatalf("after %d records: %v", len(records), err)
		}
		if records = append(records, record); len(records) == n {
			break
		}
	}
	return records
}

// ReadAll reads all records that are in a topic now.
func ReadAll(t testing.TB, cfg diaspora.Config, topic string) []diaspora.Record {
	t.Helper()
	return Read(t, OpenConsumer(t, cfg, diaspora.ConsumerOptions{Topics: []string{topic}, Until: diaspora.End}), -1)
}

// Log logs values in one call.
func Log(t testing.TB, logger *diaspora.Logger, topic string, values ...string) {
	t.Helper()
	var events []diaspora.Event
	for _, value := range values {
		events = append(events, diaspora.Event{Topic: topic, Value: []byte(value)})
	}
	testkit.Must(t, logger.Log(testkit.Within(t), events...))
}

// WithToken returns the configuration of a client that has only the access token of a login.
func WithToken(f *fabric.Fabric, login *globus.Login) diaspora.Config {
	token, _ := login.Token(f.Discovery().Globus.ResourceServer)
	return diaspora.Config{URL: f.URL(), Brokers: f.Brokers(), Identity: login.Identity, TokenSource: Fixed(token)}
}

// Fixed is a source of a token that may have expired.
type Fixed globus.Token

// Token returns the token.
func (f Fixed) Token(context.Context) (globus.Token, error) { return globus.Token(f), nil }

// StoredLogin stores a login of Ada's whose refresh tokens can be used only once, in the profile "test" of
// a new folder.
func StoredLogin(t testing.TB, f *fabric.Fabric) (store *globus.Store, dir string) {
	t.Helper()
	testkit.Must(t, inside.Of(f).Globus.SetRefreshMode(globusdev.RefreshRotate))
	dir = t.TempDir()
	profiles := diaspora.OpenProfiles(dir)
	testkit.Must(t, profiles.Save(diaspora.Profile{Name: "test", URL: f.URL(), Discovery: f.Discovery()}))
	store, err := profiles.Store("test")
	testkit.Must(t, err)
	testkit.Must(t, store.Save(testkit.Within(t), Login(t, f, Ada)))
	return store, dir
}

// CreateKey creates an access key.
func CreateKey(t testing.TB, cfg diaspora.Config, req diaspora.AccessKeyRequest) diaspora.NewAccessKey {
	t.Helper()
	key, err := Client(t, cfg).CreateKey(testkit.Within(t), req)
	testkit.Must(t, err)
	return key
}

// ByPlain signs in with an access key itself.
func ByPlain(key diaspora.NewAccessKey) sasl.Mechanism {
	return plain.Auth{User: key.ID, Pass: key.Secret.Reveal()}.AsMechanism()
}

// ByToken signs in with a token that an access key is exchanged for.
func ByToken(t testing.TB, f *fabric.Fabric, key diaspora.NewAccessKey) sasl.Mechanism {
	t.Helper()
	return oauth.Auth{Token: Exchange(t, f, key).Reveal()}.AsMechanism()
}

// Exchange exchanges an access key for a token, as an OAuth client does.
func Exchange(t testing.TB, f *fabric.Fabric, key diaspora.NewAccessKey) globus.Secret {
	t.Helper()
	response, err := http.PostForm(f.Discovery().TokenURL, url.Values{
		"grant_type": {"client_credentials"}, "client_id": {key.ID}, "client_secret": {key.Secret.Reveal()},
	})
	testkit.Must(t, err)
	defer response.Body.Close()
	var answer struct {
		AccessToken globus.Secret `json:"access_token"`
	}
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil || answer.AccessToken == "" {
		t.Fatalf("no token: status %d, %v", response.StatusCode, err)
	}
	return answer.AccessToken
}

// Kafka returns a plain Kafka client, which knows nothing of Globus.
func Kafka(t testing.TB, f *fabric.Fabric, mechanism sasl.Mechanism, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	return newKafka(t, append(opts, kgo.SeedBrokers(f.Brokers()...), kgo.SASL(mechanism), kgo.MetadataMinAge(50*time.Millisecond))...)
}

// Produce produces a record with a plain Kafka client.
func Produce(t testing.TB, client *kgo.Client, topic string) error {
	t.Helper()
	return client.ProduceSync(testkit.Within(t), &kgo.Record{Topic: topic, Value: []byte("x")}).FirstErr()
}

// Admin returns a Kafka client that is the super user.
func Admin(t testing.TB, f *fabric.Fabric) *kadm.Client {
	t.Helper()
	return kadm.NewClient(newKafka(t, inside.Of(f).Admin...))
}

func newKafka(t testing.TB, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	client, err := kgo.NewClient(opts...)
	testkit.Must(t, err)
	t.Cleanup(client.Close)
	return client
}

// Values returns the values of records.
func Values(records []diaspora.Record) (values []string) {
	for _, r := range records {
		values = append(values, string(r.Value))
	}
	return values
}

// Numbers returns the numbers from from up to to, which is not among them.
func Numbers(from, to int) (all []string) {
	for i := from; i < to; i++ {
		all = append(all, fmt.Sprint(i))
	}
	return all
}
