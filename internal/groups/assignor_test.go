package groups

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// assignorTopics returns partition counts from a string like "a:3 b:2".
func assignorTopics(spec string) map[[16]byte]int32 {
	counts := map[[16]byte]int32{}
	for _, f := range strings.Fields(spec) {
		var n int32
		fmt.Sscan(f[2:], &n)
		counts[[16]byte{f[0]}] = n
	}
	return counts
}

// assignorMembers returns members from strings like "m1/i1 ab a0 a1": the member ID and,
// optionally, the instance ID; the topics; and the former target.
func assignorMembers(specs ...string) []*consumerMember {
	var members []*consumerMember
	for _, spec := range specs {
		f := strings.Fields(spec)
		m := &consumerMember{}
		m.id, m.instance, _ = strings.Cut(f[0], "/")
		for _, topic := range f[1] {
			m.topics = append(m.topics, [16]byte{byte(topic)})
		}
		for _, p := range f[2:] {
			m.target = append(m.target, partitionID{[16]byte{p[0]}, int32(p[1] - '0')})
		}
		members = append(members, m)
	}
	return members
}

func showTarget(target []partitionID) string {
	var s []string
	for _, p := range target {
		s = append(s, fmt.Sprintf("%c%d", p.topic[0], p.partition))
	}
	return strings.Join(s, " ")
}

func TestAssignors(t *testing.T) {
	for _, test := range []struct {
		name     string
		assignor string
		topics   string
		members  []string
		want     []string
	}{
		{"range co-partitions", "range", "a:3 b:3", []string{"m1 ab", "m2 ab"}, []string{"a0 a1 b0 b1", "a2 b2"}},
		{"range puts static members first", "range", "a:3", []string{"m1 a", "m2/i2 a", "m3/i1 a"}, []string{"a2", "a1", "a0"}},
		{"range with more members than partitions", "range", "a:2", []string{"m1 a", "m2 a", "m3 a"}, []string{"a0", "a1", ""}},
		{"range with different subscriptions", "range", "a:3 b:4", []string{"m1 a", "m2 ab", "m3 b"}, []string{"a0 a1", "a2 b0 b1", "b2 b3"}},
		{"range ignores former targets", "range", "a:2", []string{"m1 a a1", "m2 a a0"}, []string{"a0", "a1"}},
		{"deleted topic", "range", "a:1", []string{"m1 ab b0"}, []string{"a0"}},
		{"uniform", "uniform", "a:3 b:2", []string{"m1 ab", "m2 ab"}, []string{"a0 a1", "a2 b0 b1"}},
		{"uniform keeps", "uniform", "a:4", []string{"m1 a a1 a3", "m2 a a0 a2"}, []string{"a1 a3", "a0 a2"}},
		{"uniform moves what it must", "uniform", "a:4", []string{"m1 a a1 a2 a3", "m2 a a0", "m3 a"}, []string{"a1 a2", "a0", "a3"}},
		{"uniform leaves the extra partition where it is", "uniform", "a:3", []string{"m1 a a0", "m2 a a1 a2"}, []string{"a0", "a1 a2"}},
		{"uniform gives one extra partition only", "uniform", "a:7", []string{"m1 a a0 a1 a2 a3", "m2 a a4 a5 a6", "m3 a"}, []string{"a0 a1 a2", "a4 a5", "a3 a6"}},
		{"uniform with a deleted topic", "uniform", "a:2", []string{"m1 ab b0 b1", "m2 ab b2 b3"}, []string{"a0", "a1"}},
		{"uniform with fewer partitions than before", "uniform", "a:1", []string{"m1 a a0 a1 a2", "m2 a a3"}, []string{"a0", ""}},
		{"uniform without topics", "uniform", "", []string{"m1 a a0", "m2 a"}, []string{"", ""}},
		{"uniform with different subscriptions", "uniform", "a:3 b:1", []string{"m1 a", "m2 ab"}, []string{"a0 a2", "a1 b0"}},
		{"uniform evens out over topics", "uniform", "a:4 b:2", []string{"m1 ab a0 a1 b0", "m2 ab a2 a3 b1", "m3 b"}, []string{"a0 a1", "a2 a3", "b0 b1"}},
		{"uniform with one subscriber each", "uniform", "a:2 b:5", []string{"m1 a", "m2 b"}, []string{"a0 a1", "b0 b1 b2 b3 b4"}},
		{"uniform revokes topics that are no longer subscribed", "uniform", "a:2 b:1", []string{"m1 a a0 b0", "m2 ab a1"}, []string{"a0", "a1 b0"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var got []string
			for _, target := range consumerAssignors[test.assignor](assignorMembers(test.members...), assignorTopics(test.topics)) {
				got = append(got, showTarget(target))
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("targets = %q, want %q", got, test.want)
			}
		})
	}
}

// Every partition is assigned to exactly one subscriber, whatever the former targets were.
// Assigning again moves nothing.
func TestAssignorProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		counts := map[[16]byte]int32{}
		var ids [][16]byte
		for i := range rapid.IntRange(0, 5).Draw(t, "topics") {
			id := [16]byte{byte('a' + i)}
			ids = append(ids, id)
			if n := rapid.Int32Range(0, 12).Draw(t, "partitions"); n > 0 {
				counts[id] = n
			}
		}
		same := rapid.Bool().Draw(t, "same")
		var members []*consumerMember
		for i := range rapid.IntRange(1, 7).Draw(t, "members") {
			m := &consumerMember{id: fmt.Sprint("m", i)}
			if rapid.Bool().Draw(t, "static") {
				m.instance = fmt.Sprint("i", rapid.IntRange(0, 1000).Draw(t, "instance"), "-", i)
			}
			for _, id := range ids {
				if same || rapid.Bool().Draw(t, "subscribed") {
					m.topics = append(m.topics, id)
				}
			}
			members = append(members, m)
		}
		maps.DeleteFunc(counts, func(id [16]byte, _ int32) bool {
			return !slices.ContainsFunc(members, func(m *consumerMember) bool { return m.subscribed(id) })
		})
		// Former targets may contain topics and partitions that no longer exist.
		for _, id := range ids {
			for p := range rapid.Int32Range(0, 14).Draw(t, "former partitions") {
				if i := rapid.IntRange(-1, len(members)-1).Draw(t, "owner"); i >= 0 {
					members[i].target = append(members[i].target, partitionID{id, p})
				}
			}
		}
		name := rapid.SampledFrom([]string{"uniform", "range"}).Draw(t, "assignor")
		targets := consumerAssignors[name](members, counts)
		checkAssignment(t, members, counts, targets)
		if name == "uniform" {
			checkUniform(t, members, targets, same)
		}
		for i, m := range members {
			m.target = targets[i]
		}
		if again := consumerAssignors[name](members, counts); !slices.EqualFunc(again, targets, slices.Equal[[]partitionID]) {
			t.Fatalf("%v becomes %v", targets, again)
		}
	})
}

func checkAssignment(t *rapid.T, members []*consumerMember, counts map[[16]byte]int32, targets [][]partitionID) {
	want := map[partitionID]bool{}
	for _, m := range members {
		for _, id := range m.topics {
			for p := range counts[id] {
				want[partitionID{id, p}] = true
			}
		}
	}
	for i, m := range members {
		if !slices.IsSortedFunc(targets[i], comparePartitions) {
			t.Fatalf("targets[%d] = %v: not in order", i, targets[i])
		}
		for _, p := range targets[i] {
			if !want[p] || !m.subscribed(p.topic) {
				t.Fatalf("%s got %v, which it must not have, or which another one has too", m.id, p)
			}
			delete(want, p)
		}
	}
	if len(want) > 0 {
		t.Fatalf("nobody got %v", slices.Collect(maps.Keys(want)))
	}
}

func checkUniform(t *rapid.T, members []*consumerMember, targets [][]partitionID, same bool) {
	fewest, most := len(targets[0]), len(targets[0])
	for _, target := range targets {
		fewest, most = min(fewest, len(target)), max(most, len(target))
	}
	if same && most > fewest+1 {
		t.Fatalf("members have %d to %d partitions", fewest, most)
	}
	for i, target := range targets {
		for _, p := range target {
			for j, m := range members {
				if m.subscribed(p.topic) && len(targets[j])+1 < len(target) {
					t.Fatalf("%s has %d partitions, among them %v, and %s has %d", members[i].id, len(target), p, m.id, len(targets[j]))
				}
			}
		}
	}
	if !same {
		return
	}
	// No member loses existing partitions and gets others instead.
	for i, m := range members {
		kept := slices.ContainsFunc(m.target, func(p partitionID) bool {
			return !slices.Contains(targets[i], p) && m.subscribed(p.topic) && assigned(targets, p)
		})
		added := slices.ContainsFunc(targets[i], func(p partitionID) bool { return !slices.Contains(m.target, p) })
		if kept && added {
			t.Fatalf("%s had %v and gets %v", m.id, m.target, targets[i])
		}
	}
}

func assigned(targets [][]partitionID, p partitionID) bool {
	return slices.ContainsFunc(targets, func(target []partitionID) bool { return slices.Contains(target, p) })
}
