package batch

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/twmb/franz-go/pkg/kerr"
)

// Limits are the parameters of [Validate].
type Limits struct {
	MaxBytes       int32 // largest size of a batch, as the topic's max.message.bytes
	ProduceVersion int16 // version of the Produce request; zstd is allowed since 7
}

// Error describes why a batch was rejected, and how Apache Kafka would answer.
type Error struct {
	Code   *kerr.Error
	Reason string

	// Records are the indices of the first 1,000 invalid records. If there are any, the response
	// lists them and has Reason as its error message. Otherwise the response has no error message.
	Records []int32

	// WholeRequest means that Apache Kafka rejects the whole request: nothing is appended, and the
	// result for all its partitions is Code.
	WholeRequest bool

	// BeforeLog means that Apache Kafka detects the fault before it accesses the log, and before it
	// checks the number of acknowledgements that the producer requests.
	BeforeLog bool

	// LogStartOffset means that the response contains the partition's log start offset. Otherwise
	// the response has -1.
	LogStartOffset bool
}

func (e *Error) Error() string { return e.Reason + ": " + e.Code.Message }

// Unwrap returns e.Code.
func (e *Error) Unwrap() error { return e.Code }

const maxRecordErrors = 1000 // a batch may have millions of records

// Sizes at which Apache Kafka rejects a batch in different ways.
const (
	leastLength   = 14                       // of the oldest message format
	magicEnd      = magicAt + 1              // up to here, a batch's size and format are known
	producerIDEnd = producerIDAt + 8         // what the broker reads before it checks the size
	firstWithZstd = 7                        // version of the Produce request
	longest       = math.MaxInt32 - overhead // length of a batch whose size is an int32
)

// Validate checks what a producer sent for one partition. It must be one whole batch that has as
// many records as its header says, all of which can be read. If so, Validate returns its header h,
// and the batch is records[:h.Size()]: like Apache Kafka, Validate ignores an incomplete second
// batch after the first.
//
// Validate does not check the timestamps, because [Stamp] replaces them. It does not check whether
// the sequence numbers continue those of the producer's last batch either, because only the log
// knows them. It rejects transactional batches, because this broker has no transactions.
//
// The error is an [*Error]. Validate may be called concurrently and does not modify records.
func Validate(records []byte, l Limits) (Header, error) {
	b, fault := onlyBatch(records, l)
	if fault != nil {
		fault.BeforeLog = true
		return Header{}, fault
	}
	// In Apache Kafka, the log does the remaining checks.
	if binary.BigEndian.Uint64(b[baseOffsetAt:]) != 0 {
		return Header{}, logFault(kerr.InvalidRecord, "base offset is not 0")
	}
	if len(b) > int(l.MaxBytes) {
		return Header{}, &Error{Code: kerr.MessageTooLarge, Reason: fmt.Sprintf("record batch of %d bytes, limit is %d", len(b), l.MaxBytes)}
	}
	if !ChecksumOK(b) {
		return Header{}, &Error{Code: kerr.CorruptMessage, Reason: "checksum mismatch"}
	}
	h, err := ParseHeader(b)
	if err != nil { // cannot happen: the size and the format have been checked
		return Header{}, &Error{Code: kerr.CorruptMessage, Reason: err.Error()}
	}
	if fault := checkHeader(h); fault != nil {
		return Header{}, fault
	}
	if fault := checkRecords(b, h); fault != nil {
		return Header{}, fault
	}
	return h, nil
}

func logFault(code *kerr.Error, reason string) *Error {
	return &Error{Code: code, Reason: reason, LogStartOffset: true}
}

// Screen does the part of [Validate] that Apache Kafka does for all partitions of a request before
// it looks at any of them, even at partitions that do not exist: it looks for transactional
// batches. Its errors reject the whole request.
func Screen(records []byte) *Error {
	size, fault := batchSize(records)
	switch {
	case fault != nil:
		fault.WholeRequest = true
		return fault
	case size > 0 && records[magicAt] == magic2 && binary.BigEndian.Uint16(records[attributesAt:])&transactionalBit != 0:
		return &Error{Code: kerr.TransactionalIDAuthorizationFailed, Reason: "transactions are not supported", WholeRequest: true}
	}
	return nil
}

// onlyBatch returns the only batch in records. Its format is version 2, but it may still be too
// short for a header.
func onlyBatch(records []byte, l Limits) ([]byte, *Error) {
	if fault := Screen(records); fault != nil {
		return nil, fault
	}
	size, _ := batchSize(records)
	if size == 0 {
		return nil, &Error{Code: kerr.InvalidRecord, Reason: "no whole record batch"}
	}
	b := records[:size:size]
	attributes := int16(binary.BigEndian.Uint16(b[attributesAt:])) // in bounds, because a batch has at least 26 bytes
	codec := Codec(attributes & codecBits)
	if b[magicAt] != magic2 {
		return nil, &Error{Code: kerr.InvalidRecord, Reason: "message format is not version 2"}
	}
	if l.ProduceVersion < firstWithZstd && codec > Zstd {
		return nil, &Error{Code: kerr.UnknownServerError, Reason: "unknown compression codec", WholeRequest: true}
	}
	if l.ProduceVersion < firstWithZstd && codec == Zstd {
		return nil, &Error{Code: kerr.UnsupportedCompressionType, Reason: "zstd needs version 7 of the Produce request"}
	}
	switch second, fault := batchSize(records[size:]); {
	case fault != nil:
		fault.WholeRequest = fault.Code == kerr.UnknownServerError
		return nil, fault
	case second > 0:
		return nil, &Error{Code: kerr.InvalidRecord, Reason: "more than one record batch"}
	}
	if size < producerIDEnd {
		return nil, &Error{Code: kerr.UnknownServerError, Reason: "truncated header", WholeRequest: true}
	}
	return b, nil
}

// batchSize returns the size of the batch at the beginning of b, in any message format. It returns
// 0 if the batch is incomplete.
func batchSize(b []byte) (int, *Error) {
	if len(b) < overhead {
		return 0, nil
	}
	length := int32(binary.BigEndian.Uint32(b[lengthAt:]))
	if length < leastLength {
		return 0, &Error{Code: kerr.CorruptMessage, Reason: "record batch is shorter than its header"}
	}
	if len(b) < magicEnd {
		return 0, nil
	}
	if magic := int8(b[magicAt]); magic < 0 || magic > magic2 {
		return 0, &Error{Code: kerr.CorruptMessage, Reason: fmt.Sprintf("unknown message format %d", magic)}
	}
	if length > longest {
		return 0, &Error{Code: kerr.UnknownServerError, Reason: "record batch is too long"}
	}
	if size := int(length) + overhead; size <= len(b) {
		return size, nil
	}
	return 0, nil
}

// checkHeader checks the header fields that the log takes over from producers.
func checkHeader(h Header) *Error {
	switch {
	case h.Codec() > Zstd:
		return logFault(kerr.UnknownServerError, "unknown compression codec")
	case h.LastOffsetDelta < 0:
		return logFault(kerr.InvalidRecord, "last offset delta is negative")
	case h.Count <= 0:
		return logFault(kerr.InvalidRecord, "number of records is not positive")
	case int64(h.Count) != int64(h.LastOffsetDelta)+1:
		return logFault(kerr.InvalidRecord, "number of records does not match the last offset delta")
	case h.Control():
		return logFault(kerr.InvalidRecord, "producers must not send control records")
	case h.HasProducer() && h.BaseSequence < 0:
		return logFault(kerr.InvalidRecord, "negative sequence number of an idempotent producer")
	}
	return nil
}

// checkRecords reads all records of a batch whose header is valid.
func checkRecords(b []byte, h Header) *Error {
	r := newReader(b, h)
	defer r.close()
	// Some faults are ignored by Apache Kafka, such as the wrong length of a compressed record.
	// They must not hide faults that Apache Kafka rejects with another code, so they are checked
	// last.
	r.lax = h.Codec() != None
	consecutive := true
	for i := range h.Count {
		delta, err := r.record(nil)
		if err != nil {
			return recordFault(h, err)
		}
		consecutive = consecutive && delta == i
	}
	if err := r.end(); err != nil {
		return recordFault(h, err)
	}
	switch {
	case h.LogAppendTime():
		fault := logFault(kerr.InvalidTimestamp, "One or more records have been rejected due to invalid timestamp")
		fault.Records = make([]int32, min(h.Count, maxRecordErrors))
		for i := range fault.Records {
			fault.Records[i] = int32(i)
		}
		return fault
	case !consecutive && h.Codec() != None:
		return logFault(kerr.UnknownServerError, "offset deltas are not consecutive")
	case !consecutive:
		return logFault(kerr.InvalidRecord, "offset deltas are not consecutive")
	case r.lied:
		return logFault(kerr.InvalidRecord, errLength.Error())
	}
	if err := r.defect(); err != nil {
		return recordFault(h, err)
	}
	return nil
}

// recordFault returns the Error for an error in reading records.
func recordFault(h Header, err error) *Error {
	var broken *decompressError
	switch {
	case errors.Is(err, errTooLarge):
		return &Error{Code: kerr.MessageTooLarge, Reason: err.Error()}
	case errors.As(err, &broken), errors.Is(err, errLongLength) && h.Codec() == None:
		return logFault(kerr.UnknownServerError, err.Error())
	}
	return logFault(kerr.InvalidRecord, err.Error())
}
