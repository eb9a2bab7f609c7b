// Package journal stores a set of keys and values on disk: the small state of a broker that must
// survive a restart, such as topics, access rights and committed offsets.
//
// The owner keeps the state in memory and appends each change to the journal. When the owner starts
// again, the journal passes the state to its load function:
//
//	j, err := journal.Open(journal.Options{FS: dir, Sync: true}, state.load)
//	…
//	err = j.Append(journal.Entry{Key: key, Value: value}) // nil: it survives
//
// Start reading at [Journal] in journal.go.
//
// # Guarantees
//
// If [Journal.Append] returns nil, its entries survive if the process is killed and, with
// [Options.Sync], after a power cut. The entries of one call survive together or not at all. What
// survives is always a prefix of what was appended: if a change is lost, all later changes are lost
// too. Without Sync, a power cut may lose the last changes, but the rest is still such a prefix.
// After a clean Close nothing is lost in either case.
//
// If Append fails, its entries may or may not be there after a crash.
//
// Damage is never ignored. [Open] fails with [ErrDamaged] and reports the position, unless the
// damage is what a crash leaves at the end of the journal.
//
// # Implementation
//
// Changes are appended to a log. Calls that arrive during a write are written together after it,
// with one write and one sync. There is no goroutine for that: the first of the waiting callers
// writes for all of them.
//
// When the log has twice the size of the state, it is compacted. Calls of Append do not wait for
// that. Compaction first starts a new segment of the log. Then it writes a snapshot of the state in
// the older files. When the snapshot is durable, it removes those files. It reads only the files
// and never asks the owner for its state. So it needs no lock of the owner, and the snapshot cannot
// contain a change that was not appended. The price is memory for the keys that have changed since
// the last snapshot, while compaction runs. If compaction fails, everything is still in the files,
// and it is retried later.
//
// If a write fails, the log is truncated to what was acknowledged, and the next call tries again.
// If a sync or the truncation fails, it is unknown what is on the disk, and all later calls fail
// until the journal is opened again.
//
// After a failed sync, Linux keeps the bytes and names that it could not write, so that processes
// see them, but no later sync writes them. A power cut may then take them from under what was added
// since. So Open does not trust what the flag described below does not vouch for: with
// [Options.Sync] it writes those frames again, it replaces a segment without frames, and it
// renews the name of a snapshot before it removes what the snapshot replaces.
//
// # Files
//
// A journal has a directory of its own, with two kinds of files. Numbers in names have 20 decimal
// digits.
//
//	N.log        a segment of the log; the first is 1
//	N.snapshot   replaces all segments before segment N
//	*.tmp        a snapshot that is being written; useless after a crash
//
// Each begins with a header of 40 bytes. All numbers are little-endian, and all checksums are
// CRC32C.
//
//	magic      8  "DSPLOG\r\n" or "DSPSNAP\n"
//	version    4  1
//	number     8  N
//	id        16  random
//	checksum   4  of the bytes before
//
// Frames follow, back to back. A frame of a segment is one write: the entries of one or more calls
// of Append. It is valid as a whole or not at all.
//
//	length     4  of the payload, at most 80 MiB
//	flags      4  1: everything before this frame was synced when it was written
//	              2: the last frame of a snapshot
//	sequence   8  counts the frames of the log, across segments; in a snapshot from 0
//	payload    4  checksum of the payload
//	checksum   4  of the bytes before, see below
//	payload    …  entries
//
// An entry is the length of its key, the key, the length of its value plus 1, and the value.
// Lengths are varints as in encoding/binary. If the second length is 0, the key is deleted. The
// last frame of a snapshot contains two varints instead: the number of entries in the snapshot, and
// the sequence number of the first frame of segment N.
//
// The checksum of a frame's header does not start from 0. It starts from the checksum of the file's
// id, XOR the two halves of the frame's offset. So bytes from another file, or from another
// position, are not mistaken for a frame. The sequence number reveals frames that are missing at
// the end of a segment. The first flag distinguishes a crash from damage: if a bad frame is
// followed by a frame with the flag, the bad one had been synced, so a crash cannot have torn it.
//
// All of this is tested on a file system that loses everything that was not synced (package
// disktest, crash_test.go). The test fails if any one sync is removed from this package.
package journal
