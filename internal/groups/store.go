package groups

import "github.com/diaspora-streams/diaspora/internal/journal"

type entry = journal.Entry

// store is what the Coordinator needs of a [journal.Journal].
type store interface {
	// Append returns when the entries survive a crash: all of them, or none.
	Append(entries ...entry) error
	Close() error
}

func openJournal(cfg Config, load func(entry) error) (store, error) {
	return journal.Open(journal.Options{FS: cfg.FS, Sync: cfg.Sync, Diagnostics: cfg.Diagnostics}, load)
}
