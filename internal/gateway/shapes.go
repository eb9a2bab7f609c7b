package gateway

import (
	"strconv"
	"strings"
	"sync"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// shape is the layout of a request. With it the gateway rejects malformed requests before the
// broker's parser sees them and trusts their counts.
type shape struct {
	flexible int16 // the first version with compact lengths and tags, or -1
	newest   int16 // the last version that has this layout
	fields   []field
}

// isFlexible reports whether a version of the request has compact lengths and tags.
func (s shape) isFlexible(version int16) bool { return s.flexible >= 0 && version >= s.flexible }

// field is one field of a request, or an array or a struct of fields.
type field struct {
	kind     byte  // a letter; see requests
	min, max int16 // the versions that have the field
	of       []field
}

const noLimit = 1<<15 - 1

// requests lists the layout of every request that a client may make. A field is written as one
// letter, followed by the versions that have it, if not all do:
//
//	b h w l u   1, 2, 4, 8 and 16 bytes
//	m           4 bytes: how much data the client wants at once
//	t           4 bytes: how long the broker may wait for records
//	a           2 bytes: 0 if the client wants no answer
//	s y         a string or bytes, null included
//	*s          an array of s; likewise of others
//	[s w]       an array of structs
//	?(s w)      a struct or null
//
// These requests are left out:
//
//   - Requests that brokers and controllers make among themselves.
//   - Delegation tokens, which would outlive the access token that they were created with.
//   - Client telemetry, which no ACL governs.
//   - Requests that need a right that no client can have: transactions, quotas, SCRAM users,
//     features, and the placement of replicas.
//
// They would only expose more of the broker's code to attack. Some requests stay although they are
// refused as well, so that the tools of Apache Kafka can say why: the gateway refuses those that
// create, delete and alter topics (see topics.go), and the broker refuses those that read and change
// ACLs and log directories. docs/engines.md has the list for operators.
//
// The table is derived from Apache Kafka's message definitions. A test compares it with the
// definitions that the Kafka client is generated from.
var requests = []struct {
	key      int16
	flexible int16
	fields   string
}{
	{0, 9, "s3+ a w [s0-12 u13+ [w y]]"}, // Produce
	{1, 12, "w0-14 t w m3+ b4+ w7+ w7+ [s0-12 u13+ [w w9+ l w12+ l5+ w]] [s7-12 u13+ *w]7+ s11+"}, // Fetch
	{2, 6, "w b2+ [s [w w4+ l w0-0]] w10+"},                                                       // ListOffsets
	{3, 9, "[u10+ s] b4+ b8-10 b8+"},                                                              // Metadata
	{8, 8, "s w1+ s1+ s7+ l2-4 [s0-9 u10+ [w l l1-1 w6+ s]]"},                                     // OffsetCommit
	{9, 6, "s0-7 [s *w]0-7 [s s9+ w9+ [s8-9 u10+ *w]]8+ b7+"},                                     // OffsetFetch
	{10, 3, "s0-3 b1+ *s4+"},                                                                      // FindCoordinator
	{11, 6, "s w w1+ s s5+ s [s y] s8+"},                                                          // JoinGroup
	{12, 4, "s w s s3+"},                                                                          // Heartbeat
	{13, 4, "s s0-2 [s s s5+]3+"},                                                                 // LeaveGroup
	{14, 4, "s w s s3+ s5+ s5+ [s y]"},                                                            // SyncGroup
	{15, 5, "*s b3+"},                                                                             // DescribeGroups
	{16, 3, "*s4+ *s5+"},                                                                          // ListGroups
	{17, -1, "s"},                                                                                 // SASLHandshake
	{18, 3, "s3+ s3+ s5+ w5+"},                                                                    // ApiVersions
	{19, 5, "[s w h [w *w] [s s]] w b1+"},                                                         // CreateTopics
	{20, 4, "*s0-5 [s u]6+ w"},                                                                    // DeleteTopics
	{21, 2, "[s [w l]] w"},                                                                        // DeleteRecords
	{22, 2, "s w l3+ h3+"},                                                                        // InitProducerID
	{23, 4, "w3+ [s [w w2+ w]]"},                                                                  // OffsetForLeaderEpoch
	{29, 2, "b s b1+ s s b b"},                                                                    // DescribeACLs
	{30, 2, "[b s b1+ s s b b]"},                                                                  // CreateACLs
	{31, 2, "[b s b1+ s s b b]"},                                                                  // DeleteACLs
	{32, 4, "[b s *s] b1+ b3+"},                                                                   // DescribeConfigs
	{33, 2, "[b s [s s]] b"},                                                                      // AlterConfigs
	{35, 2, "[s *w]"},                                                                             // DescribeLogDirs
	{36, 2, "y"},                                                                                  // SASLAuthenticate
	{37, 2, "[s w [*w]] w b"},                                                                     // CreatePartitions
	{42, 2, "*s"},                                                                                 // DeleteGroups
	{44, 1, "[b s [s b s]] b"},                                                                    // IncrementalAlterConfigs
	{47, -1, "s [s [w]]"},                                                                         // OffsetDelete
	{60, 0, "b b1+ b2+"},                                                                          // DescribeCluster
	{61, 0, "[s *w]"},                                                                             // DescribeProducers
	{68, 0, "s s w s s w *s s1+ s [u *w]"},                                                        // ConsumerGroupHeartbeat
	{69, 0, "*s b"},                                                                               // ConsumerGroupDescribe
	{75, 0, "[s] w ?(s w)"},                                                                       // DescribeTopicPartitions
	{76, 0, "s s w s *s"},                                                                         // ShareGroupHeartbeat
	{77, 0, "*s b"},                                                                               // ShareGroupDescribe
	{78, 0, "s s w t w m w1+ w1+ b2+ b2+ [u [w w0-0 [l l *b]]] [u *w]"}, // ShareFetch
	{79, 0, "s s w b2+ [u [w [l l *b]]]"},                               // ShareAcknowledge
	{90, 0, "[s [s *w]]"},                                               // DescribeShareGroupOffsets
	{91, 0, "s [s [w l]]"},                                              // AlterShareGroupOffsets
	{92, 0, "s [s]"},                                                    // DeleteShareGroupOffsets
}

// shapes are the layouts by API key.
var shapes = sync.OnceValue(func() map[int16]shape {
	m := make(map[int16]shape, len(requests))
	for _, r := range requests {
		p := shapeParser{text: r.fields}
		m[r.key] = shape{flexible: r.flexible, newest: kmsg.RequestForKey(r.key).MaxVersion(), fields: p.fields()}
	}
	return m
})

// shapeParser parses the notation of the table above. The table is trusted, so it does not check
// it.
type shapeParser struct{ text string }

func (p *shapeParser) next() byte {
	b := p.text[0]
	p.text = p.text[1:]
	return b
}

// fields parses fields until the end or a closing bracket.
func (p *shapeParser) fields() []field {
	var fields []field
	for p.text != "" {
		switch kind := p.next(); kind {
		case ' ':
		case ']', ')':
			return fields
		case '[':
			fields = append(fields, p.versions(field{kind: kind, of: p.fields()}))
		case '?':
			p.next()
			fields = append(fields, p.versions(field{kind: kind, of: p.fields()}))
		case '*':
			fields = append(fields, p.versions(field{kind: kind, of: []field{{kind: p.next(), max: noLimit}}}))
		default:
			fields = append(fields, p.versions(field{kind: kind}))
		}
	}
	return fields
}

// versions parses "3+", "3-5" or nothing.
func (p *shapeParser) versions(f field) field {
	end := strings.IndexFunc(p.text, func(r rune) bool { return !strings.ContainsRune("0123456789-+", r) })
	if end < 0 {
		end = len(p.text)
	}
	text := p.text[:end]
	p.text = p.text[end:]
	f.max = noLimit
	if from, open := strings.CutSuffix(text, "+"); open {
		f.min = version(from)
	} else if from, to, ok := strings.Cut(text, "-"); ok {
		f.min, f.max = version(from), version(to)
	}
	return f
}

func version(s string) int16 {
	n, _ := strconv.ParseInt(s, 10, 16)
	return int16(n)
}
