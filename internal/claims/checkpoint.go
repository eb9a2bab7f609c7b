package claims

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"maps"
	"runtime"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/disk"
	"github.com/diaspora-streams/diaspora/internal/kafka"
)

// A checkpoint is a file with what the ledger up to some record amounts to, so that the next start
// reads only what is newer. It is never needed: whatever is wrong with it, the ledger is
// read whole.
//
// The file is JSON, a value on each line: a header, an entry for each topic, group, key and
// subject, and the SHA-256 of all that as a string. The header says from which ledger it
// is: the ID of its topic, and the SHA-256 of the last record that counts.
const (
	checkpointFile = "ledger.checkpoint"
	checkpointLock = "ledger.lock"

	// checkpointFormat is to be raised when entries change, and when records come to mean something
	// else: the state in the file has been made by the rules of its time.
	checkpointFormat = 1

	checkpointEvery   = 5 * time.Minute // how often one is written, at most
	checkpointRecords = 1000            // if that many records came since
	verifyTimeout     = 15 * time.Second
)

type checkpointHeader struct {
	Format  int    `json:"format"`
	Topic   string `json:"topic"`
	Next    int64  `json:"next"`   // the offset of the next record
	Record  string `json:"record"` // the hash of the one before
	Skipped int    `json:"skipped"`
	Swept   int64  `json:"swept"`
	Entries int    `json:"entries"`
}

// checkpointEntry is about one topic, group, key, subject or blocked subject.
type checkpointEntry struct {
	Topic   string              `json:"topic,omitempty"`
	Group   string              `json:"group,omitempty"`
	Key     *diaspora.AccessKey `json:"key,omitempty"`
	Subject string              `json:"subject,omitempty"`
	Blocked string              `json:"blocked,omitempty"`

	Phase       phase     `json:"phase,omitempty"`
	Place       int64     `json:"place,omitempty"`
	Owner       string    `json:"owner,omitempty"`
	Partitions  int       `json:"partitions,omitempty"`
	RetentionMS int64     `json:"retention_ms,omitempty"`
	Description string    `json:"description,omitempty"`
	Time        time.Time `json:"time,omitzero"`
	Hash        keyHash   `json:"hash,omitzero"`
	Known       bool      `json:"known,omitempty"`
	Issued      int       `json:"issued,omitempty"`
	Hour        int64     `json:"hour,omitempty"`
	N           int       `json:"n,omitempty"`
	Before      int       `json:"before,omitempty"`
	By          string    `json:"by,omitempty"`
	Why         string    `json:"why,omitempty"`
}

// checkpoint is what a file holds.
type checkpoint struct {
	state   *state
	topic   kafka.TopicID
	next    int64
	record  [sha256.Size]byte
	skipped int
}

// checkpoints is the folder that they are in.
type checkpoints struct {
	fs   disk.FS
	lock io.Closer // nil if another process writes them
}

// openCheckpoints returns the folder, which it makes when missing. Of several processes with the
// same folder, one writes and all read.
func openCheckpoints(dir string) (*checkpoints, error) {
	fsys, err := disk.New(dir)
	if err != nil {
		return nil, err
	}
	if err := fsys.Make(); err != nil {
		return nil, errors.Join(err, fsys.Close())
	}
	lock, err := fsys.Lock(checkpointLock)
	if err != nil && !errors.Is(err, disk.ErrInUse) {
		return nil, errors.Join(err, fsys.Close())
	}
	return &checkpoints{fsys, lock}, nil
}

func (c *checkpoints) close() error {
	if c.lock == nil {
		return c.fs.Close()
	}
	return errors.Join(c.lock.Close(), c.fs.Close())
}

// write replaces the checkpoint, as a whole or not at all.
func (c *checkpoints) write(cp checkpoint) error {
	const temp = checkpointFile + ".tmp"
	if err := c.fs.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := c.fs.Create(temp)
	if err != nil {
		return err
	}
	err = encodeCheckpoint(io.NewOffsetWriter(f, 0), cp)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = c.fs.Rename(temp, checkpointFile)
	}
	if err != nil {
		c.fs.Remove(temp) // gives the space back; the first error counts
		return err
	}
	return c.fs.Sync()
}

func encodeCheckpoint(to io.Writer, cp checkpoint) error {
	sum := sha256.New()
	out := bufio.NewWriterSize(io.MultiWriter(to, sum), 256<<10)
	lines := json.NewEncoder(out)
	lines.SetEscapeHTML(false)
	n := 0
	cp.state.entries(func(checkpointEntry) error { n++; return nil })
	err := lines.Encode(checkpointHeader{
		checkpointFormat, hex.EncodeToString(cp.topic[:]), cp.next, hex.EncodeToString(cp.record[:]), cp.skipped, cp.state.swept, n,
	})
	if err != nil {
		return err
	}
	if err := cp.state.entries(func(e checkpointEntry) error { return lines.Encode(e) }); err != nil {
		return err
	}
	if err := out.Flush(); err != nil {
		return err
	}
	_, err = fmt.Fprintf(to, "%q\n", hex.EncodeToString(sum.Sum(nil)))
	return err
}

// entries calls f for each entry of a checkpoint of the state, until f fails.
func (s *state) entries(f func(checkpointEntry) error) error {
	for name, t := range s.topics {
		if err := f(checkpointEntry{
			Topic: name, Phase: t.phase, Place: t.place, Owner: t.owner,
			Partitions: t.partitions, RetentionMS: t.retentionMS, Description: t.description, Time: t.claimed,
		}); err != nil {
			return err
		}
	}
	for name, g := range s.groups {
		if err := f(checkpointEntry{Group: name, Place: g.place, Owner: g.owner}); err != nil {
			return err
		}
	}
	for _, k := range s.keys {
		if err := f(checkpointEntry{Key: &k.AccessKey, Hash: k.hash}); err != nil {
			return err
		}
	}
	subjects := make(map[string]struct{}, len(s.issued))
	for subject := range s.subjects {
		subjects[subject] = struct{}{}
	}
	for subject := range s.issued {
		subjects[subject] = struct{}{}
	}
	for subject := range s.hours {
		subjects[subject] = struct{}{}
	}
	for subject := range subjects {
		_, known := s.subjects[subject]
		h := s.hours[subject]
		if err := f(checkpointEntry{Subject: subject, Known: known, Issued: s.issued[subject], Hour: h.hour, N: h.n, Before: h.before}); err != nil {
			return err
		}
	}
	for subject, b := range s.blocked {
		if err := f(checkpointEntry{Blocked: subject, By: b.by, Why: b.why, Time: b.since}); err != nil {
			return err
		}
	}
	return nil
}

// restore takes an entry back.
func (s *state) restore(e checkpointEntry) error {
	switch {
	case e.Topic != "":
		s.topics[e.Topic] = topic{e.Phase, e.Place, e.Owner, e.Partitions, e.RetentionMS, e.Description, e.Time}
		switch {
		case e.Phase < free || e.Phase > releasing:
			return errors.New("a topic's phase is unknown")
		case e.Phase == free:
			s.endedOn(e.Time).names[e.Topic] = struct{}{}
			return nil
		}
		s.owns[e.Owner]++
		if e.Partitions > 0 {
			s.partitions[e.Owner] += e.Partitions
		}
	case e.Group != "":
		s.groups[e.Group] = group{e.Place, e.Owner}
		s.leads[e.Owner]++
	case e.Key != nil:
		k := accessKey{AccessKey: *e.Key, hash: e.Hash}
		k.Owner, k.Name = shared(k.Owner), shared(k.Name)
		s.keys[k.ID] = k
		if !k.live() {
			s.endedOn(k.Ended).keys[k.ID] = struct{}{}
			return nil
		}
		if s.keysOf[k.Owner] == nil {
			s.keysOf[k.Owner] = make(map[string]string)
		}
		s.keysOf[k.Owner][k.Name] = k.ID
	case e.Subject != "":
		if e.Known {
			s.subjects[e.Subject] = struct{}{}
		}
		if e.Issued > 0 {
			s.issued[e.Subject] = e.Issued
		}
		if e.N > 0 {
			s.hours[e.Subject] = hourly{e.Hour, e.N, e.Before}
		}
	case e.Blocked != "":
		s.blocked[e.Blocked] = block{e.By, e.Why, e.Time}
	default:
		return errors.New("an entry is about nothing")
	}
	return nil
}

// read returns the checkpoint of the ledger with this topic. The error is [fs.ErrNotExist] if there is
// none, and otherwise says why it cannot be used.
func (c *checkpoints) read(ledger kafka.TopicID) (cp checkpoint, err error) {
	f, err := c.fs.Open(checkpointFile, false)
	if err != nil {
		return cp, err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return cp, err
	}
	sum := sha256.New()
	in := bufio.NewReaderSize(io.NewSectionReader(f, 0, size), 256<<10)
	var header checkpointHeader
	if err := readLine(in, sum, &header); err != nil {
		return cp, err
	}
	cp = checkpoint{state: newState(), topic: ledger, next: header.Next, skipped: header.Skipped}
	n, err := hex.Decode(cp.record[:], []byte(header.Record)[:min(len(header.Record), 2*sha256.Size)])
	switch {
	case header.Format != checkpointFormat:
		return cp, fmt.Errorf("it has format %d, and this version knows %d", header.Format, checkpointFormat)
	case header.Topic != hex.EncodeToString(ledger[:]):
		return cp, errors.New("it is of another ledger")
	case err != nil || n != sha256.Size || header.Next < 1:
		return cp, errors.New("its header is malformed")
	}
	cp.state.swept = header.Swept
	for left := header.Entries; left > 0; {
		entries, err := readEntries(in, sum, min(left, 4096))
		if err != nil {
			return cp, err
		}
		for _, e := range entries {
			if err := cp.state.restore(e); err != nil {
				return cp, err
			}
		}
		left -= len(entries)
	}
	want := hex.EncodeToString(sum.Sum(nil))
	var got string
	if err := readLine(in, sum, &got); err != nil {
		return cp, err
	}
	if _, err := in.ReadByte(); got != want || err != io.EOF {
		return cp, errors.New("it is damaged: its checksum is wrong")
	}
	return cp, nil
}

// readEntries reads n entries. Decoding them takes most of the time of a start, and so is done on all
// processors.
func readEntries(in *bufio.Reader, sum hash.Hash, n int) ([]checkpointEntry, error) {
	lines := make([][]byte, n)
	for i := range lines {
		line, err := nextLine(in, sum)
		if err != nil {
			return nil, err
		}
		lines[i] = bytes.Clone(line)
	}
	const share = 256 // of lines, for one goroutine at a time
	entries := make([]checkpointEntry, n)
	var work errgroup.Group
	work.SetLimit(runtime.GOMAXPROCS(0))
	for from := 0; from < n; from += share {
		work.Go(func() error {
			for i := from; i < min(from+share, n); i++ {
				if err := decodeLine(lines[i], &entries[i]); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return entries, work.Wait()
}

// readLine reads a JSON value that has a line of its own.
func readLine(in *bufio.Reader, sum hash.Hash, into any) error {
	line, err := nextLine(in, sum)
	if err != nil {
		return err
	}
	return decodeLine(line, into)
}

// nextLine returns the next line, which is good until the next read.
func nextLine(in *bufio.Reader, sum hash.Hash) ([]byte, error) {
	line, err := in.ReadSlice('\n')
	if err != nil {
		return nil, fmt.Errorf("it is damaged: %w", err) // a line has less than 16 KiB
	}
	sum.Write(line)
	return line, nil
}

func decodeLine(line []byte, into any) error {
	if err := json.Unmarshal(line, into); err != nil {
		return fmt.Errorf("it is damaged: %w", err)
	}
	return nil
}

// clone returns a copy that the state's changes do not touch.
func (s *state) clone() *state {
	c := *s
	c.topics, c.groups, c.keys = maps.Clone(s.topics), maps.Clone(s.groups), maps.Clone(s.keys)
	c.subjects, c.blocked, c.issued, c.hours = maps.Clone(s.subjects), maps.Clone(s.blocked), maps.Clone(s.issued), maps.Clone(s.hours)
	c.owns, c.leads, c.keysOf, c.partitions, c.ended = nil, nil, nil, nil, nil // made from the others
	return &c
}

// startFrom takes a checkpoint of the ledger, if there is one that fits. Otherwise the ledger
// is read from its beginning.
func (l *ledger) startFrom(ctx context.Context, opts []kgo.Opt) {
	cp, err := l.checkpoints.read(l.topicID)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err == nil {
		err = l.verify(ctx, opts, cp)
	}
	if err != nil {
		l.diagnostics.Warn("the checkpoint of the ledger is not used, and the ledger is read whole", "err", err)
		return
	}
	l.state, l.next, l.saved, l.skipped = cp.state, cp.next, cp.next, cp.skipped
	l.diagnostics.Debug("the ledger is read from a checkpoint on", "offset", cp.next)
}

// verify returns why a checkpoint is not of this ledger: the last record that it counts must be there.
func (l *ledger) verify(ctx context.Context, opts []kgo.Opt, cp checkpoint) error {
	ctx, cancel := context.WithTimeout(ctx, verifyTimeout)
	defer cancel()
	last := cp.next - 1
	client, err := kgo.NewClient(slices.Concat(opts, ledgerOpts(), []kgo.Opt{
		kgo.FetchMaxPartitionBytes(64 << 10),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{LedgerTopic: {0: kgo.NewOffset().At(last)}}),
	})...)
	if err != nil {
		return err
	}
	defer client.Close()
	end, err := l.cluster.EndOffset(ctx, LedgerTopic, 0)
	if err != nil {
		return err
	}
	if end <= last {
		return fmt.Errorf("it is ahead of the ledger: that ends at offset %d", end)
	}
	for {
		fetches := client.PollFetches(ctx)
		for _, r := range fetches.Records() {
			if hash := sha256.Sum256(r.Value); r.Offset != last || !bytes.Equal(hash[:], cp.record[:]) {
				return fmt.Errorf("the ledger has another record at offset %d", last)
			}
			return nil
		}
		if err := fetches.Err(); errors.Is(err, kerr.OffsetOutOfRange) || ctx.Err() != nil {
			return fmt.Errorf("the record at offset %d cannot be read: %w", last, err)
		}
	}
}

// save writes a checkpoint if at least so many records came since the last one.
func (l *ledger) save(least int64) {
	if l.checkpoints == nil || l.checkpoints.lock == nil {
		return
	}
	l.mu.Lock()
	usable := l.broken == nil || errors.Is(l.broken, errStopped)
	if !usable || l.next-l.saved < least {
		l.mu.Unlock()
		return
	}
	cp := checkpoint{state: l.state.clone(), topic: l.topicID, next: l.next, record: sha256.Sum256(l.last), skipped: l.skipped}
	l.mu.Unlock()
	if err := l.checkpoints.write(cp); err != nil {
		l.diagnostics.Warn("the checkpoint of the ledger could not be written; the next start reads more of it", "err", err)
		return
	}
	l.mu.Lock()
	l.saved = cp.next
	l.mu.Unlock()
}

// keepSaved writes checkpoints until ctx ends.
func (l *ledger) keepSaved(ctx context.Context) {
	ticker := time.NewTicker(checkpointEvery)
	defer ticker.Stop()
	for {
		l.save(checkpointRecords)
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

// closeCheckpoints writes the last checkpoint. It does nothing on nil, which is a ledger that was
// not opened.
func (l *ledger) closeCheckpoints() {
	if l == nil || l.checkpoints == nil {
		return
	}
	l.save(1)
	if err := l.checkpoints.close(); err != nil {
		l.diagnostics.Warn("the folder with the checkpoint of the ledger could not be closed", "err", err)
	}
}
