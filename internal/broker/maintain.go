package broker

import (
	"cmp"
	"time"
)

const (
	maintainEvery      = time.Minute      // between passes over all logs
	deleteOffsetsEvery = 10 * time.Minute // between passes over committed offsets, as in Apache Kafka
)

// maintain does the periodic work until the broker closes: it deletes expired records and offsets,
// and writes the checkpoint of each log.
func (b *Broker) maintain() {
	ticker := time.NewTicker(cmp.Or(b.cfg.maintainEvery, maintainEvery))
	defer ticker.Stop()
	offsetsTicker := time.NewTicker(deleteOffsetsEvery)
	defer offsetsTicker.Stop()
	for {
		select {
		case <-ticker.C:
			b.maintainOnce()
		case <-offsetsTicker.C:
			b.deleteExpiredOffsets()
		case <-b.ctx.Done():
			return
		}
	}
}

func (b *Broker) maintainOnce() {
	for _, t := range b.topics.all() {
		for n, log := range t.partitions {
			if b.ctx.Err() != nil {
				return
			}
			if err := log.Expire(t.settings.retention, t.settings.retentionBytes); err != nil {
				b.logError("drop expired records", err, "topic", t.Name, "partition", n)
			}
			if err := log.Maintain(); err != nil {
				b.logError("write a checkpoint", err, "topic", t.Name, "partition", n)
			}
		}
	}
}

func (b *Broker) deleteExpiredOffsets() {
	if err := b.groups.DeleteExpired(); err != nil {
		b.logError("drop expired offsets", err)
	}
}

// logError logs a failure that is not the client's fault.
func (b *Broker) logError(what string, err error, attrs ...any) {
	b.cfg.Diagnostics.Error("embedded broker: cannot "+what, append(attrs, "err", err)...)
}
