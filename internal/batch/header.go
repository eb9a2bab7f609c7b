package batch

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
)

// HeaderBytes is the size of a batch without its records.
const HeaderBytes = 61

// Positions of the fields in the header. The base offset and the length are before the bytes that
// the length counts.
const (
	baseOffsetAt      = 0
	lengthAt          = 8
	leaderEpochAt     = 12
	magicAt           = 16
	crcAt             = 17
	attributesAt      = 21
	lastOffsetDeltaAt = 23
	baseTimestampAt   = 27
	maxTimestampAt    = 35
	producerIDAt      = 43
	producerEpochAt   = 51
	baseSequenceAt    = 53
	countAt           = 57

	overhead = leaderEpochAt // bytes that the length does not count
)

const magic2 = 2 // the only format written since Kafka 0.11

// The bits of the attributes. All others are unused; [Stamp] clears them.
const (
	codecBits              = 0b111
	appendTimeBit          = 1 << 3
	transactionalBit       = 1 << 4
	controlBit             = 1 << 5
	deleteHorizonBit       = 1 << 6
	knownAttributes        = codecBits | appendTimeBit | transactionalBit | controlBit | deleteHorizonBit
	noProducer             = -1
	noSequence       int32 = -1
)

// Header is the header of a batch. Its fields are as on the wire: apart from Magic and the minimum
// Length, [ParseHeader] does not check them.
type Header struct {
	BaseOffset      int64
	Length          int32 // bytes of the batch after this field
	LeaderEpoch     int32
	Magic           int8
	CRC             uint32 // CRC-32C of all bytes from Attributes on
	Attributes      int16
	LastOffsetDelta int32
	BaseTimestamp   int64 // in milliseconds since 1970
	MaxTimestamp    int64 // in milliseconds since 1970
	ProducerID      int64 // -1: the producer is not idempotent
	ProducerEpoch   int16
	BaseSequence    int32
	Count           int32 // number of records
}

var (
	errShort    = errors.New("record batch: truncated header")
	errMagic    = errors.New("record batch: not message format 2")
	errTooShort = errors.New("record batch: length is less than that of a header")
	errTooLong  = errors.New("record batch: length is more than 2 GiB")
)

// ParseHeader parses the header at the beginning of b. It fails if b is shorter than [HeaderBytes],
// if the format is not version 2, if Length is too small for a header, or if the size of the batch
// is more than an int32 holds. b need not contain the rest of the batch. ParseHeader does not
// allocate.
func ParseHeader(b []byte) (Header, error) {
	if len(b) < HeaderBytes {
		return Header{}, errShort
	}
	h := Header{
		BaseOffset:      int64(binary.BigEndian.Uint64(b[baseOffsetAt:])),
		Length:          int32(binary.BigEndian.Uint32(b[lengthAt:])),
		LeaderEpoch:     int32(binary.BigEndian.Uint32(b[leaderEpochAt:])),
		Magic:           int8(b[magicAt]),
		CRC:             binary.BigEndian.Uint32(b[crcAt:]),
		Attributes:      int16(binary.BigEndian.Uint16(b[attributesAt:])),
		LastOffsetDelta: int32(binary.BigEndian.Uint32(b[lastOffsetDeltaAt:])),
		BaseTimestamp:   int64(binary.BigEndian.Uint64(b[baseTimestampAt:])),
		MaxTimestamp:    int64(binary.BigEndian.Uint64(b[maxTimestampAt:])),
		ProducerID:      int64(binary.BigEndian.Uint64(b[producerIDAt:])),
		ProducerEpoch:   int16(binary.BigEndian.Uint16(b[producerEpochAt:])),
		BaseSequence:    int32(binary.BigEndian.Uint32(b[baseSequenceAt:])),
		Count:           int32(binary.BigEndian.Uint32(b[countAt:])),
	}
	switch {
	case h.Magic != magic2:
		return Header{}, errMagic
	case h.Length < HeaderBytes-overhead:
		return Header{}, errTooShort
	case h.Length > longest: // on 32-bit machines, Size would be negative
		return Header{}, errTooLong
	}
	return h, nil
}

// Size returns the size of the whole batch in bytes, according to its Length.
func (h Header) Size() int { return int(h.Length) + overhead }

// LastOffset returns the offset of the last record.
func (h Header) LastOffset() int64 { return h.BaseOffset + int64(h.LastOffsetDelta) }

// LastSequence returns the sequence number of the last record; 2³¹-1 is followed by 0. It returns
// -1 if the batch has no sequence numbers.
func (h Header) LastSequence() int32 {
	if h.BaseSequence == noSequence {
		return noSequence
	}
	return int32((int64(h.BaseSequence) + int64(h.LastOffsetDelta)) & math.MaxInt32)
}

// Codec returns the compression codec of the records.
func (h Header) Codec() Codec { return Codec(h.Attributes & codecBits) }

// LogAppendTime reports whether the timestamp of all records is MaxTimestamp, set by the broker. If
// not, each record has its own timestamp from the producer.
func (h Header) LogAppendTime() bool { return h.Attributes&appendTimeBit != 0 }

// Transactional reports whether the batch belongs to a transaction.
func (h Header) Transactional() bool { return h.Attributes&transactionalBit != 0 }

// Control reports whether the batch contains control records, which mark the end of a transaction.
// Only brokers write them.
func (h Header) Control() bool { return h.Attributes&controlBit != 0 }

// HasProducer reports whether the batch was sent by an idempotent producer.
func (h Header) HasProducer() bool { return h.ProducerID > noProducer }

// Codec is a compression codec, as in the lowest three bits of the attributes.
type Codec int8

// The codecs of message format 2. The values 5 to 7 are not assigned.
const (
	None Codec = iota
	Gzip
	Snappy
	LZ4
	Zstd
)

// String returns the codec's name, as in Kafka's setting compression.type.
func (c Codec) String() string {
	switch c {
	case None:
		return "none"
	case Gzip:
		return "gzip"
	case Snappy:
		return "snappy"
	case LZ4:
		return "lz4"
	case Zstd:
		return "zstd"
	}
	return fmt.Sprintf("codec %d", int8(c))
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ChecksumOK reports whether the checksum of b, exactly one whole batch, is correct. It does not
// cover the base offset, the length, the leader epoch and the format version. If b is shorter than
// a header, the result is false.
func ChecksumOK(b []byte) bool {
	return len(b) >= HeaderBytes && binary.BigEndian.Uint32(b[crcAt:]) == crc32.Checksum(b[attributesAt:], castagnoli)
}

// Stamp sets the position of b in a partition. b must be exactly one whole batch that [Validate]
// accepted. Stamp sets the offset of the first record, the leader epoch, and the time in
// milliseconds since 1970 at which the broker received the batch, which becomes the timestamp of
// all its records. It changes b in place, including the checksum.
//
// The timestamps from the producer stay in the records, where consumers ignore them, as with Apache
// Kafka. To change them, the records would have to be compressed again.
func Stamp(b []byte, baseOffset int64, leaderEpoch int32, appendTime int64) {
	attributes := binary.BigEndian.Uint16(b[attributesAt:])&knownAttributes | appendTimeBit
	binary.BigEndian.PutUint64(b[baseOffsetAt:], uint64(baseOffset))
	binary.BigEndian.PutUint32(b[leaderEpochAt:], uint32(leaderEpoch))
	binary.BigEndian.PutUint16(b[attributesAt:], attributes)
	binary.BigEndian.PutUint64(b[maxTimestampAt:], uint64(appendTime))
	binary.BigEndian.PutUint32(b[crcAt:], crc32.Checksum(b[attributesAt:], castagnoli))
}
