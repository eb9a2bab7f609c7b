//go:build kafka

package interop

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Two correct responses to a request are not equal: clocks, IDs and hosts differ, and so does the
// order in which hash maps are iterated. So responses are normalised before they are compared, by
// the following rules only:
//
//   - Elements of an array are matched by what they are about (topic, partition, member), in any order.
//   - Elements about topics, groups or principals of other runs are left out, and so are configs that the
//     suite does not know.
//   - A topic ID is replaced by the name of its topic, a member ID by the name of its member.
//   - Record batches are decoded; see normalBatches.

// rule says how to compare a field.
type rule struct {
	fields string // "Type.Field" or ".Field" for every type, separated by spaces
	as     func(w *world, v any) any
	why    string
}

var rules = []rule{
	{".Version .ThrottleMillis .UnknownTags", leaveOut, "not part of the answer: the version is the request's, and throttling depends on load"},
	{".ErrorMessage .StatusMessage", leaveOut, "texts for people"},
	{".LeaderEpoch", relativeEpoch, "the embedded engine counts its starts, and is started again within sequences"},
	{"OffsetFetchResponseGroupTopicPartition.LeaderEpoch OffsetFetchResponseTopicPartition.LeaderEpoch", asIs, "what was committed"},
	{"OffsetForLeaderEpochResponseTopicPartition.LeaderEpoch FetchResponseTopicPartitionDivergingEpoch.Epoch", relativeEpoch, "as above"},
	{"ProduceResponseTopicPartition.LogAppendTime ListOffsetsResponseTopicPartition.Timestamp " +
		"DescribeProducersResponseTopicPartitionActiveProducer.LastTimestamp", set, "the engines' clocks"},
	{"InitProducerIDResponse.ProducerID", given, "each engine counts its own"},
	{"DescribeProducersResponseTopicPartitionActiveProducer.ProducerID", producerName, "as above"},
	{"FetchResponse.SessionID", sessionName, "random"},
	{".NodeID .ControllerID .Leader .LeaderID .Coordinator", nodeName, "node 0 here, node 1 there"},
	{".Replicas .ISR .OfflineReplicas", nodeNames, "as above"},
	{".Host .Port .ClientHost .Rack", set, "where the engines listen"},
	{".ClusterID", set, "the cluster's own"},
	{".MemberID JoinGroupResponse.LeaderID", memberName, "random"},
	{"DescribeLogDirsResponseDir.Dir DescribeLogDirsResponseDir.TotalBytes DescribeLogDirsResponseDir.UsableBytes", set, "the engines' disks"},
	{"FetchResponseTopicPartition.RecordBatches", normalBatches, "see normalBatches"},
	{"ApiVersionsResponse.FinalizedFeaturesEpoch ApiVersionsResponse.SupportedFeatures ApiVersionsResponse.FinalizedFeatures", leaveOut, "an engine's own release"},
	{"ApiVersionsResponse.ApiKeys", leaveOut, "compared by TestDifferentialVersions"},
	{"DescribeConfigsResponseResourceConfig.Documentation", leaveOut, "texts for people"},
}

func leaveOut(*world, any) any { return nil }

// set replaces any real value, so that only real values and values that mean "none" are
// distinguished.
func set(_ *world, v any) any {
	switch r := reflect.ValueOf(v); {
	case r.Kind() == reflect.Pointer:
		return !r.IsNil()
	case r.CanInt() && r.Int() > 0, r.Kind() == reflect.String && r.Len() > 0:
		return "set"
	}
	return v
}

func asIs(_ *world, v any) any { return v }

// given reports whether an ID is set.
func given(_ *world, v any) any { return v.(int64) >= 0 }

func relativeEpoch(w *world, v any) any {
	switch epoch := v.(int32); {
	case epoch > w.lastEpoch:
		return fmt.Sprintf("the leader's %+d", epoch-w.lastEpoch)
	case epoch >= w.firstEpoch:
		return "the leader's"
	}
	return v
}

func producerName(w *world, v any) any {
	if name := w.producerIDs[v.(int64)]; name != "" {
		return name
	}
	return v
}

func sessionName(w *world, v any) any {
	if v.(int32) > 0 {
		return "a session"
	}
	return v
}

func nodeName(w *world, v any) any {
	if id, ok := v.(int32); ok && id == w.node() {
		return "the node"
	}
	return v
}

func nodeNames(w *world, v any) any {
	ids, ok := v.([]int32)
	if !ok {
		return v
	}
	var names []string
	for _, id := range ids {
		names = append(names, fmt.Sprint(nodeName(w, id)))
	}
	return strings.Join(names, ",")
}

func memberName(w *world, v any) any {
	switch id := v.(type) {
	case string:
		return w.memberName(id)
	case *string:
		if id != nil {
			return w.memberName(*id)
		}
	}
	return v
}

// normalBatches decodes the batches of a partition. If the size limit is reached, Kafka ends a
// response in the middle of a batch. Clients ignore such an incomplete batch, and so does
// normalBatches. The leader epoch and the append time depend on the engine, and so does the
// checksum, which is verified instead.
func normalBatches(w *world, v any) any {
	raw, _ := v.([]byte)
	var all []string
	for len(raw) >= batchHeader {
		size := 12 + int(int32(binary.BigEndian.Uint32(raw[batchLengthAt:])))
		if size < batchHeader {
			return append(all, fmt.Sprintf("a batch of %d bytes", size))
		}
		if len(raw) < size {
			break
		}
		var b kmsg.RecordBatch
		header := slices.Clone(raw[:size])
		if err := b.ReadFrom(header); err != nil {
			return append(all, err.Error())
		}
		time := fmt.Sprint(b.MaxTimestamp)
		if b.Attributes&(1<<3) != 0 {
			time = "append time"
		}
		sum := ""
		if crc32.Checksum(raw[batchCRCAt+4:size], castagnoli) != uint32(b.CRC) {
			sum = "WRONG CHECKSUM "
		}
		producer := producerName(w, b.ProducerID)
		all = append(all, fmt.Sprintf("%soffset %d last %+d count %d epoch %v magic %d attributes %#x base time %d max %s producer %v/%d/%d records %d bytes %08x",
			sum, b.FirstOffset, b.LastOffsetDelta, b.NumRecords, relativeEpoch(w, b.PartitionLeaderEpoch), b.Magic, uint16(b.Attributes), b.FirstTimestamp, time,
			producer, b.ProducerEpoch, b.FirstSequence, len(b.Records), crc32.ChecksumIEEE(b.Records)))
		raw = raw[size:]
	}
	return all
}

// fieldValues are the values of a normalised response by path. A path contains what array elements
// are about, as in Topics[t0].Partitions[1].ErrorCode.
type fieldValues map[string]string

// normalise flattens a response into its fields.
func normalise(w *world, response kmsg.Response) fieldValues {
	fields := fieldValues{}
	flatten(w, "", reflect.ValueOf(response).Elem(), fields)
	return fields
}

func flatten(w *world, path string, v reflect.Value, into fieldValues) {
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			into[path] = "null"
			return
		}
		flatten(w, path, v.Elem(), into)
	case reflect.Struct:
		for i := range v.NumField() {
			field := v.Type().Field(i)
			value := v.Field(i)
			if rule := ruleFor(v.Type().Name(), field.Name); rule != nil {
				if n := rule.as(w, value.Interface()); n != nil {
					into[join(path, field.Name)] = show(n)
				}
				continue
			}
			if field.Name == "ErrorCode" {
				into[join(path, field.Name)] = codeName(int16(value.Int()))
				continue
			}
			flatten(w, join(path, field.Name), value, into)
		}
	case reflect.Slice:
		flattenSlice(w, path, v, into)
	case reflect.Array:
		into[path] = w.topicOf(v.Interface().([16]byte))
	case reflect.String:
		into[path] = fmt.Sprintf("%q", w.withoutRun(v.String()))
	default:
		into[path] = show(v.Interface())
	}
}

func flattenSlice(w *world, path string, v reflect.Value, into fieldValues) {
	switch {
	case v.IsNil() && v.Type().Elem().Kind() != reflect.Uint8:
		into[path] = "none" // kmsg does not distinguish null from empty everywhere
	case v.Type().Elem().Kind() == reflect.Uint8:
		into[path] = fmt.Sprintf("%q", w.withoutRun(string(v.Bytes())))
	case v.Type().Elem().Kind() == reflect.Struct:
		seen := map[string]int{}
		var elements []element
		for i := range v.Len() {
			if label, others := labelOf(w, v.Index(i)); !others {
				one := fieldValues{}
				flatten(w, "", v.Index(i), one)
				elements = append(elements, element{label, one, show(one)})
			}
		}
		slices.SortStableFunc(elements, func(a, b element) int { return strings.Compare(a.label+a.sortBy, b.label+b.sortBy) })
		for _, e := range elements {
			label := e.label
			if seen[e.label]++; seen[e.label] > 1 {
				label += fmt.Sprintf("#%d", seen[e.label])
			}
			for k, value := range e.fields {
				into[join(path+"["+label+"]", k)] = value
			}
			into[path+"["+label+"]"] = "there"
		}
		if len(elements) == 0 {
			into[path] = "none"
		}
	default:
		var all []string
		for i := range v.Len() {
			one := fieldValues{}
			flatten(w, "x", v.Index(i), one)
			all = append(all, one["x"])
		}
		slices.Sort(all)
		into[path] = strings.Join(all, " ")
		if len(all) == 0 {
			into[path] = "none"
		}
	}
}

type element struct {
	label  string
	fields fieldValues
	sortBy string
}

// labels are the fields that identify an array element. The first one that exists is used.
var labels = []string{"Topic", "TopicName", "TopicID", "Partition", "ResourceName", "Name", "Group", "GroupID", "Key", "MemberID", "ApiKey",
	"ProducerID", "Dir", "NodeID", "RelativeOffset"}

// labelOf returns what identifies an element, and whether the element belongs to another run.
func labelOf(w *world, v reflect.Value) (label string, others bool) {
	for _, name := range labels {
		f := v.FieldByName(name)
		if !f.IsValid() {
			continue
		}
		if rule := ruleFor(v.Type().Name(), name); rule != nil {
			if n := rule.as(w, f.Interface()); n != nil {
				return show(n), false
			}
			continue
		}
		if f.Kind() == reflect.Pointer {
			if f.IsNil() {
				continue
			}
			f = f.Elem()
		}
		switch f.Kind() {
		case reflect.String:
			if f.Len() == 0 && name != "Group" {
				continue
			}
			if strings.HasSuffix(v.Type().Name(), "Config") {
				return f.String(), !slices.Contains(configNames, f.String())
			}
			return w.withoutRun(f.String()), listsEverything(v.Type().Name()) && !strings.Contains(f.String(), w.run)
		case reflect.Array:
			return w.topicOf(f.Interface().([16]byte)), false
		default:
			return show(f.Interface()), false
		}
	}
	return "", false
}

// listsEverything reports whether a list has everything in the cluster, including what other
// sequences have created.
func listsEverything(elementType string) bool {
	switch elementType {
	case "MetadataResponseTopic", "ListGroupsResponseGroup", "DescribeLogDirsResponseDirTopic", "DescribeACLsResponseResource",
		"DeleteACLsResponseResultMatchingACL", "DescribeTopicPartitionsResponseTopic", "ListConfigResourcesResponseConfigResource":
		return true
	}
	return false
}

func join(path, field string) string {
	if path == "" || field == "" {
		return path + field
	}
	return path + "." + field
}

func ruleFor(typeName, field string) *rule {
	var general *rule
	for i := range rules {
		for name := range strings.FieldsSeq(rules[i].fields) {
			switch name {
			case typeName + "." + field:
				return &rules[i]
			case "." + field:
				general = &rules[i]
			}
		}
	}
	return general
}

func codeName(code int16) string {
	if code == 0 {
		return "NONE"
	}
	if err := kerr.TypedErrorForCode(code); err != nil {
		return err.Message
	}
	return fmt.Sprint(code)
}

func show(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case fieldValues, []string:
		text, _ := json.Marshal(v)
		return string(text)
	}
	return fmt.Sprint(v)
}

// difference is a field that differs between the two responses.
type difference struct {
	path      string // including what array elements are about
	got, want string // the values of the embedded engine and of Kafka; "absent" if the field is missing
}

// place returns the path without what array elements are about: Topics.Partitions.ErrorCode.
func (d difference) place() string {
	var out strings.Builder
	depth := 0
	for _, r := range d.path {
		switch {
		case r == '[':
			depth++
		case r == ']':
			depth--
		case depth == 0:
			out.WriteRune(r)
		}
	}
	return out.String()
}

func (d difference) String() string {
	return fmt.Sprintf("%s: embedded %s, Kafka %s", d.path, d.got, d.want)
}

// compare returns the fields that differ, sorted. An array element that exists on one side only is
// one difference.
func compare(got, want fieldValues) (all []difference) {
	paths := map[string]bool{}
	for path := range got {
		paths[path] = true
	}
	for path := range want {
		paths[path] = true
	}
	sorted := slices.Sorted(maps.Keys(paths))
	absent := ""
	for _, path := range sorted {
		if absent != "" && strings.HasPrefix(path, absent) {
			continue
		}
		g, isGot := got[path]
		w, isWanted := want[path]
		if !isGot {
			g = "absent"
		}
		if !isWanted {
			w = "absent"
		}
		if g != w {
			all = append(all, difference{path, g, w})
		}
		if isGot != isWanted && strings.HasSuffix(path, "]") {
			absent = path + "."
		}
	}
	return all
}
