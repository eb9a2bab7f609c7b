package broker

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/diaspora-streams/diaspora/internal/batch"
	"github.com/diaspora-streams/diaspora/internal/testkit"
)

const (
	envDir      = "BROKER_TEST_DIR"
	envMaintain = "BROKER_TEST_MAINTAIN"
	envSync     = "BROKER_TEST_SYNC"
)

// TestMain runs the tests, or serves as the process that TestKill kills.
func TestMain(m *testing.M) {
	if dir := os.Getenv(envDir); dir != "" {
		if err := runVictim(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// runVictim serves a broker on the parent's listener until it is killed.
func runVictim(dir string) error {
	listener, err := net.FileListener(os.NewFile(3, "listener"))
	if err != nil {
		return err
	}
	every, err := time.ParseDuration(os.Getenv(envMaintain))
	if err != nil {
		return err
	}
	b, err := Open(Config{Dir: dir, Advertise: listener.Addr().String(), SyncWrites: os.Getenv(envSync) != "", maintainEvery: every})
	if err != nil {
		return err
	}
	made, err := call[*kmsg.CreateTopicsResponse](b, createTopics(
		newTopic(shortTopic, killPartitions, "retention.ms", fmt.Sprint(shortRetention.Milliseconds()), "internal.segment.bytes", "4096"),
		newTopic(keptTopic, killPartitions, "retention.ms", "-1", "internal.segment.bytes", "65536"),
	))
	if err != nil {
		return err
	}
	for _, t := range made.Topics {
		if t.ErrorCode != 0 && t.ErrorCode != kerr.TopicAlreadyExists.Code {
			return fmt.Errorf("create topic %s: %d", t.Topic, t.ErrorCode)
		}
	}
	fmt.Println("ready")
	for {
		client, err := listener.Accept()
		if err != nil {
			return err
		}
		conn, err := b.connect(superUser)
		if err != nil {
			return err
		}
		go func() {
			io.Copy(conn, client)
			conn.Close()
		}()
		go func() {
			io.Copy(client, conn)
			client.Close()
		}()
	}
}

const (
	killPartitions = 2
	shortTopic     = "short" // a topic whose records expire soon
	keptTopic      = "kept"
	shortRetention = time.Second
)

// killed is what the parent knows about the brokers that it kills.
type killed struct {
	t        *testing.T
	dir      string
	listener *os.File
	address  string
	cpu      time.Duration // CPU time of the processes

	mu       sync.Mutex // guards the fields below
	parts    map[topicPartition]*killedPartition
	commits  map[topicPartition][2]int64 // of the consumers' group: the last acknowledged offset, and the last one that was sent
	simple   int64                       // the last offset that verifySimple has committed
	consumed int
	expired  int // number of records that expired before the consumers read them
	faults   []string
}

// killedPartition is what is known about a partition. None of it may change.
type killedPartition struct {
	start, end int64
	records    map[int64]killedRecord // by offset
	offsets    map[string]int64       // of values
}

type killedRecord struct {
	value string
	sent  time.Time // zero if it is not known to be acknowledged
	seen  time.Time
}

func (k *killed) fault(format string, args ...any) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.faultLocked(format, args...)
}

func (k *killed) faultLocked(format string, args ...any) {
	if len(k.faults) < 10 {
		k.faults = append(k.faults, fmt.Sprintf(format, args...))
	}
}

func (k *killed) failed() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.faults) > 0
}

// note records that a record is at an offset. The caller holds mu.
func (k *killed) note(tp topicPartition, offset int64, value string, sent time.Time) {
	p := k.parts[tp]
	if other, ok := p.records[offset]; ok && other.value != value {
		k.faultLocked("%v: offset %d is %q and was %q", tp, offset, value, other.value)
	}
	if other, ok := p.offsets[value]; ok && other != offset {
		k.faultLocked("%v: %q is at %d and at %d", tp, value, other, offset)
	}
	if old := p.records[offset].sent; sent.IsZero() {
		sent = old
	}
	p.records[offset] = killedRecord{value, sent, time.Now()}
	p.offsets[value] = offset
}

// prune forgets records that expired so long ago that no broker can still have them.
func (k *killed) prune() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for tp, p := range k.parts {
		if tp.topic == shortTopic {
			for offset, r := range p.records {
				if time.Since(r.seen) > 10*shortRetention && offset < p.start {
					delete(p.records, offset)
					delete(p.offsets, r.value)
				}
			}
		}
	}
}

// victim is a process that serves a broker.
type victim struct {
	*exec.Cmd
	out io.ReadCloser
}

func (k *killed) startVictim(maintain time.Duration, sync bool) victim {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), envDir+"="+k.dir, envMaintain+"="+maintain.String())
	if sync {
		cmd.Env = append(cmd.Env, envSync+"=1")
	}
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = []*os.File{k.listener}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	testkit.Must(k.t, err)
	return victim{cmd, out}
}

// ready waits until the broker serves.
func (v victim) ready() error {
	line, err := bufio.NewReader(v.out).ReadString('\n')
	if strings.TrimSpace(line) != "ready" {
		return fmt.Errorf("the process does not serve: %q, %w", line, err)
	}
	return nil
}

// kill kills the process, so that it cannot do anything before it ends.
func (k *killed) kill(v victim) {
	v.Process.Kill()
	v.Wait()
	k.cpu += v.ProcessState.UserTime() + v.ProcessState.SystemTime()
}

// TestKill kills the process of a broker again and again, while clients produce and consume,
// records expire after a second, and segments are small. After each kill, everything that was
// acknowledged and has not expired is there in order, once, at the same offset. Starts and ends
// never decrease, and committed offsets are there.
func TestKill(t *testing.T) {
	kills := testkit.Scaled(t, "BROKER_KILLS", 30)
	k := &killed{t: t, dir: t.TempDir(), parts: map[topicPartition]*killedPartition{}, commits: map[topicPartition][2]int64{}}
	for _, topic := range []string{shortTopic, keptTopic} {
		for n := range int32(killPartitions) {
			k.parts[topicPartition{topic, n}] = &killedPartition{records: map[int64]killedRecord{}, offsets: map[string]int64{}}
		}
	}
	// The parent owns the listener, so that clients can connect at any time and the port stays
	// reserved.
	listener := testkit.Listen(t)
	k.address = listener.Addr().String()
	file, err := listener.(*net.TCPListener).File()
	testkit.Must(t, err)
	k.listener = file
	defer k.listener.Close()

	v := k.startVictim(time.Second, false)
	defer func() { k.kill(v) }()
	testkit.Must(t, v.ready())
	ctx, stop := context.WithCancel(t.Context())
	var clients sync.WaitGroup
	var begun sync.WaitGroup
	for writer := range 2 {
		begun.Add(1)
		clients.Go(func() { k.produce(ctx, writer, sync.OnceFunc(begun.Done)) })
	}
	consuming, endConsuming := context.WithCancel(t.Context())
	var consumers sync.WaitGroup
	for range 2 {
		consumers.Go(func() { k.consume(consuming) })
	}
	defer func() { stop(); endConsuming(); clients.Wait(); consumers.Wait() }()

	begun.Wait() // until a client has a producer ID, it takes a broken connection for a failed login
	began, rounds := time.Now(), 0
	for i := 0; i < kills && !k.failed(); i++ {
		if rand.IntN(6) > 0 {
			time.Sleep(time.Duration(rand.IntN(20)) * time.Millisecond)
		}
		k.kill(v)
		v = k.startVictim([]time.Duration{time.Millisecond, 10 * time.Millisecond, time.Second}[rand.IntN(3)], rand.IntN(4) == 0)
		if rand.IntN(5) == 0 { // kill it while it starts
			time.Sleep(time.Duration(rand.IntN(30)) * time.Millisecond)
			continue
		}
		err := v.ready()
		if err == nil {
			err = k.verify(int64(i))
		}
		if err != nil {
			t.Fatalf("after %d kills: %v", i, err)
		}
		rounds++
		if i%50 == 0 {
			k.prune()
		}
	}
	took := time.Since(began)
	k.kill(v)
	v = k.startVictim(10*time.Millisecond, false)
	testkit.Must(t, v.ready())
	stop()
	clients.Wait()
	testkit.Must(t, k.verify(int64(kills)))
	endConsuming()
	consumers.Wait()
	k.verifyKept()
	k.wantExpired()
	k.mu.Lock()
	defer k.mu.Unlock()
	acknowledged := 0
	for _, p := range k.parts {
		for _, r := range p.records {
			if !r.sent.IsZero() {
				acknowledged++
			}
		}
	}
	t.Logf("%d kills in %v, %v of processor time for each start; %d times all was checked; %d records were consumed, %d expired before; %d acknowledged records are known at the end",
		kills, took.Round(time.Millisecond), (k.cpu / time.Duration(kills+1)).Round(time.Millisecond), rounds, k.consumed, k.expired, acknowledged)
	for _, fault := range k.faults {
		t.Error(fault)
	}
}

// client returns a client that retries quickly.
func (k *killed) client(opts ...kgo.Opt) *kgo.Client {
	client, err := kgo.NewClient(append([]kgo.Opt{
		kgo.SeedBrokers(k.address),
		kgo.AlwaysRetryEOF(), // a kill between accept and the first response looks like a wrong configuration
		kgo.ProducerLinger(0),
		kgo.MetadataMinAge(10 * time.Millisecond),
		kgo.RetryBackoffFn(func(int) time.Duration { return 2 * time.Millisecond }),
		kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.MaxBufferedRecords(20),
	}, opts...)...)
	if err != nil {
		panic(err)
	}
	return client
}

// produce produces until ctx ends, and then waits for all acknowledgements. It calls begun after
// the first one.
func (k *killed) produce(ctx context.Context, writer int, begun func()) {
	client := k.client()
	defer client.Close()
	var waiting sync.WaitGroup
	defer waiting.Wait()
	for n := 0; ctx.Err() == nil; n++ {
		tp := topicPartition{shortTopic, rand.Int32N(killPartitions)}
		if n%10 == 0 {
			tp.topic = keptTopic
		}
		value := fmt.Sprint(writer, ".", n, " ", strings.Repeat("x", rand.IntN(300)))
		sent := time.Now()
		waiting.Add(1)
		// It blocks while the maximum number of records is in flight.
		client.Produce(context.Background(), &kgo.Record{Topic: tp.topic, Partition: tp.partition, Value: []byte(value)}, func(r *kgo.Record, err error) {
			defer waiting.Done()
			defer begun()
			k.mu.Lock()
			defer k.mu.Unlock()
			if err != nil {
				k.faultLocked("produce %.20q to %v: %v", value, tp, err)
				return
			}
			k.note(tp, r.Offset, value, sent)
		})
		if n%4 == 0 {
			time.Sleep(time.Millisecond)
		}
	}
}

// consume is a member of a group. It commits what it has consumed.
func (k *killed) consume(ctx context.Context) {
	next := map[topicPartition]int64{} // the offset that this member consumes next; guarded by k.mu
	restart := func(_ context.Context, _ *kgo.Client, lost map[string][]int32) {
		k.mu.Lock()
		defer k.mu.Unlock()
		for topic, partitions := range lost {
			for _, n := range partitions {
				delete(next, topicPartition{topic, n})
			}
		}
	}
	client := k.client(
		kgo.ConsumerGroup("consumers"), kgo.ConsumeTopics(shortTopic, keptTopic), kgo.DisableAutoCommit(), kgo.BlockRebalanceOnPoll(),
		kgo.HeartbeatInterval(100*time.Millisecond), kgo.SessionTimeout(minSessionTimeout), kgo.FetchMaxWait(50*time.Millisecond),
		kgo.OnPartitionsRevoked(restart), kgo.OnPartitionsLost(restart), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
	)
	defer client.CloseAllowingRebalance()
	for ctx.Err() == nil {
		fetches := client.PollFetches(ctx)
		commit := map[string]map[int32]kgo.EpochOffset{}
		k.mu.Lock()
		fetches.EachRecord(func(r *kgo.Record) {
			tp := topicPartition{r.Topic, r.Partition}
			k.note(tp, r.Offset, string(r.Value), time.Time{})
			want, ok := next[tp]
			committed := k.commits[tp]
			switch {
			case ok && r.Offset < want:
				k.faultLocked("%v: offset %d is consumed after %d", tp, r.Offset, want-1)
			case !ok && r.Offset < committed[0]:
				k.faultLocked("%v: offset %d is consumed after a commit of %d", tp, r.Offset, committed[0])
			case ok && r.Offset > want && r.Topic == keptTopic:
				k.faultLocked("%v: offset %d is consumed after %d", tp, r.Offset, want-1)
			case ok:
				k.expired += int(r.Offset - want)
			}
			next[tp] = r.Offset + 1
			k.consumed++
			committed[1] = max(committed[1], r.Offset+1)
			k.commits[tp] = committed
			if commit[r.Topic] == nil {
				commit[r.Topic] = map[int32]kgo.EpochOffset{}
			}
			commit[r.Topic][r.Partition] = kgo.EpochOffset{Epoch: r.LeaderEpoch, Offset: r.Offset + 1}
		})
		k.mu.Unlock()
		if len(commit) > 0 {
			client.CommitOffsetsSync(ctx, commit, func(_ *kgo.Client, _ *kmsg.OffsetCommitRequest, response *kmsg.OffsetCommitResponse, err error) {
				if err == nil {
					k.noteCommits(response, commit)
				}
			})
		}
		client.AllowRebalance()
	}
}

const minSessionTimeout = 6 * time.Second

func (k *killed) noteCommits(response *kmsg.OffsetCommitResponse, commit map[string]map[int32]kgo.EpochOffset) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, t := range response.Topics {
		for _, p := range t.Partitions {
			if p.ErrorCode == 0 {
				tp := topicPartition{t.Topic, p.Partition}
				committed := k.commits[tp]
				committed[0] = max(committed[0], commit[tp.topic][tp.partition].Offset)
				k.commits[tp] = committed
			}
		}
	}
}

// raw returns a connection for the parent's own requests.
func (k *killed) raw() (requestor, func(), error) {
	conn, err := net.Dial("tcp", k.address)
	if err != nil {
		return requestor{}, nil, err
	}
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	return requestor{conn}, func() { conn.Close() }, nil
}

func tellKilled[R kmsg.Response](r requestor, req kmsg.Request, version int16) (R, error) {
	req.SetVersion(version)
	response, err := r.Request(context.Background(), req)
	if err != nil {
		var none R
		return none, fmt.Errorf("request %d: %w", req.Key(), err)
	}
	return response.(R), nil
}

// verify compares what a broker has with what is known.
func (k *killed) verify(life int64) error {
	r, end, err := k.raw()
	if err != nil {
		return err
	}
	defer end()
	for _, topic := range []string{shortTopic, keptTopic} {
		for n := range int32(killPartitions) {
			if err := k.verifyPartition(r, topicPartition{topic, n}, topic == shortTopic); err != nil {
				return err
			}
		}
	}
	if err := k.verifyGroup(r); err != nil {
		return err
	}
	return k.verifySimple(r, life)
}

func (k *killed) verifyPartition(r requestor, tp topicPartition, read bool) error {
	k.mu.Lock()
	known := k.parts[tp]
	least := known.end // the end before the request
	for offset, record := range known.records {
		if !record.sent.IsZero() {
			least = max(least, offset+1)
		}
	}
	k.mu.Unlock()
	start, err := listOffset(r, tp, earliestOffset)
	if err != nil {
		return err
	}
	end, err := listOffset(r, tp, latestOffset)
	if err != nil {
		return err
	}
	if start < known.start || end < least || start > end {
		return fmt.Errorf("%v is %d to %d, and was %d to %d", tp, start, end, known.start, least)
	}
	from, found := max(start, end-200), map[int64]string{}
	if read {
		from = start
	}
	for next := from; next < end; {
		got, err := fetchRaw(r, tp, next)
		if err != nil {
			return err
		}
		if got.ErrorCode == kerr.OffsetOutOfRange.Code && got.LogStartOffset <= next && next < end && read {
			if start, err = listOffset(r, tp, earliestOffset); err != nil {
				return err
			}
			if start <= next {
				return fmt.Errorf("%v: offset %d is out of range; it is %d to %d", tp, next, start, end)
			}
			next = start // it has expired in the meantime
			continue
		}
		batches, err := batchesOf(got.RecordBatches)
		if err != nil || got.ErrorCode != 0 || len(batches) == 0 {
			return fmt.Errorf("%v: fetch from %d of %d: %d batches, code %d, %w", tp, next, end, len(batches), got.ErrorCode, err)
		}
		for _, raw := range batches {
			h, _ := batch.ParseHeader(raw)
			values, err := valuesOf(raw)
			if err != nil || h.BaseOffset > next || len(values) != int(h.LastOffsetDelta)+1 {
				return fmt.Errorf("%v: batch at %d with %d records where %d should be: %w", tp, h.BaseOffset, len(values), next, err)
			}
			for i, value := range values {
				found[h.BaseOffset+int64(i)] = value
			}
			next = h.LastOffset() + 1
		}
	}
	now := time.Now()
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, offset := range slices.Sorted(maps.Keys(found)) {
		k.note(tp, offset, found[offset], time.Time{})
	}
	for offset, record := range known.records {
		unexpired := !read || now.Sub(record.sent) <= shortRetention
		if _, ok := found[offset]; !ok && !record.sent.IsZero() && unexpired && offset >= from && offset < least {
			return fmt.Errorf("%v: offset %d is missing; it is %d to %d", tp, offset, start, end)
		}
		if !record.sent.IsZero() && unexpired && offset < start {
			return fmt.Errorf("%v: offset %d has not expired, and it starts at %d", tp, offset, start)
		}
	}
	known.start, known.end = max(known.start, start), max(known.end, end)
	return nil
}

func listOffset(r requestor, tp topicPartition, at int64) (int64, error) {
	p := kmsg.NewListOffsetsRequestTopicPartition()
	p.Partition, p.Timestamp = tp.partition, at
	of := kmsg.NewListOffsetsRequestTopic()
	of.Topic, of.Partitions = tp.topic, append(of.Partitions, p)
	request := kmsg.NewPtrListOffsetsRequest()
	request.Topics = append(request.Topics, of)
	response, err := tellKilled[*kmsg.ListOffsetsResponse](r, request, 7)
	if err != nil {
		return -1, err
	}
	got := response.Topics[0].Partitions[0]
	return got.Offset, kerr.ErrorForCode(got.ErrorCode)
}

func fetchRaw(r requestor, tp topicPartition, offset int64) (got kmsg.FetchResponseTopicPartition, err error) {
	p := kmsg.NewFetchRequestTopicPartition()
	p.Partition, p.FetchOffset, p.PartitionMaxBytes = tp.partition, offset, 1<<20
	of := kmsg.NewFetchRequestTopic()
	of.Topic, of.Partitions = tp.topic, append(of.Partitions, p)
	request := kmsg.NewPtrFetchRequest()
	request.MaxBytes, request.SessionEpoch, request.Topics = 1<<20, -1, append(request.Topics, of)
	response, err := tellKilled[*kmsg.FetchResponse](r, request, 12)
	if err != nil {
		return got, err
	}
	return response.Topics[0].Partitions[0], nil
}

// verifyGroup compares the committed offsets of the consumers.
func (k *killed) verifyGroup(r requestor) error {
	k.mu.Lock()
	before := maps.Clone(k.commits)
	k.mu.Unlock()
	got, err := committed(r, "consumers")
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for tp, committed := range k.commits {
		if got[tp] < before[tp][0] || got[tp] > committed[1] {
			return fmt.Errorf("%v: the committed offset is %d, want %d to %d", tp, got[tp], before[tp][0], committed[1])
		}
	}
	return nil
}

// committed returns the committed offsets of a group.
func committed(r requestor, group string) (map[topicPartition]int64, error) {
	request := kmsg.NewPtrOffsetFetchRequest()
	request.Group = group
	response, err := tellKilled[*kmsg.OffsetFetchResponse](r, request, 7)
	if err != nil {
		return nil, err
	}
	all := map[topicPartition]int64{}
	for _, t := range response.Topics {
		for _, p := range t.Partitions {
			all[topicPartition{t.Topic, p.Partition}] = p.Offset
		}
	}
	return all, kerr.ErrorForCode(response.ErrorCode)
}

// verifySimple commits an offset for a group without members, which the next broker must have.
func (k *killed) verifySimple(r requestor, life int64) error {
	tp := topicPartition{keptTopic, 0}
	got, err := committed(r, "simple")
	if err != nil {
		return err
	}
	if k.simple > 0 && got[tp] != k.simple {
		return fmt.Errorf("the committed offset is %d, want %d", got[tp], k.simple)
	}
	p := kmsg.NewOffsetCommitRequestTopicPartition()
	p.Partition, p.Offset = tp.partition, life+1
	to := kmsg.NewOffsetCommitRequestTopic()
	to.Topic, to.Partitions = tp.topic, append(to.Partitions, p)
	request := kmsg.NewPtrOffsetCommitRequest()
	request.Group, request.Topics = "simple", append(request.Topics, to)
	response, err := tellKilled[*kmsg.OffsetCommitResponse](r, request, 8)
	if err != nil {
		return err
	}
	k.simple = life + 1
	return kerr.ErrorForCode(response.Topics[0].Partitions[0].ErrorCode)
}

// verifyKept reads all records that do not expire. Each acknowledged one is there, and the records
// of each writer are in order.
func (k *killed) verifyKept() {
	r, end, err := k.raw()
	testkit.Must(k.t, err)
	defer end()
	for n := range int32(killPartitions) {
		tp := topicPartition{keptTopic, n}
		found, last := map[int64]string{}, map[string]int{}
		for next := int64(0); ; {
			got, err := fetchRaw(r, tp, next)
			batches, split := batchesOf(got.RecordBatches)
			if err := errors.Join(err, split, kerr.ErrorForCode(got.ErrorCode)); err != nil {
				k.t.Fatalf("%v: fetch from %d: %v", tp, next, err)
			}
			if len(batches) == 0 {
				break
			}
			for _, raw := range batches {
				h, _ := batch.ParseHeader(raw)
				values, err := valuesOf(raw)
				if err != nil || h.BaseOffset != next {
					k.t.Fatalf("%v: batch at %d where %d should be: %v", tp, h.BaseOffset, next, err)
				}
				for i, value := range values {
					found[next+int64(i)] = value
					var writer string
					var number int
					if _, err := fmt.Sscan(strings.Replace(value, ".", " ", 1), &writer, &number); err != nil {
						k.t.Fatalf("%v: %.20q: %v", tp, value, err)
					}
					if before, ok := last[writer]; ok && number <= before {
						k.fault("%v: record %d of writer %s comes after %d", tp, number, writer, before)
					}
					last[writer] = number
				}
				next = h.LastOffset() + 1
			}
		}
		k.mu.Lock()
		for offset, record := range k.parts[tp].records {
			if !record.sent.IsZero() && found[offset] != record.value {
				k.faultLocked("%v: offset %d is %.20q, want %.20q", tp, offset, found[offset], record.value)
			}
		}
		k.mu.Unlock()
	}
}

// wantExpired waits until all records that can expire have expired.
func (k *killed) wantExpired() {
	r, end, err := k.raw()
	testkit.Must(k.t, err)
	defer end()
	for n := range int32(killPartitions) {
		tp := topicPartition{shortTopic, n}
		for {
			start, err := listOffset(r, tp, earliestOffset)
			if err != nil {
				k.t.Fatalf("%v: %v", tp, err)
			}
			last, err := listOffset(r, tp, latestOffset)
			if err != nil {
				k.t.Fatalf("%v: records do not expire: %v", tp, err)
			}
			if start == last {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
}
