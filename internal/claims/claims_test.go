package claims

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

func TestClaimWorks(t *testing.T) {
	c := newCluster(t)
	s := c.open()
	got, err := s.Claim(t.Context(), ada, diaspora.ClaimRequest{Name: "weather", Partitions: 3, Description: "what it is like"})
	testkit.Must(t, err)
	if !got.Created || got.Name != "weather" || got.Owner != ada || got.Partitions != 3 || got.Claimed.IsZero() {
		t.Errorf("Claim = %+v", got)
	}
	if err := c.produce(ada, "weather", "sunny"); err != nil {
		t.Errorf("the owner's produce = %v", err)
	}
	if value, err := c.consume(ada, "weather"); value != "sunny" || err != nil {
		t.Errorf("the owner's consume = %q, %v", value, err)
	}
	if err := c.produce(ben, "weather", "rain"); !errors.Is(err, kerr.TopicAuthorizationFailed) {
		t.Errorf("somebody else's produce = %v, want TOPIC_AUTHORIZATION_FAILED", err)
	}
	if value, err := c.consume(ben, "weather"); !errors.Is(err, kerr.TopicAuthorizationFailed) {
		t.Errorf("somebody else's consume = %q, %v, want TOPIC_AUTHORIZATION_FAILED", value, err)
	}
	c.check()

	for _, same := range []diaspora.ClaimRequest{{Name: "weather"}, {Name: "weather", Partitions: 3, RetentionMS: got.RetentionMS}} {
		again, err := s.Claim(t.Context(), ada, same)
		testkit.Must(t, err)
		if got.Created = false; again != got {
			t.Errorf("the second Claim = %+v, want %+v", again, got)
		}
	}
}

// TestClaimWithOtherSettings: a claim does not change the settings of a topic, and reports that it
// did not.
func TestClaimWithOtherSettings(t *testing.T) {
	c := newCluster(t)
	s := c.open()
	before, err := s.Claim(t.Context(), ada, diaspora.ClaimRequest{Name: "weather", Description: "beamline 7"})
	testkit.Must(t, err)
	before.Created = false
	const day = 24 * 60 * 60 * 1000
	for _, tt := range []struct {
		req    diaspora.ClaimRequest
		reason string
	}{
		{diaspora.ClaimRequest{Partitions: 4}, "1 partition rather than 4"},
		{diaspora.ClaimRequest{RetentionMS: 30 * day}, "events kept for 7 days rather than for 30 days"},
		{diaspora.ClaimRequest{RetentionMS: 3600 * 1000}, "events kept for 7 days rather than for 1 hour"},
		{diaspora.ClaimRequest{RetentionMS: 1500}, "events kept for 7 days rather than for 1.5s"},
		{diaspora.ClaimRequest{RetentionMS: -1}, "events kept for 7 days rather than forever"},
		{diaspora.ClaimRequest{Description: "beamline 8"}, "another description"},
		{diaspora.ClaimRequest{Partitions: 2, Description: "x"}, "1 partition rather than 2, another description; "},
	} {
		tt.req.Name = "weather"
		_, err := s.Claim(t.Context(), ada, tt.req)
		if !errors.Is(err, diaspora.ErrConflict) || !strings.Contains(err.Error(), tt.reason) || !strings.Contains(err.Error(), `"diaspora topic set weather"`) {
			t.Errorf("Claim(%+v) = %v, want ErrConflict that says %q and names the command", tt.req, err, tt.reason)
		}
		if _, err := s.Claim(t.Context(), ben, tt.req); !errors.Is(err, diaspora.ErrConflict) || strings.Contains(err.Error(), "rather than") {
			t.Errorf("somebody else's Claim(%+v) = %v, want ErrConflict without the settings", tt.req, err)
		}
	}
	if after, err := s.Topic(t.Context(), ada, "weather"); err != nil || after != before {
		t.Errorf("afterwards the topic is %+v, %v; want %+v", after, err, before)
	}
	c.check()
}

func TestClaimRefused(t *testing.T) {
	c := newCluster(t)
	s := c.open(func(cfg *Config) { cfg.Limits.Topics = 2; cfg.MaxPartitions = 9 })
	c.createTopic("foreign")
	c.createTopic("dotted.name")
	for _, name := range []string{"one", "two"} {
		if _, err := s.Claim(t.Context(), ada, diaspora.ClaimRequest{Name: name}); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		name    string
		subject string
		req     diaspora.ClaimRequest
		want    error
		reason  string
	}{
		{"another's", ben, diaspora.ClaimRequest{Name: "one"}, diaspora.ErrConflict, "belongs to somebody else; choose another name, or ask its owner to share it with you"},
		{"one too many", ada, diaspora.ClaimRequest{Name: "three"}, diaspora.ErrPermission, "the limit is 2 (max-topics); release one, or ask the operators"},
		{"foreign", ben, diaspora.ClaimRequest{Name: "foreign"}, diaspora.ErrConflict, "was not claimed here"},
		{"same but for the dot", ben, diaspora.ClaimRequest{Name: "dotted_name"}, diaspora.ErrConflict, "was not claimed here"},
		{"no name", ben, diaspora.ClaimRequest{}, diaspora.ErrInvalid, "needs a name"},
		{"hyphen", ben, diaspora.ClaimRequest{Name: "a-b"}, diaspora.ErrInvalid, "letters, digits and underscores"},
		{"the system's", ben, diaspora.ClaimRequest{Name: LedgerTopic}, diaspora.ErrInvalid, "underscore"},
		{"long", ben, diaspora.ClaimRequest{Name: strings.Repeat("x", 250)}, diaspora.ErrInvalid, "249"},
		{"many partitions", ben, diaspora.ClaimRequest{Name: "x", Partitions: 10}, diaspora.ErrInvalid, "1 to 9 partitions"},
		{"negative partitions", ben, diaspora.ClaimRequest{Name: "x", Partitions: -1}, diaspora.ErrInvalid, "partitions"},
		{"negative retention", ben, diaspora.ClaimRequest{Name: "x", RetentionMS: -2}, diaspora.ErrInvalid, "forever"},
		{"endless retention", ben, diaspora.ClaimRequest{Name: "x", RetentionMS: 1 << 62}, diaspora.ErrInvalid, "forever"},
		{"long description", ben, diaspora.ClaimRequest{Name: "x", Description: strings.Repeat("x", 1001)}, diaspora.ErrInvalid, "1000 bytes"},
		{"binary description", ben, diaspora.ClaimRequest{Name: "x", Description: "\xff"}, diaspora.ErrInvalid, "UTF-8"},
		{"description with newline", ben, diaspora.ClaimRequest{Name: "x", Description: "a\nb"}, diaspora.ErrInvalid, "printable"},
		{"no subject", "", diaspora.ClaimRequest{Name: "x"}, diaspora.ErrInvalid, "subject"},
		{"everybody", "*", diaspora.ClaimRequest{Name: "x"}, diaspora.ErrInvalid, "subject"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			topic, err := s.Claim(t.Context(), tt.subject, tt.req)
			var topicErr *diaspora.TopicError
			if !errors.Is(err, tt.want) || !errors.As(err, &topicErr) || !strings.Contains(err.Error(), tt.reason) {
				t.Fatalf("Claim(%+v) = %+v, %v, want a TopicError with %v that says %q", tt.req, topic, err, tt.want, tt.reason)
			}
			if strings.Contains(err.Error(), ada) {
				t.Errorf("the error %q shows the owner", err)
			}
		})
	}
	c.fake.DeleteTopic("foreign")
	c.fake.DeleteTopic("dotted.name")
	c.check()
}

func TestRelease(t *testing.T) {
	c := newCluster(t)
	s := c.open()
	if err := s.Release(t.Context(), ada, "weather"); !errors.Is(err, diaspora.ErrNotFound) {
		t.Errorf("Release of what nobody has = %v, want ErrNotFound", err)
	}
	if _, err := s.Claim(t.Context(), ada, diaspora.ClaimRequest{Name: "weather"}); err != nil {
		t.Fatal(err)
	}
	testkit.Must(t, c.produce(ada, "weather", "secret"))
	if err := s.Release(t.Context(), ben, "weather"); !errors.Is(err, diaspora.ErrPermission) {
		t.Errorf("Release by somebody else = %v, want ErrPermission", err)
	}
	testkit.Must(t, s.Release(t.Context(), ada, "weather"))
	c.check()
	if err := s.Release(t.Context(), ada, "weather"); !errors.Is(err, diaspora.ErrNotFound) {
		t.Errorf("the second Release = %v, want ErrNotFound", err)
	}
	// The next owner finds no events of the previous one, who has no access any more.
	if got, err := s.Claim(t.Context(), ben, diaspora.ClaimRequest{Name: "weather"}); err != nil || !got.Created {
		t.Fatalf("Claim of a released name = %+v, %v", got, err)
	}
	testkit.Must(t, c.produce(ben, "weather", "fresh"))
	if value, err := c.consume(ben, "weather"); value != "fresh" || err != nil {
		t.Errorf("the next owner's consume = %q, %v, want fresh", value, err)
	}
	if err := c.produce(ada, "weather", "still me"); !errors.Is(err, kerr.TopicAuthorizationFailed) {
		t.Errorf("the last owner's produce = %v, want TOPIC_AUTHORIZATION_FAILED", err)
	}
	c.check()
}

func TestShow(t *testing.T) {
	c := newCluster(t)
	s, other := c.open(), c.open()
	for _, name := range []string{"b", "a"} {
		if _, err := s.Claim(t.Context(), ada, diaspora.ClaimRequest{Name: name}); err != nil {
			t.Fatal(err)
		}
	}
	names := func(list diaspora.TopicList, err error) []string {
		t.Helper()
		testkit.Must(t, err)
		names := []string{}
		for _, topic := range list.Topics {
			names = append(names, topic.Name)
		}
		return names
	}
	if got := names(other.Topics(t.Context(), ada)); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("Topics = %q, want a and b", got)
	}
	if got := names(other.Topics(t.Context(), ben)); len(got) != 0 {
		t.Errorf("Topics of one who has none = %q", got)
	}
	if got, err := other.Topic(t.Context(), ada, "a"); got.Owner != ada || err != nil {
		t.Errorf("Topic = %+v, %v", got, err)
	}
	if _, err := other.Topic(t.Context(), ben, "a"); !errors.Is(err, diaspora.ErrPermission) {
		t.Errorf("Topic of another's = %v, want ErrPermission", err)
	}
	if _, err := other.Topic(t.Context(), ada, "c"); !errors.Is(err, diaspora.ErrNotFound) {
		t.Errorf("Topic of nobody's = %v, want ErrNotFound", err)
	}
	if _, err := other.Topic(t.Context(), ada, "no good"); !errors.Is(err, diaspora.ErrInvalid) {
		t.Errorf("Topic with a bad name = %v, want ErrInvalid", err)
	}
}
