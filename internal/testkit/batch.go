package testkit

import (
	"encoding/binary"
	"hash/crc32"
)

// Records returns the records of a batch, one for each value, without keys and headers.
func Records(values ...string) (records []byte) {
	for i, v := range values {
		r := []byte{0, 0}                    // attributes, timestamp delta
		r = binary.AppendVarint(r, int64(i)) // offset delta
		r = append(r, 1)                     // no key
		r = binary.AppendVarint(r, int64(len(v)))
		r = append(append(r, v...), 0) // no headers
		records = append(binary.AppendVarint(records, int64(len(r))), r...)
	}
	return records
}

// Batch returns a record batch as a producer sends it, with a correct checksum. The records may be any bytes.
func Batch(codec int8, producerID int64, epoch int16, sequence int32, count int, records []byte) []byte {
	b := append(make([]byte, 61), records...)
	be := binary.BigEndian
	be.PutUint32(b[8:], uint32(len(b)-12))
	be.PutUint32(b[12:], 1<<32-1) // leader epoch
	b[16] = 2                     // magic
	b[22] = byte(codec)
	be.PutUint32(b[23:], uint32(count-1))
	be.PutUint64(b[27:], 1000) // timestamps of the producer
	be.PutUint64(b[35:], 1000)
	be.PutUint64(b[43:], uint64(producerID))
	be.PutUint16(b[51:], uint16(epoch))
	be.PutUint32(b[53:], uint32(sequence))
	be.PutUint32(b[57:], uint32(count))
	be.PutUint32(b[17:], crc32.Checksum(b[21:], crc32.MakeTable(crc32.Castagnoli)))
	return b
}
