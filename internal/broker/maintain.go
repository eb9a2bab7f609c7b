package broker

import (
	"cmp"
	"time"
)

const (
	maintainEvery = time.Minute      // how often the broker looks at what has its time
	sweepEvery    = 10 * time.Minute // and at committed offsets, as Apache Kafka does
)

// maintain does what has its time, until the broker closes: it drops expired
// records and offsets, and has each log write its checkpoint.
func (b *Broker) maintain() {
	ticker := time.NewTicker(cmp.Or(b.cfg.maintainEvery, maintainEvery))
	defer ticker.Stop()
	sweeps := time.NewTicker(sweepEvery)
	defer sweeps.Stop()
	for {
		select {
		case <-ticker.C:
			b.maintainOnce()
		case <-sweeps.C:
			b.sweep()
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
				b.failed("drop expired records", err, "topic", t.Name, "partition", n)
			}
			if err := log.Maintain(); err != nil {
				b.failed("write a checkpoint", err, "topic", t.Name, "partition", n)
			}
		}
	}
}

func (b *Broker) sweep() {
	if err := b.groups.Sweep(); err != nil {
		b.failed("drop expired offsets", err)
	}
}

// failed tells of a failure that is not the client's.
func (b *Broker) failed(what string, err error, attrs ...any) {
	b.cfg.Diagnostics.Error("embedded broker: cannot "+what, append(attrs, "err", err)...)
}
