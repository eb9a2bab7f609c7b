package kfakedir

import (
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"path/filepath"

	"github.com/diaspora-streams/diaspora/internal/batch"
)

// log is the content of a partition's segments.
type log struct {
	segments  []Segment
	first     int64 // the offset at which the first file begins
	next      int64 // the offset after the last batch
	covered   int64 // the offset after the last segment; lower than next if the last batches are left out
	epoch     int32 // leader epoch of the last batch
	producers map[int64]*producerState
	fits      bool // whether the snapshot matches this log
	warnings  []string
}

// maxWarnings is the number of warnings about one partition that are shown.
const maxWarnings = 20

// scanner checks the segments of a partition, in order.
type scanner struct {
	log
	tp           topicPartition
	buf          []byte  // shared by all files
	bases        []int64 // of all segments
	snap         *snapshot
	compacted    bool
	aborted      map[int64]bool // base offsets of batches to leave out; nil in the first pass, which looks for transactions
	transactions transactions

	sawEnd, sawTime bool // a batch ends where the snapshot says; a batch has the snapshot's timestamp
	unlisted        int  // number of warnings above maxWarnings
}

func (r *reader) newScanner(tp topicPartition, snap *snapshot, bases []int64) *scanner {
	if r.buf == nil {
		r.buf = make([]byte, 0, sourceBytes)
	}
	s := &scanner{tp: tp, buf: r.buf, snap: snap, bases: bases, compacted: r.compacted[tp.topic]}
	s.producers = make(map[int64]*producerState)
	s.transactions = transactions{open: make(map[int64]*transaction), aborted: make(map[int64]bool)}
	if len(bases) > 0 {
		s.first, s.next, s.covered = bases[0], bases[0], bases[0]
	}
	return s
}

func (s *scanner) warn(format string, args ...any) {
	if len(s.warnings) == maxWarnings {
		s.unlisted++
		return
	}
	s.warnings = append(s.warnings, fmt.Sprintf("%s: %s", s.tp, fmt.Sprintf(format, args...)))
}

// finish completes the scan after the last file.
func (s *scanner) finish() {
	s.transactions.abortOpen()
	if len(s.aborted) > 0 {
		s.warn("%d batches of transactions that were aborted or never finished are left out", len(s.aborted))
	}
	if s.unlisted > 0 {
		s.warnings = append(s.warnings, fmt.Sprintf("%s: %d more warnings are not shown", s.tp, s.unlisted))
	}
	s.fits = s.sawEnd && s.sawTime
	for _, base := range s.bases {
		// Segments written after the snapshot begin at its end or later.
		s.fits = s.fits && (base >= s.snap.End || s.snap.hasSegment(base))
	}
}

// file scans the i-th file.
func (s *scanner) file(dir string, i int) error {
	path := filepath.Join(dir, s.name(i))
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	src := newSource(f, info.Size(), s.buf)
	seg := Segment{Path: path, Base: s.covered, End: s.covered, Modified: info.ModTime(), size: info.Size()}
	if err := s.batches(src, &seg, i); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if seg.Bytes > 0 {
		s.segments = append(s.segments, seg)
		s.covered = seg.End
	}
	return nil
}

// batches adds the valid batches of the i-th file to seg.
func (s *scanner) batches(src *source, seg *Segment, i int) error {
	inOrder := true // whether the next batch directly follows the last valid one
	for pos := int64(0); pos < src.size; {
		h, state, err := src.batch(pos)
		if err != nil {
			return err
		}
		var patches []patch
		if state == badChecksum {
			if patches, err = s.heal(src, pos, &h); err != nil {
				return err
			}
			if patches != nil {
				state = sound
			}
		}
		if state != sound {
			next, err := src.search(pos, s.next)
			if err != nil {
				return err
			}
			if state == incomplete && next == src.size && i == len(s.bases)-1 {
				s.warn("%s ends with an incomplete batch of %d bytes", s.name(i), next-pos)
			} else {
				s.warn("%s is damaged from byte %d to %d", s.name(i), pos, next)
			}
			pos, inOrder = next, false
			continue
		}
		fits, err := s.fitsIn(src, pos, &h, i, inOrder, &patches)
		if err == nil && fits {
			err = s.take(src, seg, pos, h, patches)
		}
		if err != nil {
			return err
		}
		pos, inOrder = pos+int64(h.Size()), fits
	}
	return nil
}

// fitsIn reports whether the batch can be the next one of the log.
func (s *scanner) fitsIn(src *source, pos int64, h *batch.Header, i int, inOrder bool, patches *[]patch) (bool, error) {
	if !soundCount(*h) {
		s.warn("%s has a batch at byte %d that says it has %d records: it is left out", s.name(i), pos, h.Count)
		return false, nil
	}
	following, err := s.following(src, pos+int64(h.Size()), i)
	if err != nil || h.BaseOffset != s.next && !s.place(pos, h, i, inOrder, following.BaseOffset, patches) {
		return false, err
	}
	s.healEpoch(pos, h, following.LeaderEpoch, patches)
	return true, nil
}

// following returns what is known about the batch that follows at position at: its header, or else
// the base offset of the next file.
func (s *scanner) following(src *source, at int64, i int) (batch.Header, error) {
	h, ok, err := src.header(at)
	if !ok {
		h = batch.Header{BaseOffset: math.MaxInt64, LeaderEpoch: maxEpoch}
	}
	if !ok && at == src.size && i+1 < len(s.bases) {
		h.BaseOffset = s.bases[i+1]
	}
	return h, err
}

// maxEpoch is the highest plausible leader epoch. The old engine had one node, and increased the
// epoch only when an election was requested.
const maxEpoch = 1 << 20

// healEpoch gives a batch the leader epoch of the batch before it if its own contradicts the
// others. Epochs never decrease within a log, and the new log would not accept such a batch. The
// checksum does not cover the epoch, so nothing else reveals the damage.
func (s *scanner) healEpoch(pos int64, h *batch.Header, following int32, patches *[]patch) {
	if s.epoch <= h.LeaderEpoch && (h.LeaderEpoch == s.epoch || h.LeaderEpoch <= following && h.LeaderEpoch <= maxEpoch) {
		return
	}
	s.warn("the batch at offset %d said that its leader epoch was %d: corrected", h.BaseOffset, h.LeaderEpoch)
	h.LeaderEpoch = s.epoch
	*patches = append(*patches, patch{pos + epochAt, binary.BigEndian.AppendUint32(nil, uint32(s.epoch))})
}

// soundCount reports whether a batch has records, and enough offsets for them. In a compacted topic
// it may have fewer records than offsets.
func soundCount(h batch.Header) bool {
	return h.Count > 0 && h.LastOffsetDelta >= h.Count-1
}

// take appends a batch to the log.
func (s *scanner) take(src *source, seg *Segment, pos int64, h batch.Header, patches []patch) error {
	s.next = h.LastOffset() + 1
	s.epoch = h.LeaderEpoch
	if s.next <= s.snap.End {
		s.sawEnd = s.sawEnd || s.next == s.snap.End
		s.sawTime = s.sawTime || h.MaxTimestamp == s.snap.MaxTimestamp
	}
	s.addProducer(h, seg.Modified)
	if s.aborted == nil {
		if err := s.transactions.add(src, pos, h); err != nil {
			return err
		}
	}
	if !s.aborted[h.BaseOffset] {
		seg.add(pos, h, patches)
	}
	return nil
}

// maxGap is the largest plausible number of consecutive missing offsets.
const maxGap = 1 << 40

// place decides where a batch belongs whose base offset is not the expected one. The checksum does
// not cover the base offset, so the offset itself may be damaged. inOrder means that there is no
// damage between this batch and the one before. place returns false if the log cannot contain the
// batch.
//
// Batches follow each other without gaps, except where compaction removed some. So an offset that
// nothing else confirms is treated as damaged.
func (s *scanner) place(pos int64, h *batch.Header, i int, inOrder bool, following int64, patches *[]patch) bool {
	end := s.next + int64(h.LastOffsetDelta) + 1 // where the batch ends if it has the expected offset
	confirmed := h.LastOffset()+1 == following || pos == 0 && h.BaseOffset == s.bases[i]
	possible := s.next <= h.BaseOffset && h.BaseOffset <= min(maxOffset, s.next+maxGap) && h.LastOffset() < following
	switch {
	case possible && (confirmed || s.compacted || !inOrder):
		if !s.compacted {
			s.warn("records are lost, offsets %s", offsets(s.next, h.BaseOffset))
		}
		return true
	case inOrder && (following == end || !confirmed && !s.compacted):
		s.warn("the batch with the offsets %s said that its offset was %d: corrected", offsets(s.next, end), h.BaseOffset)
		h.BaseOffset = s.next
		*patches = append(*patches, patch{pos, binary.BigEndian.AppendUint64(nil, uint64(s.next))})
		return true
	case 0 <= h.BaseOffset && h.BaseOffset < s.next:
		s.warn("%s has a second batch for the offsets %s, at byte %d: it is left out", s.name(i), offsets(h.BaseOffset, h.LastOffset()+1), pos)
	default:
		s.warn("%s has a batch at byte %d that says it has the offset %d: it is left out", s.name(i), pos, h.BaseOffset)
	}
	return false
}

func (s *scanner) name(i int) string { return fmt.Sprintf("%d.dat", s.bases[i]) }

// maxHealed is the size of the largest batch that is repaired. Such a batch is read into memory.
const maxHealed = 64 << 20

// heal returns the patches that make a batch match its checksum, or nil if the batch is damaged
// beyond repair.
func (s *scanner) heal(src *source, pos int64, h *batch.Header) ([]patch, error) {
	if h.Size() > maxHealed {
		return nil, nil
	}
	b := make([]byte, h.Size())
	if _, err := src.file.ReadAt(b, pos); err != nil {
		return nil, err
	}
	if attributes, ok := healedAttributes(b, *h); ok {
		s.warn("the batch at offset %d had wrong attributes: corrected", h.BaseOffset)
		h.Attributes = h.Attributes&^0xff | int16(attributes)
		return []patch{{pos + attributesAt + 1, []byte{attributes}}}, nil
	}
	if !hasChecksumOfOldEngine(b, *h) {
		return nil, nil
	}
	s.warn("the batch at offset %d had a checksum that did not match its timestamps: corrected", h.BaseOffset)
	return []patch{{pos + checksumAt, binary.BigEndian.AppendUint32(nil, checksum(b[attributesAt:]))}}, nil
}

// Positions of the fields in a batch that are changed or checked.
const (
	epochAt      = 12
	checksumAt   = 17
	attributesAt = 21
)

// healedAttributes returns the attributes with which a batch matches its checksum, if there are
// any.
func healedAttributes(b []byte, h batch.Header) (attributes byte, ok bool) {
	sum := checksum(b[attributesAt:])
	var flips [8]uint32 // the effect of flipping one bit of the attributes on the checksum
	for bit := range flips {
		b[attributesAt+1] ^= 1 << bit
		flips[bit] = sum ^ checksum(b[attributesAt:])
		b[attributesAt+1] ^= 1 << bit
	}
	for flipped := 1; flipped < 1<<8; flipped++ {
		found := sum
		for bit, flip := range flips {
			if flipped>>bit&1 != 0 {
				found ^= flip
			}
		}
		if found == h.CRC {
			return b[attributesAt+1] ^ byte(flipped), true
		}
	}
	return 0, false
}

// hasChecksumOfOldEngine reports whether the old engine itself made the checksum of a batch wrong.
// In a batch with the attribute LogAppendTime it overwrote both timestamps and did not update the
// checksum. The producer's timestamps are lost, so the old checksum cannot be verified. A batch is
// accepted as valid if its timestamps are equal, as the engine set them, and its records are
// complete, with no byte left over.
func hasChecksumOfOldEngine(b []byte, h batch.Header) bool {
	const codecs, appendTime, transactional = 7, 1 << 3, 1 << 4
	known := h.Attributes&^(codecs|appendTime|transactional) == 0
	return known && h.LogAppendTime() && h.BaseTimestamp == h.MaxTimestamp && wholeRecords(b, h)
}

// wholeRecords reports whether a batch contains all its records and nothing else.
func wholeRecords(b []byte, h batch.Header) bool {
	n := int32(0)
	err := batch.Records(b, func(r batch.Record) bool {
		if r.OffsetDelta != n {
			return false
		}
		n++
		return true
	})
	return err == nil && n == h.Count && soundCount(h)
}

// transactions determines which batches of a partition belong to aborted transactions. The old
// engine's own record of that was wrong after a kill.
type transactions struct {
	open    map[int64]*transaction // by producer
	aborted map[int64]bool         // by base offset
}

type transaction struct {
	epoch   int16
	batches []int64 // base offsets
}

func (t *transactions) add(src *source, pos int64, h batch.Header) error {
	switch {
	case h.Control():
		commit, err := commits(src, pos, h)
		if err != nil {
			return err
		}
		t.end(h.ProducerID, commit)
	case h.Transactional():
		// After a kill the engine aborted open transactions and raised the epoch, but wrote no
		// marker.
		if tx := t.open[h.ProducerID]; tx != nil && tx.epoch != h.ProducerEpoch {
			t.end(h.ProducerID, false)
		}
		tx := t.open[h.ProducerID]
		if tx == nil {
			tx = &transaction{epoch: h.ProducerEpoch}
			t.open[h.ProducerID] = tx
		}
		tx.batches = append(tx.batches, h.BaseOffset)
	}
	return nil
}

func (t *transactions) end(producer int64, commit bool) {
	if tx := t.open[producer]; tx != nil && !commit {
		for _, base := range tx.batches {
			t.aborted[base] = true
		}
	}
	delete(t.open, producer)
}

func (t *transactions) abortOpen() {
	for producer := range t.open {
		t.end(producer, false)
	}
}

// commits reports whether a control batch is a commit marker.
func commits(src *source, pos int64, h batch.Header) (bool, error) {
	const markerMost, commitType = 1 << 10, 1
	if h.Size() > markerMost {
		return false, nil
	}
	b := make([]byte, h.Size())
	if _, err := src.file.ReadAt(b, pos); err != nil {
		return false, err
	}
	commit := false
	err := batch.Records(b, func(r batch.Record) bool {
		commit = len(r.Key) == 4 && binary.BigEndian.Uint16(r.Key[2:]) == commitType
		return false
	})
	return commit && err == nil, nil
}
