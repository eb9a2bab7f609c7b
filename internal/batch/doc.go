// Package batch reads, checks and stamps record batches: the unit in which Kafka's clients send
// records, brokers store them and consumers receive them. It supports only message format 2, which
// clients have written since Apache Kafka 0.11 (KIP-98).
//
// Start reading at [Validate] and [Header].
//
// # Layout
//
// A batch consists of a header of [HeaderBytes] and the records, which may be compressed as a
// whole:
//
//	base offset       int64   offset of the first record
//	length            int32   bytes after this field
//	leader epoch      int32   set by the broker
//	magic             int8    2
//	checksum          uint32  CRC-32C of everything after this field
//	attributes        int16   codec (bits 0 to 2), log append time (3),
//	                          transactional (4), control (5), delete horizon (6)
//	last offset delta int32   offset of the last record, minus the base offset
//	base timestamp    int64   milliseconds; the records have differences to it
//	max timestamp     int64
//	producer ID       int64   -1 without idempotence
//	producer epoch    int16
//	base sequence     int32
//	count             int32   number of records
//
// All numbers above are big-endian. Those in records have a variable length:
//
//	length, attributes (one byte), timestamp delta, offset delta,
//	key length, key, value length, value,
//	number of headers, and for each: key length, key, value length, value
//
// # From producer to consumer
//
// [Validate] checks a batch that a producer sent. [Stamp] sets its offset and the time of its
// arrival. The log stores the result and sends it to consumers without checking it again. If
// consumers cannot read a batch, all consumers of the partition stop at it. So Validate must never
// accept such a batch.
//
// Validate follows Apache Kafka 4.3: it rejects what Kafka's broker rejects, with the same code. It
// is stricter where Kafka's broker accepts batches that consumers cannot read, or read at wrong
// offsets:
//
//   - a compressed record whose length does not match its fields: INVALID_RECORD,
//   - uncompressed records whose offset deltas are not 0, 1, 2 and so on: INVALID_RECORD,
//   - compressed data with a defect that the decoders in Java ignore, such as bytes after the end or a
//     wrong LZ4 checksum: UNKNOWN_SERVER_ERROR, which is the broker's code for data that it cannot
//     decompress,
//   - more data after decompression than the limit below: MESSAGE_TOO_LARGE.
//
// If a batch has several faults, Validate returns the code of the one that Kafka's broker finds
// first. The exception is a batch with bad records before damaged compressed data, which may get
// the code of either.
//
// # Decompression
//
// Records are decompressed piece by piece. They are never held in memory as a whole, except for one
// Snappy or LZ4 block, or one record that the caller wants to see. Buffers and decoders are pooled,
// and only a few batches are decompressed at the same time. A batch may decompress to 1000 times
// its size, but at least 16 MiB and at most 256 MiB, so that a small request cannot keep the broker
// busy for long.
package batch
