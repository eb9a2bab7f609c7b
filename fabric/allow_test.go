package fabric_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/sasl/oauth"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/fabric"
	"github.com/diaspora-streams/diaspora/internal/globusdev"
	"github.com/diaspora-streams/diaspora/internal/testkit"
	"github.com/diaspora-streams/diaspora/internal/testkit/fabrictest"
)

// TestAllowList checks that an account that is not admitted is rejected by all parts, with a login and
// with an access key, and that the error names the contact. Earlier versions admitted every account of
// Globus.
func TestAllowList(t *testing.T) {
	t.Parallel()
	const grace = "grace@example.org"
	dir := t.TempDir()
	f := fabrictest.Start(t, fabric.Config{Dir: dir})
	fabrictest.Claim(t, fabrictest.As(t, f, grace), "snow")
	key := fabrictest.CreateKey(t, fabrictest.As(t, f, grace), diaspora.AccessKeyRequest{Name: "k", Read: true, Write: true})
	testkit.Must(t, f.Close())
	for name, tt := range map[string]struct {
		domains, subjects []string
		keyWorks          bool
	}{
		"domains":  {[]string{"example.edu"}, nil, true}, // an access key has a subject but no domain, so a list of domains does not exclude it
		"subjects": {nil, []string{globusdev.Subject(ada)}, false},
	} {
		f := fabrictest.Start(t, fabric.OpenTo(fabric.Config{Dir: dir}, tt.domains, tt.subjects))
		listed, other := fabrictest.As(t, f, ada), fabrictest.As(t, f, grace)
		if client, err := diaspora.NewClient(listed); err != nil {
			t.Fatal(err)
		} else if _, err := client.Claim(t.Context(), diaspora.ClaimRequest{Name: "weather"}); err != nil {
			t.Errorf("%s: somebody on the list: %v", name, err)
		}
		logger, err := diaspora.OpenLogger(t.Context(), listed)
		if err != nil {
			t.Fatalf("%s: somebody on the list: %v", name, err)
		}
		if err := errors.Join(logger.Log(t.Context(), diaspora.Event{Topic: "weather", Value: []byte("x")}), logger.Close(t.Context())); err != nil {
			t.Errorf("%s: somebody on the list: %v", name, err)
		}
		refused := func(what string, err, condition error) {
			t.Helper()
			if !errors.Is(err, condition) || !strings.Contains(err.Error(), "this fabric is not open to ") || !strings.Contains(err.Error(), "help@example.org") {
				t.Errorf("%s: %s: %v, want %q, and whom to ask", name, what, err, condition)
			}
		}
		client := fabrictest.Client(t, other)
		_, err = client.Topics(t.Context())
		refused("the ACL endpoint", err, diaspora.ErrPermission)
		_, err = diaspora.OpenLogger(t.Context(), other)
		refused("the gateway", err, diaspora.ErrPermission)
		token, err := other.TokenSource.Token(t.Context())
		testkit.Must(t, err)
		if err := fabrictest.Kafka(t, f, oauth.Auth{Token: token.AccessToken.Reveal()}.AsMechanism()).Ping(t.Context()); err == nil || !strings.Contains(err.Error(), "this fabric is not open to ") {
			t.Errorf("%s: a Kafka client: %v", name, err)
		}
		if err := fabrictest.Kafka(t, f, fabrictest.ByPlain(key)).Ping(t.Context()); (err == nil) != tt.keyWorks {
			t.Errorf("%s: an access key: %v, want it to work: %v", name, err, tt.keyWorks)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
}
