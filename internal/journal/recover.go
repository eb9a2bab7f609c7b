package journal

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/diaspora-streams/diaspora/internal/disk"
)

const (
	logSuffix      = ".log"
	snapshotSuffix = ".snapshot"
	tempSuffix     = ".tmp"
	numberDigits   = 20
)

func fileName(number uint64, suffix string) string {
	return fmt.Sprintf("%0*d%s", numberDigits, number, suffix)
}

// parseName returns the number of a file with the given suffix.
func parseName(name, suffix string) (number uint64, ok bool) {
	digits, ok := strings.CutSuffix(name, suffix)
	if !ok || len(digits) != numberDigits || strings.Trim(digits, "0123456789") != "" {
		return 0, false
	}
	number, err := strconv.ParseUint(digits, 10, 64)
	return number, err == nil
}

// Open opens the journal in a directory, or creates one. It calls load for each entry: first for
// those of the snapshot, then for the later changes, in order. The last entry of a key applies. The
// slices are valid until load returns.
//
// Open cuts off an incomplete end of the log, which a crash has left. Any other damage is an error,
// [ErrDamaged], and Open then changes nothing on the disk. Other errors are [ErrVersion], those of
// load, and those of the file system.
func Open(o Options, load func(Entry) error) (*Journal, error) {
	if o.CompactBytes == 0 {
		o.CompactBytes = defaultCompactBytes
	}
	o.CompactBytes = max(o.CompactBytes, headerBytes+1) // an empty segment cannot be compacted
	if o.Diagnostics == nil {
		o.Diagnostics = slog.New(slog.DiscardHandler)
	}
	j := &Journal{opts: o, fs: o.FS, log: o.Diagnostics, retryAfter: retryAfter}
	if err := j.open(load); err != nil {
		return nil, fmt.Errorf("open the journal: %w", err)
	}
	return j, nil
}

func (j *Journal) open(load func(Entry) error) (err error) {
	if err := j.fs.Make(); err != nil {
		return err
	}
	if err := j.fs.SyncParent(); err != nil {
		return fmt.Errorf("sync the directory's parent: %w", err)
	}
	r := replay{fs: j.fs, load: load, log: j.log, write: true, rewrite: j.opts.Sync}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.close())
		}
	}()
	if err := r.findSnapshot(); err != nil {
		return err
	}
	if err := r.openSegments(math.MaxUint64); err != nil {
		return err
	}
	if err := r.loadSnapshot(); err != nil {
		return err
	}
	if err := r.loadSegments(); err != nil {
		return err
	}
	if err := r.repair(); err != nil {
		return err
	}
	j.sequence, j.snapshot, j.dirty = r.sequence, r.snapshotBytes, !j.opts.Sync
	j.base, j.baseFirst = r.base, r.baseFirst
	for _, s := range r.segments {
		j.logBytes += s.size
	}
	if err := j.activate(&r); err != nil {
		return err
	}
	if err := j.renewSnapshot(); err != nil {
		return errors.Join(err, j.active.file.Close())
	}
	j.removeBefore(r.first())
	return nil
}

// renewSnapshot makes the name of the newest snapshot durable, before the files that it replaces are
// removed. If the sync of the directory after its creation has failed, the name may only exist in
// memory, and another sync would not write it, but another change of the name does.
//
// If some of those files are missing, their removal had begun, so the name is durable.
func (j *Journal) renewSnapshot() error {
	infos, err := j.fs.List()
	if err != nil || j.base == 0 {
		return err
	}
	before := uint64(0) // the snapshot before
	segments := map[uint64]bool{}
	for _, info := range infos {
		if n, ok := parseName(info.Name(), snapshotSuffix); ok && n < j.base {
			before = max(before, n)
		}
		if n, ok := parseName(info.Name(), logSuffix); ok {
			segments[n] = true
		}
	}
	for n := max(before, 1); n < j.base; n++ {
		if !segments[n] {
			return nil
		}
	}
	name := fileName(j.base, snapshotSuffix)
	// After a crash between the two the older files still are the journal.
	if err := j.fs.Rename(name, name+tempSuffix); err != nil {
		return err
	}
	if err := j.fs.Rename(name+tempSuffix, name); err != nil {
		return err
	}
	return j.fs.Sync()
}

// activate sets the segment to append to.
func (j *Journal) activate(r *replay) error {
	n := len(r.segments)
	if n > 0 && !r.torn && r.segments[n-1].size > headerBytes {
		j.active = r.segments[n-1].segment
		r.segments = r.segments[:n-1]
		return r.close()
	}
	number := r.first()
	switch {
	case n > 0 && r.torn:
		// Do not append after a torn end: a power cut could bring back the bytes that were cut off.
		// A new segment has another id, so old bytes cannot pass for its frames.
		number = r.segments[n-1].number + 1
	case n > 0:
		// The segment has no frames. Its creation may have failed, so that its name and header would
		// not be durable. Replace it.
		number = r.segments[n-1].number
	}
	active, err := j.createSegment(number)
	if err != nil {
		return err
	}
	active.first = j.sequence
	j.active = active
	j.logBytes += active.size
	return r.close()
}

// createSegment creates a segment without frames, or replaces one. The segment and its name are
// durable when it returns. After an error there may be a segment without frames, which is harmless.
func (j *Journal) createSegment(number uint64) (_ *segment, err error) {
	name := fileName(number, logSuffix)
	temp := name + tempSuffix
	if err := j.fs.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	f, err := j.fs.Create(temp)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
			j.fs.Remove(temp)
		}
	}()
	header, seed := newHeader(logKind, number)
	if _, err := f.WriteAt(header, 0); err != nil {
		return nil, err
	}
	if err := f.Sync(); err != nil {
		return nil, err
	}
	if err := j.fs.Rename(temp, name); err != nil {
		return nil, err
	}
	if err := j.fs.Sync(); err != nil {
		return nil, err
	}
	return &segment{number: number, file: f, seed: seed, size: headerBytes}, nil
}

// removeBefore removes the files that the snapshot with this number replaces, and unfinished
// snapshots that a crash has left. A file that cannot be removed is harmless; the next call tries
// again.
func (j *Journal) removeBefore(number uint64) {
	infos, err := j.fs.List()
	for _, info := range infos {
		n, obsolete := parseName(info.Name(), logSuffix)
		if !obsolete {
			n, obsolete = parseName(info.Name(), snapshotSuffix)
		}
		if obsolete && n < number || strings.HasSuffix(info.Name(), tempSuffix) {
			err = errors.Join(err, j.fs.Remove(info.Name()))
		}
	}
	if err != nil {
		j.log.Warn("obsolete files of the journal cannot be removed", "err", err)
	}
}

// replay reads the files of a journal.
type replay struct {
	fs    disk.FS
	load  func(Entry) error
	log   *slog.Logger
	write bool // open segments for writing too
	// rewrite makes repair certain that what was loaded is durable.
	rewrite bool

	base          uint64 // number of the newest snapshot, or 0
	baseFirst     uint64 // sequence number of the first frame after it
	snapshotBytes int64
	segments      []*replayed // segments that the snapshot does not replace, in order
	sequence      uint64      // of the next frame

	torn bool        // the log had a torn end
	drop []*replayed // segments after the torn end
}

// replayed is a segment that is being read.
type replayed struct {
	*segment
	end     int64 // the size of the file
	settled int64 // a frame says that everything before this offset was synced
}

// first returns the number of the oldest segment that is needed.
func (r *replay) first() uint64 { return max(r.base, 1) }

func (r *replay) close() (err error) {
	for _, s := range slices.Concat(r.segments, r.drop) {
		if s.file != nil {
			err = errors.Join(err, s.file.Close())
		}
	}
	r.segments, r.drop = nil, nil
	return err
}

func damaged(name string, at int64, why error) error {
	return fmt.Errorf("%w: %s at offset %d: %w", ErrDamaged, name, at, why)
}

// findSnapshot finds the newest snapshot.
func (r *replay) findSnapshot() error {
	infos, err := r.fs.List()
	for _, info := range infos {
		if n, ok := parseName(info.Name(), snapshotSuffix); ok {
			r.base = max(r.base, n)
		}
	}
	return err
}

// openSegments opens the segments that the snapshot does not replace and whose number is less than
// before.
func (r *replay) openSegments(before uint64) error {
	infos, err := r.fs.List()
	if err != nil {
		return err
	}
	for _, info := range infos {
		if n, ok := parseName(info.Name(), logSuffix); ok && n >= r.base && n < before {
			r.segments = append(r.segments, &replayed{segment: &segment{number: n}})
		}
	}
	slices.SortFunc(r.segments, func(a, b *replayed) int { return cmp.Compare(a.number, b.number) })
	for i, s := range r.segments {
		if want := r.first() + uint64(i); s.number != want {
			return fmt.Errorf("%w: %s is missing", ErrDamaged, fileName(want, logSuffix))
		}
		if s.file, err = r.fs.Open(fileName(s.number, logSuffix), r.write); err != nil {
			return err
		}
		if s.end, err = s.file.Size(); err != nil {
			return err
		}
	}
	if r.base > 0 && len(r.segments) == 0 {
		return fmt.Errorf("%w: %s is missing", ErrDamaged, fileName(r.base, logSuffix))
	}
	return nil
}

// loadSnapshot loads the newest snapshot. A snapshot only gets its name when it is complete, so an
// incomplete one is damaged.
func (r *replay) loadSnapshot() error {
	if r.base == 0 {
		return nil
	}
	name := fileName(r.base, snapshotSuffix)
	f, err := r.fs.Open(name, false)
	if err != nil {
		return err
	}
	defer f.Close()
	if r.snapshotBytes, err = f.Size(); err != nil {
		return err
	}
	seed, err := readHeader(f, snapshotKind, r.base)
	if errors.Is(err, errHeader) {
		return damaged(name, 0, err)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	count := uint64(0)
	scan := newScanner(f, seed, r.snapshotBytes)
	for sequence := uint64(0); ; sequence++ {
		at := scan.at
		found, payload, err := scan.next()
		switch {
		case err == io.EOF:
			return damaged(name, at, errors.New("the end is missing"))
		case err == errTorn || err == nil && found.sequence != sequence:
			return damaged(name, at, errTorn)
		case err != nil:
			return fmt.Errorf("%s: %w", name, err)
		case found.flags&flagEnd != 0:
			entries, next, err := parseEnd(payload)
			if err != nil || entries != count || scan.at != r.snapshotBytes {
				return damaged(name, at, errors.New("the end does not fit"))
			}
			r.sequence, r.baseFirst = next, next
			return nil
		}
		err = parseEntries(payload, func(e Entry) error { count++; return r.load(e) })
		if errors.Is(err, errPayload) {
			return damaged(name, at, err)
		}
		if err != nil {
			return err
		}
	}
}

// parseEnd parses the payload of the last frame of a snapshot.
func parseEnd(payload []byte) (entries, sequence uint64, err error) {
	entries, n := binary.Uvarint(payload)
	if n <= 0 {
		return 0, 0, errPayload
	}
	sequence, m := binary.Uvarint(payload[n:])
	if m <= 0 || n+m != len(payload) {
		return 0, 0, errPayload
	}
	return entries, sequence, nil
}

// readHeader reads the header of a file, and returns the seed of its checksums.
func readHeader(f disk.File, k kind, number uint64) (seed uint32, err error) {
	b := make([]byte, headerBytes)
	n, err := f.ReadAt(b, 0)
	if err != nil && err != io.EOF {
		return 0, err
	}
	return parseHeader(b[:n], k, number)
}

// loadSegments loads the changes in the segments, up to a torn end.
func (r *replay) loadSegments() error {
	for i, s := range r.segments {
		name := fileName(s.number, logSuffix)
		var err error
		s.seed, err = readHeader(s.file, logKind, s.number)
		if errors.Is(err, errHeader) {
			// A crash while a segment was being created leaves such a header. Nothing was appended
			// before the header was synced, and no snapshot begins with this segment.
			if i == len(r.segments)-1 && s.end <= headerBytes && s.number > r.base {
				r.cut(i)
				return nil
			}
			return damaged(name, 0, err)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		s.first = r.sequence
		torn, err := r.loadSegment(s, name)
		if err != nil {
			return err
		}
		if s.settled > 0 {
			for _, before := range r.segments[:i] {
				before.settled = before.size
			}
		}
		if torn {
			return r.tear(i)
		}
	}
	return nil
}

// loadSegment loads the changes in a segment. It reports whether there is an invalid frame before
// the end of the segment; s.size is its offset.
func (r *replay) loadSegment(s *replayed, name string) (torn bool, err error) {
	for scan := newScanner(s.file, s.seed, s.end); ; {
		s.size = scan.at
		found, payload, err := scan.next()
		switch {
		case err == io.EOF:
			return false, nil
		case err == errTorn || err == nil && found.sequence != r.sequence:
			return true, nil
		case err != nil:
			return false, fmt.Errorf("%s: %w", name, err)
		}
		if found.flags&flagSettled != 0 {
			s.settled = s.size
		}
		err = parseEntries(payload, r.load)
		if errors.Is(err, errPayload) {
			return false, damaged(name, s.size, err)
		}
		if err != nil {
			return false, err
		}
		r.sequence++
	}
}

// tear is called if segment i has no valid frame at its size. It decides whether a crash has torn
// the log there, or whether the log is damaged.
func (r *replay) tear(i int) error {
	if name := fileName(r.segments[i].number, logSuffix); i < len(r.segments)-2 {
		return damaged(name, r.segments[i].size, errors.New("no good frame, though it was synced before the last segment was made"))
	}
	lost := 0
	for n, s := range r.segments[i:] {
		name := fileName(s.number, logSuffix)
		if n > 0 {
			var err error
			if s.seed, err = readHeader(s.file, logKind, s.number); errors.Is(err, errHeader) && s.end <= headerBytes {
				continue
			} else if err != nil {
				return damaged(name, 0, err)
			}
			s.size = headerBytes
		}
		scan := newScanner(s.file, s.seed, s.end)
		scan.at = s.size
		for scan.at < scan.end {
			at := scan.at
			found, _, err := scan.next()
			if err == errTorn {
				found, err = scan.search()
				if at = scan.at; err == nil {
					_, _, err = scan.next()
				}
			}
			if err == io.EOF {
				break
			}
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			if found.flags&flagSettled != 0 {
				why := fmt.Errorf("no good frame, though it was synced before %s at offset %d was written", name, at)
				return damaged(fileName(r.segments[i].number, logSuffix), r.segments[i].size, why)
			}
			lost++
		}
	}
	s := r.segments[i]
	if s.end > s.size || lost > 0 {
		r.log.Warn("the journal ends in bytes that were not written whole; they were never synced",
			"file", fileName(s.number, logSuffix), "offset", s.size, "bytes", s.end-s.size, "later", lost)
	}
	r.cut(i + 1)
	return nil
}

// cut marks the segments from i on to be dropped.
func (r *replay) cut(i int) {
	r.torn = true
	r.segments, r.drop = r.segments[:i], r.segments[i:]
}

// repair removes what follows a torn end, and syncs what was loaded.
func (r *replay) repair() error {
	for _, s := range r.drop {
		if err := r.fs.Remove(fileName(s.number, logSuffix)); err != nil {
			return err // becomes durable with the new segment, which gets the same number
		}
	}
	for _, s := range r.segments {
		if s.size < s.end {
			if err := s.file.Truncate(s.size); err != nil {
				return err
			}
		}
		if r.rewrite {
			if err := s.rewrite(); err != nil {
				return err
			}
		}
		if err := s.file.Sync(); err != nil {
			return err
		}
	}
	return nil
}

// rewrite writes those bytes again of which it is uncertain that they are durable. After a failed
// sync, Linux keeps what was to be written in memory, where this process can read it, but no other
// sync writes it.
func (s *replayed) rewrite() error {
	buf := make([]byte, readAhead)
	for at := s.settled; at < s.size; at += int64(len(buf)) {
		buf = buf[:min(int64(len(buf)), s.size-at)]
		if n, err := s.file.ReadAt(buf, at); n < len(buf) {
			return cmp.Or(err, io.ErrUnexpectedEOF)
		}
		if _, err := s.file.WriteAt(buf, at); err != nil {
			return err
		}
	}
	return nil
}
