package broker

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"
	"pgregory.net/rapid"

	"github.com/diaspora-streams/diaspora/internal/journal"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// entries is a journal for ACLs only.
type entries map[string][]byte

func (j entries) save(all ...journal.Entry) error {
	for _, e := range all {
		if e.Value == nil {
			delete(j, string(e.Key))
		} else {
			j[string(e.Key)] = e.Value
		}
	}
	return nil
}

func (j entries) load(t interface{ Fatal(...any) }) *acls {
	a := newACLs(j.save)
	for key, value := range j {
		if err := a.load(journal.Entry{Key: []byte(key), Value: value}); err != nil {
			t.Fatal(err)
		}
	}
	return a
}

// naiveACLs authorizes by reading all ACLs, one after another.
type naiveACLs map[acl]bool

// match calls f with each ACL that applies to a resource and a principal.
func (n naiveACLs) match(principal string, resource kmsg.ACLResourceType, name string, f func(acl)) {
	for x := range n {
		about := x.kind == kmsg.ACLResourcePatternTypeLiteral && (x.name == name || x.name == "*") ||
			x.kind == kmsg.ACLResourcePatternTypePrefixed && strings.HasPrefix(name, x.name)
		if about && x.resource == resource && x.host == "*" && (x.principal == principal || x.principal == "User:*") {
			f(x)
		}
	}
}

func (n naiveACLs) allow(principal string, op kmsg.ACLOperation, resource kmsg.ACLResourceType, name string) bool {
	allowed, denied := false, false
	n.match(principal, resource, name, func(x acl) {
		same := x.operation == op || x.operation == kmsg.ACLOperationAll
		switch {
		case x.permission == kmsg.ACLPermissionTypeDeny:
			denied = denied || same
		case op == kmsg.ACLOperationDescribe:
			allowed = allowed || same || x.operation == kmsg.ACLOperationRead || x.operation == kmsg.ACLOperationWrite ||
				x.operation == kmsg.ACLOperationDelete || x.operation == kmsg.ACLOperationAlter
		case op == kmsg.ACLOperationDescribeConfigs:
			allowed = allowed || same || x.operation == kmsg.ACLOperationAlterConfigs
		default:
			allowed = allowed || same
		}
	})
	return allowed && !denied
}

// allowAny tries every name that an ACL has and one name that no ACL has. Any other name gives the
// same result as one of these.
func (n naiveACLs) allowAny(principal string, op kmsg.ACLOperation, resource kmsg.ACLResourceType) bool {
	for x := range n {
		if x.resource != resource {
			continue
		}
		name := x.name
		if x.kind == kmsg.ACLResourcePatternTypePrefixed || x.name == "*" {
			name += "\x00"
		}
		if n.allow(principal, op, resource, name) || n.allow(principal, op, resource, x.name) {
			return true
		}
	}
	return false
}

var (
	someNames      = []string{"a", "ab", "abc", "abcd", "b", "ba", "*"}
	somePrincipals = []string{"User:ada", "User:bob", "User:*", "Group:ada"}
	someResources  = []kmsg.ACLResourceType{kmsg.ACLResourceTypeTopic, kmsg.ACLResourceTypeGroup, kmsg.ACLResourceTypeTransactionalId}
)

func drawACL(t *rapid.T) acl {
	return acl{
		pattern{
			rapid.SampledFrom(someResources).Draw(t, "resource"),
			rapid.SampledFrom([]kmsg.ACLResourcePatternType{kmsg.ACLResourcePatternTypeLiteral, kmsg.ACLResourcePatternTypePrefixed}).Draw(t, "kind"),
			rapid.SampledFrom(someNames).Draw(t, "name"),
		},
		rapid.SampledFrom(somePrincipals).Draw(t, "principal"),
		rapid.SampledFrom([]string{"*", "*", "10.0.0.1"}).Draw(t, "host"),
		kmsg.ACLOperation(rapid.IntRange(int(kmsg.ACLOperationAll), int(twoPhaseCommit)).Draw(t, "operation")),
		rapid.SampledFrom([]kmsg.ACLPermissionType{kmsg.ACLPermissionTypeAllow, kmsg.ACLPermissionTypeAllow, kmsg.ACLPermissionTypeDeny}).Draw(t, "permission"),
	}
}

func drawFilter(t *rapid.T) aclFilter {
	optional := func(label string, of []string) *string {
		if rapid.Bool().Draw(t, label+" given") {
			return kmsg.StringPtr(rapid.SampledFrom(of).Draw(t, label))
		}
		return nil
	}
	return aclFilter{
		rapid.SampledFrom(append(someResources, kmsg.ACLResourceTypeAny)).Draw(t, "resource"),
		optional("name", someNames),
		kmsg.ACLResourcePatternType(rapid.IntRange(1, 4).Draw(t, "kind")),
		optional("principal", somePrincipals),
		optional("host", []string{"*", "10.0.0.1"}),
		kmsg.ACLOperation(rapid.IntRange(1, int(twoPhaseCommit)).Draw(t, "operation")),
		kmsg.ACLPermissionType(rapid.IntRange(1, 3).Draw(t, "permission")),
	}
}

// TestACLs creates and deletes ACLs, restarts, and authorizes operations: the results equal those
// of naiveACLs.
func TestACLs(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		kept := entries{}
		a, naive := newACLs(kept.save), naiveACLs{}
		t.Repeat(map[string]func(*rapid.T){
			"create": func(t *rapid.T) {
				added := rapid.SliceOfN(rapid.Custom(drawACL), 1, 8).Draw(t, "ACLs")
				if err := a.create(added); err != nil {
					t.Fatal(err)
				}
				for _, x := range added {
					naive[x] = true
				}
			},
			"delete": func(t *rapid.T) {
				filter := drawFilter(t)
				matched, err := a.delete([]aclFilter{filter}, 1000)
				if err != nil {
					t.Fatal(err)
				}
				n := 0
				for x := range naive {
					if filter.matches(x) {
						n++
						delete(naive, x)
					}
				}
				if len(matched[0]) != n {
					t.Fatalf("delete %+v: %d ACLs, want %d", filter, len(matched[0]), n)
				}
			},
			"restart": func(t *rapid.T) { a = kept.load(t) },
			"": func(t *rapid.T) {
				if got := a.matching(aclFilter{resource: kmsg.ACLResourceTypeAny, kind: kmsg.ACLResourcePatternTypeAny, operation: kmsg.ACLOperationAny, permission: kmsg.ACLPermissionTypeAny}); len(got) != len(naive) || len(kept) != len(naive) {
					t.Fatalf("%d ACLs, %d in the journal, want %d", len(got), len(kept), len(naive))
				}
				checkDecisions(t, a, naive, rapid.SampledFrom([]string{"User:ada", "User:eve"}).Draw(t, "who"))
			},
		})
	})
}

func checkDecisions(t *rapid.T, a *acls, naive naiveACLs, principal string) {
	who := caller{principal: principal}
	for _, resource := range someResources {
		for _, name := range rapid.SliceOfN(rapid.SampledFrom(append(someNames, "abcde", "c", "*x")), 2, 2).Draw(t, "names") {
			may := operations(0)
			for op := kmsg.ACLOperationRead; op <= twoPhaseCommit; op++ {
				want := naive.allow(principal, op, resource, name)
				if got := a.allow(who, op, resource, name); got != want {
					t.Fatalf("allow(%s, %v, %v, %q) = %t, want %t; ACLs: %+v", principal, op, resource, name, got, want, naive)
				}
				if want {
					may |= setOf(op)
				}
			}
			if got, want := a.operations(who, resource, name), int32(may&supported[resource]); got != want {
				t.Fatalf("operations(%s, %v, %q) = %b, want %b", principal, resource, name, got, want)
			}
		}
		if got, want := a.allowAny(who, kmsg.ACLOperationWrite, resource), naive.allowAny(principal, kmsg.ACLOperationWrite, resource); got != want {
			t.Fatalf("allowAny(%s, %v) = %t, want %t; ACLs: %+v", principal, resource, got, want, naive)
		}
	}
}

func TestSuperUserNeedsNoACL(t *testing.T) {
	a := newACLs(entries{}.save)
	deny := acl{pattern{kmsg.ACLResourceTypeTopic, kmsg.ACLResourcePatternTypeLiteral, "*"}, "User:*", "*", kmsg.ACLOperationAll, kmsg.ACLPermissionTypeDeny}
	testkit.Must(t, a.create([]acl{deny}))
	who := caller{principal: "User:(super user)", super: true}
	if !a.allow(who, kmsg.ACLOperationWrite, kmsg.ACLResourceTypeTopic, "x") || !a.allowAny(who, kmsg.ACLOperationWrite, kmsg.ACLResourceTypeTopic) {
		t.Error("the super user is denied")
	}
	if got, want := a.operations(who, kmsg.ACLResourceTypeCluster, clusterName), int32(8096); got != want {
		t.Errorf("operations on the cluster = %d, want %d as in Apache Kafka", got, want)
	}
	if got, want := a.operations(who, kmsg.ACLResourceTypeTopic, "x"), int32(3576); got != want {
		t.Errorf("operations on a topic = %d, want %d as in Apache Kafka", got, want)
	}
}

// TestFailedACLChange: a change that the journal could not store has no effect.
func TestFailedACLChange(t *testing.T) {
	fail := errors.New("disk")
	kept := entries{}
	var err error
	a := newACLs(func(all ...journal.Entry) error {
		if err != nil {
			return err
		}
		return kept.save(all...)
	})
	read := acl{pattern{kmsg.ACLResourceTypeTopic, kmsg.ACLResourcePatternTypeLiteral, "t"}, "User:ada", "*", kmsg.ACLOperationRead, kmsg.ACLPermissionTypeAllow}
	write := read
	write.operation = kmsg.ACLOperationWrite
	testkit.Must(t, a.create([]acl{read}))
	err = fail
	if err := a.create([]acl{write}); !errors.Is(err, fail) {
		t.Errorf("create = %v, want the journal's error", err)
	}
	if err := a.create([]acl{read}); err != nil {
		t.Errorf("create of an ACL that is there = %v, want nil", err)
	}
	all := aclFilter{resource: kmsg.ACLResourceTypeAny, kind: kmsg.ACLResourcePatternTypeAny, operation: kmsg.ACLOperationAny, permission: kmsg.ACLPermissionTypeAny}
	if _, err := a.delete([]aclFilter{all}, 1000); !errors.Is(err, fail) {
		t.Errorf("delete = %v, want the journal's error", err)
	}
	ada := caller{principal: "User:ada"}
	if !a.allow(ada, kmsg.ACLOperationRead, kmsg.ACLResourceTypeTopic, "t") || a.allow(ada, kmsg.ACLOperationWrite, kmsg.ACLResourceTypeTopic, "t") {
		t.Error("a change that failed is in force")
	}
	err = nil
	if _, err := a.delete([]aclFilter{all}, 0); !errors.Is(err, errTooManyACLs) {
		t.Errorf("delete of more than the limit = %v, want %v", err, errTooManyACLs)
	}
}

func TestACLKey(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		x := drawACL(t)
		x.name = rapid.StringN(1, -1, 300).Draw(t, "any name")
		x.principal = "User:" + rapid.String().Draw(t, "any principal")
		x.host = rapid.String().Draw(t, "any host")
		if got, err := parseACLKey(x.key()); err != nil || got != x {
			t.Fatalf("parseACLKey(%q) = %+v, %v; want %+v", x.key(), got, err, x)
		}
	})
}

func FuzzParseACLKey(f *testing.F) {
	f.Add([]byte("acl/"))
	f.Add(acl{pattern{2, 3, "t"}, "User:ada", "*", 3, 3}.key())
	f.Fuzz(func(t *testing.T, key []byte) {
		x, err := parseACLKey(key)
		if err != nil {
			return
		}
		if again, err := parseACLKey(x.key()); err != nil || again != x {
			t.Errorf("parseACLKey(%q) = %+v, whose key is that of %+v, %v", key, x, again, err)
		}
	})
}

// manyACLs returns the ACLs of 10,000 topics with an owner and four readers each, and some ACLs for
// all principals.
func manyACLs() (all []acl) {
	add := func(resource kmsg.ACLResourceType, kind kmsg.ACLResourcePatternType, name, principal string, ops ...kmsg.ACLOperation) {
		for _, op := range ops {
			all = append(all, acl{pattern{resource, kind, name}, principal, "*", op, kmsg.ACLPermissionTypeAllow})
		}
	}
	for n := range 10_000 {
		topic := fmt.Sprintf("topic-%d", n)
		add(kmsg.ACLResourceTypeTopic, kmsg.ACLResourcePatternTypeLiteral, topic, fmt.Sprintf("User:%d", n%500), kmsg.ACLOperationRead, kmsg.ACLOperationWrite)
		for reader := range 4 {
			add(kmsg.ACLResourceTypeTopic, kmsg.ACLResourcePatternTypeLiteral, topic, fmt.Sprintf("User:%d", (n+reader+1)%500), kmsg.ACLOperationRead)
		}
	}
	for n := range 500 {
		add(kmsg.ACLResourceTypeGroup, kmsg.ACLResourcePatternTypePrefixed, fmt.Sprintf("%d-", n), fmt.Sprintf("User:%d", n), kmsg.ACLOperationRead)
	}
	add(kmsg.ACLResourceTypeGroup, kmsg.ACLResourcePatternTypePrefixed, "public", "User:*", kmsg.ACLOperationRead)
	return all
}

func BenchmarkAllow(b *testing.B) {
	a := newACLs(entries{}.save)
	all := manyACLs()
	testkit.Must(b, a.create(all))
	who := caller{principal: "User:123"}
	b.Run(fmt.Sprintf("acls=%d", len(all)), func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			a.allow(who, kmsg.ACLOperationWrite, kmsg.ACLResourceTypeTopic, "topic-123")
		}
	})
	b.Run("any", func(b *testing.B) {
		for b.Loop() {
			a.allowAny(who, kmsg.ACLOperationWrite, kmsg.ACLResourceTypeTopic)
		}
	})
	b.Run("describe", func(b *testing.B) {
		for b.Loop() {
			a.matching(aclFilter{resource: kmsg.ACLResourceTypeTopic, name: kmsg.StringPtr("topic-123"), kind: kmsg.ACLResourcePatternTypeLiteral, operation: kmsg.ACLOperationAny, permission: kmsg.ACLPermissionTypeAny})
		}
	})
	b.Run("describe-all", func(b *testing.B) {
		for b.Loop() {
			a.matching(aclFilter{resource: kmsg.ACLResourceTypeAny, kind: kmsg.ACLResourcePatternTypeAny, operation: kmsg.ACLOperationAny, permission: kmsg.ACLPermissionTypeAny})
		}
	})
}

func TestACLsAreSorted(t *testing.T) {
	a := newACLs(entries{}.save)
	testkit.Must(t, a.create(manyACLs()))
	found := a.matching(aclFilter{resource: kmsg.ACLResourceTypeAny, kind: kmsg.ACLResourcePatternTypeAny, operation: kmsg.ACLOperationAny, permission: kmsg.ACLPermissionTypeAny})
	if !slices.IsSortedFunc(found, acl.compare) || len(found) != len(manyACLs()) {
		t.Errorf("%d ACLs, sorted: %t", len(found), slices.IsSortedFunc(found, acl.compare))
	}
}
