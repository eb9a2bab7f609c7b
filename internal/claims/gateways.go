package claims

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora/globus"
	"github.com/diaspora-streams/diaspora/internal/kafka"
)

const (
	// keyUsesRetention is how long uses of keys wait for a Service to read them.
	keyUsesRetention = 7 * 24 * time.Hour
	// maxKeyUseBytes limits a record of KeyUsesTopic.
	maxKeyUseBytes = 4 << 10
	// maxLinkAge is how old a record about linked identities may be. An older one may be out of date. The
	// gateway repeats it at the person's next login.
	maxLinkAge = 5 * time.Minute
)

// reconcileGateways creates KeyUsesTopic and grants gateways the rights that a [Follower] needs.
func (s *Service) reconcileGateways(ctx context.Context) error {
	if s.cfg.GatewayPrincipal == "" {
		return nil
	}
	spec := kafka.TopicSpec{Name: KeyUsesTopic, Partitions: 1, Replicas: s.cfg.ReplicationFactor, Retention: keyUsesRetention}
	err := retry(ctx, func() (bool, error) {
		_, ready, err := s.cluster.CreateTopic(ctx, spec)
		return ready, clusterError(err)
	})
	for topic, operations := range map[string][]kmsg.ACLOperation{
		LedgerTopic:  {kmsg.ACLOperationRead, kmsg.ACLOperationDescribe},
		KeyUsesTopic: {kmsg.ACLOperationWrite, kmsg.ACLOperationDescribe},
	} {
		if err != nil {
			break
		}
		err = s.allow(ctx, kafka.TopicResource(topic), s.cfg.GatewayPrincipal, operations...)
	}
	if err != nil {
		return fmt.Errorf("grant gateways access to the ledger: %w", err)
	}
	return nil
}

// allow adds ACLs to a resource. It removes none.
func (s *Service) allow(ctx context.Context, resource kafka.Resource, principal string, operations ...kmsg.ACLOperation) error {
	want := kafka.Allow(resource, principal, operations...)
	return retry(ctx, func() (bool, error) {
		hold, err := s.cluster.SetACLs(ctx, resource, want, func(kafka.ACL) bool { return false })
		return hold, clusterError(err)
	})
}

// followGateways copies to the ledger which keys were used at gateways, until ctx ends. Each
// Service reads the whole topic; a use that is in the ledger already costs nothing. If several
// Services read a new use at the same time, each may append a record, of which the first takes
// effect.
func (s *Service) followGateways(ctx context.Context) error {
	client, err := kgo.NewClient(slices.Concat(s.cfg.Admin, []kgo.Opt{
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{KeyUsesTopic: {0: kgo.NewOffset().AtStart()}}),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
	})...)
	if err != nil {
		return err
	}
	s.wg.Go(func() {
		defer client.Close()
		for {
			fetches := client.PollFetches(ctx)
			if ctx.Err() != nil {
				return
			}
			if err := s.recordUses(ctx, fetches.Records()); err != nil && ctx.Err() == nil {
				s.cfg.Diagnostics.Warn("cannot record uses of access keys at gateways", "err", err)
			}
		}
	})
	return nil
}

// recordUses copies uses of keys from gateways to the ledger. It retries through outages.
func (s *Service) recordUses(ctx context.Context, records []*kgo.Record) error {
	if len(records) == 0 {
		return nil
	}
	return retry(ctx, func() (bool, error) {
		if err := s.ledger.sync(ctx); err != nil { // the use may be of a key that was just issued
			return false, err
		}
		for _, r := range records {
			var use keyUse
			malformed := len(r.Value) > maxKeyUseBytes || json.Unmarshal(r.Value, &use) != nil
			if !malformed && use.Version == 2 {
				if time.Since(r.Timestamp) > maxLinkAge {
					continue
				}
				if err := s.Linked(ctx, globus.Identity{Subject: use.Subject, IdentitySet: use.IdentitySet}); err != nil {
					return false, err
				}
				continue
			}
			if malformed || use.Version != 1 {
				s.cfg.Diagnostics.Warn("skipped a malformed record of a gateway", "topic", r.Topic, "offset", r.Offset)
				continue
			}
			if err := s.recordUse(ctx, use.Key, r.Timestamp); err != nil {
				return false, err
			}
		}
		return true, nil
	})
}
