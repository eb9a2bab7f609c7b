package claims

import (
	"maps"
	"net"
	"strconv"
	"sync"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// TestRequestsOfAClaim fails when a claim sends other requests to the cluster than it has to. Most of
// them wait for each other, and a claim takes as long as they do.
func TestRequestsOfAClaim(t *testing.T) {
	for _, brokers := range []int{1, 3} {
		n := new(testkit.Tally)
		s := newCluster(t, numBrokers(brokers)).open(func(cfg *Config) { cfg.Admin = append(cfg.Admin, kgo.WithHooks(n)) })
		if _, err := s.Claim(t.Context(), ada, diaspora.ClaimRequest{Name: "first"}); err != nil {
			t.Fatal(err) // it opens connections
		}
		n.Reset()
		if _, err := s.Claim(t.Context(), ada, diaspora.ClaimRequest{Name: "weather"}); err != nil {
			t.Fatal(err)
		}
		sent := n.Sent(kmsg.Fetch) // without those of the goroutine that reads the ledger
		want := map[kmsg.Key]int{
			kmsg.ListOffsets:  2, // the end of the ledger, before and after
			kmsg.CreateTopics: 2, // may the topic be created, and create it
			kmsg.Produce:      1,
			kmsg.CreateACLs:   1,
			kmsg.Metadata:     1 + brokers, // which brokers are there, and can each serve the topic
			kmsg.DescribeACLs: brokers,
		}
		if !maps.Equal(sent, want) {
			t.Errorf("with %d brokers, a claim sent %v\nwant %v", brokers, sent, want)
		}
	}
}

// TestBrokerThatIsBehind fails when a claim does not wait until every broker has the ACLs, or when it
// requests them again because a broker gets them a moment later.
func TestBrokerThatIsBehind(t *testing.T) {
	n := new(testkit.Tally)
	c := newCluster(t, numBrokers(3))
	s := c.open(func(cfg *Config) { cfg.Admin = append(cfg.Admin, kgo.WithHooks(n)) })
	n.Reset()
	late := 2 // answers
	c.fake.ControlKey(int16(kmsg.DescribeACLs), func(req kmsg.Request) (kmsg.Response, error, bool) {
		c.fake.KeepControl()
		if late == 0 {
			return nil, nil, false
		}
		late--
		return req.ResponseKind(), nil, true
	})
	if _, err := s.Claim(t.Context(), ada, diaspora.ClaimRequest{Name: "weather"}); err != nil {
		t.Fatal(err)
	}
	if asked, added := n.Sent()[kmsg.DescribeACLs], n.Sent()[kmsg.CreateACLs]; asked != 5 || added != 1 {
		t.Errorf("the claim looked for ACLs %d times and added them %d times, want 5 and once", asked, added)
	}
}

// TestBrokerThatJoins fails when a claim ends before it has asked a broker that joined the cluster
// while the topic was created.
func TestBrokerThatJoins(t *testing.T) {
	c := newCluster(t, numBrokers(3))
	s := c.open()
	hidden := false
	c.fake.ControlKey(int16(kmsg.Metadata), func(kreq kmsg.Request) (kmsg.Response, error, bool) {
		c.fake.KeepControl()
		if topics := kreq.(*kmsg.MetadataRequest).Topics; hidden || topics == nil || len(topics) > 0 {
			return nil, nil, false
		}
		hidden = true // only from the first request for the brokers
		resp := kreq.ResponseKind().(*kmsg.MetadataResponse)
		resp.ControllerID = 0
		host, port, _ := net.SplitHostPort(c.fake.ListenAddrs()[0])
		number, _ := strconv.Atoi(port)
		resp.Brokers = []kmsg.MetadataResponseBroker{{NodeID: 0, Host: host, Port: int32(number)}}
		return resp, nil, true
	})
	var asked sync.Map
	c.fake.ControlKey(int16(kmsg.DescribeACLs), func(kmsg.Request) (kmsg.Response, error, bool) {
		c.fake.KeepControl()
		asked.Store(c.fake.CurrentNode(), true)
		return nil, nil, false
	})
	if _, err := s.Claim(t.Context(), ada, diaspora.ClaimRequest{Name: "weather"}); err != nil {
		t.Fatal(err)
	}
	for id := range int32(3) {
		if _, ok := asked.Load(id); !ok {
			t.Errorf("broker %d was not asked for its ACLs", id)
		}
	}
}
