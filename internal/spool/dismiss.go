package spool

import (
	"encoding/json"
	"fmt"

	"github.com/diaspora-streams/diaspora/internal/disk"
)

// A spool counts over its whole life what did not get through. A person who has seen these numbers can
// dismiss them, so that only what is new is reported. What was dismissed is in a file of its own, which
// the spool's owner neither reads nor writes: so it can be done while a process logs.

const (
	dismissedName  = "dismissed"
	dismissedTemp  = dismissedName + ".tmp" // by disk.Replace
	dismissedBytes = 4 << 10
)

// Losses are events that did not get through, and will not.
type Losses struct {
	Dropped     uint64 `json:"dropped"`
	Quarantined uint64 `json:"quarantined"`
	Damaged     uint64 `json:"damaged"`
}

// Losses returns what has not been dismissed.
func (i *Info) Losses() Losses {
	return Losses{
		Dropped:     i.Dropped - min(i.Dropped, i.Dismissed.Dropped),
		Quarantined: i.Quarantined - min(i.Quarantined, i.Dismissed.Quarantined),
		Damaged:     i.Damaged - min(i.Damaged, i.Dismissed.Damaged),
	}
}

// Dismiss notes that a person has seen what a spool has lost so far, and returns what was new of it.
// It may be called while a process has the spool.
func Dismiss(dir string) (Losses, error) {
	info, err := Inspect(dir)
	if err != nil {
		return Losses{}, err
	}
	fresh := info.Losses()
	if fresh == (Losses{}) {
		return fresh, nil
	}
	fsys, err := disk.New(dir)
	if err != nil {
		return Losses{}, err
	}
	defer fsys.Close()
	content, err := json.Marshal(Losses{info.Dropped, info.Quarantined, info.Damaged})
	if err != nil {
		return Losses{}, err
	}
	if err := disk.Replace(fsys, dismissedName, append(content, '\n'), true); err != nil {
		return Losses{}, fmt.Errorf("spool %s: dismiss: %w", dir, err)
	}
	return fresh, nil
}

// readDismissed returns what was dismissed. If that cannot be read, all is reported again.
func readDismissed(fsys FS) (l Losses) {
	b, err := disk.ReadFile(fsys, dismissedName, dismissedBytes)
	if err != nil || json.Unmarshal(b, &l) != nil {
		return Losses{}
	}
	return l
}
