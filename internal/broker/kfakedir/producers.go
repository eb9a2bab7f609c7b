package kfakedir

import (
	"cmp"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/diaspora-streams/diaspora/internal/batch"
)

// batchesKnown is the number of batches for which duplicates of a producer are detected (KIP-98).
const batchesKnown = 5

// maxProducers is the number of producers kept for a partition. The most recent ones are kept.
const maxProducers = 16_384

// producerState is the state of a producer while the log is being read.
type producerState struct {
	epoch   int16
	batches [batchesKnown]ProducerBatch // a ring buffer
	count   int                         // number of batches so far
	time    time.Time
}

func (p *producerState) last() int64 {
	return p.batches[(p.count-1)%batchesKnown].LastOffset
}

// known returns the batches in the ring buffer, the newest last.
func (p *producerState) known() []ProducerBatch {
	var known []ProducerBatch
	for n := max(p.count-batchesKnown, 0); n < p.count; n++ {
		known = append(known, p.batches[n%batchesKnown])
	}
	return known
}

// addProducer records a batch of an idempotent producer.
func (l *log) addProducer(h batch.Header, modified time.Time) {
	if !h.HasProducer() || h.Control() || h.BaseSequence < 0 {
		return
	}
	p := l.producers[h.ProducerID]
	if p == nil {
		p = new(producerState)
		l.producers[h.ProducerID] = p
	}
	if p.epoch != h.ProducerEpoch {
		p.epoch, p.count = h.ProducerEpoch, 0
	}
	p.batches[p.count%batchesKnown] = ProducerBatch{h.BaseSequence, h.LastSequence(), h.BaseOffset, h.LastOffset()}
	p.count++
	p.time = modified
	if len(l.producers) > 2*maxProducers {
		l.forgetProducers()
	}
}

// forgetProducers removes all but the maxProducers most recent producers.
func (l *log) forgetProducers() {
	last := make([]int64, 0, len(l.producers))
	for _, p := range l.producers {
		last = append(last, p.last())
	}
	slices.Sort(last)
	least := last[max(len(last)-maxProducers, 0)]
	for id, p := range l.producers {
		if p.last() < least {
			delete(l.producers, id)
		}
	}
}

// window is what the old engine stored at a clean stop about a producer and a partition.
type window struct {
	ID        int64  `json:"pid"`
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Epoch     int16  `json:"epoch"`
	Entries   [batchesKnown]struct {
		First  int32 `json:"first_seq"`
		Next   int32 `json:"next_seq"` // 2³¹-2 is followed by 0
		Offset int64 `json:"offset"`
	} `json:"entries"` // a ring buffer
	Count uint8 `json:"count"`
	At    uint8 `json:"at"` // index of the next entry
}

// batches returns the batches of a window, the newest last.
func (w window) batches() []ProducerBatch {
	var batches []ProducerBatch
	count := min(int(w.Count), batchesKnown)
	for n := range count {
		e := w.Entries[(int(w.At)+batchesKnown*52-count+n)%batchesKnown]
		records := e.Next - e.First
		if records <= 0 {
			records += math.MaxInt32
		}
		if e.First < 0 || records <= 0 || believed(e.Offset) != e.Offset {
			continue
		}
		last := int32((int64(e.First) + int64(records) - 1) & math.MaxInt32)
		batches = append(batches, ProducerBatch{e.First, last, e.Offset, e.Offset + int64(records) - 1})
	}
	return batches
}

const windowsName = "seq_windows.json"

// readWindows reads seq_windows.json, which exists only after a clean stop.
func (r *reader) readWindows() error {
	r.windows = make(map[topicPartition][]window)
	file, err := readJSON[struct {
		Windows []window `json:"windows"`
	}](r, windowsName)
	if err != nil || file == nil {
		return err
	}
	if info, err := os.Stat(filepath.Join(r.dir, windowsName)); err == nil {
		r.windowsTime = info.ModTime()
	}
	for _, w := range file.Windows {
		r.producerIDs = append(r.producerIDs, w.ID)
		tp := topicPartition{w.Topic, w.Partition}
		r.windows[tp] = append(r.windows[tp], w)
	}
	return nil
}

// producers returns the state of a partition's producers. It is derived from the batches in the
// log. The windows are used only for batches that have been deleted from the log since. A window
// may also list batches that never reached the log. If it were used for those, a retry of such a
// batch would be taken for a duplicate and not be stored.
func (r *reader) producers(tp topicPartition, l *log, partition Partition) []Producer {
	begin := partition.End // the first offset of the batches in the log
	if len(partition.Segments) > 0 {
		begin = partition.Segments[0].Base
	}
	producers := make(map[int64]*Producer, len(l.producers))
	for id, p := range l.producers {
		r.producerIDs = append(r.producerIDs, id)
		producers[id] = &Producer{ID: id, Epoch: p.epoch, Batches: p.known(), Time: p.time}
	}
	for _, w := range r.windows[tp] {
		deleted := slices.DeleteFunc(w.batches(), func(b ProducerBatch) bool { return b.LastOffset >= begin })
		p := producers[w.ID]
		switch {
		case len(deleted) == 0 || w.ID < 0:
		case p == nil:
			producers[w.ID] = &Producer{ID: w.ID, Epoch: w.Epoch, Batches: deleted, Time: r.windowsTime}
		case p.Epoch == w.Epoch:
			p.Batches = append(deleted, p.Batches...)
			p.Batches = p.Batches[max(len(p.Batches)-batchesKnown, 0):]
		}
	}
	sorted := make([]Producer, 0, len(producers))
	for _, p := range producers {
		sorted = append(sorted, *p)
	}
	// The most recent producers come first, so that the others can be cut off.
	slices.SortFunc(sorted, func(a, b Producer) int {
		return cmp.Compare(b.Batches[len(b.Batches)-1].LastOffset, a.Batches[len(a.Batches)-1].LastOffset)
	})
	sorted = sorted[:min(len(sorted), maxProducers)]
	slices.SortFunc(sorted, func(a, b Producer) int { return cmp.Compare(a.ID, b.ID) })
	return sorted
}
