package spool

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/diaspora-streams/diaspora/internal/disk"
)

// The quarantine keeps what will not be sent: entries that the cluster rejected, and damaged bytes.
// Each of them is a line:
//
//	CRC32C of the JSON in hexadecimal, a space, a JSON object
//
// so that people can read it with grep and jq. A line is synced before the cursor advances past the
// entries that it holds.
const (
	quarantineNameForm = "quarantine-%08x.txt"
	maxDamageBytes     = 64 << 10 // how much of a damaged range is kept

	// A file that has reached this size is not appended to, so that a reader can hold one file in
	// memory.
	quarantineFileBytes = 1 << 20
)

func quarantineName(n uint64) string { return fmt.Sprintf(quarantineNameForm, n) }

func parseQuarantineName(name string) (n uint64, ok bool) {
	_, err := fmt.Sscanf(name, quarantineNameForm, &n)
	return n, err == nil && name == quarantineName(n)
}

// Poison is one line of the quarantine. Either Entry or Damage is set.
type Poison struct {
	Time     time.Time `json:"time"` // when it was put into the quarantine
	Reason   string    `json:"reason"`
	Position uint64    `json:"position"`
	Entry    *Entry    `json:"entry,omitempty"`
	Damage   *Damage   `json:"damage,omitempty"`
}

// Damage is a range of bytes in a segment where there should be entries.
type Damage struct {
	Segment string `json:"segment"`
	Offset  int64  `json:"offset"`
	Bytes   []byte `json:"bytes"`  // at most the first 64 KiB
	Events  uint64 `json:"events"` // how many are lost
}

func (p *Poison) encode() ([]byte, error) {
	content, err := json.Marshal(p)
	if err != nil {
		return nil, err
	}
	return append(append([]byte(hexChecksum(content)+" "), content...), '\n'), nil
}

func hexChecksum(b []byte) string { return fmt.Sprintf("%08x", checksum(0, b)) }

var errPoison = errors.New("the line is damaged")

// parsePoison decodes a line, given without its newline.
func parsePoison(line []byte) (Poison, error) {
	var p Poison
	sum, content, ok := bytes.Cut(line, []byte(" "))
	if !ok || string(sum) != hexChecksum(content) {
		return p, errPoison
	}
	err := json.Unmarshal(content, &p)
	if err == nil && (p.Entry == nil) == (p.Damage == nil) {
		err = errPoison
	}
	return p, err
}

// quarantine writes the files of the quarantine. Each process that opens the spool starts a new
// file. After an error, the next line goes to a new file too. So a line is never appended to a torn
// one.
type quarantine struct {
	mu    sync.Mutex // guards last, file and at
	last  uint64
	file  File
	at    int64
	bytes atomic.Int64 // size of all files; read without mu as well
}

// write appends p to the quarantine, durably.
func (q *quarantine) write(s *Spool, p *Poison) error {
	line, err := p.encode()
	if err != nil {
		return err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.bytes.Load()+int64(len(line)) > s.opts.MaxBytes/8 {
		return fmt.Errorf("%w: the quarantine has reached an eighth of the spool's size", ErrFull)
	}
	if err = q.append(s.fs, line); disk.Full(err) && s.reserve.free(s) {
		err = q.append(s.fs, line)
	}
	return err
}

// append writes and syncs a line. After an error, the next line goes to a new file.
func (q *quarantine) append(fsys FS, line []byte) (err error) {
	defer func() {
		if err != nil {
			closeFile(q.file)
			q.file = nil
		}
	}()
	if q.at >= quarantineFileBytes {
		closeFile(q.file)
		q.file = nil
	}
	fresh := q.file == nil
	if fresh {
		q.last++
		q.at = 0
		if q.file, err = fsys.Create(quarantineName(q.last)); err != nil {
			return err
		}
	}
	n, err := q.file.WriteAt(line, q.at)
	q.at += int64(n)
	q.bytes.Add(int64(n))
	if err == nil && n < len(line) {
		err = io.ErrShortWrite
	}
	if err == nil {
		err = q.file.Sync()
	}
	if err == nil && fresh {
		err = fsys.Sync()
	}
	return err
}

func (q *quarantine) close() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	f := q.file
	q.file = nil
	return closeFile(f)
}
