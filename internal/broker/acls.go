package broker

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora/internal/journal"
)

const (
	clusterName = "kafka-cluster" // the only name that an ACL on the cluster can have

	anyPrincipal = "User:*" // in an ACL: every principal
	anyName      = "*"      // in an ACL with a literal pattern: every resource of its type
	anyHost      = "*"      // in an ACL: every host

	twoPhaseCommit kmsg.ACLOperation = 15 // KIP-939; kmsg has no name for it
)

// acl is one entry of an access control list.
type acl struct {
	pattern
	principal  string
	host       string
	operation  kmsg.ACLOperation
	permission kmsg.ACLPermissionType
}

// pattern selects the resources that an ACL applies to: one resource, those whose
// names have a prefix, or all of a type.
type pattern struct {
	resource kmsg.ACLResourceType
	kind     kmsg.ACLResourcePatternType // literal or prefixed
	name     string
}

// operations is a set of operations: bit n is operation n.
type operations uint32

func setOf(ops ...kmsg.ACLOperation) (set operations) {
	for _, op := range ops {
		set |= 1 << op
	}
	return set
}

// operationsImplying returns the operations that imply op if an ACL allows them. An ACL
// that denies one of them does not deny op.
func operationsImplying(op kmsg.ACLOperation) operations {
	switch op {
	case kmsg.ACLOperationDescribe:
		return setOf(op, kmsg.ACLOperationAll, kmsg.ACLOperationRead, kmsg.ACLOperationWrite, kmsg.ACLOperationDelete, kmsg.ACLOperationAlter)
	case kmsg.ACLOperationDescribeConfigs:
		return setOf(op, kmsg.ACLOperationAll, kmsg.ACLOperationAlterConfigs)
	default:
		return setOf(op, kmsg.ACLOperationAll)
	}
}

// rule combines all ACLs of one principal with the same pattern.
type rule struct{ allowed, denied operations }

// add combines the rule with another.
func (r *rule) add(other rule) {
	r.allowed |= other.allowed
	r.denied |= other.denied
}

// allows reports whether the rule allows an operation. Deny takes precedence.
func (r rule) allows(op kmsg.ACLOperation) bool {
	return r.denied&setOf(op, kmsg.ACLOperationAll) == 0 && r.allowed&operationsImplying(op) != 0
}

// rules are the rules of one principal.
type rules struct {
	byPattern map[pattern]rule
	prefixes  map[int]int // number of prefixed rules, by the length of the prefix
}

// acls stores the ACLs of the broker and authorizes requests like the StandardAuthorizer of Apache
// Kafka: an operation that no ACL allows is denied.
//
// Clients connect through the gateway, so the broker does not know their hosts. An ACL for a
// specific host is stored, but applies to no connection.
type acls struct {
	save func(...journal.Entry) error

	changing sync.Mutex // serializes changes

	mu          sync.RWMutex // guards the fields below
	byPattern   map[pattern]map[acl]struct{}
	byPrincipal map[string]*rules // from the ACLs for any host
}

func newACLs(save func(...journal.Entry) error) *acls {
	return &acls{save: save, byPattern: make(map[pattern]map[acl]struct{}), byPrincipal: make(map[string]*rules)}
}

// allow reports whether the caller may do op to the resource of this name.
func (a *acls) allow(who caller, op kmsg.ACLOperation, resource kmsg.ACLResourceType, name string) bool {
	return who.super || a.rule(who, resource, name).allows(op)
}

// supported lists the operations of each resource type.
var supported = map[kmsg.ACLResourceType]operations{
	kmsg.ACLResourceTypeTopic: setOf(kmsg.ACLOperationRead, kmsg.ACLOperationWrite, kmsg.ACLOperationCreate, kmsg.ACLOperationDelete,
		kmsg.ACLOperationAlter, kmsg.ACLOperationDescribe, kmsg.ACLOperationDescribeConfigs, kmsg.ACLOperationAlterConfigs),
	kmsg.ACLResourceTypeGroup: setOf(kmsg.ACLOperationRead, kmsg.ACLOperationDelete, kmsg.ACLOperationDescribe,
		kmsg.ACLOperationDescribeConfigs, kmsg.ACLOperationAlterConfigs),
	kmsg.ACLResourceTypeCluster: setOf(kmsg.ACLOperationCreate, kmsg.ACLOperationAlter, kmsg.ACLOperationDescribe, kmsg.ACLOperationClusterAction,
		kmsg.ACLOperationDescribeConfigs, kmsg.ACLOperationAlterConfigs, kmsg.ACLOperationIdempotentWrite),
}

// operations returns the operations on a resource that the caller is authorized
// for, as the bit field of responses (KIP-430).
func (a *acls) operations(who caller, resource kmsg.ACLResourceType, name string) int32 {
	if who.super {
		return int32(supported[resource])
	}
	r := a.rule(who, resource, name)
	var may operations
	for op := kmsg.ACLOperationAll; op <= twoPhaseCommit; op++ {
		if set := setOf(op); supported[resource]&set != 0 && r.allows(op) {
			may |= set
		}
	}
	return int32(may)
}

// rule combines all ACLs that match a principal and a resource.
func (a *acls) rule(who caller, resource kmsg.ACLResourceType, name string) (all rule) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	for _, principal := range [...]string{who.principal, anyPrincipal} {
		of := a.byPrincipal[principal]
		if of == nil {
			continue
		}
		all.add(of.byPattern[pattern{resource, kmsg.ACLResourcePatternTypeLiteral, name}])
		all.add(of.byPattern[pattern{resource, kmsg.ACLResourcePatternTypeLiteral, anyName}])
		for length := range of.prefixes {
			if length <= len(name) {
				all.add(of.byPattern[pattern{resource, kmsg.ACLResourcePatternTypePrefixed, name[:length]}])
			}
		}
	}
	return all
}

// allowAny reports whether the caller may do op to at least one possible resource of this type. op
// must be an operation that no operation but All implies, because implying is not consulted here.
func (a *acls) allowAny(who caller, op kmsg.ACLOperation, resource kmsg.ACLResourceType) bool {
	if who.super {
		return true
	}
	ops := setOf(op, kmsg.ACLOperationAll)
	var allowed []pattern
	denied := make(map[pattern]bool)
	a.mu.RLock()
	defer a.mu.RUnlock()
	for _, principal := range [...]string{who.principal, anyPrincipal} {
		of := a.byPrincipal[principal]
		if of == nil {
			continue
		}
		for p, r := range of.byPattern {
			if p.resource == resource && r.allowed&ops != 0 {
				allowed = append(allowed, p)
			}
			if p.resource == resource && r.denied&ops != 0 {
				denied[p] = true
			}
		}
	}
	everything := pattern{resource, kmsg.ACLResourcePatternTypeLiteral, anyName}
	if denied[everything] {
		return false
	}
	return slices.ContainsFunc(allowed, func(p pattern) bool {
		if p == everything {
			return true // other ACLs cannot deny all names
		}
		if p.kind == kmsg.ACLResourcePatternTypeLiteral && denied[p] {
			return false
		}
		for length := 1; length <= len(p.name) && len(denied) > 0; length++ {
			if denied[pattern{resource, kmsg.ACLResourcePatternTypePrefixed, p.name[:length]}] {
				return false
			}
		}
		return true
	})
}

// create adds ACLs, and returns when they are durable. It ignores those that already exist.
func (a *acls) create(added []acl) error {
	a.changing.Lock()
	defer a.changing.Unlock()
	var entries []journal.Entry
	fresh := make(map[acl]struct{})
	for _, x := range added {
		if _, ok := fresh[x]; ok || a.has(x) {
			continue
		}
		fresh[x] = struct{}{}
		entries = append(entries, journal.Entry{Key: x.key(), Value: aclValue})
	}
	if len(entries) == 0 {
		return nil
	}
	if err := a.save(entries...); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for x := range fresh {
		a.add(x)
	}
	return nil
}

// errTooManyACLs means that a request would delete more ACLs than allowed.
var errTooManyACLs = errors.New("too many ACLs")

// delete removes the ACLs that match any of the filters, and returns when that is durable. It
// returns the matches of each filter. If there are more than limit, it removes none and returns
// errTooManyACLs.
func (a *acls) delete(filters []aclFilter, limit int) (matched [][]acl, err error) {
	a.changing.Lock()
	defer a.changing.Unlock()
	var entries []journal.Entry
	old := make(map[acl]struct{})
	for _, filter := range filters {
		found := a.matching(filter)
		matched = append(matched, found)
		for _, x := range found {
			if _, ok := old[x]; ok {
				continue
			}
			if len(old) == limit {
				return nil, errTooManyACLs
			}
			old[x] = struct{}{}
			entries = append(entries, journal.Entry{Key: x.key()})
		}
	}
	if len(entries) == 0 {
		return matched, nil
	}
	if err := a.save(entries...); err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for x := range old {
		a.remove(x)
	}
	return matched, nil
}

func (a *acls) has(x acl) bool {
	a.mu.RLock()
	defer a.mu.RUnlock()
	_, ok := a.byPattern[x.pattern][x]
	return ok
}

// matching returns the ACLs that match a filter, sorted.
func (a *acls) matching(filter aclFilter) []acl {
	found := a.find(filter)
	slices.SortFunc(found, acl.compare)
	return found
}

func (a *acls) find(filter aclFilter) (found []acl) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	search := func(of map[acl]struct{}) {
		for x := range of {
			if filter.matches(x) {
				found = append(found, x)
			}
		}
	}
	if p, ok := filter.onePattern(); ok {
		search(a.byPattern[p])
		return found
	}
	for _, of := range a.byPattern {
		search(of)
	}
	return found
}

// add inserts an ACL. The caller holds mu.
func (a *acls) add(x acl) {
	of := a.byPattern[x.pattern]
	if of == nil {
		of = make(map[acl]struct{})
		a.byPattern[x.pattern] = of
	}
	of[x] = struct{}{}
	if x.host != anyHost {
		return
	}
	r := a.byPrincipal[x.principal]
	if r == nil {
		r = &rules{make(map[pattern]rule), make(map[int]int)}
		a.byPrincipal[x.principal] = r
	}
	now, known := r.byPattern[x.pattern]
	if !known && x.kind == kmsg.ACLResourcePatternTypePrefixed {
		r.prefixes[len(x.name)]++
	}
	now.add(x.rule())
	r.byPattern[x.pattern] = now
}

// remove removes an ACL. The caller holds mu.
func (a *acls) remove(x acl) {
	of := a.byPattern[x.pattern]
	if _, ok := of[x]; !ok {
		return
	}
	delete(of, x)
	if len(of) == 0 {
		delete(a.byPattern, x.pattern)
	}
	if x.host != anyHost {
		return
	}
	r := a.byPrincipal[x.principal]
	now, gone := r.byPattern[x.pattern], x.rule()
	now.allowed &^= gone.allowed
	now.denied &^= gone.denied
	if now != (rule{}) {
		r.byPattern[x.pattern] = now
		return
	}
	delete(r.byPattern, x.pattern)
	if x.kind == kmsg.ACLResourcePatternTypePrefixed {
		if r.prefixes[len(x.name)]--; r.prefixes[len(x.name)] == 0 {
			delete(r.prefixes, len(x.name))
		}
	}
	if len(r.byPattern) == 0 {
		delete(a.byPrincipal, x.principal)
	}
}

func (x acl) rule() rule {
	if x.permission == kmsg.ACLPermissionTypeAllow {
		return rule{allowed: setOf(x.operation)}
	}
	return rule{denied: setOf(x.operation)}
}

// compare orders ACLs by pattern, and then by principal.
func (x acl) compare(y acl) int {
	if x.pattern != y.pattern {
		return cmp.Or(cmp.Compare(x.resource, y.resource), strings.Compare(x.name, y.name), cmp.Compare(x.kind, y.kind))
	}
	if x.principal != y.principal {
		return strings.Compare(x.principal, y.principal)
	}
	return cmp.Or(strings.Compare(x.host, y.host), cmp.Compare(x.operation, y.operation), cmp.Compare(x.permission, y.permission))
}

// aclKeyPrefix is the prefix of the keys of ACLs in the journal. The rest of a key is
// the ACL itself, so that equal ACLs have equal keys.
const aclKeyPrefix = "acl/"

// aclValue is the value of each ACL in the journal.
var aclValue = []byte{1}

// key returns the key of the ACL in the journal: four bytes of codes, name and
// principal with their lengths, and the host.
func (x acl) key() []byte {
	b := append([]byte(aclKeyPrefix), byte(x.resource), byte(x.kind), byte(x.operation), byte(x.permission))
	for _, text := range [...]string{x.name, x.principal} {
		b = binary.AppendUvarint(b, uint64(len(text)))
		b = append(b, text...)
	}
	return append(b, x.host...)
}

// parseACLKey is the inverse of key.
func parseACLKey(key []byte) (x acl, err error) {
	b, ok := strings.CutPrefix(string(key), aclKeyPrefix)
	if !ok || len(b) < 4 {
		return acl{}, fmt.Errorf("ACL %q: too short", key)
	}
	x.resource, x.kind = kmsg.ACLResourceType(b[0]), kmsg.ACLResourcePatternType(b[1])
	x.operation, x.permission = kmsg.ACLOperation(b[2]), kmsg.ACLPermissionType(b[3])
	b = b[4:]
	for _, text := range [...]*string{&x.name, &x.principal} {
		length, n := binary.Uvarint([]byte(b))
		if n <= 0 || length > uint64(len(b)-n) {
			return acl{}, fmt.Errorf("ACL %q: wrong length", key)
		}
		*text, b = b[n:n+int(length)], b[n+int(length):]
	}
	x.host = b
	if r := x.invalid(); r != nil {
		return acl{}, fmt.Errorf("ACL %q: %s", key, *r.reason)
	}
	return x, nil
}

// load applies an entry of the journal.
func (a *acls) load(e journal.Entry) error {
	x, err := parseACLKey(e.Key)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if e.Value == nil {
		a.remove(x)
	} else {
		a.add(x)
	}
	return nil
}
