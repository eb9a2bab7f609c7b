package broker

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/diaspora-streams/diaspora/internal/broker/kfakedir"
	"github.com/diaspora-streams/diaspora/internal/commitlog"
	"github.com/diaspora-streams/diaspora/internal/disk"
	"github.com/diaspora-streams/diaspora/internal/groups"
	"github.com/diaspora-streams/diaspora/internal/journal"
)

// Earlier versions of the broker stored their data in another layout, which package kfakedir reads.
// The first start with such a directory converts it:
//
//  1. Records, committed offsets and the generations of groups are written to new files, next to the
//     old ones.
//  2. Everything else is written to the journal in meta/, in one append. From then on the new files
//     are the valid ones.
//  3. The old files are moved to oldFilesDir, which is removed if there were no warnings.
//
// If a conversion is interrupted before step 2, the next start begins it again. If it is interrupted
// in step 3, the next start moves the remaining files, and keeps all of them, because it does not know
// whether there were warnings.

// oldFilesDir is the directory that the old files are moved to.
const oldFilesDir = "before-conversion"

// convert converts the data directory if it has the old layout.
func (b *Broker) convert() error {
	if b.cfg.Dir == "" {
		return nil
	}
	found, err := kfakedir.Found(b.cfg.Dir)
	if err != nil || !found {
		return err
	}
	keep := true // if an earlier start was interrupted in step 3
	if b.journaled.broker.Epoch == 0 {
		b.cfg.Diagnostics.Info("converting the data directory of an earlier version", "dir", b.cfg.Dir)
		data, err := kfakedir.Read(b.cfg.Dir)
		if err == nil {
			err = b.convertData(data)
		}
		if err != nil {
			return fmt.Errorf("convert the data directory of an earlier version: %w", err)
		}
		for _, warning := range data.Warnings {
			b.cfg.Diagnostics.Warn("converting the data directory of an earlier version", "warning", warning)
		}
		keep = len(data.Warnings) > 0
	}
	return b.moveOldFiles(keep)
}

func (b *Broker) convertData(data *kfakedir.Data) error {
	for _, name := range []string{"topics", "groups"} {
		if err := disk.RemoveAll(b.files, name); err != nil {
			return err
		}
	}
	topics := make(map[string]topicRecord)
	self := brokerRecord{ClusterID: cmp.Or(data.ClusterID, b.cfg.ClusterID), NextProducerID: data.NextProducerID}
	var entries []journal.Entry
	for _, t := range data.Topics {
		record := topicRecord{Name: t.Name, ID: t.ID, Partitions: int32(len(t.Partitions)), Configs: t.Configs}
		if record.ID == (topicID{}) {
			record.ID = newTopicID()
		}
		topics[t.Name] = record
		entry, err := record.entry()
		if err != nil {
			return err
		}
		entries = append(entries, entry)
		for _, p := range t.Partitions {
			self.Epoch = max(self.Epoch, p.Epoch)
		}
	}
	for _, a := range data.ACLs {
		x := acl{pattern{a.ResourceType, a.Pattern, a.ResourceName}, a.Principal, a.Host, a.Operation, a.Permission}
		if r := x.invalid(); r != nil {
			data.Warnings = append(data.Warnings, fmt.Sprintf("ACL %+v is skipped: %s", a, *r.reason))
			continue
		}
		entries = append(entries, journal.Entry{Key: x.key(), Value: []byte{}})
	}
	if err := b.convertRecords(data.Topics, topics); err != nil {
		return err
	}
	epoch, err := b.convertGroups(data.Groups, topics)
	if err != nil {
		return err
	}
	self.Epoch = max(self.Epoch, epoch, 1)
	entry, err := self.entry()
	if err != nil {
		return err
	}
	entries = append(entries, entry)
	if err := b.meta.Append(entries...); err != nil {
		return err
	}
	for _, entry := range entries {
		if err := b.loadMeta(entry); err != nil {
			return err
		}
	}
	return nil
}

// convertRecords creates a log for each partition from the old segments.
func (b *Broker) convertRecords(old []kfakedir.Topic, topics map[string]topicRecord) error {
	files := b.files.Sub("topics")
	if err := errors.Join(files.Make(), files.SyncParent()); err != nil {
		return err
	}
	var converting errgroup.Group
	converting.SetLimit(2 * runtime.GOMAXPROCS(0))
	for _, t := range old {
		for _, p := range t.Partitions {
			converting.Go(func() error {
				if err := b.convertPartition(files, directoryName(topics[t.Name].ID, p.Number), &p); err != nil {
					return fmt.Errorf("topic %q, partition %d: %w", t.Name, p.Number, err)
				}
				return nil
			})
		}
	}
	return converting.Wait()
}

func (b *Broker) convertPartition(files disk.FS, name string, p *kfakedir.Partition) error {
	dir := files.Sub(name)
	if err := errors.Join(dir.Make(), dir.SyncParent()); err != nil {
		return err
	}
	for i, s := range p.Segments {
		to := filepath.Join(b.cfg.Dir, "topics", name, fmt.Sprintf("%020d.log", s.Base))
		put := s.LinkOrCopy
		if i == len(p.Segments)-1 {
			put = s.Copy // new records are appended to this file, so it must not be a hard link to the old one
		}
		if err := put(to); err != nil {
			return err
		}
	}
	if len(p.Segments) == 0 { // without records, the name of an empty segment says what the next offset is
		if err := disk.Replace(dir, fmt.Sprintf("%020d.log", p.End), nil, true); err != nil {
			return err
		}
	}
	// Open rebuilds everything else from the segments.
	log, err := commitlog.Open(commitlog.Options{FS: dir, Sync: true, Diagnostics: b.cfg.Diagnostics})
	if err != nil {
		return err
	}
	if log.Start() < p.Start {
		_, err = log.DeleteRecords(p.Start)
	}
	if start, end := log.Start(), log.End(); err == nil && (start != p.Start || end != p.End) {
		err = fmt.Errorf("converted offsets are %d to %d, want %d to %d", start, end, p.Start, p.End)
	}
	return errors.Join(err, log.Close())
}

// convertGroups writes the journal of the groups: their committed offsets, and the last generation of
// each classic group. The next generation is larger than that, so a member that joined before the
// conversion is rejected. It returns the largest leader epoch among the offsets.
func (b *Broker) convertGroups(old []kfakedir.Group, topics map[string]topicRecord) (epoch int32, err error) {
	j, err := journal.Open(journal.Options{FS: b.files.Sub("groups"), Sync: true}, func(journal.Entry) error { return nil })
	if err != nil {
		return 0, err
	}
	for _, g := range old {
		var entries []journal.Entry
		if g.Kind == "classic" {
			empty := groups.EmptyGroup{Group: g.ID, ProtocolType: g.ProtocolType, Generation: g.Generation, Since: time.Now()}
			entries = append(entries, empty.Entry())
		}
		for _, o := range g.Offsets {
			t, ok := topics[o.Topic]
			if !ok {
				continue // the topic was deleted
			}
			c := groups.CommittedOffset{
				Group: g.ID, Topic: o.Topic, TopicID: t.ID, Partition: o.Partition, Offset: o.Offset, LeaderEpoch: o.LeaderEpoch, Committed: o.Time,
			}
			if o.Metadata != nil {
				c.Metadata = *o.Metadata
			}
			if o.Time.IsZero() {
				c.Committed = time.Now()
			}
			entries = append(entries, c.Entry())
			epoch = max(epoch, o.LeaderEpoch)
		}
		if err := j.Append(entries...); err != nil {
			return 0, errors.Join(err, j.Close())
		}
	}
	return epoch, j.Close()
}

// moveOldFiles moves the old files into the directory oldFilesDir. It removes that directory unless
// keep is set.
func (b *Broker) moveOldFiles(keep bool) error {
	infos, err := b.files.List()
	if err != nil {
		return err
	}
	old := b.files.Sub(oldFilesDir)
	if err := old.Make(); err != nil {
		return err
	}
	for _, info := range infos {
		switch name := info.Name(); name {
		case ".", "lock", "meta", "groups", "topics", oldFilesDir:
		default:
			if err := os.Rename(filepath.Join(b.cfg.Dir, name), filepath.Join(b.cfg.Dir, oldFilesDir, name)); err != nil {
				return err
			}
		}
	}
	if keep {
		b.cfg.Diagnostics.Warn("keeping the files of the earlier version", "dir", filepath.Join(b.cfg.Dir, oldFilesDir))
		return errors.Join(old.Sync(), b.files.Sync())
	}
	return errors.Join(disk.RemoveAll(b.files, oldFilesDir), b.files.Sync())
}
