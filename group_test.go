package diaspora

import (
	"errors"
	"sync/atomic"
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
	var asked atomic.Int64
	c.ControlKey(int16(kmsg.FindCoordinator), func(request kmsg.Request) (kmsg.Response, error, bool) {
		if asked.Add(1) > 3 {
			return nil, nil, false
		}
		c.KeepControl()
		response := request.ResponseKind().(*kmsg.FindCoordinatorResponse)
		for _, key := range request.(*kmsg.FindCoordinatorRequest).CoordinatorKeys {
			coordinator := kmsg.NewFindCoordinatorResponseCoordinator()
			coordinator.Key, coordinator.ErrorCode = key, kerr.CoordinatorNotAvailable.Code
			response.Coordinators = append(response.Coordinators, coordinator)
		}
		return response, nil, true
	})
	openConsumer(t, cfg, ConsumerOptions{Topics: []string{"beamline"}, Group: "first"})
	if n := asked.Load(); n < 4 {
		t.Errorf("its coordinator was asked for %d times, want until it was there", n)
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
