package kfakedir

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/diaspora-streams/diaspora/internal/batch"
	"github.com/diaspora-streams/diaspora/internal/disk"
)

// Segment consists of the valid batches of a file. Empty batches replace invalid batches and
// missing offsets, so that each batch begins at the offset where the one before it ends. Kafka does
// the same when it compacts a log, and consumers skip empty batches.
type Segment struct {
	Path     string
	Base     int64     // the offset of the first batch
	End      int64     // the offset after the last record, and the Base of the next segment
	Bytes    int64     // of all batches
	Modified time.Time // when the last batch was appended

	size    int64   // of the file
	parts   []part  // the contents of the segment, in order
	patches []patch // positions in the file, in order
}

// part is either an undamaged range of the file, or batches that are not in the file.
type part struct {
	from, to int64
	batches  []byte
}

// patch replaces some bytes of a file.
type patch struct {
	at      int64
	content []byte
}

// add appends a batch to the segment.
func (s *Segment) add(pos int64, h batch.Header, patches []patch) {
	s.fill(h.BaseOffset, h.LeaderEpoch)
	size := int64(h.Size())
	s.End = h.LastOffset() + 1
	s.Bytes += size
	s.patches = append(s.patches, patches...)
	if n := len(s.parts); n > 0 && s.parts[n-1].batches == nil && s.parts[n-1].to == pos {
		s.parts[n-1].to = pos + size
		return
	}
	s.parts = append(s.parts, part{from: pos, to: pos + size})
}

// fill adds empty batches up to the offset end.
func (s *Segment) fill(end int64, epoch int32) {
	var batches []byte
	for s.End < end {
		n := min(end-s.End, 1<<31)
		batches = appendEmpty(batches, s.End, int32(n-1), epoch)
		s.End += n
	}
	if batches != nil {
		s.parts = append(s.parts, part{batches: batches})
		s.Bytes += int64(len(batches))
	}
}

// appendEmpty appends a batch that has offsets but no records.
func appendEmpty(b []byte, base int64, lastOffsetDelta, epoch int32) []byte {
	const none = -1
	start := len(b)
	b = binary.BigEndian.AppendUint64(b, uint64(base))
	b = binary.BigEndian.AppendUint32(b, batch.HeaderBytes-12) // number of bytes that follow
	b = binary.BigEndian.AppendUint32(b, uint32(epoch))
	b = append(b, magic)
	b = binary.BigEndian.AppendUint32(b, 0) // checksum, set below
	b = binary.BigEndian.AppendUint16(b, 0) // attributes
	b = binary.BigEndian.AppendUint32(b, uint32(lastOffsetDelta))
	for range 3 { // first and last timestamp, producer ID
		b = binary.BigEndian.AppendUint64(b, 1<<64+none)
	}
	b = binary.BigEndian.AppendUint16(b, 1<<16+none) // producer epoch
	b = binary.BigEndian.AppendUint32(b, 1<<32+none) // first sequence number
	b = binary.BigEndian.AppendUint32(b, 0)          // number of records
	binary.BigEndian.PutUint32(b[start+checksumAt:], checksum(b[start+attributesAt:]))
	return b
}

// unchanged reports whether the file contains exactly the valid batches.
func (s Segment) unchanged() bool {
	return len(s.parts) == 1 && s.parts[0].to-s.parts[0].from == s.size && len(s.patches) == 0
}

// LinkOrCopy creates the file to with the valid batches of the segment. The file is durable when
// LinkOrCopy returns nil. The file must not exist, but its directory must. The old file is not
// changed. The new file has the modification time of the old one.
//
// If the old file needs no change, the new one may be a hard link to it. Such a file must not be
// written to, because that would change the old file as well: the log must begin a new segment.
func (s Segment) LinkOrCopy(to string) error {
	if !s.unchanged() {
		return s.Copy(to)
	}
	err := os.Link(s.Path, to)
	if errors.Is(err, fs.ErrExist) || errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err != nil {
		return s.Copy(to) // another file system, or one without hard links
	}
	if err := s.syncLink(to); err != nil {
		return errors.Join(err, os.Remove(to))
	}
	return nil
}

// syncLink makes a link and its content durable. The old engine did not always sync the content.
func (s Segment) syncLink(to string) error {
	f, err := os.OpenFile(to, os.O_RDWR, 0) // some systems only sync a file that is open for writing
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err == nil && info.Size() != s.size {
		err = s.changed()
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return syncDir(filepath.Dir(to))
}

// Copy is like [Segment.LinkOrCopy], but never creates a link, so that the new file may be written
// to.
func (s Segment) Copy(to string) error {
	f, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	err = s.write(f)
	if err == nil {
		err = os.Chtimes(to, time.Time{}, s.Modified)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(to))
	}
	return syncDir(filepath.Dir(to))
}

// write writes the batches to an empty file.
func (s Segment) write(to *os.File) error {
	from, err := os.Open(s.Path)
	if err != nil {
		return err
	}
	defer from.Close()
	at := int64(0)
	patches := s.patches
	for _, p := range s.parts {
		if p.batches != nil {
			if _, err := to.Write(p.batches); err != nil {
				return err
			}
			at += int64(len(p.batches))
			continue
		}
		if _, err := from.Seek(p.from, io.SeekStart); err != nil {
			return err
		}
		if _, err := io.CopyN(to, from, p.to-p.from); err == io.EOF {
			return s.changed()
		} else if err != nil {
			return err
		}
		for len(patches) > 0 && patches[0].at < p.to {
			if _, err := to.WriteAt(patches[0].content, at+patches[0].at-p.from); err != nil {
				return err
			}
			patches = patches[1:]
		}
		at += p.to - p.from
	}
	return nil
}

func (s Segment) changed() error {
	return fmt.Errorf("%s has changed while it was being converted", s.Path)
}

func syncDir(dir string) error {
	fsys, err := disk.New(dir)
	if err != nil {
		return err
	}
	return errors.Join(fsys.Sync(), fsys.Close())
}
