// Package kfakedir reads the data directory of an earlier version's broker.
//
// Until the embedded broker got an engine of its own, it was the library kfake, and
// kfake wrote the data directory. This package reads such a directory, so that the
// records, topics, ACLs and committed offsets in it can be converted:
//
//	found, err := kfakedir.Found(dir)
//	data, err := kfakedir.Read(dir)
//	for _, warning := range data.Warnings { … } // what was damaged or is lost
//	err = segment.LinkOrCopy(path)              // the records themselves
//
// Nothing in the directory is changed. It must not be in use.
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
//		<offset>.idx     leader epochs and the like; not needed
//		snapshot.json    offsets and segments as of the last clean stop
//
// JSON files are replaced by way of a file with the suffix ".tmp". The two logs hold
// frames: length, CRC-32C and version, in little endian, then JSON. The last of
// several frames about the same thing counts.
//
// # Damage
//
// A killed process leaves torn tails at most. What follows damage is kept where that is
// possible, since the old engine went on appending behind it. Read knows these errors of the
// old engine and heals them:
//
//   - It put the time of arrival into a batch with the attribute LogAppendTime after
//     the checksum was made. At its next start it would have cut the log there. The batch is
//     taken if its records are whole, and gets a new checksum.
//   - It forgot the end of a partition when all records had expired, and began at offset 0
//     again. The end is found in what the last clean stop noted, in committed offsets, in
//     producers' state and in file names.
//   - It counted transactions wrong after a kill. Their state is found in the batches. The
//     records of transactions that were aborted, or never finished, are left out, because the new
//     engine has no transactions and would show them to everybody.
//   - It stopped reading groups.log at a torn frame but appended behind it.
//   - It stored batches whose number of records is zero or negative, and let the next ones
//     overwrite offsets. Such batches are left out, and so are batches whose offsets are
//     taken already.
//
// The new log has no gaps between offsets. Empty batches take the place of those that are left out or lost, and
// of those that compaction had removed.
//
// # How to convert
//
// The new layout has a directory for each partition, and in it files
// <offset, 20 digits>.log with the same batches. A conversion that may be interrupted at any
// point, and that never loses the only copy, works as follows:
//
//  1. Remove what an interrupted conversion left in the staging directory, and make it.
//  2. Read. An error here ends the conversion: it says that something cannot be read now, and not
//     that it is damaged.
//  3. For each partition, call [Segment.LinkOrCopy] for its segments, with [Segment.Base] as the name. A file
//     that is all good is hard-linked, which needs neither space nor time. A linked file must never be
//     written to, or the old directory changes too. So make another, empty file with [Partition.End] as the
//     name: records are appended to that one. It says as well where a partition without records begins.
//     (Or make the last segment with [Segment.Copy].)
//  4. Write everything else of the new layout: [Partition.Start], as records may be deleted within a
//     segment; producers; topics, with a new ID if theirs is zero; ACLs; groups. The leader epoch of the new
//     engine must be above [Partition.Epoch] of all partitions, because epochs go up within a log.
//  5. Sync, rename the staging directory to its final name, sync the parent. From here on
//     the new layout counts.
//  6. Rename the old directory out of the way. Keep it if there were warnings.
package kfakedir
