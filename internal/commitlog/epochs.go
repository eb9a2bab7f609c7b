package commitlog

import (
	"math"
	"slices"
)

// epochs records the first offset of each leader epoch. With it a consumer can detect that the log
// has lost records in a power cut that the consumer had already read (KIP-101, KIP-320). Both the
// epochs and the offsets increase.
type epochs []epochStart

type epochStart struct {
	epoch  int32
	offset int64
}

const maxEpochs = 1000 // the broker uses a new epoch at each start

// assign records that an epoch begins at an offset. It drops entries that contradict this.
func (es *epochs) assign(epoch int32, offset int64) {
	all := *es
	if n := len(all); epoch < 0 || n > 0 && all[n-1].epoch == epoch && all[n-1].offset <= offset {
		return
	}
	for n := len(all); n > 0 && (all[n-1].epoch >= epoch || all[n-1].offset >= offset); n-- {
		all = all[:n-1]
	}
	if len(all) == maxEpochs {
		all = slices.Delete(all, 0, 1)
	}
	*es = append(all, epochStart{epoch, offset})
}

// truncateBefore drops the epochs of records before start, which have been removed.
func (es *epochs) truncateBefore(start int64) {
	n := 0
	for n+1 < len(*es) && (*es)[n+1].offset <= start {
		n++
	}
	*es = slices.Delete(*es, 0, n)
	if len(*es) > 0 {
		(*es)[0].offset = max((*es)[0].offset, start)
	}
}

// of returns the epoch of an offset, or -1 if it is unknown.
func (es epochs) of(offset int64) int32 {
	for i := len(es) - 1; i >= 0; i-- {
		if es[i].offset <= offset {
			return es[i].epoch
		}
	}
	return -1
}

// latest returns the last epoch, or -1.
func (es epochs) latest() int32 {
	if len(es) == 0 {
		return -1
	}
	return es[len(es)-1].epoch
}

// AssignEpoch sets the broker's leader epoch from the next record on. Append does the same with its
// argument.
func (l *Log) AssignEpoch(epoch int32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.epochs.assign(epoch, l.next)
}

// Epoch returns the latest leader epoch, or -1 if there is none.
func (l *Log) Epoch() int32 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.epochs.latest()
}

// EpochOf returns the leader epoch of an offset, or -1 if it is unknown.
func (l *Log) EpochOf(offset int64) int32 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.epochs.of(offset)
}

// EndOffsetForEpoch returns the largest epoch that has records and is not larger than the given
// one, and the offset at which it ends. Both are -1 if the given epoch is larger than all known
// ones. The results are those of Apache Kafka's LeaderEpochFileCache.
func (l *Log) EndOffsetForEpoch(epoch int32) (found int32, end int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case epoch < 0 || epoch > l.epochs.latest():
		return -1, -1
	case epoch == l.epochs.latest():
		return epoch, l.end
	}
	later := slices.IndexFunc(l.epochs, func(e epochStart) bool { return e.epoch > epoch })
	if later == 0 {
		return epoch, l.epochs[0].offset // older than all known epochs: its records, if any, have been removed
	}
	return l.epochs[later-1].epoch, l.epochs[later].offset
}

func (es epochs) encode(b []byte) []byte {
	b = appendInts(b, int64(len(es)))
	for _, e := range es {
		b = appendInts(b, int64(e.epoch), e.offset)
	}
	return b
}

func (d *decoder) epochs() (es epochs) {
	for range d.count(2 * 8) {
		epoch, offset := d.int64(), d.int64()
		if epoch < 0 || epoch != int64(int32(epoch)) || len(es) == maxEpochs {
			d.fail()
		}
		if n := len(es); n > 0 && (es[n-1].epoch >= int32(epoch) || es[n-1].offset >= offset) {
			d.fail()
		}
		if d.bad {
			return nil
		}
		es = append(es, epochStart{int32(epoch), offset})
	}
	return es
}

// rangeOf returns the epoch of an offset, or -1, and the offset at which it ends.
func (es epochs) rangeOf(offset int64) (epoch int32, until int64) {
	epoch, until = -1, math.MaxInt64
	for i := len(es) - 1; i >= 0; i-- {
		if es[i].offset <= offset {
			return es[i].epoch, until
		}
		until = es[i].offset
	}
	return -1, until
}
