package broker

import (
	"errors"
	"strings"
	"unicode/utf8"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// maxACLChanges is the number of ACLs that one request can create or delete.
const maxACLChanges = 10_000

// invalid returns a refusal if the ACL is not valid, or nil. The checks are in the same order as in
// Apache Kafka.
func (x acl) invalid() *refusal {
	switch {
	case x.resource == kmsg.ACLResourceTypeCluster && x.name != clusterName:
		return refusef(kerr.InvalidRequest, "the name of the cluster resource must be %q", clusterName)
	case x.name == "":
		return refusef(kerr.InvalidRequest, "the resource name is empty")
	case x.resource <= kmsg.ACLResourceTypeAny || x.resource > kmsg.ACLResourceTypeUser:
		return refusef(kerr.InvalidRequest, "unknown resource type")
	case x.kind != kmsg.ACLResourcePatternTypeLiteral && x.kind != kmsg.ACLResourcePatternTypePrefixed:
		return refusef(kerr.InvalidRequest, "the pattern type must be literal or prefixed")
	case x.operation <= kmsg.ACLOperationAny || x.operation > twoPhaseCommit:
		return refusef(kerr.InvalidRequest, "unknown operation")
	case x.permission != kmsg.ACLPermissionTypeAllow && x.permission != kmsg.ACLPermissionTypeDeny:
		return refusef(kerr.InvalidRequest, "the permission must be allow or deny")
	case !strings.Contains(x.principal, ":"):
		return refusef(kerr.InvalidRequest, "the principal %q has no type; want User:name", x.principal)
	case !utf8.ValidString(x.name + x.principal + x.host):
		return refusef(kerr.InvalidRequest, "the ACL is not valid UTF-8")
	}
	return nil
}

// aclFilter selects ACLs. A field that is nil or "any" matches every ACL.
type aclFilter struct {
	resource   kmsg.ACLResourceType
	name       *string
	kind       kmsg.ACLResourcePatternType // literal, prefixed, any, or match: all patterns that match the name
	principal  *string
	host       *string
	operation  kmsg.ACLOperation
	permission kmsg.ACLPermissionType
}

func (f aclFilter) matches(x acl) bool {
	return (f.resource == kmsg.ACLResourceTypeAny || f.resource == x.resource) &&
		f.matchesName(x.pattern) &&
		(f.principal == nil || *f.principal == x.principal) &&
		(f.host == nil || *f.host == x.host) &&
		(f.operation == kmsg.ACLOperationAny || f.operation == x.operation) &&
		(f.permission == kmsg.ACLPermissionTypeAny || f.permission == x.permission)
}

func (f aclFilter) matchesName(p pattern) bool {
	switch f.kind {
	case kmsg.ACLResourcePatternTypeAny, p.kind:
		return f.name == nil || *f.name == p.name
	case kmsg.ACLResourcePatternTypeMatch:
		return f.name == nil || *f.name == p.name ||
			p.kind == kmsg.ACLResourcePatternTypeLiteral && p.name == anyName ||
			p.kind == kmsg.ACLResourcePatternTypePrefixed && strings.HasPrefix(*f.name, p.name)
	default:
		return false
	}
}

// onePattern returns the only pattern that the filter can match, if there is just one.
func (f aclFilter) onePattern() (p pattern, ok bool) {
	switch f.kind {
	case kmsg.ACLResourcePatternTypeLiteral, kmsg.ACLResourcePatternTypePrefixed:
		if f.name != nil && f.resource != kmsg.ACLResourceTypeAny {
			return pattern{f.resource, f.kind, *f.name}, true
		}
	}
	return p, false
}

// unset reports whether a field is zero. Apache Kafka closes the connection in that case.
func (f aclFilter) unset() bool {
	return f.resource == kmsg.ACLResourceTypeUnknown || f.kind == kmsg.ACLResourcePatternTypeUnknown ||
		f.operation == kmsg.ACLOperationUnknown || f.permission == kmsg.ACLPermissionTypeUnknown
}

// unknown reports whether a field has a value that the protocol does not define.
func (f aclFilter) unknown() bool {
	return f.resource > kmsg.ACLResourceTypeUser || f.kind > kmsg.ACLResourcePatternTypePrefixed ||
		f.operation > twoPhaseCommit || f.permission > kmsg.ACLPermissionTypeAllow ||
		f.resource < 0 || f.kind < 0 || f.operation < 0 || f.permission < 0
}

var errZeroACLField = errors.New("request for ACLs with a field that is zero")

func (b *Broker) describeACLs(r *request, req *kmsg.DescribeACLsRequest) (*kmsg.DescribeACLsResponse, error) {
	filter := aclFilter{req.ResourceType, req.ResourceName, req.ResourcePatternType, req.Principal, req.Host, req.Operation, req.PermissionType}
	if filter.unset() {
		return nil, errZeroACLField
	}
	response := req.ResponseKind().(*kmsg.DescribeACLsResponse)
	if refused := b.mayCluster(r, kmsg.ACLOperationDescribe); refused != nil {
		response.ErrorCode, response.ErrorMessage = refused.code, refused.reason
		return response, nil
	}
	response.ErrorMessage = kmsg.StringPtr("")
	var last pattern
	for _, x := range b.acls.matching(filter) { // sorted by pattern
		if x.pattern != last {
			last = x.pattern
			of := kmsg.NewDescribeACLsResponseResource()
			of.ResourceType, of.ResourceName, of.ResourcePatternType = x.resource, x.name, x.kind
			response.Resources = append(response.Resources, of)
		}
		described := kmsg.NewDescribeACLsResponseResourceACL()
		described.Principal, described.Host, described.Operation, described.PermissionType = x.principal, x.host, x.operation, x.permission
		of := &response.Resources[len(response.Resources)-1]
		of.ACLs = append(of.ACLs, described)
	}
	return response, nil
}

// createACLs creates the valid ACLs of a request. Either all of them are created or none.
func (b *Broker) createACLs(r *request, req *kmsg.CreateACLsRequest) (*kmsg.CreateACLsResponse, error) {
	var valid []acl
	results := make([]*refusal, len(req.Creations))
	filters := false // whether a field is "any" or "match", for which Apache Kafka fails the whole request
	for i, c := range req.Creations {
		x := acl{pattern{c.ResourceType, c.ResourcePatternType, c.ResourceName}, c.Principal, c.Host, c.Operation, c.PermissionType}
		if (aclFilter{resource: x.resource, kind: x.kind, operation: x.operation, permission: x.permission}).unset() {
			return nil, errZeroACLField
		}
		if results[i] = x.invalid(); results[i] == nil {
			valid = append(valid, x)
		}
		filters = filters || x.resource == kmsg.ACLResourceTypeAny || x.kind == kmsg.ACLResourcePatternTypeAny || x.kind == kmsg.ACLResourcePatternTypeMatch ||
			x.operation == kmsg.ACLOperationAny || x.permission == kmsg.ACLPermissionTypeAny
	}
	refused := b.mayCluster(r, kmsg.ACLOperationAlter)
	switch {
	case refused != nil:
	case filters:
		refused = refuseWithoutMessage(kerr.UnknownServerError)
	case len(valid) > maxACLChanges:
		refused = refusef(kerr.PolicyViolation, "a request can create %d ACLs at most", maxACLChanges)
	default:
		refused = b.refuseIfDiskFull()
	}
	if refused == nil {
		if err := b.acls.create(valid); err != nil {
			refused = b.refuseUnwritten("create ACLs", err)
		}
	}
	response := req.ResponseKind().(*kmsg.CreateACLsResponse)
	for _, own := range results {
		result := kmsg.NewCreateACLsResponseResult()
		result.ErrorMessage = kmsg.StringPtr("")
		if refused != nil {
			own = refused
		}
		own.set(&result.ErrorCode, &result.ErrorMessage)
		response.Results = append(response.Results, result)
	}
	return response, nil
}

// deleteACLs deletes the ACLs that match. Either all of them are deleted or none. It also works
// when the disk is nearly full.
func (b *Broker) deleteACLs(r *request, req *kmsg.DeleteACLsRequest) (*kmsg.DeleteACLsResponse, error) {
	var known []aclFilter
	for _, f := range req.Filters {
		filter := aclFilter{f.ResourceType, f.ResourceName, f.ResourcePatternType, f.Principal, f.Host, f.Operation, f.PermissionType}
		if filter.unset() {
			return nil, errZeroACLField
		}
		if !filter.unknown() {
			known = append(known, filter)
		}
	}
	var matched [][]acl
	refused := b.mayCluster(r, kmsg.ACLOperationAlter)
	if refused == nil {
		var err error
		matched, err = b.acls.delete(known, maxACLChanges)
		if errors.Is(err, errTooManyACLs) {
			refused = refusef(kerr.InvalidRequest, "a request can delete %d ACLs at most", maxACLChanges)
		} else if err != nil {
			refused = b.refuseUnwritten("delete ACLs", err)
		}
	}
	response := req.ResponseKind().(*kmsg.DeleteACLsResponse)
	for _, f := range req.Filters {
		result := kmsg.NewDeleteACLsResponseResult()
		filter := aclFilter{resource: f.ResourceType, kind: f.ResourcePatternType, operation: f.Operation, permission: f.PermissionType}
		switch {
		case refused != nil:
			result.ErrorCode, result.ErrorMessage = refused.code, refused.reason
		case filter.unknown():
			result.ErrorCode, result.ErrorMessage = kerr.InvalidRequest.Code, kmsg.StringPtr("the filter has an unknown code")
		default:
			for _, x := range matched[0] {
				result.MatchingACLs = append(result.MatchingACLs, deletedACLResult(x))
			}
			matched = matched[1:]
		}
		response.Results = append(response.Results, result)
	}
	return response, nil
}

func deletedACLResult(x acl) kmsg.DeleteACLsResponseResultMatchingACL {
	deleted := kmsg.NewDeleteACLsResponseResultMatchingACL()
	deleted.ResourceType, deleted.ResourceName, deleted.ResourcePatternType = x.resource, x.name, x.kind
	deleted.Principal, deleted.Host, deleted.Operation, deleted.PermissionType = x.principal, x.host, x.operation, x.permission
	return deleted
}
