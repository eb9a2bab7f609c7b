package spool

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/diaspora-streams/diaspora/internal/disk"
)

var (
	// ErrFull means that there is no room for an entry: the spool has reached MaxBytes, or the disk
	// is full.
	ErrFull = errors.New("the spool is full")
	// ErrClosed means that the spool was closed.
	ErrClosed = errors.New("the spool is closed")
	// ErrInUse means that another process, or another Spool in this process, has the directory
	// open.
	ErrInUse = errors.New("the spool is in use")
	// ErrInsecure means that other users may read or write the spool's files.
	ErrInsecure = errors.New("other users have access to the spool")
	// ErrSubject means that the spool holds pending events of another identity.
	ErrSubject = errors.New("the spool holds events of another identity")
	// ErrHoles means that the pending entries would be left in more separate ranges than the cursor
	// can store.
	ErrHoles = errors.New("too many gaps between pending events")
	// ErrTooLarge means that an entry, or the entries of one call together, exceed a size limit of
	// the spool, so that retrying cannot help.
	ErrTooLarge = errors.New("too large for the spool")
)

// The subject of a spool begins with one of these prefixes if its events were logged with a
// credential before the identity behind that credential was known. After Unbound follows the hash
// of the credential, after UnboundKey the ID of the access key.
const (
	Unbound    = "credential sha256:"
	UnboundKey = "access key "
)

// IsUnbound reports whether a subject names a credential instead of an identity. See [Unbound].
func IsUnbound(subject string) bool {
	return strings.HasPrefix(subject, Unbound) || strings.HasPrefix(subject, UnboundKey)
}

// Policy says what Append does when there is no room for an entry.
type Policy int

const (
	Block  Policy = iota // Append waits for room
	Reject               // Append fails with ErrFull
	// The spool removes its oldest segment to make room, and counts its pending entries as dropped.
	DropOldest
)

// Options configure a spool.
type Options struct {
	// Dir is the spool's own directory. Open creates it if it does not exist. Required.
	Dir string

	// Subject is the identity that logs the events, at most 128 bytes. Open fails with [ErrSubject]
	// if the spool holds pending events of another identity.
	Subject string

	// Same reports whether pending events that were logged under another subject belong to this
	// identity as well. Optional.
	Same func(subject string) bool

	// MaxBytes limits the size of the spool on disk: its segments and its quarantine. Default: 1
	// GiB.
	MaxBytes int64

	// SegmentBytes is the size of a segment file. The first segments, and those that follow a full
	// disk, are smaller. Default: 8 MiB, or MaxBytes/16 if that is less.
	SegmentBytes int64

	// Policy says what Append does when MaxBytes is reached or the disk is full. Default: [Block].
	Policy Policy

	// FS replaces the file system at Dir, for tests.
	FS FS

	// Diagnostics receives the spool's own messages. It must not write them to this spool. Nil
	// discards them.
	Diagnostics *slog.Logger
}

const (
	firstSegmentBytes = 128 << 10

	minSegmentBytes = 1 << 10
	maxSegmentBytes = 1 << 30
	maxHoles        = 1 << 16 // limits the spans that are acknowledged out of order, and so the size of the cursor
)

func (o *Options) setDefaults() error {
	o.MaxBytes = cmp.Or(o.MaxBytes, 1<<30)
	o.SegmentBytes = cmp.Or(o.SegmentBytes, min(8<<20, max(o.MaxBytes/16, minSegmentBytes)))
	o.Diagnostics = cmp.Or(o.Diagnostics, slog.New(slog.DiscardHandler))
	switch {
	case o.Dir == "" && o.FS == nil:
		return errors.New("the directory is required")
	case o.SegmentBytes < minSegmentBytes || o.SegmentBytes > maxSegmentBytes:
		return fmt.Errorf("SegmentBytes is %d: want %d to %d", o.SegmentBytes, minSegmentBytes, maxSegmentBytes)
	case o.MaxBytes < 4*o.SegmentBytes:
		return fmt.Errorf("MaxBytes is %d: want at least 4 segments of %d", o.MaxBytes, o.SegmentBytes)
	case len(o.Subject) > maxSubjectBytes:
		return fmt.Errorf("the subject has %d bytes: want at most %d", len(o.Subject), maxSubjectBytes)
	case o.Policy < Block || o.Policy > DropOldest:
		return fmt.Errorf("unknown policy %d", o.Policy)
	}
	if o.FS == nil {
		fsys, err := disk.New(o.Dir)
		if err != nil {
			return err
		}
		o.FS = fsys
	}
	return nil
}

// Spool is an open spool. Its methods may be called concurrently.
type Spool struct {
	opts Options
	fs   FS
	id   uuid
	// Of the checksums; only body is used, since frame differs from segment to segment.
	seeds seeds
	owner *owner
	log   *slog.Logger

	requests sync.Pool // of *request, for reuse

	// The fields up to segmentBytes belong to the goroutine that commits, once Open has returned.
	active    *segment // the segment that is appended to, or nil
	file      File     // its file
	synced    bool     // all of active is known to be synced
	lastID    uint64
	out       []byte // buffer for a batch in its on-disk form
	lastBatch int    // how many calls of Append the last batch answered

	// How much one operation writes. A full disk reduces both; each success raises them again.
	batchBytes   int   // limit of a batch that has more than one request
	segmentBytes int64 // limit of a segment; at most Options.SegmentBytes

	// Set for a read-only spool only: the problems found, and the bytes torn at the end.
	report *Report
	torn   int64 // see tail

	cursorMu   sync.Mutex // held while the durable cursor is written, and while segments before it are removed
	cursorSlot uint64     // which of the cursor's two files to write next; guarded by cursorMu

	acked      ackedFile
	reserve    reserve
	quarantine quarantine
	reader     reader

	mu              sync.Mutex // guards the fields below
	queue           []*request
	queued          int // bytes in queue and in the batch being committed
	held            int // bytes of all requests that are not committed, or whose callback has not returned
	completions     []completion
	segments        []*segment // oldest first
	bytes           int64      // of all segments
	next            uint64     // the position of the next entry; all entries before it can be read
	settled         uint64     // all entries below it are known to be synced
	returned        uint64     // end of the positions that Next has returned
	done            spans      // the positions that are acknowledged, quarantined, discarded, dropped or lost
	changes         uint64     // counts changes of done
	durableLow      uint64     // every position below it is done according to the durable cursor
	cursorChanges   uint64     // the value of changes when that cursor was written
	cursorWrittenAt time.Time
	generation      uint64 // of the last cursor made
	counts          counts
	appended        uint64
	rejected        uint64
	ages            ages
	waiting         string
	full            string
	lastErr         error
	sealed          bool // Seal was called: no further entries are accepted
	closing         bool
	changed         chan struct{} // closed at the next change of the state above; nil if no goroutine waits for it

	queueReady     chan struct{} // signals that the queue is not empty, or that the spool is closing
	spaceFreed     chan struct{} // signals that there may be room again, or that the spool is closing
	completionsDue chan struct{} // signals that there are completions
	cursorDue      chan struct{} // signals that there may be segments to remove, or a cursor to write
	quit           chan struct{} // closed when the committing goroutine has ended
	work           sync.WaitGroup

	closeOnce sync.Once
	closeErr  error
}

// segment describes a segment file. Its fields are guarded by the spool's mu.
type segment struct {
	name string
	id   uint64
	base uint64 // the position of its first entry
	// Later segments hold the positions from here on; frames of this one from here on are ignored.
	limit   uint64
	size    int64  // in bytes, up to where the file can hold good frames
	settled uint64 // see segmentHeader
	created time.Time
	subject string
	spool   uuid
	damaged bool // the header is damaged
}

const noLimit = math.MaxUint64 // the limit of the last segment

func (g *segment) seeds() seeds { return newSeeds(g.spool, g.base) }

// Open opens the spool in a directory, or creates one, and takes ownership of it for this process.
//
// Open reads the headers of all segments, but reads entries of the last segment only. Damage does
// not make it fail: damaged entries are skipped and counted when they are read. An error of the
// disk makes it fail, because the error may be temporary and the data may be intact.
//
// The previous owner may have died without releasing the spool. On a file system that several
// machines may have mounted, Open then watches for some seconds whether that owner is still alive.
// ctx bounds that wait.
//
// Open returns [ErrInUse], [ErrInsecure], [ErrSubject], [ErrVersion], ctx's error or an error of
// the file system.
func Open(ctx context.Context, opts Options) (*Spool, error) {
	for attempt := 0; ; attempt++ {
		s, err := open(ctx, opts)
		if errors.Is(err, fs.ErrNotExist) && opts.FS == nil && attempt < 100 {
			continue // another process has just removed it; see [Remove]
		}
		if err != nil {
			return nil, fmt.Errorf("open spool %s: %w", opts.Dir, err)
		}
		return s, nil
	}
}

func open(ctx context.Context, opts Options) (_ *Spool, err error) {
	if err := opts.setDefaults(); err != nil {
		return nil, err
	}
	s := &Spool{opts: opts, fs: opts.FS, log: opts.Diagnostics}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.acked.close(), s.owner.release(), closeFile(s.file), s.fs.Close())
		}
	}()
	if err := s.fs.Make(); err != nil {
		return nil, err
	}
	if s.owner, err = takeOwnership(ctx, s.fs); err != nil {
		return nil, err
	}
	s.fs = disk.Guard(s.fs, s.owner.check)
	im, err := s.load()
	if err != nil {
		return nil, err
	}
	s.batchBytes, s.segmentBytes = maxBatchBytes, s.minSegmentSize()
	s.queueReady, s.spaceFreed, s.completionsDue, s.cursorDue = signal(), signal(), signal(), signal()
	s.quit = make(chan struct{})
	s.acked.open(s, im.names[ackedName])
	s.reserve.open(s, im.reserveBytes)
	s.work.Go(s.commitLoop)
	s.work.Go(s.callbackLoop)
	s.work.Go(s.cursorLoop)
	s.notify(s.cursorDue)
	return s, nil
}

// load reads the state of the spool from its files.
func (s *Spool) load() (im diskState, err error) {
	if err := s.fs.SyncParent(); err != nil {
		return im, fmt.Errorf("sync the directory's parent: %w", err)
	}
	infos, err := s.fs.List()
	if err != nil {
		return im, err
	}
	if err := checkModes(infos); err != nil {
		return im, err
	}
	if im, err = s.loadState(infos); err != nil {
		return im, err
	}
	return im, s.checkSubject()
}

// loadState sets the spool's state from its files. It changes no file.
func (s *Spool) loadState(infos []fs.FileInfo) (im diskState, err error) {
	if im, err = readImage(s.fs, infos); err != nil {
		return im, err
	}
	s.id = im.cursor.spool
	if s.id == (uuid{}) {
		rand.Read(s.id[:])
	}
	s.seeds = newSeeds(s.id, 0)
	s.segments, s.bytes = im.segments, im.bytes
	s.done, s.counts, s.generation = im.cursor.done, im.cursor.counts, im.cursor.generation
	s.quarantine.last = im.quarantineLast
	s.quarantine.bytes.Store(im.quarantineBytes)
	s.cursorWrittenAt = time.Now()
	for _, g := range s.segments {
		s.lastID = max(s.lastID, g.id)
		s.ages.add(g.base, g.created)
	}
	if err := s.recover(im.cursor.end); err != nil {
		return im, err
	}
	if len(s.segments) > 0 {
		first := s.segments[0]
		s.countDamage(s.done.add(0, min(first.settled, first.base)), first.name)
		s.done.add(0, first.base) // what was never synced is not lost
	}
	s.done.add(0, 1)
	s.next = max(s.next, s.done.end())
	s.reader.at = s.done.low
	return im, nil
}

// recover reads the last segment to find the end of the spool. If that segment ends cleanly, the
// spool appends to it. Otherwise the next segment begins after its last good frame, and the torn
// bytes are never read again.
func (s *Spool) recover(end uint64) error {
	s.next, s.settled = max(s.done.end(), end), end
	if len(s.segments) == 0 {
		return nil
	}
	last := s.segments[len(s.segments)-1]
	tail, err := readTail(s.fs, last)
	if err != nil {
		return fmt.Errorf("read %s: %w", last.name, err)
	}
	if tail.torn > 0 {
		s.log.Warn("ignoring an incomplete write at the end of the spool; its events were never reported as durable", "segment", last.name, "bytes", tail.torn)
	}
	s.countDamage(s.done.add(tail.next, end), last.name)
	s.next = max(s.next, tail.next)
	s.settled = max(s.settled, tail.settled)
	s.torn = tail.torn
	// See the package comment. If everything is done, the segment that proved it may have been removed.
	durable := s.settled == s.next && s.settled > last.base && s.done.low < s.next
	if s.report != nil || s.owner.tookOver || !durable || tail.torn > 0 || last.damaged || s.next != tail.next || last.subject != s.opts.Subject ||
		last.spool != s.id || last.size >= s.opts.SegmentBytes {
		return nil
	}
	s.active = last
	s.file, err = s.fs.Open(last.name, true)
	return err
}

// checkSubject fails if the spool holds pending events of another identity.
func (s *Spool) checkSubject() error {
	for _, g := range s.segments {
		if g.spool == (uuid{}) {
			continue // without the spool's ID nothing in the segment can be read
		}
		if min(g.limit, s.next) > s.done.low && g.subject != s.opts.Subject && (s.opts.Same == nil || !s.opts.Same(g.subject)) {
			return fmt.Errorf("%w: %q, not %q", ErrSubject, g.subject, s.opts.Subject)
		}
	}
	return nil
}

// countDamage counts n lost entries and reports them. The caller must not hold mu: countDamage
// takes it, and logs without it, because the diagnostics handler may call back into the spool.
func (s *Spool) countDamage(n uint64, segment string) {
	if n > 0 {
		s.mu.Lock()
		s.counts.damaged += n
		s.mu.Unlock()
		s.report.addProblem("%s: %d events are lost: their bytes are damaged or missing", segment, n)
		s.log.Error("events of the spool are lost: their bytes are damaged or missing", "segment", segment, "events", n)
	}
}

// isSpoolFile reports whether name is a file name that the spool uses. Other files in the directory
// are left alone.
func isSpoolFile(name string) bool {
	switch name {
	case ".", lockName, ownerName, ackedName, reserveName, cursorName(0), cursorName(1), cursorTemp, noteName, noteTemp, dismissedName, dismissedTemp:
		return true
	}
	_, _, segment := parseSegmentName(name)
	_, quarantine := parseQuarantineName(name)
	return segment || quarantine
}

// checkModes fails if other users have access to the spool's directory or its files.
func checkModes(infos []fs.FileInfo) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	for _, info := range infos {
		if !isSpoolFile(info.Name()) {
			continue
		}
		if mode := info.Mode().Perm(); mode&0o077 != 0 {
			want := 0o600
			if info.IsDir() {
				want = 0o700
			}
			return fmt.Errorf("%w: %s has mode %04o: chmod %o it", ErrInsecure, info.Name(), mode, want)
		}
	}
	return nil
}

// diskState is the state of a spool as its files record it.
type diskState struct {
	names    map[string]bool
	cursor   cursor
	segments []*segment
	bytes    int64

	reserveBytes    int64 // size of the reserve file
	quarantineBytes int64
	quarantineLast  uint64
}

// readImage reads the cursors and the headers of the segments.
func readImage(fsys FS, infos []fs.FileInfo) (diskState, error) {
	im := diskState{names: map[string]bool{}}
	for _, info := range infos {
		im.names[info.Name()] = true
		if info.Name() == reserveName {
			im.reserveBytes = info.Size()
		}
		if n, ok := parseQuarantineName(info.Name()); ok {
			im.quarantineBytes += info.Size()
			im.quarantineLast = max(im.quarantineLast, n)
		}
	}
	var err error
	if im.cursor, err = readCursor(fsys, im.names); err != nil {
		return im, err
	}
	for _, info := range infos {
		id, base, ok := parseSegmentName(info.Name())
		if !ok || !info.Mode().IsRegular() {
			continue
		}
		g := &segment{name: info.Name(), id: id, base: base, size: info.Size()}
		err := g.readHeader(fsys)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed since it was listed
		}
		if err != nil {
			return im, fmt.Errorf("read %s: %w", g.name, err)
		}
		im.segments = append(im.segments, g)
		im.bytes += g.size
	}
	im.linkSegments()
	return im, nil
}

// readHeader reads g's header. If the header is damaged, readHeader sets g.damaged.
func (g *segment) readHeader(fsys FS) error {
	b, err := disk.ReadFile(fsys, g.name, headerBytes)
	if err != nil {
		return err
	}
	h, err := parseSegmentHeader(b)
	if errors.Is(err, ErrVersion) {
		return err
	}
	g.spool, g.subject, g.settled, g.created = h.spool, h.subject, h.settled, h.created
	g.damaged = err != nil || h.id != g.id || h.base != g.base
	return nil
}

// linkSegments sorts the segments, sets the limit of each, and fills in the fields of segments with
// a damaged header from the cursor.
func (im *diskState) linkSegments() {
	slices.SortFunc(im.segments, func(a, b *segment) int { return cmp.Compare(a.id, b.id) })
	c := &im.cursor
	for _, g := range im.segments {
		if c.spool == (uuid{}) && !g.damaged { // without a cursor, all entries are sent, or sent again
			c.spool, c.subject = g.spool, g.subject
		}
	}
	limit := uint64(noLimit)
	for _, g := range slices.Backward(im.segments) {
		if g.damaged {
			// A crash while the header was being written looks like this too. Then the end of the
			// segment before may be torn as well, so only the cursor says what was synced.
			g.spool, g.subject, g.settled = c.spool, c.subject, min(g.base, c.end)
		}
		g.limit = limit
		limit = min(limit, g.base)
	}
	if c.done.low == 0 && len(im.segments) > 0 {
		c.done.add(0, limit)
	}
}

// A tail is what readTail finds out about the last segment.
type tail struct {
	next    uint64 // the position after the last good entry
	settled uint64 // all entries below it were synced
	torn    int64  // bytes of the last batch that do not belong to a good frame
}

func readTail(fsys FS, g *segment) (tail, error) {
	t := tail{next: g.base, settled: min(g.base, g.settled)}
	f, err := fsys.Open(g.name, false)
	if err != nil {
		return t, err
	}
	defer f.Close()
	for scan := newScanner(f, g.seeds(), g.size); ; {
		found, err := scan.next()
		if err != nil && err != io.EOF {
			return t, err
		}
		t.torn += found.bad
		if err == io.EOF {
			return t, nil
		}
		t.next = g.base + uint64(found.index) + 1
		if found.flags&flagFirst != 0 && found.index > 0 {
			// All frames before this one were synced. So bad bytes among them are damage, not a
			// torn write; they are counted when they are read.
			t.torn, t.settled = 0, t.next-1
		}
	}
}

// Stats describes the state of a spool.
type Stats struct {
	Events   uint64    // not yet acknowledged
	Bytes    int64     // on disk
	Segments int       // files that hold events
	Oldest   time.Time // when the oldest pending event was appended, or earlier; zero if none is pending

	First uint64 // every event at a lower position is done: acknowledged, or never to be sent
	Next  uint64 // the position of the next entry to be appended

	Held     int    // bytes of the entries in memory: not on disk yet, or on disk with a callback that has not returned
	Appended uint64 // since Open
	Rejected uint64 // since Open, because there was no room

	// Over the spool's whole life:
	Acknowledged uint64
	Dropped      uint64 // by DropOldest
	Discarded    uint64 // by [Spool.Discard]
	Quarantined  uint64
	Damaged      uint64 // lost because their bytes are damaged or gone

	Full    string // why the spool takes no more events, for example [DiskFull]; "" if it takes them
	Waiting string // why Append waits for room, or Next for acknowledgements; "" if neither does
	Err     error  // the last disk error since Open, or nil
}

// Stats returns a snapshot.
func (s *Spool) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := Stats{
		Events:       s.next - s.done.low - s.done.count(),
		Bytes:        s.bytes + s.quarantine.bytes.Load(),
		Segments:     len(s.segments),
		First:        s.done.low,
		Next:         s.next,
		Held:         s.held,
		Appended:     s.appended,
		Rejected:     s.rejected,
		Acknowledged: s.counts.acknowledged,
		Dropped:      s.counts.dropped,
		Discarded:    s.counts.discarded,
		Quarantined:  s.counts.quarantined,
		Damaged:      s.counts.damaged,
		Full:         s.full,
		Waiting:      s.waiting,
		Err:          s.lastErr,
	}
	if st.Waiting == "" && len(s.done.above) >= maxHoles {
		st.Waiting = "too many events after the oldest pending one are acknowledged; it must be acknowledged first"
	}
	if st.Events > 0 {
		st.Oldest = s.ages.at(s.done.low)
	}
	return st
}

// ages records when entries were appended, for a sample of them. From it the spool derives the age
// of the oldest pending entry, which may come out too old but never too young.
type ages []age

type age struct {
	from uint64
	time time.Time
}

const maxAges = 4096

// add records that the entries from a position on were appended at time t.
func (a *ages) add(from uint64, t time.Time) {
	if n := len(*a); n > 0 && t.Sub((*a)[n-1].time) < time.Second {
		return
	}
	if len(*a) == maxAges { // full: drop every other one
		half := (*a)[:0]
		for i := 0; i < maxAges; i += 2 {
			half = append(half, (*a)[i])
		}
		*a = half
	}
	*a = append(*a, age{from, t})
}

// at returns the time at which the entry at a position was appended, or an earlier time. It drops
// what it knows about entries before that.
func (a *ages) at(position uint64) time.Time {
	i, found := slices.BinarySearchFunc(*a, position, func(e age, p uint64) int { return cmp.Compare(e.from, p) })
	if !found {
		i--
	}
	if i < 0 {
		return time.Time{}
	}
	*a = (*a)[i:]
	return (*a)[0].time
}

func (s *Spool) minSegmentSize() int64 { return min(firstSegmentBytes, s.opts.SegmentBytes) }

// notifyChanged wakes the goroutines that wait for a change of the state. The caller holds mu.
func (s *Spool) notifyChanged() {
	if s.waiting != "" && s.firstDone() {
		s.notify(s.spaceFreed)
	}
	if s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
}

// nextChange returns a channel that is closed at the next change of the state. The caller holds mu.
func (s *Spool) nextChange() <-chan struct{} {
	if s.changed == nil {
		s.changed = make(chan struct{})
	}
	return s.changed
}

func signal() chan struct{} { return make(chan struct{}, 1) }

// notify sets a signal. It does not block; a signal that is already set stays set.
func (s *Spool) notify(signal chan struct{}) {
	select {
	case signal <- struct{}{}:
	default:
	}
}

// failed records and logs an error of the disk.
func (s *Spool) failed(msg string, err error) {
	s.mu.Lock()
	s.lastErr = err
	s.mu.Unlock()
	s.log.Warn(msg, "err", err)
}

// Close commits the entries that were accepted, runs the callbacks of AppendAsync, writes the
// cursor and releases the directory. Entries for which there is no room then fail with ErrClosed.
// Entries that are not acknowledged stay for the next Open. Ack fails after Close, so acknowledge
// before. Close may be called more than once.
func (s *Spool) Close() error {
	s.closeOnce.Do(func() {
		s.mu.Lock()
		s.closing = true
		s.notifyChanged()
		s.mu.Unlock()
		s.notify(s.queueReady)
		s.notify(s.spaceFreed)
		s.work.Wait()
		s.closeActive()
		err := s.writeCursor()
		if err == nil {
			err = s.removeDone(true)
		}
		s.closeErr = errors.Join(err, s.reader.close(), s.quarantine.close(), s.acked.close(),
			s.owner.release(), s.fs.Close())
	})
	return s.closeErr
}

func closeFile(f File) error {
	if f == nil {
		return nil
	}
	return f.Close()
}
