package broker

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"math"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// A producer numbers its batches, so that a broker knows a repeat, and a gap. kfake keeps
// in mind what number comes next, and writes it down when it is closed. When its process
// was killed it knows nothing, takes any number for the next one, and so takes a producer's
// later batches before the earlier ones that were lost on their way. restoreProducers
// therefore reads from the batches themselves what came last, as Apache Kafka does.

// producersName is the file in which kfake writes down what it knows of producers.
const producersName = "seq_windows.json"

// producersExpire is how long a producer is remembered that sends nothing: the default
// of Apache Kafka's producer.id.expiration.ms.
const producersExpire = 24 * time.Hour

// maxBatchesKnown is how many batches of a producer a broker knows again (KIP-98), in each partition.
const maxBatchesKnown = 5

// producerFile, producerWindow and producerBatch are the content of kfake's file, version 1.
type producerFile struct {
	Version int              `json:"version"`
	Windows []producerWindow `json:"windows"`
}

type producerWindow struct {
	ProducerID int64                          `json:"pid"`
	Topic      string                         `json:"topic"`
	Partition  int32                          `json:"partition"`
	Batches    [maxBatchesKnown]producerBatch `json:"entries"` // a ring
	Count      uint8                          `json:"count"`
	At         uint8                          `json:"at"` // where the next one goes
	Epoch      int16                          `json:"epoch"`
	Seen       bool                           `json:"seen"`
	NextSeq    int32                          `json:"next_seq"`
}

type producerBatch struct {
	FirstSeq int32 `json:"first_seq"`
	NextSeq  int32 `json:"next_seq"`
	Offset   int64 `json:"offset"`
}

// add takes note of a batch that is in the partition.
func (w *producerWindow) add(b *kmsg.RecordBatch) {
	if !w.Seen || w.Epoch != b.ProducerEpoch {
		w.Seen, w.Epoch, w.Count, w.At = true, b.ProducerEpoch, 0, 0
	}
	w.NextSeq = int32((int64(b.FirstSequence) + int64(b.NumRecords)) % math.MaxInt32) // as kfake counts
	w.Batches[w.At] = producerBatch{b.FirstSequence, w.NextSeq, b.FirstOffset}
	w.At = (w.At + 1) % maxBatchesKnown
	w.Count = min(w.Count+1, maxBatchesKnown)
}

// restoreProducers writes kfake's file anew if there is none, as after a crash.
func restoreProducers(dir string) error {
	path := filepath.Join(dir, producersName)
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	file := producerFile{Version: 1, Windows: []producerWindow{}}
	partitions, err := os.ReadDir(filepath.Join(dir, "partitions"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, entry := range partitions {
		topic, partition, ok := parsePartitionDir(entry.Name())
		if !ok {
			continue
		}
		windows, err := producersOf(filepath.Join(dir, "partitions", entry.Name()))
		if err != nil {
			return fmt.Errorf("what producers have sent to %s: %w", entry.Name(), err)
		}
		for id, w := range windows {
			w.ProducerID, w.Topic, w.Partition = id, topic, partition
			file.Windows = append(file.Windows, *w)
		}
	}
	content, err := json.Marshal(file)
	if err != nil {
		return err
	}
	return replaceFile(path, content)
}

// forgetProducers removes kfake's file, once read: what it says is not true for long.
func (b *Broker) forgetProducers() error { return b.forget(producersName) }

func parsePartitionDir(name string) (topic string, partition int32, ok bool) {
	at := strings.LastIndexByte(name, '-')
	if at < 0 {
		return "", 0, false
	}
	n, err := strconv.ParseInt(name[at+1:], 10, 32)
	topic, escaped := url.PathUnescape(name[:at])
	return topic, int32(n), err == nil && escaped == nil
}

// producersOf returns what producers have last sent to a partition, by their IDs.
func producersOf(dir string) (map[int64]*producerWindow, error) {
	names, err := filepath.Glob(filepath.Join(dir, "*.dat"))
	if err != nil {
		return nil, err
	}
	base := func(name string) int64 {
		n, _ := strconv.ParseInt(strings.TrimSuffix(filepath.Base(name), ".dat"), 10, 64)
		return n
	}
	slices.SortFunc(names, func(a, b string) int { return int(base(a) - base(b)) })
	windows := map[int64]*producerWindow{}
	for _, name := range names {
		if info, err := os.Stat(name); err != nil || time.Since(info.ModTime()) > producersExpire {
			continue
		}
		err := eachBatch(name, func(b *kmsg.RecordBatch) {
			const control = 1 << 5
			if b.ProducerID < 0 || b.Attributes&control != 0 {
				return
			}
			w := windows[b.ProducerID]
			if w == nil {
				w = new(producerWindow)
				windows[b.ProducerID] = w
			}
			w.add(b)
		})
		if err != nil {
			return nil, err
		}
	}
	return windows, nil
}

// The layout of a record batch, which is also that of a segment: batch after batch.
const (
	batchHeaderBytes = 61
	batchPrefixBytes = 12 // the first offset and the length of the rest
	batchCRCEnd      = 21 // the checksum is of all behind it
	maxBatchBytes    = 1 << 30
)

// eachBatch calls f for the header of each batch of a segment, up to the first that is torn.
func eachBatch(name string, f func(*kmsg.RecordBatch)) error {
	file, err := os.Open(name)
	if err != nil {
		return err
	}
	defer file.Close()
	in := bufio.NewReaderSize(file, 256<<10)
	castagnoli := crc32.MakeTable(crc32.Castagnoli)
	for {
		header := make([]byte, batchHeaderBytes)
		if _, err := io.ReadFull(in, header); err != nil {
			return torn(err)
		}
		length := int64(binary.BigEndian.Uint32(header[8:]))
		rest := length + batchPrefixBytes - batchHeaderBytes
		if rest < 0 || length > maxBatchBytes {
			return nil
		}
		sum := crc32.New(castagnoli)
		sum.Write(header[batchCRCEnd:])
		if _, err := io.CopyN(sum, in, rest); err != nil {
			return torn(err)
		}
		if sum.Sum32() != binary.BigEndian.Uint32(header[batchCRCEnd-4:]) {
			return nil
		}
		binary.BigEndian.PutUint32(header[8:], batchHeaderBytes-batchPrefixBytes) // without its records
		var b kmsg.RecordBatch
		if err := b.ReadFrom(header); err != nil {
			return nil
		}
		f(&b)
	}
}

// torn returns nil if err says that a file ends.
func torn(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return nil
	}
	return err
}
