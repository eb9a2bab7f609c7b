// Package journal keeps a set of keys and values on disk: the small state of a broker
// that must survive it, such as topics, access rights and committed offsets.
//
// The owner keeps the state in memory and tells the journal of each change. When the
// owner starts again, the journal tells it the state:
//
//	j, err := journal.Open(journal.Options{FS: dir, Sync: true}, state.load)
//	…
//	err = j.Append(journal.Entry{Key: key, Value: value}) // nil: it survives
//
// # What is promised
//
// The entries for which [Journal.Append] has returned nil survive the death of the
// process, and with [Options.Sync] a power cut too. The entries of one call survive
// together or not at all. What survives is always a prefix of what was appended: no
// change is kept when one before it is lost. Without Sync a power cut may take the
// last changes, but what is left is such a prefix all the same. After a clean
// Close nothing is lost in either case.
//
// An Append that fails promises nothing: its entries may be there after a crash.
//
// A damaged file is never passed over. [Open] fails with [ErrDamaged] and says where,
// unless the damage is what a crash leaves at the end of the journal.
//
// # How it is done
//
// Changes go to a log. Calls that come while another one writes are written together
// after it, with one write and one sync. There is no goroutine for that: the first of the waiting
// callers does it for all of them.
//
// When the log has grown to twice the size of the state, it is compacted. That happens beside the
// calls of Append, which never wait for it: a new segment of the log is started, then a snapshot is
// written of what the older files say, and only when the snapshot is durable are they
// removed. The journal needs nothing of the owner for that, so that no lock of the owner, and no
// change it has not made yet, can get into it. The price is memory for the keys that were changed
// since the last snapshot, for as long as it takes. When compaction fails, everything is still in
// the files, and it is tried again later.
//
// If a write fails, the log is cut back to what was acknowledged, and the next call tries
// again. If a sync or the cut fails, nobody knows what is on the disk, and each later call
// fails until the journal is opened again.
//
// # Files
//
// A journal has a directory of its own, with two kinds of files. Numbers in names have
// 20 decimal digits.
//
//	N.log        a segment of the log; the first is 1
//	N.snapshot   replaces all segments before segment N
//	*.tmp        a snapshot that is being written; of no use after a crash
//
// Each begins with a header of 40 bytes. All numbers are little-endian, and all
// checksums are CRC32C.
//
//	magic      8  "DSPLOG\r\n" or "DSPSNAP\n"
//	version    4  1
//	number     8  N
//	id        16  random
//	checksum   4  of the bytes before
//
// Frames follow, back to back. A frame of a segment is what was written at once: the entries of one or
// more calls of Append. It counts as a whole or not at all.
//
//	length     4  of the payload, at most 80 MiB
//	flags      4  1: everything before this frame was synced when it was written
//	              2: the last frame of a snapshot
//	sequence   8  counts the frames of the log, across segments; in a snapshot from 0
//	payload    4  checksum of the payload
//	checksum   4  of the bytes before, see below
//	payload    …  entries
//
// An entry is the length of its key, the key, the length of its value plus 1, and the
// value. Lengths are varints as of encoding/binary. Where the second one is 0, the key is
// deleted. The last frame of a snapshot holds two varints instead: the number of entries in the
// snapshot, and the sequence number of the first frame of segment N.
//
// The checksum of a frame's header begins with the checksum of the file's id, XOR the two halves of the frame's
// offset, in place of 0. That keeps bytes of another file, or of another place, from passing for a frame. The sequence number shows that frames are missing at the
// end of a segment. The first flag tells a crash from damage: a torn frame in front of one that
// has the flag was synced, so that no crash can have torn it.
//
// All of this is tested against a file system that loses whatever was not synced (package disktest,
// crash_test.go): with any one sync taken out of this package, that test fails.
package journal
