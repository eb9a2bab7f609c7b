package claims

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/disk"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// aRecord returns a random record that passes its own check. It uses few names, so that records
// affect each other. It is written some time after the previous one.
func aRecord(t *rapid.T, place int, before time.Time) record {
	r := record{
		ID:   fmt.Sprint(place),
		Time: before.Add(rapid.SampledFrom([]time.Duration{time.Second, time.Second, time.Second, time.Hour, 5 * 24 * time.Hour, 50 * 24 * time.Hour}).Draw(t, "later")),
		Op: rapid.SampledFrom([]string{opClaim, opClaim, opRelease, opReleased, opClear, opClaimGroup, opIssueKey, opRevokeKey, opKeyExpired, opKeyUsed, opBlock, opUnblock,
			opShare, opShare, opUnshare, opShareExpired, opLink, opUnlink, opMembers, opSet, opOffer, opAccept, opRetire, opRestore, opRetireEnds}).Draw(t, "op"),
		By: rapid.SampledFrom([]string{ada, ben, cleo}).Draw(t, "by"),
	}
	r.Version = versionOf(r.Op)
	switch r.Op {
	case opIssueKey:
		r.Key, r.Name, r.Read = aKeyID(t), rapid.SampledFrom([]string{"n", "m"}).Draw(t, "name"), true
		r.Hash[0] = byte(1 + place)
		r.Limit = rapid.IntRange(1, 3).Draw(t, "limit")
		if rapid.Bool().Draw(t, "expires") {
			r.Expires = r.Time.Add(time.Duration(rapid.IntRange(1, 20).Draw(t, "life")) * time.Second)
		}
		return r
	case opRevokeKey, opKeyExpired, opKeyUsed:
		r.Key = aKeyID(t)
		return r
	case opBlock, opUnblock:
		r.Subject, r.Why = rapid.SampledFrom([]string{ada, ben, cleo}).Draw(t, "subject"), "spam"
		if r.Op == opUnblock {
			r.Why = ""
		}
		return r
	case opLink, opUnlink:
		r.Subject = rapid.SampledFrom([]string{ada, ben, cleo}).Draw(t, "subject")
		r.After = anEarlierID(t, place)
		return r
	case opMembers:
		r.Grantee, r.After = groupGrantee+lab, anEarlierID(t, place)
		r.Joined = rapid.SliceOfN(rapid.SampledFrom([]string{ada, ben, cleo}), 1, 2).Draw(t, "joined")
		r.Left = rapid.SliceOfN(rapid.SampledFrom([]string{ada, ben, cleo}), 1, 2).Draw(t, "left")
		return r
	case opClaimGroup:
		r.Group = rapid.SampledFrom([]string{"g", "h", "i"}).Draw(t, "group")
		r.Limit = rapid.IntRange(1, 3).Draw(t, "limit")
		return r
	case opClaim:
		r.Partitions, r.RetentionMS = rapid.IntRange(1, 3).Draw(t, "partitions"), -1
		r.Limit = rapid.IntRange(1, 3).Draw(t, "limit")
	default:
		claim := int64(rapid.IntRange(max(place-8, 0), max(place-1, 0)).Draw(t, "claim"))
		r.Claim = &claim
		aChange(t, &r)
	}
	r.Topic = rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "topic")
	return r
}

// lab is a Globus group.
const lab = "d0000000-0000-4000-8000-000000000004"

// aChange fills in a record of version 4 about a topic.
func aChange(t *rapid.T, r *record) {
	later := r.Time.Add(time.Duration(rapid.IntRange(1, 20).Draw(t, "life")) * time.Second)
	switch r.Op {
	case opShare:
		r.Grantee, r.Limit = rapid.SampledFrom([]string{ada, ben, cleo, groupGrantee + lab, publicGrantee}).Draw(t, "grantee"), rapid.IntRange(1, 3).Draw(t, "limit")
		r.Read = true
		r.Manage = r.Grantee != publicGrantee && rapid.Bool().Draw(t, "manage")
		if rapid.Bool().Draw(t, "expires") {
			r.Expires = later
		}
	case opUnshare, opShareExpired:
		r.Grantee = rapid.SampledFrom([]string{ada, ben, cleo, groupGrantee + lab, publicGrantee}).Draw(t, "grantee")
	case opSet:
		r.Set = &settings{Partitions: rapid.IntRange(0, 4).Draw(t, "partitions"), MaxBytes: -1}
	case opOffer:
		r.Subject = rapid.SampledFrom([]string{ada, ben, cleo}).Draw(t, "subject")
	case opAccept:
		r.Subject, r.Limit = rapid.SampledFrom([]string{ada, ben, cleo}).Draw(t, "subject"), rapid.IntRange(1, 3).Draw(t, "limit")
	case opRetire:
		r.Expires = later
	}
}

// anEarlierID returns the ID of one of the last records, or none.
func anEarlierID(t *rapid.T, place int) string {
	return rapid.SampledFrom([]string{"", "", fmt.Sprint(place - 1), fmt.Sprint(place - 2), fmt.Sprint(place - 3)}).Draw(t, "after")
}

func aKeyID(t *rapid.T) string {
	return keyIDPrefix + strings.Repeat(rapid.SampledFrom([]string{"a", "b", "c", "d", "e"}).Draw(t, "key"), keyIDLetters)
}

func replay(records []record) *state {
	s := newState()
	for place, r := range records {
		s.add(int64(place), r)
	}
	return s
}

// TestApply compares the state with the test's own bookkeeping, which uses only the results of
// records: what was granted, and what ended.
func TestApply(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var records []record
		s := newState()
		owner := make(map[string]string)  // by topic, while claimed or releasing
		since := make(map[string]int64)   // by topic, the claim
		ending := make(map[string]bool)   // by topic, whether it is being released
		leader := make(map[string]string) // by group
		keys := make(map[string]record)   // by ID, those that are live
		ended := make(map[string]int64)   // by ID, the day
		freed := make(map[string]int64)   // by topic, likewise
		issued := make(map[string]int)    // by subject
		now := time.Unix(0, 0).UTC()
		blocked := make(map[string]bool)    // by subject
		offered := make(map[string]string)  // by topic
		kept := make(map[string]bool)       // by topic, whether it was released and can be restored
		until := make(map[string]time.Time) // by topic, until when
		linked := make(map[string]string)   // by identity, the subject
		links := make(map[string]string)    // by identity, the ID of the last record about its link
		shared := make(map[string][]record) // by topic, the shares that have not ended
		held := func(by map[string]string, subject string) (n int) {
			for _, o := range by {
				if o == subject {
					n++
				}
			}
			return n
		}
		for place := range rapid.IntRange(0, 60).Draw(t, "records") {
			r := aRecord(t, place, now)
			now = r.Time
			today := now.Unix() / 86400
			if err := r.check(); err != nil {
				t.Fatalf("the record %+v does not pass: %v", r, err)
			}
			records = append(records, r)
			before := replay(records[:place])
			before.count(r)
			s.count(r)
			err := s.apply(int64(place), r)
			if err != nil {
				if !reflect.DeepEqual(s, before) {
					t.Fatalf("record %+v had no effect (%v) and yet changed the state", r, err)
				}
				continue
			}
			if blocked[r.By] && (r.Op == opClaim || r.Op == opClaimGroup || r.Op == opIssueKey) {
				t.Fatalf("%s of a blocked subject took effect", r.Op)
			}
			switch r.Op {
			case opBlock, opUnblock:
				if blocked[r.Subject] == (r.Op == opBlock) {
					t.Fatalf("%s took effect on a subject that is blocked: %v", r.Op, blocked[r.Subject])
				}
				blocked[r.Subject] = r.Op == opBlock
			case opClaim, opClear:
				if o, reuseName := owner[r.Topic]; reuseName {
					t.Fatalf("%s of %q took effect while %s had it", r.Op, r.Topic, o)
				}
				if r.Op == opClaim && held(owner, r.By) >= r.Limit {
					t.Fatalf("a claim took effect over the limit of %d", r.Limit)
				}
				owner[r.Topic], since[r.Topic], ending[r.Topic] = r.By, int64(place), r.Op == opClear
			case opRelease:
				if owner[r.Topic] != r.By || since[r.Topic] != *r.Claim || ending[r.Topic] {
					t.Fatalf("release of %q by %s took effect, which %s had since %d", r.Topic, r.By, owner[r.Topic], since[r.Topic])
				}
				ending[r.Topic] = true
				delete(kept, r.Topic)
				delete(offered, r.Topic)
				delete(shared, r.Topic)
			case opRetireEnds:
				if !kept[r.Topic] || since[r.Topic] != *r.Claim || now.Before(until[r.Topic]) {
					t.Fatalf("%q was deleted, which was released: %v, and can be restored until %v", r.Topic, kept[r.Topic], until[r.Topic])
				}
				ending[r.Topic] = true
				delete(kept, r.Topic)
				delete(shared, r.Topic)
			case opLink, opUnlink:
				if r.After != links[r.Subject] || (linked[r.Subject] == r.By) != (r.Op == opUnlink) {
					t.Fatalf("%+v took effect after %q, when the identity was linked to %q", r, links[r.Subject], linked[r.Subject])
				}
				if links[r.Subject], linked[r.Subject] = r.ID, r.By; r.Op == opUnlink {
					delete(linked, r.Subject)
				}
			case opShare, opSet, opUnshare, opShareExpired, opOffer, opAccept, opRetire, opRestore:
				if since[r.Topic] != *r.Claim || ending[r.Topic] || owner[r.Topic] == "" || kept[r.Topic] != (r.Op == opRestore) {
					t.Fatalf("%s of %q took effect, which %s has since %d", r.Op, r.Topic, owner[r.Topic], since[r.Topic])
				}
				same := func(other record) bool { return other.Grantee == r.Grantee }
				switch r.Op {
				case opOffer:
					if offered[r.Topic] = r.Subject; r.Subject == r.By {
						delete(offered, r.Topic)
					}
				case opAccept:
					if offered[r.Topic] != r.Subject || held(owner, r.Subject) >= r.Limit {
						t.Fatalf("%s became the owner of %q, which was offered to %s", r.Subject, r.Topic, offered[r.Topic])
					}
					owner[r.Topic] = r.Subject
					delete(offered, r.Topic)
					shared[r.Topic] = slices.DeleteFunc(shared[r.Topic], func(other record) bool { return other.Grantee == r.Subject })
				case opRetire, opRestore:
					kept[r.Topic], until[r.Topic] = r.Op == opRetire, r.Expires
					delete(offered, r.Topic)
				case opShare:
					shared[r.Topic] = append(slices.DeleteFunc(shared[r.Topic], same), r)
				case opUnshare, opShareExpired:
					i := slices.IndexFunc(shared[r.Topic], same)
					if i < 0 || r.Op == opShareExpired && (shared[r.Topic][i].Expires.IsZero() || r.Time.Before(shared[r.Topic][i].Expires)) {
						t.Fatalf("%s took effect on the shares %+v", r.Op, shared[r.Topic])
					}
					shared[r.Topic] = slices.Delete(shared[r.Topic], i, i+1)
				}
				if slices.Contains([]string{opOffer, opRetire, opRestore}, r.Op) && r.By != owner[r.Topic] {
					t.Fatalf("%s took effect by %s, and the owner is %s", r.Op, r.By, owner[r.Topic])
				}
			case opReleased:
				if !ending[r.Topic] || since[r.Topic] != *r.Claim {
					t.Fatalf("released took effect on %q, which nobody was releasing", r.Topic)
				}
				delete(owner, r.Topic)
				delete(ending, r.Topic)
				freed[r.Topic] = today
			case opClaimGroup:
				if o, reuseName := leader[r.Group]; reuseName {
					t.Fatalf("claim of group %q took effect while %s had it", r.Group, o)
				}
				if held(leader, r.By) >= r.Limit {
					t.Fatalf("a claim of a group took effect over the limit of %d", r.Limit)
				}
				leader[r.Group] = r.By
			case opIssueKey:
				theirs := 0
				for _, k := range keys {
					if k.By == r.By && k.Name == r.Name {
						t.Fatalf("%s has a second key %q", r.By, r.Name)
					}
					if k.By == r.By {
						theirs++
					}
				}
				end, before := ended[r.Key]
				if _, live := keys[r.Key]; live || before && today-end <= keepKeys || theirs >= r.Limit {
					t.Fatalf("key %s was issued: live %v, ended %v, %d of %d", r.Key, live, before, theirs, r.Limit)
				}
				delete(ended, r.Key)
				keys[r.Key] = r
				issued[r.By]++
			case opRevokeKey, opKeyExpired:
				k, live := keys[r.Key]
				if !live || k.By != r.By || r.Op == opKeyExpired && (k.Expires.IsZero() || r.Time.Before(k.Expires)) {
					t.Fatalf("%s by %s took effect on the key %+v", r.Op, r.By, k)
				}
				delete(keys, r.Key)
				ended[r.Key] = today
			case opKeyUsed:
				if k, live := keys[r.Key]; !live || k.By != r.By {
					t.Fatalf("use by %s of the key %+v was noted", r.By, k)
				}
			}
		}

		for id, k := range s.keys {
			issued, live := keys[id]
			if k.live() != live || live && (k.Owner != issued.By || k.hash != issued.Hash) || !live && k.hash != (keyHash{}) {
				t.Fatalf("key %s is %+v, want that of %+v, live %v", id, k, issued, live)
			}
			if (s.keysOf[k.Owner][k.Name] == id) != live {
				t.Fatalf("key %s has its name %q: %v, want %v", id, k.Name, !live, live)
			}
		}

		// A grant to a group is what its members are known for, and nothing else; the two ways to ask for
		// somebody's rights agree.
		if _, shared := s.sharedWith[groupGrantee+lab]; !shared && (len(s.members) > 0 || len(s.memberOf) > 0 || s.revisions[groupGrantee+lab] != "") {
			t.Fatalf("nothing is shared with the group, and its members are %v", s.members)
		}
		if !maps.Equal(s.links, linked) {
			t.Fatalf("the links are %v, want %v", s.links, linked)
		}
		for name, topic := range s.topics {
			for grantee, g := range s.grants[name] {
				g.expires = time.Time{}
				s.grants[name][grantee] = g // access does not look at the time
			}
			all := s.access(name)
			for _, subject := range []string{ada, ben, cleo} {
				want := all[subject] | all["*"]
				if want&mayManage != 0 {
					want |= mayRead | mayWrite
				}
				if got := s.rightsOf(subject, name, now); topic.phase == claimed && topic.owner != subject && got != want {
					t.Fatalf("the right of %s on %q is to %v, and by the ACLs to %v", subject, name, got, want)
				}
			}
		}
		again := replay(records)
		s.grants = again.grants

		// What ended long ago is forgotten, and nothing else.
		today := now.Unix() / 86400
		for id, end := range ended {
			if _, known := s.keys[id]; known != (today-end <= keepKeys) {
				t.Errorf("key %s ended %d days ago, and is known: %v", id, today-end, known)
			}
		}
		for name, end := range freed {
			if _, reuseName := owner[name]; reuseName {
				continue
			}
			if _, known := s.topics[name]; known != (today-end <= keepNames) {
				t.Errorf("name %q became free %d days ago, and is known: %v", name, today-end, known)
			}
		}
		got, gotGroups := make(map[string]string), make(map[string]string)
		for name, topic := range s.topics {
			if topic.phase != free {
				got[name] = topic.owner
			}
			if (topic.phase == retired) != kept[name] || s.offers[name] != offered[name] || len(s.grants[name]) != len(shared[name]) {
				t.Errorf("topic %q is %v, offered to %q, with the grants %v, want %v, %q and %+v", name, topic.phase, s.offers[name], s.grants[name], kept[name], offered[name], shared[name])
			}
			if (topic.phase == releasing) != ending[name] {
				t.Errorf("topic %q is %v, and being released: %v", name, topic.phase, ending[name])
			}
		}
		for name, g := range s.groups {
			gotGroups[name] = g.owner
		}
		if !maps.Equal(got, owner) || !maps.Equal(gotGroups, leader) {
			t.Errorf("owners are %v and %v, want %v and %v", got, gotGroups, owner, leader)
		}
		for _, subject := range []string{ada, ben, cleo} {
			partitions := 0
			for _, topic := range s.topics {
				if topic.phase != free && topic.owner == subject {
					partitions += topic.partitions
				}
			}
			if s.partitions[subject] != partitions || s.keysIssued[subject] != issued[subject] {
				t.Errorf("%s is said to have %d partitions and %d keys ever, and has %d and %d", subject, s.partitions[subject], s.keysIssued[subject], partitions, issued[subject])
			}
			if _, got := s.blocked[subject]; got != blocked[subject] {
				t.Errorf("%s is blocked: %v, want %v", subject, got, blocked[subject])
			}
			if s.topicCount[subject] != held(owner, subject) || s.groupCount[subject] != held(leader, subject) {
				t.Errorf("%s is said to have %d topics and %d groups, and has %d and %d", subject, s.topicCount[subject], s.groupCount[subject], held(owner, subject), held(leader, subject))
			}
		}
		// The state depends on the records only: reading them again, in any number of steps, gives
		// the same.
		cut := rapid.IntRange(0, len(records)).Draw(t, "cut")
		again = replay(records[:cut])
		for i, r := range records[cut:] {
			again.add(int64(cut+i), r)
		}
		if !reflect.DeepEqual(again, s) {
			t.Errorf("reading the records again gives %+v, want %+v", again, s)
		}
		// What is encoded can be decoded.
		for _, r := range records {
			value, err := encode(r)
			if err != nil {
				t.Fatalf("encode(%+v) = %v", r, err)
			}
			agree(t, value)
			if back, err := decode(value); err != nil || !reflect.DeepEqual(back, r) {
				t.Errorf("decode(%s) = %+v, %v, want %+v", value, back, err, r)
			}
		}
	})
}

// The records of the package comment, as they stand in ledgers.
var (
	claimJSON    = `{"v":1,"op":"claim","id":"5cf5a5a8","time":"2026-05-01T12:00:00Z","by":"` + ada + `","topic":"weather","partitions":3,"retention_ms":604800000,"description":"what it is like","limit":1000}`
	releaseJSON  = `{"v":1,"op":"release","id":"5cf5a5a9","time":"2026-05-01T12:00:00Z","by":"` + ada + `","topic":"weather","claim":0}`
	releasedJSON = `{"v":1,"op":"released","id":"5cf5a5aa","time":"2026-05-01T12:00:00Z","by":"` + ada + `","topic":"weather","claim":0}`
	clearJSON    = `{"v":1,"op":"clear","id":"5cf5a5ab","time":"2026-05-01T12:00:00Z","by":"` + ada + `","topic":"weather","claim":0}`
	groupJSON    = `{"v":1,"op":"claim_group","id":"5cf5a5ac","time":"2026-05-01T12:00:00Z","by":"` + ada + `","group":"analysis","limit":1000}`

	keyJSON     = `{"v":2,"op":"issue_key","id":"5cf5a5ad","time":"2026-05-01T12:00:00Z","by":"` + ada + `","limit":100,"key":"key-abcdefghij234567","name":"laptop","hash":"abababababababababababababababababababababababababababababababab","topics":["weather"],"read":true,"expires":"2026-06-01T12:00:00Z"}`
	keyUsedJSON = `{"v":2,"op":"key_used","id":"5cf5a5ae","time":"2026-05-02T12:00:00Z","by":"` + ada + `","key":"key-abcdefghij234567"}`
	revokeJSON  = `{"v":2,"op":"revoke_key","id":"5cf5a5af","time":"2026-05-03T12:00:00Z","by":"` + ada + `","key":"key-abcdefghij234567"}`
	blockJSON   = `{"v":3,"op":"block","id":"5cf5a5b1","time":"2026-05-01T12:00:00Z","by":"` + ada + `","subject":"` + ben + `","why":"loops over keys"}`
	unblockJSON = `{"v":3,"op":"unblock","id":"5cf5a5b2","time":"2026-05-02T12:00:00Z","by":"` + ada + `","subject":"` + ben + `"}`
	shareJSON   = `{"v":4,"op":"share","id":"5cf5a5b3","time":"2026-05-01T12:00:00Z","by":"` + ada + `","topic":"weather","limit":1000,"claim":0,"read":true,"expires":"2026-06-01T12:00:00Z","grantee":"` + ben + `","username":"ben@example.org"}`
	unshareJSON = `{"v":4,"op":"unshare","id":"5cf5a5b4","time":"2026-05-02T12:00:00Z","by":"` + ada + `","topic":"weather","claim":0,"grantee":"` + ben + `"}`
	setJSON     = `{"v":4,"op":"set","id":"5cf5a5b5","time":"2026-05-02T12:00:00Z","by":"` + ada + `","topic":"weather","claim":0,"set":{"partitions":4,"retention_ms":-1,"compact":true}}`
	membersJSON = `{"v":4,"op":"members","id":"5cf5a5b6","time":"2026-05-02T12:00:00Z","by":"_service","grantee":"group:` + lab + `","joined":["` + ben + `"],"left":["` + cleo + `"]}`
	endsJSON    = `{"v":4,"op":"share_expired","id":"5cf5a5b7","time":"2026-07-02T12:00:00Z","by":"_service","topic":"weather","claim":0,"grantee":"` + ben + `"}`
	offerJSON   = `{"v":4,"op":"offer","id":"5cf5a5b8","time":"2026-05-02T12:00:00Z","by":"` + ada + `","topic":"weather","claim":0,"subject":"` + ben + `"}`
	acceptJSON  = `{"v":4,"op":"accept","id":"5cf5a5b9","time":"2026-05-02T12:00:00Z","by":"` + ben + `","topic":"weather","limit":1000,"claim":0,"subject":"` + ben + `"}`
	retireJSON  = `{"v":4,"op":"retire","id":"5cf5a5ba","time":"2026-05-02T12:00:00Z","by":"` + ada + `","topic":"weather","claim":0,"expires":"2026-05-03T12:00:00Z"}`
	restoreJSON = `{"v":4,"op":"restore","id":"5cf5a5bb","time":"2026-05-02T12:00:00Z","by":"` + ada + `","topic":"weather","claim":0}`
	retiredJSON = `{"v":4,"op":"retire_ends","id":"5cf5a5bc","time":"2026-05-03T12:00:00Z","by":"_service","topic":"weather","claim":0}`
	linkJSON    = `{"v":4,"op":"link","id":"5cf5a5bd","time":"2026-05-02T12:00:00Z","by":"` + ada + `","subject":"` + ben + `"}`
	unlinkJSON  = `{"v":4,"op":"unlink","id":"5cf5a5be","time":"2026-05-02T12:00:00Z","by":"` + ada + `","subject":"` + ben + `","after":"5cf5a5bd"}`
	sharingJSON = []string{shareJSON, unshareJSON, setJSON, membersJSON, endsJSON, offerJSON, acceptJSON, retireJSON, restoreJSON, retiredJSON, linkJSON, unlinkJSON}
	expiredJSON = `{"v":2,"op":"key_expired","id":"5cf5a5b0","time":"2026-06-01T12:00:00Z","by":"` + ada + `","key":"key-abcdefghij234567"}`
)

// longTopics are more topic names than a key may have.
var longTopics = func() string {
	names := make([]string, 20)
	for i := range names {
		names[i] = fmt.Sprintf("%q", strings.Repeat(string(rune('a'+i)), 249))
	}
	return "[" + strings.Join(names, ",") + "]"
}()

// TestKeyFormat does for access keys what TestFormat does for claims.
func TestKeyFormat(t *testing.T) {
	date := func(month time.Month, day, hour int) time.Time {
		return time.Date(2026, month, day, hour, 0, 0, 0, time.UTC)
	}
	want := accessKey{
		AccessKey: diaspora.AccessKey{
			ID: "key-abcdefghij234567", Name: "laptop", Owner: ada, Topics: []string{"weather"}, Read: true,
			Created: date(5, 1, 12), Expires: date(6, 1, 12),
		},
		hash: keyHash(bytes.Repeat([]byte{0xab}, 32)),
	}
	check := func(s *state, place int64, value string) {
		t.Helper()
		r, err := decode([]byte(value))
		if err == nil {
			err = s.apply(place, r)
		}
		if err != nil {
			t.Fatalf("%s: %v", value, err)
		}
		if got := s.keys[want.ID]; got == nil || !reflect.DeepEqual(*got, want) {
			t.Errorf("after %s the key is\n%+v, want\n%+v", value, got, want)
		}
		if again, err := encode(r); err != nil || string(again) != value {
			t.Errorf("encode = %s, %v, want %s", again, err, value)
		}
	}
	for ending, value := range map[time.Time]string{date(5, 3, 12): revokeJSON, date(6, 1, 12): expiredJSON} {
		s := newState()
		want.LastUsed, want.Ended = time.Time{}, time.Time{}
		want.hash = keyHash(bytes.Repeat([]byte{0xab}, 32))
		check(s, 0, keyJSON)
		want.LastUsed = date(5, 2, 0)
		check(s, 1, keyUsedJSON)
		if r, _ := decode([]byte(keyUsedJSON)); !errors.Is(s.apply(2, r), errUseRecorded) {
			t.Error("a second use on one day has an effect")
		}
		want.Ended, want.hash = ending, keyHash{}
		check(s, 2, value)
		r, _ := decode([]byte(keyJSON))
		if err := s.apply(3, r); !errors.Is(err, errKeyID) {
			t.Errorf("the ID of a key that has ended, once more: %v, want %v", err, errKeyID)
		}
	}
}

// TestBlockFormat does for blocks what TestFormat does for claims.
func TestBlockFormat(t *testing.T) {
	s := newState()
	for place, value := range []string{blockJSON, unblockJSON} {
		r, err := decode([]byte(value))
		if err == nil {
			err = s.apply(int64(place), r)
		}
		if err != nil {
			t.Fatalf("%s: %v", value, err)
		}
		want := map[string]block{}
		if place == 0 {
			want[ben] = block{ada, "loops over keys", time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)}
		}
		if !maps.Equal(s.blocked, want) {
			t.Errorf("after %s blocked are %v, want %v", value, s.blocked, want)
		}
		if again, err := encode(r); err != nil || string(again) != value {
			t.Errorf("encode = %s, %v, want %s", again, err, value)
		}
	}
}

// TestFormat fails if a ledger that was written earlier cannot be read any more, or has another
// meaning.
func TestFormat(t *testing.T) {
	s := newState()
	for place, value := range []string{claimJSON, groupJSON} {
		r, err := decode([]byte(value))
		if err != nil {
			t.Fatalf("decode(%s) = %v", value, err)
		}
		if err := s.apply(int64(place), r); err != nil {
			t.Fatalf("apply(%s) = %v", value, err)
		}
	}
	want := topic{
		phase: claimed, owner: ada, partitions: 3, retentionMS: 604800000, description: "what it is like",
		claimed: time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC),
	}
	if got := s.topics["weather"]; got != want {
		t.Errorf("the topic is %+v, want %+v", got, want)
	}
	if got := s.groups["analysis"]; got != (group{1, ada}) {
		t.Errorf("the group is %+v", got)
	}
	for place, value := range []string{releaseJSON, releasedJSON, clearJSON} {
		r, err := decode([]byte(value))
		if err != nil {
			t.Fatalf("decode(%s) = %v", value, err)
		}
		if err := s.apply(int64(2+place), r); err != nil {
			t.Errorf("apply(%s) = %v", value, err)
		}
	}
	if got := s.topics["weather"]; got != (topic{phase: releasing, claimOffset: 4, owner: ada}) {
		t.Errorf("the topic is %+v, want it being cleared", got)
	}
}

func TestDecodeRefuses(t *testing.T) {
	with := func(old, new string) string {
		t.Helper()
		if !strings.Contains(claimJSON, old) {
			t.Fatalf("%s is not in the record", old)
		}
		return strings.Replace(claimJSON, old, new, 1)
	}
	for name, value := range map[string]string{
		"nothing":              ``,
		"null":                 `null`,
		"text":                 `hello`,
		"number":               `1`,
		"list":                 `[` + claimJSON + `]`,
		"two":                  claimJSON + claimJSON,
		"cut off":              claimJSON[:len(claimJSON)-1],
		"huge":                 with(`"what it is like"`, `"`+strings.Repeat("x", maxRecordBytes)+`"`),
		"no version":           with(`"v":1,`, ``),
		"version 0":            with(`"v":1`, `"v":0`),
		"version -1":           with(`"v":1`, `"v":-1`),
		"version as text":      with(`"v":1`, `"v":"1"`),
		"unknown operation":    with(`"claim"`, `"seize"`),
		"no operation":         with(`"op":"claim",`, ``),
		"no id":                with(`"id":"5cf5a5a8",`, ``),
		"long id":              with(`5cf5a5a8`, strings.Repeat("x", 65)),
		"no time":              with(`"2026-05-01T12:00:00Z"`, `"yesterday"`),
		"everybody":            with(ada, `*`),
		"nobody":               with(ada, ``),
		"bad subject":          with(ada, `a:b`),
		"long subject":         with(ada, strings.Repeat("x", 129)),
		"no topic":             with(`"weather"`, `""`),
		"every topic":          with(`"weather"`, `"*"`),
		"the ledger":           with(`"weather"`, `"_diaspora_ledger"`),
		"no partitions":        with(`"partitions":3,`, ``),
		"negative partitions":  with(`"partitions":3`, `"partitions":-3`),
		"fractional":           with(`"partitions":3`, `"partitions":3.5`),
		"no retention":         with(`"retention_ms":604800000,`, ``),
		"endless retention":    with(`604800000`, `9223372036854775807`),
		"no limit":             with(`,"limit":1000`, ``),
		"control character":    with(`what it is like`, `what\u0000`),
		"release of what":      strings.Replace(releaseJSON, `,"claim":0`, ``, 1),
		"release of before":    strings.Replace(releaseJSON, `"claim":0`, `"claim":-1`, 1),
		"released, bad topic":  strings.Replace(releasedJSON, `weather`, `a-b`, 1),
		"every group":          strings.Replace(groupJSON, `analysis`, `*`, 1),
		"no group":             strings.Replace(groupJSON, `analysis`, ``, 1),
		"group, no limit":      strings.Replace(groupJSON, `,"limit":1000`, ``, 1),
		"key, version 1":       strings.Replace(keyJSON, `"v":2`, `"v":1`, 1),
		"claim, version 2":     with(`"v":1`, `"v":2`),
		"key without an ID":    strings.Replace(keyJSON, `"key":"key-abcdefghij234567",`, ``, 1),
		"key, any ID":          strings.Replace(keyJSON, `key-abcdefghij234567`, `*`, 1),
		"key, long ID":         strings.Replace(keyJSON, `key-abcdefghij234567`, `key-abcdefghij2345677`, 1),
		"key without a name":   strings.Replace(keyJSON, `"name":"laptop",`, ``, 1),
		"key named as an ID":   strings.Replace(keyJSON, `laptop`, `key-laptop`, 1),
		"key with a bad name":  strings.Replace(keyJSON, `laptop`, `lap top`, 1),
		"key without a hash":   strings.Replace(keyJSON, `"hash":"`+strings.Repeat("ab", 32)+`",`, ``, 1),
		"key, short hash":      strings.Replace(keyJSON, strings.Repeat("ab", 32), strings.Repeat("ab", 31), 1),
		"key, hash of zeros":   strings.Replace(keyJSON, strings.Repeat("ab", 32), strings.Repeat("00", 32), 1),
		"key, hash not hex":    strings.Replace(keyJSON, strings.Repeat("ab", 32), strings.Repeat("xy", 32), 1),
		"key for no topic":     strings.Replace(keyJSON, `["weather"]`, `[]`, 1),
		"key for every topic":  strings.Replace(keyJSON, `["weather"]`, `["*"]`, 1),
		"key for the ledger":   strings.Replace(keyJSON, `["weather"]`, `["_diaspora_ledger"]`, 1),
		"key, a topic twice":   strings.Replace(keyJSON, `["weather"]`, `["weather","weather"]`, 1),
		"key for too many":     strings.Replace(keyJSON, `["weather"]`, longTopics, 1),
		"key with no right":    strings.Replace(keyJSON, `"read":true,`, ``, 1),
		"key without a limit":  strings.Replace(keyJSON, `"limit":100`, `"limit":0`, 1),
		"key of long subject":  strings.Replace(keyJSON, ada, strings.Repeat("x", 110), 1),
		"block of nobody":      strings.Replace(blockJSON, `"subject":"`+ben+`",`, ``, 1),
		"block of everybody":   strings.Replace(blockJSON, ben, `*`, 1),
		"block, no reason":     strings.Replace(blockJSON, `loops over keys`, ` `, 1),
		"block, two lines":     strings.Replace(blockJSON, `loops over keys`, `a\nb`, 1),
		"block, long reason":   strings.Replace(blockJSON, `loops over keys`, strings.Repeat("x", 1001), 1),
		"block, version 2":     strings.Replace(blockJSON, `"v":3`, `"v":2`, 1),
		"unblock of nobody":    strings.Replace(unblockJSON, `,"subject":"`+ben+`"`, ``, 1),
		"revocation of what":   strings.Replace(revokeJSON, `key-abcdefghij234567`, ``, 1),
		"share, version 3":     strings.Replace(shareJSON, `"v":4`, `"v":3`, 1),
		"share of nothing":     strings.Replace(shareJSON, `"read":true,`, ``, 1),
		"share with everybody": strings.Replace(shareJSON, ben, `*`, 1),
		"share, any claim":     strings.Replace(shareJSON, `,"claim":0`, ``, 1),
		"share, no limit":      strings.Replace(shareJSON, `,"limit":1000`, ``, 1),
		"public to write":      strings.Replace(strings.Replace(shareJSON, ben, publicGrantee, 1), `"read"`, `"write"`, 1),
		"unshare of every one": strings.Replace(unshareJSON, ben, `group:*`, 1),
		"set of nothing":       strings.Replace(setJSON, `{"partitions":4,"retention_ms":-1,"compact":true}`, `{}`, 1),
		"no settings":          strings.Replace(setJSON, `{"partitions":4,"retention_ms":-1,"compact":true}`, `null`, 1),
		"members of a person":  strings.Replace(membersJSON, `group:`, ``, 1),
		"everybody joined":     strings.Replace(membersJSON, `["`+ben+`"]`, `["*"]`, 1),
		"no members":           strings.Replace(strings.Replace(membersJSON, `"`+ben+`"`, ``, 1), `"`+cleo+`"`, ``, 1),
		"link after what":      strings.Replace(unlinkJSON, `5cf5a5bd`, strings.Repeat("x", 65), 1),
		"link of everybody":    strings.Replace(linkJSON, ben, `*`, 1),
		"offer to everybody":   strings.Replace(offerJSON, ben, `*`, 1),
		"accept, no limit":     strings.Replace(acceptJSON, `"limit":1000,`, ``, 1),
		"retire for ever":      strings.Replace(retireJSON, `,"expires":"2026-05-03T12:00:00Z"`, ``, 1),
		"restore of what":      strings.Replace(restoreJSON, `,"claim":0`, ``, 1),
		"claim is not a claim": with(`"limit":1000`, `"limit":1000,"claim":"x"`),
	} {
		r, err := decode([]byte(value))
		if err == nil {
			t.Errorf("%s: decode(%.100s) = %+v, want an error", name, value, r)
		}
		var later laterVersionError
		if errors.As(err, &later) {
			t.Errorf("%s: decode(%.100s) takes it for a later version", name, value)
		}
	}
	var later laterVersionError
	if _, err := decode([]byte(`{"v":9,"op":"share"}`)); !errors.As(err, &later) || later != 9 {
		t.Errorf("decode of version 9 = %v, want a laterVersionError", err)
	}
	if _, err := decode([]byte(`{"v":9,"op":["share"],"topic":{"name":"weather"}}`)); !errors.As(err, &later) {
		t.Errorf("decode of version 9 with fields of other types = %v, want a laterVersionError", err)
	}
	if _, err := decode([]byte(with(`"v":1`, `"v":1,"mood":"good"`))); err != nil {
		t.Errorf("decode with a field that may be ignored = %v, want nil", err)
	}
}

// agree fails if parse and package json decode a record differently.
func agree(t interface{ Errorf(string, ...any) }, value []byte) (parsed bool) {
	got, ok := parse(value)
	var want record
	if err := json.Unmarshal(value, &want); ok && (err != nil || !reflect.DeepEqual(got, want)) {
		t.Errorf("parse(%s) = %+v, and package json says %+v, %v", value, got, want, err)
	}
	return ok
}

// TestParse checks that records that encode writes are parsed by the fast parser, and that it does
// not parse others wrongly.
func TestParse(t *testing.T) {
	good := []string{
		claimJSON, releaseJSON, releasedJSON, clearJSON, groupJSON, keyJSON, keyUsedJSON, revokeJSON, expiredJSON, blockJSON, unblockJSON,
		strings.Replace(keyJSON, `["weather"]`, `["weather","snow"]`, 1), strings.Replace(claimJSON, `604800000`, `-1`, 1),
	}
	for _, value := range good {
		if !agree(t, []byte(value)) {
			t.Errorf("parse does not know %s", value)
		}
		step := 1
		if testkit.Race {
			step = 7
		}
		for n := 0; n < len(value); n += step { // removes, doubles or changes each byte
			agree(t, []byte(value[:n]))
			agree(t, []byte(value[:n]+value[n+1:]))
			agree(t, []byte(value[:n]+value[n:n+1]+value[n:]))
			for _, c := range "\"\\{}[],:0-.eEntf \x00\x7f\u00e9" {
				agree(t, []byte(value[:n]+string(c)+value[n+1:]))
				agree(t, []byte(value[:n]+string(c)+value[n:]))
			}
		}
	}
	for _, value := range []string{
		`{"v":1,"v":2}`, `{"V":1}`, `{"op":"a","v":1}`, `{"v":01}`, `{"v":-0}`, `{"v":1.0}`, `{"v":1e3}`, `{"v":null}`, `{"v":99999999999999999999}`, `{"v":4294967297}`,
		`{"topics":[]}`, `{"topics":null}`, `{"topics":[null]}`, `{"claim":null}`, `{"time":"2026-05-01t12:00:00z"}`, `{"time":"2026-05-01T12:00:00,5Z"}`, `{"time":"2026-05-01T12:00:00+24:00"}`,
		`{"hash":"AB"}`, `{"hash":"` + strings.Repeat("AB", 32) + `"}`, `{"by":"\u0061"}`, `{"by":"\xff"}`, `{"mood":"good"}`, `{}`, `{"v":1}{"v":1}`, `{"v":1} `,
	} {
		agree(t, []byte(value))
	}
}

// applyToShared applies a record to states in which most records take effect, and checks that what
// they become survives a checkpoint.
func applyToShared(t *testing.T, r record) {
	for _, phase := range []string{"", retireJSON} {
		s := newState()
		for place, value := range []string{claimJSON, shareJSON, strings.Replace(shareJSON, `"`+ben+`"`, `"group:`+lab+`"`, 1), linkJSON, offerJSON, phase} {
			if before, err := decode([]byte(value)); err == nil {
				s.add(int64(place), before)
			}
		}
		s.add(6, r)
		for name, topic := range s.topics {
			for _, acl := range s.topicACLs(name, topic) {
				if acl.Name != name || !s.isOurs(acl) {
					t.Errorf("after %+v the topic %q has the ACL %+v, which the service could not remove", r, name, acl)
				}
			}
		}
		var file bytes.Buffer
		if err := encodeCheckpoint(&file, checkpoint{state: s, topic: aLedger, next: 7}); err != nil {
			t.Fatal(err)
		}
		c := someCheckpoints(t, disk.Memory())
		if err := disk.Replace(c.fs, checkpointFile, file.Bytes(), true); err != nil {
			t.Fatal(err)
		}
		if back, err := c.read(aLedger); err != nil || !reflect.DeepEqual(back.state, s) {
			t.Errorf("after %+v the checkpoint is\n%+v, %v, want\n%+v", r, back.state, err, s)
		}
	}
}

// TestSharingFormat fails if the records about sharing are written in another form, or have another
// meaning.
func TestSharingFormat(t *testing.T) {
	for _, value := range sharingJSON {
		r, err := decode([]byte(value))
		if err != nil {
			t.Errorf("decode(%s) = %v", value, err)
			continue
		}
		if again, err := encode(r); err != nil || string(again) != value {
			t.Errorf("encode = %s, %v, want %s", again, err, value)
		}
		applyToShared(t, r)
	}
	s := newState()
	apply := func(place int64, value string) error {
		t.Helper()
		r, err := decode([]byte(value))
		testkit.Must(t, err)
		return s.apply(place, r)
	}
	for place, value := range []string{claimJSON, shareJSON, setJSON, linkJSON, retireJSON} {
		testkit.Must(t, apply(int64(place), value))
	}
	want := topic{
		phase: retired, owner: ada, partitions: 4, retentionMS: -1, compact: true, changed: true, description: "what it is like",
		claimed: time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC), deleteAt: time.Date(2026, 5, 3, 12, 0, 0, 0, time.UTC).Unix(),
	}
	if got := s.topics["weather"]; got != want || s.links[ben] != ada || len(s.grants["weather"]) != 1 {
		t.Errorf("the topic is %+v, want %+v", got, want)
	}
	early := strings.Replace(retiredJSON, "05-03T12:00:00Z", "05-03T11:59:59Z", 1)
	if err := apply(5, early); !errors.Is(err, errRestorable) {
		t.Errorf("%s = %v, want %v", early, err, errRestorable)
	}
	testkit.Must(t, apply(6, restoreJSON))
	if err := apply(7, retiredJSON); !errors.Is(err, errNotRetired) {
		t.Errorf("the end of a topic that was restored = %v, want %v", err, errNotRetired)
	}
	if err := apply(8, linkJSON); !errors.Is(err, errAlreadyLinked) {
		t.Errorf("a second link = %v, want %v", err, errAlreadyLinked)
	}
	testkit.Must(t, apply(9, unlinkJSON))
	if err := apply(10, linkJSON); !errors.Is(err, errOutdated) {
		t.Errorf("a link that does not know that it was removed = %v, want %v", err, errOutdated)
	}
	testkit.Must(t, apply(11, retireJSON))
	testkit.Must(t, apply(12, retiredJSON))
	if got := s.topics["weather"]; got.phase != releasing || len(s.grants)+len(s.sharedWith) > 0 {
		t.Errorf("the topic is %+v with the grants %v, want it being released", got, s.grants)
	}
}

func FuzzDecode(f *testing.F) {
	for _, value := range []string{claimJSON, releaseJSON, releasedJSON, clearJSON, groupJSON, keyJSON, keyUsedJSON, revokeJSON, expiredJSON, blockJSON, unblockJSON, `{"v":9}`, `{}`, ``, "\x00"} {
		f.Add([]byte(value))
	}
	for _, value := range sharingJSON {
		f.Add([]byte(value))
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		agree(t, value)
		r, err := decode(value)
		if err != nil {
			return
		}
		// Whatever is accepted names no wildcard, can be applied to a state, and survives a round
		// trip.
		if strings.ContainsAny(r.By+r.Topic+r.Group, "*: \n\x00") || strings.ContainsAny(r.Subject, "*: \n\x00") || strings.ContainsAny(r.Why, "\n\x00\x1b") {
			t.Errorf("decode(%q) takes %+v", value, r)
		}
		for _, grantee := range append(slices.Concat(r.Joined, r.Left), strings.TrimPrefix(r.Grantee, groupGrantee)) {
			if strings.ContainsAny(grantee, "*: \n\x00") || strings.ContainsAny(r.Username, "\n\x00\x1b") {
				t.Errorf("decode(%q) takes %+v", value, r)
			}
		}
		newState().apply(0, r)
		applyToShared(t, r)
		again, err := json.Marshal(r)
		if err != nil {
			t.Fatalf("a record that was read cannot be written: %v", err)
		}
		if len(again) > maxRecordBytes {
			return // for example, when escapes are encoded longer than they were in the input
		}
		if back, err := decode(again); err != nil || !back.Time.Equal(r.Time) {
			t.Errorf("decode(%s) = %+v, %v, want %+v", again, back, err, r)
		}
	})
}
