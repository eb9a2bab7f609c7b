package spool

import (
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"log/slog"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/diaspora-streams/diaspora/internal/disk"
)

// Inspect, Check, Verify, Entries, Topics and Quarantined read a spool without taking its lock, so
// they work while another process uses it. They change no file.

// Info is what the files of a spool say without reading all its events.
type Info struct {
	Stats   // without the fields that only the owner knows
	Subject string
	// The process that uses the spool, or that died without releasing it; nil if there is none.
	Owner     *Owner
	Dismissed Losses    // the losses that a person has already seen; see [Dismiss]
	Note      string    // why events are pending, according to the last owner; see [Spool.Note]
	Noted     time.Time // when the last owner said so; zero if that is not known
	Files     []SegmentInfo
}

// Used reports whether a process uses the spool, as far as that can be known here.
func (i *Info) Used() bool { return i.Owner != nil && !i.Owner.Gone() }

// Reason returns why events are pending, and when the process that uses the spool, or the last one that did, said
// so. It returns "" if there is no reason, or if it is not known: what the process before this one said may be over.
func (i *Info) Reason() (why string, noted time.Time) {
	if i.Events == 0 || i.Used() && !i.Noted.IsZero() && i.Noted.Before(i.Owner.Started) {
		return "", time.Time{}
	}
	return i.Note, i.Noted
}

// MoreRecent reports whether the reason of i says more about the present than that of other, which is another spool
// of the same user: that of a process that still runs does, and otherwise the later one.
func (i *Info) MoreRecent(other *Info) bool {
	why, noted := i.Reason()
	otherWhy, otherNoted := other.Reason()
	switch {
	case (why != "") != (otherWhy != ""):
		return why != ""
	case i.Used() != other.Used():
		return i.Used()
	}
	return noted.After(otherNoted)
}

// SegmentInfo describes a file of events.
type SegmentInfo struct {
	Name    string
	First   uint64 // the position of its first event
	Bytes   int64
	Created time.Time
}

// Gone reports whether the owner is known to be dead. It reports false for a process on another
// machine, because that cannot be known here.
func (o *Owner) Gone() bool {
	return o.Host == hostname() && (o.Boot != bootID() || !alive(o.PID))
}

// Report is the result of [Check] and [Verify].
type Report struct {
	Info
	Read uint64 // pending events that Verify could read
	// Bytes at the end of the last segment that a crash left incomplete; they were never reported
	// as durable.
	Torn     int64
	Problems []string // what is wrong; the spool opens all the same, unless other users may access its files
}

// addProblem adds a problem to the report. It is a no-op for a nil report.
func (r *Report) addProblem(format string, args ...any) {
	if r != nil {
		r.Problems = append(r.Problems, fmt.Sprintf(format, args...))
	}
}

// Inspect returns information about the spool in a directory.
func Inspect(dir string) (Info, error) {
	s, err := openReadOnly(dir)
	if err != nil {
		return Info{}, err
	}
	defer s.closeReadOnly()
	info := s.report.Info
	s.dateOldest(&info)
	return info, nil
}

// dateOldest takes info.Oldest from the oldest pending event, if the event's time is plausible:
// after the segment was created, and not in the future. The segment's own time can be hours too
// early, because one segment lasts through many outages.
func (s *Spool) dateOldest(info *Info) {
	if info.Events == 0 {
		return
	}
	if records, err := s.read(1, 1); err == nil && len(records) > 0 {
		info.date(records[0].Time)
	}
}

// date sets Oldest to the time of the oldest pending event, if that is plausible.
func (i *Info) date(t time.Time) {
	if t.After(i.Oldest) && !t.After(time.Now()) {
		i.Oldest = t
	}
}

// Check does the same as [Verify] without reading the events, except the oldest one for its time. So
// it is quick even if many are pending.
func Check(dir string) (Report, error) {
	s, err := openReadOnly(dir)
	if err != nil {
		return Report{}, err
	}
	defer s.closeReadOnly()
	report := *s.report
	s.dateOldest(&report.Info)
	return report, nil
}

// openReadOnly opens a spool for reading only.
func openReadOnly(dir string) (*Spool, error) {
	fsys, err := disk.New(dir)
	if err != nil {
		return nil, err
	}
	s, err := openReadOnlyFS(fsys)
	if err != nil {
		return nil, fmt.Errorf("read spool %s: %w", dir, errors.Join(err, fsys.Close()))
	}
	return s, nil
}

func openReadOnlyFS(fsys FS) (*Spool, error) {
	infos, err := fsys.List()
	if err != nil {
		return nil, err
	}
	s := &Spool{fs: fsys, log: slog.New(slog.DiscardHandler), report: &Report{}}
	im, err := s.loadState(infos)
	if err != nil {
		return nil, err
	}
	owner, err := readOwner(fsys)
	if err != nil {
		return nil, err
	}
	info := Info{Stats: s.Stats(), Subject: im.cursor.subject, Owner: owner, Dismissed: readDismissed(fsys)}
	info.Note, info.Noted = readNote(fsys)
	for _, g := range im.segments {
		info.Files = append(info.Files, SegmentInfo{g.name, g.base, g.size, g.created})
		info.Subject = g.subject
	}
	s.report.Info, s.report.Torn = info, s.torn
	s.checkFiles(infos, im)
	return s, nil
}

// checkFiles adds what is wrong with the directory to the report.
func (s *Spool) checkFiles(infos []fs.FileInfo, im diskState) {
	if err := checkModes(infos); err != nil {
		s.report.addProblem("%v", err)
	}
	for _, g := range im.segments {
		// A shorter file is not damaged: a process died before it wrote the header.
		if g.damaged && g.size >= headerBytes {
			s.report.addProblem("%s: the header is damaged", g.name)
		}
	}
	for _, info := range infos {
		if !isSpoolFile(info.Name()) {
			s.report.addProblem("%q is not a file of the spool", info.Name())
		}
	}
	for _, name := range []string{cursorName(0), cursorName(1)} {
		if !im.names[name] {
			continue
		}
		if b, err := disk.ReadFile(s.fs, name, maxCursor); err == nil {
			if _, err := parseCursor(b); err != nil {
				s.report.addProblem("%s: %v", name, err)
			}
		}
	}
}

// closeReadOnly closes what openReadOnly opened.
func (s *Spool) closeReadOnly() error {
	return errors.Join(s.reader.close(), s.fs.Close())
}

// Verify reads all pending events and the quarantine, and reports what is damaged.
func Verify(dir string) (Report, error) {
	s, err := openReadOnly(dir)
	if err != nil {
		return Report{}, err
	}
	defer s.closeReadOnly()
	return s.verify()
}

func (s *Spool) verify() (Report, error) {
	var oldest time.Time
	for r, err := range s.entries() {
		if err != nil {
			return *s.report, err
		}
		if s.report.Read++; s.report.Read == 1 {
			oldest = r.Time
		}
	}
	for _, err := range quarantined(s.fs) {
		if err != nil {
			s.report.addProblem("quarantine: %v", err)
		}
	}
	s.report.Stats = s.Stats()
	if s.report.Events > 0 {
		s.report.date(oldest)
	}
	return *s.report, nil
}

// Entries returns the pending events, in order.
func Entries(dir string) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		s, err := openReadOnly(dir)
		if err != nil {
			yield(Record{}, err)
			return
		}
		defer s.closeReadOnly()
		s.entries()(yield)
	}
}

func (s *Spool) entries() iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		for {
			records, err := s.read(math.MaxInt, readAhead)
			for _, r := range records {
				if !yield(r, nil) {
					return
				}
			}
			if err != nil {
				yield(Record{}, err)
			}
			if err != nil || len(records) == 0 {
				return
			}
		}
	}
}

// Topics returns how many events are pending in a spool, by topic.
func Topics(dir string) (map[string]int64, error) {
	topics := map[string]int64{}
	for r, err := range Entries(dir) {
		if err != nil {
			return topics, err
		}
		topics[r.Topic]++
	}
	return topics, nil
}

// Quarantined returns the content of the quarantine. An error means that one line or one file
// cannot be read; further results may follow it.
func Quarantined(dir string) iter.Seq2[Poison, error] {
	return func(yield func(Poison, error) bool) {
		fsys, err := disk.New(dir)
		if err != nil {
			yield(Poison{}, err)
			return
		}
		defer fsys.Close()
		quarantined(fsys)(yield)
	}
}

func quarantined(fsys FS) iter.Seq2[Poison, error] {
	return func(yield func(Poison, error) bool) {
		infos, err := fsys.List()
		if err != nil {
			yield(Poison{}, err)
			return
		}
		slices.SortFunc(infos, func(a, b fs.FileInfo) int { return strings.Compare(a.Name(), b.Name()) })
		for _, info := range infos {
			if _, ok := parseQuarantineName(info.Name()); !ok {
				continue
			}
			content, err := disk.ReadFile(fsys, info.Name(), info.Size())
			if err != nil && !yield(Poison{}, fmt.Errorf("read %s: %w", info.Name(), err)) {
				return
			}
			lines := strings.SplitAfter(string(content), "\n")
			for n, line := range lines {
				whole := strings.HasSuffix(line, "\n")
				if !whole && n == len(lines)-1 {
					break // empty, or torn by a crash; it was not synced yet, so nothing relies on it
				}
				p, err := parsePoison([]byte(strings.TrimSuffix(line, "\n")))
				if err != nil {
					err = fmt.Errorf("%s: line %d: %w", info.Name(), n+1, err)
				}
				if !yield(p, err) {
					return
				}
			}
		}
	}
}
