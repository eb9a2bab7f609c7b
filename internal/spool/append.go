package spool

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/diaspora-streams/diaspora/internal/disk"
)

const (
	// Limit of the requests in memory. They count until they are on disk and, for AppendAsync,
	// until their callback has returned. A single request may be larger.
	maxHeldBytes  = 8 << 20
	maxBatchBytes = 2 << 20 // limit of one commit; a single request may be larger
	maxFailures   = 3       // how many segments to try for a batch before its requests fail

	// How long to wait before trying a full disk again.
	retryAfter = time.Second
)

// request holds the entries of one call. They go to disk together, in one batch.
type request struct {
	// Frame headers and bodies; encodeBatch completes the headers: first flag, index and checksum.
	frames  []byte
	entries int
	done    func(error)                   // the callback of AppendAsync, or nil
	each    func(from, to int, err error) // the callback of AppendAllAsync, or nil
	from    int                           // the index of its first entry in that call
	ready   chan error                    // receives the result of Append; has room for one, so that sending does not block

	withdrawn bool // Append has given up waiting for the result; guarded by the Spool's mu
}

// async reports whether the result of r goes to a callback.
func (r *request) async() bool { return r.done != nil || r.each != nil }

// callback returns the callback for the result of r.
func (r *request) callback() func(error) {
	if r.each == nil {
		return r.done
	}
	each, from, to := r.each, r.from, r.from+r.entries
	return func(err error) { each(from, to, err) }
}

func (s *Spool) newRequest(entries ...Entry) (*request, error) {
	r := s.emptyRequest()
	for i := range entries {
		if n := entryBytes(&entries[i]); n > MaxEntryBytes {
			return nil, fmt.Errorf("%w: entry %d has %d bytes", ErrTooLarge, i, n)
		}
		s.encode(r, &entries[i])
	}
	if room := s.maxCallBytes(); int64(len(r.frames)) > room {
		return nil, fmt.Errorf("%w: %d bytes in one call, and at most %d are allowed", ErrTooLarge, len(r.frames), room)
	}
	return r, nil
}

// maxCallBytes is the most that entries that go to disk together may have.
func (s *Spool) maxCallBytes() int64 { return s.opts.MaxBytes / 4 }

func newEmptyRequest() *request { return &request{ready: make(chan error, 1)} }

func (s *Spool) emptyRequest() *request {
	r, ok := s.requests.Get().(*request)
	if !ok {
		r = newEmptyRequest()
	}
	r.frames, r.entries, r.done, r.each = r.frames[:0], 0, nil, nil
	return r
}

// encode appends the frame of an entry to r.
func (s *Spool) encode(r *request, e *Entry) {
	at := len(r.frames)
	var header [frameHeaderBytes]byte
	r.frames = append(r.frames, header[:]...)
	var flags byte
	r.frames, flags = appendEntry(r.frames, e)
	body := r.frames[at+frameHeaderBytes:]
	le.PutUint32(r.frames[at:], uint32(len(body))|uint32(flags)<<24)
	le.PutUint32(r.frames[at+8:], checksum(s.seeds.body, body))
	r.entries++
}

// maxPooled is the largest buffer that is reused. Without a limit, a few large entries would keep
// large buffers in memory.
const maxPooled = 64 << 10

func (s *Spool) free(r *request) {
	if cap(r.frames) <= maxPooled {
		s.requests.Put(r)
	}
}

// divide moves the second half of r's entries to a new request.
func (r *request) divide() *request {
	n, at := r.entries/2, 0
	for range n {
		at += frameHeaderBytes + int(le.Uint32(r.frames[at:])&MaxEntryBytes)
	}
	rest := newEmptyRequest()
	rest.frames, rest.entries = append(rest.frames, r.frames[at:]...), r.entries-n
	rest.each, rest.from = r.each, r.from+n
	r.frames, r.entries = r.frames[:at], n
	return rest
}

// Append writes entries to the spool. It does not retain them. When it returns nil, all of them are
// durable, and only a failure of the disk can lose them. Concurrent calls share one sync. Entries
// that one goroutine appends keep their order.
//
// With the policy [Block], Append waits for room; ctx bounds that wait. It returns [ErrFull] (if
// the policy is [Reject], or if there is nothing left to drop), [ErrClosed], [ErrInUse] (another
// process has taken the spool), [ErrTooLarge], ctx's error, or the disk's error after three
// attempts. After any error except ErrTooLarge the entries may be in the spool all the same.
func (s *Spool) Append(ctx context.Context, entries ...Entry) error {
	if len(entries) == 0 {
		return nil
	}
	r, err := s.newRequest(entries...)
	if err != nil {
		return err
	}
	if err := s.enqueue(ctx, r); err != nil {
		return err
	}
	select {
	case err := <-r.ready:
		s.free(r)
		return err
	case <-ctx.Done():
	}
	s.withdraw(r)
	select {
	case err := <-r.ready:
		return err
	default:
		return ctx.Err()
	}
}

// AppendAsync writes an entry to the spool and calls done when the entry is durable or has failed.
// It does not retain the entry. The calls of done are made one at a time, in the order of the calls
// of AppendAsync. done must not wait for the spool. If AppendAsync returns an error, done is not
// called.
//
// AppendAsync waits while too many entries are on their way to disk; ctx bounds that wait and
// nothing else. It returns [ErrClosed], [ErrTooLarge] or ctx's error.
func (s *Spool) AppendAsync(ctx context.Context, entry Entry, done func(error)) error {
	r, err := s.newRequest(entry)
	if err != nil {
		return err
	}
	r.done = done
	return s.enqueue(ctx, r)
}

// AppendAllAsync is like AppendAsync for several entries. It calls done(from, to, err) for ranges of
// entries, in order. Entries can become durable, or fail, before others of the same call do.
//
// It returns how many entries it has accepted, and an error if these are not all: that of the first
// entry that is not accepted. The error is one of those of AppendAsync.
func (s *Spool) AppendAllAsync(ctx context.Context, entries []Entry, done func(from, to int, err error)) (accepted int, err error) {
	most := int(min(maxPooled, s.maxCallBytes()))
	for accepted < len(entries) {
		r := s.emptyRequest()
		if cap(r.frames) < most {
			r.frames = make([]byte, 0, most)
		}
		for i := accepted; i < len(entries) && len(r.frames)+entryBytes(&entries[i])+frameHeaderBytes <= most; i++ {
			s.encode(r, &entries[i])
		}
		if r.entries == 0 { // the next one is larger than a request should be
			if r, err = s.newRequest(entries[accepted]); err != nil {
				return accepted, err
			}
		}
		r.each, r.from = done, accepted
		n := r.entries // r is not ours any more once it is in the queue
		if err := s.enqueue(ctx, r); err != nil {
			return accepted, err
		}
		accepted += n
	}
	return accepted, nil
}

// Seal stops the spool from accepting entries. All later calls of Append and AppendAsync fail with
// [ErrClosed], and so do the calls that wait to be accepted. Entries accepted before are still
// written.
func (s *Spool) Seal() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sealed = true
	s.notifyChanged()
}

// Sync waits until every accepted entry is on disk or has failed, and all callbacks of AppendAsync
// have returned. ctx bounds the wait.
func (s *Spool) Sync(ctx context.Context) error {
	for {
		s.mu.Lock()
		if s.held == 0 {
			s.mu.Unlock()
			return nil
		}
		changed := s.nextChange()
		s.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// enqueue hands r to the committing goroutine, after waiting until there is memory for it. If no
// memory is held, any request is accepted, so that one that is larger than the limit is not stuck.
func (s *Spool) enqueue(ctx context.Context, r *request) error {
	s.mu.Lock()
	for {
		if s.sealed || s.closing {
			s.mu.Unlock()
			return ErrClosed
		}
		if s.held == 0 || s.held+len(r.frames) <= maxHeldBytes {
			break
		}
		changed := s.nextChange()
		s.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
		s.mu.Lock()
	}
	s.queue = append(s.queue, r)
	s.queued += len(r.frames)
	s.held += len(r.frames)
	s.mu.Unlock()
	s.notify(s.queueReady)
	return nil
}

// withdraw takes r out of the queue if it is still there. If r is being committed at the moment,
// withdraw marks it, so that requeue drops it instead of queueing it again.
func (s *Spool) withdraw(r *request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, other := range s.queue {
		if other == r {
			s.queue = append(s.queue[:i], s.queue[i+1:]...)
			s.queued -= len(r.frames)
			s.held -= len(r.frames)
			s.notifyChanged()
			return
		}
	}
	r.withdrawn = true
}

// A batch is a set of requests that one sync commits.
type batch struct {
	requests []*request
	bytes    int
	entries  int
}

// commitLoop is the goroutine that commits. It ends when the spool is closing and the queue is
// empty.
func (s *Spool) commitLoop() {
	defer close(s.quit)
	var b batch
	for {
		last, ok := s.nextBatch(&b)
		if !ok {
			s.notify(s.completionsDue)
			return
		}
		err := s.commit(&b)
		var wait *waitError
		if errors.As(err, &wait) {
			if !last {
				s.requeue(b.requests)
				s.awaitSpace(wait)
				continue
			}
			err = fmt.Errorf("%w: %w", ErrClosed, wait.cause)
		}
		s.finish(&b, err)
	}
}

// nextBatch waits for requests and puts them into b. last is true once the spool is closing: then a
// batch for which there is no room must fail instead of waiting. ok is false when the spool is
// closing and the queue is empty.
func (s *Spool) nextBatch(b *batch) (last, ok bool) {
	s.awaitBatch()
	s.mu.Lock()
	for len(s.queue) == 0 {
		if s.closing {
			s.mu.Unlock()
			return true, false
		}
		s.mu.Unlock()
		<-s.queueReady
		s.mu.Lock()
	}
	defer s.mu.Unlock()
	n := 0
	*b = batch{requests: b.requests[:0]}
	for ; n < len(s.queue); n++ {
		r := s.queue[n]
		if n > 0 && b.bytes+len(r.frames) > s.batchBytes {
			break
		}
		b.bytes += len(r.frames)
		b.entries += r.entries
		b.requests = append(b.requests, r)
	}
	rest := copy(s.queue, s.queue[n:])
	clear(s.queue[rest:])
	s.queue = s.queue[:rest]
	return s.closing, true
}

// awaitBatch yields the processor so that callers of Append whose entries have just become durable
// can append their next ones. Without it, the first of them would start a sync on its own and the
// others would wait for another one.
func (s *Spool) awaitBatch() {
	for range 2 * s.lastBatch {
		s.mu.Lock()
		n := len(s.queue)
		s.mu.Unlock()
		if n >= s.lastBatch {
			return
		}
		runtime.Gosched()
	}
}

// requeue returns requests that cannot be committed yet to the head of the queue, except those that
// their callers have withdrawn.
func (s *Spool) requeue(requests []*request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	queue := make([]*request, 0, len(requests)+len(s.queue))
	for _, r := range requests {
		if r.withdrawn {
			s.queued -= len(r.frames)
			s.held -= len(r.frames)
			s.notifyChanged()
			continue
		}
		queue = append(queue, r)
	}
	s.queue = append(queue, s.queue...)
	s.lastBatch = 0
}

// halve puts the second half of a batch back into the queue, because a smaller batch may still fit.
// It reports false if the batch has only one request that cannot be divided.
func (s *Spool) halve(b *batch) bool {
	if len(b.requests) == 1 && b.entries > 1 && b.requests[0].each != nil {
		b.requests = append(b.requests, b.requests[0].divide())
	}
	n := len(b.requests) / 2
	if n == 0 {
		return false
	}
	s.requeue(b.requests[n:])
	b.requests, b.bytes, b.entries = b.requests[:n], 0, 0
	for _, r := range b.requests {
		b.bytes += len(r.frames)
		b.entries += r.entries
	}
	s.batchBytes = b.bytes
	return true
}

// A waitError means that a batch has to wait for room.
type waitError struct {
	why   string
	cause error
}

func (e *waitError) Error() string { return e.why }

// awaitSpace waits until there may be room, but no longer than retryAfter.
func (s *Spool) awaitSpace(e *waitError) {
	s.mu.Lock()
	news := s.waiting != e.why
	s.waiting = e.why
	s.mu.Unlock()
	if news {
		s.log.Warn("the spool is full; waiting for space", "why", e.why)
	}
	s.setFull(e.why)
	retry := time.NewTimer(retryAfter)
	defer retry.Stop()
	select {
	case <-s.spaceFreed:
	case <-retry.C:
	}
}

// DiskFull is the value of [Stats].Full when the disk is full.
const DiskFull = "the disk is full"

func (s *Spool) atLimit() string {
	return fmt.Sprintf("it has reached its limit of %d bytes", s.opts.MaxBytes)
}

// setFull records why the spool takes no more events, or "" if it takes them, and writes a change
// to the owner file.
func (s *Spool) setFull(why string) {
	s.mu.Lock()
	news := s.full != why
	s.full = why
	s.mu.Unlock()
	if news {
		s.owner.setFull(why)
	}
}

// commit makes a batch durable. If a write or a sync fails, the spool never writes to or syncs that
// segment again: after a failed sync, the kernel may report pages as written that are not on disk.
// commit then tries the batch in a new segment.
func (s *Spool) commit(b *batch) error {
	if b.bytes == 0 { // all its requests are empty, so there is nothing to write
		return nil
	}
	for failures := 1; ; failures++ {
		if err := s.owner.check(); errors.Is(err, ErrInUse) {
			return err
		}
		if err := s.makeRoom(b); err != nil {
			return err
		}
		err := s.reserve.fill(s)
		if err == nil {
			err = s.write(b)
		}
		if err == nil {
			s.setFull("")
			s.batchBytes = min(2*s.batchBytes, maxBatchBytes)
			return nil
		}
		s.failed("cannot write to the spool", err)
		switch {
		case !disk.Full(err) && failures == maxFailures:
			return err
		case !disk.Full(err):
		case s.freeSpace(b):
			failures = 0
		case s.opts.Policy == Block:
			return &waitError{DiskFull, err}
		default:
			s.setFull(DiskFull)
			return fmt.Errorf("%w: %w", ErrFull, err)
		}
	}
}

// freeSpace takes the first measure that may free space on a full disk. It reports false if none is
// left.
func (s *Spool) freeSpace(b *batch) bool {
	s.closeActive() // so that the segment can be removed once all of it is acknowledged
	s.segmentBytes = max(s.segmentBytes/4, s.minSegmentSize())
	return s.reclaim() ||
		s.opts.Policy == DropOldest && s.dropOldest() == nil ||
		s.halve(b) ||
		s.reserve.shrink(s)
}

// makeRoom makes the batch fit into MaxBytes. It may put part of the batch back into the queue.
func (s *Spool) makeRoom(b *batch) error {
	for {
		s.mu.Lock()
		fits := s.bytes+s.quarantine.bytes.Load()+int64(b.bytes)+headerBytes <= s.opts.MaxBytes
		s.mu.Unlock()
		switch {
		case fits:
			return nil
		case s.reclaim():
		case s.opts.Policy == DropOldest && s.dropOldest() == nil:
		case s.halve(b):
		case s.opts.Policy == Block:
			return &waitError{s.atLimit(), ErrFull}
		default:
			s.setFull(s.atLimit())
			return ErrFull
		}
	}
}

// write writes the batch and syncs it. It writes to the active segment, or to a new one if there is
// none or the batch would make it too large. After an error there is no active segment.
func (s *Spool) write(b *batch) (err error) {
	if s.active == nil {
		return s.writeNew(b)
	}
	if s.active.size > headerBytes && s.active.size+int64(b.bytes) > s.segmentBytes {
		s.segmentBytes = min(2*s.segmentBytes, s.opts.SegmentBytes)
		return s.writeNew(b)
	}
	s.out = s.out[:0]
	s.encodeBatch(b, s.active.base, !s.synced)
	if err = s.writeAndSync(s.file, s.active.size); err == nil {
		s.synced = true
		s.batchWritten(b, s.active, int64(len(s.out)))
		return nil
	}
	// Free the space of the partly written batch. If truncating fails too, the frames are ignored,
	// because the next segment begins with the same position.
	err = errors.Join(err, s.file.Truncate(s.active.size))
	s.closeActive()
	return err
}

// closeActive closes the active segment. The next batch goes into a new one.
func (s *Spool) closeActive() {
	if s.file != nil {
		s.file.Close() // every batch that succeeded is synced, so an error of Close is harmless
	}
	s.active, s.file, s.synced = nil, nil, false
}

func (s *Spool) writeNew(b *batch) error {
	s.mu.Lock()
	s.lastID++
	h := segmentHeader{spool: s.id, id: s.lastID, base: s.next, settled: min(s.next, s.settled), created: time.Now(), subject: s.opts.Subject}
	s.mu.Unlock()
	s.out = append(s.out[:0], h.encode()...)
	s.encodeBatch(b, h.base, false)
	name := segmentName(h.id, h.base)
	f, err := s.fs.Create(name)
	if err != nil {
		s.closeActive()
		return err
	}
	err = s.writeAndSync(f, 0)
	if err == nil {
		if err = s.fs.Sync(); err != nil {
			err = fmt.Errorf("sync the directory: %w", err)
		}
	}
	if err != nil {
		// If the file cannot be removed, its frames are ignored, because the next segment begins
		// with the same position.
		f.Close()
		s.fs.Remove(name)
		s.closeActive()
		return err
	}
	s.closeActive()
	g := &segment{name: name, id: h.id, base: h.base, limit: noLimit, settled: h.settled, created: h.created, subject: h.subject, spool: h.spool}
	s.active, s.file, s.synced = g, f, true
	s.batchWritten(b, g, int64(len(s.out)))
	s.notify(s.cursorDue) // the segment before may be removable now
	return nil
}

func (s *Spool) writeAndSync(f File, at int64) error {
	n, err := f.WriteAt(s.out, at)
	if err == nil && n < len(s.out) {
		err = fmt.Errorf("short write: %d of %d bytes", n, len(s.out))
	}
	if err != nil {
		return err
	}
	return f.Sync()
}

// encodeBatch appends the batch's frames to s.out. If joined is true, the batch does not begin with
// the flag "first", because the frames before it in the segment may not be synced.
func (s *Spool) encodeBatch(b *batch, base uint64, joined bool) {
	index := uint32(s.next - base)
	seeds := newSeeds(s.id, base)
	for _, r := range b.requests {
		for rest := r.frames; len(rest) > 0; index++ {
			word := le.Uint32(rest)
			f := frame{
				length: int(word & MaxEntryBytes),
				flags:  byte(word >> 24),
				index:  index,
				body:   le.Uint32(rest[8:]),
			}
			if !joined {
				f.flags |= flagFirst
				joined = true
			}
			size := frameHeaderBytes + f.length
			at := len(s.out)
			s.out = append(s.out, rest[:size]...)
			seeds.put(s.out[at:], f)
			rest = rest[size:]
		}
	}
}

// batchWritten makes a batch that is durable visible to the reader.
func (s *Spool) batchWritten(b *batch, g *segment, bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if g.size == 0 {
		for _, other := range s.segments {
			other.limit = min(other.limit, g.base)
		}
		s.segments = append(s.segments, g)
	}
	s.ages.add(s.next, time.Now())
	g.size += bytes
	s.bytes += bytes
	s.next += uint64(b.entries)
	s.settled = s.next
	s.appended += uint64(b.entries)
	s.waiting = ""
	s.notifyChanged()
}

// Yield lets callers of Append go first. The reader of a spool competes with them for the disk and
// the processors, so it calls Yield between rounds, with the time that the last round took. Yield
// returns when no entry is waiting to be committed, after three times worked, after 100 ms, or when
// ctx ends. It returns at once if the spool is closing, a batch waits for room or more than a
// quarter of MaxBytes is used, because then reading is what frees space.
func (s *Spool) Yield(ctx context.Context, worked time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, min(yieldShare*worked, maxYield))
	defer cancel()
	for {
		s.mu.Lock()
		over := s.queued == 0 || s.closing || s.waiting != "" || s.bytes > s.opts.MaxBytes/4
		changed := s.nextChange()
		s.mu.Unlock()
		if over {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

const (
	yieldShare = 3
	maxYield   = 100 * time.Millisecond // because worked may include time spent waiting for the network
)

// A completion is a callback of AppendAsync or AppendAllAsync that is due, with its result.
type completion struct {
	done  func(error)
	err   error
	bytes int // of its request
}

// finish reports the result of a batch to its callers.
func (s *Spool) finish(b *batch, err error) {
	if cap(s.out) > 4*maxBatchBytes {
		s.out = nil // do not keep the buffer of one exceptionally large batch
	}
	s.lastBatch = 0
	async := false
	s.mu.Lock()
	if errors.Is(err, ErrFull) {
		s.rejected += uint64(b.entries)
	}
	for _, r := range b.requests {
		s.queued -= len(r.frames)
		if r.async() { // the caller's event stays in memory until its callback has returned
			s.completions = append(s.completions, completion{r.callback(), err, len(r.frames)})
			async = true
		} else {
			s.held -= len(r.frames)
		}
	}
	s.notifyChanged()
	s.mu.Unlock()
	for i, r := range b.requests {
		if b.requests[i] = nil; r.async() {
			s.free(r)
		} else {
			s.lastBatch++
			r.ready <- err
		}
	}
	if async {
		s.notify(s.completionsDue)
	}
}

// callbackLoop is the goroutine that runs the callbacks of AppendAsync.
func (s *Spool) callbackLoop() {
	for {
		s.mu.Lock()
		due := s.completions
		s.completions = nil
		s.mu.Unlock()
		for _, c := range due {
			c.done(c.err)
			s.mu.Lock()
			s.held -= c.bytes
			if s.held <= maxHeldBytes*3/4 { // not above: waiting calls would get in one by one
				s.notifyChanged()
			}
			s.mu.Unlock()
		}
		if len(due) > 0 {
			continue
		}
		select {
		case <-s.completionsDue:
		case <-s.quit:
			s.mu.Lock()
			rest := len(s.completions)
			s.mu.Unlock()
			if rest == 0 {
				return
			}
		}
	}
}
