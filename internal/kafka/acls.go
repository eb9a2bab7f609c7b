package kafka

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Resource is what an ACL applies to: one topic or one consumer group, or, if Prefixed is set, all
// whose names begin with Name.
type Resource struct {
	Type     kmsg.ACLResourceType
	Name     string
	Prefixed bool
}

func (r Resource) pattern() kmsg.ACLResourcePatternType {
	if r.Prefixed {
		return kmsg.ACLResourcePatternTypePrefixed
	}
	return kmsg.ACLResourcePatternTypeLiteral
}

// TopicResource returns the topic of this name.
func TopicResource(name string) Resource {
	return Resource{Type: kmsg.ACLResourceTypeTopic, Name: name}
}

// GroupPrefix returns all consumer groups whose names begin with prefix.
func GroupPrefix(prefix string) Resource {
	return Resource{Type: kmsg.ACLResourceTypeGroup, Name: prefix, Prefixed: true}
}

// ACL is one entry of a resource's access control list.
type ACL struct {
	Resource
	Principal  string // User:<subject>
	Host       string
	Operation  kmsg.ACLOperation
	Permission kmsg.ACLPermissionType
}

// Allow returns the ACLs that allow a principal these operations from any host.
func Allow(resource Resource, principal string, operations ...kmsg.ACLOperation) []ACL {
	acls := make([]ACL, 0, len(operations))
	for _, operation := range operations {
		acls = append(acls, ACL{resource, principal, "*", operation, kmsg.ACLPermissionTypeAllow})
	}
	return acls
}

// ACLs returns all ACLs of a resource type that are on literal names, as one broker reports them.
func (a *Admin) ACLs(ctx context.Context, kind kmsg.ACLResourceType) ([]ACL, error) {
	return describeACLs(ctx, a.client, Resource{Type: kind})
}

// ResourceACLs returns the ACLs of one resource, as one broker reports them.
func (a *Admin) ResourceACLs(ctx context.Context, resource Resource) ([]ACL, error) {
	return describeACLs(ctx, a.client, resource)
}

// SetACLs adds the wanted ACLs that a resource does not have. It deletes its other ACLs for which
// made returns true; the rest are the operator's, and stay. hold reports whether every broker has
// these ACLs already. If it is false, SetACLs has requested the change and should be called again.
func (a *Admin) SetACLs(ctx context.Context, resource Resource, want []ACL, made func(ACL) bool) (hold bool, err error) {
	views, err := onEachBroker(ctx, a, func(b *kgo.Broker) ([]ACL, error) {
		return describeACLs(ctx, b, resource)
	})
	if err != nil {
		return false, err
	}
	return a.mendACLs(ctx, views, want, made)
}

// mendACLs is SetACLs for a resource that has the ACLs views according to the brokers.
func (a *Admin) mendACLs(ctx context.Context, views [][]ACL, want []ACL, made func(ACL) bool) (hold bool, err error) {
	var surplus, missing []ACL
	for _, have := range views {
		missing = append(missing, except(want, have)...)
		for _, acl := range except(have, want) {
			if made(acl) {
				surplus = append(surplus, acl)
			}
		}
	}
	if len(surplus) == 0 && len(missing) == 0 {
		return true, nil
	}
	surplus, missing = unique(surplus), unique(missing) // several brokers report the same ones
	if err := a.DeleteACLs(ctx, surplus); err != nil {
		return false, err
	}
	return false, a.createACLs(ctx, missing)
}

// maxChange is how many ACLs one request creates or deletes. The controllers of Apache Kafka refuse a
// request that makes more than 10,000 records.
const maxChange = 2000

// except returns the elements of a that are not in b.
func except(a, b []ACL) []ACL {
	var rest []ACL
	in := ACLSet(b)
	for _, acl := range a {
		if !in(acl) {
			rest = append(rest, acl)
		}
	}
	return rest
}

// ACLSet returns a function that reports whether a list has an ACL. It is fast for long lists too.
func ACLSet(list []ACL) (has func(ACL) bool) {
	if len(list) < 32 { // as most are; a map would be slower
		return func(acl ACL) bool { return slices.Contains(list, acl) }
	}
	set := make(map[ACL]struct{}, len(list))
	for _, acl := range list {
		set[acl] = struct{}{}
	}
	return func(acl ACL) bool {
		_, has := set[acl]
		return has
	}
}

// unique returns a list without repetitions.
func unique(list []ACL) []ACL {
	seen := make(map[ACL]struct{}, len(list))
	return slices.DeleteFunc(list, func(acl ACL) bool {
		_, before := seen[acl]
		seen[acl] = struct{}{}
		return before
	})
}

// describeACLs returns the ACLs of one resource or, if it has no name, those of all literal names.
func describeACLs(ctx context.Context, to kmsg.Requestor, resource Resource) ([]ACL, error) {
	req := kmsg.NewPtrDescribeACLsRequest()
	req.ResourceType, req.ResourcePatternType = resource.Type, resource.pattern()
	if resource.Name != "" {
		req.ResourceName = &resource.Name
	}
	req.Operation = kmsg.ACLOperationAny
	req.PermissionType = kmsg.ACLPermissionTypeAny
	resp, err := req.RequestWith(ctx, to)
	if err != nil {
		return nil, err
	}
	if err := codeError(resp.ErrorCode, resp.ErrorMessage); err != nil {
		return nil, fmt.Errorf("describe ACLs: %w", err)
	}
	var acls []ACL
	for _, r := range resp.Resources {
		for _, acl := range r.ACLs {
			of := Resource{r.ResourceType, r.ResourceName, r.ResourcePatternType == kmsg.ACLResourcePatternTypePrefixed}
			acls = append(acls, ACL{of, acl.Principal, acl.Host, acl.Operation, acl.PermissionType})
		}
	}
	return acls, nil
}

func (a *Admin) createACLs(ctx context.Context, acls []ACL) error {
	for acls := range slices.Chunk(acls, maxChange) {
		if err := a.createSomeACLs(ctx, acls); err != nil {
			return err
		}
	}
	return nil
}

func (a *Admin) createSomeACLs(ctx context.Context, acls []ACL) error {
	req := kmsg.NewPtrCreateACLsRequest()
	for _, acl := range acls {
		c := kmsg.NewCreateACLsRequestCreation()
		c.ResourceType, c.ResourceName = acl.Type, acl.Name
		c.ResourcePatternType = acl.pattern()
		c.Principal, c.Host = acl.Principal, acl.Host
		c.Operation, c.PermissionType = acl.Operation, acl.Permission
		req.Creations = append(req.Creations, c)
	}
	resp, err := req.RequestWith(ctx, a.client)
	if err != nil {
		return err
	}
	var errs []error
	for _, r := range resp.Results {
		errs = append(errs, codeError(r.ErrorCode, r.ErrorMessage))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("create ACLs: %w", err)
	}
	return nil
}

// DeleteACLs deletes exactly these ACLs. It is not an error if one does not exist.
func (a *Admin) DeleteACLs(ctx context.Context, acls []ACL) error {
	for acls := range slices.Chunk(acls, maxChange) {
		if err := a.deleteSomeACLs(ctx, acls); err != nil {
			return err
		}
	}
	return nil
}

func (a *Admin) deleteSomeACLs(ctx context.Context, acls []ACL) error {
	req := kmsg.NewPtrDeleteACLsRequest()
	for _, acl := range acls {
		f := kmsg.NewDeleteACLsRequestFilter()
		f.ResourceType, f.ResourceName = acl.Type, &acl.Name
		f.ResourcePatternType = acl.pattern()
		f.Principal, f.Host = &acl.Principal, &acl.Host
		f.Operation, f.PermissionType = acl.Operation, acl.Permission
		req.Filters = append(req.Filters, f)
	}
	resp, err := req.RequestWith(ctx, a.client)
	if err != nil {
		return err
	}
	var errs []error
	for _, r := range resp.Results {
		errs = append(errs, codeError(r.ErrorCode, r.ErrorMessage))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("delete ACLs: %w", err)
	}
	return nil
}
