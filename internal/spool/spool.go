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
	// ErrFull means that there is no room: the spool has reached MaxBytes, or the
	// disk is full.
	ErrFull = errors.New("the spool is full")
	// ErrClosed means that the spool was closed.
	ErrClosed = errors.New("the spool is closed")
	// ErrInUse means that another process, or another Spool of this one, has the directory.
	ErrInUse = errors.New("the spool is in use")
	// ErrInsecure means that others may read or write the spool's files.
	ErrInsecure = errors.New("the spool is open to others")
	// ErrSubject means that events of another identity wait in the spool.
	ErrSubject = errors.New("the spool holds events of another identity")
	// ErrHoles says that too many stretches of entries that wait would have others that do not between them.
	ErrHoles = errors.New("too many stretches of events that wait")
	// ErrTooLarge means that an entry, or entries appended together, can never fit.
	ErrTooLarge = errors.New("too large for the spool")
)

// These begin the subject of events that were logged with a credential when it was not known whose it is.
// The hash of the credential follows, or the ID of the access key.
const (
	Unbound    = "credential sha256:"
	UnboundKey = "access key "
)

// IsUnbound reports whether a subject is not that of a person.
func IsUnbound(subject string) bool {
	return strings.HasPrefix(subject, Unbound) || strings.HasPrefix(subject, UnboundKey)
}

// Policy says what happens to an entry for which there is no room.
type Policy int

const (
	Block      Policy = iota // Append waits for room
	Reject                   // Append fails with ErrFull
	DropOldest               // the oldest segment makes room, and what it held is counted as dropped
)

// Options say where a spool is and how large it may be.
type Options struct {
	// Dir is the spool's own directory. It is made if need be. Required.
	Dir string

	// Subject is the identity whose events these are, at most 128 bytes. A
	// spool in which events of another one wait is refused.
	Subject string

	// Same reports whether events that wait under another subject are of this
	// identity as well. Optional.
	Same func(subject string) bool

	// MaxBytes bounds what the spool has on disk. Default: 1 GiB.
	MaxBytes int64

	// SegmentBytes is the size of one file; the first ones, and those after the disk was full, are
	// smaller. Default: 8 MiB, or what keeps 16 files within MaxBytes if that is less.
	SegmentBytes int64

	// Policy says what to do when MaxBytes is reached or the disk is full.
	Policy Policy

	// FS replaces the file system of Dir, for tests.
	FS FS

	// Diagnostics receives what the spool says about itself. They must not end
	// in this spool. Nil discards them.
	Diagnostics *slog.Logger
}

const (
	firstSegmentBytes = 128 << 10

	minSegmentBytes = 1 << 10
	maxSegmentBytes = 1 << 30
	maxHoles        = 1 << 16 // bounds what is acknowledged out of order, and so what the cursor takes
)

func (o *Options) complete() error {
	if o.MaxBytes == 0 {
		o.MaxBytes = 1 << 30
	}
	if o.SegmentBytes == 0 {
		o.SegmentBytes = min(8<<20, max(o.MaxBytes/16, minSegmentBytes))
	}
	if o.Diagnostics == nil {
		o.Diagnostics = slog.New(slog.DiscardHandler)
	}
	switch {
	case o.Dir == "" && o.FS == nil:
		return errors.New("no directory given")
	case o.SegmentBytes < minSegmentBytes || o.SegmentBytes > maxSegmentBytes:
		return fmt.Errorf("segments of %d bytes: want %d to %d", o.SegmentBytes, minSegmentBytes, maxSegmentBytes)
	case o.MaxBytes < 4*o.SegmentBytes:
		return fmt.Errorf("at most %d bytes: want 4 segments of %d at least", o.MaxBytes, o.SegmentBytes)
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
	opts  Options
	fs    FS
	id    uuid
	seeds seeds // only the body's; the frame's are per segment
	owner *owner
	log   *slog.Logger

	requests sync.Pool // of *request, to be used again

	// Owned by the goroutine that commits.
	active    *segment // the segment that is appended to, or nil
	file      File     // its file
	synced    bool     // all of active is known to be synced
	lastID    uint64
	out       []byte // a batch as it goes to disk
	lastBatch int    // how many requests the last batch had

	// What is asked of the disk at once: less after it was full, and more each time that this goes well.
	batchBytes   int   // of a batch with more than one request
	segmentBytes int64 // of a segment; at most Options.SegmentBytes

	// Of a spool that is only looked at: what is wrong with it, and where.
	report *Report
	torn   int64 // see tail

	keepMu   sync.Mutex // held while the durable cursor is written, or what is behind it removed
	keptSlot uint64     // which of the cursor's files is next; guarded by keepMu

	acked      ackedFile
	reserve    reserve
	quarantine quarantine
	reader     reader

	mu          sync.Mutex // guards all below
	queue       []*request
	queued      int // bytes in queue and in the batch being committed
	undone      int // asynchronous requests whose done has not returned
	completions []completion
	segments    []*segment // oldest first
	bytes       int64      // of all segments
	next        uint64     // the position of the next entry; all before it can be read
	settled     uint64     // all entries below it are known to be synced
	handed      uint64     // the end of what Next has returned
	done        spans      // what is acknowledged, dropped or lost
	changes     uint64     // counts changes of done
	kept        uint64     // everything below is acknowledged, durably
	keptChanges uint64     // what changes was then
	keptAt      time.Time
	generation  uint64 // of the last cursor made
	counts      counts
	appended    uint64
	rejected    uint64
	ages        ages
	waiting     string
	full        string
	lastErr     error
	sealed      bool // nothing more is accepted
	closing     bool
	changed     chan struct{} // closed when something above changes for those who wait; nil if nobody does

	wake chan struct{} // the queue is not empty, or closing
	room chan struct{} // there may be room again, or closing
	note chan struct{} // there are completions
	tidy chan struct{} // there may be segments to remove, or a cursor to keep
	quit chan struct{} // closed by Close when the committing is over
	work sync.WaitGroup

	closeOnce sync.Once
	closeErr  error
}

// segment is a file of frames. Its fields change under the spool's mu.
type segment struct {
	name    string
	id      uint64
	base    uint64 // the position of its first entry
	limit   uint64 // positions from here on are those of later segments
	size    int64  // of the file, up to where it can be good
	settled uint64 // see segmentHeader
	created time.Time
	subject string
	spool   uuid
	damaged bool // the header is
}

const noLimit = math.MaxUint64 // of the last segment

func (g *segment) seeds() seeds { return newSeeds(g.spool, g.base) }

// Open opens the spool in a directory, or makes one, and takes it for this process.
//
// It reads the headers of all segments, but of the entries only those in the last
// one. Damage is no reason to fail: it is passed over and counted when it is read. An
// error of the disk is returned, since it may pass.
//
// On a file system that several machines may have, it watches for some seconds whether an
// owner that did not give the spool back is still alive. ctx bounds that wait.
//
// It returns [ErrInUse], [ErrInsecure], [ErrSubject], [ErrVersion], ctx's error or what
// the file system says.
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
	if err := opts.complete(); err != nil {
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
	s.batchBytes, s.segmentBytes = maxBatchBytes, s.leastSegmentBytes()
	s.wake, s.room, s.note, s.tidy = signal(), signal(), signal(), signal()
	s.quit = make(chan struct{})
	s.acked.open(s, im.names[ackedName])
	s.reserve.open(s, im.reserveBytes)
	s.work.Go(s.commitAll)
	s.work.Go(s.notifyAll)
	s.work.Go(s.keepAll)
	s.raise(s.tidy)
	return s, nil
}

// load syncs the directory and finds out what is in it.
func (s *Spool) load() (im image, err error) {
	// What an earlier process made and did not live to sync counts from here on.
	if err := s.fs.SyncParent(); err != nil {
		return im, fmt.Errorf("sync the directory's parent: %w", err)
	}
	if err := s.fs.Sync(); err != nil {
		return im, fmt.Errorf("sync the directory: %w", err)
	}
	infos, err := s.fs.List()
	if err != nil {
		return im, err
	}
	if err := checkModes(infos); err != nil {
		return im, err
	}
	if im, err = s.look(infos); err != nil {
		return im, err
	}
	return im, s.checkSubject()
}

// look takes over what the files say. It changes none of them.
func (s *Spool) look(infos []fs.FileInfo) (im image, err error) {
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
	s.keptAt = time.Now()
	for _, g := range s.segments {
		s.lastID = max(s.lastID, g.id)
		s.ages.add(g.base, g.created)
	}
	if err := s.recover(im.cursor.end); err != nil {
		return im, err
	}
	if len(s.segments) > 0 {
		first := s.segments[0]
		s.countDamage(s.done.add(0, first.base), first.name)
	}
	s.done.add(0, 1)
	s.next = max(s.next, s.done.top())
	s.reader.at = s.done.low
	return im, nil
}

// recover reads the last segment, to find out where the spool ends. If that segment
// ends cleanly it is appended to. Else the next one begins after its last good frame,
// and what is torn is never read again.
func (s *Spool) recover(end uint64) error {
	s.next, s.settled = max(s.done.top(), end), end
	if len(s.segments) == 0 {
		return nil
	}
	last := s.segments[len(s.segments)-1]
	tail, err := readTail(s.fs, last)
	if err != nil {
		return fmt.Errorf("read %s: %w", last.name, err)
	}
	if tail.torn > 0 {
		s.log.Warn("the spool ends in bytes that were not written whole; they were never acknowledged", "segment", last.name, "bytes", tail.torn)
	}
	s.countDamage(s.done.add(tail.next, end), last.name)
	s.next = max(s.next, tail.next)
	s.settled = max(s.settled, tail.settled)
	s.torn = tail.torn
	if s.report != nil || s.owner.wrung || tail.torn > 0 || last.damaged || s.next != tail.next || last.subject != s.opts.Subject ||
		last.spool != s.id || last.size >= s.opts.SegmentBytes {
		return nil
	}
	s.active = last
	s.file, err = s.fs.Open(last.name, true)
	return err
}

// checkSubject fails if somebody else's events wait.
func (s *Spool) checkSubject() error {
	for _, g := range s.segments {
		if g.spool == (uuid{}) {
			continue // without the spool's id nothing in it can be read
		}
		if min(g.limit, s.next) > s.done.low && g.subject != s.opts.Subject && (s.opts.Same == nil || !s.opts.Same(g.subject)) {
			return fmt.Errorf("%w: %q, not %q", ErrSubject, g.subject, s.opts.Subject)
		}
	}
	return nil
}

// countDamage counts entries that are lost. It takes mu, and so does not tell of them
// with it held: the diagnostics may go anywhere.
func (s *Spool) countDamage(n uint64, segment string) {
	if n > 0 {
		s.mu.Lock()
		s.counts.damaged += n
		s.mu.Unlock()
		s.report.problem("%s: %d events are lost: their bytes are damaged or gone", segment, n)
		s.log.Error("events of the spool are lost: their bytes are damaged or gone", "segment", segment, "events", n)
	}
}

// isOurs tells whether a name in the spool's directory is one that the spool gives. The
// directory may hold files of others, which are left alone.
func isOurs(name string) bool {
	switch name {
	case ".", lockName, ownerName, ackedName, reserveName, cursorName(0), cursorName(1), cursorTemp, noteName, noteTemp, dismissedName, dismissedTemp:
		return true
	}
	_, _, segment := parseSegmentName(name)
	_, quarantine := parseQuarantineName(name)
	return segment || quarantine
}

// checkModes fails if others than the owner may get at the spool's directory or its files.
func checkModes(infos []fs.FileInfo) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	for _, info := range infos {
		if !isOurs(info.Name()) {
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

// image is what the files of a spool say.
type image struct {
	names    map[string]bool
	cursor   cursor
	segments []*segment
	bytes    int64

	reserveBytes    int64 // of the reserve
	quarantineBytes int64
	quarantineLast  uint64
}

// readImage reads the cursors and the headers of the segments.
func readImage(fsys FS, infos []fs.FileInfo) (image, error) {
	im := image{names: map[string]bool{}}
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
	im.arrange()
	return im, nil
}

// readHeader reads g's header. If that is damaged, g.damaged tells.
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

// arrange orders the segments, says where each ends, and gives those without a
// good header what the others say.
func (im *image) arrange() {
	slices.SortFunc(im.segments, func(a, b *segment) int { return cmp.Compare(a.id, b.id) })
	c := &im.cursor
	for _, g := range im.segments {
		if c.spool == (uuid{}) && !g.damaged { // no cursor: everything is sent (again)
			c.spool, c.subject = g.spool, g.subject
		}
	}
	limit := uint64(noLimit)
	for _, g := range slices.Backward(im.segments) {
		if g.damaged {
			// A crash leaves such a header too, and then the end of the segment before may
			// be torn as well: only the cursor knows what was synced.
			g.spool, g.subject, g.settled = c.spool, c.subject, min(g.base, c.end)
		}
		g.limit = limit
		limit = min(limit, g.base)
	}
	if c.done.low == 0 && len(im.segments) > 0 {
		c.done.add(0, limit)
	}
}

// A tail is what recover wants to know of the last segment.
type tail struct {
	next    uint64 // the position after the last good entry
	settled uint64 // all entries below it were synced
	torn    int64  // how many bytes of the last batch are not good
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
			// All before was synced, so that bad bytes there are damage, to be
			// counted when they are read.
			t.torn, t.settled = 0, t.next-1
		}
	}
}

// Stats is what a spool says about itself.
type Stats struct {
	Events   uint64    // that wait for their acknowledgement
	Bytes    int64     // on disk
	Segments int       // files that hold events
	Oldest   time.Time // when the oldest of Events was appended, or earlier; zero without any

	First uint64 // everything at a lower position is done with
	Next  uint64 // the position of the next entry to be appended

	Queued   int    // bytes that were accepted and are not on disk yet
	Appended uint64 // since Open
	Rejected uint64 // since Open, for want of room

	// Over the spool's life:
	Acknowledged uint64
	Dropped      uint64 // by DropOldest
	Discarded    uint64 // by [Spool.Discard]
	Quarantined  uint64
	Damaged      uint64 // lost since their bytes are

	Full    string // why it takes no more events, [DiskFull] for instance; "" if it does
	Waiting string // what Append or Next wait for, if it is not for each other
	Err     error  // the last error of the disk, or nil
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
		Queued:       s.queued,
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
		st.Waiting = "the oldest event must be acknowledged first; too many behind it are"
	}
	if st.Events > 0 {
		st.Oldest = s.ages.at(s.done.low)
	}
	return st
}

// ages remembers when entries were appended, for some of them: enough to tell the
// age of the oldest that waits, and never too young.
type ages []age

type age struct {
	from uint64
	time time.Time
}

const maxAges = 4096

// add says that the entries from a position on were appended at a time.
func (a *ages) add(from uint64, t time.Time) {
	if n := len(*a); n > 0 && t.Sub((*a)[n-1].time) < time.Second {
		return
	}
	if len(*a) == maxAges { // keep every other one
		half := (*a)[:0]
		for i := 0; i < maxAges; i += 2 {
			half = append(half, (*a)[i])
		}
		*a = half
	}
	*a = append(*a, age{from, t})
}

// at forgets what is below a position, and returns when that was appended.
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

func (s *Spool) leastSegmentBytes() int64 { return min(firstSegmentBytes, s.opts.SegmentBytes) }

// changing wakes those who wait for a change. The caller holds mu.
func (s *Spool) changing() {
	if s.waiting != "" && s.firstDone() {
		s.raise(s.room)
	}
	if s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
}

// change returns a channel that is closed at the next change. The caller holds mu.
func (s *Spool) change() <-chan struct{} {
	if s.changed == nil {
		s.changed = make(chan struct{})
	}
	return s.changed
}

func signal() chan struct{} { return make(chan struct{}, 1) }

// raise sets a signal.
func (s *Spool) raise(signal chan struct{}) {
	select {
	case signal <- struct{}{}:
	default:
	}
}

// failed remembers an error of the disk.
func (s *Spool) failed(msg string, err error) {
	s.mu.Lock()
	s.lastErr = err
	s.mu.Unlock()
	s.log.Warn(msg, "err", err)
}

// Close commits what was appended, calls what AppendAsync has promised to call, keeps
// the cursor and gives the directory back. Entries for which there is no room then
// fail with ErrClosed. What is not acknowledged stays for the next Open.
// Acknowledge before: Ack fails after Close.
func (s *Spool) Close() error {
	s.closeOnce.Do(func() {
		s.mu.Lock()
		s.closing = true
		s.changing()
		s.mu.Unlock()
		s.raise(s.wake)
		s.raise(s.room)
		s.work.Wait()
		s.retire()
		err := s.keep()
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
