// Package commitlog stores the records of one partition on disk. It appends record batches, reads
// them by offset, and removes the oldest ones.
//
//	l, err := commitlog.Open(commitlog.Options{FS: root.Sub("beamline-0")})
//	a, err := l.Append(b, h, epoch)              // b was checked by batch.Validate
//	b, err := l.Read(buf, offset, 1<<20, true)   // whole batches, as they are stored
//	err = l.Expire(7*24*time.Hour, -1)           // each minute, and Maintain
//	err = l.Close()
//
// A batch is stored as it was received, except for the fields that the broker sets: its offset, the
// leader epoch, and the time of arrival, which is the timestamp of all its records. So a fetch only
// has to read bytes from the file.
//
// # Guarantees
//
// If Append returns nil for a batch, the batch can be read at its offset, with the same bytes,
// until it expires or is deleted. This holds if the process is killed and, with [Options.Sync],
// after a power cut. Readers only see acknowledged batches. Start and End never decrease, even if
// all records expire. Deleted records stay deleted. A batch that is damaged on disk is not
// returned; reading it is an error.
//
// Without Sync, a power cut may lose the most recent batches. The log is then in the state that it
// had at some moment after the last checkpoint.
//
// # Layout on disk
//
// Each partition has a directory of its own. The files of a segment are named after the offset of
// its first record.
//
//	00000000000000000000.log    batches as on the wire, back to back: a segment
//	00000000000000000000.index  the positions of some of its batches
//	00000000000000052340.log    the next segment; the last one is active: it is appended to
//	checkpoint                  what Open has to know
//
// The segments are the source of truth. Each batch begins at the offset where the one before it
// ends, without gaps, and each segment begins where the one before it ends. Each batch has a
// checksum. The checksum covers neither its offset, nor its length, nor its leader epoch. Offset
// and length are checked against the batch before, the leader epoch against the checkpoint.
//
// An index has an entry for every 64 KiB of a segment: offset, position, and the greatest timestamp
// so far. It is loaded when the segment is read. What it does not cover is scanned. So an index
// need not be synced and may be deleted.
//
// The checkpoint contains
//
//   - the start of the log,
//   - the list of segments with the times of arrival of their first and last batch,
//   - the leader epochs,
//   - the idempotent producers with their last five batches, and
//   - the recovery point: the position in the last segment for which all of this is valid, and up to
//     which all batches are on disk.
//
// It is replaced as a whole, by a rename. The comments of [checkpoint] and [index] describe the
// format of both files.
//
// # How an append becomes durable
//
// Append stamps the batch, locks the log, checks the producer's sequence number, and writes the
// batch after the last one with a single write. If the write fails, for example because the disk is
// full, the file is truncated to its former size and the log is unchanged.
//
// Without Sync the batch is acknowledged at that point. It reaches the disk when the operating
// system writes it, or with the next checkpoint. A checkpoint is written in the background when a
// segment is complete, and by Maintain when at least a mebibyte was appended or the log is idle.
//
// With Sync the caller then waits for a sync. One of the waiting callers syncs, for all batches
// written before the sync began. Meanwhile other callers continue to write. The name of a new
// segment is synced before the first batch is written to it, and a segment is synced completely
// before the next one begins.
//
// After a failed sync it is unknown what is on disk: the operating system may treat data as written
// that is not. So the log accepts no more writes until it is opened again. The affected bytes are
// written once more. Otherwise the next process could take them for durable because its own sync
// succeeds. That may fail too, and a name cannot be written again. So the next process does not
// trust what it finds: with Sync, Open writes the batches after the recovery point once more. A
// segment without batches is replaced before the first append. And the checkpoint is replaced by a
// copy before files are removed that an older one needs.
//
// # Recovery
//
// Open reads the checkpoint. If the file of the last segment ends at the recovery point, and there
// is no next segment file, nothing was appended since the checkpoint. This is the case after a
// clean stop, and Open then looks at three files only.
//
// Otherwise Open reads valid batches from the recovery point on. It continues with the segment
// whose name is the offset at which they end, and so on. The rest of the file is cut off. After a
// kill that is at most one batch that was not acknowledged, since a batch is written only when the
// one before it is complete. After a power cut it is what was not synced. The truncation is synced.
// Otherwise a later power cut could bring the old bytes back after new batches.
//
// Without a valid checkpoint, Open reads all segments, and the log starts at the first one. A
// converted log, whose segments another program has written, is opened in the same way. Its batches
// must follow each other without gaps in the offsets, and the leader epochs must not decrease. If
// the batches have no time of arrival, the file's modification time is used.
//
// Damage before the recovery point does not stop Open, which does not read that part. All bytes
// that were written before this process opened the file are checked whenever they are read. If they
// are damaged, Read fails with [ErrDamaged], a diagnostic names the file, and all other batches can
// still be read. If the last segment has lost its end, the next batch begins a new segment.
//
// # Retention
//
// Records are removed by whole segments: when the last batch of a segment arrived longer ago than
// the retention time, or when the log without the segment still has the maximum size. The times are
// those of arrival; timestamps set by producers are ignored. To remove records soon after they
// expire, a segment accepts no more batches once a quarter of the retention time has passed since
// its first batch. If even the active segment has expired, an empty one replaces it, and its name
// preserves the end of the log.
//
// DeleteRecords moves the start to any offset. In both cases the checkpoint records the new start
// before a file is deleted. So a crash leaves at most files that are not part of the log, and
// Maintain deletes them. If a segment is being read, its last reader deletes it.
//
// # Limits
//
//   - Memory: nothing is kept per batch. A segment in use has an open file and its index in memory, at
//     most 24 KiB. In addition to the active one, at most four segments are open, unless they are not yet
//     synced. If the log is idle, none is open.
//   - Producers: at most 16,384, and none that was idle for a day. Leader epochs: at most 1,000.
//   - Start: after a kill, Open reads what was appended since the last checkpoint, with a buffer of
//     256 KiB. That is less than a mebibyte plus what was appended since the last call of Maintain. It
//     is hardly more than a segment as long as the disk keeps up.
//   - Waiting: a waiting reader takes one map entry, see [Log.Notify]. There is no goroutine per log.
//
// # Reading this package
//
// Start with log.go, which has the state and its locks, and append.go. Then, in any order: sync.go
// (group commit, failed syncs), read.go, segment.go (open files), index.go and scan.go (finding and
// checking batches), times.go (offsets by time), producers.go, epochs.go, notify.go, checkpoint.go,
// recover.go, and retention.go.
//
// The tests run the log on a model of a file system that loses everything that was not synced
// (crash_test.go). They fail if any one sync is removed from this package. Other tests let each
// call of the file system fail, truncate and flip every bit of a small log, and compare the log
// with a list (model_test.go).
package commitlog
