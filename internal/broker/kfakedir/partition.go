package kfakedir

import (
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

const partitionsName = "partitions"

// partitionDirs returns the partitions that have a directory, and the names of the directories.
func (r *reader) partitionDirs() (map[topicPartition]string, error) {
	entries, err := os.ReadDir(filepath.Join(r.dir, partitionsName))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	found := make(map[topicPartition]string)
	for _, entry := range entries {
		if tp, ok := parsePartitionDir(entry.Name()); ok && entry.IsDir() {
			found[tp] = filepath.Join(partitionsName, entry.Name())
			continue
		}
		r.warn("%s is not the directory of a partition: it is left out", filepath.Join(partitionsName, entry.Name()))
	}
	return found, nil
}

func parsePartitionDir(name string) (topicPartition, bool) {
	at := strings.LastIndexByte(name, '-')
	if at < 0 {
		return topicPartition{}, false
	}
	topic, err := url.PathUnescape(name[:at])
	n, numberErr := strconv.ParseInt(name[at+1:], 10, 32)
	ok := err == nil && numberErr == nil && 0 <= n && n < maxPartitions && validTopic(topic)
	return topicPartition{topic, int32(n)}, ok && strconv.FormatInt(n, 10) == name[at+1:]
}

// snapshot is the state of a partition at the last clean stop. It may be out of date, because the
// old engine did not remove it at the next start.
type snapshot struct {
	Start        int64 `json:"log_start_offset"`
	End          int64 `json:"high_watermark"`
	Epoch        int32 `json:"epoch"`
	MaxTimestamp int64 `json:"max_timestamp"`
	Segments     []struct {
		Base int64 `json:"base_offset"`
	} `json:"segments"`
}

func (s *snapshot) hasSegment(base int64) bool {
	for _, segment := range s.Segments {
		if segment.Base == base {
			return true
		}
	}
	return false
}

// readPartition reads the partition in the directory dir. dir may be empty, because the old engine
// created the directory of a partition late.
func (r *reader) readPartition(tp topicPartition, dir string) (Partition, error) {
	if dir == "" {
		return r.emptyPartition(tp), nil
	}
	bases, end, err := r.segmentFiles(dir)
	if err != nil {
		return Partition{}, err
	}
	snap, err := readJSON[snapshot](r, filepath.Join(dir, "snapshot.json"))
	if err != nil {
		return Partition{}, err
	}
	known := snap != nil
	if !known {
		snap = new(snapshot)
	}
	log, err := r.scan(tp, dir, bases, snap)
	if err != nil {
		return Partition{}, fmt.Errorf("%s: %w", tp, err)
	}
	r.data.Warnings = append(r.data.Warnings, log.warnings...)
	p := Partition{Number: tp.partition, Start: r.start(tp, log, snap), Epoch: log.epoch, Segments: log.segments}
	p.Segments = slices.DeleteFunc(p.Segments, func(s Segment) bool { return s.End <= p.Start })
	p.End = max(log.next, end)
	for _, found := range []int64{snap.End, snap.Start, r.endElsewhere(tp, known)} {
		if len(p.Segments) == 0 || found <= p.End+maxGap {
			p.End = max(p.End, believed(found))
		}
	}
	if len(bases) > 0 && p.End > log.next {
		r.warn("%s: the records at its end are lost, offsets %s", tp, offsets(log.next, p.End))
	}
	if n := len(p.Segments); n > 0 {
		p.Segments[n-1].fill(p.End, p.Epoch)
	} else {
		p.Start, p.Epoch = p.End, max(p.Epoch, min(snap.Epoch, maxEpoch))
	}
	p.Producers = r.producers(tp, log, p)
	return p, nil
}

// start returns the start of a log. Deleted records stay in their file until all records in it are
// deleted, and only the snapshot tells which they are. A snapshot that does not match the log must
// not be applied: if the partition started again at offset 0, the snapshot would delete its
// records.
func (r *reader) start(tp topicPartition, log *log, snap *snapshot) int64 {
	start := believed(snap.Start)
	if start <= log.first {
		return log.first
	}
	if log.fits && start <= log.next {
		return start
	}
	if len(log.segments) > 0 {
		r.warn("%s: records before offset %d that were deleted may be there again", tp, start)
	}
	return log.first
}

// emptyPartition returns a partition without a directory.
func (r *reader) emptyPartition(tp topicPartition) Partition {
	end := r.endElsewhere(tp, false)
	p := Partition{Number: tp.partition, Start: end, End: end}
	p.Producers = r.producers(tp, new(log), p)
	return p
}

// endElsewhere returns the end of a partition according to committed offsets and, unless there is a
// snapshot, to producers' state. A snapshot is more reliable than that state, because the old
// engine recorded a producer's batch before it tried to write it.
func (r *reader) endElsewhere(tp topicPartition, snapshot bool) int64 {
	end := r.committed[tp]
	if snapshot {
		return end
	}
	for _, w := range r.windows[tp] {
		for _, b := range w.batches() {
			end = max(end, believed(b.LastOffset+1))
		}
	}
	return end
}

// believed returns an offset, or 0 if the offset is not plausible.
func believed(offset int64) int64 {
	if offset < 0 || offset > maxOffset {
		return 0
	}
	return offset
}

// segmentFiles returns the base offsets of the segment files in a partition's directory, and a
// lower bound of the partition's end. A file is named after the first offset in it, so the end is
// at least the highest name, even if only the index of that segment is left.
func (r *reader) segmentFiles(dir string) (bases []int64, end int64, err error) {
	entries, err := os.ReadDir(filepath.Join(r.dir, dir))
	if err != nil {
		return nil, 0, err
	}
	for _, entry := range entries {
		name, kind, _ := strings.Cut(entry.Name(), ".")
		base, err := strconv.ParseInt(name, 10, 64)
		if err != nil || believed(base) != base || (kind != "dat" && kind != "idx") || strconv.FormatInt(base, 10) != name {
			continue
		}
		end = max(end, base)
		if kind == "dat" && entry.Type().IsRegular() {
			bases = append(bases, base)
		}
	}
	slices.Sort(bases)
	return bases, end, nil
}

// offsets formats the range of offsets from from to to-1.
func offsets(from, to int64) string {
	if to == from+1 {
		return fmt.Sprint(from)
	}
	return fmt.Sprintf("%d to %d", from, to-1)
}

// scan checks the segments of a partition, whose base offsets are bases. If there are transactions
// that were not committed, it scans twice: whether to leave out a batch is known only when its
// transaction ends.
func (r *reader) scan(tp topicPartition, dir string, bases []int64, snap *snapshot) (*log, error) {
	var aborted map[int64]bool
	for {
		s := r.newScanner(tp, snap, bases)
		s.aborted = aborted
		for i := range bases {
			if err := s.file(filepath.Join(r.dir, dir), i); err != nil {
				return nil, err
			}
		}
		s.finish()
		if aborted != nil || len(s.transactions.aborted) == 0 {
			return &s.log, nil
		}
		aborted = s.transactions.aborted
	}
}
