// Package spool keeps events on the local disk until the cluster has acknowledged them.
//
// A program appends entries. One sender reads them in order, sends them to the cluster, and
// acknowledges them to the spool:
//
//	s, err := spool.Open(ctx, spool.Options{Dir: dir, Subject: subject})
//	err = s.Append(ctx, spool.Entry{Topic: "beamline", Value: value}) // nil: durable
//
//	records, err := s.Next(ctx, 500, 1<<20)
//	…                                                       // send them
//	err = s.Ack(records[0].Position, records[1].Position)   // in any order
//
// # Guarantees
//
// When Append returns nil, its entries have been written and synced. Next returns them in the order
// in which they were appended, until they are acknowledged, quarantined, discarded with
// [Spool.Discard] or dropped (by [DropOldest] only). This holds if the process is killed and if the
// machine loses power.
//
// Next may return an entry more than once. After a kill it returns the entries that were not yet
// acknowledged. After a power cut it may also return entries that were acknowledged in the last few
// seconds.
//
// Next never returns an entry whose bytes are damaged. The spool counts it as damaged and keeps its
// bytes in the quarantine.
//
// Two things are not guaranteed. A disk that fails, or that reports a sync as done when it is not,
// can lose entries. And an entry for which Append returned an error may be in the spool all the
// same.
//
// # How it works
//
// Entries are stored as frames in segments, which are files of a few MiB each. One goroutine
// commits: it takes the entries of all pending calls of Append, writes them with one write, syncs
// once, and then answers all these calls. When a write or a sync fails, the spool never writes to
// that file again, because the kernel may report pages as written that are not on disk. The batch
// goes into a new segment that begins with the same position, and the reader ignores whatever the
// failed write left in the old segment.
//
// A second goroutine maintains the cursor, which records the acknowledged entries. Once a cursor is
// durable, this goroutine removes the segments that lie before it. A third goroutine runs the
// callbacks of AppendAsync.
//
// A crash can leave a torn frame at the end of a segment. Open finds the last good frame, and the
// next segment begins after it. A flag in each frame says whether all frames before it were synced
// when it was written. With that flag the spool distinguishes torn frames, which were never
// reported as durable, from damaged ones, which were.
//
// After a failed sync, the bytes and the name of a segment may exist only in memory. The next process
// sees them there, but no later sync writes them. So a process appends to a segment of an earlier one
// only if the flags or the cursor prove that all of it is on the disk.
//
// The file format is described in docs/spool-format.md. Start reading at spool.go (Open), append.go
// (the write path), read.go (the read path) and cursor.go (acknowledgements).
//
// The tests run on a model of a file system that loses everything that was not synced (package
// disktest, crash_test.go). If any one sync is removed from this package, the crash test fails.
package spool
