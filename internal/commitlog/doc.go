// Package commitlog keeps the records of one partition on disk: it appends record batches, serves them by
// offset, and removes the oldest ones.
//
//	l, err := commitlog.Open(commitlog.Options{FS: root.Sub("beamline-0")})
//	a, err := l.Append(b, h, epoch)              // b was checked by batch.Validate
//	b, err := l.Read(buf, offset, 1<<20, true)   // whole batches, as they are stored
//	err = l.Expire(7*24*time.Hour, -1)           // each minute, and Maintain
//	err = l.Close()
//
// A batch is stored as it was received, except for what the broker decides: its offset, the leader epoch, and the
// time of arrival, which is the timestamp of all its records. So a fetch is a read of the file.
//
// # What is promised
//
// A batch for which Append has returned nil is read at its offset, with the same bytes, until it expires or is
// deleted: whatever becomes of the process and, with [Options.Sync], also after a power cut. Readers see
// acknowledged batches only. Start and End never go back, not even if all records expire. Deleted
// records stay deleted. A batch that is damaged on disk is not served: reading it is an error.
//
// Without Sync a power cut may cost the last batches. What is left is the log as it was at
// some moment after the last checkpoint.
//
// # Layout on disk
//
// A partition has a directory of its own. A file is named after the offset of its first record.
//
//	00000000000000000000.log    batches as on the wire, back to back: a segment
//	00000000000000000000.index  where some of its batches are
//	00000000000000052340.log    the next segment; the last one is active: it is appended to
//	checkpoint                  what a start has to know
//
// Only the segments count. The offset of each batch is the one at which the batch before it ends, without gaps, and
// a segment begins where the one before it ends. Each batch has a checksum, which covers neither its offset, nor its length,
// nor its leader epoch; the first two are checked against the batch before, the last against the checkpoint.
//
// An index has an entry for every 64 KiB of a segment: offset, position, and the greatest timestamp so far. It is loaded
// when the segment is read. What is missing in it is scanned; so it need not be synced, and may be deleted.
//
// The checkpoint has the start of the log, the list of the segments with the times of arrival of their first and last batch, the
// leader epochs, the idempotent producers with their last five batches, and the recovery point: the place
// in the last segment up to which all of this is true and all batches are on disk.
// It is replaced as a whole, by a rename. The comments at [checkpoint] and [index] describe both files.
//
// # How an append becomes durable
//
// Append stamps the batch, takes its turn, checks the producer's sequence number, and writes the batch behind the last
// one with a single write. If that fails, as on a full disk, the file is cut back, and nothing has happened.
//
// Without Sync the batch is acknowledged then. It reaches the disk when the system writes it, or
// with the next checkpoint: when a segment is complete, in the background, and when Maintain finds that a mebibyte was appended or
// that the log is idle.
//
// With Sync the caller then waits for a sync. Of all callers that wait, one syncs, and the others go on writing
// meanwhile; its sync makes all durable that was written before it began. The name of a new segment is synced
// before the first batch is written to it, and a segment is synced as a whole before the next one begins.
//
// After a failed sync nobody knows what is on disk: the system regards as written what is not. So that is the end of
// writing until the log is opened again. What may be affected is written once more, so that the next
// process cannot take it for durable without a sync.
//
// # Recovery
//
// Open reads the checkpoint. If the file of the last segment ends at the recovery point, and there is no file that is named after
// the offset at which it ends, then nothing was appended since. After a clean stop that is so, and three files are all that Open looks at.
//
// Otherwise Open reads, from the recovery point on, as many batches as are good, goes on with the segment
// that is named after the offset at which they end, and so on. What is not good is cut off: after the death of the process that is at
// most a batch that was not acknowledged, since a batch is written when the one before it is complete; after a power cut it
// is what was not synced. The cut is synced, or else a later power cut could bring the old bytes back behind new batches.
//
// If there is no good checkpoint, all segments are read, and the log starts where the first one does. This is also how a
// converted log begins, whose segments another program has written. Their batches have to follow each other
// without gaps in the offsets, and the leader epochs must not decrease. If they have no time of arrival, it is the file's modification time.
//
// Damage before the recovery point does not stop Open, which does not look there. Whatever was written before the
// process has opened the file is checked when it is read. Read then fails with [ErrDamaged], Diagnostics name the file, and all
// other batches can be read. If the last segment has lost its end, the next batch begins a new one.
//
// # Retention
//
// Records are removed by whole segments: when the last batch of a segment has arrived longer ago than the retention allows, or when the
// log is too large without it. The times are those of arrival; timestamps that producers set do not matter. So that records are
// removed soon after they expire, a segment gets no more batches a quarter of the retention time after its first one.
// If even the active segment has expired, an empty one takes its place, and its name keeps the end of the log.
//
// DeleteRecords moves the start to any offset. In both cases the checkpoint says where the log starts before a file is deleted; so a
// crash leaves at most files that are not part of the log, which Maintain deletes. A segment that
// is being read is deleted when the last reader is done with it.
//
// # What is bounded
//
//   - Memory: nothing is kept per batch. A segment that is in use has its file open and its index in memory, 24 KiB at
//     most. At most four segments beside the active one are open, unless they are not yet synced, and none when the log is idle.
//   - Producers: 16,384 at most, and none that was idle for a day. Leader epochs: 1,000 at most.
//   - Start: after a kill Open reads what was appended since the last checkpoint, with a buffer of 256 KiB. That is less than a mebibyte plus
//     what was appended since the last call of Maintain, and hardly more than a segment as long as the disk keeps up.
//   - Waiting: a waiting reader costs an entry in a map, see [Log.Notify]. There is no goroutine per log.
//
// # Reading this package
//
// Begin with log.go, which has the state and its locks, and append.go. Then, in any order:
// sync.go (group commit, failed syncs), read.go, segment.go (open files), index.go and scan.go (finding and
// checking batches), times.go (offsets by time), producers.go, epochs.go, notify.go, checkpoint.go, recover.go, and retention.go.
//
// The tests run the log on a file system that loses whatever was not synced (crash_test.go): with any one sync
// taken out of this package, they fail. They let each call of the file system fail, cut and flip every bit of
// a small log, and compare the log with a list (model_test.go).
package commitlog
