// Package spool keeps events on the local disk until the cluster has acknowledged them.
//
// A program appends entries, and one sender reads them in order, sends them, and
// acknowledges them:
//
//	s, err := spool.Open(ctx, spool.Options{Dir: dir, Subject: subject})
//	err = s.Append(ctx, spool.Entry{Topic: "beamline", Value: value}) // nil: durable
//
//	records, err := s.Next(ctx, 500, 1<<20)
//	…                                                       // send them
//	err = s.Ack(records[0].Position, records[1].Position)   // in any order
//
// # What is promised
//
// What Append has returned nil for was written and synced. It is returned by Next,
// in the order of Append, until it is acknowledged, quarantined or (by [DropOldest] only)
// dropped: whatever becomes of the process, and after a power cut. Entries may be
// returned again: after a kill those that were not yet acknowledged, after a power cut also those
// that were in the last seconds. An entry whose bytes are damaged is never returned; it
// is counted, and its bytes are kept in the quarantine.
//
// Not promised: that a disk which lies about its syncs, or dies, keeps anything; and
// that an entry for which Append has failed is not in the spool.
//
// # How it is done
//
// Entries are frames in segments, files of a few MiB each. One goroutine commits: it
// writes what all callers of Append have handed in with one write, syncs once, and then tells
// them all. When a write or a sync fails, that file is never touched again, since the
// system may take for written what is not. The batch goes into a new segment, which
// begins with the same position; so whatever is left of it in the old one is not read.
//
// A second goroutine keeps the cursor, which says what is acknowledged, and removes
// segments that the cursor has passed, once it is durable. A third calls back for AppendAsync.
//
// A crash leaves a torn end. Open finds the last good frame, and the next segment
// begins behind it. Frames say which of them were synced before others were written: so what a
// crash has torn, which was never acknowledged, is told from damage, which was.
//
// The files are described in docs/spool-format.md. All of this is tested against a
// model of a file system that loses whatever was not synced (package disktest,
// crash_test.go): with any one sync taken out of this package, that test fails.
package spool
