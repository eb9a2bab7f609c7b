package diaspora

import (
	"errors"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// TestFirstGroupEver plays a cluster that makes the place for its groups' offsets
// only now.
func TestFirstGroupEver(t *testing.T) {
	c, cfg := newCluster(t, kfake.SeedTopics(1, "beamline"))
	asked := 0
	c.ControlKey(int16(kmsg.OffsetFetch), func(request kmsg.Request) (kmsg.Response, error, bool) {
		if asked++; asked > 2 {
			return nil, nil, false
		}
		c.KeepControl()
		response := request.ResponseKind().(*kmsg.OffsetFetchResponse)
		for _, g := range request.(*kmsg.OffsetFetchRequest).Groups {
			group := kmsg.NewOffsetFetchResponseGroup()
			group.Group, group.ErrorCode = g.Group, kerr.CoordinatorNotAvailable.Code
			response.Groups = append(response.Groups, group)
		}
		return response, nil, true
	})
	openConsumer(t, cfg, ConsumerOptions{Topics: []string{"beamline"}, Group: "first"})
	if asked < 3 {
		t.Errorf("the group was asked for %d times, want until it was there", asked)
	}
}

// TestGroupSessionErrors: what the member gets over by itself is not told.
func TestGroupSessionErrors(t *testing.T) {
	c := &Consumer{fabric: &fabric{}, options: ConsumerOptions{Group: "analysis"}}
	for _, cause := range []error{kerr.NotCoordinator, kerr.CoordinatorNotAvailable, kerr.CoordinatorLoadInProgress, kerr.UnknownMemberID, kerr.IllegalGeneration} {
		if err := c.fetchError("", kgo.FetchPartition{Err: &kgo.ErrGroupSession{Err: cause}}); err != nil {
			t.Errorf("a session that ended with %v gives %v, want nothing", cause, err)
		}
	}
	err := c.fetchError("", kgo.FetchPartition{Err: &kgo.ErrGroupSession{Err: kerr.GroupAuthorizationFailed}})
	if !errors.Is(err, ErrPermission) {
		t.Errorf("a session that ended with %v gives %v, want %v", kerr.GroupAuthorizationFailed, err, ErrPermission)
	}
}
