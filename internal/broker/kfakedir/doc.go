// Package kfakedir reads the data directory of an earlier version's broker.
//
// Earlier versions used the library kfake as their embedded broker, and kfake wrote the data
// directory. This package reads such a directory, so that its records, topics, ACLs and committed
// offsets can be converted:
//
//	found, err := kfakedir.Found(dir)
//	data, err := kfakedir.Read(dir)
//	for _, warning := range data.Warnings { … } // what is damaged or lost
//	err = segment.LinkOrCopy(path)              // the records themselves
//
// The package does not change the directory. The directory must not be in use.
//
// # The old layout
//
//	meta.json            the cluster's ID
//	topics.json          topics: name, ID, number of partitions, configs
//	acls.json            ACLs
//	broker_configs.json  dynamic configs of the broker
//	groups.log           committed offsets and generations of consumer groups
//	pids.log             producer IDs that were given out
//	seq_windows.json     the last batches of each producer; only after a clean stop
//	partitions/<topic>-<partition>/
//		<offset>.dat     record batches as on the wire, back to back
//		<offset>.idx     leader epochs and other data that is not needed
//		snapshot.json    offsets and segments as of the last clean stop
//
// A JSON file was replaced by writing a file with the suffix ".tmp" and renaming it. The two logs
// consist of frames: length, CRC-32C and version, in little endian, then JSON. If several frames
// are about the same thing, the last one applies.
//
// # Damage
//
// A killed process leaves at most torn tails. The old engine appended behind torn tails and other
// damage, so data behind damage is kept where possible. Read detects and repairs these faults of
// the old engine:
//
//   - It wrote the time of arrival into batches with the attribute LogAppendTime after it had
//     computed their checksum. At its next start it would have truncated the log there. Such a batch
//     is kept if its records are complete, and gets a new checksum.
//   - When all records of a partition had expired, it forgot the partition's end and started again at
//     offset 0. The end is reconstructed from the snapshot of the last clean stop, committed offsets,
//     producers' state and file names.
//   - Its record of transactions was wrong after a kill. The state of transactions is therefore read
//     from the batches. Records of transactions that were aborted or never finished are left out,
//     because the new engine has no transactions and would return them to every consumer.
//   - It stopped reading groups.log at a torn frame, but had appended behind it.
//   - It stored batches whose number of records is zero or negative, so that the following batches
//     used the same offsets again. Such batches are left out, and so are batches whose offsets are
//     already in use.
//
// The new log has no gaps between offsets. Empty batches replace those that are left out or lost,
// and those that compaction removed.
//
// # How to convert
//
// The new layout has a directory for each partition. In it, files named <offset, 20 digits>.log
// contain the same batches. A conversion that may be interrupted at any point, and that never loses
// the only copy, works as follows:
//
//  1. Remove the staging directory of an interrupted conversion, and create it again.
//  2. Call Read. An error ends the conversion: it means that something cannot be read now, not
//     that it is damaged.
//  3. For each partition, call [Segment.LinkOrCopy] for its segments, with [Segment.Base] as the
//     file name. A file without faults is hard-linked, which takes neither space nor time. A linked
//     file must never be written to, because that would change the old directory too. So create
//     another, empty file with [Partition.End] as its name; records are appended to it. Its name
//     also records where a partition without records begins. (Alternatively, create the last
//     segment with [Segment.Copy].)
//  4. Write everything else: [Partition.Start], because the first offset may be within a segment;
//     producers; topics, with a new ID if theirs is zero; ACLs; groups. The leader epoch of the new
//     engine must be above [Partition.Epoch] of all partitions, because epochs never decrease
//     within a log.
//  5. Sync, rename the staging directory to its final name, and sync the parent. From here on the
//     new layout is the valid one.
//  6. Rename the old directory out of the way. Keep it if there were warnings.
package kfakedir
