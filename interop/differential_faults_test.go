//go:build kafka

package interop

import (
	"math"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// TestDifferentialBatches sends both engines batches with every defect, with every codec where that
// matters. It then compares what they have stored, before and after a kill.
func TestDifferentialBatches(t *testing.T) {
	duels := startDuels(t)
	for _, name := range defectNames {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := duels.take(t)
			alike, apart := batchSequences(name)
			if report := d.playOn(alike); report != "" {
				t.Error(report)
			}
			for _, steps := range apart {
				if report := d.play(steps); report != "" {
					t.Error(report)
				}
			}
		})
	}
}

// batchSequences returns a sequence that has the defect in all codecs that the engines treat alike,
// and one sequence for each codec with which only the embedded engine rejects it.
func batchSequences(defect string) (alike []step, apart [][]step) {
	look := []step{
		listStep{Version: 7, Time: -1, Epoch: noEpoch}, listStep{Version: 7, Time: -3, Epoch: noEpoch}, listStep{Version: 7, Time: 1, Epoch: noEpoch},
		fetchAll(0), producersStep{},
	}
	alike = []step{records(3)}
	for codec := range int8(len(codecs)) {
		if codec > 0 && !defectsByName[defect].codec {
			break
		}
		odd := hostile(defect, codec)
		if odd.Batches[0].strictness().title != "" {
			apart = append(apart, []step{records(3), odd})
			continue
		}
		alike = append(append(alike, odd), look...)
	}
	alike = append(append(alike, restart{Kill: true}), look...)
	return append(append(alike, records(3)), look...), apart
}

func produceOne(b batchStep) step {
	return produceStep{Version: 9, Acks: -1, Batches: []batchStep{b}}
}

// records returns a step that produces n valid records to partition 0 of topic 0.
func records(n int) step { return produceOne(batchStep{Records: n, Size: 5, Producer: -1}) }

// wholeRefused returns a request with four batches: one that is rejected, one that is rejected with
// a list of its records, one with a defect that rejects the whole request, and a valid one for a
// topic that does not exist.
func wholeRefused(version int16, defect string) step {
	return produceStep{Version: version, Acks: -1, Batches: []batchStep{
		{Records: 3, Producer: -1, Defect: "count 0"},
		{Records: 3, Producer: -1, Defect: "attribute bit 3 (log append time)", Partition: 1},
		{Records: 3, Producer: -1, Defect: defect, Topic: 1},
		{Records: 3, Producer: -1, Topic: noTopic}}}
}

func odd(defect string) step { return hostile(defect, 0) }

func fetchAll(from int64) step {
	return fetchStep{Version: 12, MinBytes: 1, MaxBytes: 50 << 20, SessionUse: "none",
		Partitions: []fetchPartition{{Offset: from, MaxBytes: 50 << 20, CurrentEpoch: noEpoch, LastEpoch: noEpoch}}}
}

// ends requests the start and the end of partition 0 of topic 0.
var ends = []step{listStep{Version: 7, Time: -2, Epoch: noEpoch}, listStep{Version: 7, Time: -1, Epoch: noEpoch}}

// byStranger performs a step as a subject that only has the rights that the sequence grants.
type byStranger struct{ step }

func (s byStranger) caller() connectionName { return connectionName{subject: stranger} }

func (s byStranger) learn(w *world, request kmsg.Request, response kmsg.Response) {
	if l, ok := s.step.(learner); ok {
		l.learn(w, request, response)
	}
}

// stranger stands for that subject; each run has its own.
const stranger = "@stranger"

func asStranger(s step) step { return byStranger{s} }

// withoutSubject returns a step without its subject.
func withoutSubject(s step) step {
	if by, ok := s.(byStranger); ok {
		return by.step
	}
	return s
}

// mayReadGroup allows the stranger to read all groups of the run.
var mayReadGroup = createACLsStep{Version: 3, ACLs: []acl{{Resource: 3, Name: "@", Pattern: 4, Principal: "User:" + stranger, Host: "*", Operation: 3, Permission: 3}}}

// mayActForCluster allows the stranger ClusterAction.
var mayActForCluster = createACLsStep{Version: 3, ACLs: []acl{{Resource: 4, Name: "kafka-cluster", Pattern: 3, Principal: "User:" + stranger, Host: "*", Operation: 9, Permission: 3}}}

// fault is a fault that an engine had, with the sequence of requests that reveals it.
type fault struct {
	name  string
	steps []step
}

var faults = []fault{
	{"an emptied partition begins at 0 after a clean start", sequence(
		records(5), deleteRecordsStep{Version: 2, Offset: -1}, ends, restart{}, ends, records(3), ends, fetchAll(5))},
	{"an emptied partition begins at 0 after a kill", sequence(
		records(5), deleteRecordsStep{Version: 2, Offset: -1}, ends, restart{Kill: true}, ends, records(3), ends, fetchAll(5))},
	{"client timestamps are kept", sequence(
		records(2), odd("time of 2001"), odd("time of 2255"), records(2), fetchAll(0),
		listStep{Version: 7, Time: batchTime, Batch: 1, Epoch: noEpoch}, listStep{Version: 7, Time: batchTime, Batch: 3, Epoch: noEpoch}, listStep{Version: 7, Time: -3, Epoch: noEpoch})},
	{"attribute bit 3 cuts the log", sequence(
		records(1), odd("attribute bit 3 (log append time)"), records(3), restart{}, ends, fetchAll(0))},
	{"a negative record count moves the end back", sequence(records(5), odd("count and delta negative"), ends, records(3), ends, fetchAll(0))},
	{"a record count of -1", sequence(records(5), odd("count -1"), ends, records(3), ends, fetchAll(0))},
	{"a record count of 1,000,000 jumps", sequence(records(5), odd("count and delta 1,000,000"), ends, records(3), ends)},
	{"a record without a key in a compacted topic", sequence(
		createTopicsStep{Version: 2, Topics: []newTopic{{Topic: 2, Partitions: 1, Replicas: 1, Configs: []config{{"cleanup.policy", "compact"}}}}},
		produceOne(batchStep{Topic: 2, Records: 1, Producer: -1}))},
	{"a record that lies about its length, and a search by time", sequence(
		records(2), odd("record length 2^31-1"), listStep{Version: 7, Time: batchTime, After: 1, Epoch: noEpoch}, listStep{Version: 7, Time: 1, Epoch: noEpoch}, restart{}, ends, fetchAll(0))},
	{"a record with a negative length, and a search by time", sequence(
		records(2), odd("record length -1"), listStep{Version: 7, Time: batchTime, After: 1, Epoch: noEpoch}, listStep{Version: 7, Time: 1, Epoch: noEpoch}, restart{}, ends, fetchAll(0))},
	{"a value that lies about its length, and a search by time", sequence(
		records(2), odd("value length 2^31-1"), listStep{Version: 7, Time: batchTime, After: 1, Epoch: noEpoch}, listStep{Version: 7, Time: 1, Epoch: noEpoch}, restart{}, ends, fetchAll(0))},
	{"garbage instead of records", sequence(odd("garbage for records"), ends, fetchAll(0))},
	{"records that cannot be decompressed", sequence(
		produceOne(batchStep{Records: 3, Producer: -1, Codec: 1, Defect: "garbage for records"}), produceOne(batchStep{Records: 3, Producer: -1, Codec: 4, Defect: "compressed stream cut"}),
		odd("codec 7"), ends)},
	{"a batch with a wrong checksum", sequence(odd("checksum"), ends)},
	{"a request that is refused as a whole tells of its other batches", sequence(records(1),
		wholeRefused(9, "attribute bits 4 and 5 with a producer"), wholeRefused(9, "length negative"), wholeRefused(5, "codec 7"), wholeRefused(9, "codec 7"), ends)},
	{"two batches for one partition", sequence(odd("two batches"), ends)},
	{"a fetch is not bounded", sequence(repeat(60, produceOne(batchStep{Records: 1, Size: 1_000_000, Producer: -1})),
		fetchStep{Version: 12, MinBytes: 1, MaxBytes: math.MaxInt32, SessionUse: "none",
			Partitions: []fetchPartition{{MaxBytes: math.MaxInt32, CurrentEpoch: noEpoch, LastEpoch: noEpoch}}})},
	{"committed offsets of a new group", sequence(
		offsetsStep{Version: 5, Groups: []int{0}, Topics: []int{0}}, offsetsStep{Version: 7, Groups: []int{0}, Topics: []int{0}, Stable: true},
		offsetsStep{Version: 8, Groups: []int{0}, Topics: []int{0}}, offsetsStep{Version: 9, Groups: []int{0}, All: true})},
	{"members are forgotten at a kill", sequence(
		joinStep{Version: 3, Member: 0, Session: 60_000, Type: "consumer", Protocols: "a"}, syncStep{Version: 3},
		heartbeatStep{Version: 3}, restart{Kill: true}, heartbeatStep{Version: 3}, describeGroupsStep{Version: 5, Groups: []int{0}},
		commitStep{Version: 7, Offsets: []commitOffset{{Offset: 3, Epoch: noEpoch}}}, commitStep{Version: 7, Generation: -1, Offsets: []commitOffset{{Offset: 4, Epoch: noEpoch}}})},
	{"members of KIP-848 are forgotten or not fenced at a kill", sequence(
		consumerStep{Version: 1, Epoch: "join", Topics: []int{0}}, consumerStep{Version: 1, Epoch: "own", Keep: true, Owned: "assigned"}, restart{Kill: true},
		consumerStep{Version: 1, Epoch: "own", Keep: true, Owned: "assigned"}, consumerStep{Version: 1, Epoch: "ahead", Keep: true, Owned: "assigned"},
		commitStep{Version: 9, Offsets: []commitOffset{{Offset: 3, Epoch: noEpoch}}}, commitStep{Version: 9, Generation: 1, Offsets: []commitOffset{{Offset: 4, Epoch: noEpoch}}})},
	{"sequences wrap at 2^31", sequence(
		produceOne(batchStep{Records: 2, Sequence: "wrap"}), produceOne(batchStep{Records: 2, Sequence: "next"}), produceOne(batchStep{Records: 1, Sequence: "next"}), ends)},
	{"a producer without an epoch has to keep to its sequence", sequence(
		produceOne(batchStep{Records: 2, Epoch: -1, Sequence: "zero"}), produceOne(batchStep{Records: 2, Epoch: -1, Sequence: "again"}),
		produceOne(batchStep{Records: 1, Epoch: -1, Sequence: "gap"}), produceOne(batchStep{Records: 1, Epoch: 1, Sequence: "gap"}),
		produceOne(batchStep{Records: 1, Epoch: 1, Sequence: "zero"}), produceOne(batchStep{Records: 1, Epoch: -1, Sequence: "zero"}), ends, producersStep{})},
	{"a producer that starts over is taken for another", sequence(
		initProducerStep{Version: 4, Timeout: -1}, produceOne(batchStep{Records: 2, Sequence: "next"}), initProducerStep{Version: 4, Timeout: -1},
		produceOne(batchStep{Records: 3, Sequence: "next"}), producersStep{}, fetchAll(0), initProducerStep{Version: 4, Timeout: -1}, producersStep{}, fetchAll(0))},
	{"topics that there are not, by ID", sequence(
		produceStep{Version: 13, Acks: -1, Apart: true, Batches: []batchStep{{Topic: 2, Records: 1, Producer: -1}, {Records: 1, Producer: -1}, {Topic: noTopic, Records: 2, Producer: -1}}},
		fetchStep{Version: 13, MinBytes: 1, MaxBytes: 1 << 20, SessionUse: "none", Partitions: []fetchPartition{{Topic: 2, MaxBytes: 1 << 20, CurrentEpoch: noEpoch, LastEpoch: noEpoch},
			{MaxBytes: 1 << 20, CurrentEpoch: noEpoch, LastEpoch: noEpoch}, {Topic: noTopic, MaxBytes: 1 << 20, CurrentEpoch: noEpoch, LastEpoch: noEpoch}}},
		metadataStep{Version: 12, Which: "IDs", Topics: []int{2, 0, noTopic}}, deleteTopicsStep{Version: 6, ByID: true, Topics: []int{2, noTopic}},
		commitStep{Version: 10, Member: -1, Offsets: []commitOffset{{Topic: 2, Epoch: noEpoch}, {Topic: noTopic, Epoch: noEpoch}, {Offset: 3, Epoch: noEpoch}}},
		offsetsStep{Version: 10, Groups: []int{0}, Topics: []int{2, 0, noTopic}})},
	{"no truncation detection", sequence(records(3),
		fetchStep{Version: 12, MinBytes: 1, MaxBytes: 1 << 20, SessionUse: "none", Partitions: []fetchPartition{{Offset: 2, MaxBytes: 1 << 20, CurrentEpoch: noEpoch, LastEpoch: 5}}},
		fetchStep{Version: 12, MinBytes: 1, MaxBytes: 1 << 20, SessionUse: "none", Partitions: []fetchPartition{{Offset: 3, MaxBytes: 1 << 20, CurrentEpoch: 0, LastEpoch: 0}}},
		epochStep{Version: 4, CurrentEpoch: noEpoch, Epoch: 0}, epochStep{Version: 4, CurrentEpoch: noEpoch, Epoch: 5}, epochStep{Version: 4, CurrentEpoch: 5, Epoch: 0})},
	{"removed records come back after a kill", sequence(records(5), deleteRecordsStep{Version: 2, Offset: 3}, ends, restart{Kill: true}, ends, fetchAll(0))},
	{"metadata by ID tells a topic's name", sequence(asStranger(metadataStep{Version: 12, Which: "IDs", Topics: []int{0}}))},
	{"deletion by ID tells a topic's name", sequence(asStranger(deleteTopicsStep{Version: 6, ByID: true, Topics: []int{0}}))},
	{"others' committed offsets", sequence(
		commitStep{Version: 8, Member: -1, Offsets: []commitOffset{{Offset: 3, Epoch: noEpoch}}},
		asStranger(offsetsStep{Version: 8, Groups: []int{0}, Topics: []int{0}}), asStranger(offsetsStep{Version: 8, Groups: []int{0}, All: true}),
		asStranger(offsetsStep{Version: 5, Groups: []int{0}, Topics: []int{0}}))},
	{"others' committed offsets, for one who may read the group alone", sequence(
		commitStep{Version: 8, Member: -1, Offsets: []commitOffset{{Offset: 3, Epoch: noEpoch}}}, mayReadGroup,
		asStranger(offsetsStep{Version: 8, Groups: []int{0}, Topics: []int{0}}), asStranger(offsetsStep{Version: 8, Groups: []int{0}, All: true}))},
	{"the coordinator of a share group is denied to nobody", sequence(
		coordinatorStep{Version: 6, Type: 2, Groups: []int{0, 1}}, asStranger(coordinatorStep{Version: 6, Type: 2, Groups: []int{0, -1}}),
		asStranger(coordinatorStep{Version: 6, Type: 2}), asStranger(coordinatorStep{Version: 5, Type: 2, Groups: []int{0}}),
		asStranger(coordinatorStep{Version: 3, Type: 2, Groups: []int{0}}), asStranger(coordinatorStep{Version: 6, Type: 5, Groups: []int{0}}),
		mayActForCluster, asStranger(coordinatorStep{Version: 6, Type: 2, Groups: []int{0}}))},
	{"group configs are open to everybody", sequence(asStranger(groupConfigStep{}), asStranger(groupConfigStep{Change: true}))},
	{"a KIP-848 join assigns what one may not describe", sequence(mayReadGroup,
		asStranger(consumerStep{Version: 1, Epoch: "join", Topics: []int{0}}), describeConsumersStep{Version: 1})},
	{"a KIP-848 regex assigns what one may not describe", sequence(mayReadGroup,
		asStranger(consumerStep{Version: 1, Epoch: "join", Regex: "@-t.*"}), pause{}, asStranger(consumerStep{Version: 1, Epoch: "own", Keep: true}), describeConsumersStep{Version: 1})},
}

// TestDifferentialFaults runs the sequence of each fault on both engines. An engine with the fault
// fails.
func TestDifferentialFaults(t *testing.T) {
	duels := startDuels(t)
	for _, f := range faults {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			if report := duels.take(t).playOn(f.steps); report != "" {
				t.Error(report)
			}
		})
	}
}

func sequence(parts ...any) (all []step) {
	for _, p := range parts {
		switch p := p.(type) {
		case step:
			all = append(all, p)
		case []step:
			all = append(all, p...)
		}
	}
	return all
}

func repeat(n int, s step) (all []step) {
	for range n {
		all = append(all, s)
	}
	return all
}

// groupConfigStep reads or changes the configs of group 0.
type groupConfigStep struct{ Change bool }

const configResourceGroup = 32

func (s groupConfigStep) request(w *world) kmsg.Request {
	if s.Change {
		r := kmsg.NewPtrIncrementalAlterConfigsRequest()
		r.Version = 1
		resource := kmsg.NewIncrementalAlterConfigsRequestResource()
		resource.ResourceType, resource.ResourceName = configResourceGroup, w.group(0)
		config := kmsg.NewIncrementalAlterConfigsRequestResourceConfig()
		config.Name, config.Value = "consumer.session.timeout.ms", pointer("50000")
		resource.Configs = append(resource.Configs, config)
		r.Resources = append(r.Resources, resource)
		return r
	}
	r := kmsg.NewPtrDescribeConfigsRequest()
	r.Version = 4
	resource := kmsg.NewDescribeConfigsRequestResource()
	resource.ResourceType, resource.ResourceName = configResourceGroup, w.group(0)
	r.Resources = append(r.Resources, resource)
	return r
}
