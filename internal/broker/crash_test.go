package broker

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora/internal/batch"
	"github.com/diaspora-streams/diaspora/internal/disk"
	"github.com/diaspora-streams/diaspora/internal/disk/disktest"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

// The crash test runs a program on the model of the file system. At each call that changes
// something, it simulates power cuts in several ways and the death of the process. It opens each
// resulting state as a broker and checks that everything acknowledged is there. From some states
// the program continues and fails again. In one of three programs the disk is full from time to
// time, and in one of three any call of the file system may fail with "no space left".

// crashHistory is what a program knows about its broker.
type crashHistory struct {
	sync    bool // Config.SyncWrites
	cut     bool // the power failed, and no program has checked the remaining state yet
	failing bool // the disk is full, or calls fail: requests need not succeed
	clock   *testkit.Clock
	topics  map[string]*register // by name
	acls    map[acl]*register
	commits map[crashCommit]*register
	logs    map[crashLog]*logHistory
	made    int   // number of topics so far; distinguishes topics of the same name
	batches int   // number of batches so far
	nextID  int64 // greater than all producer IDs that were given out
	epoch   int32 // of the last start
}

type crashCommit struct {
	group     string
	topic     int
	partition int32
}

type crashLog struct {
	topic     int
	partition int32
}

// register is something that has one value at a time. The value "" means that it does not exist.
type register struct {
	values []string // all values that were written, successfully or not
	acked  int      // index of the last acknowledged value: after a kill, this value or a later one must be there
	safe   int      // the same for a power cut
}

func at[K comparable](all map[K]*register, key K) *register {
	if all[key] == nil {
		all[key] = &register{values: []string{""}}
	}
	return all[key]
}

func (r *register) try(value string) { r.values = append(r.values, value) }

// ack records that the last value was acknowledged.
func (r *register) ack(durable bool) {
	if r.acked = len(r.values) - 1; durable {
		r.safe = r.acked
	}
}

// settle checks the value after a crash.
func (r *register) settle(found string, cut bool) error {
	least := r.acked
	if cut {
		least = r.safe
	}
	i := slices.Index(r.values[least:], found)
	if i < 0 {
		return fmt.Errorf("it is %q, want one of %q", found, r.values[least:])
	}
	first := r.safe
	if cut { // everything that was not on disk is lost
		first = least + i
	}
	r.values, r.acked, r.safe = slices.Clone(r.values[first:least+i+1]), least+i-first, 0
	return nil
}

// logHistory is what a program knows about a partition.
type logHistory struct {
	batches []*crashBatch
	start   int64 // the start that was acknowledged
	started int64 // the start that was requested; the log may start there
	end     int64 // the highest end that was observed
	safe    int64 // records before this offset survive a power cut
	next    map[int64]int32
}

type crashBatch struct {
	from   from
	values []string
	epoch  int32
	state  batchState
	offset int64 // valid if the batch is acknowledged
}

type batchState byte

const (
	tried        batchState = iota // it may be there
	acknowledged                   // it must be there
	gone                           // a restarted broker did not have it, so it must not come back
)

func (b *crashBatch) last() int64 { return b.offset + int64(len(b.values)) - 1 }

func (h *crashHistory) clone() *crashHistory {
	c := *h
	c.clock = testkit.NewClock(h.clock.Now())
	c.topics, c.acls, c.commits = cloneRegisters(h.topics), cloneRegisters(h.acls), cloneRegisters(h.commits)
	c.logs = make(map[crashLog]*logHistory, len(h.logs))
	for key, l := range h.logs {
		copied := *l
		copied.next = maps.Clone(l.next)
		copied.batches = make([]*crashBatch, len(l.batches))
		for i, b := range l.batches {
			batch := *b
			copied.batches[i] = &batch
		}
		c.logs[key] = &copied
	}
	return &c
}

func cloneRegisters[K comparable](all map[K]*register) map[K]*register {
	copied := make(map[K]*register, len(all))
	for key, r := range all {
		copied[key] = &register{slices.Clone(r.values), r.acked, r.safe}
	}
	return copied
}

func newCrashHistory(sync bool) *crashHistory {
	return &crashHistory{
		sync: sync, clock: newClock(), topics: map[string]*register{}, acls: map[acl]*register{}, commits: map[crashCommit]*register{}, logs: map[crashLog]*logHistory{},
	}
}

func (h *crashHistory) log(key crashLog) *logHistory {
	if h.logs[key] == nil {
		h.logs[key] = &logHistory{next: map[int64]int32{}}
	}
	return h.logs[key]
}

func (h *crashHistory) config(fsys *disktest.Model, faults *faultLog) Config {
	return Config{Advertise: advertised, SyncWrites: h.sync, files: fsys, now: h.clock.Now, Diagnostics: slog.New(faults)}
}

// instanceBase stores the number of a topic in a setting that has no effect.
const instanceBase = 1 << 50

// instance returns the number of a topic.
func (t *topic) instance() int { return int(t.settings.retentionBytes - instanceBase) }

// describe returns everything about a topic that its register compares.
func (t *topic) describe() string {
	if t == nil {
		return ""
	}
	return topicValue(t.instance(), t.Partitions, t.Configs["retention.ms"])
}

func topicValue(instance int, partitions int32, retention string) string {
	return fmt.Sprintf("%d with %d partitions, %s ms", instance, partitions, retention)
}

var (
	crashTopics = []string{"a", "b", "c"}
	crashGroups = []string{"g", "h"}
	crashACLs   = []acl{
		{pattern{kmsg.ACLResourceTypeTopic, kmsg.ACLResourcePatternTypeLiteral, "a"}, "User:ada", "*", kmsg.ACLOperationRead, kmsg.ACLPermissionTypeAllow},
		{pattern{kmsg.ACLResourceTypeTopic, kmsg.ACLResourcePatternTypePrefixed, "b"}, "User:ada", "*", kmsg.ACLOperationWrite, kmsg.ACLPermissionTypeAllow},
		{pattern{kmsg.ACLResourceTypeGroup, kmsg.ACLResourcePatternTypeLiteral, "g"}, "User:bert", "*", kmsg.ACLOperationAll, kmsg.ACLPermissionTypeDeny},
	}
)

// check opens the state after a crash, compares it with what was acknowledged, and uses it.
func (h *crashHistory) check(fsys *disktest.Model, twice bool) error {
	faults := newFaultLog()
	b, err := Open(h.config(fsys, faults))
	if err != nil && disk.Full(err) {
		fsys.Room(0) // the disk has free space now, so opening must succeed
		b, err = Open(h.config(fsys, faults))
	}
	if err != nil {
		return err
	}
	fsys.Room(0)
	err = h.compare(b)
	if err == nil {
		err = h.retry(b)
	}
	if err == nil {
		err = useBroker(b, h.nextID)
	}
	if err := errors.Join(err, b.Close()); err != nil || !twice {
		return err
	}
	if b, err = Open(h.config(fsys, faults)); err != nil {
		return fmt.Errorf("after a clean stop: %w", err)
	}
	defer b.Close()
	return h.compareAgain(b)
}

// compare checks everything that is there, and records what is missing.
func (h *crashHistory) compare(b *Broker) error {
	if b.epoch <= h.epoch {
		return fmt.Errorf("leader epoch %d after %d", b.epoch, h.epoch)
	}
	h.epoch = b.epoch
	for _, t := range b.topics.all() {
		if !slices.Contains(crashTopics, t.Name) {
			return fmt.Errorf("topic %q was never created", t.Name)
		}
	}
	for _, name := range crashTopics {
		t := b.topics.named(name)
		if err := at(h.topics, name).settle(t.describe(), h.cut); err != nil {
			return fmt.Errorf("topic %q: %w", name, err)
		}
		if t == nil {
			continue
		}
		if err := h.compareRecords(b, t); err != nil {
			return err
		}
		for _, group := range crashGroups {
			if err := h.compareCommits(b, t, group); err != nil {
				return err
			}
		}
	}
	for _, x := range crashACLs {
		found := ""
		if b.acls.has(x) {
			found = "there"
		}
		if err := at(h.acls, x).settle(found, h.cut); err != nil {
			return fmt.Errorf("ACL %+v: %w", x, err)
		}
	}
	if n := len(b.acls.matching(aclFilter{resource: kmsg.ACLResourceTypeAny, kind: kmsg.ACLResourcePatternTypeAny, operation: kmsg.ACLOperationAny, permission: kmsg.ACLPermissionTypeAny})); n > len(crashACLs) {
		return fmt.Errorf("%d ACLs, at most %d were created", n, len(crashACLs))
	}
	h.cut = false
	return noStrangers(b)
}

// noStrangers fails if a directory belongs to no topic.
func noStrangers(b *Broker) error {
	known := map[string]bool{".": true}
	for _, t := range b.topics.all() {
		for n := range t.Partitions {
			known[directoryName(t.ID, n)] = true
		}
	}
	infos, err := b.files.Sub("topics").List()
	if err != nil {
		return err
	}
	for _, info := range infos {
		if !known[info.Name()] {
			return fmt.Errorf("the directory %s belongs to no topic", info.Name())
		}
	}
	return nil
}

func (h *crashHistory) compareCommits(b *Broker, t *topic, group string) error {
	of := kmsg.NewOffsetFetchRequestGroupTopic()
	of.Topic, of.TopicID = t.Name, t.ID
	for n := range t.Partitions {
		of.Partitions = append(of.Partitions, n)
	}
	request := kmsg.NewPtrOffsetFetchRequest()
	request.Groups = []kmsg.OffsetFetchRequestGroup{{Group: group, MemberEpoch: -1, Topics: []kmsg.OffsetFetchRequestGroupTopic{of}}}
	response, err := call[*kmsg.OffsetFetchResponse](b, request)
	if err != nil {
		return err
	}
	for _, p := range response.Groups[0].Topics[0].Partitions {
		found := ""
		if p.Offset >= 0 {
			found = strconv.FormatInt(p.Offset, 10)
		}
		if err := at(h.commits, crashCommit{group, t.instance(), p.Partition}).settle(found, h.cut); err != nil {
			return fmt.Errorf("group %q, topic %q, partition %d: %w", group, t.Name, p.Partition, err)
		}
	}
	return nil
}

// fetchAll returns all batches of a topic's partitions.
func fetchAll(b *Broker, t *topic) ([][][]byte, error) {
	of := kmsg.NewFetchRequestTopic()
	of.Topic, of.TopicID = t.Name, t.ID
	for n, log := range t.partitions {
		p := kmsg.NewFetchRequestTopicPartition()
		p.Partition, p.FetchOffset, p.PartitionMaxBytes = int32(n), log.Start(), 1<<30
		of.Partitions = append(of.Partitions, p)
	}
	request := kmsg.NewPtrFetchRequest()
	request.MaxBytes, request.SessionEpoch, request.Topics = 1<<30, -1, append(request.Topics, of)
	response, err := call[*kmsg.FetchResponse](b, request)
	if err != nil {
		return nil, err
	}
	all := make([][][]byte, len(t.partitions))
	for _, p := range response.Topics[0].Partitions {
		if p.ErrorCode != 0 {
			return nil, fmt.Errorf("fetch %s/%d: %w", t.Name, p.Partition, kerr.ErrorForCode(p.ErrorCode))
		}
		if all[p.Partition], err = batchesOf(p.RecordBatches); err != nil {
			return nil, fmt.Errorf("fetch %s/%d: %w", t.Name, p.Partition, err)
		}
	}
	return all, nil
}

func (h *crashHistory) compareRecords(b *Broker, t *topic) error {
	all, err := fetchAll(b, t)
	if err != nil {
		return err
	}
	for n, log := range t.partitions {
		l := h.log(crashLog{t.instance(), int32(n)})
		if err := l.compare(log.Start(), log.End(), all[n], h.cut); err != nil {
			return fmt.Errorf("topic %q (%s), partition %d: %w", t.Name, t.describe(), n, err)
		}
		if h.sync {
			l.safe = l.end
		}
	}
	return nil
}

func (l *logHistory) compare(start, end int64, stored [][]byte, cut bool) error {
	safe := l.end
	if cut {
		safe = l.safe
	}
	if start < l.start || start > max(l.started, l.start) {
		return fmt.Errorf("it starts at %d, want %d to %d", start, l.start, l.started)
	}
	if end < safe || end < start {
		return fmt.Errorf("it is %d to %d, and ended at %d", start, end, safe)
	}
	byValue := map[string]*crashBatch{}
	for _, b := range l.batches {
		byValue[b.values[0]] = b
	}
	found := map[*crashBatch]bool{}
	next := start
	for _, raw := range stored {
		hd, _ := batch.ParseHeader(raw)
		values, err := valuesOf(raw)
		if err != nil || len(values) == 0 {
			return fmt.Errorf("at offset %d: %d records, %w", hd.BaseOffset, len(values), err)
		}
		b := byValue[values[0]]
		switch {
		case b == nil || found[b]:
			return fmt.Errorf("%.9q at %d was never sent, or is there twice", values[0], hd.BaseOffset)
		case hd.BaseOffset > next:
			return fmt.Errorf("offset %d is missing", next)
		case !slices.Equal(values, b.values) || hd.ProducerID != b.from.id || hd.BaseSequence != b.from.sequence || hd.LeaderEpoch != b.epoch:
			return fmt.Errorf("%.9q at %d is another than was sent", values[0], hd.BaseOffset)
		case b.state == gone:
			return fmt.Errorf("%.9q at %d has come back", values[0], hd.BaseOffset)
		case b.state == acknowledged && b.offset != hd.BaseOffset:
			return fmt.Errorf("%.9q at %d was at %d", values[0], hd.BaseOffset, b.offset)
		}
		found[b] = true
		next = hd.LastOffset() + 1
	}
	if next != end {
		return fmt.Errorf("offset %d is missing; it ends at %d", next, end)
	}
	for _, b := range l.batches {
		switch {
		case found[b] || b.state == gone:
		case b.state == acknowledged && b.offset < safe && b.last() >= start:
			return fmt.Errorf("%.9q at %d is lost; it is %d to %d", b.values[0], b.offset, start, end)
		case b.state == tried && start == l.start || b.state == acknowledged && b.offset >= end:
			b.state = gone
		}
	}
	l.end, l.safe = end, min(l.safe, end)
	l.started = max(l.started, start)
	return nil
}

// compareAgain checks the state after a clean stop. It ignores what useBroker created.
func (h *crashHistory) compareAgain(b *Broker) error {
	for _, name := range crashTopics {
		if found := b.topics.named(name).describe(); found != h.topics[name].values[h.topics[name].acked] {
			return fmt.Errorf("after a clean stop, topic %q is %q", name, found)
		}
		if t := b.topics.named(name); t != nil {
			for n, log := range t.partitions {
				if l := h.log(crashLog{t.instance(), int32(n)}); log.End() < l.end || log.Start() < l.start {
					return fmt.Errorf("after a clean stop, topic %q, partition %d is %d to %d, want %d to %d", name, n, log.Start(), log.End(), l.start, l.end)
				}
			}
		}
	}
	return nil
}

// produceTo appends a batch to a topic.
func produceTo(b *Broker, t *topic, partition int32, raw []byte) (kmsg.ProduceResponseTopicPartition, error) {
	p := kmsg.NewProduceRequestTopicPartition()
	p.Partition, p.Records = partition, raw
	to := kmsg.NewProduceRequestTopic()
	to.Topic, to.TopicID, to.Partitions = t.Name, t.ID, append(to.Partitions, p)
	request := kmsg.NewPtrProduceRequest()
	request.Acks, request.Topics = -1, append(request.Topics, to)
	response, err := call[*kmsg.ProduceResponse](b, request)
	if err != nil {
		return kmsg.ProduceResponseTopicPartition{}, err
	}
	return response.Topics[0].Partitions[0], nil
}

// retry sends the last acknowledged batch of each producer again, like a client that has not
// received the response, and then the next one.
func (h *crashHistory) retry(b *Broker) error {
	for _, t := range b.topics.all() {
		for n, log := range t.partitions {
			l := h.log(crashLog{t.instance(), int32(n)})
			last := map[int64]*crashBatch{}
			for _, b := range l.batches {
				if b.from.id >= 0 && b.state == acknowledged && b.offset < l.end {
					last[b.from.id] = b
				}
			}
			for _, id := range slices.Sorted(maps.Keys(last)) {
				batch := last[id]
				got, err := produceTo(b, t, int32(n), newBatch(0, batch.from, batch.values...))
				if err != nil || got.ErrorCode != 0 || got.BaseOffset != batch.offset {
					return fmt.Errorf("topic %q, partition %d: %.9q again: code %d at %d, %v, want a duplicate at %d", t.Name, n, batch.values[0], got.ErrorCode, got.BaseOffset, err, batch.offset)
				}
			}
			for _, p := range log.Producers() {
				end := log.End()
				got, err := produceTo(b, t, int32(n), newBatch(0, from{p.ID, p.Epoch, p.LastSequence + 1}, "next"))
				if err != nil || got.ErrorCode != 0 || got.BaseOffset != end {
					return fmt.Errorf("topic %q, partition %d: next batch of producer %d: code %d at %d, %v, want it at %d", t.Name, n, p.ID, got.ErrorCode, got.BaseOffset, err, end)
				}
			}
		}
	}
	return nil
}

// useBroker does what a broker must be able to do after any crash. Producer IDs below nextID are in
// use.
func useBroker(b *Broker, nextID int64) error {
	made, err := call[*kmsg.CreateTopicsResponse](b, createTopics(newTopic("fresh", 1)))
	if err != nil || made.Topics[0].ErrorCode != 0 {
		return fmt.Errorf("create a topic: %+v, %w", made, err)
	}
	t := b.topics.named("fresh")
	if got, err := produceTo(b, t, 0, newBatch(0, nobody, "fresh")); err != nil || got.ErrorCode != 0 || got.BaseOffset != 0 {
		return fmt.Errorf("produce: %+v, %w", got, err)
	}
	if all, err := fetchAll(b, t); err != nil || len(all[0]) != 1 {
		return fmt.Errorf("fetch: %d batches, %w", len(all[0]), err)
	}
	if got, err := commitTo(b, "fresh", t, map[int32]int64{0: 1}); err != nil || got != 0 {
		return fmt.Errorf("commit: code %d, %w", got, err)
	}
	if got, err := call[*kmsg.InitProducerIDResponse](b, kmsg.NewPtrInitProducerIDRequest()); err != nil || got.ErrorCode != 0 || got.ProducerID < nextID {
		return fmt.Errorf("new producer: %+v, %w, want an ID of at least %d", got, err, nextID)
	}
	return nil
}

// commitTo commits offsets by partition, and returns the last error code.
func commitTo(b *Broker, group string, t *topic, offsets map[int32]int64) (code int16, err error) {
	to := kmsg.NewOffsetCommitRequestTopic()
	to.Topic, to.TopicID = t.Name, t.ID
	for n, offset := range offsets {
		p := kmsg.NewOffsetCommitRequestTopicPartition()
		p.Partition, p.Offset = n, offset
		to.Partitions = append(to.Partitions, p)
	}
	request := kmsg.NewPtrOffsetCommitRequest()
	request.Group, request.Topics = group, append(request.Topics, to)
	response, err := call[*kmsg.OffsetCommitResponse](b, request)
	if err != nil {
		return 0, err
	}
	for _, topic := range response.Topics {
		for _, p := range topic.Partitions {
			code = max(code, p.ErrorCode)
		}
	}
	return code, nil
}

// crasher runs programs and crashes them.
type crasher struct {
	rng     *rand.Rand
	trouble trouble
	states  *atomic.Int64 // number of states that were checked
	limit   int64
	skip    func(site string) bool
	err     error // the first violation
}

// trouble is the kind of fault before the crash.
type trouble int

const (
	none trouble = iota
	full         // the disk is full from time to time
	failing
	troubles
)

// crash is the state that a crash leaves.
type crash struct {
	fsys    *disktest.Model
	history *crashHistory
	cut     bool
	at      string
}

const (
	crashDepth   = 3  // how often a program continues after a crash
	cutsPerCall  = 3  // power cuts at each call
	goOnOneIn    = 24 // one in this many states is continued from
	programSteps = 30
)

// run runs a program on a file system, then checks the states that its crashes left.
func (c *crasher) run(fsys *disktest.Model, h *crashHistory, depth, steps int) {
	var crashes []crash
	p := &program{crasher: c, fsys: fsys, h: h, faults: newFaultLog()}
	cuts := rand.New(rand.NewPCG(c.rng.Uint64(), 3)) // used only by the observer, which handles one call at a time
	fsys.SkipSyncs(c.skip)
	fsys.Observe(func(call, name string, now disktest.Moment) {
		if !disktest.Changes(call) {
			return
		}
		p.mu.Lock()
		left := h.clone()
		p.mu.Unlock()
		for range cutsPerCall {
			crashes = append(crashes, crash{now.Cut(cuts), left, true, call + " " + name})
		}
		crashes = append(crashes, crash{now.Kill(), left, false, call + " " + name})
	})
	err := p.run(steps)
	fsys.Observe(nil)
	fsys.Fault(nil)
	crashes = append(crashes, crash{fsys.Cut(cuts), h, true, "the end"})
	if p.b != nil {
		p.b.Close() // the broker counts as dead; what its goroutines still do is ignored
	}
	if err == nil && c.trouble == none && p.faults.lines.Len() > 0 {
		err = fmt.Errorf("the broker reports:\n%s", p.faults.lines)
	}
	if err != nil && c.err == nil {
		c.err = fmt.Errorf("program, depth %d, sync %v, trouble %d: %w", depth, h.sync, c.trouble, err)
	}
	for _, crash := range crashes {
		if c.err != nil || c.states.Add(1) > c.limit {
			return
		}
		after := crash.history.clone()
		after.cut = after.cut || crash.cut
		if depth < crashDepth && c.rng.IntN(goOnOneIn) == 0 {
			crash.fsys.Room(0)
			c.run(crash.fsys, after, depth+1, 1+c.rng.IntN(6))
			continue
		}
		if err := after.check(crash.fsys, c.rng.IntN(8) == 0); err != nil {
			c.err = fmt.Errorf("before %s (power cut: %v), depth %d, sync %v, trouble %d: %w", crash.at, crash.cut, depth, h.sync, c.trouble, err)
		}
	}
}

// program is a program that uses a broker.
type program struct {
	*crasher
	fsys   *disktest.Model
	b      *Broker
	faults *faultLog

	mu sync.Mutex // guards h, which the observer reads from other goroutines
	h  *crashHistory
}

// run uses the broker for a number of steps.
func (p *program) run(steps int) error {
	if err := p.open(); err != nil {
		return err
	}
	for range steps {
		if err := p.step(); err != nil {
			return err
		}
	}
	return nil
}

func (p *program) open() (err error) {
	p.b, err = Open(p.h.config(p.fsys, p.faults))
	if err != nil && p.h.failing {
		p.relieve()
		p.b, err = Open(p.h.config(p.fsys, p.faults))
	}
	if err != nil {
		return err
	}
	p.mu.Lock()
	after := p.h.clone() // comparing may call the observer
	p.mu.Unlock()
	if err := after.compare(p.b); err != nil && !p.h.failing {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	after.clock = p.h.clock
	*p.h = *after
	return nil
}

func (p *program) do(f func(*crashHistory)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f(p.h)
}

// worry starts the trouble.
func (p *program) worry() {
	switch p.trouble {
	case full:
		p.fsys.Room(max(1, p.fsys.Used()+p.rng.Int64N(2000)))
	case failing:
		var mu sync.Mutex
		rng := rand.New(rand.NewPCG(p.rng.Uint64(), 5))
		p.fsys.Fault(func(call, name string) error {
			mu.Lock()
			defer mu.Unlock()
			switch {
			case !disktest.Changes(call) || rng.IntN(8) > 0:
				return nil
			case call == "write" && rng.IntN(2) == 0:
				return io.ErrShortWrite
			}
			return syscall.ENOSPC
		})
	default:
		return
	}
	p.do(func(h *crashHistory) { h.failing = true })
}

// relieve ends the trouble. After a failed sync, nothing is written until the next start.
func (p *program) relieve() {
	p.fsys.Room(0)
	p.fsys.Fault(nil)
	p.do(func(h *crashHistory) { h.failing = false })
}

// refused reports whether a request has failed. A failure without a known reason is a test error.
func (p *program) refused(what string, code int16, err error) (bool, error) {
	if err == nil && code == 0 {
		return false, nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil && p.h.failing && (code == kerr.KafkaStorageError.Code || code == kerr.CoordinatorNotAvailable.Code) {
		return true, nil
	}
	return true, fmt.Errorf("%s: code %d, %w", what, code, err)
}

func (p *program) step() error {
	all := p.b.topics.all()
	if len(all) == 0 {
		return p.createTopic()
	}
	t := all[p.rng.IntN(len(all))]
	n := p.rng.Int32N(t.Partitions)
	switch p.rng.IntN(24) {
	default:
		return p.send(t, n, p.rng.IntN(2) == 0)()
	case 0, 1:
		return p.manyAtOnce(all)
	case 2, 3:
		return p.createTopic()
	case 4:
		return p.deleteTopic(t)
	case 5:
		return p.addPartitions(t)
	case 6:
		return p.alterTopic(t)
	case 7, 8:
		return p.changeACL()
	case 9, 10:
		return p.commit(crashGroups[p.rng.IntN(len(crashGroups))], t)()
	case 11:
		return p.deleteRecords(t, n)
	case 12, 13:
		p.do(func(h *crashHistory) { h.clock.Add(time.Duration(p.rng.IntN(8000)) * time.Millisecond) })
		return p.maintain()
	case 14, 15:
		return p.newProducer()
	case 16:
		return p.restart()
	case 17, 18:
		if p.h.failing && p.trouble == full {
			p.relieve()
		} else if !p.h.failing {
			p.worry()
		}
		return nil
	}
}

func (p *program) createTopic() error {
	name := crashTopics[p.rng.IntN(len(crashTopics))]
	if p.b.topics.named(name) != nil {
		return nil
	}
	var instance int
	partitions, retention := 1+p.rng.Int32N(2), p.retention()
	p.do(func(h *crashHistory) {
		h.made++
		instance = h.made
		at(h.topics, name).try(topicValue(instance, partitions, retention))
	})
	request := createTopics(newTopic(name, partitions, "retention.ms", retention, "internal.segment.bytes", "600", "retention.bytes", strconv.FormatInt(instanceBase+int64(instance), 10)))
	response, err := call[*kmsg.CreateTopicsResponse](p.b, request)
	if err != nil {
		return err
	}
	if refused, err := p.refused("create a topic", response.Topics[0].ErrorCode, nil); refused {
		return err
	}
	p.do(func(h *crashHistory) { h.topics[name].ack(true) })
	return nil
}

func (p *program) retention() string { return []string{"-1", "1000", "5000"}[p.rng.IntN(3)] }

func (p *program) deleteTopic(t *topic) error {
	p.do(func(h *crashHistory) { at(h.topics, t.Name).try("") })
	request := kmsg.NewPtrDeleteTopicsRequest()
	request.Topics = []kmsg.DeleteTopicsRequestTopic{{TopicID: t.ID}}
	response, err := call[*kmsg.DeleteTopicsResponse](p.b, request)
	if err != nil {
		return err
	}
	if refused, err := p.refused("delete a topic", response.Topics[0].ErrorCode, nil); refused {
		return err
	}
	p.do(func(h *crashHistory) { h.topics[t.Name].ack(true) })
	return nil
}

func (p *program) addPartitions(t *topic) error {
	if t.Partitions == 4 {
		return nil
	}
	p.do(func(h *crashHistory) {
		at(h.topics, t.Name).try(topicValue(t.instance(), t.Partitions+1, t.Configs["retention.ms"]))
	})
	request := kmsg.NewPtrCreatePartitionsRequest()
	request.Topics = []kmsg.CreatePartitionsRequestTopic{{Topic: t.Name, Count: t.Partitions + 1}}
	response, err := call[*kmsg.CreatePartitionsResponse](p.b, request)
	if err != nil {
		return err
	}
	if refused, err := p.refused("grow a topic", response.Topics[0].ErrorCode, nil); refused {
		return err
	}
	p.do(func(h *crashHistory) { h.topics[t.Name].ack(true) })
	return nil
}

func (p *program) alterTopic(t *topic) error {
	retention := p.retention()
	if retention == t.Configs["retention.ms"] {
		return nil // nothing would be written, so the answer would say nothing about what is on the disk
	}
	p.do(func(h *crashHistory) {
		at(h.topics, t.Name).try(topicValue(t.instance(), t.Partitions, retention))
	})
	config := kmsg.NewIncrementalAlterConfigsRequestResourceConfig()
	config.Name, config.Op, config.Value = "retention.ms", kmsg.IncrementalAlterConfigOpSet, &retention
	resource := kmsg.NewIncrementalAlterConfigsRequestResource()
	resource.ResourceType, resource.ResourceName, resource.Configs = kmsg.ConfigResourceTypeTopic, t.Name, append(resource.Configs, config)
	request := kmsg.NewPtrIncrementalAlterConfigsRequest()
	request.Resources = append(request.Resources, resource)
	response, err := call[*kmsg.IncrementalAlterConfigsResponse](p.b, request)
	if err != nil {
		return err
	}
	if refused, err := p.refused("alter a topic", response.Resources[0].ErrorCode, nil); refused {
		return err
	}
	p.do(func(h *crashHistory) { h.topics[t.Name].ack(true) })
	return nil
}

func (p *program) changeACL() error {
	x := crashACLs[p.rng.IntN(len(crashACLs))]
	var code int16
	if p.b.acls.has(x) {
		p.do(func(h *crashHistory) { at(h.acls, x).try("") })
		filter := kmsg.NewDeleteACLsRequestFilter()
		filter.ResourceType, filter.ResourcePatternType, filter.ResourceName = x.resource, x.kind, &x.name
		filter.Operation, filter.PermissionType = x.operation, x.permission
		request := kmsg.NewPtrDeleteACLsRequest()
		request.Filters = append(request.Filters, filter)
		response, err := call[*kmsg.DeleteACLsResponse](p.b, request)
		if err != nil {
			return err
		}
		code = response.Results[0].ErrorCode
	} else {
		p.do(func(h *crashHistory) { at(h.acls, x).try("there") })
		request := kmsg.NewPtrCreateACLsRequest()
		request.Creations = append(request.Creations, creation(x))
		response, err := call[*kmsg.CreateACLsResponse](p.b, request)
		if err != nil {
			return err
		}
		code = response.Results[0].ErrorCode
	}
	if refused, err := p.refused("change an ACL", code, nil); refused {
		return err
	}
	p.do(func(h *crashHistory) { h.acls[x].ack(true) })
	return nil
}

// commit prepares a commit. No other commit may be in flight for the same group.
func (p *program) commit(group string, t *topic) func() error {
	offsets := map[int32]int64{}
	p.do(func(h *crashHistory) {
		for n := range t.Partitions {
			if offset := p.rng.Int64N(1000); p.rng.IntN(2) == 0 {
				offsets[n] = offset
				at(h.commits, crashCommit{group, t.instance(), n}).try(strconv.FormatInt(offset, 10))
			}
		}
	})
	return func() error {
		code, err := commitTo(p.b, group, t, offsets)
		if refused, err := p.refused("commit", code, err); refused {
			return err
		}
		p.do(func(h *crashHistory) {
			for n := range offsets {
				h.commits[crashCommit{group, t.instance(), n}].ack(h.sync)
			}
		})
		return nil
	}
}

// send prepares a batch.
func (p *program) send(t *topic, partition int32, idempotent bool) func() error {
	key := crashLog{t.instance(), partition}
	var sent *crashBatch
	p.do(func(h *crashHistory) {
		l := h.log(key)
		who := nobody
		var values []string
		for range 1 + p.rng.IntN(3) {
			h.batches++
			values = append(values, fmt.Sprint(h.batches, " ", strings.Repeat("x", h.batches*h.batches*7%5*40)))
		}
		if idempotent {
			id := p.rng.Int64N(3)
			if p.b.topics.named(t.Name) != nil { // after a crash, according to the log
				for _, known := range t.partitions[partition].Producers() {
					if known.ID == id {
						who = from{id, known.Epoch, known.LastSequence + 1}
					}
				}
			}
			if who == nobody {
				who = from{id, 0, 0}
			}
		}
		sent = &crashBatch{from: who, values: values, epoch: h.epoch}
		l.batches = append(l.batches, sent)
	})
	return func() error {
		raw := newBatch(0, sent.from, sent.values...)
		got, err := produceTo(p.b, t, partition, raw)
		if refused, err := p.refused("produce", got.ErrorCode, err); refused {
			return err
		}
		p.do(func(h *crashHistory) {
			l := h.log(key)
			i := slices.Index(l.batches, sent)
			if i < 0 {
				panic("the history was replaced")
			}
			sent.state, sent.offset = acknowledged, got.BaseOffset
			if l.end = max(l.end, sent.last()+1); h.sync {
				l.safe = l.end
			}
		})
		return nil
	}
}

// manyAtOnce sends batches and commits concurrently.
func (p *program) manyAtOnce(all []*topic) error {
	var todo []func() error
	for range 1 + p.rng.IntN(4) {
		t := all[p.rng.IntN(len(all))]
		todo = append(todo, p.send(t, p.rng.Int32N(t.Partitions), false))
	}
	for _, group := range crashGroups {
		if p.rng.IntN(2) == 0 {
			todo = append(todo, p.commit(group, all[p.rng.IntN(len(all))]))
		}
	}
	errs := make([]error, len(todo))
	var wg sync.WaitGroup
	for i, f := range todo {
		wg.Go(func() { errs[i] = f() })
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (p *program) deleteRecords(t *topic, n int32) error {
	log, key := t.partitions[n], crashLog{t.instance(), n}
	start := log.Start()
	before := start + p.rng.Int64N(log.End()-start+1)
	p.do(func(h *crashHistory) { l := h.log(key); l.started = max(l.started, before) })
	request := kmsg.NewPtrDeleteRecordsRequest()
	request.Topics = []kmsg.DeleteRecordsRequestTopic{{Topic: t.Name, Partitions: []kmsg.DeleteRecordsRequestTopicPartition{{Partition: n, Offset: before}}}}
	response, err := call[*kmsg.DeleteRecordsResponse](p.b, request)
	if err != nil {
		return err
	}
	got := response.Topics[0].Partitions[0]
	if refused, err := p.refused("delete records", got.ErrorCode, nil); refused {
		return err
	}
	if got.LowWatermark != before {
		return fmt.Errorf("delete records before %d: the log starts at %d", before, got.LowWatermark)
	}
	if before > start { // otherwise nothing is written
		p.do(func(h *crashHistory) { h.log(key).start = before })
	}
	return nil
}

// maintain lets records expire.
func (p *program) maintain() error {
	type part struct {
		key   crashLog
		log   interface{ Start() int64 }
		start int64
		most  int64
	}
	var parts []part
	for _, t := range p.b.topics.all() {
		for n, log := range t.partitions {
			parts = append(parts, part{crashLog{t.instance(), int32(n)}, log, log.Start(), log.End()})
		}
	}
	p.do(func(h *crashHistory) {
		for i := range parts {
			l := h.log(parts[i].key)
			l.started, parts[i].most = parts[i].most, l.started
		}
	})
	p.b.maintainOnce()
	p.b.deleteExpiredOffsets()
	for _, part := range parts {
		start := part.log.Start()
		p.do(func(h *crashHistory) {
			l := h.log(part.key)
			if !h.failing {
				l.started = max(part.most, start)
			}
			if start > part.start {
				l.start = start
			}
		})
	}
	return nil
}

func (p *program) newProducer() error {
	response, err := call[*kmsg.InitProducerIDResponse](p.b, kmsg.NewPtrInitProducerIDRequest())
	if err != nil {
		return err
	}
	if refused, err := p.refused("new producer", response.ErrorCode, nil); refused {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if response.ProducerID < p.h.nextID {
		return fmt.Errorf("producer ID %d is given out twice, or after %d", response.ProducerID, p.h.nextID-1)
	}
	p.h.nextID = response.ProducerID + 1
	return nil
}

// restart stops the broker cleanly, so that everything is on disk, and starts it again.
func (p *program) restart() error {
	err := p.b.Close()
	switch {
	case err != nil && !p.h.failing:
		return err
	case err == nil && !p.h.failing:
		p.do(func(h *crashHistory) {
			for _, registers := range []map[crashCommit]*register{h.commits} {
				for _, r := range registers {
					r.safe = r.acked
				}
			}
			for _, l := range h.logs {
				l.safe = l.end
			}
		})
	}
	if p.trouble == failing {
		p.relieve()
	}
	return p.open()
}

var crashProgram = disktest.Program(func(seed uint64, counted *atomic.Int64, states int64, skip func(site string) bool) error {
	c := crasher{rng: rand.New(rand.NewPCG(seed, 1)), trouble: trouble(seed / 2 % uint64(troubles)), states: counted, limit: states, skip: skip}
	c.run(disktest.New(), newCrashHistory(seed%2 == 0), 0, programSteps)
	return c.err
})

// TestCrashStates checks the durability of the whole broker: acknowledged data survives a kill and,
// with SyncWrites, a power cut. Topics, their settings and ACLs survive both in any case.
func TestCrashStates(t *testing.T) {
	crashProgram.Keeps(t, testkit.Scaled(t, "BROKER_CRASH_STATES", 20_000))
}

// TestEachSyncIsNeeded disables one call of Sync in this package after another, and requires that
// the crash test then finds a violation. The one in openTopics is not needed as long as package
// groups afterwards creates and syncs a directory next to it.
func TestEachSyncIsNeeded(t *testing.T) {
	for _, function := range []string{"openFiles", "finishDeletion"} {
		t.Run(function, func(t *testing.T) {
			crashProgram.Misses(t, 100_000, func(site string) bool { return strings.Contains(site, "."+function+" ") })
		})
	}
}

// TestFailedSyncThenRestart makes a sync fail, together with the calls that clean up after it, at each of the
// first positions. As on Linux, what was not synced then looks as if it were: no later sync writes it, and another
// process on the same machine can read it. The broker is opened again and used. After a power cut nothing that was
// acknowledged may be missing.
func TestFailedSyncThenRestart(t *testing.T) {
	t.Parallel()
	for _, call := range []string{"sync", "syncdir"} {
		for at := range 30 {
			for also := range 4 {
				fsys := disktest.New()
				fsys.Fault(disktest.FailTogether(call, at, also))
				rng := rand.New(rand.NewPCG(uint64(at), uint64(also)))
				h := newCrashHistory(true)
				var err error
				for _, h.failing = range []bool{true, false} {
					p := &program{crasher: &crasher{rng: rng}, fsys: fsys, h: h, faults: newFaultLog()}
					err = p.run(30)
					fsys = fsys.Kill()
					if p.b != nil {
						p.b.Close()
					}
				}
				h.cut = true
				for range 20 {
					if err == nil {
						err = h.clone().check(fsys.Cut(rng), false)
					}
				}
				if err != nil {
					t.Errorf("%s %d fails with %d calls after it: %v", call, at, also, err)
				}
			}
		}
	}
}
