package spool

import (
	"encoding/json"
	"fmt"

	"github.com/diaspora-streams/diaspora/internal/disk"
)

// A spool counts the events that did not get through over its whole life. A person who has seen
// these numbers can dismiss them, so that only new losses are reported. The dismissed numbers are
// in a file of their own, which the spool's owner neither reads nor writes. So a person can dismiss
// losses while a process logs.

const (
	dismissedName  = "dismissed"
	dismissedTemp  = dismissedName + ".tmp" // the temporary file of disk.Replace
	dismissedBytes = 4 << 10
)

// Losses counts events that did not get through and never will.
type Losses struct {
	Dropped     uint64 `json:"dropped"`
	Quarantined uint64 `json:"quarantined"`
	Damaged     uint64 `json:"damaged"`
}

// Losses returns the losses that have not been dismissed.
func (i *Info) Losses() Losses {
	return Losses{
		Dropped:     i.Dropped - min(i.Dropped, i.Dismissed.Dropped),
		Quarantined: i.Quarantined - min(i.Quarantined, i.Dismissed.Quarantined),
		Damaged:     i.Damaged - min(i.Damaged, i.Dismissed.Damaged),
	}
}

// Dismiss records that a person has seen the losses of a spool so far, and returns those that were
// not dismissed before. It may be called while a process uses the spool.
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

// readDismissed returns the dismissed losses. If the file cannot be read, it returns none, so that
// all losses are reported again.
func readDismissed(fsys FS) (l Losses) {
	b, err := disk.ReadFile(fsys, dismissedName, dismissedBytes)
	if err != nil || json.Unmarshal(b, &l) != nil {
		return Losses{}
	}
	return l
}
