package groups

import "github.com/diaspora-streams/diaspora/internal/journal"

type entry = journal.Entry

// store is the part of [journal.Journal] that the Coordinator uses.
type store interface {
	// Append writes all of the entries or none. It returns when they are durable.
	Append(entries ...entry) error
	Close() error
}

func openJournal(cfg Config, load func(entry) error) (store, error) {
	return journal.Open(journal.Options{FS: cfg.FS, Sync: cfg.Sync, Diagnostics: cfg.Diagnostics}, load)
}
