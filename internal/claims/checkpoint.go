package claims

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/diaspora-streams/diaspora"
	"github.com/diaspora-streams/diaspora/internal/disk"
	"github.com/diaspora-streams/diaspora/internal/kafka"
)

// A checkpoint is a file with the state of the ledger up to some record, so that the next start
// reads only newer records. It is never required: if anything is wrong with it, the whole ledger is
// read.
//
// The file holds a header, an entry for each topic, group, key and subject, both encoded by package
// gob, and the SHA-256 of all that. The header identifies the ledger by the ID of its topic and by
// the SHA-256 of the last record that the state includes. A fabric that is ten years old has
// 180,000 entries, and a start has to wait for them. Decoding them from JSON took three times as
// long.
const (
	checkpointFile = "ledger.checkpoint"
	checkpointLock = "ledger.lock"

	// checkpointFormat must be incremented when the entries change, and also when the meaning of
	// records changes, because the state in the file was computed with the old rules.
	checkpointFormat = 3

	checkpointEvery   = 5 * time.Minute // how often one is written, at most
	checkpointRecords = 1000            // if at least that many records were added since
	verifyTimeout     = 15 * time.Second
)

type checkpointHeader struct {
	Format  int
	Topic   kafka.TopicID
	Next    int64             // the offset of the next record
	Record  [sha256.Size]byte // the hash of the record before it
	Skipped int
	Swept   int64
	Entries int
}

// checkpointEntry describes one topic, group, key, subject, blocked subject, Globus group or linked
// identity.
type checkpointEntry struct {
	Topic   string
	Group   string
	Key     *diaspora.AccessKey
	Subject string
	Blocked string

	Phase       phase
	Place       int64
	Owner       string
	Partitions  int
	RetentionMS int64
	Description string
	Time        time.Time
	Hash        keyHash
	Known       bool
	Issued      int
	Hour        int64
	N           int
	Before      int
	By          string
	Why         string

	MaxBytes int64
	DeleteAt int64
	Compact  bool
	Changed  bool
	Public   bool
	Grants   []checkpointGrant // of the topic
	History  []int64           // of the topic
	Offered  string            // to whom the topic is
	Members  []string          // of a Globus group, which Owner names
	Linked   string            // an identity that belongs to the person who signs in as Owner, if to anybody
	Revision string            // the ID of the last record about the group's members, or about the link
}

// checkpointGrant is a grant in a checkpoint.
type checkpointGrant struct {
	Grantee, By, Username string
	Rights                rights
	Since, Expires        time.Time
}

// checkpoint is the content of a checkpoint file.
type checkpoint struct {
	state   *state
	topic   kafka.TopicID
	next    int64
	record  [sha256.Size]byte
	skipped int
}

// checkpoints is the folder of the checkpoint file.
type checkpoints struct {
	fs   disk.FS
	lock io.Closer // nil if another process writes them
}

// openCheckpoints opens the folder, creating it if it does not exist. Of several processes that
// share a folder, one writes checkpoints and all can read them.
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

// write replaces the checkpoint atomically.
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
		c.fs.Remove(temp) // frees the space; if this fails too, the first error matters more
		return err
	}
	return c.fs.Sync()
}

func encodeCheckpoint(to io.Writer, cp checkpoint) error {
	sum := sha256.New()
	out := bufio.NewWriterSize(io.MultiWriter(to, sum), 256<<10)
	values := gob.NewEncoder(out)
	n := 0
	cp.state.entries(func(checkpointEntry) error { n++; return nil })
	if err := values.Encode(checkpointHeader{checkpointFormat, cp.topic, cp.next, cp.record, cp.skipped, cp.state.lastCleanup, n}); err != nil {
		return err
	}
	if err := cp.state.entries(func(e checkpointEntry) error { return values.Encode(e) }); err != nil {
		return err
	}
	if err := out.Flush(); err != nil {
		return err
	}
	_, err := to.Write(sum.Sum(nil))
	return err
}

// entries calls f for each checkpoint entry of the state, until f fails.
func (s *state) entries(f func(checkpointEntry) error) error {
	for name, t := range s.topics {
		e := checkpointEntry{
			Topic: name, Phase: t.phase, Place: t.claimOffset, Owner: t.owner,
			Partitions: t.partitions, RetentionMS: t.retentionMS, Description: t.description, Time: t.claimed,
			MaxBytes: t.maxBytes, DeleteAt: t.deleteAt, Compact: t.compact, Changed: t.changed, Public: t.public, Offered: s.offers[name], History: s.history[name],
		}
		for grantee, g := range s.grants[name] {
			e.Grants = append(e.Grants, checkpointGrant{grantee, g.by, g.username, g.rights, g.since, g.expires})
		}
		if err := f(e); err != nil {
			return err
		}
	}
	for name, g := range s.groups {
		if err := f(checkpointEntry{Group: name, Place: g.claimOffset, Owner: g.owner}); err != nil {
			return err
		}
	}
	for _, k := range s.keys {
		if err := f(checkpointEntry{Key: &k.AccessKey, Hash: k.hash}); err != nil {
			return err
		}
	}
	subjects := make(map[string]struct{}, len(s.keysIssued))
	for subject := range s.subjects {
		subjects[subject] = struct{}{}
	}
	for subject := range s.keysIssued {
		subjects[subject] = struct{}{}
	}
	for subject := range s.recent {
		subjects[subject] = struct{}{}
	}
	for subject := range subjects {
		_, known := s.subjects[subject]
		h := s.recent[subject]
		if err := f(checkpointEntry{Subject: subject, Known: known, Issued: s.keysIssued[subject], Hour: h.hour, N: h.n, Before: h.before}); err != nil {
			return err
		}
	}
	for grantee, revision := range s.revisions {
		e := checkpointEntry{Linked: grantee, Owner: s.links[grantee], Revision: revision}
		if isGroup(grantee) {
			e = checkpointEntry{Members: slices.Collect(maps.Keys(s.members[grantee])), Owner: grantee, Revision: revision}
		}
		if err := f(e); err != nil {
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

// restore adds an entry to the state. texts holds the strings that several keys have in common. It
// does the same as intern, which would be slower here.
func (s *state) restore(e checkpointEntry, texts map[string]string) error {
	switch {
	case e.Topic != "":
		t := topic{e.Phase, e.Place, e.Owner, e.Partitions, e.RetentionMS, e.Description, e.Time, e.MaxBytes, e.DeleteAt, e.Compact, e.Changed, e.Public}
		s.topics[e.Topic] = t
		switch {
		case e.Phase < free || e.Phase > retired:
			return errors.New("a topic's phase is unknown")
		case e.Phase == free:
			s.endedOn(e.Time).names[e.Topic] = struct{}{}
			return nil
		}
		s.countTopic(t, 1)
		for _, g := range e.Grants {
			s.share(e.Topic, g.Grantee, &grant{g.Rights, g.By, g.Since, g.Expires, g.Username})
		}
		if len(e.History) > 0 {
			s.history[e.Topic] = e.History
		}
		if e.Offered != "" {
			s.offers[e.Topic] = e.Offered
		}
	case e.Group != "":
		s.groups[e.Group] = group{e.Place, e.Owner}
		s.groupCount[e.Owner]++
	case e.Key != nil:
		k := accessKey{AccessKey: *e.Key, hash: e.Hash}
		for _, text := range []*string{&k.Owner, &k.Name} {
			if kept, ok := texts[*text]; ok {
				*text = kept
			} else {
				texts[*text] = *text
			}
		}
		s.keys[k.ID] = &k
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
			s.keysIssued[e.Subject] = e.Issued
		}
		if e.N > 0 {
			s.recent[e.Subject] = hourlyCount{e.Hour, e.N, e.Before}
		}
	case e.Linked != "":
		s.link(e.Linked, e.Owner)
		s.revisions[e.Linked] = e.Revision
	case e.Revision != "":
		s.changeMembers(e.Owner, e.Members, nil)
		s.revisions[e.Owner] = e.Revision
	case e.Blocked != "":
		s.blocked[e.Blocked] = block{e.By, e.Why, e.Time}
	default:
		return errors.New("an entry of an unknown kind")
	}
	return nil
}

// errOtherLedger is not a fault: the folder was used with another cluster, or the ledger was created again.
var errOtherLedger = errors.New("it belongs to another ledger")

// read returns the checkpoint of the ledger whose topic has this ID. The error is [fs.ErrNotExist]
// if there is no checkpoint, and otherwise says why it cannot be used.
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
	// Check for damage first, so that the decoder never sees damaged data.
	file := io.NewSectionReader(f, 0, size)
	sum, want := sha256.New(), make([]byte, sha256.Size)
	if _, err := io.CopyN(sum, file, max(0, size-sha256.Size)); err != nil {
		return cp, err
	}
	if _, err := io.ReadFull(file, want); err != nil {
		return cp, fmt.Errorf("it is damaged: it has %d bytes", size)
	}
	if !bytes.Equal(sum.Sum(nil), want) {
		return cp, errors.New("it is damaged: its checksum is wrong")
	}
	values := gob.NewDecoder(bufio.NewReaderSize(io.NewSectionReader(f, 0, size-sha256.Size), 256<<10))
	var header checkpointHeader
	switch err := values.Decode(&header); {
	case err != nil:
		return cp, fmt.Errorf("its header is malformed: %w", err)
	case header.Format != checkpointFormat:
		return cp, fmt.Errorf("it has format %d, and this version knows %d", header.Format, checkpointFormat)
	case header.Topic != ledger:
		return cp, errOtherLedger
	case header.Next < 1:
		return cp, errors.New("its header is malformed: it counts no records")
	}
	cp = checkpoint{state: newState(), topic: ledger, next: header.Next, record: header.Record, skipped: header.Skipped}
	cp.state.lastCleanup = header.Swept
	texts := make(map[string]string)
	for range header.Entries {
		var e checkpointEntry
		if err := values.Decode(&e); err != nil {
			return cp, fmt.Errorf("an entry is malformed: %w", err)
		}
		if err := cp.state.restore(e, texts); err != nil {
			return cp, err
		}
	}
	return cp, nil
}

// clone returns a copy that later changes of the state do not affect. It has only what entries
// needs.
func (s *state) clone() *state {
	c := *s
	c.topics, c.groups, c.keys = maps.Clone(s.topics), maps.Clone(s.groups), maps.Clone(s.keys)
	c.subjects, c.blocked, c.keysIssued, c.recent = maps.Clone(s.subjects), maps.Clone(s.blocked), maps.Clone(s.keysIssued), maps.Clone(s.recent)
	c.grants, c.members = cloneNested(s.grants), cloneNested(s.members)
	c.links, c.revisions, c.offers = maps.Clone(s.links), maps.Clone(s.revisions), maps.Clone(s.offers)
	c.history = maps.Clone(s.history)                    // the lists are only appended to
	c.sharedWith, c.memberOf, c.linkedTo = nil, nil, nil // derived from the others, as are these:
	c.topicCount, c.groupCount, c.keysOf, c.partitions, c.ended = nil, nil, nil, nil, nil
	return &c
}

func cloneNested[V any](m map[string]map[string]V) map[string]map[string]V {
	c := make(map[string]map[string]V, len(m))
	for name, inner := range m {
		c[name] = maps.Clone(inner)
	}
	return c
}

// loadCheckpoint loads the checkpoint of the ledger, if there is a usable one. Otherwise the ledger
// is read from the beginning.
func (l *ledger) loadCheckpoint(ctx context.Context, opts []kgo.Opt) {
	cp, err := l.checkpoints.read(l.topicID)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return
	case errors.Is(err, errOtherLedger):
		l.diagnostics.Info("the checkpoint belongs to another ledger; reading the whole ledger, which only makes this start a little slower")
		return
	}
	if err == nil {
		err = l.verify(ctx, opts, cp)
	}
	if err != nil {
		l.diagnostics.Warn("cannot use the ledger's checkpoint; reading the whole ledger", "err", err)
		return
	}
	l.state, l.next, l.saved, l.skipped = cp.state, cp.next, cp.next, cp.skipped
	l.diagnostics.Debug("reading the ledger from its checkpoint", "offset", cp.next)
}

// verify returns an error if the checkpoint is not of this ledger. It checks that the ledger still
// holds the last record that the checkpoint includes.
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
		return fmt.Errorf("it is ahead of the ledger, which ends at offset %d", end)
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

// saveCheckpoint writes a checkpoint if at least minRecords records were added since the last one.
func (l *ledger) saveCheckpoint(minRecords int64) {
	if l.checkpoints == nil || l.checkpoints.lock == nil {
		return
	}
	l.mu.Lock()
	usable := l.broken == nil || errors.Is(l.broken, errStopped)
	if !usable || l.next-l.saved < minRecords {
		l.mu.Unlock()
		return
	}
	cp := checkpoint{state: l.state.clone(), topic: l.topicID, next: l.next, record: sha256.Sum256(l.last), skipped: l.skipped}
	l.mu.Unlock()
	if err := l.checkpoints.write(cp); err != nil {
		l.diagnostics.Warn("cannot write the ledger's checkpoint; the next start reads more of the ledger", "err", err)
		return
	}
	l.mu.Lock()
	l.saved = cp.next
	l.mu.Unlock()
}

// checkpointLoop writes checkpoints until ctx ends.
func (l *ledger) checkpointLoop(ctx context.Context) {
	ticker := time.NewTicker(checkpointEvery)
	defer ticker.Stop()
	for {
		l.saveCheckpoint(checkpointRecords)
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

// closeCheckpoints writes a last checkpoint and closes the folder. l is nil if the ledger was not
// opened; then closeCheckpoints does nothing.
func (l *ledger) closeCheckpoints() {
	if l == nil || l.checkpoints == nil {
		return
	}
	l.saveCheckpoint(1)
	if err := l.checkpoints.close(); err != nil {
		l.diagnostics.Warn("cannot close the folder of the ledger's checkpoint", "err", err)
	}
}
