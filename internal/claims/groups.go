package claims

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora/internal/kafka"
)

// reconcileGroups grants all users the right to use the consumer groups that the gateway keeps
// private to them; see [kafka.UserGroups].
//
// Earlier versions let everyone use every group, or gave a group to the first subject that claimed
// it. reconcileGroups removes the ACLs for that. Before, it copies the groups' committed offsets to
// groups with the new names. Otherwise consumers would not resume where they stopped.
func (s *Service) reconcileGroups(ctx context.Context) error {
	err := s.allow(ctx, kafka.GroupPrefix(kafka.UserGroups), principal("*"),
		kmsg.ACLOperationRead, kmsg.ACLOperationDescribe, kmsg.ACLOperationDelete, kmsg.ACLOperationDescribeConfigs)
	if err != nil {
		return fmt.Errorf("grant all users access to consumer groups: %w", err)
	}
	acls, err := s.cluster.ACLs(ctx, kmsg.ACLResourceTypeGroup)
	if err != nil {
		return clusterError(err)
	}
	var owners map[string]string
	s.ledger.read(func(st *state) { owners = st.groupOwners() })
	acls = slices.DeleteFunc(acls, func(acl kafka.ACL) bool { return !grantedByEarlierVersion(acl, owners) })
	if len(acls) == 0 {
		return nil
	}
	s.cfg.Diagnostics.Info("making consumer groups private to their users; copying committed offsets")
	if err := copyOffsets(ctx, kadm.NewClient(s.client), s.privateGroup(owners), s.cfg.Diagnostics); err != nil {
		return fmt.Errorf("copy committed offsets: %w", clusterError(err))
	}
	return clusterError(s.cluster.DeleteACLs(ctx, acls))
}

// grantedByEarlierVersion reports whether an earlier version created this ACL of a group.
func grantedByEarlierVersion(acl kafka.ACL, owners map[string]string) bool {
	if acl.Host != "*" || acl.Permission != kmsg.ACLPermissionTypeAllow {
		return false
	}
	switch owner := owners[acl.Name]; {
	case acl.Name == "*":
		return acl.Principal == principal("*") && (acl.Operation == kmsg.ACLOperationRead || acl.Operation == kmsg.ACLOperationDescribe)
	case owner == "":
		return false
	case acl.Principal == principal(owner):
		return acl.Operation == kmsg.ACLOperationRead || acl.Operation == kmsg.ACLOperationDescribe || acl.Operation == kmsg.ACLOperationDelete
	default: // a key of the owner's
		return strings.HasPrefix(acl.Principal, principal(owner)+".") && acl.Operation == kmsg.ACLOperationRead
	}
}

// privateGroup returns a function that names the group to which a group's committed offsets in a
// topic are copied. It belongs to the subject that claimed the group, or else to the topic's owner.
func (s *Service) privateGroup(owners map[string]string) func(group, topic string) string {
	return func(group, topic string) string {
		if strings.HasPrefix(group, kafka.UserGroups) || strings.HasPrefix(group, kafka.DeniedGroups) {
			return ""
		}
		owner := owners[group]
		if owner == "" {
			owner = s.ledger.topic(topic).owner
		}
		if owner == "" {
			return ""
		}
		return kafka.UserGroups + owner + "." + group
	}
}

// groupOwners returns the subjects that claimed groups, by group ID.
func (s *state) groupOwners() map[string]string {
	owners := make(map[string]string, len(s.groups))
	for name, g := range s.groups {
		owners[name] = g.owner
	}
	return owners
}

// copyOffsets copies committed offsets to other groups. For a group and a topic, the function to
// returns the target group, or "" to copy nothing. copyOffsets skips partitions in which the target
// has a committed offset already, so it may be repeated. It also skips a target that has members,
// because its consumers have already started without the copy.
func copyOffsets(ctx context.Context, admin *kadm.Client, to func(group, topic string) string, diagnostics *slog.Logger) error {
	groups, err := admin.ListGroups(ctx)
	if err != nil {
		return fmt.Errorf("list groups: %w", err)
	}
	for _, group := range groups.Groups() {
		offsets, err := admin.FetchOffsets(ctx, group)
		if err != nil {
			return fmt.Errorf("offsets of group %q: %w", group, err)
		}
		copies := map[string]kadm.Offsets{}
		offsets.Each(func(o kadm.OffsetResponse) {
			if target := to(group, o.Topic); target != "" && o.Err == nil && o.At >= 0 {
				offsets := copies[target]
				offsets.Add(o.Offset)
				copies[target] = offsets
			}
		})
		for target, offsets := range copies {
			err := addOffsets(ctx, admin, target, offsets)
			if errors.Is(err, kerr.UnknownMemberID) {
				diagnostics.Warn("committed offsets not copied, because the group already has consumers", "from", group, "to", target)
			} else if err != nil {
				return fmt.Errorf("offsets of group %q: %w", target, err)
			}
		}
	}
	return nil
}

// addOffsets commits offsets for the partitions in which the group has no committed offset.
func addOffsets(ctx context.Context, admin *kadm.Client, group string, offsets kadm.Offsets) error {
	have, err := admin.FetchOffsets(ctx, group)
	if err != nil && !errors.Is(err, kerr.GroupIDNotFound) {
		return err
	}
	offsets.DeleteFunc(func(o kadm.Offset) bool {
		committed, ok := have.Lookup(o.Topic, o.Partition)
		return ok && committed.At >= 0
	})
	if len(offsets) == 0 {
		return nil
	}
	return admin.CommitAllOffsets(ctx, group, offsets)
}
